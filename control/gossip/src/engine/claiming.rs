//! This node's own claims: a new one, and that of a node that was away, gives way to what others have.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use super::parts::Announcement;
use super::{Due, Engine, Event};
use crate::claims::Key;
use crate::node::TAKE_OVER;

/// How long after this node came to others it compares its claims with theirs: when their records have
/// come for certain, and once more.
const COMPARE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];
/// A claim is new that was made so recently, in seconds.
const NEW: u64 = 60;
/// Clocks that are right differ by less, in seconds.
const SKEW: u64 = 10;

/// What of this node's claims may have to give way.
#[derive(Clone, Debug, Default)]
pub(super) struct Claiming {
    /// They are compared while they are here, and whether they are new.
    open: BTreeMap<Key, bool>,
    /// All that were claimed.
    known: BTreeSet<Key>,
    /// Since when this node has been away, or was started, in seconds since 1970.
    pub(super) away_since: u64,
    /// Others have forgotten it meanwhile: what they say counts as news, all of it.
    forgotten: bool,
    compared: BTreeSet<(String, Key, Key)>,
    /// Each of these is to be at least as young.
    younger: BTreeMap<Key, u64>,
    alone_since: Option<Duration>,
    /// Whether it has ever had company.
    came: bool,
}

fn keys(said: &Announcement) -> impl Iterator<Item = (Key, u64)> {
    said.networks.iter().flat_map(|part| {
        let claims = part.prefixes.iter();
        claims.map(|claim| ((part.vni, claim.prefix), claim.since))
    })
}

impl Claiming {
    /// This is to be said, with ages that others will agree with.
    pub(super) fn adjust(&mut self, said: &mut Announcement, start: bool, clock: u64) -> bool {
        let mut opened = false;
        for (key, since) in keys(said) {
            let new = since.saturating_add(NEW) >= clock;
            if self.known.insert(key) && (start || new) {
                self.open.insert(key, new);
                opened = true;
            }
        }
        for part in &mut said.networks {
            for claim in &mut part.prefixes {
                if let Some(least) = self.younger.get(&(part.vni, claim.prefix)) {
                    claim.since = claim.since.max(*least);
                }
            }
        }
        opened
    }

    /// Others have forgotten this node. That counts if it was away.
    pub(super) fn was_forgotten(&mut self) {
        self.forgotten = !self.open.is_empty();
    }
}

impl Engine {
    /// There are members, after there were none, or the other way round.
    pub(super) fn company(&mut self, some: bool, now: Duration) {
        let alone = self.claiming.alone_since.take();
        if some && !mem::replace(&mut self.claiming.came, true) {
            self.joined = now;
        }
        if !some {
            self.claiming.alone_since = alone.or(Some(now));
            return;
        }
        if let Some(since) = alone.filter(|since| now.saturating_sub(*since) >= TAKE_OVER) {
            let away = now.saturating_sub(since).as_secs();
            self.claiming.away_since = self.clock.saturating_sub(away);
            self.joined = now;
            self.claiming.compared.clear();
            let known = self.claiming.known.iter();
            self.claiming.open = known.map(|key| (*key, false)).collect();
        }
        self.compare_later(now);
    }

    pub(super) fn compare_later(&mut self, now: Duration) {
        if self.foca.num_members() > 0 && !self.claiming.open.is_empty() {
            self.at(now + COMPARE[0], Due::CompareClaims { last: false });
            self.at(now + COMPARE[1], Due::CompareClaims { last: true });
        }
    }

    /// Signs this node's claims as younger than others that are news to it, and of nodes that live. Each is
    /// compared once, with what it said when it was seen first, so that two do not go on for ever.
    pub(super) fn compare_claims(&mut self, last: bool, now: Duration) {
        let Some(said) = self.own.as_ref().and_then(|own| own.said().cloned()) else {
            return;
        };
        let me = self.foca.identity().name.clone();
        let mut younger = BTreeMap::new();
        for (own, mut since) in keys(&said) {
            let Some(new) = self.claiming.open.get(&own).copied() else {
                continue;
            };
            for (name, other, (first, theirs)) in self.overlapping(own) {
                // If the clocks are right, what both say decides between a new claim and another.
                if new && theirs.max(first) <= self.clock.saturating_add(SKEW) {
                    continue;
                }
                if self.claiming.compared.insert((name.clone(), own, other))
                    && (since, &me) < (first, &name)
                {
                    since = theirs.max(first).saturating_add(1);
                    younger.insert(own, since);
                }
            }
        }
        if last {
            self.claiming.open.clear();
            self.claiming.forgotten = false;
        }
        if younger.is_empty() {
            return;
        }
        self.claiming.younger.extend(younger.clone());
        self.events.push(Event::Younger(younger));
        if let Err(error) = self.announce(said, now) {
            self.events.push(Event::Unannounced(error));
        }
    }

    /// Claims of living nodes that are news and overlap this one: whose, which, and since when, as was said
    /// first and as is said now.
    fn overlapping(&self, (vni, own): Key) -> Vec<(String, Key, (u64, u64))> {
        let mut all = Vec::new();
        for held in self.store.iter().filter(|held| held.record.part == 0) {
            let record = self.store.whole(held);
            if record.name == self.foca.identity().name || !self.answers(&record) {
                continue;
            }
            for part in record.networks().iter().filter(|part| part.vni == vni) {
                for claim in &part.prefixes {
                    let key = (vni, claim.prefix);
                    let overlaps = own.contains(&claim.prefix) || claim.prefix.contains(&own);
                    let Some(seen) = self.seen.get(&record.name, key).filter(|_| overlaps) else {
                        continue;
                    };
                    let old = seen
                        .first
                        .is_some_and(|first| first < self.claiming.away_since);
                    if self.claiming.forgotten || !old {
                        all.push((record.name.clone(), key, (seen.since, claim.since)));
                    }
                }
            }
        }
        all
    }
}
