//! The records of all nodes: the latest of each, whoever brought it.
//!
//! Two stores that have seen the same records, in whatever order and however often, hold the same.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::record::{Content, NameHash, Record, RecordError, Signed};
use super::trust::{Trust, TrustError};
use super::verified::{Checked, Verified, fingerprint};
use super::wire::{BUCKETS, MAX_RANGE, Range, Summary};

/// How long the record of a node that has gone is kept, so that nobody brings back an older one.
pub const GONE_FOR: Duration = Duration::from_secs(24 * 3600);

/// A record that is held.
#[derive(Clone, Debug)]
pub struct Held {
    checked: Arc<Checked>,
    /// When it came.
    pub since: Duration,
}

impl Deref for Held {
    type Target = Checked;

    fn deref(&self) -> &Checked {
        &self.checked
    }
}

/// What became of a record that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is held now, and is news for others.
    Taken {
        /// By which it is found.
        name: NameHash,
        /// Whether an earlier one was, or may have been, held.
        replaced: bool,
    },
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
    /// Its key is not its node's.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It says of a node that answers that it is forgotten.
    #[error("it says that a node is forgotten which answers")]
    Lives,
}

/// The latest record of each node.
#[derive(Debug)]
pub struct Store {
    cluster: Box<str>,
    trust: Trust,
    /// Shared with other nodes of this process, if there are any.
    verified: Option<Verified>,
    records: BTreeMap<NameHash, Held>,
    /// How many nodes are there by their heads.
    here: usize,
    buckets: [u64; BUCKETS],
}

/// Where names of this hash belong.
fn bucket(name: NameHash) -> usize {
    usize::try_from(name.0 >> 57).unwrap_or(0)
}

impl Store {
    /// Empty, for a cluster of this name, whose nodes' keys are believed so.
    pub fn new(cluster: &str, trust: Trust) -> Self {
        Self {
            cluster: cluster.into(),
            trust,
            verified: None,
            records: BTreeMap::new(),
            here: 0,
            buckets: [0; BUCKETS],
        }
    }

    /// Looks signatures up where others have verified them.
    pub fn share(&mut self, verified: Verified) {
        self.verified = Some(verified);
    }

    /// Takes a record if it is later than what is held and its key is its node's. Any node may say
    /// that another is forgotten, unless it `lives`. Of two with one version that differ, all nodes
    /// keep the same one. Parts are taken when the head is there that speaks of them.
    pub fn offer(
        &mut self,
        signed: &Signed,
        lives: impl FnOnce(&Record) -> bool,
        now: Duration,
    ) -> Offer {
        // Most of what comes is there already: several members send each record.
        if self.has(signed) {
            return Offer::Known;
        }
        let (checked, verified) = match self.open(signed) {
            Ok(opened) => opened,
            Err(error) => return Offer::Refused(error.into()),
        };
        let (record, content) = (&checked.record, checked.content);
        let name = record.id();
        let held = self.records.get(&name);
        let later = |held: &Held| (held.record.version, held.content) < (record.version, content);
        if record.part > 0 {
            // It may have come before its head: then it comes again.
            if !self.speaks_of(record, signed) || !held.is_none_or(later) {
                return Offer::Known;
            }
        } else {
            let before = held.map(|held| (&held.record, &held.signed.key));
            if before.is_some_and(|(_, key)| *key == signed.key) && !held.is_none_or(later) {
                return Offer::Known;
            }
            if let Err(error) = (self.trust).admits(record, &signed.key, before, &self.cluster) {
                return Offer::Refused(error.into());
            }
            if !held.is_none_or(later) {
                return Offer::Known;
            }
            if record.content == Content::Forgotten && lives(record) {
                return Offer::Refused(StoreError::Lives);
            }
        }
        // Last, since it costs most: what changes nothing may be anybody's.
        if !verified && let Err(error) = self.verify(&checked) {
            return Offer::Refused(error.into());
        }
        // A part may have come and gone with its head before.
        let replaced = held.is_some() || record.part > 0;
        let since = now;
        self.insert(name, Held { checked, since });
        Offer::Taken { name, replaced }
    }

    /// Whether the same bytes, or a later version by the same key, are held. Reads no more of them
    /// than it has to.
    fn has(&self, signed: &Signed) -> bool {
        let Some((name, part, version)) = signed.peek() else {
            return false;
        };
        let held = self.records.get(&NameHash::of_part(name, part));
        held.is_some_and(|held| {
            let later = version < held.record.version && signed.key == held.signed.key;
            later || *signed == held.signed
        })
    }

    /// What a record says, and whether its signature was verified before.
    fn open(&self, signed: &Signed) -> Result<(Arc<Checked>, bool), RecordError> {
        let shared = self.verified.as_ref();
        let known = shared.and_then(|all| all.get(&fingerprint(signed, &self.cluster)));
        if let Some(known) = known {
            return Ok((known, true));
        }
        let checked = Checked {
            record: signed.decode()?,
            signed: signed.clone(),
            content: content_of(signed),
        };
        Ok((Arc::new(checked), false))
    }

    fn verify(&self, checked: &Arc<Checked>) -> Result<(), RecordError> {
        checked.signed.verify(&self.cluster)?;
        if let Some(verified) = &self.verified {
            verified.insert(fingerprint(&checked.signed, &self.cluster), checked);
        }
        Ok(())
    }

    /// Whether the head that is held says that there is such a part, of its own key.
    fn speaks_of(&self, part: &Record, signed: &Signed) -> bool {
        let head = self.records.get(&NameHash::of(&part.name));
        head.is_some_and(|head| part.part < head.record.parts() && head.signed.key == signed.key)
    }

    fn insert(&mut self, name: NameHash, held: Held) {
        let (parts, key) = (held.record.parts(), held.signed.key);
        self.here += usize::from(parts > 0);
        self.buckets[bucket(name)] ^= mark(name, &held);
        let is_head = held.record.part == 0;
        let Some(old) = self.records.insert(name, held) else {
            return;
        };
        self.here -= usize::from(old.record.parts() > 0);
        self.buckets[bucket(name)] ^= mark(name, &old);
        // Parts that the new head does not speak of go with the old one.
        if is_head {
            let first = if old.signed.key == key {
                parts.max(1)
            } else {
                1
            };
            for part in first..old.record.parts() {
                self.remove(NameHash::of_part(&old.record.name, part));
            }
        }
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
            self.here -= usize::from(held.record.parts() > 0);
            self.buckets[bucket(name)] ^= mark(name, &held);
        }
    }

    /// What every node says, its parts together, and since when its head is held.
    pub fn nodes(&self) -> impl Iterator<Item = (Record, Duration)> {
        let heads = self.iter().filter(|held| held.record.part == 0);
        heads.map(|held| {
            let mut whole = held.record.clone();
            let parts = (1..whole.parts()).map(|part| NameHash::of_part(&whole.name, part));
            let parts: Vec<_> = parts.filter_map(|name| self.get(name)).collect();
            for part in parts {
                whole.append(&part.record);
            }
            (whole, held.since)
        })
    }

    /// How many nodes are there, by what they said last.
    pub fn here(&self) -> usize {
        self.here
    }

    /// A record by its name's hash.
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
        let mut store = Store::new("test", Trust::FirstSight);
        let (old, new) = (signed("a", 1, 9, 1), signed("a", 2, 1, 1));
        assert!(matches!(store.offer(&old, dead, NOW), Offer::Taken { .. }));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        assert!(matches!(store.offer(&new, dead, NOW), Offer::Taken { .. }));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        assert_eq!(store.len(), 1);
        let forged = Signed::new(&record("a", 9, 9), "test", &key(99)).expect("short");
        let refused = Offer::Refused(TrustError::NotTheFirst.into());
        assert_eq!(store.offer(&forged, dead, NOW), refused);
    }

    /// A head that speaks of so many parts, and a part.
    fn in_parts(incarnation: u64, change: u64, parts: u16, seed: u8) -> Signed {
        let mut head = record("a", incarnation, change);
        if let Content::Here { parts: said, .. } = &mut head.content {
            *said = parts;
        }
        Signed::new(&head, "test", &key(seed)).expect("short")
    }

    fn part(number: u16, change: u64, seed: u8) -> Signed {
        let mut part = record("a", 1, change);
        part.part = number;
        let networks = part.networks().to_vec();
        part.content = Content::More { networks };
        Signed::new(&part, "test", &key(seed)).expect("short")
    }

    #[test]
    fn parts_come_and_go_with_their_head() {
        let mut store = Store::new("test", Trust::FirstSight);
        let mut take = |signed: &Signed| match store.offer(signed, dead, NOW) {
            Offer::Taken { .. } => Some(
                store
                    .nodes()
                    .map(|(r, _)| r.networks()[0].prefixes.len())
                    .sum(),
            ),
            Offer::Known => None,
            Offer::Refused(why) => panic!("{why}"),
        };
        let none: Option<usize> = None;
        assert_eq!(take(&part(1, 1, 1)), none, "before its head");
        assert_eq!(take(&in_parts(1, 1, 3, 1)), Some(1));
        assert_eq!(take(&part(2, 1, 1)), Some(2));
        assert_eq!(take(&part(1, 1, 1)), Some(3));
        assert_eq!(take(&part(1, 1, 1)), none);
        assert_eq!(take(&part(1, 9, 2)), none, "another's");
        assert_eq!(take(&part(3, 1, 1)), none, "more than there are");
        assert_eq!(take(&part(1, 2, 1)), Some(3));
        assert_eq!(take(&in_parts(1, 2, 2, 1)), Some(2));
        assert_eq!(
            take(&in_parts(2, 1, 2, 1)),
            Some(2),
            "an older part until it comes anew"
        );
        let mut gone = record("a", 3, 1);
        gone.content = Content::Gone;
        let gone = Signed::new(&gone, "test", &key(1)).expect("short");
        assert!(matches!(store.offer(&gone, dead, NOW), Offer::Taken { .. }));
        assert_eq!((store.len(), store.here()), (1, 0));
        // As one that has never heard of any part.
        let mut other = Store::new("test", Trust::FirstSight);
        other.offer(&gone, dead, NOW);
        assert_eq!(store.digest(), other.digest());
    }

    #[test]
    fn a_new_key_ends_the_old_ones_parts() {
        let mut store = Store::new("test", Trust::FirstSight);
        for signed in [in_parts(1, 1, 2, 1), part(1, 1, 1)] {
            assert!(matches!(
                store.offer(&signed, dead, NOW),
                Offer::Taken { .. }
            ));
        }
        // As a configuration, or an authority, would let it.
        store.trust = Trust::Configured([("a".to_owned(), crate::gossip::public(&key(2)))].into());
        assert!(matches!(
            store.offer(&in_parts(2, 1, 2, 2), dead, NOW),
            Offer::Taken { .. }
        ));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn who_has_gone_is_forgotten_in_the_end() {
        let mut store = Store::new("test", Trust::FirstSight);
        let mut gone = record("a", 1, 2);
        gone.content = Content::Gone;
        let gone = Signed::new(&gone, "test", &key(1)).expect("short");
        assert!(matches!(store.offer(&gone, dead, NOW), Offer::Taken { .. }));
        assert!(matches!(
            store.offer(&signed("b", 1, 1, 1), dead, NOW),
            Offer::Taken { .. }
        ));
        assert_eq!(store.offer(&signed("a", 1, 1, 1), dead, NOW), Offer::Known);
        store.expire(GONE_FOR.mul_f64(0.99));
        assert_eq!(store.len(), 2);
        store.expire(GONE_FOR);
        assert_eq!(store.len(), 1);
        let mut other = Store::new("test", Trust::FirstSight);
        other.offer(&signed("b", 1, 1, 1), dead, NOW);
        assert_eq!(store.digest(), other.digest());
    }

    #[test]
    fn the_forgotten_may_come_back_with_another_key() {
        let mut store = Store::new("test", Trust::FirstSight);
        let old = signed("a", 5, 1, 1);
        store.offer(&old, dead, NOW);
        let mut forgotten = record("a", 5, u64::MAX);
        forgotten.content = Content::Forgotten;
        let forgotten = Signed::new(&forgotten, "test", &key(50)).expect("short");
        let refused = Offer::Refused(StoreError::Lives);
        assert_eq!(store.offer(&forgotten, |_| true, NOW), refused);
        assert!(matches!(
            store.offer(&forgotten, dead, NOW),
            Offer::Taken { .. }
        ));
        assert_eq!(store.offer(&old, dead, NOW), Offer::Known);
        let new = Signed::new(&record("a", 6, 1), "test", &key(60)).expect("short");
        assert!(matches!(store.offer(&new, dead, NOW), Offer::Taken { .. }));
        let again = Signed::new(&record("a", 7, 1), "test", &key(1)).expect("short");
        let refused = Offer::Refused(TrustError::NotTheFirst.into());
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
                assert!(matches!(a.offer(&signed, dead, NOW), Offer::Taken { .. }));
            }
            for signed in lacked {
                assert!(matches!(b.offer(&signed, dead, NOW), Offer::Taken { .. }));
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
            let (mut a, mut b) = (Store::new("test", Trust::FirstSight), Store::new("test", Trust::FirstSight));
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
            let mut c = Store::new("test", Trust::FirstSight);
            for record in all.iter().rev() { c.offer(record, dead, NOW); }
            prop_assert_eq!(a.digest(), c.digest());
        }
    }
}
