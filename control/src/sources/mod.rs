//! What is wanted of this node, and by whom: sources, and how they are merged.
//!
//! A source (the configuration file, the operator's commands, gossip) says what it wants as plain
//! types: pods, routes, delegations, and what other nodes announce. [`merge`] decides, entry by
//! entry. It is pure, its result does not depend on the order of what it is given, and it refuses
//! single entries with a reason, never the whole: whatever nodes announce, [`Wanted`] passes
//! `AgentOptions::check`, and no entry takes what is another's.
//!
//! Precedence: this node's own prefixes and pods; the file; commands; then announcements, as
//! `claims` and `addresses` say. docs/gossip.md has the rules in words.

mod addresses;
mod allowed;
mod claims;
mod fixed;
mod moved;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use viaduct_gossip::{Ages, Claim, Content, Node, Record};

use crate::options::{NetworkOptions, OwnAddresses, PortOptions, RouteOptions};

/// Who says that something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The configuration file.
    File,
    /// The operator, by `port add` or `route add`.
    Command,
    /// A node, by gossip.
    Gossip,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "the configuration",
            Self::Command => "a command",
            Self::Gossip => "another node",
        })
    }
}

/// All that the sources say, and what this node is.
#[derive(Clone, Debug)]
pub struct Sources {
    /// This node's name.
    pub node: String,
    /// The networks that this node takes part in.
    pub networks: Vec<NetworkOptions>,
    /// This node's underlay addresses.
    pub own: OwnAddresses,
    /// Pods at most.
    pub max_ports: usize,
    /// What the configuration file says.
    pub file: Entries,
    /// What was added by command.
    pub command: Entries,
    /// What the nodes announce; this node's own record, if it is among them, wants nothing.
    pub announced: Vec<Announced>,
    /// What nodes may announce.
    pub rules: Rules,
}

/// Pods and routes of a file or of commands.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// This node's pods.
    pub ports: Vec<PortOptions>,
    /// Ways to other nodes.
    pub routes: Vec<StaticRoute>,
    /// Parts of this node's prefixes that other nodes have.
    pub delegations: Vec<Delegated>,
}

/// A route that an operator wrote.
#[derive(Clone, Debug)]
pub struct StaticRoute {
    /// The other node's name, where it was given.
    pub node: Option<String>,
    /// The route.
    pub route: RouteOptions,
}

/// A part of this node's prefixes that another node has: its pod has moved there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// The network: a place in [`Sources::networks`].
    pub network: usize,
    /// Usually one address.
    pub prefix: IpNet,
    /// The other node's name.
    pub to: String,
}

/// What a node announces, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// What it said last.
    pub record: Arc<Record>,
    /// Whether it answers.
    pub answers: bool,
    /// Whether it has been silent for [`TAKE_OVER`](viaduct_gossip::TAKE_OVER).
    pub overdue: bool,
    /// The address that its datagrams came from last, if any came from it directly.
    pub heard: Option<IpAddr>,
    /// Since when its claims count, as far as that is not what it says itself.
    pub ages: Arc<Ages>,
}

impl From<&Node> for Announced {
    fn from(node: &Node) -> Self {
        Self {
            record: Arc::clone(&node.record),
            answers: node.answers,
            overdue: node.overdue,
            heard: node.heard_from.map(|from| from.ip()),
            ages: Arc::clone(&node.ages),
        }
    }
}

impl Announced {
    fn name(&self) -> &str {
        &self.record.name
    }

    /// Since when a claim of its record counts, in seconds since 1970.
    fn since(&self, vni: u32, claim: &Claim) -> u64 {
        let known = self.ages.get(&(vni, claim.prefix));
        known.copied().unwrap_or(claim.since)
    }

    /// Where it says that it listens, and its VTEPs.
    fn addresses(&self) -> Option<(IpAddr, &[IpAddr])> {
        match &self.record.content {
            Content::Here { gossip, vteps, .. } => Some((gossip.ip(), vteps)),
            _ => None,
        }
    }
}

/// What nodes may announce: lists of the configuration, and of certificates.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Of nodes without a list of their own; none: all of the cluster's.
    pub prefixes: Option<Vec<IpNet>>,
    /// Addresses, beside the one of its gossip, that a node may have unless they are another's.
    pub addresses: Vec<IpNet>,
    /// Of single nodes, by name. They go before certificates.
    pub nodes: BTreeMap<String, Grant>,
    /// Whether certificates count: an authority is configured.
    pub certified: bool,
}

/// What one node may announce, and nobody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Prefixes; none: what is free.
    pub prefixes: Option<Vec<IpNet>>,
    /// Addresses; none: the one of its gossip.
    pub addresses: Option<Vec<IpNet>>,
}

/// What is to be brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This node's pods: those of the file first.
    pub ports: Vec<PortOptions>,
    /// Who wants each pod.
    pub port_origins: Vec<Source>,
    /// The ways to other nodes.
    pub routes: Vec<RouteOptions>,
    /// Who wants each route.
    pub origins: Vec<Origin>,
}

/// Where a route comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The kind of source.
    pub source: Source,
    /// The node that the route leads to, where its name is known.
    pub node: Option<String>,
}

/// An entry, or a part of one, that is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Refused {
    /// The node that said it; this node, of its file, its commands and its own record.
    pub node: String,
    /// A prefix, an address, a pod's name.
    pub what: String,
    /// Why, in one sentence.
    pub why: String,
    /// What said it.
    pub source: Source,
    /// A command, or a change of the configuration, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// Nothing is missing because of it: it is said, and is no problem.
    pub notice: bool,
}

/// Whose a prefix or an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Here,
    Fixed(Source),
    /// A place in [`Sources::announced`].
    Node(usize),
}

/// What is decided so far.
struct Merger<'a> {
    sources: &'a Sources,
    wanted: Wanted,
    /// The addresses of this node's pods.
    pods: BTreeSet<(usize, IpNet)>,
    refused: Vec<Refused>,
}

impl Merger<'_> {
    fn refuse(&mut self, source: Source, node: &str, what: &dyn fmt::Display, why: String) {
        self.refused.push(Refused {
            node: node.to_owned(),
            what: what.to_string(),
            why,
            source,
            mend: None,
            notice: false,
        });
    }

    fn refuse_node(&mut self, node: usize, what: &dyn fmt::Display, why: String) {
        let sources = self.sources;
        if let Some(node) = sources.announced.get(node) {
            self.refuse(Source::Gossip, node.name(), what, why);
        }
    }

    fn spoken(&self, owner: Owner) -> String {
        match owner {
            Owner::Here => "this node".to_owned(),
            Owner::Fixed(source) => source.to_string(),
            Owner::Node(node) => {
                let node = self.sources.announced.get(node);
                node.map_or_else(String::new, |node| node.name().to_owned())
            }
        }
    }

    /// What mends it that a node has something: nothing while it answers.
    fn mend(&self, owner: Owner) -> Option<String> {
        let Owner::Node(node) = owner else {
            return None;
        };
        let node = self.sources.announced.get(node)?;
        (!node.answers).then(|| format!("viaduct forget {}", node.name()))
    }

    /// The cluster prefix of any network that an address lies in.
    fn in_cluster(&self, address: IpAddr) -> Option<IpNet> {
        let networks = self.sources.networks.iter();
        let mut clusters = networks.flat_map(|network| &network.cluster_prefixes);
        clusters.find(|cluster| cluster.contains(&address)).copied()
    }

    /// Whether a pod of this node has exactly this address.
    fn is_pod(&self, network: usize, prefix: IpNet) -> bool {
        self.pods.contains(&(network, prefix))
    }
}

/// Decides what is wanted, entry by entry, and says what is not used. Sorted, whatever the order of
/// the announcements.
#[must_use]
pub fn merge(sources: &Sources) -> (Wanted, Vec<Refused>) {
    let mut merger = Merger {
        sources,
        wanted: Wanted::default(),
        pods: BTreeSet::new(),
        refused: Vec::new(),
    };
    merger.ports();
    let fixed = merger.routes();
    let parts = merger.parts(&fixed);
    merger.claims(&fixed, &parts);
    merger.refused.sort();
    merger.refused.dedup();
    (merger.wanted, merger.refused)
}
