//! Explicit congestion notification over tunnels (RFC 6040, normal mode).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing))]

use crate::checksum;

const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;

/// Which DSCP (RFC 2474) outer packets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dscp {
    /// The inner packet's: the underlay treats it as its sender wants (RFC 2983, uniform model).
    Copy,
    /// This one, 0 to 63, whatever the inner packet has (pipe model).
    Fixed(u8),
}

impl Default for Dscp {
    /// Best effort.
    fn default() -> Self {
        Self::Fixed(0)
    }
}

impl Dscp {
    /// The outer TOS (or traffic class) of an inner one: ECN copied (RFC 6040, section 4.1).
    #[inline]
    pub const fn outer_tos(self, inner_tos: u8) -> u8 {
        match self {
            Self::Copy => inner_tos,
            Self::Fixed(dscp) => dscp << 2 | inner_tos & MASK,
        }
    }
}

/// Congestion was marked on the outer header of a packet whose sender does not
/// understand marks: it has to be dropped (section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcnDrop;

/// Carries the outer header's mark into the inner packet, after figure 4.
///
/// # Errors
/// [`EcnDrop`] for CE outside and not-ECT inside.
#[inline]
pub fn decapsulate(outer_tos: u8, inner_tos: u8, ip: &mut [u8]) -> Result<(), EcnDrop> {
    let new = match (inner_tos & MASK, outer_tos & MASK) {
        (NOT_ECT, CE) => return Err(EcnDrop),
        (NOT_ECT | CE, _) => return Ok(()),
        (_, CE) => CE,
        (_, ECT_1) => ECT_1,
        _ => return Ok(()),
    };
    if new != inner_tos & MASK {
        set(ip, inner_tos & !MASK | new);
    }
    Ok(())
}

fn set(ip: &mut [u8], tos: u8) {
    let Some([b0, b1]) = ip.first_chunk_mut::<2>() else {
        return;
    };
    if *b0 >> 4 == 6 {
        *b0 = *b0 & 0xf0 | tos >> 4;
        *b1 = *b1 & 0x0f | tos << 4;
        return;
    }
    let before = u16::from_be_bytes([*b0, *b1]);
    *b1 = tos;
    let after = u16::from_be_bytes([*b0, tos]);
    if let Some(field) = ip.get_mut(10..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *field = checksum::update(u16::from_be_bytes(*field), before, after).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IpPacket, ethernet};
    use etherparse::PacketBuilder;

    #[test]
    fn the_outer_dscp_is_copied_or_fixed_and_ecn_always_copied() {
        for ecn in 0..4 {
            let inner = 46 << 2 | ecn;
            assert_eq!(Dscp::Copy.outer_tos(inner), inner);
            assert_eq!(Dscp::Fixed(10).outer_tos(inner), 10 << 2 | ecn);
            assert_eq!(Dscp::default().outer_tos(inner), ecn);
        }
    }

    /// RFC 6040, figure 4: rows inner (00, 10, 01, 11), columns outer the same.
    const TABLE: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(2), Some(2), Some(1), Some(3)],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];

    #[test]
    fn decapsulation_follows_figure_4() {
        let marks = [0b00u8, 0b10, 0b01, 0b11];
        for (row, inner) in TABLE.iter().zip(marks) {
            for (want, outer) in row.iter().zip(marks) {
                for v6 in [false, true] {
                    let mut ip = Vec::new();
                    if v6 {
                        PacketBuilder::ipv6([1; 16], [2; 16], 9)
                            .udp(1, 2)
                            .write(&mut ip, &[])
                            .unwrap();
                        ip[1] = inner << 4;
                    } else {
                        PacketBuilder::ipv4([1; 4], [2; 4], 9)
                            .udp(1, 2)
                            .write(&mut ip, &[])
                            .unwrap();
                        set(&mut ip, inner);
                    }
                    let kind = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
                    let got = decapsulate(outer, inner, &mut ip)
                        .ok()
                        .map(|()| IpPacket::parse(&ip, kind).unwrap().tos & 3);
                    assert_eq!(got, *want, "inner {inner:02b} outer {outer:02b} v6 {v6}");
                }
            }
        }
    }
}
