//! A tunnel: an outer header built once, pushed with one copy and a few
//! patches.
//!
//! [`layout`](crate::layout) has its picture.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::IpAddr;

use crate::ecn::Dscp;
use crate::ethernet::{self, Ethernet};
use crate::ip::UDP;
use crate::layout::{ipv4, ipv6, over_v4, over_v6, udp};
use crate::{MacAddr, Vni, checksum, vxlan};

const V4_LEN: usize = over_v4::PACKET;
const V6_LEN: usize = over_v6::PACKET;
/// From the UDP header to the inner IP packet.
const INSIDE: usize = over_v4::PACKET - over_v4::UDP;

/// What an outer header is built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelParams {
    /// MAC of our underlay interface.
    pub outer_source_mac: MacAddr,
    /// MAC of the underlay's next hop.
    pub outer_destination_mac: MacAddr,
    /// Our VTEP. Of the peer's family.
    pub source: IpAddr,
    /// The peer's VTEP.
    pub destination: IpAddr,
    /// VXLAN port of the peer.
    pub udp_port: u16,
    /// Whether the outer UDP checksum is computed over IPv6; it is 0 otherwise (RFC 6935), and
    /// always 0 over IPv4 (RFC 7348, section 5).
    pub udp_checksum6: bool,
    /// The network.
    pub vni: Vni,
    /// Our VTEP's MAC.
    pub inner_source_mac: MacAddr,
    /// The peer's VTEP MAC.
    pub inner_destination_mac: MacAddr,
    /// TTL or hop limit of the outer packet.
    pub hop_limit: u8,
    /// DSCP of the outer packet.
    pub dscp: Dscp,
    /// The longest outer packet, in bytes, that every link on the way takes.
    pub mtu: u16,
}

/// The packet with its outer header would exceed 65,535 bytes, or there is no
/// room for the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// A prebuilt outer header to one VTEP in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    template: Template,
    udp_checksum6: bool,
    dscp: Dscp,
    room: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Template {
    V4 {
        bytes: [u8; V4_LEN],
        /// Unfolded sum of the IPv4 header, its variable fields zero.
        sum: u64,
    },
    V6([u8; V6_LEN]),
}

impl Tunnel {
    /// Builds the header. Over IPv4 don't-fragment is set and the identification is 0 (RFC 6864,
    /// section 4.1: an atomic datagram).
    ///
    /// Addresses of two families are no VTEPs of one underlay: the source is then taken as
    /// unspecified.
    pub fn new(params: &TunnelParams) -> Self {
        let template = match params.destination {
            IpAddr::V4(destination) => {
                let mut ip = [0; ipv4::HEADER_LEN];
                let source = match params.source {
                    IpAddr::V4(source) => source.octets(),
                    IpAddr::V6(_) => [0; 4],
                };
                let hop_limit = params.hop_limit;
                let fixed = [ipv4::PLAIN, 0, 0, 0, 0, 0, 0x40, 0, hop_limit, UDP, 0, 0];
                fill(&mut ip, &[&fixed, &source, &destination.octets()]);
                Template::V4 {
                    bytes: params.around(ethernet::IPV4, &ip),
                    sum: checksum::sum(&ip),
                }
            }
            IpAddr::V6(destination) => {
                let mut ip = [0; ipv6::HEADER_LEN];
                let source = match params.source {
                    IpAddr::V6(source) => source.octets(),
                    IpAddr::V4(_) => [0; 16],
                };
                let fixed = [0x60, 0, 0, 0, 0, 0, UDP, params.hop_limit];
                fill(&mut ip, &[&fixed, &source, &destination.octets()]);
                Template::V6(params.around(ethernet::IPV6, &ip))
            }
        };
        let mut tunnel = Self {
            template,
            udp_checksum6: params.udp_checksum6,
            dscp: params.dscp,
            room: 0,
        };
        let overhead = u16::try_from(tunnel.overhead()).unwrap_or(u16::MAX);
        tunnel.room = params.mtu.saturating_sub(overhead);
        tunnel
    }

    /// The outer TOS of a packet with this inner one.
    #[inline]
    pub const fn outer_tos(&self, inner_tos: u8) -> u8 {
        self.dscp.outer_tos(inner_tos)
    }

    /// Bytes that a tunnel takes from the underlay's MTU: everything in front
    /// of the inner IP packet but the outer Ethernet header.
    pub const fn overhead(&self) -> usize {
        self.header_len().saturating_sub(ethernet::HEADER_LEN)
    }

    /// The longest inner IP packet, in bytes, whose outer one fits the way.
    #[inline]
    pub const fn room(&self) -> u16 {
        self.room
    }

    /// Bytes in front of the inner IP packet, both Ethernet headers included.
    pub const fn header_len(&self) -> usize {
        match self.template {
            Template::V4 { .. } => V4_LEN,
            Template::V6(_) => V6_LEN,
        }
    }

    /// The header as it was built: lengths, source port, flow label, TOS, checksums and the inner
    /// `EtherType` are zero.
    pub const fn template(&self) -> &[u8] {
        match &self.template {
            Template::V4 { bytes, .. } => bytes,
            Template::V6(bytes) => bytes,
        }
    }

    /// Whether the outer UDP checksum is computed, for which the whole packet is read.
    pub const fn is_summed(&self) -> bool {
        self.udp_checksum6 && matches!(self.template, Template::V6(_))
    }

    /// The outer packet's DSCP.
    pub const fn dscp(&self) -> Dscp {
        self.dscp
    }

    /// Writes the header into the first [`header_len`](Self::header_len) bytes of `frame`, which
    /// has an inner IP packet behind them and nothing behind that.
    ///
    /// # Errors
    /// [`TooLong`], with `frame` unchanged.
    #[inline]
    pub fn write(
        &self,
        frame: &mut [u8],
        ether_type: u16,
        source_port: u16,
        outer_tos: u8,
    ) -> Result<(), TooLong> {
        match &self.template {
            Template::V4 { bytes, sum } => {
                write_v4(bytes, *sum, frame, ether_type, source_port, outer_tos)
            }
            Template::V6(bytes) => {
                write_v6(bytes, frame, ether_type, source_port, outer_tos)?;
                if self.udp_checksum6 {
                    write_checksum6(frame);
                }
                Ok(())
            }
        }
    }
}

#[inline]
fn write_v4(
    template: &[u8; V4_LEN],
    sum: u64,
    frame: &mut [u8],
    ether_type: u16,
    source_port: u16,
    outer_tos: u8,
) -> Result<(), TooLong> {
    let (header, packet) = frame.split_first_chunk_mut::<V4_LEN>().ok_or(TooLong)?;
    let udp_len = packet.len().saturating_add(INSIDE);
    let total_len = u16::try_from(udp_len.saturating_add(ipv4::HEADER_LEN)).map_err(|_| TooLong)?;
    let ip_checksum = !checksum::fold(
        sum.wrapping_add(u64::from(total_len))
            .wrapping_add(u64::from(outer_tos)),
    );
    *header = *template;
    put(header, over_v4::IP + ipv4::TOS, [outer_tos]);
    patch_v4(header, total_len, ip_checksum);
    put(
        header,
        over_v4::UDP + udp::SOURCE,
        source_port.to_be_bytes(),
    );
    put(header, V4_LEN - 2, ether_type.to_be_bytes());
    Ok(())
}

/// Writes what differs from packet to packet of a flow into an outer header over IPv4: both
/// lengths, and the IP header's checksum. `header` is at least as long as the header; `total_len` is
/// that of the outer IP packet.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "with an array of known size the compiler leaves no check"
)]
pub fn patch_v4<const N: usize>(header: &mut [u8; N], total_len: u16, ip_checksum: u16) {
    const { assert!(N >= V4_LEN) };
    let udp_len = total_len.wrapping_sub(ipv4::LEN);
    put(
        header,
        over_v4::IP + ipv4::TOTAL_LEN,
        total_len.to_be_bytes(),
    );
    put(
        header,
        over_v4::IP + ipv4::CHECKSUM,
        ip_checksum.to_be_bytes(),
    );
    put(header, over_v4::UDP + udp::LENGTH, udp_len.to_be_bytes());
}

/// The flow label carries the same entropy as the source port (RFC 6438).
#[inline]
fn write_v6(
    template: &[u8; V6_LEN],
    frame: &mut [u8],
    ether_type: u16,
    source_port: u16,
    outer_tos: u8,
) -> Result<(), TooLong> {
    let (header, packet) = frame.split_first_chunk_mut::<V6_LEN>().ok_or(TooLong)?;
    let udp_len = u16::try_from(packet.len().saturating_add(INSIDE)).map_err(|_| TooLong)?;
    *header = *template;
    let [p0, p1] = source_port.to_be_bytes();
    put(
        header,
        over_v6::IP,
        [0x60 | outer_tos >> 4, outer_tos << 4, p0, p1],
    );
    put(
        header,
        over_v6::IP + ipv6::PAYLOAD_LEN,
        udp_len.to_be_bytes(),
    );
    put(header, over_v6::UDP + udp::SOURCE, [p0, p1]);
    put(header, over_v6::UDP + udp::LENGTH, udp_len.to_be_bytes());
    put(header, V6_LEN - 2, ether_type.to_be_bytes());
    Ok(())
}

/// The UDP checksum over pseudo-header, header and all of the payload, for receivers that take no
/// zero (RFC 6936). The one thing here that reads the payload.
fn write_checksum6(frame: &mut [u8]) {
    let addresses = frame
        .get(over_v6::IP + ipv6::SOURCE..over_v6::UDP)
        .map_or(0, checksum::sum);
    let Some(datagram) = frame.get_mut(over_v6::UDP..) else {
        return;
    };
    let sum = addresses
        .wrapping_add(u64::from(UDP))
        .wrapping_add(datagram.len() as u64)
        .wrapping_add(checksum::sum(datagram));
    // 0 says that there is none (RFC 768).
    let sum = match !checksum::fold(sum) {
        0 => 0xffff,
        sum => sum,
    };
    put(datagram, udp::CHECKSUM, sum.to_be_bytes());
}

/// Writes bytes at a place; with arrays of known size the compiler leaves no check.
#[inline]
fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(place) = to.get_mut(at..at.saturating_add(N)) {
        place.copy_from_slice(&bytes);
    }
}

fn fill(to: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in to.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

impl TunnelParams {
    /// The whole header, with this IP header in it.
    fn around<const N: usize>(&self, ether_type: u16, ip: &[u8]) -> [u8; N] {
        let outer = Ethernet {
            destination: self.outer_destination_mac,
            source: self.outer_source_mac,
            ether_type,
        };
        let inner = Ethernet {
            destination: self.inner_destination_mac,
            source: self.inner_source_mac,
            ether_type: 0,
        };
        let [p0, p1] = self.udp_port.to_be_bytes();
        let mut template = [0; N];
        let parts: [&[u8]; 5] = [
            &outer.to_bytes(),
            ip,
            &[0, 0, p0, p1, 0, 0, 0, 0],
            &vxlan::to_bytes(self.vni),
            &inner.to_bytes(),
        ];
        fill(&mut template, &parts);
        template
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Outer;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn params() -> TunnelParams {
        TunnelParams {
            outer_source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            outer_destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source: [192, 0, 2, 1].into(),
            destination: [192, 0, 2, 2].into(),
            udp_port: 8472,
            udp_checksum6: false,
            vni: Vni::new(1).unwrap(),
            inner_source_mac: MacAddr([2, 0, 0, 0, 1, 1]),
            inner_destination_mac: MacAddr([2, 0, 0, 0, 1, 2]),
            hop_limit: 64,
            dscp: Dscp::default(),
            mtu: 1500,
        }
    }

    /// A whole encapsulated frame around `ip_len` zero bytes.
    pub(crate) fn frame(ip_len: usize) -> Vec<u8> {
        let mut frame = vec![0; V4_LEN + ip_len];
        let tunnel = Tunnel::new(&params());
        tunnel.write(&mut frame, 0x0800, 50000, 0).unwrap();
        frame
    }

    /// A VTEP address of either family.
    fn address(v6: bool, bytes: [u8; 16]) -> IpAddr {
        let [a, b, c, d, ..] = bytes;
        if v6 {
            bytes.into()
        } else {
            [a, b, c, d].into()
        }
    }

    proptest! {
        #[test]
        fn what_is_pushed_reads_back(
            inner in prop::collection::vec(any::<u8>(), 0..2000), port: u16, tos: u8, v6: bool, checksum: bool,
            src: [u8; 16], dst: [u8; 16], udp_port: u16, vni: [u8; 3],
        ) {
            let p = TunnelParams {
                source: address(v6, src), destination: address(v6, dst), udp_port, udp_checksum6: checksum,
                vni: Vni::from_bytes(vni), ..params()
            };
            let tunnel = Tunnel::new(&p);
            let header = tunnel.header_len();
            prop_assert_eq!(header, if v6 { 84 } else { 64 });
            let mut frame = vec![0; header];
            frame.extend(&inner);
            tunnel.write(&mut frame, 0x86dd, port, tos).unwrap();
            let outer = Outer::parse(&frame).unwrap();
            prop_assert_eq!(outer, Outer {
                src: p.source, dst: p.destination, tos, udp_source: port, udp_destination: udp_port,
                vni: p.vni, inner_offset: tunnel.overhead(), inner_len: inner.len() + 14,
                udp_checksum: if v6 && checksum { outer.udp_checksum } else { 0 },
            });
            prop_assert!(outer.sum_is_right(&frame));
            prop_assert_eq!(&frame[header..], &inner);
            // An independent reader agrees on every length, and on the checksum.
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
                return Err(TestCaseError::fail("not UDP"));
            };
            prop_assert_eq!(udp.payload().len(), 8 + 14 + inner.len());
            if let (true, Some(etherparse::NetSlice::Ipv6(ip))) = (checksum, sliced.net) {
                let ip = ip.header().to_header();
                let expected = udp.to_header().calc_checksum_ipv6(&ip, udp.payload()).unwrap();
                prop_assert_eq!(udp.checksum(), expected);
            } else {
                prop_assert_eq!(udp.checksum(), 0);
            }
        }
    }

    #[test]
    fn the_room_is_what_the_overhead_leaves_of_the_way() {
        let room = |v6: bool, mtu| {
            let source = address(v6, [9; 16]);
            let all = TunnelParams {
                source,
                destination: source,
                mtu,
                ..params()
            };
            Tunnel::new(&all).room()
        };
        assert_eq!(room(false, 1500), 1450);
        assert_eq!(room(true, 1500), 1430);
        assert_eq!(room(false, 20), 0);
    }

    #[test]
    fn too_long_and_no_room_are_errors() {
        let tunnel = Tunnel::new(&params());
        let mut frame = vec![7; V4_LEN + 65_500];
        assert_eq!(tunnel.write(&mut frame, 0x0800, 1, 0), Err(TooLong));
        assert!(frame.iter().all(|&byte| byte == 7));
        assert_eq!(
            tunnel.write(&mut frame[..V4_LEN - 1], 0x0800, 1, 0),
            Err(TooLong)
        );
    }
}
