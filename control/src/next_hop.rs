//! Which outer header leads to another node: decided from what the kernel knows.
//!
//! Pure: the same observation always gives the same decision.

use std::net::IpAddr;

use viaduct_encap::{MacAddr, Tunnel, TunnelParams, Vni};

use crate::kernel::{Neighbour, NeighbourState, RouteTo};
use crate::options::OwnAddresses;

/// Hop limit of outer packets: the initial TTL that RFC 1700 recommends, and Linux's default.
const HOP_LIMIT: u8 = 64;

/// This node's interface towards the other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// The interface's number.
    pub(crate) index: u32,
    /// Its MAC: the source of outer frames.
    pub(crate) mac: MacAddr,
    /// This node's addresses on it: the sources of outer packets.
    pub(crate) addresses: OwnAddresses,
    /// The longest IP packet that it sends, in bytes.
    pub(crate) mtu: u32,
}

/// Why packets cannot be sent to another node now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unresolved {
    /// The underlay interface went away.
    #[error("there is no such interface; create it or name another")]
    UnderlayGone,
    /// The data plane does not have the underlay interface.
    #[error("{0}")]
    UnderlayRefused(String),
    /// The underlay interface's packets do not fit the workers' frames.
    #[error("it has an MTU of {mtu}; more than {most} does not fit a frame yet")]
    UnderlayTooLong {
        /// Its MTU, in bytes.
        mtu: u32,
        /// The most that fits.
        most: u32,
    },
    /// The underlay interface is down.
    #[error("it is down")]
    UnderlayDown,
    /// The underlay interface has no Ethernet address.
    #[error("it has no MAC; name an Ethernet interface")]
    UnderlayWithoutMac,
    /// The underlay interface has no address of this node that the VTEP could be reached from.
    #[error("this node has no address of its family on the underlay interface")]
    NoOwnAddress,
    /// No address of the node is on the underlay interface any more.
    #[error("it has none of this node's addresses ({0})")]
    AddressesGone(String),
    /// The kernel knows no way there.
    #[error("no route")]
    NoRoute,
    /// The kernel would send by an interface that is not the underlay.
    #[error("route leaves by another interface (number {0})")]
    OtherInterface(u32),
    /// The kernel does not know the next hop's MAC yet.
    #[error("neighbour {0} not resolved yet")]
    NeighbourPending(IpAddr),
    /// Nobody answered for the next hop's address.
    #[error("neighbour {0} failed to answer")]
    NeighbourFailed(IpAddr),
}

/// Where an outer frame goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstHop {
    /// The router on the way, or the other node itself.
    pub(crate) address: IpAddr,
    /// Its MAC: the destination of outer frames.
    pub(crate) mac: MacAddr,
}

/// One network's part of a tunnel's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunnelEnds {
    /// The network's number on the wire.
    pub(crate) vni: Vni,
    /// Destination port of outer packets.
    pub(crate) udp_port: u16,
    /// Whether outer UDP checksums over IPv6 are computed.
    pub(crate) udp_checksum6: bool,
    /// This node's VTEP MAC: the source of inner frames.
    pub(crate) local_mac: MacAddr,
    /// The other node's VTEP MAC: the destination of inner frames.
    pub(crate) remote_mac: MacAddr,
}

/// The neighbour that a packet to `vtep` goes to first, when it leaves by the underlay.
///
/// # Errors
///
/// Without a route, or with one by another interface.
pub(crate) fn neighbour_towards(
    underlay: u32,
    vtep: IpAddr,
    route: Option<&RouteTo>,
) -> Result<IpAddr, Unresolved> {
    let route = route.ok_or(Unresolved::NoRoute)?;
    if route.interface != underlay {
        return Err(Unresolved::OtherInterface(route.interface));
    }
    Ok(route.gateway.unwrap_or(vtep))
}

/// The first hop towards `vtep`.
///
/// # Errors
///
/// Why there is none now.
pub(crate) fn first_hop(
    underlay: u32,
    vtep: IpAddr,
    route: Option<&RouteTo>,
    neighbour: Option<&Neighbour>,
) -> Result<FirstHop, Unresolved> {
    let address = neighbour_towards(underlay, vtep, route)?;
    match neighbour {
        Some(known) if known.state == NeighbourState::Failed => {
            Err(Unresolved::NeighbourFailed(address))
        }
        known => known
            .and_then(Neighbour::usable_mac)
            .map(|mac| FirstHop { address, mac })
            .ok_or(Unresolved::NeighbourPending(address)),
    }
}

/// The whole outer header for packets of one network to `vtep`; none without an own address of its
/// family.
pub(crate) fn tunnel(
    underlay: &Underlay,
    vtep: IpAddr,
    first_hop: &FirstHop,
    ends: &TunnelEnds,
) -> Option<Tunnel> {
    Some(Tunnel::new(&TunnelParams {
        outer_source_mac: underlay.mac,
        outer_destination_mac: first_hop.mac,
        source: underlay.addresses.like(vtep)?,
        destination: vtep,
        udp_port: ends.udp_port,
        udp_checksum6: ends.udp_checksum6,
        vni: ends.vni,
        inner_source_mac: ends.local_mac,
        inner_destination_mac: ends.remote_mac,
        hop_limit: HOP_LIMIT,
    }))
}

/// The longest IP packet, in bytes, that fits into a tunnel from this address on an underlay of
/// this MTU (bytes). What a tunnel adds does not depend on where it leads, so any header of the
/// family answers for all.
pub(crate) fn overlay_mtu(underlay_mtu: u32, own: IpAddr, vni: Vni) -> u16 {
    let nowhere = Tunnel::new(&TunnelParams {
        outer_source_mac: MacAddr([0; 6]),
        outer_destination_mac: MacAddr([0; 6]),
        source: own,
        destination: own,
        udp_port: 0,
        udp_checksum6: false,
        vni,
        inner_source_mac: MacAddr([0; 6]),
        inner_destination_mac: MacAddr([0; 6]),
        hop_limit: HOP_LIMIT,
    });
    nowhere.room(u16::try_from(underlay_mtu).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn route(interface: u32, gateway: Option<IpAddr>) -> RouteTo {
        RouteTo {
            interface,
            gateway,
            source: None,
        }
    }

    fn neighbour(state: NeighbourState) -> Neighbour {
        Neighbour {
            mac: Some(MAC),
            state,
        }
    }

    #[test]
    fn without_a_route_there_is_no_way() {
        let hop = first_hop(3, VTEP, None, Some(&neighbour(NeighbourState::Valid)));
        assert_eq!(hop, Err(Unresolved::NoRoute));
    }

    #[test]
    fn a_route_by_another_interface_is_not_followed() {
        let hop = first_hop(3, VTEP, Some(&route(1, None)), None);
        assert_eq!(hop, Err(Unresolved::OtherInterface(1)));
    }

    #[test]
    fn the_neighbour_is_the_gateway_or_the_node_itself() {
        let known = neighbour(NeighbourState::Valid);
        for (gateway, address) in [(Some(GATEWAY), GATEWAY), (None, VTEP)] {
            let hop = first_hop(3, VTEP, Some(&route(3, gateway)), Some(&known));
            assert_eq!(hop, Ok(FirstHop { address, mac: MAC }));
        }
    }

    #[test]
    fn a_neighbour_must_be_resolved() {
        let way = route(3, Some(GATEWAY));
        let hop = |neighbour: Option<Neighbour>| first_hop(3, VTEP, Some(&way), neighbour.as_ref());
        let pending = Err(Unresolved::NeighbourPending(GATEWAY));
        assert_eq!(hop(None), pending);
        assert_eq!(hop(Some(neighbour(NeighbourState::Incomplete))), pending);
        let without_mac = Neighbour {
            mac: None,
            state: NeighbourState::Fixed,
        };
        assert_eq!(hop(Some(without_mac)), pending);
        let failed = Err(Unresolved::NeighbourFailed(GATEWAY));
        assert_eq!(hop(Some(neighbour(NeighbourState::Failed))), failed);
        assert!(hop(Some(neighbour(NeighbourState::Fixed))).is_ok());
    }

    #[test]
    fn the_overlay_mtu_is_what_the_tunnel_leaves() {
        let vni = Vni::new(1).unwrap();
        assert_eq!(overlay_mtu(1500, VTEP, vni), 1450);
        assert_eq!(overlay_mtu(9000, VTEP, vni), 8950);
        assert_eq!(overlay_mtu(20, VTEP, vni), 0);
        assert_eq!(overlay_mtu(1500, "2001:db8::1".parse().unwrap(), vni), 1430);
    }
}
