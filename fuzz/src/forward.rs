//! Frames from either side through `forward()` and, where it says so, on to an ICMP error or
//! fragments; and what must be true of what comes out.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4Extensions, PacketBuilder, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use viaduct_encap::icmp::IcmpError;
use viaduct_fib::{NetworkId, PortId, Publisher, Reader};
use viaduct_router::{
    Exception, Frame, Tick, Verdict, WorkerState, answer, forward, originate, prepare_fragments,
};

use crate::decode::{self, Decoded};
use crate::fixture::{GATEWAY, HEADROOM, POD, PORT, node, vtep_mac};

/// Bytes of a chunk of the UMEM.
const CHUNK: usize = 4096;
/// Bytes of Ethernet header.
const ETHERNET: usize = 14;
/// The longest frame that comes up.
const LONGEST: usize = 3500;

/// Which way a frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the pod.
    Pod,
    /// From the underlay, as it is.
    Underlay,
    /// From the other node: put behind its tunnel's outer headers, with this ECN field.
    Tunnel(u8),
}

/// A frame, and what it meets.
#[derive(Clone, Debug)]
pub struct Input {
    /// Where it comes from.
    pub side: Side,
    /// Whether the way to the other node is known.
    pub resolved: bool,
    /// Without the outer headers that its side gives it.
    pub frame: Vec<u8>,
}

impl Input {
    /// From a fuzzer's bytes: flags, two bytes that say how many zeros follow the frame, so that
    /// long frames have short inputs, and the frame.
    ///
    /// Flags: 1 from the underlay, 2 in the other node's tunnel, 4 IP length and header checksum
    /// made right (a fuzzer seldom guesses them), 8 next hop unresolved, 0x30 the outer ECN field.
    pub fn from_bytes(data: &[u8]) -> Option<Self> {
        let (&[flags, hi, lo], frame) = data.split_first_chunk()?;
        let zeros = usize::from(u16::from_be_bytes([hi, lo]));
        let mut frame = frame.to_vec();
        frame.resize(frame.len() + zeros, 0);
        frame.truncate(LONGEST);
        if flags & 4 != 0 {
            mend(&mut frame);
        }
        let side = match flags & 3 {
            0 | 2 => Side::Pod,
            1 => Side::Underlay,
            _ => Side::Tunnel(flags >> 4 & 3),
        };
        Some(Self {
            side,
            resolved: flags & 8 == 0,
            frame,
        })
    }

    /// The bytes that [`from_bytes`](Self::from_bytes) makes this input from.
    pub fn to_bytes(&self) -> Vec<u8> {
        let side = match self.side {
            Side::Pod => 0,
            Side::Underlay => 1,
            Side::Tunnel(ecn) => 3 | ecn << 4,
        };
        let len = self.frame.iter().rposition(|byte| *byte != 0);
        let len = len.map_or(0, |last| last + 1);
        let zeros = u16::try_from(self.frame.len() - len).expect("short");
        let [hi, lo] = zeros.to_be_bytes();
        let flags = side | u8::from(!self.resolved) << 3;
        [&[flags, hi, lo], &self.frame[..len]].concat()
    }

    /// The port that it comes from.
    pub const fn ingress(&self) -> PortId {
        match self.side {
            Side::Pod => PORT,
            Side::Underlay | Side::Tunnel(_) => PortId::UNDERLAY,
        }
    }

    /// As it arrives.
    pub fn on_the_wire(&self) -> Vec<u8> {
        let Side::Tunnel(ecn) = self.side else {
            return self.frame.clone();
        };
        let mut header = etherparse::Ipv4Header::new(
            0,
            64,
            etherparse::ip_number::UDP,
            [192, 0, 2, 2],
            [192, 0, 2, 1],
        )
        .expect("no payload yet");
        header.ecn = etherparse::IpEcn::try_new(ecn).expect("two bits");
        let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0], &self.frame[..]].concat();
        let mut wire = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
            .ip(etherparse::IpHeaders::Ipv4(
                header,
                Ipv4Extensions::default(),
            ))
            .udp(50000, 8472)
            .write(&mut wire, &vxlan)
            .expect("a packet");
        wire
    }
}

/// Makes an Ethernet frame's IP packet as long as it says, with a sound header.
pub fn mend(frame: &mut [u8]) {
    let Some((_, ip)) = frame.split_at_mut_checked(ETHERNET) else {
        return;
    };
    let len = ip.len();
    let field = |len: usize| u16::try_from(len).expect("short").to_be_bytes();
    match ip.first().map(|byte| byte >> 4) {
        Some(4) => {
            let header = usize::from(ip[0] & 15) * 4;
            if header < 20 || header > len {
                return;
            }
            ip[2..4].copy_from_slice(&field(len));
            ip[10..12].fill(0);
            let sum = ones_complement_sum(&ip[..header]);
            ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
        }
        Some(6) if len >= 40 => ip[4..6].copy_from_slice(&field(len - 40)),
        _ => {}
    }
}

/// RFC 1071.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

thread_local! {
    /// Workers' states that last, by whether the way to the other node is known.
    static WARM: RefCell<[WorkerState; 2]> = RefCell::new([WorkerState::new(1024), WorkerState::new(1024)]);
}

thread_local! {
    /// Node 1, its next hop resolved and not.
    static NODES: [(Publisher, Reader); 2] = [node(1, true), node(1, false)];
}

/// [`check`] for a fuzzer's bytes.
pub fn check_bytes(data: &[u8]) {
    if let Some(input) = Input::from_bytes(data) {
        check(&input);
    }
}

/// A frame before and after: the chunk that it lies in, both times.
struct Run {
    before: Vec<u8>,
    after: Vec<u8>,
    start: usize,
    len: usize,
}

impl Run {
    fn sent(&self) -> &[u8] {
        &self.after[self.start..self.start + self.len]
    }

    /// The IP packet that stands last in what was sent, as it came. It stays where it is.
    fn as_it_came(&self, ip_len: usize) -> &[u8] {
        let end = self.start + self.len;
        &self.before[end - ip_len..end]
    }
}

/// Gives the frame to node 1 and checks everything that has to be true of what becomes of it.
/// Panics when something is not; gives the verdict.
pub fn check(input: &Input) -> Verdict {
    NODES.with(|[resolved, unresolved]| {
        let (_, reader) = if input.resolved { resolved } else { unresolved };
        check_with(input, reader)
    })
}

/// What a worker makes of a frame.
pub(crate) struct Decided {
    pub(crate) verdict: Verdict,
    /// The frame as it leaves.
    pub(crate) sent: Vec<u8>,
    /// Whether a transport checksum was finished.
    pub(crate) finished: bool,
}

/// Gives a frame that came from this port to a worker that has seen no other.
pub(crate) fn decide(reader: &Reader, ingress: PortId, wire: &[u8]) -> Decided {
    let mut chunk = vec![0; CHUNK];
    chunk[HEADROOM..HEADROOM + wire.len()].copy_from_slice(wire);
    let mut frame = Frame::new(&mut chunk, HEADROOM, wire.len()).expect("inside");
    let mut state = WorkerState::default();
    let verdict = forward(&reader.load(), &mut state, &mut frame, ingress, Tick(0));
    Decided {
        verdict,
        sent: frame.packet().to_vec(),
        finished: state.checksums_finished > 0,
    }
}

fn check_with(input: &Input, reader: &Reader) -> Verdict {
    let frame = input.on_the_wire();
    let mut before = vec![0; CHUNK];
    before[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
    let mut after = before.clone();
    let mut at = Frame::new(&mut after, HEADROOM, frame.len()).expect("inside");
    let ingress = input.ingress();
    let mut state = WorkerState::default();
    let verdict = forward(&reader.load(), &mut state, &mut at, ingress, Tick(0));
    let (start, len) = (at.start(), at.len());
    assert!(start + len <= CHUNK, "inside the chunk");
    from_the_cache(
        input,
        reader,
        ingress,
        &before,
        (verdict, start, len),
        &after,
    );
    let run = Run {
        before,
        after,
        start,
        len,
    };
    match verdict {
        Verdict::Send(PortId::UNDERLAY) => {
            assert_eq!(ingress, PORT, "nothing goes from node to node through here");
            assert!(input.resolved, "the way is known");
            assert_eq!(frame[6..12], POD.0, "the pod's own MAC");
            assert_eq!(frame[..6], GATEWAY.0, "for this node");
            let inner = to_the_other_node(run.sent());
            assert!(is_pods(inner.src), "the pod's own address");
            one_hop_further(&run, &inner, run.sent(), ingress);
        }
        Verdict::Send(to) => {
            assert_eq!(to, PORT);
            let packet = to_the_pod(run.sent());
            if ingress == PORT {
                assert!(is_pods(packet.src), "the pod's own address");
                assert_eq!(frame[6..12], POD.0, "the pod's own MAC");
                assert_eq!(frame[..6], GATEWAY.0, "for this node");
            } else {
                from_the_other_node(&frame, packet.src);
            }
            one_hop_further(&run, &packet, run.sent(), ingress);
        }
        Verdict::Exception(Exception::IcmpError { network, error, .. }) => {
            answered(run, reader, network, error);
        }
        Verdict::Exception(Exception::Fragment { network, mtu }) => {
            cut(run, reader, network, mtu);
        }
        Verdict::Punt(_) => {
            assert_eq!(run.sent(), run.as_it_came(len), "as it came");
            assert!(matches!(run.sent()[0] >> 4, 4 | 6), "at the IP header");
        }
        Verdict::Drop(_) => {}
    }
    verdict
}

/// A worker that has seen other packets, and this one, does the same to it.
fn from_the_cache(
    input: &Input,
    reader: &Reader,
    ingress: PortId,
    before: &[u8],
    expected: (Verdict, usize, usize),
    after: &[u8],
) {
    WARM.with_borrow_mut(|states| {
        let state = &mut states[usize::from(input.resolved)];
        for _ in 0..2 {
            let mut chunk = before.to_vec();
            let len = input.on_the_wire().len();
            let mut frame = Frame::new(&mut chunk, HEADROOM, len).expect("inside");
            let verdict = forward(&reader.load(), state, &mut frame, ingress, Tick(0));
            assert_eq!((verdict, frame.start(), frame.len()), expected);
            let sent = expected.1..expected.1 + expected.2;
            assert_eq!(chunk[sent.clone()], after[sent], "as without a cache");
        }
    });
}

fn is_pods(address: IpAddr) -> bool {
    address == Ipv4Addr::new(10, 244, 1, 2) || address == pod6()
}

fn pod6() -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2)
}

fn is_other_nodes(address: IpAddr) -> bool {
    ["10.244.2.0/24", "fd00:10:244:2::/64"]
        .iter()
        .any(|prefix| {
            prefix
                .parse::<IpNet>()
                .expect("a prefix")
                .contains(&address)
        })
}

/// In a tunnel to the other node, for one of its pods.
fn to_the_other_node(frame: &[u8]) -> Decoded {
    let (outer, inner) = decode::tunnel(frame);
    assert_eq!(outer.src, Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(outer.dst, Ipv4Addr::new(192, 0, 2, 2));
    let inner = decode::ip_frame(inner);
    assert_eq!(
        (inner.from_mac, inner.to_mac),
        (vtep_mac(1).0, vtep_mac(2).0)
    );
    assert!(is_other_nodes(inner.dst));
    inner
}

fn to_the_pod(frame: &[u8]) -> Decoded {
    let packet = decode::ip_frame(frame);
    assert_eq!((packet.from_mac, packet.to_mac), (GATEWAY.0, POD.0));
    assert!(is_pods(packet.dst));
    packet
}

/// What was delivered came from the other node's VTEP in the network's VNI, and its source lies
/// there. Read at fixed places, since only IPv4 leads here.
fn from_the_other_node(frame: &[u8], source: IpAddr) {
    assert_eq!(frame[12..14], [8, 0], "IPv4");
    assert_eq!(frame[26..30], [192, 0, 2, 2], "the VTEP");
    let udp = ETHERNET + usize::from(frame[14] & 15) * 4;
    assert_eq!(frame[udp + 2..udp + 4], 8472u16.to_be_bytes());
    let vxlan = &frame[udp + 8..udp + 16];
    assert!(vxlan[0] & 8 != 0, "the I flag");
    assert_eq!(vxlan[4..7], [0, 0, 1], "the VNI");
    assert!(is_other_nodes(source));
}

/// One hop less, and nothing else has changed that may not.
fn one_hop_further(run: &Run, packet: &Decoded, sent: &[u8], ingress: PortId) {
    let v4 = packet.src.is_ipv4();
    let went = &sent[ip_at(sent)..];
    let came = run.as_it_came(went.len());
    let changed: Vec<usize> = (0..went.len()).filter(|&at| came[at] != went[at]).collect();
    let hop = if v4 { 8 } else { 7 };
    assert_eq!(came[hop].checked_sub(1), Some(went[hop]), "one hop less");
    let marked: &[usize] = match (ingress, v4) {
        // The outer header's congestion mark (RFC 6040).
        (PortId::UNDERLAY, true) => &[1],
        (PortId::UNDERLAY, false) => &[1, 0],
        _ => &[],
    };
    let header_sum: &[usize] = if v4 { &[10, 11] } else { &[] };
    let others: Vec<usize> = changed
        .iter()
        .copied()
        .filter(|at| *at != hop && !marked.contains(at) && !header_sum.contains(at))
        .collect();
    assert!(
        is_a_checksum(&others) && others.iter().all(|at| *at >= packet.header_len),
        "{changed:?}"
    );
}

/// Whether these places can be those of one transport checksum, which the sender's kernel had left
/// undone: two bytes of TCP's and UDP's, four of SCTP's (RFC 9260, section 3.1).
fn is_a_checksum(places: &[usize]) -> bool {
    match (places.first(), places.last()) {
        (Some(first), Some(last)) => last - first < 4,
        _ => true,
    }
}

/// Where the innermost IP packet begins in what is sent.
fn ip_at(sent: &[u8]) -> usize {
    // Outer Ethernet, IPv4, UDP, VXLAN.
    let outer = ETHERNET + 20 + 8 + 8;
    if sent[..6] == POD.0 {
        ETHERNET
    } else {
        outer + ETHERNET
    }
}

/// The error about a packet, if it may have one, goes to the packet's sender and quotes it.
fn answered(mut run: Run, reader: &Reader, network: NetworkId, error: IcmpError) {
    let about = run.sent().to_vec();
    let mut at = Frame::new(&mut run.after, run.start, run.len).expect("inside");
    let Some(verdict) = answer(&reader.load(), &mut at, network, error) else {
        return;
    };
    assert!(deserves_an_error(&about), "{error:?} about {about:?}");
    let (v4, frame) = (about[0] >> 4 == 4, at.packet().to_vec());
    let (headers, frame) = match verdict {
        Verdict::Send(PORT) => (to_the_pod(&frame), frame),
        Verdict::Send(_) => (to_the_other_node(&frame), decode::tunnel(&frame).1.to_vec()),
        // Its sender is nobody who can be reached now.
        _ => return,
    };
    let (from, to): (IpAddr, IpAddr) = if v4 {
        let to: [u8; 4] = about[12..16].try_into().expect("four");
        (Ipv4Addr::new(10, 244, 1, 0).into(), to.into())
    } else {
        let to: [u8; 16] = about[8..24].try_into().expect("sixteen");
        let own = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0);
        (own.into(), to.into())
    };
    assert_eq!((headers.src, headers.dst), (from, to));
    let sliced = SlicedPacket::from_ethernet(&frame).expect("checked");
    let ip_len = frame.len() - ETHERNET;
    let quoted = match (sliced.transport, from, to) {
        (Some(TransportSlice::Icmpv4(icmp)), ..) => {
            // RFC 1812, section 4.3.2.3.
            assert!(ip_len <= 576, "{ip_len} bytes");
            assert_eq!(ones_complement_sum(icmp.slice()), 0xffff, "ICMP checksum");
            icmp.slice()[8..].to_vec()
        }
        (Some(TransportSlice::Icmpv6(icmp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            // RFC 4443, section 3.
            assert!(ip_len <= 1280, "{ip_len} bytes");
            let sound = icmp.is_checksum_valid(from.octets(), to.octets());
            assert!(sound, "ICMPv6 checksum");
            icmp.slice()[8..].to_vec()
        }
        (other, ..) => panic!("no ICMP: {other:?}"),
    };
    assert!(about.starts_with(&quoted), "quotes what came");
    assert!(quoted.len() >= about.len().min(28), "its headers");
}

/// Neither about an error, nor multicast, nor a fragment behind the first (RFC 1122, section 3.2.2;
/// RFC 4443, section 2.4 e).
fn deserves_an_error(ip: &[u8]) -> bool {
    if ip[0] >> 4 == 4 {
        let header = usize::from(ip[0] & 15) * 4;
        let later = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
        let is_error = ip[9] == 1
            && ip
                .get(header)
                .is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
        !later && !is_error && ip[16] < 224
    } else {
        let is_error = ip[6] == 58 && ip.get(40).is_none_or(|kind| *kind < 128);
        !is_error && ip[24] != 255
    }
}

/// Each piece fits and is sent, and together they are the packet.
fn cut(mut run: Run, reader: &Reader, network: NetworkId, mtu: u16) {
    let came = run.sent().to_vec();
    assert_eq!(came[0] >> 4, 4, "IPv6 is not cut on the way");
    assert_eq!(came[6] & 0x40, 0, "may be cut");
    let mut state = WorkerState::default();
    let mut whole = Frame::new(&mut run.after, run.start, run.len).expect("inside");
    let Ok(fragments) = prepare_fragments(&mut state, &mut whole, network, mtu) else {
        return;
    };
    let mut put_together = Vec::new();
    for index in 0..fragments.count() {
        let mut chunk = vec![0; CHUNK];
        let mut piece = Frame::new(&mut chunk, HEADROOM, 0).expect("inside");
        let written = fragments.write(index, whole.packet(), piece.room());
        let Some(len) = written else {
            // It would begin behind the last place that thirteen bits can name.
            let offset = usize::from(u16::from_be_bytes([came[6], came[7]]) & 0x1fff) * 8;
            assert!(offset + came.len() > 0xffff, "piece {index}");
            return;
        };
        assert!(len <= usize::from(mtu), "{len} bytes of at most {mtu}");
        piece.place(HEADROOM, len).expect("room");
        let verdict = originate(&reader.load(), &mut piece, network);
        let Verdict::Send(to) = verdict else {
            return assert_eq!(index, 0, "all pieces go one way: {verdict:?}");
        };
        let frame = piece.packet();
        let headers = match to {
            PORT => to_the_pod(frame),
            _ => to_the_other_node(frame),
        };
        assert_eq!(headers.hop_limit + 1, came[8], "one hop less");
        put_together.extend_from_slice(&frame[ip_at(frame) + headers.header_len..]);
    }
    let header = usize::from(came[0] & 15) * 4;
    let payload = &whole.packet()[header..];
    assert_eq!(put_together, payload, "the pieces are the packet");
    let changed: Vec<usize> = (0..payload.len())
        .filter(|&at| payload[at] != came[header + at])
        .collect();
    assert!(is_a_checksum(&changed), "{changed:?} of the payload");
}
