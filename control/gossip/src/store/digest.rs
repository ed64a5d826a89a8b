//! How two stores find what they differ in: a hash for each bucket of records, then the names and versions in the
//! buckets whose hashes differ.

use std::collections::BTreeMap;

use super::{Held, Store};
use crate::record::{NameHash, Signed};
use crate::wire::{BUCKETS, MAX_RANGE, Range, Summary};

/// The first half of a hash.
fn short(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or(0)
}

/// Where names of this hash belong.
pub(super) fn bucket(name: NameHash) -> usize {
    usize::try_from(name.0 >> 57).unwrap_or(0)
}

/// What a record adds to its bucket's hash.
pub(super) fn mark(name: NameHash, held: &Held) -> u64 {
    // Both are of a good hash already; turned, so that equal ones do not cancel out.
    name.0 ^ held.content.rotate_left(29)
}

impl Store {
    /// A hash for each bucket: stores that hold the same have the same.
    pub fn digest(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// As much of each bucket's hash as a digest has.
    pub fn short_digest(&self) -> Vec<u32> {
        self.buckets.iter().map(|hash| short(*hash)).collect()
    }

    /// What is held in the buckets that somebody's digest, which begins with the bucket `first`, has other
    /// hashes for.
    pub fn differing(&self, first: usize, digest: &[u32]) -> Vec<Range> {
        let buckets = self.buckets.iter().enumerate().skip(first);
        buckets
            .zip(digest)
            .map(|((number, own), other)| (number, (short(*own), *other)))
            .filter(|(_, (own, other))| own != other)
            .flat_map(|(number, _)| self.ranges(number))
            .collect()
    }

    /// A bucket in ranges that together cover it.
    fn ranges(&self, number: usize) -> Vec<Range> {
        let start = u64::try_from(number).unwrap_or(u64::MAX) << 57;
        let end = NameHash(start | ((1 << 57) - 1));
        let mut first = NameHash(start);
        let mut all = Vec::new();
        let records: Vec<_> = self
            .between(first, end)
            .map(|(name, held)| Summary {
                name,
                version: held.record.version,
                content: held.content,
            })
            .collect();
        let mut rest = &records[..];
        while rest.len() > MAX_RANGE {
            let (now, later) = rest.split_at(MAX_RANGE);
            let last = NameHash(later[0].name.0 - 1);
            let records = now.to_vec();
            all.push(Range {
                first,
                last,
                records,
            });
            (first, rest) = (later[0].name, later);
        }
        all.push(Range {
            first,
            last: end,
            records: rest.to_vec(),
        });
        all
    }

    fn between(&self, first: NameHash, last: NameHash) -> impl Iterator<Item = (NameHash, &Held)> {
        // A range the wrong way round holds nothing, and would panic.
        let last = last.max(first);
        let range = self.records.range(first..=last);
        range.map(|(name, held)| (*name, held))
    }

    /// Compares with what somebody has in a range: the names to ask for, and the records that the
    /// other lacks.
    pub fn compare(&self, other: &Range) -> (Vec<NameHash>, Vec<&Signed>) {
        let rank = |s: &Summary| (s.version, s.content);
        let own = |name| self.get(name).map(|h| (h.record.version, h.content));
        let wanted = (other.records.iter())
            .filter(|s| own(s.name).is_none_or(|own| own < rank(s)))
            .map(|s| s.name)
            .collect();
        let theirs: BTreeMap<_, _> = other.records.iter().map(|s| (s.name, rank(s))).collect();
        let lacked = self
            .between(other.first, other.last)
            .filter(|(name, held)| {
                let own = (held.record.version, held.content);
                theirs.get(name).is_none_or(|theirs| *theirs < own)
            })
            .map(|(_, held)| &held.signed)
            .collect();
        (wanted, lacked)
    }
}
