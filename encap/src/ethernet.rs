//! Ethernet II.
//!
//! ```text
//!  0        6        12    14
//!  +--------+--------+-----+----------
//!  | dst    | src    | type| payload
//!  +--------+--------+-----+----------
//! ```
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::MacAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;
/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// `EtherType` of an 802.1ad tag.
pub const QINQ: u16 = 0x88a8;

/// An Ethernet header, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Receiver.
    pub destination: MacAddr,
    /// Sender.
    pub source: MacAddr,
    /// What the payload is.
    pub ether_type: u16,
}

impl Ethernet {
    /// Reads the header at the start of `frame`; `None` when it is cut short.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
            *frame.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ether_type: u16::from_be_bytes([t0, t1]),
        })
    }

    /// The header's bytes.
    #[inline]
    pub const fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [d0, d1, d2, d3, d4, d5] = self.destination.0;
        let [s0, s1, s2, s3, s4, s5] = self.source.0;
        let [t0, t1] = self.ether_type.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_of_build_is_the_identity(d: [u8; 6], s: [u8; 6], ether_type: u16) {
            let header = Ethernet { destination: MacAddr(d), source: MacAddr(s), ether_type };
            prop_assert_eq!(Ethernet::parse(&header.to_bytes()), Some(header));
        }

        #[test]
        fn short_frames_are_none(bytes in prop::collection::vec(any::<u8>(), 0..HEADER_LEN)) {
            prop_assert_eq!(Ethernet::parse(&bytes), None);
        }
    }
}
