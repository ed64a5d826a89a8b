//! What another node has sent: checked for its sender, decapsulated, delivered.

use viaduct_encap::{IpPacket, Outer, ecn, ethernet};
use viaduct_fib::{Fib, NetworkId};

use super::parse::{V4, V6, Version, is_tag, link_header, parse, parse_ip};
use super::route::{Way, finish_checksum, miss, transmit};
use super::{Stage, WorkerState};
use crate::flows::Decision;
use crate::frame::Frame;
use crate::reason::DropReason;

#[inline(always)]
pub(super) fn decide(fib: &Fib, state: &mut WorkerState, frame: &mut Frame<'_>) -> Stage<Decision> {
    let outer = Outer::parse(frame.packet()).map_err(|_| DropReason::BadOuter)?;
    let network_id = fib
        .network_by_vni(outer.vni)
        .ok_or(DropReason::UnknownVni)?;
    let network = fib.network(network_id).ok_or(DropReason::UnknownVni)?;
    if network.udp_port != outer.udp_destination {
        return Err(DropReason::UnknownVni.into());
    }
    if outer.udp_checksum != 0 {
        check_sum(state, frame, &outer)?;
    }
    frame.pull(outer.inner_offset).ok_or(DropReason::BadOuter)?;
    frame.truncate(outer.inner_len);
    let header = link_header(frame)?;
    if header.destination != network.vtep_macs.over(outer.src) {
        return Err(DropReason::WrongVtepMac.into());
    }
    // A VTEP's MAC may be any that an operator chose.
    if header.destination.is_multicast() {
        return Err(DropReason::Multicast.into());
    }
    match header.ether_type {
        // Those of priority, too (RFC 7348, section 6.1).
        kind if is_tag(kind) => Err(DropReason::VlanTagged.into()),
        ethernet::IPV4 => deliver::<V4>(fib, state, frame, network_id, &outer),
        ethernet::IPV6 => deliver::<V6>(fib, state, frame, network_id, &outer),
        _ => Err(DropReason::NotIp.into()),
    }
}

#[inline(always)]
fn deliver<V: Version>(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    network_id: NetworkId,
    outer: &Outer,
) -> Stage<Decision> {
    let inner = parse::<V>(frame, network_id)?;
    check_origin(fib, network_id, outer, &inner.ip)?;
    let Some(egress) = fib.local(network_id, inner.ip.dst) else {
        return Err(miss(network_id, DropReason::NotLocal));
    };
    let port = fib.port(egress).ok_or(DropReason::UnknownPort)?;
    ecn::decapsulate(outer.tos, inner.ip.tos, frame.packet())
        .map_err(|_| DropReason::CongestionMarked)?;
    transmit(state, frame, &inner, &Way::Local(egress, port))
}

/// The inner source lies in a prefix of the node that sent the packet.
#[inline(always)]
fn check_origin(fib: &Fib, network: NetworkId, outer: &Outer, packet: &IpPacket) -> Stage<()> {
    let origin = fib
        .remote(network, packet.src)
        .and_then(|tunnel| fib.next_hop(tunnel));
    match origin {
        Some(next_hop) if next_hop.vtep == outer.src => Ok(()),
        _ => Err(DropReason::UnknownVtep.into()),
    }
}

/// The outer UDP checksum of a frame from the underlay. A kernel that leaves an inner checksum to
/// hardware has computed the outer one as if that were finished: so it is, first.
#[inline(never)]
fn check_sum(state: &mut WorkerState, frame: &mut Frame<'_>, outer: &Outer) -> Stage<()> {
    if outer.sum_is_right(frame.packet()) {
        return Ok(());
    }
    let inner = frame.packet().get_mut(outer.inner_offset..);
    let inner = inner.and_then(|inner| inner.get_mut(..outer.inner_len));
    let ip = inner.and_then(|inner| inner.get_mut(ethernet::HEADER_LEN..));
    let ip = ip.unwrap_or_default();
    if let Ok(packet) = parse_ip(ip) {
        finish_checksum(state, ip, &packet);
    }
    if outer.sum_is_right(frame.packet()) {
        return Ok(());
    }
    Err(DropReason::BadOuterChecksum.into())
}
