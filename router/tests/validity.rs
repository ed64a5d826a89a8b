//! Tunnel packets as RFC 7348 allows them, and not: what a node takes from another.

mod fixture;

use std::net::{IpAddr, Ipv6Addr};

use fixture::{HEADROOM, PORT, chunk, node, vtep_mac, vtep_mac6};
use viaduct_encap::{MacAddr, checksum};
use viaduct_fib::{NetworkId, NextHop, NextHopState, PortId, TunnelId, Update};
use viaduct_router::{DropReason, Frame, Tick, Verdict, WorkerState, forward};

/// Where things are in a tunnel packet over IPv4.
const OUTER_IP: usize = 14;
const UDP: usize = OUTER_IP + 20;
const VXLAN: usize = UDP + 8;
const INNER: usize = VXLAN + 8;
const INNER_IP: usize = INNER + 14;

/// What the second node says of a good tunnel packet of the first, after `change`.
fn taken(change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let ((_one, from), (_two, to)) = (node(1, true), node(2, true));
    let (mut bytes, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 100);
    let mut state = WorkerState::default();
    let mut frame = Frame::new(&mut bytes, HEADROOM, len).expect("inside");
    let verdict = forward(&from.load(), &mut state, &mut frame, PORT, Tick(0));
    assert_eq!(verdict, Verdict::Send(PortId::UNDERLAY));
    let mut packet = frame.packet().to_vec();
    change(&mut packet);
    let mut chunk = vec![0; 2048];
    chunk[HEADROOM..HEADROOM + packet.len()].copy_from_slice(&packet);
    let mut frame = Frame::new(&mut chunk, HEADROOM, packet.len()).expect("inside");
    let underlay = PortId::UNDERLAY;
    forward(&to.load(), &mut state, &mut frame, underlay, Tick(0))
}

fn put16(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Makes the header checksum at `ip` right again.
fn sum_ip(packet: &mut [u8], ip: usize) {
    put16(packet, ip + 10, 0);
    let sum = checksum::fold(checksum::sum(&packet[ip..ip + 20]));
    put16(packet, ip + 10, !sum);
}

/// Writes the outer UDP checksum, or what a kernel leaves to hardware.
fn sum_udp(packet: &mut [u8], complete: bool) {
    let address = |at: usize| <[u8; 4]>::try_from(&packet[OUTER_IP + at..][..4]).expect("four");
    let (src, dst) = (address(12).into(), address(16).into());
    let pseudo = checksum::pseudo_header(src, dst, 17, packet.len() - UDP);
    let rest = if complete {
        checksum::sum(&packet[UDP..])
    } else {
        0
    };
    let sum = checksum::fold(pseudo + rest);
    put16(packet, UDP + 6, if complete { !sum } else { sum });
}

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> DropReason {
    match taken(change) {
        Verdict::Drop(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_rfc_lets_pass_passes() {
    assert_eq!(taken(|_| {}), Verdict::Send(PORT));
    // Any source port; an outer UDP checksum that is right, or left to hardware.
    assert_eq!(taken(|p| put16(p, UDP, 1)), Verdict::Send(PORT));
    assert_eq!(taken(|p| sum_udp(p, true)), Verdict::Send(PORT));
    assert_eq!(taken(|p| sum_udp(p, false)), Verdict::Send(PORT));
    // Ethernet padding behind the outer packet, and behind the inner one.
    assert_eq!(taken(|p| p.extend([0; 20])), Verdict::Send(PORT));
    let padded = taken(|p| {
        p.extend([0; 20]);
        let (ip, udp) = (
            u16::try_from(p.len() - OUTER_IP),
            u16::try_from(p.len() - UDP),
        );
        put16(p, OUTER_IP + 2, ip.expect("short"));
        put16(p, UDP + 4, udp.expect("short"));
        sum_ip(p, OUTER_IP);
    });
    assert_eq!(padded, Verdict::Send(PORT));
}

#[test]
fn what_is_no_tunnel_packet_is_dropped() {
    let outer = DropReason::BadOuter;
    assert_eq!(refused(|p| p[VXLAN] &= !8), outer, "no I flag");
    for (at, bits) in [(0, 0x80), (0, 0x04), (0, 1), (1, 8), (2, 1), (3, 3), (7, 1)] {
        let reason = refused(|p| p[VXLAN + at] |= bits);
        assert_eq!(reason, outer, "GBP, GPE, reserved: {at} {bits:#x}");
    }
    let wrong = DropReason::BadOuterChecksum;
    assert_eq!(refused(|p| put16(p, UDP + 6, 0x1234)), wrong);
    let flipped = refused(|p| {
        sum_udp(p, true);
        let last = p.len() - 1;
        p[last] ^= 1;
    });
    assert_eq!(flipped, wrong, "a byte of the payload");
    assert_eq!(refused(|p| p[OUTER_IP + 8] ^= 1), outer, "outer checksum");
    assert_eq!(
        refused(|p| p[OUTER_IP] = 0x44),
        outer,
        "outer header length"
    );
    for cut in [0, 10, UDP, UDP + 7, VXLAN + 7, INNER + 13] {
        assert_eq!(refused(|p| p.truncate(cut)), outer, "cut after {cut}");
    }
    let short = |length: u16| refused(move |p| put16(p, UDP + 4, length));
    assert_eq!(short(0), outer, "UDP length 0");
    assert_eq!(short(7), outer, "UDP length below its header");
    assert_eq!(short(u16::MAX), outer, "UDP length beyond the packet");
    assert_eq!(short(8 + 8 + 13), outer, "runt");
    let fragment = refused(|p| {
        put16(p, OUTER_IP + 6, 0x2000);
        sum_ip(p, OUTER_IP);
    });
    assert_eq!(fragment, outer, "an outer fragment");
}

/// What the second node says of a packet of a third one, whose VTEP is an IPv6 address, to this
/// inner MAC.
fn taken_over_ipv6(mac: MacAddr) -> Verdict {
    let vtep = |n: u16| Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, n);
    let (mut publisher, reader) = node(2, true);
    let next_hop = NextHop {
        vtep: IpAddr::V6(vtep(3)),
        state: NextHopState::Unresolved,
    };
    let tunnel = TunnelId(1);
    let remote = Update::PutRemote {
        network: NetworkId(0),
        prefix: "10.244.3.0/24".parse().expect("a prefix"),
        tunnel,
    };
    for update in [Update::PutNextHop { tunnel, next_hop }, remote] {
        publisher.apply(update).expect("sound");
    }
    publisher.publish().expect("no reader is stuck");
    let (bytes, len) = chunk([10, 244, 3, 2], [10, 244, 2, 2], 64, 100);
    let mut inner = bytes[HEADROOM..HEADROOM + len].to_vec();
    inner[..6].copy_from_slice(&mac.0);
    let udp = u16::try_from(8 + 8 + inner.len()).expect("short");
    // Ethernet, IPv6, UDP without a checksum, VXLAN with VNI 1.
    let mut packet = [[2; 12].as_slice(), &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    packet.extend(udp.to_be_bytes());
    packet.extend([17, 64]);
    packet.extend([vtep(3).octets(), vtep(2).octets()].concat());
    packet.extend([0xc0, 0, 0x21, 0x18]);
    packet.extend(udp.to_be_bytes());
    packet.extend([0, 0, 8, 0, 0, 0, 0, 0, 1, 0]);
    packet.extend(inner);
    let mut chunk = vec![0; 2048];
    chunk[HEADROOM..HEADROOM + packet.len()].copy_from_slice(&packet);
    let mut frame = Frame::new(&mut chunk, HEADROOM, packet.len()).expect("inside");
    let (mut state, underlay) = (WorkerState::default(), PortId::UNDERLAY);
    forward(&reader.load(), &mut state, &mut frame, underlay, Tick(0))
}

#[test]
fn each_family_of_the_underlay_has_its_vtep_mac() {
    let wrong = Verdict::Drop(DropReason::WrongVtepMac);
    assert_eq!(taken_over_ipv6(vtep_mac6(2)), Verdict::Send(PORT));
    assert_eq!(taken_over_ipv6(vtep_mac(2)), wrong);
    let over_ipv4 = |mac: MacAddr| taken(|p| p[INNER..INNER + 6].copy_from_slice(&mac.0));
    assert_eq!(over_ipv4(vtep_mac(2)), Verdict::Send(PORT));
    assert_eq!(over_ipv4(vtep_mac6(2)), wrong);
}

#[test]
fn what_is_for_somebody_else_is_dropped() {
    assert_eq!(refused(|p| p[VXLAN + 6] = 9), DropReason::UnknownVni);
    assert_eq!(refused(|p| put16(p, UDP + 2, 4789)), DropReason::UnknownVni);
    assert_eq!(refused(|p| p[INNER] ^= 2), DropReason::WrongVtepMac);
    // From a host that is no node, and an inner source of nobody.
    let outsider = refused(|p| {
        p[OUTER_IP + 15] = 9;
        sum_ip(p, OUTER_IP);
    });
    assert_eq!(outsider, DropReason::UnknownVtep);
    let nobody = refused(|p| {
        p[INNER_IP + 14] = 9;
        sum_ip(p, INNER_IP);
    });
    assert_eq!(nobody, DropReason::UnknownVtep);
}

#[test]
fn what_lies_inside_is_dropped() {
    let kind = |value: u16| refused(move |p| put16(p, INNER + 12, value));
    assert_eq!(kind(0x8100), DropReason::VlanTagged);
    let priority = refused(|p| {
        p.splice(INNER + 12..INNER + 12, [0x81, 0, 0, 0]);
        let (ip, udp) = (
            u16::try_from(p.len() - OUTER_IP),
            u16::try_from(p.len() - UDP),
        );
        put16(p, OUTER_IP + 2, ip.expect("short"));
        put16(p, UDP + 4, udp.expect("short"));
        sum_ip(p, OUTER_IP);
    });
    assert_eq!(priority, DropReason::VlanTagged, "of VID 0, too");
    assert_eq!(kind(0x88a8), DropReason::VlanTagged);
    assert_eq!(kind(0x0806), DropReason::NotIp);
    assert_eq!(
        kind(0x86dd),
        DropReason::Malformed,
        "IPv4 that says it is IPv6"
    );
    let length = |length: u16| {
        refused(move |p| {
            put16(p, INNER_IP + 2, length);
            sum_ip(p, INNER_IP);
        })
    };
    assert_eq!(length(19), DropReason::Malformed, "shorter than its header");
    assert_eq!(
        length(2000),
        DropReason::Malformed,
        "longer than the packet"
    );
    assert_eq!(refused(|p| p[INNER_IP + 10] ^= 1), DropReason::Malformed);
    let many = refused(|p| {
        p[INNER_IP + 16] = 224;
        sum_ip(p, INNER_IP);
    });
    assert_eq!(many, DropReason::Multicast);
}

/// A kernel that leaves the inner checksum to hardware has computed the outer one as if that were
/// finished already.
#[test]
fn an_outer_checksum_over_a_partial_inner_one_is_right() {
    let (mut bytes, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 100);
    let complete = taken(|p| {
        sum_udp(p, true);
        // The inner UDP checksum: now the sum of its pseudo-header.
        let pseudo = checksum::pseudo_header(
            [10, 244, 1, 2].into(),
            [10, 244, 2, 2].into(),
            17,
            p.len() - INNER_IP - 20,
        );
        put16(p, INNER_IP + 26, checksum::fold(pseudo));
        bytes = p.clone();
    });
    assert_eq!(complete, Verdict::Send(PORT));
    assert!(bytes.len() > len);
    let wrong = refused(|p| {
        *p = bytes.clone();
        p[UDP + 6] ^= 1;
    });
    assert_eq!(wrong, DropReason::BadOuterChecksum);
}
