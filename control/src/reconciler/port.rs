//! What is known of one pod's port.

use std::time::Instant;

use viaduct_encap::MacAddr;
use viaduct_fib::{NetworkId, ReaderStuck, UpdateError};

use super::backoff::Backoff;
use super::followed::Followed;
use super::network_id;
use crate::binding::Binding;
use crate::data_plane::DataPlaneError;
use crate::kernel::LinkInfo;
use crate::observe::ObservedPort;
use crate::options::PortOptions;

/// A pod, and what has been done for it.
pub(super) struct Port {
    /// As it is wanted, and bound to what is known of its interface now.
    pub(super) options: PortOptions,
    /// As it was wanted to be bound.
    wanted: Binding,
    pub(super) network: NetworkId,
    pub(super) state: State,
    /// Whether the data plane knows that the pod has XDP of its own.
    pub(super) own_xdp: bool,
    /// Its interface, by number and name, as they were seen last.
    pub(super) link: Followed,
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
    #[error("its interface does not exist; if it was renamed, give its new name")]
    NoInterface,
    #[error(
        "another interface is called {interface} now than when the pod was added: its packets would be \
         delivered there; remove the pod (viaduct port del {pod}), and add it again if it is there"
    )]
    OtherInterface { pod: String, interface: String },
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

impl DownReason {
    /// Whether the kernel tells when it is over: then the pod comes up at the event, and no timer is
    /// waited for.
    pub(super) fn ends_with_an_event(&self) -> bool {
        matches!(
            self,
            Self::NoInterface
                | Self::OtherInterface { .. }
                | Self::LinkDown
                | Self::TooLong { .. }
                | Self::NoGatewayMac
        )
    }
}

impl Port {
    /// One that is down. The options have been checked.
    pub(super) fn new(options: PortOptions) -> Option<Self> {
        Some(Self {
            network: network_id(options.network)?,
            link: Followed::known(options.binding.index(), &options.interface),
            wanted: options.binding.clone(),
            options,
            state: State::Down(DownReason::New),
            own_xdp: false,
            backoff: Backoff::default(),
        })
    }

    /// Notes that it is wanted to be bound so.
    pub(super) fn bind(&mut self, wanted: &Binding) {
        self.options.binding.want(wanted);
        self.wanted.clone_from(wanted);
    }

    /// Whether its interface is known by something else than the options say.
    pub(super) fn has_changed(&self) -> bool {
        self.interface() != self.options.interface || self.options.binding != self.wanted
    }

    /// Its interface's name now.
    pub(super) fn interface(&self) -> &str {
        self.link.name(&self.options.interface)
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

/// Whether an interface that was found for a pod is the pod's.
pub(super) fn is_the_pods(options: &PortOptions, link: &LinkInfo) -> Result<(), DownReason> {
    if options.binding.admits(link) {
        return Ok(());
    }
    Err(DownReason::OtherInterface {
        pod: options.name.clone(),
        interface: link.name.clone(),
    })
}

/// Whether workers can carry a pod's packets on such an interface; where not, the kernel has them.
pub(super) fn can_carry(link: &LinkInfo, most: u32) -> Result<(), DownReason> {
    if !link.up {
        return Err(DownReason::LinkDown);
    }
    let mtu = link.mtu;
    if mtu > most {
        return Err(DownReason::TooLong { mtu, most });
    }
    Ok(())
}

/// Whether a pod can come up, as far as can be seen: its interface, the interface's MAC, the pod's
/// MAC.
pub(crate) fn can_come_up(
    observed: &ObservedPort,
    most: u32,
) -> Result<(&LinkInfo, MacAddr, MacAddr), DownReason> {
    let link = observed.link.as_ref().ok_or(DownReason::NoInterface)?;
    can_carry(link, most)?;
    let gateway_mac = link.mac.ok_or(DownReason::NoGatewayMac)?;
    let mac = observed.mac.ok_or(DownReason::NoMac)?;
    Ok((link, gateway_mac, mac))
}
