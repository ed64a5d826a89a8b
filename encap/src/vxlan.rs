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

use crate::Vni;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
const VNI_VALID: u8 = 0x08;

/// The header's bytes for this network.
pub const fn to_bytes(vni: Vni) -> [u8; HEADER_LEN] {
    let [a, b, c] = vni.to_bytes();
    [VNI_VALID, 0, 0, 0, a, b, c, 0]
}

/// The VNI of a header; `None` when the I flag is not set. Reserved bits are
/// ignored on receipt, as the RFC asks.
#[inline]
pub const fn parse(header: [u8; HEADER_LEN]) -> Option<Vni> {
    let [flags, _, _, _, a, b, c, _] = header;
    if flags & VNI_VALID == 0 {
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
        fn only_the_i_flag_decides(header: [u8; 8]) {
            prop_assert_eq!(parse(header).is_some(), header[0] & 0x08 != 0);
        }
    }
}
