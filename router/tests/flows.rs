//! What the flow cache answers is what the stages decide, byte for byte.

mod fixture;

use fixture::{HEADROOM, PORT, chunk, node};
use proptest::prelude::*;
use viaduct_encap::IpPacket;
use viaduct_encap::checksum::{fold, pseudo_header, sum};
use viaduct_fib::{NetworkId, NextHop, NextHopState, PortId, Publisher, Reader, TunnelId, Update};
use viaduct_router::{Frame, Tick, Verdict, WorkerState, forward};

const ETHERNET: usize = 14;
const OUTER: usize = 50;

/// A frame, and where it comes from.
#[derive(Clone, Debug)]
struct Packet {
    from: PortId,
    bytes: Vec<u8>,
}

impl Packet {
    /// Makes the checksums of the IPv4 headers right, as far as the frame has them.
    fn mend(mut self) -> Self {
        let outer = (self.from == PortId::UNDERLAY).then_some(ETHERNET);
        for at in [outer, Some(self.ip())].into_iter().flatten() {
            if let Some(header) = self.bytes.get_mut(at..at + 20) {
                header[10..12].fill(0);
                let checksum = !fold(sum(header));
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        self
    }

    /// Where the inner IP header is.
    fn ip(&self) -> usize {
        match self.from {
            PortId::UNDERLAY => OUTER + ETHERNET,
            _ => ETHERNET,
        }
    }
}

/// What forwarding has made of a packet.
#[derive(Debug, PartialEq)]
struct Made {
    verdict: Verdict,
    start: usize,
    bytes: Vec<u8>,
    checksums_finished: u64,
}

fn run(reader: &Reader, state: &mut WorkerState, packet: &Packet) -> Made {
    let mut chunk = vec![0; 2048];
    let len = packet.bytes.len();
    chunk[HEADROOM..HEADROOM + len].copy_from_slice(&packet.bytes);
    let mut frame = Frame::new(&mut chunk, HEADROOM, len).unwrap();
    let before = state.checksums_finished;
    let verdict = forward(&reader.load(), state, &mut frame, packet.from, Tick(0));
    Made {
        verdict,
        start: frame.start(),
        bytes: frame.packet().to_vec(),
        checksums_finished: state.checksums_finished - before,
    }
}

fn from_pod(src: [u8; 4], dst: [u8; 4], payload: usize) -> Packet {
    let (chunk, len) = chunk(src, dst, 64, payload);
    Packet {
        from: PORT,
        bytes: chunk[HEADROOM..HEADROOM + len].to_vec(),
    }
}

/// The same as TCP, its checksum left to hardware.
fn partial_tcp() -> Packet {
    let mut packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 40);
    let ip = &mut packet.bytes[ETHERNET..];
    ip[9] = 6;
    let p = IpPacket::parse(&mended(ip), 0x0800).unwrap();
    let mark = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
    ip[36..38].copy_from_slice(&mark.to_be_bytes());
    packet.mend()
}

fn mended(ip: &[u8]) -> Vec<u8> {
    let mut ip = ip.to_vec();
    ip[10..12].fill(0);
    let checksum = !fold(sum(&ip[..20]));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip
}

/// As node 2 sends it to the pod of node 1.
fn from_node(payload: usize) -> Packet {
    let (_publisher, reader) = node(2, true);
    let packet = from_pod([10, 244, 2, 2], [10, 244, 1, 2], payload);
    let made = run(&reader, &mut WorkerState::default(), &packet);
    assert_eq!(made.verdict, Verdict::Send(PortId::UNDERLAY));
    Packet {
        from: PortId::UNDERLAY,
        bytes: made.bytes,
    }
}

fn packets() -> Vec<Packet> {
    let (pod, peer) = ([10, 244, 1, 2], [10, 244, 2, 2]);
    vec![
        from_pod(pod, peer, 30),
        partial_tcp(),
        from_pod(pod, pod, 30),
        from_node(30),
    ]
}

/// Both ways are the same, the first time and the next. How often the stages were needed.
fn compare(reader: &Reader, warm: &mut WorkerState, packet: &Packet) -> u64 {
    let before = warm.staged;
    let expected = run(reader, &mut WorkerState::default(), packet);
    for time in ["first", "second"] {
        assert_eq!(run(reader, warm, packet), expected, "{time}: {packet:02x?}");
    }
    warm.staged - before
}

#[test]
fn the_second_packet_of_a_flow_goes_through_no_stage() {
    let (_publisher, reader) = node(1, true);
    for packet in packets() {
        let mut state = WorkerState::new(64);
        assert_eq!(compare(&reader, &mut state, &packet), 1, "{packet:02x?}");
    }
}

/// Each byte of each header with each value, in a packet of a flow that is known: whatever the
/// byte is, the cache either gives the stages' answer or none.
#[test]
fn a_changed_byte_changes_both_ways_alike() {
    let (_publisher, reader) = node(1, true);
    for good in packets() {
        let mut warm = WorkerState::new(4096);
        compare(&reader, &mut warm, &good);
        for at in 0..good.bytes.len() {
            for flip in 1..=255 {
                let mut bad = good.clone();
                bad.bytes[at] ^= flip;
                compare(&reader, &mut warm, &bad);
                compare(&reader, &mut warm, &bad.mend());
            }
        }
        for len in 0..good.bytes.len() {
            let mut bad = good.clone();
            bad.bytes.truncate(len);
            compare(&reader, &mut warm, &bad);
        }
        assert_eq!(compare(&reader, &mut warm, &good), 0, "still known");
    }
}

proptest! {
    #[test]
    fn changed_packets_are_the_same_both_ways(
        which in 0usize..4, payload in 0usize..1500, mend: bool,
        changes in prop::collection::vec((0usize..130, any::<u8>()), 0..5), padding in 0usize..20,
    ) {
        let (_publisher, reader) = node(1, true);
        let (pod, peer) = ([10, 244, 1, 2], [10, 244, 2, 2]);
        let good = match which {
            0 => from_pod(pod, peer, payload),
            1 => partial_tcp(),
            2 => from_pod(pod, pod, payload),
            _ => from_node(payload.min(1400)),
        };
        let mut warm = WorkerState::new(64);
        compare(&reader, &mut warm, &good);
        let mut other = good;
        for (at, value) in changes {
            if let Some(byte) = other.bytes.get_mut(at) { *byte = value; }
        }
        other.bytes.resize(other.bytes.len() + padding, 0);
        compare(&reader, &mut warm, &if mend { other.mend() } else { other });
    }
}

/// Flows that differ in their ports, many more than there are places: each is right, those that
/// are kept and those that were given up.
#[test]
fn more_flows_than_places() {
    let (_publisher, reader) = node(1, true);
    let mut state = WorkerState::new(64);
    let flow = |n: u16| {
        let mut packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 30);
        packet.bytes[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&n.to_be_bytes());
        packet
    };
    for n in (0..3000).chain(0..3000) {
        compare(&reader, &mut state, &flow(n));
    }
    // What was used last is kept.
    assert_eq!(compare(&reader, &mut state, &flow(2999)), 0);
}

/// Many flows, as many places: nearly all are kept, also where two have the same tag.
#[test]
fn as_many_flows_as_half_the_places() {
    let (_publisher, reader) = node(1, true);
    let mut state = WorkerState::new(4096);
    let flow = |n: u16| {
        let mut packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 30);
        packet.bytes[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&n.to_be_bytes());
        packet
    };
    let learned: u64 = (0..2048)
        .map(|n| compare(&reader, &mut state, &flow(n)))
        .sum();
    assert_eq!(learned, 2048, "each once");
    let again: u64 = (0..2048)
        .map(|n| compare(&reader, &mut state, &flow(n)))
        .sum();
    assert!(again < 300, "{again} of 2048 flows were given up");
}

fn to_another_node(publisher: &mut Publisher) {
    let vtep = [192, 0, 2, 77].into();
    let next_hop = NextHop {
        vtep,
        state: NextHopState::Resolved(fixture::tunnel(1, vtep)),
    };
    let tunnel = TunnelId(0);
    publisher
        .apply(Update::PutNextHop { tunnel, next_hop })
        .unwrap();
    publisher.publish().unwrap();
}

#[test]
fn a_new_table_is_asked_anew() {
    let (mut publisher, reader) = node(1, true);
    let mut state = WorkerState::new(64);
    let packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 30);
    let before = run(&reader, &mut state, &packet);
    to_another_node(&mut publisher);
    assert_eq!(compare(&reader, &mut state, &packet), 1);
    let after = run(&reader, &mut state, &packet);
    assert_eq!(before.bytes[30..34], [192, 0, 2, 2]);
    assert_eq!(after.bytes[30..34], [192, 0, 2, 77], "outer destination");
    publisher
        .apply(Update::RemoveRemote {
            network: NetworkId(0),
            prefix: "10.244.2.0/24".parse().unwrap(),
        })
        .unwrap();
    publisher.publish().unwrap();
    assert!(matches!(
        run(&reader, &mut state, &packet).verdict,
        Verdict::Punt(_)
    ));
}

#[test]
fn limited_pods_are_measured_packet_by_packet() {
    let (mut publisher, reader) = node(1, true);
    let mut port = *reader.load().port(PORT).unwrap();
    port.limits.from_pod = Some(viaduct_fib::Rate::new(8000, 8000));
    publisher.apply(Update::PutPort { id: PORT, port }).unwrap();
    publisher.publish().unwrap();
    let mut state = WorkerState::new(64);
    let packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 30);
    assert_eq!(compare(&reader, &mut state, &packet), 2, "not kept");
}

/// A packet in the pod's own VXLAN, its checksum left to hardware.
fn partial_inside() -> Packet {
    let inside = partial_tcp().bytes;
    let mut packet = from_pod([10, 244, 1, 2], [10, 244, 2, 2], 8 + inside.len());
    let at = ETHERNET + 28;
    packet.bytes[at..at + 8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 42, 0]);
    packet.bytes[at + 8..].copy_from_slice(&inside);
    packet.bytes[at - 2..at].fill(0);
    packet
}

#[test]
fn a_checksum_inside_a_pods_own_tunnel_is_finished_each_time() {
    let (_publisher, reader) = node(1, true);
    let mut state = WorkerState::new(64);
    let packet = partial_inside();
    assert_eq!(compare(&reader, &mut state, &packet), 2, "not kept");
    let made = run(&reader, &mut state, &packet);
    assert_eq!(made.checksums_finished, 1);
    let inner = made.bytes.len() - (partial_tcp().bytes.len() - ETHERNET);
    let ip = &made.bytes[inner..];
    let p = IpPacket::parse(ip, 0x0800).unwrap();
    let l4 = &ip[p.l4_offset..];
    let whole = pseudo_header(p.src, p.dst, p.protocol, l4.len()) + sum(l4);
    assert_eq!(fold(whole), 0xffff, "complete");
}
