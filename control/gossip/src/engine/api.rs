//! What an engine is started with, and what it tells.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::claims::Key;
use crate::node::Ages;
use crate::record::{NameHash, Record, RecordError};
use crate::refusal::Refusal;
use crate::seal::KeyRing;
use crate::store::StoreError;
use crate::trust::{Certificate, Trust};
use crate::verified::Verified;
use crate::wire::Member;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's name; nodes of another do not hear each other.
    pub cluster: String,
    /// Who this node is.
    pub member: Member,
    /// How soon a node that does not answer is missed.
    pub detection: Detection,
    /// How other nodes' keys are believed.
    pub trust: Trust,
    /// What the cluster's authority says of this node, where there is one.
    pub certificate: Option<Certificate>,
    /// The cluster's keys.
    pub keys: KeyRing,
    /// What other nodes of this process have verified; a node by itself has none.
    pub verified: Option<Verified>,
    /// Seeds all that is random, the session of the seal among it.
    pub seed: [u8; 32],
}

/// SWIM's times; none: memberlist's for a local network, by the number of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// How often a node asks another whether it lives.
    pub probe_interval: Option<Duration>,
    /// How long it waits for the answer before it has others ask; shorter than the interval.
    pub probe_timeout: Option<Duration>,
    /// How long a node is suspected before it is missed.
    pub suspicion: Option<Duration>,
}

/// What happens, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node lives.
    Up(Member),
    /// A node does not answer.
    Down(Member),
    /// A node's record has changed.
    Record(NameHash),
    /// A datagram was not taken.
    Refused {
        /// Where it came from.
        from: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// A record was not taken.
    RecordRefused {
        /// Whose it says to be.
        node: String,
        /// Who brought it, not who wrote it.
        from: SocketAddr,
        /// Why.
        why: StoreError,
    },
    /// Another node that lives has this node's name and key. This one says nothing any more.
    Yielded {
        /// The other one.
        to: Member,
    },
    /// This node has signed these claims as younger than before: others have older ones.
    Younger(BTreeMap<Key, u64>),
    /// This node's record could not be made.
    Unannounced(RecordError),
}

/// What is known of a node; times as the engine counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it says, all parts together.
    pub record: Arc<Record>,
    /// When the head came.
    pub since: Duration,
    /// Whether it answers.
    pub answers: bool,
    /// Since when it does not.
    pub silent_since: Option<Duration>,
    /// Whether that is longer than [`TAKE_OVER`](crate::TAKE_OVER).
    pub overdue: bool,
    /// Where its datagrams come from.
    pub heard_from: Option<SocketAddr>,
    /// When its name was held here first, in seconds since 1970; 0 for this node.
    pub first_held: u64,
    /// How old its claims count, in seconds since 1970.
    pub ages: Ages,
}
