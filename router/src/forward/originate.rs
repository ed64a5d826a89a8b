//! Packets that this node makes, and packets that leave the hot loop: ICMP errors, fragments, and
//! what is left to the kernel.

use std::net::IpAddr;

use viaduct_encap::Fragments;
use viaduct_encap::icmp::{self, IcmpError};
use viaduct_fib::{Fib, NetworkId};

use super::parse::parse_frame;
use super::route::{finish_checksum, route, take_hop, write_link_headers};
use super::{DEFAULT_NETWORK, Verdict, WorkerState};
use crate::frame::Frame;
use crate::reason::DropReason;

/// Sends a packet that this node made, an ICMP error or a fragment: routed, but
/// neither checked for its source nor a hop further. The frame begins with the
/// IP header.
pub fn originate(fib: &Fib, frame: &mut Frame<'_>, network: NetworkId) -> Verdict {
    let result = parse_frame(frame, network).and_then(|inner| {
        let way = route(fib, &inner)?;
        write_link_headers(frame, &inner, &way)
    });
    match result {
        Ok(port) => Verdict::Send(port),
        Err(verdict) => verdict,
    }
}

/// Makes an ICMP error about the packet that the frame begins with, in its
/// place, and sends it on its way to the packet's sender. `None`, and nothing
/// changes, when the packet may not be answered or the network has no address
/// to answer from.
pub fn answer(
    fib: &Fib,
    frame: &mut Frame<'_>,
    network: NetworkId,
    error: IcmpError,
) -> Option<Verdict> {
    let table = fib.network(network)?;
    let inner = parse_frame(frame, network).ok()?;
    let source = match inner.ip.src {
        IpAddr::V4(_) => table.overlay_v4.map(IpAddr::V4),
        IpAddr::V6(_) => table.overlay_v6.map(IpAddr::V6),
    }?;
    if !icmp::may_answer(frame.packet(), &inner.ip) {
        return None;
    }
    let at = frame.start();
    let (start, len) = icmp::write(error, source, frame.chunk(), at, &inner.ip)?;
    frame.place(start, len)?;
    Some(originate(fib, frame, network))
}

/// What forwarding does to a packet before it is cut: a complete checksum and
/// one hop less. The frame begins with the IP header.
///
/// # Errors
/// The verdict, when the packet may go no further or cannot be cut.
pub fn prepare_fragments(
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    network: NetworkId,
    mtu: u16,
) -> Result<Fragments, Verdict> {
    let inner = parse_frame(frame, network)?;
    finish_checksum(state, frame.packet(), &inner.ip);
    take_hop(frame, network)?;
    let fragments = Fragments::new(frame.packet(), &inner.ip, usize::from(mtu));
    fragments.ok_or(DropReason::TooBig.into())
}

/// Makes a packet fit for the kernel, which takes every checksum for complete.
pub(crate) fn complete(state: &mut WorkerState, frame: &mut Frame<'_>) {
    if let Ok(inner) = parse_frame(frame, DEFAULT_NETWORK) {
        finish_checksum(state, frame.packet(), &inner.ip);
    }
}
