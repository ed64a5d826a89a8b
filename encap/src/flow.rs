//! Flow entropy: the outer source port that spreads flows over paths and
//! queues (RFC 7348, section 5).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::net::IpAddr;

use crate::ip::{Fragment, IpPacket};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio

#[inline]
const fn mix(hash: u64, word: u64) -> u64 {
    let product = (hash ^ word) as u128;
    let product = product.wrapping_mul(MULTIPLIER as u128);
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    {
        (product as u64) ^ ((product >> 64) as u64)
    }
}

#[inline]
const fn words(address: IpAddr) -> (u64, u64) {
    match address {
        IpAddr::V4(a) => (a.to_bits() as u64, 0),
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        IpAddr::V6(a) => ((a.to_bits() >> 64) as u64, a.to_bits() as u64),
    }
}

/// A hash of addresses, protocol and ports. Fragments have the same hash,
/// first or later: they take the same path, without their ports.
#[inline]
pub fn flow_hash(packet: &IpPacket) -> u32 {
    let (src, dst) = (words(packet.src), words(packet.dst));
    let ports = match (packet.fragment, packet.ports) {
        (Fragment::Whole, Some((s, d))) => u64::from(s) << 16 | u64::from(d),
        _ => 0,
    };
    let protocol = if packet.fragment == Fragment::Whole {
        packet.protocol
    } else {
        0
    };
    let mut hash = mix(MULTIPLIER, src.0.rotate_left(32) ^ dst.0);
    hash = mix(hash, src.1.rotate_left(32) ^ dst.1);
    hash = mix(hash, ports << 8 | u64::from(protocol));
    (hash >> 32) as u32
}

/// The outer source port of a flow: 49152 to 65535, the dynamic ports
/// (RFC 6335, section 6).
#[inline]
pub const fn source_port(hash: u32) -> u16 {
    0xc000 | (hash & 0x3fff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn packet(port: u16, fragment: Fragment) -> IpPacket {
        IpPacket {
            src: IpAddr::from([10, 0, 0, 1]),
            dst: IpAddr::from([10, 0, 1, 1]),
            hop_limit: 64,
            tos: 0,
            protocol: 17,
            l4_offset: 20,
            len: 28,
            fragment,
            dont_fragment: false,
            ports: (fragment != Fragment::Later).then_some((port, 53)),
        }
    }

    proptest! {
        #[test]
        fn the_port_is_dynamic(hash: u32) {
            prop_assert!(source_port(hash) >= 49152);
        }
    }

    #[test]
    fn flows_spread_and_fragments_stay_together() {
        let ports: HashSet<_> = (0..1000)
            .map(|p| source_port(flow_hash(&packet(p, Fragment::Whole))))
            .collect();
        assert!(ports.len() > 900, "{} of 1000", ports.len());
        assert_eq!(
            flow_hash(&packet(7, Fragment::First)),
            flow_hash(&packet(0, Fragment::Later))
        );
    }
}
