//! Which outer header leads to another node: decided from what the kernel knows.
//!
//! Pure: the same observation always gives the same decision.

use std::net::IpAddr;

use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Tunnel, TunnelParams, Vni};
use viaduct_fib::NextHopState;

use crate::kernel::{Neighbour, NeighbourState};
use crate::observe::{ObservedPath, ObservedVtep};
use crate::options::OwnAddresses;
use crate::status::MtuBy;

/// Hop limit of outer packets: the initial TTL that RFC 1700 recommends, and Linux's default.
const HOP_LIMIT: u8 = 64;
/// What every link carries of an IPv6 packet, in bytes (RFC 8200 section 5).
pub(crate) const IPV6_MIN_MTU: u32 = 1280;
/// The most slots that flows are spread over.
const MAX_SLOTS: u32 = 64;

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
    #[error(
        "it has an MTU of {mtu}; more than {most} does not fit a frame of an AF_XDP socket, and a hook in tc takes any \
         (underlay.hook = \"tc\")"
    )]
    UnderlayTooLong {
        /// Its MTU, in bytes.
        mtu: u32,
        /// The most that fits.
        most: u32,
    },
    /// The underlay interface is down.
    #[error("it is down")]
    UnderlayDown,
    /// The underlay interface carries no Ethernet frames; its kind.
    #[error(
        "it has no MAC, as {0} interfaces have none; Viaduct sends Ethernet frames: name the interface below it, or give the \
         nodes' packets to an Ethernet interface"
    )]
    UnderlayWithoutMac(String),
    /// The underlay interface has no address of this node that the VTEP could be reached from.
    #[error("this node has no address of its family on the underlay interface")]
    NoOwnAddress,
    /// The underlay interface has no address by which other nodes can reach this one.
    #[error(
        "it has no address that other nodes could send to{0}; give it one, or name another interface"
    )]
    NoAddress(String),
    /// No address of the node is on the underlay interface any more.
    #[error("it has none of this node's addresses ({0})")]
    AddressesGone(String),
    /// The kernel knows no way there.
    #[error("no route")]
    NoRoute,
    /// The kernel would send by an interface that is not the underlay.
    #[error("route leaves by another interface ({0}); see `ip route get` and `ip rule`")]
    OtherInterface(String),
    /// That interface went away after the route had been read.
    #[error("route leaves by an interface that is gone; it is looked up again")]
    InterfaceGone,
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
    /// Its share of the flows, as against that of other first hops.
    pub(crate) weight: u16,
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
    /// DSCP of outer packets.
    pub(crate) dscp: Dscp,
    /// This node's VTEP MAC: the source of inner frames.
    pub(crate) local_mac: MacAddr,
    /// The other node's VTEP MAC: the destination of inner frames.
    pub(crate) remote_mac: MacAddr,
}

/// The neighbours that packets to `vtep` go to first, when they leave by the underlay.
pub(crate) fn neighbours_towards(
    underlay: u32,
    vtep: IpAddr,
    observed: &ObservedVtep,
) -> impl Iterator<Item = IpAddr> {
    let by_underlay = move |path: &&ObservedPath| path.route.interface == underlay;
    let paths = observed.paths.iter().filter(by_underlay);
    paths.map(move |path| path.route.gateway.unwrap_or(vtep))
}

/// The first hops towards `vtep`, at least one. Ways by other interfaces, and those whose first
/// hop does not answer, are left out while there are others.
///
/// # Errors
///
/// Why there is none now.
pub(crate) fn first_hops(
    underlay: u32,
    vtep: IpAddr,
    observed: &ObservedVtep,
) -> Result<Vec<FirstHop>, Unresolved> {
    let mut hops = Vec::new();
    let mut reason = Unresolved::NoRoute;
    for path in observed.paths.iter().rev() {
        match first_hop(underlay, vtep, path) {
            Ok(hop) => hops.push(hop),
            Err(why) => reason = why,
        }
    }
    hops.reverse();
    if hops.is_empty() {
        Err(reason)
    } else {
        Ok(hops)
    }
}

fn first_hop(underlay: u32, vtep: IpAddr, path: &ObservedPath) -> Result<FirstHop, Unresolved> {
    if path.route.interface != underlay {
        let name = path.name.clone();
        return Err(name.map_or(Unresolved::InterfaceGone, Unresolved::OtherInterface));
    }
    let address = path.route.gateway.unwrap_or(vtep);
    match &path.neighbour {
        Some(known) if known.state == NeighbourState::Failed => {
            Err(Unresolved::NeighbourFailed(address))
        }
        known => known
            .as_ref()
            .and_then(Neighbour::usable_mac)
            .map(|mac| FirstHop {
                address,
                mac,
                weight: path.route.weight,
            })
            .ok_or(Unresolved::NeighbourPending(address)),
    }
}

/// The longest outer packet on the way to another node, and what says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunnelMtu {
    /// Bytes of outer IP packet.
    pub(crate) bytes: u16,
    /// What limits it.
    pub(crate) by: MtuBy,
}

/// What has been learned of a way beside the interface's MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What the kernel says of its route, and whether it has learned that.
    pub(crate) kernel: Option<(u32, MtuBy)>,
    /// What a router has said, where the kernel has not learned it.
    pub(crate) told: Option<u32>,
}

/// The least of what is known of the way.
pub(crate) fn tunnel_mtu(underlay_mtu: u32, limits: Limits) -> TunnelMtu {
    let interface = Some((underlay_mtu, MtuBy::Interface));
    let told = limits.told.map(|bytes| (bytes, MtuBy::Path));
    let all = interface.into_iter().chain(limits.kernel).chain(told);
    // Of equals the first: what is there anyway.
    let (bytes, by) = all
        .min_by_key(|&(bytes, _)| bytes)
        .unwrap_or((underlay_mtu, MtuBy::Interface));
    TunnelMtu {
        bytes: u16::try_from(bytes).unwrap_or(u16::MAX),
        by,
    }
}

/// How small a path MTU is believed, in bytes: as the kernel does (`net.ipv4.route.min_pmtu`;
/// RFC 8200 section 5). Smaller ones are taken for this.
pub(crate) fn least_mtu(vtep: IpAddr) -> u32 {
    if vtep.is_ipv4() { 552 } else { IPV6_MIN_MTU }
}

/// What the table is to know of a way to `vtep` by these first hops, which takes outer packets
/// of `mtu` bytes.
pub(crate) fn next_hop_state(
    underlay: &Underlay,
    vtep: IpAddr,
    hops: &[FirstHop],
    ends: &TunnelEnds,
    mtu: u16,
) -> NextHopState {
    let slots = slots(hops)
        .into_iter()
        .filter_map(|hop| tunnel(underlay, vtep, hop, ends, mtu));
    let mut slots: Vec<Tunnel> = slots.collect();
    match (slots.len(), slots.pop()) {
        (_, None) => NextHopState::Unresolved,
        (1, Some(only)) => NextHopState::Resolved(only),
        (_, Some(last)) => {
            slots.push(last);
            NextHopState::Multipath(slots.into())
        }
    }
}

/// Each hop as many times as its weight says, in its lowest terms, one hop after another; where
/// those are more than [`MAX_SLOTS`], as nearly as they go into so many.
fn slots(hops: &[FirstHop]) -> Vec<&FirstHop> {
    let weights = || hops.iter().map(|hop| u32::from(hop.weight.max(1)));
    let divisor = weights().fold(0, gcd).max(1);
    let sum = weights().sum::<u32>() / divisor;
    let slots = |hop: &FirstHop| {
        let weight = u32::from(hop.weight.max(1)) / divisor;
        if sum <= MAX_SLOTS {
            weight
        } else {
            (weight * MAX_SLOTS / sum).max(1)
        }
    };
    let repeated = hops
        .iter()
        .flat_map(|hop| std::iter::repeat_n(hop, slots(hop) as usize));
    repeated.collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The whole outer header for packets of one network to `vtep`; none without an own address of its
/// family.
fn tunnel(
    underlay: &Underlay,
    vtep: IpAddr,
    first_hop: &FirstHop,
    ends: &TunnelEnds,
    mtu: u16,
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
        dscp: ends.dscp,
        mtu,
    }))
}

/// The longest IP packet, in bytes, that fits into a tunnel from this address on an underlay of
/// this MTU (bytes). What a tunnel adds does not depend on where it leads, so any header of the
/// family answers for all.
pub(crate) fn overlay_mtu(underlay_mtu: u32, own: IpAddr) -> u16 {
    let nowhere = Tunnel::new(&TunnelParams {
        outer_source_mac: MacAddr([0; 6]),
        outer_destination_mac: MacAddr([0; 6]),
        source: own,
        destination: own,
        udp_port: 0,
        udp_checksum6: false,
        vni: Vni::from_bytes([0; 3]),
        inner_source_mac: MacAddr([0; 6]),
        inner_destination_mac: MacAddr([0; 6]),
        hop_limit: HOP_LIMIT,
        dscp: Dscp::default(),
        mtu: u16::try_from(underlay_mtu).unwrap_or(u16::MAX),
    });
    nowhere.room()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::kernel::RouteTo;

    const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn path(interface: u32, gateway: Option<IpAddr>, neighbour: Option<Neighbour>) -> ObservedPath {
        ObservedPath {
            route: RouteTo {
                interface,
                gateway,
                weight: 1,
            },
            name: (interface != 3).then(|| "eth9".into()),
            neighbour,
        }
    }

    fn first_hops(paths: &[ObservedPath]) -> Result<Vec<FirstHop>, Unresolved> {
        let paths = paths.to_vec();
        let observed = ObservedVtep {
            paths,
            ..ObservedVtep::default()
        };
        super::first_hops(3, VTEP, &observed)
    }

    fn neighbour(state: NeighbourState) -> Neighbour {
        Neighbour {
            mac: Some(MAC),
            state,
        }
    }

    fn hop(address: IpAddr, weight: u16) -> FirstHop {
        FirstHop {
            address,
            mac: MAC,
            weight,
        }
    }

    #[test]
    fn without_a_route_there_is_no_way() {
        assert_eq!(first_hops(&[]), Err(Unresolved::NoRoute));
    }

    #[test]
    fn a_route_by_another_interface_is_not_followed() {
        let other = path(1, None, None);
        let elsewhere = Err(Unresolved::OtherInterface("eth9".into()));
        assert_eq!(first_hops(std::slice::from_ref(&other)), elsewhere);
        let known = path(3, None, Some(neighbour(NeighbourState::Valid)));
        assert_eq!(first_hops(&[other, known]), Ok(vec![hop(VTEP, 1)]));
    }

    #[test]
    fn the_neighbour_is_the_gateway_or_the_node_itself() {
        let known = Some(neighbour(NeighbourState::Valid));
        for (gateway, address) in [(Some(GATEWAY), GATEWAY), (None, VTEP)] {
            let hops = first_hops(&[path(3, gateway, known)]);
            assert_eq!(hops, Ok(vec![hop(address, 1)]));
        }
    }

    #[test]
    fn a_neighbour_must_be_resolved() {
        let hops = |neighbour: Option<Neighbour>| first_hops(&[path(3, Some(GATEWAY), neighbour)]);
        let pending = Err(Unresolved::NeighbourPending(GATEWAY));
        assert_eq!(hops(None), pending);
        assert_eq!(hops(Some(neighbour(NeighbourState::Incomplete))), pending);
        let without_mac = Neighbour {
            mac: None,
            state: NeighbourState::Fixed,
        };
        assert_eq!(hops(Some(without_mac)), pending);
        let failed = Err(Unresolved::NeighbourFailed(GATEWAY));
        assert_eq!(hops(Some(neighbour(NeighbourState::Failed))), failed);
        assert!(hops(Some(neighbour(NeighbourState::Fixed))).is_ok());
    }

    #[test]
    fn of_several_ways_those_that_answer_are_taken() {
        let dead = path(3, Some(GATEWAY), Some(neighbour(NeighbourState::Failed)));
        let pending = path(3, Some(GATEWAY), None);
        let known = path(3, None, Some(neighbour(NeighbourState::Valid)));
        let both = [dead.clone(), known.clone()];
        assert_eq!(first_hops(&both), Ok(vec![hop(VTEP, 1)]));
        assert_eq!(
            first_hops(&[known.clone(), known]).map(|hops| hops.len()),
            Ok(2)
        );
        // The reason is that of the first.
        let failed = Err(Unresolved::NeighbourFailed(GATEWAY));
        assert_eq!(first_hops(&[dead, pending]), failed);
    }

    #[test]
    fn slots_are_as_the_weights_say() {
        let count = |weights: &[u16]| {
            let hops: Vec<FirstHop> = weights.iter().map(|&w| hop(VTEP, w)).collect();
            let slots = slots(&hops);
            let of = |hop: &FirstHop| {
                slots
                    .iter()
                    .filter(|slot| std::ptr::eq(**slot, hop))
                    .count()
            };
            hops.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(count(&[1]), [1]);
        assert_eq!(count(&[7]), [1]);
        assert_eq!(count(&[1, 1]), [1, 1]);
        assert_eq!(count(&[2, 6]), [1, 3]);
        assert_eq!(count(&[256, 1]), [63, 1]);
        assert_eq!(count(&[]), [0; 0]);
    }

    #[test]
    fn the_mtu_is_the_least_that_is_known() {
        let mtu = |kernel, told| {
            let mtu = tunnel_mtu(1500, Limits { kernel, told });
            (mtu.bytes, mtu.by)
        };
        assert_eq!(mtu(None, None), (1500, MtuBy::Interface));
        let same = Some((1500, MtuBy::Route));
        assert_eq!(mtu(same, None), (1500, MtuBy::Interface));
        let route = Some((1400, MtuBy::Route));
        assert_eq!(mtu(route, None), (1400, MtuBy::Route));
        assert_eq!(mtu(route, Some(1450)), (1400, MtuBy::Route));
        assert_eq!(mtu(route, Some(1300)), (1300, MtuBy::Path));
        let more = Some((9000, MtuBy::Path));
        assert_eq!(mtu(more, None), (1500, MtuBy::Interface));
        let jumbo = tunnel_mtu(100_000, Limits::default());
        assert_eq!(jumbo.bytes, u16::MAX);
    }

    #[test]
    fn the_overlay_mtu_is_what_the_tunnel_leaves() {
        assert_eq!(overlay_mtu(1500, VTEP), 1450);
        assert_eq!(overlay_mtu(9000, VTEP), 8950);
        assert_eq!(overlay_mtu(20, VTEP), 0);
        assert_eq!(overlay_mtu(1500, "2001:db8::1".parse().unwrap()), 1430);
    }
}
