//! The records of all nodes: the latest of each, whoever brought it.
//!
//! Two stores that have seen the same records, in whatever order and however often, hold the same.

mod digest;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::digest::{bucket, mark};
use crate::record::{
    Content, MAX_JUMP, MAX_SECONDS, NameHash, Record, RecordError, Signed, Version,
};
use crate::trust::{Trust, TrustError};
use crate::verified::{Checked, Verified, fingerprint};
use crate::wire::BUCKETS;

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

impl Held {
    /// Of two records of one part, the one with the higher rank is kept.
    pub(super) fn rank(&self) -> (Version, u64) {
        (self.record.version, self.content)
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

/// Why a record is not held. Each is counted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
pub enum StoreError {
    /// It is none.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its key is not its node's.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It says of a node that answers that it is forgotten.
    #[error("it says that its node was forgotten, and that node answers")]
    Lives,
    /// No node counts its starts like this, and nothing could follow.
    #[error(
        "its incarnation is more than {} days above both the one that is held and the clock; set the clock of its node, \
         then restart it",
        MAX_JUMP / 86400
    )]
    Implausible,
}

impl StoreError {
    /// For counters. No reason for which datagrams are counted has the same.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Record(why) => why.label(),
            Self::Trust(why) => why.label(),
            Self::Lives => "node-answers",
            Self::Implausible => "implausible-incarnation",
        }
    }
}

/// A record that may be held instead of what is.
#[derive(Debug)]
pub struct New {
    checked: Arc<Checked>,
    replaced: bool,
}

impl New {
    /// What it says.
    pub fn record(&self) -> &Record {
        &self.checked.record
    }
}

/// The latest record of each node.
#[derive(Debug)]
pub struct Store {
    cluster: Box<str>,
    trust: Trust,
    /// Shared with other nodes of this process, if there are any.
    verified: Option<Verified>,
    records: BTreeMap<NameHash, Held>,
    buckets: [u64; BUCKETS],
}

impl Store {
    /// Empty, for a cluster of this name, whose nodes' keys are believed so.
    pub fn new(cluster: &str, trust: Trust) -> Self {
        Self {
            cluster: cluster.into(),
            trust,
            verified: None,
            records: BTreeMap::new(),
            buckets: [0; BUCKETS],
        }
    }

    /// Looks signatures up where others have verified them.
    pub fn share(&mut self, verified: Verified) {
        self.verified = Some(verified);
    }

    /// Takes a record if it [may be](Self::judge) held.
    pub fn offer(
        &mut self,
        signed: &Signed,
        lives: impl FnOnce(&Record) -> bool,
        clock: u64,
        now: Duration,
    ) -> Offer {
        match self.judge(signed, lives, clock) {
            Ok(Some(new)) => self.accept(new, now),
            Ok(None) => Offer::Known,
            Err(why) => Offer::Refused(why),
        }
    }

    /// A record that was judged is held from now on.
    pub fn accept(&mut self, new: New, now: Duration) -> Offer {
        let New { checked, replaced } = new;
        let name = checked.record.id();
        let since = now;
        self.insert(name, Held { checked, since });
        Offer::Taken { name, replaced }
    }

    /// Whether a record is later than what is held, and its key its node's; none, when it is not later.
    /// Any node may say that another is forgotten, unless the node whose record is held `lives`. Of two
    /// with one version that differ, all nodes keep the same one. Parts are taken when the head is there
    /// that speaks of them. The clock is in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn judge(
        &self,
        signed: &Signed,
        lives: impl FnOnce(&Record) -> bool,
        clock: u64,
    ) -> Result<Option<New>, StoreError> {
        // Most of what comes is there already: several members send each record.
        if self.has(signed) {
            return Ok(None);
        }
        let (checked, verified) = self.open(signed)?;
        let (record, content) = (&checked.record, checked.content);
        let held = self.records.get(&record.id());
        let later = |held: &Held| (held.record.version, held.content) < (record.version, content);
        if record.part > 0 {
            // It may have come before its head: then it comes again.
            if !self.speaks_of(record, signed) || !held.is_none_or(later) {
                return Ok(None);
            }
        } else {
            let before = held.map(|held| (&*held.record, &held.signed.key));
            if before.is_some_and(|(_, key)| *key == signed.key) && !held.is_none_or(later) {
                return Ok(None);
            }
            (self.trust).admits(record, &signed.key, before, &self.cluster)?;
            if !held.is_none_or(later) {
                return Ok(None);
            }
        }
        if !is_plausible(signed, record, held, clock) {
            return Err(StoreError::Implausible);
        }
        let alive = held.is_some_and(|held| lives(&held.record));
        if record.content == Content::Forgotten && alive {
            return Err(StoreError::Lives);
        }
        // Last, since it costs most: what changes nothing may be anybody's.
        if !verified {
            self.verify(&checked)?;
        }
        // A part may have come and gone with its head before.
        let replaced = held.is_some() || record.part > 0;
        Ok(Some(New { checked, replaced }))
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
            record: Arc::new(signed.decode()?),
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
        self.buckets[bucket(name)] ^= mark(name, &held);
        let is_head = held.record.part == 0;
        let Some(old) = self.records.insert(name, held) else {
            return;
        };
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

    /// Forgets who has been gone for [`GONE_FOR`]: these.
    pub fn expire(&mut self, now: Duration) -> Vec<String> {
        let over = |held: &Held| {
            let gone = matches!(held.record.content, Content::Gone | Content::Forgotten);
            gone && now.saturating_sub(held.since) >= GONE_FOR
        };
        let over: Vec<_> = (self.records.values())
            .filter(|held| over(held))
            .map(|held| held.record.name.clone())
            .collect();
        for name in &over {
            self.remove(NameHash::of(name));
        }
        over
    }

    fn remove(&mut self, name: NameHash) {
        if let Some(held) = self.records.remove(&name) {
            self.buckets[bucket(name)] ^= mark(name, &held);
        }
    }

    /// What a node says, all its parts together. Shares the head's when that is all.
    pub fn whole(&self, head: &Held) -> Arc<Record> {
        let parts = (1..head.record.parts()).map(|part| NameHash::of_part(&head.record.name, part));
        let parts: Vec<_> = parts.filter_map(|name| self.get(name)).collect();
        if parts.is_empty() {
            return Arc::clone(&head.checked.record);
        }
        let mut whole = Record::clone(&head.record);
        for part in parts {
            whole.append(&part.record);
        }
        Arc::new(whole)
    }

    /// What every node says, and since when its head is held.
    pub fn nodes(&self) -> impl Iterator<Item = (Arc<Record>, Duration)> {
        let heads = self.iter().filter(|held| held.record.part == 0);
        heads.map(|held| (self.whole(held), held.since))
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
}

/// Whether a node can have come to this incarnation. A node that is known goes on from the one that is
/// held, or with its clock's time; nobody's word can bring it so near the highest number that it could not
/// go on. It may go twice as far as others' words may bring it, so that its answer to them is taken also by
/// those who have not heard them. What becomes known with a wrong clock counts all the same.
fn is_plausible(signed: &Signed, record: &Record, held: Option<&Held>, clock: u64) -> bool {
    let most = held.map_or(MAX_SECONDS, |held| {
        let own = held.signed.key == signed.key && record.content != Content::Forgotten;
        let jump = if own { 2 * MAX_JUMP } else { MAX_JUMP };
        let from = held.record.version.incarnation.max(clock);
        from.saturating_add(jump)
    });
    record.version.incarnation.max(record.started) <= most
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
