//! What is known of one pod's port.

use std::time::Instant;

use viaduct_fib::{NetworkId, ReaderStuck, UpdateError};

use super::backoff::Backoff;
use super::network_id;
use crate::data_plane::DataPlaneError;
use crate::options::PortOptions;

/// A pod, and what has been done for it.
pub(super) struct Port {
    pub(super) options: PortOptions,
    pub(super) network: NetworkId,
    pub(super) state: State,
    /// While down: when to try again. While up: when to look whether it has settled.
    pub(super) backoff: Backoff,
}

/// Whether the workers carry a pod's packets.
pub(super) enum State {
    Up {
        /// The number of the interface that is attached.
        index: u32,
        /// What the table knows.
        port: viaduct_fib::Port,
    },
    Down(DownReason),
}

/// Why the workers do not carry a pod's packets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownReason {
    #[error("it has not been looked at yet")]
    New,
    #[error("its interface does not exist")]
    NoInterface,
    #[error("its interface is down")]
    LinkDown,
    #[error("its interface has an MTU of {mtu}; more than {most} does not fit a frame yet")]
    TooLong { mtu: u32, most: u32 },
    #[error("its interface has no MAC; it must be an Ethernet device, such as a veth")]
    NoGatewayMac,
    #[error(
        "its MAC is not known: the interface has no visible peer, and nobody answers for its \
         addresses; give the pod's MAC"
    )]
    NoMac,
    #[error("it is not wanted any more")]
    Unwanted,
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{0}")]
    Table(#[from] UpdateError),
    #[error("{0}")]
    Stuck(#[from] ReaderStuck),
    #[error("{0}")]
    DataPlane(#[from] DataPlaneError),
}

impl Port {
    /// One that is down. The options have been checked.
    pub(super) fn new(options: PortOptions) -> Option<Self> {
        Some(Self {
            network: network_id(options.network)?,
            options,
            state: State::Down(DownReason::New),
            backoff: Backoff::default(),
        })
    }

    /// When to look at its interface again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.backoff.retry_at()
    }

    /// The interface that is attached, by number.
    pub(super) fn attached(&self) -> Option<u32> {
        match self.state {
            State::Up { index, .. } => Some(index),
            State::Down(_) => None,
        }
    }
}
