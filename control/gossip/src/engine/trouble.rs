//! What goes wrong between this node and others, for people: each says what it takes to mend it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::liveness::Liveness;
use crate::store::StoreError;
use crate::trust::TrustError;
use crate::wire::Member;

/// Entries of each kind at most; further ones are not remembered.
const MAX: usize = 256;
/// How long a refusal counts that does not happen again.
const FOR: Duration = Duration::from_secs(25);
/// How long a node counts as heard that is not heard again.
const HEARD: Duration = Duration::from_secs(60);
/// How long a node that was heard may take until it hears.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often another node is told that its record is refused.
const TELL: Duration = Duration::from_secs(10);

/// A record that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRecord {
    /// The name that it has: whoever made it, the node of that name is concerned.
    pub node: String,
    /// Who brought it last.
    pub from: SocketAddr,
    /// Why it was not taken last.
    pub why: StoreError,
    /// When it came last.
    pub at: Duration,
    /// How often it came.
    pub count: u64,
    told: Duration,
}

/// A node that is heard and does not hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneWay {
    /// Who it says that it is.
    pub member: Member,
    /// Where from.
    pub from: SocketAddr,
    /// Since when.
    pub since: Duration,
    last: Duration,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    refused: BTreeMap<String, RefusedRecord>,
    /// Who refuses this node's record.
    refused_by: BTreeMap<SocketAddr, (StoreError, Duration)>,
    hellos: BTreeMap<SocketAddr, OneWay>,
    /// Since when members have no record here.
    unrecorded: BTreeMap<String, Duration>,
}

impl Trouble {
    /// Whether its node is to be told.
    pub(super) fn refused(
        &mut self,
        node: &str,
        from: SocketAddr,
        why: StoreError,
        now: Duration,
    ) -> bool {
        if !self.refused.contains_key(node) && self.refused.len() >= MAX {
            self.refused
                .retain(|_, old| now.saturating_sub(old.at) < FOR);
            if self.refused.len() >= MAX {
                return false;
            }
        }
        let entry = self
            .refused
            .entry(node.to_owned())
            .or_insert(RefusedRecord {
                node: node.to_owned(),
                from,
                why,
                at: now,
                count: 0,
                told: Duration::ZERO,
            });
        let tell = entry.count == 0 || now.saturating_sub(entry.told) >= TELL;
        if tell {
            entry.told = now;
        }
        (entry.from, entry.why, entry.at) = (from, why, now);
        entry.count = entry.count.saturating_add(1);
        tell
    }

    /// Whether there is a node of this name with another key than the one that is known.
    pub(super) fn has_other_key(&self, node: &str) -> bool {
        let refused = self.refused.get(node);
        refused.is_some_and(|entry| entry.why == StoreError::Trust(TrustError::NotTheFirst))
    }

    /// A record of this node was taken.
    pub(super) fn taken(&mut self, node: &str) {
        self.refused.remove(node);
        self.unrecorded.remove(node);
    }

    /// Somebody says that he does not take this node's record.
    pub(super) fn refused_by(&mut self, who: SocketAddr, why: StoreError, now: Duration) {
        if self.refused_by.len() < MAX || self.refused_by.contains_key(&who) {
            self.refused_by.insert(who, (why, now));
        }
    }

    /// A node asks who is there: it does not know this one yet.
    pub(super) fn hello(&mut self, member: Member, from: SocketAddr, now: Duration) {
        if self.hellos.len() >= MAX {
            self.hellos
                .retain(|_, hello| now.saturating_sub(hello.last) < HEARD);
        }
        let room = self.hellos.len() < MAX;
        match self.hellos.get_mut(&from) {
            Some(hello) if hello.member == member => hello.last = now,
            None if !room => {}
            _ => {
                let (since, last) = (now, now);
                self.hellos.insert(
                    from,
                    OneWay {
                        member,
                        from,
                        since,
                        last,
                    },
                );
            }
        }
    }

    /// A member answers; `recorded` is whether there is a record of its name.
    pub(super) fn up(&mut self, member: &Member, recorded: bool, now: Duration) {
        self.hellos
            .retain(|_, hello| hello.member.name != member.name);
        if !recorded && self.unrecorded.len() < MAX {
            self.unrecorded.entry(member.name.clone()).or_insert(now);
        }
    }

    pub(super) fn down(&mut self, member: &Member) {
        self.unrecorded.remove(&member.name);
    }

    /// Records that are refused now.
    pub(super) fn records(&self, now: Duration) -> Vec<RefusedRecord> {
        let all = self.refused.values();
        all.filter(|entry| now.saturating_sub(entry.at) < FOR)
            .cloned()
            .collect()
    }

    /// Who refuses this node's record now, and why.
    pub(super) fn refusers(&self, now: Duration) -> Vec<(SocketAddr, StoreError)> {
        let all = self.refused_by.iter();
        let recent = all.filter(|(_, (_, at))| now.saturating_sub(*at) < FOR);
        recent.map(|(who, (why, _))| (*who, *why)).collect()
    }

    /// Who is heard and does not hear.
    pub(super) fn one_way(&self, liveness: &Liveness, now: Duration) -> Vec<OneWay> {
        let all = self.hellos.values().filter(|hello| {
            liveness.of(&hello.member.name).is_empty()
                && now.saturating_sub(hello.since) >= PATIENCE
                && now.saturating_sub(hello.last) < HEARD
        });
        all.cloned().collect()
    }

    /// Members whose records do not come, and since when.
    pub(super) fn unrecorded(&self, now: Duration) -> Vec<(String, Duration)> {
        let all = self.unrecorded.iter();
        let waiting = all.filter(|(name, since)| {
            now.saturating_sub(**since) >= PATIENCE && !self.refused.contains_key(*name)
        });
        waiting
            .map(|(name, since)| (name.clone(), *since))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            name: name.to_owned(),
            address: at(1),
            incarnation: 1,
            instance: 1,
            renewal: 0,
        }
    }

    fn at(n: u16) -> SocketAddr {
        ([192, 0, 2, 1], n).into()
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn trouble_is_told_while_it_lasts() {
        let mut all = Trouble::default();
        assert!(all.refused("a", at(1), StoreError::Lives, s(1)));
        assert!(!all.refused("a", at(2), StoreError::Implausible, s(2)));
        assert!(all.refused("a", at(2), StoreError::Implausible, s(11)));
        let seen = &all.records(s(12))[0];
        assert_eq!(
            (seen.from, seen.why, seen.count),
            (at(2), StoreError::Implausible, 3)
        );
        assert!(all.records(s(11) + FOR).is_empty());
        all.taken("a");
        assert!(all.records(s(12)).is_empty());
        all.refused_by(at(3), StoreError::Lives, s(1));
        assert_eq!(all.refusers(s(2)), [(at(3), StoreError::Lives)]);
    }

    #[test]
    fn who_does_not_hear_and_whose_record_does_not_come() {
        let (mut all, liveness) = (Trouble::default(), Liveness::default());
        all.hello(member("a"), at(1), s(1));
        assert!(all.one_way(&liveness, s(2)).is_empty());
        all.hello(member("a"), at(1), s(7));
        assert_eq!(all.one_way(&liveness, s(8)).len(), 1);
        all.up(&member("a"), false, s(9));
        assert!(all.one_way(&liveness, s(10)).is_empty() && all.unrecorded(s(10)).is_empty());
        assert_eq!(all.unrecorded(s(20)), [("a".to_owned(), s(9))]);
        all.taken("a");
        assert!(all.unrecorded(s(20)).is_empty());
    }

    #[test]
    fn nobody_fills_the_memory() {
        let mut all = Trouble::default();
        for n in 0..2_000 {
            all.refused(&format!("n{n}"), at(1), StoreError::Lives, s(1));
            all.hello(member("a"), at(n), s(1));
            all.refused_by(at(n), StoreError::Lives, s(1));
            all.up(&member(&format!("n{n}")), false, s(1));
        }
        assert!(all.refused.len() <= MAX && all.hellos.len() <= MAX);
        assert!(all.refused_by.len() <= MAX && all.unrecorded.len() <= MAX);
    }
}
