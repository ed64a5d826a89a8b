//! The VXLAN header (RFC 7348, section 5).
//!
//! ```text
//!  0 1 2 3 4 5 6 7 8             31
//!  +-+-+-+-+-+-+-+-+---------------+
//!  |R|R|R|R|I|R|R|R|   reserved    |
//!  +-+-+-+-+-+-+-+-+------+--------+
//!  |         VNI          |reserved|
//!  +----------------------+--------+
//! ```
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use crate::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
const VNI_VALID: u8 = 0x08;

/// The header's bytes for this network.
pub const fn to_bytes(vni: Vni) -> [u8; HEADER_LEN] {
    let [a, b, c] = vni.to_bytes();
    [VNI_VALID, 0, 0, 0, a, b, c, 0]
}

/// The VNI of a header; `None` when the I flag is not set, or any bit that is reserved.
///
/// The RFC asks to ignore reserved bits on receipt. Group policies and other protocols than Ethernet
/// (GBP, GPE) use some of them, and what they say must not be ignored; Linux drops packets with any
/// (`vxlan_rcv` in `drivers/net/vxlan/vxlan_core.c`), and a peer that works by one path only is no peer.
#[inline]
pub const fn parse(header: [u8; HEADER_LEN]) -> Option<Vni> {
    let [flags, r1, r2, r3, a, b, c, r7] = header;
    if flags != VNI_VALID || r1 | r2 | r3 | r7 != 0 {
        return None;
    }
    Some(Vni::from_bytes([a, b, c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_of_build_is_the_identity(bytes: [u8; 3]) {
            let vni = Vni::from_bytes(bytes);
            prop_assert_eq!(parse(to_bytes(vni)), Some(vni));
        }

        #[test]
        fn no_other_bit_may_be_set(bytes: [u8; 3], at in 0usize..64) {
            let mut header = to_bytes(Vni::from_bytes(bytes));
            header[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(parse(header).is_some(), (32..56).contains(&at));
        }
    }
}
