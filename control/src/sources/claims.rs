//! Whose each prefix is.
//!
//! Of a claim only what lies in the cluster's prefixes, and may be announced by its node, counts. Of
//! claims that overlap, the first of these has what both claim: one that a list allows to its node;
//! one whose node answers, or has been silent for less than [`TAKE_OVER`](viaduct_gossip::TAKE_OVER); the one
//! that was made first; the one of the name that comes first. The other keeps the rest, cut into
//! prefixes that nobody else has: so each address leads to its owner or nowhere, and the kernel's
//! path, which names a prefix's gateway by its first address, has no two nodes with one gateway.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ipnet::IpNet;

use super::addresses::Part;
use super::allowed::Allowed;
use super::fixed::Fixed;
use super::space::{Budget, Space, inside};
use super::{Merger, Origin, Owner, Source};
use crate::options::RouteOptions;

/// Pieces that the claims of one node may fall into: many more than it can write down.
const MAX_PIECES: usize = 20_000;
/// Owners of parts of a claim that are named at most.
const MAX_NAMED: usize = 3;

/// The less, the better a claim.
type Rank<'a> = (bool, bool, u64, &'a str);

/// A claim of a node.
struct Claimed<'a> {
    rank: Rank<'a>,
    prefix: IpNet,
    part: &'a Part<'a>,
    /// What of it may be announced.
    permitted: Vec<IpNet>,
}

/// Whose the prefixes of the networks are.
pub(super) struct Ownership<'a> {
    pub(super) allowed: Allowed<'a>,
    /// By network: this node's own, operators' routes', and claims.
    pub(super) claimed: Vec<Space<Owner>>,
    /// By network: what other nodes have of claims that are not theirs.
    pub(super) moved: Vec<Space<Owner>>,
}

impl<'a> Merger<'a> {
    /// Decides on claims and moved pods, and makes routes of them.
    pub(super) fn claims(&mut self, fixed: &Fixed, parts: &[Part<'a>]) {
        let mut ownership = Ownership {
            allowed: Allowed::new(self.sources),
            claimed: fixed.spaces.clone(),
            moved: vec![Space::default(); fixed.spaces.len()],
        };
        self.own_lists(&ownership.allowed);
        let mut claims: Vec<_> = (parts.iter())
            .flat_map(|part| self.claims_of(part, &ownership.allowed))
            .collect();
        claims.sort_by_key(|claim| (claim.rank, claim.part.network, claim.prefix));
        let mut budgets = BTreeMap::new();
        for claim in &claims {
            let budget = budgets.entry(claim.part.node).or_insert(Budget(MAX_PIECES));
            self.claim(claim, &mut ownership, budget);
        }
        self.moved(parts, &mut ownership);
        self.learned(parts, &ownership);
    }

    /// What this node may not announce, of what it does: others will not use it.
    fn own_lists(&mut self, allowed: &Allowed<'_>) {
        let sources = self.sources;
        let me = &sources.node[..];
        // Only of a node that announces.
        if !sources.announced.iter().any(|node| node.name() == me) {
            return;
        }
        for prefix in sources.networks.iter().flat_map(|n| &n.pod_prefixes) {
            if let Some(why) = allowed.permitted(me, *prefix).why {
                let why = format!("{why}: other nodes with this rule do not send to it");
                self.refuse(Source::Gossip, me, prefix, why);
                if let Some(refused) = self.refused.last_mut() {
                    let mend = format!(
                        "viaduct authority sign ... --prefix {prefix} ... {me} KEY, or allowed_prefixes"
                    );
                    refused.mend = Some(mend);
                }
            }
        }
    }

    fn claims_of<'b>(&mut self, part: &'b Part<'a>, allowed: &Allowed<'_>) -> Vec<Claimed<'b>> {
        let sources = self.sources;
        let (Some(node), Some(network)) = (
            sources.announced.get(part.node),
            sources.networks.get(part.network),
        ) else {
            return Vec::new();
        };
        let mut claims = Vec::new();
        for claim in &part.said.prefixes {
            let prefix = claim.prefix;
            let cluster = inside(prefix, &network.cluster_prefixes);
            if cluster != [prefix] {
                let why = if cluster.is_empty() {
                    "it lies outside the cluster's prefixes"
                } else {
                    "part of it lies outside the cluster's prefixes; the rest of it is used"
                };
                self.refuse_node(part.node, &prefix, why.to_owned());
            }
            let mut permitted = Vec::new();
            for one in cluster {
                let may = allowed.permitted(node.name(), one);
                if let Some(why) = may.why {
                    self.refuse_node(part.node, &prefix, why);
                }
                permitted.extend(may.parts);
            }
            let granted = allowed.grant(node.name(), prefix).is_some();
            let since = node.since(part.said.vni, claim);
            claims.push(Claimed {
                rank: (!granted, node.overdue, since, node.name()),
                prefix,
                part,
                permitted,
            });
        }
        claims
    }

    /// Gives a claim what is not another's.
    fn claim(&mut self, claim: &Claimed<'_>, all: &mut Ownership<'_>, budget: &mut Budget) {
        let (node, network) = (claim.part.node, claim.part.network);
        let Some(space) = all.claimed.get_mut(network) else {
            return;
        };
        let mut taken = Vec::new();
        let mut used = false;
        for part in &claim.permitted {
            let Some(free) = space.free(*part, Owner::Node(node), budget) else {
                let why = format!("what is left of the node's claims are over {MAX_PIECES} pieces");
                self.refuse_node(node, &claim.prefix, why);
                return;
            };
            used |= !free.pieces.is_empty() || free.taken.is_empty();
            taken.extend(free.taken);
            for piece in free.pieces {
                // A local pod that has come from elsewhere.
                if !self.is_pod(network, piece) {
                    space.fill(piece, Owner::Node(node));
                }
            }
        }
        for (count, (other, owner)) in taken.iter().enumerate() {
            if *owner == Owner::Here {
                self.contested(claim, *other, &all.allowed);
            }
            if count >= MAX_NAMED {
                continue;
            }
            let whose = self.spoken(*owner);
            let rest = if used { "; the rest of it is used" } else { "" };
            let more = taken.len().saturating_sub(MAX_NAMED);
            let why = if count + 1 == MAX_NAMED && more > 0 {
                format!("{other} of {whose} and {more} more overlap it, and go before{rest}")
            } else {
                format!("{other} of {whose} overlaps it, and goes before{rest}")
            };
            self.refuse_node(node, &claim.prefix, why);
            let mend = self.mend(*owner);
            if let Some(refused) = self.refused.last_mut() {
                refused.mend = mend;
            }
        }
    }

    /// Says at home if others send what is this node's to another one: its claim goes before.
    fn contested(&mut self, claim: &Claimed<'_>, own: IpNet, allowed: &Allowed<'_>) {
        let sources = self.sources;
        let me = &sources.node[..];
        let Some(network) = sources.networks.get(claim.part.network) else {
            return;
        };
        let Some(node) = sources.announced.iter().find(|node| node.name() == me) else {
            return;
        };
        let networks = node.record.networks().iter();
        let mine = networks.filter(|n| n.vni == network.vni.get());
        let mine = mine.flat_map(|network| &network.prefixes);
        let since = mine.filter(|c| c.prefix.contains(&own));
        let since = since.map(|c| node.since(network.vni.get(), c)).min();
        let Some(since) = since else { return };
        let mine: Rank<'_> = (allowed.grant(me, own).is_none(), false, since, me);
        if claim.rank >= mine {
            return;
        }
        let (_, _, _, name) = claim.rank;
        let prefix = claim.prefix;
        let why =
            format!("{name} claimed {prefix} first: other nodes send its packets there, not here");
        self.refuse(Source::Gossip, me, &own, why);
        let mend = self.mend(Owner::Node(claim.part.node));
        let other = || format!("give this node or {name} another prefix");
        if let Some(refused) = self.refused.last_mut() {
            refused.mend = Some(mend.unwrap_or_else(other));
        }
    }

    /// Makes routes of what nodes have.
    fn learned(&mut self, parts: &[Part<'a>], all: &Ownership<'_>) {
        let mut prefixes: BTreeMap<(usize, usize), Vec<IpNet>> = BTreeMap::new();
        for spaces in [&all.claimed, &all.moved] {
            for (network, space) in spaces.iter().enumerate() {
                for (prefix, owner) in space.iter() {
                    if let Owner::Node(node) = owner {
                        prefixes.entry((node, network)).or_default().push(prefix);
                    }
                }
            }
        }
        let name = |part: &Part<'_>| {
            let node = self.sources.announced.get(part.node);
            node.map_or("", |node| node.name())
        };
        let mut parts: Vec<_> = parts.iter().collect();
        parts.sort_by_key(|part| (name(part), part.network));
        for part in parts {
            let (Some(vtep), Some(mut prefixes), Some(network)) = (
                part.vtep,
                prefixes.remove(&(part.node, part.network)),
                self.sources.networks.get(part.network),
            ) else {
                continue;
            };
            prefixes.sort_unstable_by_key(|p| (Reverse(p.prefix_len()), *p));
            self.wanted.origins.push(Origin {
                source: Source::Gossip,
                node: Some(name(part).to_owned()),
            });
            self.wanted.routes.push(RouteOptions {
                network: part.network,
                prefixes,
                addresses: part.addresses.clone(),
                vtep,
                udp_checksum6: network.udp_checksum6,
                vtep_mac: part.mac_over(vtep),
            });
        }
    }
}
