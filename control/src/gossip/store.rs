//! The records of all nodes: the latest of each, whoever brought it.
//!
//! Two stores that have seen the same records, in whatever order and however often, hold the same.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::{Content, NameHash, PublicKey, Record, RecordError, Signed, Version};
use super::wire::{BUCKETS, MAX_RANGE, Range, Summary};

/// How long the record of a node that has gone is kept, so that nobody brings back an older one.
pub const GONE_FOR: Duration = Duration::from_secs(24 * 3600);

/// A record that is held.
#[derive(Clone, Debug)]
pub struct Held {
    /// What it says.
    pub record: Record,
    /// As it came, to pass on.
    pub signed: Signed,
    /// When it came.
    pub since: Duration,
    /// Of its bytes.
    content: u64,
}

/// What became of a record that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is held now, and is news for others.
    Taken(NameHash),
    /// What is held is the same, or later.
    Known,
    /// It is not taken.
    Refused(StoreError),
}

/// Why a record is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is none.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its node has another key here.
    #[error("it is signed by another key than the node has: forget the node if its key was lost")]
    OtherKey,
    /// It says of a node that answers that it is forgotten.
    #[error("it says that a node is forgotten which answers")]
    Lives,
}

/// The latest record of each node.
#[derive(Debug)]
pub struct Store {
    cluster: Box<str>,
    records: BTreeMap<NameHash, Held>,
    buckets: [u64; BUCKETS],
}

/// Where names of this hash belong.
fn bucket(name: NameHash) -> usize {
    usize::try_from(name.0 >> 57).unwrap_or(0)
}

impl Store {
    /// Empty, for a cluster of this name.
    pub fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.into(),
            records: BTreeMap::new(),
            buckets: [0; BUCKETS],
        }
    }

    /// Takes a record if it is later than what is held of its node and signed by the same key; the
    /// first one's key counts, until the node is forgotten. Anybody may say that a node is
    /// forgotten, unless it `lives`. Of two with one version that differ, all nodes keep the same
    /// one.
    pub fn offer(
        &mut self,
        signed: &Signed,
        lives: impl FnOnce(&Record) -> bool,
        now: Duration,
    ) -> Offer {
        let record = match signed.decode() {
            Ok(record) => record,
            Err(error) => return Offer::Refused(error.into()),
        };
        let (name, content) = (NameHash::of(&record.name), content_of(signed));
        let forgotten = |record: &Record| record.content == Content::Forgotten;
        if let Some(held) = self.records.get(&name) {
            let released = forgotten(&record) || forgotten(&held.record);
            if held.signed.key != signed.key && !released {
                return Offer::Refused(StoreError::OtherKey);
            }
            if (held.record.version, held.content) >= (record.version, content) {
                return Offer::Known;
            }
        }
        if forgotten(&record) && lives(&record) {
            return Offer::Refused(StoreError::Lives);
        }
        // Last, since it costs most: what changes nothing may be anybody's.
        if let Err(error) = signed.verify(&self.cluster) {
            return Offer::Refused(error.into());
        }
        let held = Held {
            record,
            signed: signed.clone(),
            since: now,
            content,
        };
        let mark = mark(name, &held);
        if let Some(old) = self.records.insert(name, held) {
            self.buckets[bucket(name)] ^= self::mark(name, &old);
        }
        self.buckets[bucket(name)] ^= mark;
        Offer::Taken(name)
    }

    /// Forgets who has been gone for [`GONE_FOR`].
    pub fn expire(&mut self, now: Duration) {
        let over = |held: &Held| {
            let gone = matches!(held.record.content, Content::Gone | Content::Forgotten);
            gone && now.saturating_sub(held.since) >= GONE_FOR
        };
        let over: Vec<_> = (self.records.iter())
            .filter(|(_, held)| over(held))
            .map(|(name, _)| *name)
            .collect();
        for name in over {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: NameHash) {
        if let Some(held) = self.records.remove(&name) {
            self.buckets[bucket(name)] ^= mark(name, &held);
        }
    }

    /// The record of a node.
    pub fn get(&self, name: NameHash) -> Option<&Held> {
        self.records.get(&name)
    }

    /// All, by hash of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.records.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// A hash for each bucket: stores that hold the same have the same.
    pub fn digest(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// What is held in the buckets that somebody's digest has other hashes for.
    pub fn differing(&self, digest: &[u64]) -> Vec<Range> {
        let pairs = self.buckets.iter().zip(digest).enumerate();
        pairs
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

    /// The key that a node signs with.
    pub fn key_of(&self, name: &str) -> Option<PublicKey> {
        self.get(NameHash::of(name)).map(|held| held.signed.key)
    }

    /// The version that is held of a node.
    pub fn version_of(&self, name: &str) -> Option<Version> {
        self.get(NameHash::of(name)).map(|held| held.record.version)
    }
}

/// Of a record's bytes and signature: 64 bits of SHA-256.
fn content_of(signed: &Signed) -> u64 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&signed.bytes);
    context.update(&signed.signature);
    let mut first = [0; 8];
    first.copy_from_slice(&context.finish().as_ref()[..8]);
    u64::from_be_bytes(first)
}

/// What a record adds to its bucket's hash.
fn mark(name: NameHash, held: &Held) -> u64 {
    // Both are of a good hash already; turned, so that equal ones do not cancel out.
    name.0 ^ held.content.rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{key, record};
    use super::*;
    use proptest::prelude::*;

    fn signed(name: &str, incarnation: u64, change: u64, instance: u64) -> Signed {
        let mut record = record(name, incarnation, change);
        record.instance = instance;
        let seed = u8::try_from(name.len()).expect("short");
        Signed::new(&record, "test", &key(seed)).expect("short")
    }

    const NOW: Duration = Duration::ZERO;

    fn dead(_: &Record) -> bool {
        false
    }

    #[test]
    fn the_latest_is_held() {
        let mut store = Store::new("test");
        let (old, new) = (signed("a", 1, 9, 1), signed("a", 2, 1, 1));
        assert!(matches!(store.offer(&old, dead, NOW), Offer::Taken(_)));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        assert!(matches!(store.offer(&new, dead, NOW), Offer::Taken(_)));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        assert_eq!(store.len(), 1);
        let forged = Signed::new(&record("a", 9, 9), "test", &key(99)).expect("short");
        let refused = Offer::Refused(StoreError::OtherKey);
        assert_eq!(store.offer(&forged, dead, NOW), refused);
    }

    #[test]
    fn who_has_gone_is_forgotten_in_the_end() {
        let mut store = Store::new("test");
        let mut gone = record("a", 1, 2);
        gone.content = Content::Gone;
        let gone = Signed::new(&gone, "test", &key(1)).expect("short");
        assert!(matches!(store.offer(&gone, dead, NOW), Offer::Taken(_)));
        assert!(matches!(
            store.offer(&signed("b", 1, 1, 1), dead, NOW),
            Offer::Taken(_)
        ));
        assert_eq!(store.offer(&signed("a", 1, 1, 1), dead, NOW), Offer::Known);
        store.expire(GONE_FOR.mul_f64(0.99));
        assert_eq!(store.len(), 2);
        store.expire(GONE_FOR);
        assert_eq!(store.len(), 1);
        let mut other = Store::new("test");
        other.offer(&signed("b", 1, 1, 1), dead, NOW);
        assert_eq!(store.digest(), other.digest());
    }

    #[test]
    fn the_forgotten_may_come_back_with_another_key() {
        let mut store = Store::new("test");
        let old = signed("a", 5, 1, 1);
        store.offer(&old, dead, NOW);
        let mut forgotten = record("a", 5, u64::MAX);
        forgotten.content = Content::Forgotten;
        let forgotten = Signed::new(&forgotten, "test", &key(50)).expect("short");
        let refused = Offer::Refused(StoreError::Lives);
        assert_eq!(store.offer(&forgotten, |_| true, NOW), refused);
        assert!(matches!(
            store.offer(&forgotten, dead, NOW),
            Offer::Taken(_)
        ));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        let new = Signed::new(&record("a", 6, 1), "test", &key(60)).expect("short");
        assert!(matches!(store.offer(&new, dead, NOW), Offer::Taken(_)));
        let again = Signed::new(&record("a", 7, 1), "test", &key(1)).expect("short");
        let refused = Offer::Refused(StoreError::OtherKey);
        assert_eq!(
            store.offer(&again, dead, NOW),
            refused,
            "the new key counts"
        );
    }

    /// Copies everything that they differ in, one way and back.
    fn repair(a: &mut Store, b: &mut Store) {
        for range in &b.differing(a.digest()) {
            let (wanted, lacked) = a.compare(range);
            let lacked: Vec<_> = lacked.into_iter().cloned().collect();
            let wanted: Vec<_> = wanted
                .into_iter()
                .map(|name| b.get(name).expect("it said so").signed.clone())
                .collect();
            for signed in wanted {
                assert!(matches!(a.offer(&signed, dead, NOW), Offer::Taken(_)));
            }
            for signed in lacked {
                assert!(matches!(b.offer(&signed, dead, NOW), Offer::Taken(_)));
            }
        }
    }

    proptest! {
        /// In any order, with any repetition, against a map of the highest; and what two stores
        /// differ in is found by their digests.
        #[test]
        fn stores_agree(
            offers in prop::collection::vec(("[a-d]{1,3}", 1u64..4, 1u64..4, 1u64..3), 1..60),
            seed: u64,
        ) {
            let all: Vec<_> = offers.iter().map(|(n, i, c, x)| signed(n, *i, *c, *x)).collect();
            let (mut a, mut b) = (Store::new("test"), Store::new("test"));
            let mut model = BTreeMap::new();
            for (place, record) in all.iter().enumerate() {
                if let Offer::Refused(why) = a.offer(record, dead, NOW) { panic!("{why}") }
                if (seed >> (place % 64)) & 1 == 1 { b.offer(record, dead, NOW); }
                let opened = record.decode().expect("sound");
                let entry = (opened.version, content_of(record));
                let highest = model.entry(opened.name).or_insert(entry);
                *highest = entry.max(*highest);
            }
            repair(&mut a, &mut b);
            prop_assert_eq!(a.digest(), b.digest());
            for store in [&a, &b] {
                let held: BTreeMap<_, _> = store
                    .iter()
                    .map(|held| (held.record.name.clone(), (held.record.version, held.content)))
                    .collect();
                prop_assert_eq!(&held, &model);
            }
            let mut c = Store::new("test");
            for record in all.iter().rev() { c.offer(record, dead, NOW); }
            prop_assert_eq!(a.digest(), c.digest());
        }
    }
}
