//! What arrives from the underlay: Ethernet, IPv4, UDP, VXLAN, and the inner
//! Ethernet frame behind them.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fmt;
use std::net::IpAddr;

use crate::checksum::{fold, pseudo_header, sum};
use crate::ip::{Fragment, IpPacket, UDP};
use crate::layout::udp;
use crate::{ParseError, Vni, ethernet, vxlan};

/// The headers of an encapsulated frame, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The sending VTEP.
    pub src: IpAddr,
    /// The receiving VTEP.
    pub dst: IpAddr,
    /// Outer TOS, for its ECN mark.
    pub tos: u8,
    /// The sender's flow entropy.
    pub udp_source: u16,
    /// The VXLAN port.
    pub udp_destination: u16,
    /// The network.
    pub vni: Vni,
    /// Bytes from the frame's start to the inner Ethernet header.
    pub inner_offset: usize,
    /// Bytes of the inner frame, outer padding excluded.
    pub inner_len: usize,
    /// The UDP checksum; 0 is none.
    pub udp_checksum: u16,
}

/// Why a frame from the underlay is not VXLAN that can be decapsulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterError {
    /// The outer IP packet is broken.
    Ip(ParseError),
    /// The outer packet is a fragment: tunnels are never fragmented here.
    Fragmented,
    /// The outer packet is not UDP.
    NotUdp,
    /// The UDP length contradicts the IP length.
    BadUdpLength,
    /// The VXLAN header is cut short, its I flag is not set, or a reserved bit is.
    BadVxlan,
    /// The inner frame is shorter than an Ethernet header.
    Runt,
}

impl fmt::Display for OuterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(e) => write!(f, "outer header: {e}"),
            Self::Fragmented => f.write_str("the outer packet is a fragment"),
            Self::NotUdp => f.write_str("the outer packet is not UDP"),
            Self::BadUdpLength => f.write_str("the outer UDP length contradicts the IP length"),
            Self::BadVxlan => f.write_str("the VXLAN header is cut short or has no valid VNI"),
            Self::Runt => f.write_str("the inner frame is shorter than an Ethernet header"),
        }
    }
}

impl std::error::Error for OuterError {}

impl Outer {
    /// Reads the headers of `frame`, which starts at the outer Ethernet header.
    ///
    /// # Errors
    /// Says which header is wrong and how.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, OuterError> {
        let (header, ip) = frame
            .split_at_checked(ethernet::HEADER_LEN)
            .ok_or(OuterError::Ip(ParseError::Truncated))?;
        let ether_type = ethernet::Ethernet::parse(header).map_or(0, |e| e.ether_type);
        let packet = IpPacket::parse(ip, ether_type).map_err(OuterError::Ip)?;
        if packet.fragment != Fragment::Whole {
            return Err(OuterError::Fragmented);
        }
        let (Some((udp_source, udp_destination)), UDP) = (packet.ports, packet.protocol) else {
            return Err(OuterError::NotUdp);
        };
        let datagram = ip
            .get(packet.l4_offset..packet.len)
            .ok_or(OuterError::BadUdpLength)?;
        let &[_, _, _, _, l0, l1, c0, c1] = datagram
            .first_chunk::<{ udp::HEADER_LEN }>()
            .ok_or(OuterError::BadUdpLength)?;
        let udp_len = usize::from(u16::from_be_bytes([l0, l1]));
        let payload = datagram
            .get(udp::HEADER_LEN..udp_len)
            .ok_or(OuterError::BadUdpLength)?;
        let (vxlan_header, inner) = payload
            .split_first_chunk::<{ vxlan::HEADER_LEN }>()
            .ok_or(OuterError::BadVxlan)?;
        let vni = vxlan::parse(*vxlan_header).ok_or(OuterError::BadVxlan)?;
        if inner.len() < ethernet::HEADER_LEN {
            return Err(OuterError::Runt);
        }
        Ok(Self {
            src: packet.src,
            dst: packet.dst,
            tos: packet.tos,
            udp_source,
            udp_destination,
            vni,
            inner_offset: ethernet::HEADER_LEN
                .saturating_add(packet.l4_offset)
                .saturating_add(udp::HEADER_LEN + vxlan::HEADER_LEN),
            inner_len: inner.len(),
            udp_checksum: u16::from_be_bytes([c0, c1]),
        })
    }
}

impl Outer {
    /// Whether the outer UDP checksum is right, or there is none, in the frame that was parsed.
    #[inline]
    pub fn sum_is_right(&self, frame: &[u8]) -> bool {
        let at = self
            .inner_offset
            .saturating_sub(udp::HEADER_LEN + vxlan::HEADER_LEN);
        let end = self.inner_offset.saturating_add(self.inner_len);
        let datagram = frame.get(at..end).unwrap_or_default();
        outer_sum_is_right(self.src, self.dst, datagram)
    }
}

/// Whether the checksum of a UDP datagram between these addresses is right, absent (0) or left to
/// hardware, which is nowhere between two kernels that are joined by a virtual link.
pub fn outer_sum_is_right(src: IpAddr, dst: IpAddr, datagram: &[u8]) -> bool {
    let field = datagram.get(udp::CHECKSUM..);
    let Some(&field) = field.and_then(<[u8]>::first_chunk::<2>) else {
        return false;
    };
    if field == [0; 2] {
        return true;
    }
    let pseudo = pseudo_header(src, dst, UDP, datagram.len());
    field == fold(pseudo).to_be_bytes() || fold(pseudo.wrapping_add(sum(datagram))) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_vxlan_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Outer::parse(&bytes);
        }

        #[test]
        fn cut_or_flipped_frames_never_point_outside(cut in 0usize..200, at in 0usize..100, bit in 0u8..8) {
            let mut frame = crate::tunnel::tests::frame(64);
            if let Some(b) = frame.get_mut(at) { *b ^= 1 << bit; }
            frame.truncate(cut);
            if let Ok(outer) = Outer::parse(&frame) {
                prop_assert!(outer.inner_offset + outer.inner_len <= frame.len());
            }
        }
    }

    #[test]
    fn each_lie_has_its_name() {
        let good = crate::tunnel::tests::frame(64);
        assert!(Outer::parse(&good).is_ok());
        let change = |at: usize, to: u8| {
            let mut f = good.clone();
            f[at] = to;
            Outer::parse(&f).unwrap_err()
        };
        assert_eq!(change(42, 0), OuterError::BadVxlan);
        assert_eq!(change(38, 0xff), OuterError::BadUdpLength);
        assert_eq!(change(12, 0), OuterError::Ip(ParseError::NotIp));
        assert_eq!(change(26, 1), OuterError::Ip(ParseError::BadChecksum));
        assert_eq!(
            Outer::parse(&good[..60]),
            Err(OuterError::Ip(ParseError::BadLength))
        );
    }
}
