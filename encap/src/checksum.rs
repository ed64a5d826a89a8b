//! The Internet checksum (RFC 1071, RFC 1624) and finishing of checksums that
//! a pod's kernel left partial.
#![allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::IpAddr;

use crate::ip::{Fragment, IpPacket, SCTP, TCP, UDP};
use crate::layout::{tcp, udp};

/// Bytes added side by side in [`sum`]: eight lanes of four bytes, which the
/// compiler turns into vector additions.
const BLOCK: usize = 32;

/// Ones' complement sum of 16-bit words in network order, to be added to others
/// and folded. An odd last byte counts as the high half of a word.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    // Added in the machine's byte order and swapped once at the end: the sum
    // does not depend on it (RFC 1071, section 2 B). A 64-bit lane of 32-bit
    // words cannot overflow below 2^32 words, far above any packet.
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut lanes = [0u64; BLOCK / 4];
    for block in blocks {
        for (lane, &word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(word)));
        }
    }
    let mut total = lanes.iter().fold(0u64, |a, &b| a.wrapping_add(b));
    let (words, rest) = rest.as_chunks::<4>();
    for &word in words {
        total = total.wrapping_add(u64::from(u32::from_ne_bytes(word)));
    }
    let last = match *rest {
        [a, b, c] => [a, b, c, 0],
        [a, b] => [a, b, 0, 0],
        [a] => [a, 0, 0, 0],
        _ => [0; 4],
    };
    total = total.wrapping_add(u64::from(u32::from_ne_bytes(last)));
    u64::from(fold(total).to_be())
}

/// Whether an IPv4 header that is not all zeros has a sum of all ones (RFC 1071), that is one
/// that 65,535 divides. Words of eight bytes in any byte order are added with their carries: 2^64
/// leaves 1, as 2^16 does.
#[inline(always)]
pub fn is_sound(header: &[u8; 20]) -> bool {
    let add = |a: u64, b: u64| {
        let (sum, carry) = a.overflowing_add(b);
        sum.wrapping_add(u64::from(carry))
    };
    let (words, rest) = header.as_chunks::<8>();
    let sum = words
        .iter()
        .fold(0, |sum, word| add(sum, u64::from_ne_bytes(*word)));
    let last = rest
        .first_chunk()
        .map_or(0, |last| u32::from_ne_bytes(*last));
    add(sum, last.into()) % 0xffff == 0
}

/// Folds a sum to 16 bits, not complemented.
#[inline]
pub const fn fold(sum: u64) -> u16 {
    let mut s = (sum >> 32).wrapping_add(sum & 0xffff_ffff);
    s = (s >> 32).wrapping_add(s & 0xffff_ffff);
    s = (s >> 16).wrapping_add(s & 0xffff);
    s = (s >> 16).wrapping_add(s & 0xffff);
    s = (s >> 16).wrapping_add(s & 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    {
        s as u16
    }
}

/// The checksum field after one 16-bit word went from `before` to `after`:
/// `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3).
#[inline]
pub const fn update(checksum: u16, before: u16, after: u16) -> u16 {
    !fold(
        (!checksum as u64)
            .wrapping_add(!before as u64)
            .wrapping_add(after as u64),
    )
}

/// Unfolded sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200,
/// section 8.1). `length` is that of the upper-layer packet, in bytes.
#[inline]
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            u64::from(s.to_bits()).wrapping_add(u64::from(d.to_bits()))
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => words(s.to_bits()).wrapping_add(words(d.to_bits())),
        // One packet has one family: IpPacket::parse sees to it.
        _ => 0,
    };
    addresses
        .wrapping_add(u64::from(protocol))
        .wrapping_add(length as u64)
}

/// The sum of an IPv6 address, as words of 32 bits.
#[inline]
const fn words(address: u128) -> u64 {
    const LOW: u128 = 0xffff_ffff;
    let total = (address >> 96)
        .wrapping_add(address >> 64 & LOW)
        .wrapping_add(address >> 32 & LOW)
        .wrapping_add(address & LOW);
    total as u64
}

/// What [`finish_partial`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The checksum was complete (or absent) already.
    Complete,
    /// It was partial and has been computed over the payload.
    Finished,
    /// No checksum of ours to finish: a fragment or another protocol.
    NotApplicable,
}

/// Finishes a transport checksum that the sending kernel left to hardware
/// (`CHECKSUM_PARTIAL`, `include/linux/skbuff.h`): the field then holds the
/// folded pseudo-header sum, or 0 for SCTP. Only finishing reads the payload.
///
/// A complete checksum that equals the mark by chance is computed anew, to the
/// same value.
#[inline(always)]
pub fn finish_partial(ip: &mut [u8], packet: &IpPacket) -> Finish {
    if packet.fragment != Fragment::Whole {
        return Finish::NotApplicable;
    }
    let Some(l4) = ip.get_mut(packet.l4_offset..packet.len) else {
        return Finish::NotApplicable;
    };
    match packet.protocol {
        TCP => finish_sum(l4, packet, tcp::CHECKSUM),
        UDP => finish_sum(l4, packet, udp::CHECKSUM),
        SCTP => finish_crc32c(l4),
        _ => Finish::NotApplicable,
    }
}

/// Whether [`finish_partial`] would compute a checksum. Reads no payload.
pub(crate) fn is_partial(ip: &[u8], packet: &IpPacket) -> bool {
    if packet.fragment != Fragment::Whole {
        return false;
    }
    let Some(l4) = ip.get(packet.l4_offset..packet.len) else {
        return false;
    };
    let field = |at: usize| l4.get(at..).and_then(<[u8]>::first_chunk::<2>);
    let mark = || {
        fold(pseudo_header(
            packet.src,
            packet.dst,
            packet.protocol,
            l4.len(),
        ))
        .to_be_bytes()
    };
    match packet.protocol {
        TCP => field(tcp::CHECKSUM).is_some_and(|sum| *sum == mark()),
        UDP => field(udp::CHECKSUM).is_some_and(|sum| *sum == mark()),
        SCTP => l4.get(8..12).is_some_and(|crc| crc == [0; 4]),
        _ => false,
    }
}

#[inline]
fn finish_sum(l4: &mut [u8], packet: &IpPacket, field: usize) -> Finish {
    let partial = fold(pseudo_header(
        packet.src,
        packet.dst,
        packet.protocol,
        l4.len(),
    ));
    let Some(bytes) = l4.get_mut(field..).and_then(<[u8]>::first_chunk_mut::<2>) else {
        return Finish::NotApplicable;
    };
    if u16::from_be_bytes(*bytes) != partial {
        return Finish::Complete;
    }
    finish(l4, field);
    Finish::Finished
}

/// Finishes the checksum of a TCP or UDP packet, at `field`, which has the folded sum of the
/// pseudo-header there.
pub fn finish(l4: &mut [u8], field: usize) {
    // The field holds the pseudo-header's sum, so one sum over everything is
    // the whole checksum.
    let mut checksum = !fold(sum(l4));
    if field == udp::CHECKSUM && checksum == 0 {
        checksum = 0xffff; // RFC 768: zero means none
    }
    if let Some(bytes) = l4.get_mut(field..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *bytes = checksum.to_be_bytes();
    }
}

/// SCTP's CRC32c (RFC 9260, appendix A) over the packet with a zero field,
/// least significant byte first.
#[inline]
fn finish_crc32c(l4: &mut [u8]) -> Finish {
    match l4.get(8..).and_then(<[u8]>::first_chunk::<4>) {
        None => return Finish::NotApplicable,
        Some(&field) if field != [0; 4] => return Finish::Complete,
        Some(_) => {}
    }
    let crc = crc32c::crc32c(l4);
    if let Some(field) = l4.get_mut(8..).and_then(<[u8]>::first_chunk_mut::<4>) {
        *field = crc.to_le_bytes();
    }
    Finish::Finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    /// A packet with the checksum that etherparse computed, and where it is.
    fn packet(v6: bool, tcp: bool, payload: &[u8]) -> (Vec<u8>, u16, usize) {
        let mut out = Vec::new();
        if v6 {
            let b = PacketBuilder::ipv6([1; 16], [7; 16], 64);
            if tcp {
                b.tcp(80, 1025, 7, 999).write(&mut out, payload)
            } else {
                b.udp(53, 1025).write(&mut out, payload)
            }
            .unwrap();
        } else {
            let b = PacketBuilder::ipv4([10, 1, 2, 3], [10, 4, 5, 6], 64);
            if tcp {
                b.tcp(80, 1025, 7, 999).write(&mut out, payload)
            } else {
                b.udp(53, 1025).write(&mut out, payload)
            }
            .unwrap();
        }
        let ip_len = if v6 { 40 } else { 20 };
        (
            out,
            if v6 { ethernet::IPV6 } else { ethernet::IPV4 },
            ip_len + if tcp { 16 } else { 6 },
        )
    }

    proptest! {
        #[test]
        fn partial_is_finished_as_etherparse_does(v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..1500)) {
            let (good, ether_type, field) = packet(v6, tcp, &payload);
            let mut bytes = good.clone();
            let p = IpPacket::parse(&bytes, ether_type).unwrap();
            let partial = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
            bytes[field..field + 2].copy_from_slice(&partial.to_be_bytes());
            prop_assert_eq!(finish_partial(&mut bytes, &p), Finish::Finished);
            prop_assert_eq!(&bytes, &good);
            finish_partial(&mut bytes, &p);
            prop_assert_eq!(&bytes, &good);
        }

        #[test]
        fn an_update_equals_a_new_sum(mut words in prop::collection::vec(any::<u16>(), 2..20), at in 0usize..20, new: u16) {
            let bytes = |w: &[u16]| w.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let at = at % words.len();
            let before = !fold(sum(&bytes(&words)));
            let updated = update(before, words[at], new);
            words[at] = new;
            words.push(updated);
            // Whatever of the two zeros came out, the receiver's sum is all ones
            // unless everything is zero.
            let total = fold(sum(&bytes(&words)));
            prop_assert!(total == 0xffff || words.iter().all(|&w| w == 0 || w == 0xffff));
        }
    }

    #[test]
    fn sctp_crc_has_the_known_value() {
        // CRC32c of 32 zero bytes is 0x8a9136aa (RFC 3720, B.4).
        let mut l4 = [0u8; 32];
        assert_eq!(finish_crc32c(&mut l4), Finish::Finished);
        assert_eq!(l4[8..12], 0x8a91_36aau32.to_le_bytes());
        assert_eq!(finish_crc32c(&mut l4), Finish::Complete);
    }
}
