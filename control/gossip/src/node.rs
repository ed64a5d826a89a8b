//! What one node knows of another, for whoever makes routes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::record::Record;

/// How long a node has to be silent until a living node that claims the same goes before it.
pub const TAKE_OVER: Duration = Duration::from_secs(60);

/// Since when each prefix of a network (by VNI) counts as claimed, in seconds since 1970.
pub type Ages = BTreeMap<(u32, IpNet), u64>;

/// A node, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it says, all parts together.
    pub record: Arc<Record>,
    /// When that record's head came here.
    pub since: Instant,
    /// Whether it answers; this node itself always does.
    pub answers: bool,
    /// Since when it does not answer.
    pub silent_since: Option<Instant>,
    /// Whether it has been silent for [`TAKE_OVER`]. The nodes are told anew when this changes.
    pub overdue: bool,
    /// Where its datagrams come from, as far as they say whose they are. A node that is heard from
    /// the address that its record has is shown there, whatever others send in its name.
    pub heard_from: Option<SocketAddr>,
    /// When its name was held here first, in seconds since 1970. Kept between starts.
    pub first_held: u64,
    /// Its claims' ages, bounded by when they were seen here first.
    pub ages: Arc<Ages>,
}

impl Node {
    /// Since when a prefix counts as claimed by this node, in seconds since 1970.
    pub fn claimed_since(&self, vni: u32, prefix: IpNet) -> Option<u64> {
        self.ages.get(&(vni, prefix)).copied()
    }
}

/// All nodes that have said something, this one among them, by name.
pub type Nodes = BTreeMap<String, Arc<Node>>;
