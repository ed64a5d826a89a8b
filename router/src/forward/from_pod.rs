//! What a pod has sent: parsed, checked for its source, routed.

use viaduct_encap::{MacAddr, ethernet};
use viaduct_fib::{Fib, Port, PortId};

use super::parse::{V4, V6, Version, is_tag, link_header, parse, priority_tags};
use super::route::{route, transmit};
use super::{Stage, WorkerState};
use crate::flows::Decision;
use crate::frame::Frame;
use crate::limit::Direction;
use crate::reason::DropReason;
use crate::tick::Tick;

#[inline(always)]
pub(super) fn decide(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    tick: Tick,
) -> Stage<Decision> {
    let sent = frame.len();
    let port = fib.port(ingress).ok_or(DropReason::UnknownPort)?;
    let header = link_header(frame)?;
    if header.source != port.mac {
        return Err(DropReason::SpoofedMac.into());
    }
    if header.destination != port.gateway_mac {
        return Err(not_for_us(header.destination).into());
    }
    let ether_type = match header.ether_type {
        kind if is_tag(kind) => priority_tags(frame)?,
        kind => kind,
    };
    match ether_type {
        ethernet::IPV4 => route_from_pod::<V4>(fib, state, frame, ingress, port, sent, tick),
        ethernet::IPV6 => route_from_pod::<V6>(fib, state, frame, ingress, port, sent, tick),
        _ => Err(DropReason::NotIp.into()),
    }
}

#[inline(always)]
fn route_from_pod<V: Version>(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    port: &Port,
    sent: usize,
    tick: Tick,
) -> Stage<Decision> {
    let inner = parse::<V>(frame, port.network)?;
    // Source check: what a pod sends carries one of its own addresses.
    if fib.local(port.network, inner.ip.src) != Some(ingress) {
        return Err(DropReason::SpoofedSource.into());
    }
    let rate = port.limits.from_pod.as_ref();
    let limiter = &state.limiter;
    if !limiter.admit(ingress, Direction::FromPod, rate, sent, tick) {
        return Err(DropReason::RateFromPod.into());
    }
    let way = route(fib, &inner)?;
    let decision = transmit(state, frame, &inner, &way)?;
    Ok(Decision {
        // What a limited pod sends is measured packet by packet.
        cacheable: decision.cacheable && rate.is_none(),
        ..decision
    })
}

#[cold]
fn not_for_us(destination: MacAddr) -> DropReason {
    if destination.is_multicast() {
        DropReason::Multicast
    } else {
        DropReason::ForeignMac
    }
}
