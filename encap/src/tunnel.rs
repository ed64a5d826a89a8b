//! A tunnel: an outer header built once, pushed with one copy and a few
//! patches.
//!
//! ```text
//!  0          14      34    42      50         64
//!  +----------+-------+-----+-------+----------+-----------------
//!  | Ethernet | IPv4  | UDP | VXLAN | Ethernet | inner IP packet
//!  +----------+-------+-----+-------+----------+-----------------
//!   outer                            inner, to the peer's VTEP MAC
//! ```
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::Ipv4Addr;

use crate::ethernet::{self, Ethernet};
use crate::{MacAddr, Vni, checksum, vxlan};

const IPV4_LEN: usize = 20;
const UDP_LEN: usize = 8;
const OVERHEAD: usize = ethernet::HEADER_LEN + IPV4_LEN + UDP_LEN + vxlan::HEADER_LEN;
const HEADER_LEN: usize = OVERHEAD + ethernet::HEADER_LEN;

/// What an outer header is built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelParams {
    /// MAC of our underlay interface.
    pub outer_source_mac: MacAddr,
    /// MAC of the underlay's next hop.
    pub outer_destination_mac: MacAddr,
    /// Our VTEP.
    pub source: Ipv4Addr,
    /// The peer's VTEP.
    pub destination: Ipv4Addr,
    /// VXLAN port of the peer.
    pub udp_port: u16,
    /// The network.
    pub vni: Vni,
    /// Our VTEP's MAC.
    pub inner_source_mac: MacAddr,
    /// The peer's VTEP MAC.
    pub inner_destination_mac: MacAddr,
    /// TTL of the outer packet.
    pub hop_limit: u8,
}

/// The packet with its outer header would exceed 65,535 bytes, or there is no
/// room for the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// A prebuilt outer header to one VTEP in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    template: [u8; HEADER_LEN],
    /// Unfolded sum of the template's IPv4 header, its variable fields zero.
    ipv4_sum: u64,
}

impl Tunnel {
    /// Builds the header. Don't-fragment is set and the identification is 0
    /// (RFC 6864, section 4.1: an atomic datagram); the outer UDP checksum is 0
    /// (RFC 7348, section 5).
    pub fn new(params: &TunnelParams) -> Self {
        let outer = Ethernet {
            destination: params.outer_destination_mac,
            source: params.outer_source_mac,
            ether_type: ethernet::IPV4,
        };
        let inner = Ethernet {
            destination: params.inner_destination_mac,
            source: params.inner_source_mac,
            ether_type: 0,
        };
        let mut ipv4 = [0; IPV4_LEN];
        let (fixed, addresses) = ipv4.split_at_mut(12);
        fixed.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, params.hop_limit, 17, 0, 0]);
        let (source, destination) = addresses.split_at_mut(4);
        source.copy_from_slice(&params.source.octets());
        destination.copy_from_slice(&params.destination.octets());
        let [p0, p1] = params.udp_port.to_be_bytes();

        let mut template = [0; HEADER_LEN];
        let parts: [&[u8]; 5] = [
            &outer.to_bytes(),
            &ipv4,
            &[0, 0, p0, p1, 0, 0, 0, 0],
            &vxlan::to_bytes(params.vni),
            &inner.to_bytes(),
        ];
        for (to, from) in template.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        Self {
            template,
            ipv4_sum: checksum::sum(&ipv4),
        }
    }

    /// Bytes that a tunnel takes from the underlay's MTU: everything in front
    /// of the inner IP packet but the outer Ethernet header.
    pub const fn overhead(&self) -> usize {
        OVERHEAD
    }

    /// Bytes in front of the inner IP packet, both Ethernet headers included.
    pub const fn header_len(&self) -> usize {
        HEADER_LEN
    }

    /// Writes the header into `header`, the [`header_len`](Self::header_len)
    /// bytes in front of an inner IP packet of `ip_len` bytes.
    ///
    /// # Errors
    /// [`TooLong`], with `header` unchanged.
    #[inline]
    pub fn write(
        &self,
        header: &mut [u8],
        ip_len: usize,
        ether_type: u16,
        source_port: u16,
        outer_tos: u8,
    ) -> Result<(), TooLong> {
        let header: &mut [u8; HEADER_LEN] = header.try_into().map_err(|_| TooLong)?;
        let udp_len = ip_len.saturating_add(UDP_LEN + vxlan::HEADER_LEN + ethernet::HEADER_LEN);
        let total_len = u16::try_from(udp_len.saturating_add(IPV4_LEN)).map_err(|_| TooLong)?;
        let udp_len = u16::try_from(udp_len).map_err(|_| TooLong)?;
        let ipv4_checksum = !checksum::fold(
            self.ipv4_sum
                .wrapping_add(u64::from(total_len))
                .wrapping_add(u64::from(outer_tos)),
        );
        *header = self.template;
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _, // outer Ethernet
            _,
            tos,
            t0,
            t1,
            _,
            _,
            _,
            _,
            _,
            _,
            c0,
            c1,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _, // IPv4
            s0,
            s1,
            _,
            _,
            l0,
            l1,
            _,
            _, // UDP
            ..,
            e0,
            e1, // inner Ethernet
        ] = header;
        *tos = outer_tos;
        [*t0, *t1] = total_len.to_be_bytes();
        [*c0, *c1] = ipv4_checksum.to_be_bytes();
        [*s0, *s1] = source_port.to_be_bytes();
        [*l0, *l1] = udp_len.to_be_bytes();
        [*e0, *e1] = ether_type.to_be_bytes();
        Ok(())
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
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: Ipv4Addr::new(192, 0, 2, 2),
            udp_port: 8472,
            vni: Vni::new(1).unwrap(),
            inner_source_mac: MacAddr([2, 0, 0, 0, 1, 1]),
            inner_destination_mac: MacAddr([2, 0, 0, 0, 1, 2]),
            hop_limit: 64,
        }
    }

    /// A whole encapsulated frame around `ip_len` zero bytes.
    pub(crate) fn frame(ip_len: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN + ip_len];
        Tunnel::new(&params())
            .write(&mut frame[..HEADER_LEN], ip_len, 0x0800, 50000, 0)
            .unwrap();
        frame
    }

    proptest! {
        #[test]
        fn what_is_pushed_reads_back(ip_len in 0usize..2000, port: u16, tos: u8, src: [u8; 4], dst: [u8; 4], udp_port: u16, vni: [u8; 3]) {
            let p = TunnelParams { source: src.into(), destination: dst.into(), udp_port, vni: Vni::from_bytes(vni), ..params() };
            let mut frame = vec![0; HEADER_LEN + ip_len];
            Tunnel::new(&p).write(&mut frame[..HEADER_LEN], ip_len, 0x86dd, port, tos).unwrap();
            let outer = Outer::parse(&frame).unwrap();
            prop_assert_eq!(outer, Outer {
                src: IpAddr::from(src), dst: IpAddr::from(dst), tos, udp_source: port, udp_destination: udp_port,
                vni: p.vni, inner_offset: OVERHEAD, inner_len: ip_len + 14,
            });
            // An independent reader agrees on every length.
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            prop_assert!(matches!(sliced.transport, Some(etherparse::TransportSlice::Udp(u)) if u.payload().len() == 8 + 14 + ip_len));
        }
    }

    #[test]
    fn too_long_and_no_room_are_errors() {
        let tunnel = Tunnel::new(&params());
        let mut header = [7; HEADER_LEN];
        assert_eq!(
            tunnel.write(&mut header, 65_500, 0x0800, 1, 0),
            Err(TooLong)
        );
        assert_eq!(header, [7; HEADER_LEN]);
        assert_eq!(
            tunnel.write(&mut header[1..], 100, 0x0800, 1, 0),
            Err(TooLong)
        );
    }
}
