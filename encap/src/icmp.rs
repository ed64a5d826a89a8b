//! ICMP errors that a router makes (RFC 792, RFC 1191, RFC 1812 section 4.3;
//! RFC 4443).
//!
//! ```text
//!  0           20 or 40                       28 or 48
//!  +-----------+------+------+----------+-----+---------------------------
//!  | IP header | type | code | checksum | MTU | the packet, from its start
//!  +-----------+------+------+----------+-----+---------------------------
//! ```
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::IpPacket;
use crate::checksum::{fold, pseudo_header, sum};
use crate::flow::flow_hash;
use crate::ip::Fragment;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_LEN: usize = 8;
const V4_LEN: usize = 20 + ICMP_LEN;
const V6_LEN: usize = 40 + ICMP_LEN;
/// The longest error: what every IPv4 host takes (RFC 1812, section 4.3.2.3).
const V4_MAX: usize = 576;
/// The same for IPv6 (RFC 4443, section 2.4 c).
const V6_MAX: usize = 1280;
/// Internetwork control (RFC 1812, section 4.3.2.5). ICMPv6 errors have no class, as the kernel's.
const TOS: u8 = 0xc0;
const HOP_LIMIT: u8 = 64;

/// What a sender is told about its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Longer than the way takes, and not to be cut.
    PacketTooBig {
        /// Bytes of IP packet that the way takes.
        mtu: u16,
    },
}

impl IcmpError {
    /// Type, code and the four bytes behind the checksum, for ICMP.
    const fn v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::TimeExceeded => (11, 0, [0; 4]),
            Self::PacketTooBig { mtu } => {
                let [a, b] = mtu.to_be_bytes();
                (3, 4, [0, 0, a, b]) // RFC 1191, section 4
            }
        }
    }

    /// The same for ICMPv6.
    const fn v6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::TimeExceeded => (3, 0, [0; 4]),
            Self::PacketTooBig { mtu } => {
                let [a, b] = mtu.to_be_bytes();
                (2, 0, [0, 0, a, b])
            }
        }
    }
}

/// Whether an error may be sent about the packet that `ip` begins with: not
/// about errors, later fragments, or what came from or went to a group (RFC 1812,
/// section 4.3.2.7; RFC 4443, section 2.4 e).
pub fn may_answer(ip: &[u8], packet: &IpPacket) -> bool {
    let sender_is_one = match packet.src {
        IpAddr::V4(a) => {
            !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast())
        }
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast()),
    };
    let receiver_is_one = match packet.dst {
        IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => !a.is_multicast(),
    };
    sender_is_one
        && receiver_is_one
        && packet.fragment != Fragment::Later
        && !may_be_error(ip, packet)
}

/// An ICMP packet too short to say what it is may be one.
fn may_be_error(ip: &[u8], packet: &IpPacket) -> bool {
    let l4 = ip.get(packet.l4_offset..packet.len);
    let kind = l4.and_then(<[u8]>::first);
    match (packet.protocol, kind) {
        (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ICMPV6, Some(&kind)) => kind < 128,
        (ICMP | ICMPV6, None) => true,
        _ => false,
    }
}

/// Writes an error from `source` in front of the packet that it is about, which
/// begins at `room[at]` and whose first part stays in place as the quote. Returns
/// where in `room` the error begins and its bytes; `None`, and nothing changes,
/// when the headers do not fit in front, or `source` is of the other family.
pub fn write(
    error: IcmpError,
    source: IpAddr,
    room: &mut [u8],
    at: usize,
    packet: &IpPacket,
) -> Option<(usize, usize)> {
    let (header_len, max) = match source {
        IpAddr::V4(_) => (V4_LEN, V4_MAX),
        IpAddr::V6(_) => (V6_LEN, V6_MAX),
    };
    let start = at.checked_sub(header_len)?;
    let len = packet.len.checked_add(header_len)?.min(max);
    let bytes = room.get_mut(start..start.checked_add(len)?)?;
    match (source, packet.src) {
        (IpAddr::V4(from), IpAddr::V4(to)) => write_v4(error.v4(), from, to, bytes)?,
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            write_v6(error.v6(), flow_label(packet), from, to, bytes)?;
        }
        _ => return None,
    }
    Some((start, len))
}

fn write_v4(kind: (u8, u8, [u8; 4]), from: Ipv4Addr, to: Ipv4Addr, bytes: &mut [u8]) -> Option<()> {
    let [l0, l1] = u16::try_from(bytes.len()).ok()?.to_be_bytes();
    let (header, icmp) = bytes.split_at_mut_checked(20)?;
    let fields = [0x45, TOS, l0, l1, 0, 0, 0, 0, HOP_LIMIT, ICMP, 0, 0];
    fill(header, &[&fields, &from.octets(), &to.octets()]);
    let checksum = !fold(sum(header));
    put_checksum(header, 10, checksum);
    write_icmp(kind, icmp, 0)
}

/// Errors about one flow take one path (RFC 6437, section 3); never 0, which is no label.
fn flow_label(packet: &IpPacket) -> u32 {
    (flow_hash(packet) & 0xf_ffff).max(1)
}

fn write_v6(
    kind: (u8, u8, [u8; 4]),
    label: u32,
    from: Ipv6Addr,
    to: Ipv6Addr,
    bytes: &mut [u8],
) -> Option<()> {
    let (header, icmp) = bytes.split_at_mut_checked(40)?;
    let [l0, l1] = u16::try_from(icmp.len()).ok()?.to_be_bytes();
    let [v0, v1, v2, v3] = (0x6000_0000 | label).to_be_bytes();
    let fields = [v0, v1, v2, v3, l0, l1, ICMPV6, HOP_LIMIT];
    fill(header, &[&fields, &from.octets(), &to.octets()]);
    let pseudo = pseudo_header(IpAddr::V6(from), IpAddr::V6(to), ICMPV6, icmp.len());
    write_icmp(kind, icmp, pseudo)
}

fn write_icmp((kind, code, rest): (u8, u8, [u8; 4]), icmp: &mut [u8], pseudo: u64) -> Option<()> {
    let header = icmp.first_chunk_mut::<ICMP_LEN>()?;
    let [a, b, c, d] = rest;
    *header = [kind, code, 0, 0, a, b, c, d];
    let checksum = !fold(pseudo.wrapping_add(sum(icmp)));
    put_checksum(icmp, 2, checksum);
    Some(())
}

fn fill(to: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in to.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

fn put_checksum(header: &mut [u8], at: usize, checksum: u16) {
    if let Some(field) = header.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *field = checksum.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet;
    use etherparse::{
        Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpSlice, PacketBuilder, icmpv4, icmpv6,
    };
    use proptest::prelude::*;

    const AT: usize = 64;

    fn udp(v6: bool, payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let payload = vec![9; payload];
        if v6 {
            PacketBuilder::ipv6([0x20; 16], [0xfd; 16], 9)
                .udp(1, 2)
                .write(&mut out, &payload)
        } else {
            PacketBuilder::ipv4([10, 1, 1, 1], [10, 1, 2, 2], 9)
                .udp(1, 2)
                .write(&mut out, &payload)
        }
        .unwrap();
        out
    }

    fn parse(ip: &[u8]) -> IpPacket {
        let six = ip[0] >> 4 == 6;
        IpPacket::parse(ip, if six { ethernet::IPV6 } else { ethernet::IPV4 }).unwrap()
    }

    fn error(error: IcmpError, source: IpAddr, ip: &[u8]) -> Option<Vec<u8>> {
        let mut room = vec![0xee; AT];
        room.extend_from_slice(ip);
        let (start, len) = write(error, source, &mut room, AT, &parse(ip))?;
        Some(room[start..start + len].to_vec())
    }

    proptest! {
        #[test]
        fn an_independent_decoder_reads_v4(payload in 0usize..2000, mtu: u16, big: bool) {
            let ip = udp(false, payload);
            let what = if big { IcmpError::PacketTooBig { mtu } } else { IcmpError::TimeExceeded };
            let made = error(what, [10, 1, 1, 0].into(), &ip).unwrap();
            prop_assert!(made.len() <= V4_MAX);
            let read = IpSlice::from_slice(&made).unwrap();
            let v4 = read.ipv4().unwrap().header();
            prop_assert_eq!(v4.header_checksum(), v4.to_header().calc_header_checksum());
            prop_assert_eq!((v4.source(), v4.destination()), ([10, 1, 1, 0], [10, 1, 1, 1]));
            let icmp = Icmpv4Slice::from_slice(read.payload().payload).unwrap();
            prop_assert_eq!(icmp.checksum(), icmp.header().icmp_type.calc_checksum(icmp.payload()));
            let expected = if big {
                Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu })
            } else {
                Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
            };
            prop_assert_eq!(icmp.icmp_type(), expected);
            let quoted = icmp.payload();
            prop_assert_eq!(quoted, &ip[..quoted.len()]);
            prop_assert_eq!(quoted.len(), ip.len().min(V4_MAX - V4_LEN));
            prop_assert!(!may_answer(&made, &parse(&made)), "an error about an error");
        }

        #[test]
        fn an_independent_decoder_reads_v6(payload in 0usize..2000, mtu: u16, big: bool) {
            let ip = udp(true, payload);
            let what = if big { IcmpError::PacketTooBig { mtu } } else { IcmpError::TimeExceeded };
            let made = error(what, IpAddr::from([0xfe; 16]), &ip).unwrap();
            prop_assert!(made.len() <= V6_MAX);
            let read = IpSlice::from_slice(&made).unwrap();
            let v6 = read.ipv6().unwrap().header();
            prop_assert!(v6.flow_label().value() != 0);
            let icmp = Icmpv6Slice::from_slice(read.payload().payload).unwrap();
            prop_assert!(icmp.is_checksum_valid(v6.source(), v6.destination()));
            let expected = if big {
                Icmpv6Type::PacketTooBig { mtu: mtu.into() }
            } else {
                Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded)
            };
            prop_assert_eq!(icmp.icmp_type(), expected);
            let quoted = icmp.payload();
            prop_assert_eq!(quoted, &ip[..quoted.len()]);
            prop_assert_eq!(quoted.len(), ip.len().min(V6_MAX - V6_LEN));
            prop_assert!(!may_answer(&made, &parse(&made)), "an error about an error");
        }

        #[test]
        fn any_packet_has_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 20..200), v6: bool, at in 0usize..100) {
            let mut bytes = bytes;
            bytes[0] = if v6 { 0x60 } else { 0x45 };
            if let Ok(p) = IpPacket::parse(&bytes, if v6 { ethernet::IPV6 } else { ethernet::IPV4 }) {
                let _ = may_answer(&bytes, &p);
                let _ = write(IcmpError::TimeExceeded, p.dst, &mut bytes, at, &p);
            }
        }
    }

    #[test]
    fn some_packets_get_no_answer() {
        let ip = udp(false, 9);
        let good = parse(&ip);
        assert!(may_answer(&ip, &good));
        let answered = |change: fn(&mut IpPacket)| {
            let mut packet = good;
            change(&mut packet);
            may_answer(&ip, &packet)
        };
        assert!(!answered(|p| p.src = [127, 0, 0, 1].into()));
        assert!(!answered(|p| p.src = [0, 0, 0, 0].into()));
        assert!(!answered(|p| p.src = [224, 0, 0, 1].into()));
        assert!(!answered(|p| p.dst = [255, 255, 255, 255].into()));
        assert!(!answered(|p| p.dst = [224, 0, 0, 1].into()));
        assert!(!answered(|p| p.fragment = Fragment::Later));
        assert!(answered(|p| p.fragment = Fragment::First));
        // An ICMP packet that ends before its type, an echo request, an error.
        assert!(!answered(|p| (p.protocol, p.l4_offset) = (ICMP, p.len)));
        for (kind, expected) in [(8u8, true), (0, true), (3, false), (11, false)] {
            let mut ip = ip.clone();
            ip[20] = kind;
            let packet = IpPacket {
                protocol: ICMP,
                ..good
            };
            assert_eq!(may_answer(&ip, &packet), expected, "type {kind}");
        }
    }

    #[test]
    fn without_room_or_family_nothing_changes() {
        let ip = udp(false, 9);
        let mut room = ip.clone();
        let p = parse(&ip);
        let too_big = IcmpError::PacketTooBig { mtu: 1450 };
        assert_eq!(write(too_big, [10, 0, 0, 1].into(), &mut room, 0, &p), None);
        assert_eq!(error(too_big, IpAddr::from([1; 16]), &ip), None);
        assert_eq!(room, ip);
    }
}
