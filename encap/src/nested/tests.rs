use super::carried::{exactly, exactly_ip, geneve, gre, gue, in_udp, vxlan};
use super::*;
use crate::ethernet;
use etherparse::PacketBuilder;
use proptest::prelude::*;

/// An IP packet with its checksum right, and where that is.
fn inner(v6: bool, tcp: bool, payload: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    match (v6, tcp) {
        (false, true) => PacketBuilder::ipv4([10, 1, 2, 3], [10, 4, 5, 6], 64)
            .tcp(80, 1025, 7, 999)
            .write(&mut out, payload),
        (false, false) => PacketBuilder::ipv4([10, 1, 2, 3], [10, 4, 5, 6], 64)
            .udp(53, 1025)
            .write(&mut out, payload),
        (true, true) => PacketBuilder::ipv6([1; 16], [7; 16], 64)
            .tcp(80, 1025, 7, 999)
            .write(&mut out, payload),
        (true, false) => PacketBuilder::ipv6([1; 16], [7; 16], 64)
            .udp(53, 1025)
            .write(&mut out, payload),
    }
    .unwrap();
    (out, if v6 { 40 } else { 20 } + if tcp { 16 } else { 6 })
}

fn ethernet(ip: &[u8], tags: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 7]);
    }
    frame.extend(kind(ip).to_be_bytes());
    frame.extend(ip);
    frame
}

fn kind(ip: &[u8]) -> u16 {
    if ip[0] >> 4 == 6 { 0x86dd } else { 0x0800 }
}

/// What each way puts between the outer IP header and the packet, its protocol, and whether
/// that is UDP.
fn wrapped(way: u8, ip: &[u8]) -> (u8, bool, Vec<u8>) {
    let with = |header: &[u8], rest: &[u8]| [header, rest].concat();
    let [k0, k1] = kind(ip).to_be_bytes();
    let family = if ip[0] >> 4 == 6 { 41 } else { 4 };
    match way {
        0 => (17, true, with(&[8, 0, 0, 0, 0, 0, 42, 0], &ethernet(ip, 0))),
        1 => (
            17,
            true,
            with(&[0x88, 0x40, 0, 9, 0, 0, 42, 0], &ethernet(ip, 1)),
        ),
        2 => (
            17,
            true,
            with(
                &[2, 0, 0x65, 0x58, 0, 0, 1, 0, 1, 2, 3, 1, 0, 0, 0, 0],
                &ethernet(ip, 0),
            ),
        ),
        3 => (17, true, with(&[0, 0, k0, k1, 0, 0, 1, 0], ip)),
        4 => (17, true, with(&[0, family, 0, 0], ip)),
        5 => (17, true, ip.to_vec()),
        6 => (47, false, with(&[0, 0, k0, k1], ip)),
        7 => (
            47,
            false,
            with(
                &[0x30, 0, 0x65, 0x58, 0, 0, 0, 1, 0, 0, 0, 2],
                &ethernet(ip, 2),
            ),
        ),
        8 => (
            47,
            false,
            with(&[0, 0, 0x88, 0x47, 0, 1, 0, 64, 0, 1, 1, 64], ip),
        ),
        9 => (
            47,
            false,
            with(
                &[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1, 0x10, 0, 0, 0, 0, 0, 0, 0],
                &ethernet(ip, 0),
            ),
        ),
        10 => (17, true, with(&[0, 0, k0, k1], ip)),
        _ => (family, false, ip.to_vec()),
    }
}

/// A packet in an outer one; the UDP checksum, if there is one, over what is inside.
fn outside(way: u8, v6: bool, with_sum: bool, ip: &[u8]) -> Vec<u8> {
    let (protocol, udp, mut payload) = wrapped(way, ip);
    if udp {
        let length = u16::try_from(payload.len() + 8).unwrap().to_be_bytes();
        let header = [&[0xc0, 1, 0x12, 0xb5], &length[..], &[0, 0]].concat();
        payload.splice(..0, header);
    }
    let length = u16::try_from(payload.len()).unwrap();
    let mut out = if v6 {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([protocol, 64]);
        header.extend([3; 32]);
        header
    } else {
        let mut header = vec![0x45, 0];
        header.extend((length + 20).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !fold(sum(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    };
    let at = out.len();
    out.extend(payload);
    if udp && with_sum {
        let packet = IpPacket::parse(&out, kind(&out)).unwrap();
        let pseudo = pseudo_header(packet.src, packet.dst, UDP, out.len() - at);
        let sum = !fold(pseudo + sum(&out[at..]));
        out[at + 6..at + 8].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

fn finish(bytes: &mut [u8]) -> Finished {
    let packet = IpPacket::parse(bytes, kind(bytes)).unwrap();
    finish_all(bytes, &packet)
}

proptest! {
    #[test]
    fn a_partial_checksum_is_finished_at_whatever_depth(
        ways in prop::collection::vec((0u8..12, any::<bool>(), any::<bool>()), 1..5),
        v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let (packet, field) = inner(v6, tcp, &payload);
        let mut good = packet.clone();
        for (way, v6, sum) in &ways {
            good = outside(*way, *v6, *sum, &good);
        }
        let mut sent = good.clone();
        let untouched = finish(&mut sent);
        prop_assert_eq!(untouched, Finished { finished: false, encapsulates: true });
        prop_assert_eq!(&sent, &good);
        let at = good.len() - packet.len();
        let p = IpPacket::parse(&packet, kind(&packet)).unwrap();
        let mark = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
        sent[at + field..at + field + 2].copy_from_slice(&mark.to_be_bytes());
        let finished = finish(&mut sent);
        prop_assert_eq!(finished, Finished { finished: true, encapsulates: true });
        prop_assert_eq!(sent, good);
    }

    #[test]
    fn any_payload_is_followed_inside_its_packet(bytes in prop::collection::vec(any::<u8>(), 0..200), protocol: u8) {
        let _ = carried(protocol, &bytes);
        for way in 0..12 {
            let (_, _, payload) = wrapped(way, &[&[0x45], &bytes[..]].concat());
            let _ = (in_udp(&payload), carried(protocol, &payload));
        }
    }
}

/// Payloads of UDP of every kind that is known, those of [`wrapped`] and more.
fn payload_of(way: u8, ip: &[u8]) -> Vec<u8> {
    let [k0, k1] = kind(ip).to_be_bytes();
    let next = if kind(ip) == ethernet::IPV6 { 2 } else { 1 };
    match way {
        0..=11 => wrapped(way, ip).2,
        12 => [&[0x0c, 0, 0, next, 0, 0, 42, 0], ip].concat(),
        13 => [&[0x0c, 0, 0, 3, 0, 0, 42, 0], &ethernet(ip, 0)[..]].concat(),
        14 => [&[0, GRE, 0, 0, 0, 0, k0, k1], ip].concat(),
        15 => [&[0, 0, 0x88, 0x47, 0, 0, 42, 0, 0, 1, 1, 64], ip].concat(),
        _ => {
            let erspan = [0x10, 0, 0x22, 0xeb, 0, 0, 0, 1, 0x20, 0, 0, 0, 0, 0, 0, 0];
            [&erspan[..], &[0; 4], &ethernet(ip, 0)].concat()
        }
    }
}

/// Bytes that tell encapsulations apart, or nearly do.
fn telling() -> impl Strategy<Value = u8> {
    let known = vec![
        0, 1, 2, 3, 4, 8, 0xc, 0x10, 0x20, 0x22, 0x40, 0x45, 0x47, 0x48, 0x58, 0x60, 0x65, 0x80,
        0x86, 0x88, 0xb0, 0xbe, 0xdd, 0xeb, 41, 47,
    ];
    prop_oneof![prop::sample::select(known), any::<u8>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn what_carries_a_packet_has_a_known_start(
        way in 0u8..17, v6: bool, changes in prop::collection::vec((0usize..8, telling()), 0..4),
        cut in 0usize..100, longer in 0usize..3,
    ) {
        let mut payload = payload_of(way, &inner(v6, false, &[7; 20]).0);
        prop_assert!(in_udp(&payload).is_some(), "{:02x?}", payload);
        for (at, byte) in changes {
            payload[at] = byte;
        }
        payload.extend(vec![0; longer]);
        payload.truncate(payload.len().min(if cut < 50 { cut } else { usize::MAX }));
        let carries = geneve(&payload).is_some()
            || vxlan(&payload).is_some()
            || exactly_ip(&payload, 0).is_some()
            || gue(&payload).is_some()
            || gre(&payload).and_then(|carried| exactly(&payload, carried)).is_some();
        prop_assert!(has_known_start(&payload) || !carries, "{:02x?}", payload);
    }
}

/// A program that sends a frame as it saw it has computed its datagram's checksum over that.
#[test]
fn what_a_right_checksum_covers_is_left_alone() {
    let (mut packet, field) = inner(false, true, &[7; 40]);
    let p = IpPacket::parse(&packet, kind(&packet)).unwrap();
    let mark = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
    packet[field..field + 2].copy_from_slice(&mark.to_be_bytes());
    let mut sent = outside(0, false, true, &packet);
    let before = sent.clone();
    assert!(!finish(&mut sent).finished);
    assert_eq!(sent, before);
}

#[test]
fn ordinary_payloads_carry_nothing() {
    let dns = [
        0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'f', b'o', b'o', 0, 0, 1, 0, 1,
    ];
    let rtp = [0x80, 0, 0x12, 0x34, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8];
    let quic = [0x45; 64];
    for payload in [&dns[..], &rtp, &quic, &[], &[0; 7], &[0; 64], &[0xff; 64]] {
        assert_eq!(in_udp(payload), None, "{payload:?}");
    }
}
