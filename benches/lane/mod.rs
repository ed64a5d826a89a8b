//! The pipeline in memory: a batch of frames in a UMEM's layout, and the real `forward()` on a real table.

#[path = "../../router/tests/fixture/mod.rs"]
mod fixture;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fixture::{HEADROOM, PORT, chunk, node, tunnel};
use ipnet::Ipv4Net;
use viaduct_encap::checksum::{fold, pseudo_header, sum};
use viaduct_encap::{IpPacket, ethernet};
use viaduct_fib::{NetworkId, NextHop, NextHopState, PortId, Publisher, Reader, TunnelId, Update};
use viaduct_router::{
    DropReason, Frame, Pipeline, Prefetched, Side, Tick, Verdict, WorkerState, forward,
    pod_pipeline, underlay_pipeline,
};

/// Packets that are forwarded at once.
pub(crate) const BATCH: usize = 64;
const FRAME_SIZE: usize = 2048;
/// Where the kernel puts a packet: 256 bytes of its own, and our headroom.
const START: usize = 384;
/// Flows that a worker keeps.
const FLOW_CACHE: usize = 131_072;
/// Bytes that are put back between batches: outer and inner headers.
const HEADERS: usize = 128;
const OUTER: usize = 50;
const IP_UDP: usize = 28;
/// Nodes among which prefixes are divided.
const NODES: u32 = 1000;
/// Flows that random packets are of, at most.
const FLOWS: u32 = 65_536;
const NETWORK: NetworkId = NetworkId(0);

/// What happens to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// From a pod to another node.
    Encapsulate,
    /// With a checksum that is to be finished first.
    EncapsulatePartial,
    /// From another node to a pod.
    Decapsulate,
    /// From a pod to itself: the shortest way between pods of a node.
    Local,
    /// A source address that is not the pod's.
    Drop,
}

/// Where packets go to, or come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    /// All are of one flow.
    Hot,
    /// Each is of another prefix, at random.
    Random,
}

/// A batch, and the table for it.
pub(crate) struct Lane {
    _publisher: Publisher,
    reader: Reader,
    state: WorkerState,
    area: Vec<u8>,
    headers: Vec<[u8; HEADERS]>,
    ahead: Vec<Prefetched>,
    next: usize,
    len: usize,
    from: PortId,
    expected: Outcome,
}

/// An address in the n-th prefix, a /28 from 16.0.0.0 on.
fn inside(n: u32) -> Ipv4Addr {
    Ipv4Addr::from((16 << 24) + (n << 4) + 5)
}

fn vtep(n: u32) -> Ipv4Addr {
    Ipv4Addr::from((172 << 24) + (16 << 16) + n % NODES)
}

/// Node 1 with so many prefixes of other nodes.
fn table(routes: u32) -> (Publisher, Reader) {
    let (mut publisher, reader) = node(1, true);
    for n in 0..routes.min(NODES) {
        let vtep = IpAddr::from(vtep(n));
        let next_hop = NextHop {
            vtep,
            state: NextHopState::Resolved(tunnel(1, vtep)),
        };
        let tunnel = TunnelId(1 + n);
        let update = Update::PutNextHop { tunnel, next_hop };
        publisher.apply(update).expect("a next hop");
    }
    for n in 0..routes {
        let prefix = Ipv4Net::new(inside(n), 28)
            .expect("a length")
            .trunc()
            .into();
        let update = Update::PutRemote {
            network: NETWORK,
            prefix,
            tunnel: TunnelId(1 + n % NODES),
        };
        publisher.apply(update).expect("a prefix");
    }
    publisher.publish().expect("published");
    (publisher, reader)
}

/// Writes an address at `at` behind the start of an IPv4 header, and its checksum.
fn set(packet: &mut [u8], ip: usize, at: usize, address: Ipv4Addr) {
    packet[ip + at..ip + at + 4].copy_from_slice(&address.octets());
    packet[ip + 10..ip + 12].fill(0);
    let checksum = !fold(sum(&packet[ip..ip + 20]));
    packet[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
}

fn from_pod(size: usize, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let (chunk, len) = chunk(src, dst, 64, size - IP_UDP);
    chunk[HEADROOM..HEADROOM + len].to_vec()
}

/// As the other node sends it.
fn from_node(size: usize) -> Vec<u8> {
    let (_publisher, reader) = node(2, true);
    let (mut chunk, len) = chunk([10, 244, 2, 2], [10, 244, 1, 2], 64, size - IP_UDP);
    let mut frame = Frame::new(&mut chunk, HEADROOM, len).expect("inside");
    let state = &mut WorkerState::default();
    forward(&reader.load(), state, &mut frame, PORT, Tick(0));
    frame.packet().to_vec()
}

/// Only the sum of the pseudo-header is there, as a pod's kernel leaves it.
fn leave_partial(packet: &mut [u8]) {
    let ip = &mut packet[ethernet::HEADER_LEN..];
    let p = IpPacket::parse(ip, ethernet::IPV4).expect("a packet");
    let mark = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
    ip[26..28].copy_from_slice(&mark.to_be_bytes());
}

impl Case {
    /// A packet of `size` bytes of inner IP to or from the n-th prefix.
    fn packet(self, size: usize, n: u32) -> Vec<u8> {
        let (pod, peer) = ([10, 244, 1, 2], inside(n).octets());
        match self {
            Self::Encapsulate => from_pod(size, pod, peer),
            Self::EncapsulatePartial => {
                let mut packet = from_pod(size, pod, peer);
                leave_partial(&mut packet);
                packet
            }
            Self::Decapsulate => {
                let mut packet = from_node(size);
                set(&mut packet, ethernet::HEADER_LEN, 12, vtep(n));
                set(&mut packet, OUTER + ethernet::HEADER_LEN, 12, inside(n));
                packet
            }
            Self::Local => from_pod(size, pod, pod),
            Self::Drop => from_pod(size, [10, 244, 1, 3], peer),
        }
    }

    fn from(self) -> PortId {
        match self {
            Self::Decapsulate => PortId::UNDERLAY,
            _ => PORT,
        }
    }

    fn expected(self) -> Outcome {
        match self {
            Self::Encapsulate | Self::EncapsulatePartial => (BATCH, 0, 0),
            Self::Decapsulate | Self::Local => (BATCH, BATCH * usize::from(PORT.0), 0),
            Self::Drop => (0, 0, BATCH),
        }
    }
}

impl Lane {
    /// Packets of `size` bytes of inner IP, 64 to 1450, among so many prefixes.
    #[allow(dead_code, reason = "not all need so many flows")]
    pub(crate) fn new(case: Case, size: usize, routes: u32, flows: Flows) -> Self {
        Self::with(case, size, routes, flows, FLOWS)
    }

    /// The same with at most `most` random flows: what is not used need not be made.
    pub(crate) fn with(case: Case, size: usize, routes: u32, flows: Flows, most: u32) -> Self {
        let (publisher, reader) = table(routes);
        let packet = case.packet(size, 0);
        let mut area = vec![0u8; BATCH * FRAME_SIZE];
        for chunk in area.chunks_exact_mut(FRAME_SIZE) {
            chunk[START..START + packet.len()].copy_from_slice(&packet);
        }
        let count = match flows {
            Flows::Hot => 1,
            Flows::Random => most,
        };
        // A multiplicative sequence: all different, in no order.
        let headers = (0..count).map(|n| {
            let packet = case.packet(size, n.wrapping_mul(0x9e37_79b1) % routes);
            let mut headers = [0; HEADERS];
            for (to, from) in headers.iter_mut().zip(&packet) {
                *to = *from;
            }
            headers
        });
        let mut lane = Self {
            _publisher: publisher,
            reader,
            state: WorkerState::new(FLOW_CACHE),
            area,
            headers: headers.collect(),
            ahead: vec![Prefetched::default(); BATCH],
            next: 0,
            len: packet.len(),
            from: case.from(),
            expected: case.expected(),
        };
        lane.restore();
        lane
    }

    /// Puts back the headers that forwarding has changed: the next flows'.
    pub(crate) fn restore(&mut self) {
        let len = HEADERS.min(self.len);
        for chunk in self.area.chunks_exact_mut(FRAME_SIZE) {
            let headers = &self.headers[self.next][..len];
            chunk[START..START + len].copy_from_slice(headers);
            self.next = (self.next + 1) % self.headers.len();
        }
    }

    /// Forwards the batch, as a worker's turn does.
    pub(crate) fn forward(&mut self) {
        let table = self.reader.load();
        let (ahead, area) = (&mut self.ahead, &mut self.area);
        let sent = if self.from == PortId::UNDERLAY {
            let pipeline = underlay_pipeline(&table, &mut self.state, Tick(0));
            forward_all(pipeline, area, self.len, ahead)
        } else {
            let pipeline = pod_pipeline(&table, &mut self.state, self.from, Tick(0));
            forward_all(pipeline, area, self.len, ahead)
        };
        assert_eq!(black_box(sent), self.expected);
    }

    /// The time that so many batches take, without putting headers back.
    #[allow(dead_code, reason = "instructions are not timed")]
    pub(crate) fn time(&mut self, batches: u64) -> Duration {
        let mut time = Duration::ZERO;
        for _ in 0..batches {
            self.restore();
            let begin = Instant::now();
            self.forward();
            time += begin.elapsed();
        }
        time
    }
}

/// What became of a batch: packets sent, the sum of their ports, and packets dropped as spoofed.
type Outcome = (usize, usize, usize);

fn forward_all<S: Side>(
    mut pipeline: Pipeline<'_, S>,
    area: &mut [u8],
    len: usize,
    ahead: &mut [Prefetched],
) -> Outcome {
    for (chunk, ahead) in area.chunks_exact_mut(FRAME_SIZE).zip(&mut *ahead) {
        let mut frame = Frame::new(chunk, START, len).expect("inside");
        *ahead = pipeline.prefetch(&mut frame);
    }
    let (mut sent, mut ports, mut spoofed) = (0, 0, 0);
    for (chunk, ahead) in area.chunks_exact_mut(FRAME_SIZE).zip(ahead) {
        let mut frame = Frame::new(chunk, START, len).expect("inside");
        match pipeline.forward(&mut frame, *ahead) {
            Verdict::Send(port) => {
                sent += 1;
                ports += usize::from(port.0);
            }
            Verdict::Drop(DropReason::SpoofedSource) => spoofed += 1,
            _ => {}
        }
    }
    (sent, ports, spoofed)
}
