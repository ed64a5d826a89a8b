//! IPv4 (RFC 791) and IPv6 (RFC 8200), as far as forwarding needs them.
#![allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use crate::layout::ipv4;
use crate::{checksum, ethernet, options};

/// IP protocol numbers (IANA) that have ports.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;

/// More IPv6 extension headers than this are refused, so that no packet can
/// make a worker walk for long.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Why bytes are not an IP packet that can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// The Ethernet payload is neither IPv4 nor IPv6.
    NotIp,
    /// The frame ends before a header does.
    Truncated,
    /// Version, header length or total length contradict each other.
    BadHeader,
    /// The header states more bytes than the frame has.
    BadLength,
    /// The IPv4 header checksum is wrong.
    BadChecksum,
    /// The chain of IPv6 extension headers is broken or too long.
    BadExtension,
    /// An option is malformed, or unknown and not to be passed over.
    BadOption,
    /// IPv4 source routing, which no host takes part in today.
    SourceRoute,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotIp => "the frame carries neither IPv4 nor IPv6",
            Self::Truncated => "the frame ends inside a header",
            Self::BadHeader => "the IP header contradicts itself",
            Self::BadLength => "the IP header states more bytes than the frame has",
            Self::BadChecksum => "the IPv4 header checksum is wrong",
            Self::BadExtension => "the chain of IPv6 extension headers is broken or too long",
            Self::BadOption => "an IP option is malformed, or unknown and not to be passed over",
            Self::SourceRoute => "the packet has an IPv4 source route",
        })
    }
}

impl std::error::Error for ParseError {}

/// Where a packet stands in its original datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: has the upper-layer header.
    First,
    /// A later fragment: has none.
    Later,
}

/// What forwarding needs of an IP packet, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class: DSCP (6 bits), ECN (2 bits).
    pub tos: u8,
    /// Upper-layer protocol, after extension headers.
    pub protocol: u8,
    /// Bytes from the IP header's start to the upper-layer header.
    pub l4_offset: usize,
    /// Bytes of the packet as its header states; a frame may be longer
    /// (Ethernet padding).
    pub len: usize,
    /// Which part of its datagram this is.
    pub fragment: Fragment,
    /// May not be fragmented on its way (always true for IPv6).
    pub dont_fragment: bool,
    /// Source and destination port of TCP, UDP and SCTP; `None` otherwise and
    /// for later fragments.
    pub ports: Option<(u16, u16)>,
}

impl IpPacket {
    /// Reads the packet that starts at `ip[0]`.
    ///
    /// # Errors
    /// Says what is wrong with the packet.
    #[inline(always)]
    pub fn parse(ip: &[u8], ether_type: u16) -> Result<Self, ParseError> {
        match ether_type {
            ethernet::IPV4 => Self::parse_v4(ip),
            ethernet::IPV6 => Self::parse_v6(ip),
            _ => Err(ParseError::NotIp),
        }
    }

    /// [`parse`](Self::parse) where it is known to be IPv4.
    ///
    /// # Errors
    /// Says what is wrong with the packet.
    #[inline(always)]
    pub fn parse_v4(ip: &[u8]) -> Result<Self, ParseError> {
        let header = Ipv4HeaderSlice::from_slice(ip).map_err(|e| match e {
            etherparse::err::ipv4::HeaderSliceError::Len(_) => ParseError::Truncated,
            etherparse::err::ipv4::HeaderSliceError::Content(_) => ParseError::BadHeader,
        })?;
        let l4_offset = header.slice().len();
        let len = usize::from(header.total_len());
        if len < l4_offset {
            return Err(ParseError::BadHeader);
        }
        if len > ip.len() {
            return Err(ParseError::BadLength);
        }
        // Nearly every header has no options: its sum is a few instructions.
        let sound = match header.slice().first_chunk::<20>() {
            Some(fixed) if l4_offset == fixed.len() => checksum::is_sound(fixed),
            _ => checksum::fold(checksum::sum(header.slice())) == 0xffff,
        };
        if !sound {
            return Err(ParseError::BadChecksum);
        }
        if l4_offset > ipv4::HEADER_LEN {
            options::check_v4(header.options())?;
        }
        let fragment = if header.fragments_offset().value() != 0 {
            Fragment::Later
        } else if header.more_fragments() {
            Fragment::First
        } else {
            Fragment::Whole
        };
        let mut packet = Self {
            src: IpAddr::V4(Ipv4Addr::from(header.source())),
            dst: IpAddr::V4(Ipv4Addr::from(header.destination())),
            hop_limit: header.ttl(),
            tos: ip.get(ipv4::TOS).copied().unwrap_or(0),
            protocol: header.protocol().0,
            l4_offset,
            len,
            fragment,
            dont_fragment: header.dont_fragment(),
            ports: None,
        };
        packet.read_ports(ip);
        Ok(packet)
    }

    /// [`parse`](Self::parse) where it is known to be IPv6.
    ///
    /// # Errors
    /// Says what is wrong with the packet.
    #[inline]
    pub fn parse_v6(ip: &[u8]) -> Result<Self, ParseError> {
        let header = Ipv6HeaderSlice::from_slice(ip).map_err(|e| match e {
            etherparse::err::ipv6::HeaderSliceError::Len(_) => ParseError::Truncated,
            etherparse::err::ipv6::HeaderSliceError::Content(_) => ParseError::BadHeader,
        })?;
        let len = usize::from(header.payload_length()).saturating_add(header.slice().len());
        if len > ip.len() {
            return Err(ParseError::BadLength);
        }
        let mut packet = Self {
            src: IpAddr::V6(header.source_addr()),
            dst: IpAddr::V6(header.destination_addr()),
            hop_limit: header.hop_limit(),
            tos: header.traffic_class(),
            protocol: header.next_header().0,
            l4_offset: header.slice().len(),
            len,
            fragment: Fragment::Whole,
            dont_fragment: true,
            ports: None,
        };
        packet.skip_extensions(ip)?;
        packet.read_ports(ip);
        Ok(packet)
    }

    /// Walks hop-by-hop (0), routing (43), fragment (44) and destination
    /// options (60) to the upper-layer header (RFC 8200, section 4).
    #[inline]
    fn skip_extensions(&mut self, ip: &[u8]) -> Result<(), ParseError> {
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !matches!(self.protocol, 0 | 43 | 44 | 60) {
                return Ok(());
            }
            let rest = ip.get(self.l4_offset..self.len);
            let [next, length, b2, b3, ..] = *rest
                .and_then(<[u8]>::first_chunk::<8>)
                .ok_or(ParseError::BadExtension)?;
            let bytes = if self.protocol == 44 {
                let word = u16::from_be_bytes([b2, b3]);
                self.fragment = match (word >> 3, word & 1) {
                    (0, 0) => Fragment::Whole,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                8
            } else {
                usize::from(length).saturating_add(1).saturating_mul(8)
            };
            let hop_by_hop = self.protocol == 0;
            let options = self.l4_offset.saturating_add(2);
            self.protocol = next;
            self.l4_offset = self.l4_offset.saturating_add(bytes);
            if self.l4_offset > self.len {
                return Err(ParseError::BadExtension);
            }
            if hop_by_hop {
                let options = ip.get(options..self.l4_offset);
                options::check_hop_by_hop(options.ok_or(ParseError::BadExtension)?)?;
            }
            // Hop-by-hop options stand first, or nowhere (RFC 8200, section 4.1).
            if next == 0 {
                return Err(ParseError::BadExtension);
            }
            if self.fragment == Fragment::Later {
                // What follows is payload, whatever its first byte says.
                return Ok(());
            }
        }
        Err(ParseError::BadExtension)
    }

    #[inline(always)]
    fn read_ports(&mut self, ip: &[u8]) {
        if self.fragment == Fragment::Later || !matches!(self.protocol, TCP | UDP | SCTP) {
            return;
        }
        let l4 = ip.get(self.l4_offset..self.len);
        if let Some(&[a, b, c, d]) = l4.and_then(<[u8]>::first_chunk::<4>) {
            self.ports = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
        }
    }
}

/// The packet has made all the hops it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopLimitExceeded;

/// Takes one from the TTL (IPv4, with the checksum updated after RFC 1624) or
/// the hop limit (IPv6).
///
/// # Errors
/// A packet at 0 or 1 is left as it is: it may not be forwarded (RFC 1812,
/// section 5.3.1; RFC 8200, section 3). So is one too short to have the field.
#[inline]
pub fn decrement_hop_limit(ip: &mut [u8]) -> Result<(), HopLimitExceeded> {
    if ip.first().is_some_and(|b| b >> 4 == 6) {
        let hop_limit = ip.get_mut(7).ok_or(HopLimitExceeded)?;
        if *hop_limit <= 1 {
            return Err(HopLimitExceeded);
        }
        *hop_limit = hop_limit.saturating_sub(1);
        return Ok(());
    }
    let header = ip.first_chunk_mut::<20>().ok_or(HopLimitExceeded)?;
    let [.., ttl, protocol, c0, c1, _, _, _, _, _, _, _, _] = header;
    if *ttl <= 1 {
        return Err(HopLimitExceeded);
    }
    let before = u16::from_be_bytes([*ttl, *protocol]);
    *ttl = ttl.saturating_sub(1);
    let after = u16::from_be_bytes([*ttl, *protocol]);
    let updated = checksum::update(u16::from_be_bytes([*c0, *c1]), before, after);
    [*c0, *c1] = updated.to_be_bytes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn udp_v4(src: [u8; 4], dst: [u8; 4], ttl: u8, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv4(src, dst, ttl)
            .udp(ports.0, ports.1)
            .write(&mut out, payload)
            .unwrap();
        out
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_packet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = (*first & 0xf) | if v6 { 0x60 } else { 0x40 }; }
            if let Ok(p) = IpPacket::parse(&bytes, if v6 { ethernet::IPV6 } else { ethernet::IPV4 }) {
                prop_assert!(p.len <= bytes.len() && p.l4_offset <= p.len);
            }
            let _ = decrement_hop_limit(&mut bytes);
        }

        #[test]
        fn parse_of_build_v4(src: [u8; 4], dst: [u8; 4], ttl: u8, ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let bytes = udp_v4(src, dst, ttl, ports, &payload);
            let p = IpPacket::parse(&bytes, ethernet::IPV4).unwrap();
            prop_assert_eq!((p.src, p.dst), (IpAddr::from(src), IpAddr::from(dst)));
            prop_assert_eq!((p.hop_limit, p.protocol, p.len), (ttl, UDP, bytes.len()));
            prop_assert_eq!(p.ports, Some(ports));
        }

        #[test]
        fn parse_of_build_v6(src: [u8; 16], dst: [u8; 16], hops: u8, ports: (u16, u16)) {
            let mut bytes = Vec::new();
            PacketBuilder::ipv6(src, dst, hops).udp(ports.0, ports.1).write(&mut bytes, &[1, 2, 3]).unwrap();
            let p = IpPacket::parse(&bytes, ethernet::IPV6).unwrap();
            prop_assert_eq!((p.src, p.dst), (IpAddr::from(src), IpAddr::from(dst)));
            prop_assert_eq!((p.hop_limit, p.ports, p.l4_offset), (hops, Some(ports), 40));
        }

        #[test]
        fn decrementing_keeps_the_checksum_right(src: [u8; 4], dst: [u8; 4], ttl in 2u8..) {
            let mut bytes = udp_v4(src, dst, ttl, (1, 2), &[]);
            decrement_hop_limit(&mut bytes).unwrap();
            prop_assert_eq!(IpPacket::parse(&bytes, ethernet::IPV4).unwrap().hop_limit, ttl - 1);
        }
    }

    #[test]
    fn the_last_hop_is_refused_and_nothing_changes() {
        for ttl in [0, 1] {
            let mut bytes = udp_v4([1; 4], [2; 4], ttl, (1, 2), &[]);
            let before = bytes.clone();
            assert_eq!(decrement_hop_limit(&mut bytes), Err(HopLimitExceeded));
            assert_eq!(bytes, before);
        }
    }

    #[test]
    fn each_lie_has_its_name() {
        let good = udp_v4([1; 4], [2; 4], 9, (1, 2), &[0; 8]);
        let parse = |b: &[u8]| IpPacket::parse(b, ethernet::IPV4).unwrap_err();
        assert_eq!(parse(&good[..12]), ParseError::Truncated);
        assert_eq!(parse(&good[..30]), ParseError::BadLength);
        let mut bad = good.clone();
        bad[8] ^= 1;
        assert_eq!(parse(&bad), ParseError::BadChecksum);
        bad = good.clone();
        bad[0] = 0x42;
        assert_eq!(parse(&bad), ParseError::BadHeader);
        assert_eq!(IpPacket::parse(&good, 0x0806), Err(ParseError::NotIp));
    }

    #[test]
    fn extension_headers_are_walked_and_bounded() {
        let mut b = vec![0u8; 40 + 8 + 8 + 8];
        b[0] = 0x60;
        b[5] = 24;
        b[6] = 0; // hop-by-hop
        b[40] = 44; // fragment
        b[42] = 1; // padding
        b[43] = 4;
        b[48] = UDP;
        b[51] = 1; // more fragments, offset 0
        let p = IpPacket::parse(&b, ethernet::IPV6).unwrap();
        assert_eq!(
            (p.protocol, p.l4_offset, p.fragment),
            (UDP, 56, Fragment::First)
        );
        b[50] = 1; // offset
        let p = IpPacket::parse(&b, ethernet::IPV6).unwrap();
        assert_eq!((p.fragment, p.ports), (Fragment::Later, None));
        b[41] = 200;
        assert_eq!(
            IpPacket::parse(&b, ethernet::IPV6),
            Err(ParseError::BadExtension)
        );
    }
}
