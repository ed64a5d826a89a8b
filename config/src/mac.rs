//! Ethernet addresses, and the one that a VTEP has by default.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (EUI-48) address, in transmission order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether a single station can have this address: neither a group address (the lowest bit of the first octet,
    /// IEEE 802-2014 section 8.2.2) nor all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(":")?;
            }
            write!(f, "{octet:02x}")?;
        }
        Ok(())
    }
}

/// The text is not six pairs of hexadecimal digits joined by colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address; write six pairs of hexadecimal digits, like 02:00:5e:10:00:01")]
pub struct ParseMacError;

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().ok_or(ParseMacError)?;
            // from_str_radix alone would take "+1".
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| ParseMacError)?;
        }
        if pairs.next().is_some() {
            Err(ParseMacError)
        } else {
            Ok(Self(octets))
        }
    }
}

/// The MAC of a node's VTEP in one network, when the operator gives none: a function of both names alone, so that it
/// survives restarts and other nodes know it without being told. It is part of the wire contract between nodes and
/// must never change:
///
/// 1. FNV-1a, 64 bits, over the bytes of `node`, one zero byte, and `vni` as four bytes, most significant first;
/// 2. folded to 48 bits: the top 16 bits, exclusive or the low 48; these become the octets, most significant first;
/// 3. in the first octet the group bit cleared and the locally administered bit set.
///
/// Source of the hash and of the folding: draft-eastlake-fnv, sections 2 and 3.
///
/// ```
/// assert_eq!(viaduct_config::derive_vtep_mac("demo-a", 1).to_string(), "9a:07:57:4c:7b:5e");
/// ```
pub fn derive_vtep_mac(node: &str, vni: u32) -> Mac {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let vni = vni.to_be_bytes();
    let hash = node
        .bytes()
        .chain([0])
        .chain(vni)
        .fold(OFFSET_BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
    let [_, _, mut octets @ ..] = (hash ^ (hash >> 48)).to_be_bytes();
    octets[0] = (octets[0] & !0b01) | 0b10;
    Mac(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_almost_a_mac() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "+2:00:00:00:00:00",
            "02-00-00-00-00-00",
            "é2:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(ParseMacError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(octets: [u8; 6]) {
            prop_assert_eq!(Mac(octets).to_string().parse(), Ok(Mac(octets)));
        }

        #[test]
        fn derived_is_local_unicast_and_depends_on_both(node in "[a-z0-9-]{1,63}", vni in 1u32..0xff_ffff) {
            let mac = derive_vtep_mac(&node, vni);
            prop_assert!(mac.is_unicast() && mac.0[0] & 0b10 != 0);
            prop_assert_ne!(mac, derive_vtep_mac(&node, vni + 1));
            prop_assert_ne!(mac, derive_vtep_mac(&format!("{node}0"), vni));
        }
    }
}
