//! Link-layer addresses of neighbours: ARP and neighbour discovery (`RTM_GETNEIGH`,
//! `RTM_NEWNEIGH`; Linux `net/core/neighbour.c`).

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use viaduct_encap::MacAddr;

use super::links::mac;
use super::{Kernel, KernelError};

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC; none while it is not known, or if the interface has no MACs.
    pub mac: Option<MacAddr>,
    /// How sure the kernel is of it.
    pub state: NeighbourState,
}

/// How sure the kernel is of a neighbour's MAC (RFC 4861 section 7.3.2, and Linux `NUD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// It is known and may be used: reachable, or stale, or being asked again.
    Valid,
    /// It was set by hand, or the interface needs none: the kernel never asks for it.
    Fixed,
    /// It is being asked for.
    Incomplete,
    /// It was asked for in vain.
    Failed,
}

impl Neighbour {
    /// The MAC, if it may be used.
    pub fn usable_mac(&self) -> Option<MacAddr> {
        match self.state {
            NeighbourState::Valid | NeighbourState::Fixed => self.mac,
            NeighbourState::Incomplete | NeighbourState::Failed => None,
        }
    }
}

impl Kernel {
    /// What the kernel knows of the neighbour with this address on an interface. None if it knows
    /// nothing.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn neighbour(
        &self,
        interface: u32,
        address: IpAddr,
    ) -> Result<Option<Neighbour>, KernelError> {
        let what = format!("look up neighbour {address}");
        let request = RouteNetlinkMessage::GetNeighbour(message(interface, address));
        match self.request(&what, request, 0).await {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Some(neighbour(message)),
                _ => None,
            })),
            // ENOENT: no such entry. ENODEV: no such interface (any more).
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
            Err(error) => Err(self.on_interface(error, interface).await),
        }
    }

    /// The error, with the name of the interface that it is about.
    async fn on_interface(&self, mut error: KernelError, interface: u32) -> KernelError {
        if let KernelError::Refused { what, .. } | KernelError::NoAnswer { what } = &mut error
            && let Ok(Some(link)) = self.link_by_index(interface, "an interface").await
        {
            what.extend([" on ", &link.name]);
        }
        error
    }

    /// Makes the kernel resolve a neighbour, or check soon that what it knows still holds, as if
    /// a packet had been sent to it. The entry ages as any other. The outcome comes as a
    /// [`KernelEvent`](super::KernelEvent).
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or the interface is down or gone.
    pub async fn probe(&self, interface: u32, address: IpAddr) -> Result<(), KernelError> {
        let known = self.neighbour(interface, address).await?;
        // NTF_USE would take the permanence from a permanent entry, and so destroy what an
        // operator has set (`__neigh_update`).
        if known.is_some_and(|known| known.state == NeighbourState::Fixed) {
            return Ok(());
        }
        let mut request = message(interface, address);
        request.header.flags = NeighbourFlags::Use;
        let what = format!("probe neighbour {address}");
        let request = RouteNetlinkMessage::NewNeighbour(request);
        match self.request(&what, request, NLM_F_CREATE | NLM_F_ACK).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.on_interface(error, interface).await),
        }
    }
}

fn message(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = interface;
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let destination = NeighbourAttribute::Destination(address.into());
    message.attributes.push(destination);
    message
}

fn neighbour(message: &NeighbourMessage) -> Neighbour {
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
            _ => None,
        });
    let state = match message.header.state {
        Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe => NeighbourState::Valid,
        Nud::Permanent | Nud::Noarp => NeighbourState::Fixed,
        Nud::Failed => NeighbourState::Failed,
        _ => NeighbourState::Incomplete,
    };
    Neighbour { mac, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_mac_is_usable() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        for (state, usable) in [
            (Nud::Reachable, true),
            (Nud::Stale, true),
            (Nud::Delay, true),
            (Nud::Probe, true),
            (Nud::Permanent, true),
            (Nud::Incomplete, false),
            (Nud::Failed, false),
            (Nud::None, false),
        ] {
            let mut message = message(1, "192.0.2.1".parse().unwrap());
            message.header.state = state;
            let address = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
            message.attributes.push(address);
            let expected = usable.then_some(mac);
            assert_eq!(neighbour(&message).usable_mac(), expected, "{state}");
        }
    }
}
