//! From a received frame to a verdict. Reads no clock and does no I/O, so that
//! tests, benches and the workers run the same code.
#![allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::marker::PhantomData;
use std::net::IpAddr;

use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::icmp::{self, IcmpError};
use viaduct_encap::{
    Finish, Fragments, IpPacket, MacAddr, Outer, ParseError, Tunnel, decrement_hop_limit, ecn, flow,
};
use viaduct_fib::{Fib, Network, NetworkId, NextHopState, Port, PortId, slot};

use crate::flows::{Decision, Flows, FromPod, FromUnderlay, Looked, Side};
use crate::frame::Frame;
use crate::limit::{Direction, Limiter};
use crate::reason::DropReason;
use crate::tick::Tick;

/// The network that the kernel carries too (flannel's way): the first one.
/// A miss in any other is a drop.
pub const DEFAULT_NETWORK: NetworkId = NetworkId(0);

/// What a worker remembers between packets.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// Transport checksums that were finished here.
    pub checksums_finished: u64,
    /// Packets that went through all stages: nothing was known of their flows.
    pub staged: u64,
    flows: Flows,
    /// What limited ports have had, shared with other workers.
    limiter: Limiter,
}

impl WorkerState {
    /// With a cache of so many flows, rounded up to a power of two (128 bytes each); none, if 0.
    ///
    /// What is cached is of one table, told by its epoch: use a state with one
    /// [`Reader`](viaduct_fib::Reader)'s tables only.
    pub fn new(flows: usize) -> Self {
        Self {
            flows: Flows::new(flows),
            ..Self::default()
        }
    }

    /// As [`new`](Self::new), with the rates that all workers share.
    pub(crate) fn with_limiter(flows: usize, limiter: Limiter) -> Self {
        Self {
            limiter,
            ..Self::new(flows)
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Transmit on this port.
    Send(PortId),
    /// Leave to the kernel, and why. The frame begins with the IP header, and
    /// nothing in the packet has changed.
    Punt(DropReason),
    /// To be worked off outside the hot loop; the frame as with `Punt`.
    Exception(Exception),
    /// Count and release.
    Drop(DropReason),
}

/// What takes more than a few header fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// Cut into IPv4 fragments of at most `mtu` bytes each.
    Fragment {
        /// The packet's network.
        network: NetworkId,
        /// Bytes of IP packet that the way takes.
        mtu: u16,
    },
    /// Drop for `reason`, and tell the sender.
    IcmpError {
        /// The packet's network.
        network: NetworkId,
        /// What the sender is told.
        error: IcmpError,
        /// What the drop is counted as.
        reason: DropReason,
    },
}

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// A stage passes on a value or ends with the frame's verdict.
type Stage<T> = Result<T, Verdict>;

/// Where a packet goes from here.
enum Way<'a> {
    Local(PortId, &'a Port),
    Tunnel(&'a Tunnel),
}

/// A packet whose headers were read; its frame begins with the IP header.
struct Inner {
    ip: IpPacket,
    ether_type: u16,
    network: NetworkId,
}

/// Decides about one frame and rewrites it in place.
///
/// Stages, from a pod: parse, source check, [service translation, egress policy],
/// route, encapsulate. From the underlay: outer check, decapsulate,
/// [un-translate, ingress policy], deliver. Those in brackets are empty today.
/// What they have decided for a flow is done to its next packets without them.
#[inline]
pub fn forward(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    tick: Tick,
) -> Verdict {
    if ingress == PortId::UNDERLAY {
        one(&mut underlay_pipeline(fib, state, tick), frame)
    } else {
        one(&mut pod_pipeline(fib, state, ingress, tick), frame)
    }
}

fn one<S: Side>(pipeline: &mut Pipeline<'_, S>, frame: &mut Frame<'_>) -> Verdict {
    let prefetched = pipeline.prefetch(frame);
    pipeline.forward(frame, prefetched)
}

/// [`forward`] for a batch of frames from one side, by one table and at one time.
pub struct Pipeline<'a, S> {
    fib: &'a Fib,
    state: &'a mut WorkerState,
    ingress: PortId,
    tick: Tick,
    _side: PhantomData<S>,
}

/// For frames from a pod.
pub fn pod_pipeline<'a>(
    fib: &'a Fib,
    state: &'a mut WorkerState,
    ingress: PortId,
    tick: Tick,
) -> Pipeline<'a, FromPod> {
    Pipeline::new(fib, state, ingress, tick)
}

/// For frames from the underlay.
pub fn underlay_pipeline<'a>(
    fib: &'a Fib,
    state: &'a mut WorkerState,
    tick: Tick,
) -> Pipeline<'a, FromUnderlay> {
    Pipeline::new(fib, state, PortId::UNDERLAY, tick)
}

impl<'a, S: Side> Pipeline<'a, S> {
    #[inline(always)]
    fn new(fib: &'a Fib, state: &'a mut WorkerState, ingress: PortId, tick: Tick) -> Self {
        state.flows.follow(fib.epoch());
        Self {
            fib,
            state,
            ingress,
            tick,
            _side: PhantomData,
        }
    }

    /// Looks the flow of a frame up and begins to fetch what is known of it. Done for a whole
    /// batch before the first of it is forwarded, it makes the batch wait for memory once.
    #[inline(always)]
    pub fn prefetch(&mut self, frame: &mut Frame<'_>) -> Prefetched {
        Prefetched(self.state.flows.look_up::<S>(frame.packet()))
    }

    /// Decides about a frame that was [`prefetch`](Self::prefetch)ed and has not changed since.
    #[inline(always)]
    pub fn forward(&mut self, frame: &mut Frame<'_>, prefetched: Prefetched) -> Verdict {
        let finished = &mut self.state.checksums_finished;
        let flows = &self.state.flows;
        match flows.answer::<S>(prefetched.0, frame, self.ingress, finished) {
            Some(egress) => Verdict::Send(egress),
            None => self.stages(frame, prefetched.0),
        }
    }

    /// All stages, for a packet whose flow is not known, or that is not as its flow's others.
    #[inline(never)]
    fn stages(&mut self, frame: &mut Frame<'_>, looked: Looked) -> Verdict {
        let (fib, ingress, tick) = (self.fib, self.ingress, self.tick);
        let state = &mut *self.state;
        let key = state.flows.key::<S>(frame.packet(), ingress);
        if let Some(key) = &key {
            let finished = &mut state.checksums_finished;
            let egress = state.flows.answer_other::<S>(looked, key, frame, finished);
            if let Some(egress) = egress {
                return Verdict::Send(egress);
            }
        }
        state.staged = state.staged.wrapping_add(1);
        let result = if S::UNDERLAY {
            from_underlay(fib, state, frame)
        } else {
            from_pod(fib, state, frame, ingress, tick)
        };
        match result {
            Ok(decision) => {
                if let Some(key) = key {
                    state
                        .flows
                        .learn::<S>(looked, key, decision, frame.packet());
                }
                Verdict::Send(decision.egress)
            }
            Err(verdict) => verdict,
        }
    }
}

/// A frame whose flow was looked up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefetched(Looked);

#[inline(always)]
fn from_pod(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    tick: Tick,
) -> Stage<Decision> {
    let sent = frame.len();
    let port = fib.port(ingress).ok_or(DropReason::UnknownPort)?;
    if Ethernet::parse(frame.packet()).is_some_and(|sent| sent.source != port.mac) {
        return Err(DropReason::SpoofedMac.into());
    }
    match link_header(frame)? {
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
    let network = fib.network(port.network).ok_or(DropReason::UnknownVni)?;
    let way = route(fib, &inner)?;
    let decision = transmit(state, frame, &inner, network, &way)?;
    Ok(Decision {
        // What a limited pod sends is measured packet by packet.
        lasting: rate.is_none(),
        ..decision
    })
}

#[inline(always)]
fn from_underlay(fib: &Fib, state: &mut WorkerState, frame: &mut Frame<'_>) -> Stage<Decision> {
    let outer = Outer::parse(frame.packet()).map_err(|_| DropReason::BadOuter)?;
    let network_id = fib
        .network_by_vni(outer.vni)
        .ok_or(DropReason::UnknownVni)?;
    let network = fib.network(network_id).ok_or(DropReason::UnknownVni)?;
    if network.udp_port != outer.udp_destination {
        return Err(DropReason::UnknownVni.into());
    }
    frame.pull(outer.inner_offset).ok_or(DropReason::BadOuter)?;
    frame.truncate(outer.inner_len);
    let destination = Ethernet::parse(frame.packet()).map(|e| e.destination);
    if destination != Some(network.vtep_mac) {
        return Err(DropReason::WrongVtepMac.into());
    }
    match link_header(frame)? {
        ethernet::IPV4 => deliver::<V4>(fib, state, frame, network_id, network, &outer),
        ethernet::IPV6 => deliver::<V6>(fib, state, frame, network_id, network, &outer),
        _ => Err(DropReason::NotIp.into()),
    }
}

#[inline(always)]
fn deliver<V: Version>(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    network_id: NetworkId,
    network: &Network,
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
    transmit(state, frame, &inner, network, &Way::Local(egress, port))
}

/// Sends a packet that this node made, an ICMP error or a fragment: routed, but
/// neither checked for its source nor a hop further. The frame begins with the
/// IP header.
pub fn originate(fib: &Fib, frame: &mut Frame<'_>, network: NetworkId) -> Verdict {
    let result = parse_ip(frame, network).and_then(|inner| {
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
    let inner = parse_ip(frame, network).ok()?;
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
    let inner = parse_ip(frame, network)?;
    finish_checksum(state, frame.packet(), &inner.ip);
    take_hop(frame, network)?;
    let fragments = Fragments::new(frame.packet(), &inner.ip, usize::from(mtu));
    fragments.ok_or(DropReason::TooBig.into())
}

/// Makes a packet fit for the kernel, which takes every checksum for complete.
pub(crate) fn complete(state: &mut WorkerState, frame: &mut Frame<'_>) {
    if let Ok(inner) = parse_ip(frame, DEFAULT_NETWORK) {
        finish_checksum(state, frame.packet(), &inner.ip);
    }
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

/// Nobody is known to have the destination: in the default network the kernel
/// may know more, or tells the sender.
fn miss(network: NetworkId, reason: DropReason) -> Verdict {
    if network == DEFAULT_NETWORK {
        Verdict::Punt(reason)
    } else {
        Verdict::Drop(reason)
    }
}

/// An IP version. What follows parsing is compiled for each by itself: where
/// both came together, all that was read would have to be in memory.
trait Version {
    const ETHER_TYPE: u16;
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError>;
}

struct V4;
struct V6;

impl Version for V4 {
    const ETHER_TYPE: u16 = ethernet::IPV4;

    #[inline(always)]
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError> {
        IpPacket::parse_v4(ip)
    }
}

impl Version for V6 {
    const ETHER_TYPE: u16 = ethernet::IPV6;

    #[inline(always)]
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError> {
        IpPacket::parse_v6(ip)
    }
}

/// Reads the Ethernet header and leaves the frame behind it; what it says that
/// follows.
#[inline(always)]
fn link_header(frame: &mut Frame<'_>) -> Stage<u16> {
    let Ethernet {
        destination,
        ether_type,
        ..
    } = Ethernet::parse(frame.packet()).ok_or(DropReason::Malformed)?;
    if destination.is_multicast() {
        return Err(DropReason::Multicast.into());
    }
    if matches!(ether_type, ethernet::VLAN | ethernet::QINQ) {
        return Err(DropReason::VlanTagged.into());
    }
    frame
        .pull(ethernet::HEADER_LEN)
        .ok_or(DropReason::Malformed)?;
    Ok(ether_type)
}

/// Reads the IP packet that the frame begins with, and cuts off Ethernet's
/// padding.
#[inline(always)]
fn parse<V: Version>(frame: &mut Frame<'_>, network: NetworkId) -> Stage<Inner> {
    let ip = V::parse(frame.packet()).map_err(unreadable)?;
    if ip.dst.is_multicast() {
        return Err(DropReason::Multicast.into());
    }
    frame.truncate(ip.len);
    Ok(Inner {
        ip,
        ether_type: V::ETHER_TYPE,
        network,
    })
}

fn unreadable(error: ParseError) -> DropReason {
    match error {
        ParseError::NotIp => DropReason::NotIp,
        _ => DropReason::Malformed,
    }
}

/// Reads the IP packet that the frame begins with; its version says what it is.
fn parse_ip(frame: &mut Frame<'_>, network: NetworkId) -> Stage<Inner> {
    let packet = frame.packet();
    let ether_type = match packet.first().map(|b| b >> 4) {
        Some(6) => ethernet::IPV6,
        _ => ethernet::IPV4,
    };
    let ip = IpPacket::parse(packet, ether_type).map_err(unreadable)?;
    Ok(Inner {
        ip,
        ether_type,
        network,
    })
}

/// Pods of this node first, then the longest prefix.
#[inline(always)]
fn route<'a>(fib: &'a Fib, inner: &Inner) -> Stage<Way<'a>> {
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

/// What every forwarded packet gets: a look at its length, one hop less, a
/// complete checksum and the headers of its way.
#[inline(always)]
fn transmit(
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    inner: &Inner,
    network: &Network,
    way: &Way<'_>,
) -> Stage<Decision> {
    let mtu = match way {
        Way::Local(_, port) => port.mtu,
        Way::Tunnel(tunnel) => tunnel.room(network.underlay_mtu),
    };
    if inner.ip.len > usize::from(mtu) {
        return Err(too_big(inner, mtu));
    }
    take_hop(frame, inner.network)?;
    finish_checksum(state, frame.packet(), &inner.ip);
    let egress = write_link_headers(frame, inner, way)?;
    Ok(Decision {
        egress,
        room: mtu,
        lasting: true,
    })
}

#[inline(always)]
fn take_hop(frame: &mut Frame<'_>, network: NetworkId) -> Stage<()> {
    decrement_hop_limit(frame.packet()).map_err(|_| {
        Verdict::Exception(Exception::IcmpError {
            network,
            error: IcmpError::TimeExceeded,
            reason: DropReason::HopLimitExceeded,
        })
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

/// A sender's kernel leaves transport checksums to hardware that is not there.
#[inline(always)]
fn finish_checksum(state: &mut WorkerState, ip: &mut [u8], packet: &IpPacket) {
    if viaduct_encap::finish_partial(ip, packet) == Finish::Finished {
        state.checksums_finished = state.checksums_finished.saturating_add(1);
    }
}

#[inline(always)]
fn write_link_headers(frame: &mut Frame<'_>, inner: &Inner, way: &Way<'_>) -> Stage<PortId> {
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
