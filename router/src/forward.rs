//! From a received frame to a verdict. Reads no clock and does no I/O, so that
//! tests, benches and the workers run the same code.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::{Finish, IpPacket, MacAddr, Outer, ParseError, decrement_hop_limit, ecn, flow};
use viaduct_fib::{Fib, NetworkId, NextHopState, Port, PortId};

use crate::frame::Frame;
use crate::reason::DropReason;

/// `CLOCK_MONOTONIC` in nanoseconds, read once a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);

/// What a worker remembers between packets.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// Transport checksums that were finished here.
    pub checksums_finished: u64,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Transmit on this port.
    Send(PortId),
    /// Count and release.
    Drop(DropReason),
}

type Stage<T> = Result<T, DropReason>;

/// Decides about one frame and rewrites it in place.
///
/// Stages, from a pod: parse, source check, route, encapsulate (or deliver to
/// a pod of this node). From the underlay: outer check, decapsulate, deliver.
#[inline]
pub fn forward(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    _tick: Tick,
) -> Verdict {
    let result = if ingress == PortId::UNDERLAY {
        from_underlay(fib, state, frame)
    } else {
        from_pod(fib, state, frame, ingress)
    };
    match result {
        Ok(port) => Verdict::Send(port),
        Err(reason) => Verdict::Drop(reason),
    }
}

fn from_pod(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
) -> Stage<PortId> {
    let port = fib.port(ingress).ok_or(DropReason::UnknownPort)?;
    let (packet, ether_type) = parse_inner(frame)?;
    // Source check: what a pod sends carries one of its own addresses.
    if fib.local(port.network, packet.src) != Some(ingress) {
        return Err(DropReason::SpoofedSource);
    }
    let network = fib.network(port.network).ok_or(DropReason::UnknownVni)?;
    if packet.len > usize::from(network.mtu) {
        return Err(DropReason::TooBig);
    }
    if let Some(egress) = fib.local(port.network, packet.dst) {
        return deliver(fib, state, frame, &packet, ether_type, egress);
    }
    let tunnel = fib
        .remote(port.network, packet.dst)
        .ok_or(DropReason::NoRoute)?;
    let next_hop = fib.next_hop(tunnel).ok_or(DropReason::NoRoute)?;
    let NextHopState::Resolved(tunnel) = &next_hop.state else {
        return Err(DropReason::NextHopUnresolved);
    };
    finish_hop(state, frame.packet(), &packet)?;
    frame
        .push(tunnel.header_len())
        .ok_or(DropReason::NoHeadroom)?;
    let header = frame
        .packet()
        .get_mut(..tunnel.header_len())
        .ok_or(DropReason::NoHeadroom)?;
    let source_port = flow::source_port(flow::flow_hash(&packet));
    tunnel
        .write(
            header,
            packet.len,
            ether_type,
            source_port,
            ecn::outer_tos(packet.tos),
        )
        .map_err(|_| DropReason::TooBig)?;
    Ok(PortId::UNDERLAY)
}

fn from_underlay(fib: &Fib, state: &mut WorkerState, frame: &mut Frame<'_>) -> Stage<PortId> {
    let outer = Outer::parse(frame.packet()).map_err(|_| DropReason::BadOuter)?;
    let network_id = fib
        .network_by_vni(outer.vni)
        .ok_or(DropReason::UnknownVni)?;
    let network = fib.network(network_id).ok_or(DropReason::UnknownVni)?;
    if network.udp_port != outer.udp_destination {
        return Err(DropReason::UnknownVni);
    }
    frame.pull(outer.inner_offset).ok_or(DropReason::BadOuter)?;
    frame.truncate(outer.inner_len);
    let destination = Ethernet::parse(frame.packet()).map(|e| e.destination);
    if destination != Some(network.vtep_mac) {
        return Err(DropReason::WrongVtepMac);
    }
    let (packet, ether_type) = parse_inner(frame)?;
    check_origin(fib, network_id, &outer, &packet)?;
    let egress = fib
        .local(network_id, packet.dst)
        .ok_or(DropReason::NotLocal)?;
    ecn::decapsulate(outer.tos, packet.tos, frame.packet())
        .map_err(|_| DropReason::CongestionMarked)?;
    deliver(fib, state, frame, &packet, ether_type, egress)
}

/// The inner source lies in a prefix of the node that sent the packet.
fn check_origin(fib: &Fib, network: NetworkId, outer: &Outer, packet: &IpPacket) -> Stage<()> {
    let origin = fib
        .remote(network, packet.src)
        .and_then(|tunnel| fib.next_hop(tunnel));
    match origin {
        Some(next_hop) if next_hop.vtep == outer.src => Ok(()),
        _ => Err(DropReason::UnknownVtep),
    }
}

/// Reads the Ethernet header and the IP packet behind it; leaves the frame at
/// the IP packet, without Ethernet padding.
fn parse_inner(frame: &mut Frame<'_>) -> Stage<(IpPacket, u16)> {
    let Ethernet {
        destination,
        ether_type,
        ..
    } = Ethernet::parse(frame.packet()).ok_or(DropReason::Malformed)?;
    if destination.is_multicast() {
        return Err(DropReason::Multicast);
    }
    if matches!(ether_type, ethernet::VLAN | ethernet::QINQ) {
        return Err(DropReason::VlanTagged);
    }
    frame
        .pull(ethernet::HEADER_LEN)
        .ok_or(DropReason::Malformed)?;
    let packet = IpPacket::parse(frame.packet(), ether_type).map_err(|e| match e {
        ParseError::NotIp => DropReason::NotIp,
        _ => DropReason::Malformed,
    })?;
    if packet.dst.is_multicast() {
        return Err(DropReason::Multicast);
    }
    frame.truncate(packet.len);
    Ok((packet, ether_type))
}

/// What every forwarded packet gets: one hop less, and a complete checksum.
fn finish_hop(state: &mut WorkerState, ip: &mut [u8], packet: &IpPacket) -> Stage<()> {
    decrement_hop_limit(ip).map_err(|_| DropReason::HopLimitExceeded)?;
    if viaduct_encap::finish_partial(ip, packet) == Finish::Finished {
        state.checksums_finished = state.checksums_finished.saturating_add(1);
    }
    Ok(())
}

fn deliver(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    packet: &IpPacket,
    ether_type: u16,
    egress: PortId,
) -> Stage<PortId> {
    let Port {
        mac, gateway_mac, ..
    } = fib.port(egress).ok_or(DropReason::UnknownPort)?;
    finish_hop(state, frame.packet(), packet)?;
    push_ethernet(frame, *mac, *gateway_mac, ether_type)?;
    Ok(egress)
}

fn push_ethernet(
    frame: &mut Frame<'_>,
    destination: MacAddr,
    source: MacAddr,
    ether_type: u16,
) -> Stage<()> {
    frame
        .push(ethernet::HEADER_LEN)
        .ok_or(DropReason::NoHeadroom)?;
    let header = frame
        .packet()
        .first_chunk_mut()
        .ok_or(DropReason::NoHeadroom)?;
    *header = Ethernet {
        destination,
        source,
        ether_type,
    }
    .to_bytes();
    Ok(())
}
