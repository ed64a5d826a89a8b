//! What a decision about a plain packet depends on.
//!
//! ```text
//!                             0          14      34
//!  from a pod                 +----------+-------+-----------+
//!                             | Ethernet | IPv4  | TCP, UDP  |
//!                             +----------+-------+-----------+
//!  0          14      34    42      50         64      84
//!  +----------+-------+-----+-------+----------+-------+-----------+
//!  | Ethernet | IPv4  | UDP | VXLAN | Ethernet | IPv4  | TCP, UDP  |   from the underlay
//!  +----------+-------+-----+-------+----------+-------+-----------+
//! ```

use viaduct_encap::checksum;
use viaduct_encap::ethernet::HEADER_LEN;
use viaduct_encap::layout::{ethernet, ipv4, over_v4, tcp, udp};
use viaduct_fib::PortId;

use super::Side;

/// Bytes in front of the inner Ethernet header.
const OUTER: usize = over_v4::INNER;
/// Places in an Ethernet frame with IPv4 without options: its IP header, and what is behind.
const IP: usize = HEADER_LEN;
const PORTS: usize = IP + ipv4::HEADER_LEN;
/// Bytes from an Ethernet header to the end of the ports.
const HEADERS: usize = PORTS + 4;
/// EtherType, version and header length of IPv4 without options (RFC 791, section 3.1).
const PLAIN_IPV4: [u8; 3] = [8, 0, ipv4::PLAIN];
/// Of the four bytes from an IPv4 header's flags on: more fragments and the fragment's offset, and
/// the protocol. Not don't-fragment, and not the TTL.
const FRAGMENT_AND_PROTOCOL: u32 = 0x3fff_00ff;
/// Bytes from the start of an IPv4 header without options to a transport checksum.
#[expect(clippy::cast_possible_truncation, reason = "36")]
const TCP_CHECKSUM: u8 = (ipv4::HEADER_LEN + tcp::CHECKSUM) as u8;
#[expect(clippy::cast_possible_truncation, reason = "26")]
const UDP_CHECKSUM: u8 = (ipv4::HEADER_LEN + udp::CHECKSUM) as u8;
/// Protocol numbers (IANA).
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The fields that decide about a plain packet, as they are on the wire. What makes it plain is
/// among them, so a packet with the key of a plain one is plain.
///
/// ```text
///  0, 1  Ethernet, version, header length, TOS
///  2     addresses
///  3     ports; fragment and protocol
///  4     VXLAN header
///  5     outer source, UDP destination port, outer version and TOS; or the port of the pod
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Key([u64; 6]);

impl Key {
    /// Reads a frame's. `None` when it is too short for one, or its outer headers are not plain.
    #[inline(always)]
    pub(super) fn read<S: Side>(packet: &[u8], ingress: PortId) -> Option<Self> {
        if !S::UNDERLAY {
            return Some(Self::new(packet.first_chunk()?, 0, u64::from(ingress.0)));
        }
        let (outer, rest) = packet.split_first_chunk::<OUTER>()?;
        let fields =
            u32::from_be_bytes(at(outer, over_v4::IP + ipv4::FRAGMENT)) & FRAGMENT_AND_PROTOCOL;
        if at(outer, ethernet::TYPE) != [8, 0] || fields != u32::from(UDP) {
            return None;
        }
        let source = u64::from(u32::from_ne_bytes(at(outer, over_v4::IP + ipv4::SOURCE)));
        let port = u64::from(u16::from_ne_bytes(at(
            outer,
            over_v4::UDP + udp::DESTINATION,
        )));
        let tos = u64::from(u16::from_ne_bytes(at(outer, over_v4::IP)));
        let sender = source | port << 32 | tos << 48;
        let vxlan = u64::from_ne_bytes(at(outer, over_v4::VXLAN));
        Some(Self::new(rest.first_chunk()?, vxlan, sender))
    }

    #[inline(always)]
    fn new(packet: &[u8; HEADERS], vxlan: u64, sender: u64) -> Self {
        let ports = u64::from(u32::from_ne_bytes(at(packet, PORTS)));
        let fields =
            u32::from_ne_bytes(at(packet, IP + ipv4::FRAGMENT)) & FRAGMENT_AND_PROTOCOL.to_be();
        Self([
            u64::from_ne_bytes(at(packet, 0)),
            u64::from_ne_bytes(at(packet, 8)),
            u64::from_ne_bytes(at(packet, IP + ipv4::SOURCE)),
            ports | u64::from(fields) << 32,
            vxlan,
            sender,
        ])
    }

    /// Whether both are the same, without a call and with one branch.
    #[inline(always)]
    pub(super) fn is(&self, other: &Self) -> bool {
        let words = self.0.iter().zip(&other.0);
        words.fold(0, |differences, (a, b)| differences | a ^ b) == 0
    }

    /// Where a plain packet's transport checksum is, in bytes behind the IP header's start; `None`
    /// for a packet that is not plain.
    pub(super) fn checksum_at<S: Side>(&self) -> Option<u8> {
        let [_, second, _, third, _, sender] = self.0;
        let [.., t0, t1, version, _] = second.to_ne_bytes();
        let [.., f0, f1, _, protocol] = third.to_ne_bytes();
        let [.., outer_version, _] = sender.to_ne_bytes();
        if [t0, t1, version] != PLAIN_IPV4 || [f0, f1] != [0, 0] {
            return None;
        }
        if S::UNDERLAY && outer_version != ipv4::PLAIN {
            return None;
        }
        match protocol {
            TCP => Some(TCP_CHECKSUM),
            UDP => Some(UDP_CHECKSUM),
            _ => None,
        }
    }

    /// Source and destination address and protocol, as the pseudo-header has them, folded.
    pub(super) fn pseudo_header(&self) -> u16 {
        let [_, _, addresses, third, _, _] = self.0;
        let [.., protocol] = third.to_ne_bytes();
        let addresses = checksum::sum(&addresses.to_ne_bytes());
        checksum::fold(addresses.wrapping_add(u64::from(protocol)))
    }

    /// Inner TOS.
    pub(super) fn tos(&self) -> u8 {
        let [_, second, _, _, _, _] = self.0;
        let [.., tos] = second.to_ne_bytes();
        tos
    }
}

/// The hash of a frame's flow. `None` when it is too short for one.
#[inline(always)]
pub(super) fn hash_of<S: Side>(packet: &[u8], seeds: [u64; 2]) -> Option<u32> {
    let inner = if S::UNDERLAY {
        packet.get(OUTER..)?
    } else {
        packet
    };
    let inner = inner.first_chunk::<HEADERS>()?;
    let ports = u32::from_ne_bytes(at(inner, PORTS));
    Some(hash(
        u64::from_ne_bytes(at(inner, IP + ipv4::SOURCE)),
        ports,
        seeds,
    ))
}

/// Of addresses and ports: the rest seldom differs where these do not. The seeds are secret.
#[inline(always)]
fn hash(addresses: u64, ports: u32, seeds: [u64; 2]) -> u32 {
    let [a, b] = seeds;
    let product = u128::from(addresses ^ a).wrapping_mul(u128::from(u64::from(ports) ^ b));
    #[expect(clippy::cast_possible_truncation, reason = "a part of both halves")]
    {
        (product as u64 ^ (product >> 64) as u64) as u32
    }
}

/// Bytes at a place; the compiler leaves no check where both are constants.
#[inline(always)]
pub(super) fn at<const N: usize, const M: usize>(bytes: &[u8; M], at: usize) -> [u8; N] {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().unwrap_or([0; N])
}
