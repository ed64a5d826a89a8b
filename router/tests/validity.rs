//! Tunnel packets as RFC 7348 allows them, and not: what a node takes from another.

mod fixture;

use fixture::{HEADROOM, PORT, chunk, node};
use viaduct_encap::checksum;
use viaduct_fib::PortId;
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

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> DropReason {
    match taken(change) {
        Verdict::Drop(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_rfc_lets_pass_passes() {
    assert_eq!(taken(|_| {}), Verdict::Send(PORT));
    // Reserved bits and bytes are ignored on receipt.
    assert_eq!(taken(|p| p[VXLAN] |= 0xf7), Verdict::Send(PORT));
    assert_eq!(
        taken(|p| p[VXLAN + 1..VXLAN + 4].fill(0xff)),
        Verdict::Send(PORT)
    );
    assert_eq!(taken(|p| p[VXLAN + 7] = 0xff), Verdict::Send(PORT));
    // Any source port; an outer UDP checksum, right or wrong, is not looked at.
    assert_eq!(taken(|p| put16(p, UDP, 1)), Verdict::Send(PORT));
    assert_eq!(taken(|p| put16(p, UDP + 6, 0x1234)), Verdict::Send(PORT));
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

#[test]
fn what_is_for_somebody_else_is_dropped() {
    assert_eq!(refused(|p| p[VXLAN + 6] = 9), DropReason::UnknownVni);
    assert_eq!(refused(|p| put16(p, UDP + 2, 4789)), DropReason::UnknownVni);
    assert_eq!(refused(|p| p[INNER] ^= 2), DropReason::WrongVtepMac);
    // From a host that is no node, and an inner source of nobody.
    let stranger = refused(|p| {
        p[OUTER_IP + 15] = 9;
        sum_ip(p, OUTER_IP);
    });
    assert_eq!(stranger, DropReason::UnknownVtep);
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
