//! How old a node's claims count, by what was seen here. docs/gossip.md has the rule.
//!
//! A claim says since when it is made, by the clock of its node, which may be wrong. That is bounded by
//! when the claim was seen here first, and for a while after that it goes behind what was here before:
//! long enough for an honest node to hear of an older claim, and to sign its own as the younger one.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::node::Ages;
use crate::record::{Content, Record};

/// How long a claim that is new here goes behind those that are not.
pub(super) const SETTLE: Duration = Duration::from_secs(30);
/// A claim counts as at most so much older than it was seen here first, in seconds.
const BOUND: u64 = 24 * 3600;

/// A network (by VNI) and a prefix.
pub(super) type Key = (u32, IpNet);

/// A claim that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeenClaim {
    /// When, in seconds since 1970; none, when it was there before this node was.
    pub(super) first: Option<u64>,
    /// What it said first.
    pub(super) since: u64,
    /// Goes behind others until then, as if it had been made at this second.
    settles: Option<(u64, Duration)>,
}

/// What is kept of a claim between starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptClaim {
    vni: u32,
    prefix: IpNet,
    first: Option<u64>,
    since: u64,
}

/// What is kept of a node between starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptNode {
    name: String,
    first: u64,
    claims: Vec<KeptClaim>,
}

#[derive(Clone, Debug, Default)]
struct SeenNode {
    /// When its name was held here first, in seconds since 1970.
    first: u64,
    /// Sorted. Most nodes have two, and a map has room for eleven.
    claims: Box<[(Key, SeenClaim)]>,
}

/// All claims that were seen, by node.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen(BTreeMap<String, SeenNode>);

/// What time it is, and whether this node knows anything yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// In seconds since 1970.
    pub(super) clock: u64,
    /// Since the start.
    pub(super) now: Duration,
    /// Whether what comes now was there before this node, for all that it knows.
    pub(super) young: bool,
}

impl Seen {
    /// A node says this. When its claims are to be looked at again, if they are to be.
    pub(super) fn note(&mut self, record: &Record, at: Moment) -> Option<Duration> {
        if matches!(record.content, Content::Gone | Content::Forgotten) {
            // Whatever comes under this name later starts anew.
            self.0.remove(&record.name);
            return None;
        }
        let node = self.0.entry(record.name.clone()).or_insert(SeenNode {
            first: at.clock,
            claims: Box::default(),
        });
        let mut claims = BTreeMap::new();
        let mut again = None;
        for part in record.networks() {
            for claim in &part.prefixes {
                let key = (part.vni, claim.prefix);
                let seen = node.get(key).copied().or_else(|| node.covering(key));
                let seen = seen.unwrap_or_else(|| {
                    let until = at.now.saturating_add(SETTLE);
                    let settles = (!at.young).then_some((at.clock, until));
                    again = again.max(settles.map(|(_, until)| until));
                    let first = (!at.young).then_some(at.clock);
                    SeenClaim {
                        first,
                        since: claim.since,
                        settles,
                    }
                });
                claims.insert(key, seen);
            }
        }
        node.claims = claims.into_iter().collect();
        again
    }

    /// A node answers that was silent for so long that others may have taken over what it claims. It goes
    /// behind them at first. When that is over.
    pub(super) fn returned(&mut self, name: &str, at: Moment) -> Option<Duration> {
        let node = self.0.get_mut(name).filter(|_| !at.young)?;
        let until = at.now.saturating_add(SETTLE);
        for (_, claim) in &mut node.claims {
            claim.settles = Some((at.clock, until));
        }
        Some(until)
    }

    /// How old the claims of a record count.
    pub(super) fn ages(&self, record: &Record, now: Duration) -> Ages {
        let node = self.0.get(&record.name);
        let claims = record.networks().iter().flat_map(|part| {
            let claims = part.prefixes.iter();
            claims.map(move |claim| ((part.vni, claim.prefix), claim.since))
        });
        let mut ages = Ages::new();
        for (key, since) in claims {
            let seen = node.and_then(|node| node.get(key));
            let age = seen.map_or(since, |seen| seen.age(since, now));
            // Of a prefix that is listed twice, the older claim counts, whatever the order.
            let known = ages.entry(key).or_insert(age);
            *known = age.min(*known);
        }
        ages
    }

    /// When a name was held here first, in seconds since 1970.
    pub(super) fn first(&self, name: &str) -> Option<u64> {
        self.0.get(name).map(|node| node.first)
    }

    pub(super) fn get(&self, name: &str, key: Key) -> Option<&SeenClaim> {
        self.0.get(name)?.get(key)
    }

    /// What is kept for the next start.
    pub(super) fn to_keep(&self) -> Vec<KeptNode> {
        let kept = |(name, node): (&String, &SeenNode)| KeptNode {
            name: name.clone(),
            first: node.first,
            claims: (node.claims.iter())
                .map(|((vni, prefix), seen)| KeptClaim {
                    vni: *vni,
                    prefix: *prefix,
                    first: seen.first,
                    since: seen.since,
                })
                .collect(),
        };
        self.0.iter().map(kept).collect()
    }

    /// Takes what was kept.
    pub(super) fn restore(&mut self, kept: Vec<KeptNode>) {
        for node in kept {
            let claims = node.claims.into_iter().map(|claim| {
                let seen = SeenClaim {
                    first: claim.first,
                    since: claim.since,
                    settles: None,
                };
                ((claim.vni, claim.prefix), seen)
            });
            // The file may have them in any order.
            let claims: BTreeMap<_, _> = claims.collect();
            let (first, claims) = (node.first, claims.into_iter().collect());
            self.0.insert(node.name, SeenNode { first, claims });
        }
    }
}

impl SeenNode {
    fn get(&self, key: Key) -> Option<&SeenClaim> {
        let place = self.claims.binary_search_by_key(&key, |(key, _)| *key);
        Some(&self.claims.get(place.ok()?)?.1)
    }

    /// The widest claim of which this is a part, if there is one: it is as old.
    fn covering(&self, (vni, prefix): Key) -> Option<SeenClaim> {
        let around = std::iter::successors(prefix.supernet(), IpNet::supernet);
        around
            .filter_map(|wide| self.get((vni, wide)))
            .last()
            .copied()
    }
}

impl SeenClaim {
    fn age(&self, since: u64, now: Duration) -> u64 {
        let bounded = self
            .first
            .map_or(since, |first| since.max(first.saturating_sub(BOUND)));
        match self.settles {
            Some((at, until)) if now < until => bounded.max(at),
            _ => bounded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{claim, record};

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64, young: bool) -> Moment {
        Moment {
            clock: NOW + seconds,
            now: Duration::from_secs(seconds),
            young,
        }
    }

    fn saying(claims: &[(&str, u64)]) -> Record {
        let mut said = record("a", 1, 1);
        if let Content::Here { networks, .. } = &mut said.content {
            networks[0].prefixes = claims.iter().map(|(p, since)| claim(p, *since)).collect();
        }
        said
    }

    fn age(seen: &Seen, said: &Record, prefix: &str, seconds: u64) -> u64 {
        let ages = seen.ages(said, Duration::from_secs(seconds));
        ages[&(1, prefix.parse().expect("one"))]
    }

    #[test]
    fn ages_are_bounded_by_what_was_seen() {
        let prefix = "10.244.1.0/24";
        for (since, expected) in [
            (86_400, NOW - BOUND),
            (4_000_000_000, 4_000_000_000),
            (NOW - 5, NOW - 5),
        ] {
            let mut seen = Seen::default();
            let said = saying(&[(prefix, since)]);
            assert_eq!(seen.note(&said, at(0, false)), Some(SETTLE));
            assert_eq!(
                age(&seen, &said, prefix, 29),
                expected.max(NOW),
                "it settles"
            );
            assert_eq!(age(&seen, &said, prefix, 30), expected);
            // Seen again, it is no newer; after a start, the same.
            assert_eq!(seen.note(&said, at(900, false)), None);
            let mut after = Seen::default();
            after.restore(seen.to_keep());
            assert_eq!(age(&after, &said, prefix, 0), expected);
            // A node that knows nothing yet has to believe what is said.
            let mut young = Seen::default();
            assert_eq!(young.note(&said, at(0, true)), None);
            assert_eq!(age(&young, &said, prefix, 0), since);
        }
    }

    #[test]
    fn who_was_forgotten_or_silent_starts_anew() {
        let prefix = "10.244.1.0/24";
        let said = saying(&[(prefix, NOW - 9)]);
        let mut seen = Seen::default();
        seen.note(&said, at(0, true));
        assert_eq!(age(&seen, &said, prefix, 1), NOW - 9);
        assert_eq!(
            seen.returned("a", at(100, false)),
            Some(Duration::from_secs(130))
        );
        assert_eq!(age(&seen, &said, prefix, 101), NOW + 100);
        assert_eq!(age(&seen, &said, prefix, 131), NOW - 9);
        let mut gone = said.clone();
        gone.content = Content::Forgotten;
        seen.note(&gone, at(200, false));
        seen.note(&said, at(300, false));
        assert_eq!(age(&seen, &said, prefix, 301), NOW + 300);
        assert_eq!(seen.first("a"), Some(NOW + 300));
    }

    #[test]
    fn a_part_of_a_claim_is_as_old() {
        let mut seen = Seen::default();
        seen.note(&saying(&[("10.244.0.0/21", NOW - 9)]), at(0, true));
        let said = saying(&[("10.244.3.0/24", NOW - 9), ("10.245.0.0/24", NOW + 50)]);
        seen.note(&said, at(50, false));
        assert_eq!(age(&seen, &said, "10.244.3.0/24", 51), NOW - 9);
        assert_eq!(age(&seen, &said, "10.245.0.0/24", 51), NOW + 50);
    }
}
