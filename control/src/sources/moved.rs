//! Pods that have moved away from the node whose prefix their addresses are in.
//!
//! Such an address is used if the owner of its prefix delegates it, or if the list of the node that
//! announces it names it more narrowly than the owner's list does.

use ipnet::IpNet;

use super::addresses::Part;
use super::claims::Ownership;
use super::{Merger, Owner};

impl<'a> Merger<'a> {
    /// Decides on all moved pods, in an order that is the same whatever the order of announcements.
    pub(super) fn moved(&mut self, parts: &[Part<'a>], all: &mut Ownership<'_>) {
        let sources = self.sources;
        let mut moved = Vec::new();
        for part in parts {
            let Some(node) = sources.announced.get(part.node) else {
                continue;
            };
            for prefix in &part.said.moved {
                let granted = all.allowed.grant(node.name(), *prefix).is_some();
                let rank = (!granted, node.overdue, node.name());
                moved.push((rank, part.network, *prefix, part));
            }
        }
        moved.sort_by_key(|(rank, network, prefix, _)| (*rank, *network, *prefix));
        for (_, network, prefix, part) in moved {
            if let Some(why) = self.against_moved(part, prefix, parts, all) {
                self.refuse_node(part.node, &prefix, why);
                continue;
            }
            let owner = Owner::Node(part.node);
            if all.has(network, prefix) != Some(owner)
                && let Some(space) = all.moved.get_mut(network)
            {
                space.insert(prefix, owner);
            }
        }
    }

    /// Why a moved pod is not used.
    fn against_moved(
        &self,
        part: &Part<'_>,
        prefix: IpNet,
        parts: &[Part<'a>],
        all: &Ownership<'_>,
    ) -> Option<String> {
        let network = self.sources.networks.get(part.network)?;
        let (claimed, moved) = (all.claimed.get(part.network)?, all.moved.get(part.network)?);
        let me = Owner::Node(part.node);
        if !(network.cluster_prefixes.iter()).any(|cluster| cluster.contains(&prefix)) {
            return Some("it lies outside the cluster's prefixes".to_owned());
        }
        // Both say that it is theirs, and one may be late.
        if self.is_pod(part.network, prefix) {
            return Some("a pod of this node has it".to_owned());
        }
        let mut others = moved
            .covering(prefix)
            .into_iter()
            .chain(moved.within(prefix));
        if let Some((other, owner)) = others.find(|(other, owner)| *owner != me || *other != prefix)
        {
            let whose = self.spoken(owner);
            return Some(format!("{other} is of {whose}, which has not delegated it"));
        }
        let Some((piece, owner)) = claimed.covering(prefix) else {
            let inside = claimed.within(prefix).next();
            return match inside {
                Some((other, owner)) => {
                    Some(format!("it contains {other} of {}", self.spoken(owner)))
                }
                None if all.allowed.grant(self.name(part.node), prefix).is_some() => None,
                None => Some("it lies in no node's prefix".to_owned()),
            };
        };
        if owner == me {
            return None;
        }
        if let Owner::Fixed(source) = owner {
            return Some(format!("{source} has another way to it"));
        }
        if let Some((inner, owner)) = claimed.within(prefix).find(|(inner, _)| *inner != piece) {
            return Some(format!("it contains {inner} of {}", self.spoken(owner)));
        }
        let whose = self.spoken(owner);
        let delegated = match owner {
            Owner::Here => (self.sources.file.delegations.iter())
                .chain(&self.sources.command.delegations)
                .any(|d| {
                    d.network == part.network
                        && d.prefix.contains(&prefix)
                        && d.to == self.name(part.node)
                }),
            _ => parts.iter().any(|of| {
                let mut delegated = of.said.delegated.iter();
                Owner::Node(of.node) == owner
                    && of.network == part.network
                    && delegated.any(|d| d.prefix.contains(&prefix) && d.to == self.name(part.node))
            }),
        };
        let mine = all.allowed.grant(self.name(part.node), prefix);
        let theirs = all.allowed.grant(&whose_name(self, owner), prefix);
        let narrower = mine.is_some_and(|mine| {
            theirs.is_none_or(|theirs| mine.prefix_len() > theirs.prefix_len())
        });
        if !delegated && !narrower {
            return Some(format!("{piece} is of {whose}, which has not delegated it"));
        }
        // The kernel's gateway to a prefix is its first address, which is the owner's own.
        (prefix.network() == piece.network()).then(|| {
            format!("it begins as {piece} of {whose} does, whose first address is the node's own")
        })
    }

    fn name(&self, node: usize) -> &'a str {
        let node = self.sources.announced.get(node);
        node.map_or("", |node| node.name())
    }
}

/// By which the lists know an owner.
fn whose_name(merger: &Merger<'_>, owner: Owner) -> String {
    match owner {
        Owner::Here => merger.sources.node.clone(),
        owner => merger.spoken(owner),
    }
}

impl Ownership<'_> {
    /// Whose a prefix is by its claim.
    fn has(&self, network: usize, prefix: IpNet) -> Option<Owner> {
        let (_, owner) = self.claimed.get(network)?.covering(prefix)?;
        Some(owner)
    }
}
