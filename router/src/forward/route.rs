//! Where a packet goes, and what every forwarded packet gets on its way.

use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::icmp::IcmpError;
use viaduct_encap::{Finished, IpPacket, MacAddr, Tunnel, decrement_hop_limit, flow};
use viaduct_fib::{Fib, NetworkId, NextHopState, Port, PortId, slot};

use super::parse::Inner;
use super::{DEFAULT_NETWORK, Exception, Stage, Verdict, WorkerState};
use crate::flows::Decision;
use crate::frame::Frame;
use crate::reason::DropReason;

/// Where a packet goes from here.
pub(super) enum Way<'a> {
    Local(PortId, &'a Port),
    Tunnel(&'a Tunnel),
}

/// Pods of this node first, then the longest prefix.
#[inline(always)]
pub(super) fn route<'a>(fib: &'a Fib, inner: &Inner) -> Stage<Way<'a>> {
    if let Some(id) = fib.local(inner.network, inner.ip.dst) {
        let port = fib.port(id).ok_or(DropReason::UnknownPort)?;
        return Ok(Way::Local(id, port));
    }
    let next_hop = fib
        .remote(inner.network, inner.ip.dst)
        .and_then(|tunnel| fib.next_hop(tunnel));
    let Some(next_hop) = next_hop else {
        return Err(miss(inner.network, DropReason::NoRoute));
    };
    match &next_hop.state {
        NextHopState::Resolved(tunnel) => Ok(Way::Tunnel(tunnel)),
        NextHopState::Multipath(ways) => slot(ways, flow::flow_hash(&inner.ip))
            .map(Way::Tunnel)
            .ok_or(DropReason::NextHopUnresolved.into()),
        NextHopState::Unresolved => Err(DropReason::NextHopUnresolved.into()),
    }
}

/// Nobody is known to have the destination: in the default network the kernel
/// may know more, or tells the sender.
pub(super) fn miss(network: NetworkId, reason: DropReason) -> Verdict {
    if network == DEFAULT_NETWORK {
        Verdict::Punt(reason)
    } else {
        Verdict::Drop(reason)
    }
}

/// What every forwarded packet gets: a look at its length, one hop less, a
/// complete checksum and the headers of its way.
#[inline(always)]
pub(super) fn transmit(
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    inner: &Inner,
    way: &Way<'_>,
) -> Stage<Decision> {
    let mtu = match way {
        Way::Local(_, port) => port.mtu,
        Way::Tunnel(tunnel) => tunnel.room(),
    };
    // In the kernel's order: a packet that has both faults is told of its hops.
    if inner.ip.hop_limit <= 1 {
        return Err(time_exceeded(inner.network));
    }
    if inner.ip.len > usize::from(mtu) {
        return Err(too_big(inner, mtu));
    }
    take_hop(frame, inner.network)?;
    let encapsulates = finish_checksum(state, frame.packet(), &inner.ip);
    let egress = write_link_headers(frame, inner, way)?;
    Ok(Decision {
        egress,
        room: mtu,
        // The flow's next packet may have a partial checksum further inside.
        cacheable: !encapsulates,
    })
}

#[inline(always)]
pub(super) fn take_hop(frame: &mut Frame<'_>, network: NetworkId) -> Stage<()> {
    decrement_hop_limit(frame.packet()).map_err(|_| time_exceeded(network))
}

#[cold]
fn time_exceeded(network: NetworkId) -> Verdict {
    Verdict::Exception(Exception::IcmpError {
        network,
        error: IcmpError::TimeExceeded,
        reason: DropReason::HopLimitExceeded,
    })
}

#[cold]
fn too_big(inner: &Inner, mtu: u16) -> Verdict {
    let network = inner.network;
    Verdict::Exception(if inner.ip.dont_fragment {
        Exception::IcmpError {
            network,
            error: IcmpError::PacketTooBig { mtu },
            reason: DropReason::TooBig,
        }
    } else {
        Exception::Fragment { network, mtu }
    })
}

/// A sender's kernel leaves transport checksums to hardware that is not there, inside its own tunnels
/// too. Whether the packet carries another one.
#[inline(always)]
pub(super) fn finish_checksum(state: &mut WorkerState, ip: &mut [u8], packet: &IpPacket) -> bool {
    let Finished {
        finished,
        encapsulates,
    } = viaduct_encap::finish_all(ip, packet);
    if finished {
        state.checksums_finished = state.checksums_finished.saturating_add(1);
    }
    encapsulates
}

#[inline(always)]
pub(super) fn write_link_headers(
    frame: &mut Frame<'_>,
    inner: &Inner,
    way: &Way<'_>,
) -> Stage<PortId> {
    match *way {
        Way::Local(id, port) => {
            push_ethernet(frame, port.mac, port.gateway_mac, inner.ether_type)?;
            Ok(id)
        }
        Way::Tunnel(tunnel) => {
            encapsulate(frame, inner, tunnel)?;
            Ok(PortId::UNDERLAY)
        }
    }
}

#[inline(always)]
fn encapsulate(frame: &mut Frame<'_>, inner: &Inner, tunnel: &Tunnel) -> Stage<()> {
    frame
        .push(tunnel.header_len())
        .ok_or(DropReason::NoHeadroom)?;
    let source_port = flow::source_port(flow::flow_hash(&inner.ip));
    let tos = tunnel.outer_tos(inner.ip.tos);
    tunnel
        .write(frame.packet(), inner.ether_type, source_port, tos)
        .map_err(|_| DropReason::TooBig)?;
    Ok(())
}

#[inline(always)]
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
