//! Partial checksums inside a tunnel of the pod's own.
//!
//! A kernel leaves one checksum of a packet to hardware, the innermost (`csum_start`,
//! `include/linux/skbuff.h`). A pod that has a tunnel of its own leaves that of the packet inside. The
//! checksums around it are right once the inner one is finished ("local checksum offload",
//! Documentation/networking/checksum-offloads.rst). So known encapsulations are followed to it.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod carried;
#[cfg(test)]
mod tests;

use self::carried::{Carried, GRE, IPIP, MPLS_IN_IP, SIX_IN_FOUR, carried, has_known_start};
use crate::checksum::{self, Finish, fold, pseudo_header, sum};
use crate::finish_partial;
use crate::ip::{Fragment, IpPacket, UDP};
use crate::layout::udp;

/// Encapsulations in one packet that are followed; a Linux host sends through at most eight
/// (`XMIT_RECURSION_LIMIT`).
const MAX_DEPTH: usize = 8;

/// What [`finish_all`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// A checksum was partial, at whatever depth, and has been computed.
    pub finished: bool,
    /// The packet carries another one: each packet of its flow has to be looked into.
    pub encapsulates: bool,
}

/// Finishes the checksum that the sending kernel left to hardware, at whatever depth it stands: the
/// packet's own, or that of a packet inside IP in IP, GRE, VXLAN, Geneve, GUE and FOU, one inside the
/// other.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
pub fn finish_all(ip: &mut [u8], packet: &IpPacket) -> Finished {
    let own = finish_partial(ip, packet) == Finish::Finished;
    if own || packet.fragment != Fragment::Whole || !may_carry(ip, packet) {
        return Finished {
            finished: own,
            encapsulates: false,
        };
    }
    follow(ip, packet)
}

/// Whether [`follow`] may find anything: false for nearly every packet, in a few instructions.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as with finish_all")]
fn may_carry(ip: &[u8], packet: &IpPacket) -> bool {
    match packet.protocol {
        UDP => ip
            .get(packet.l4_offset..packet.len)
            .and_then(|l4| l4.get(udp::HEADER_LEN..))
            .is_some_and(has_known_start),
        IPIP | SIX_IN_FOUR | MPLS_IN_IP | GRE => true,
        _ => false,
    }
}

#[cold]
#[inline(never)]
fn follow(ip: &mut [u8], packet: &IpPacket) -> Finished {
    let mut result = Finished {
        finished: false,
        encapsulates: false,
    };
    let (mut at, mut outer) = (0usize, *packet);
    // Where the innermost UDP checksum around stands, in bytes, and its pseudo-header's sum.
    let mut around = None;
    for _ in 0..MAX_DEPTH {
        if outer.fragment != Fragment::Whole {
            break;
        }
        let (start, end) = (
            at.saturating_add(outer.l4_offset),
            at.saturating_add(outer.len),
        );
        let Some(carried) = ip
            .get(start..end)
            .and_then(|l4| carried(outer.protocol, l4))
        else {
            break;
        };
        result.encapsulates = true;
        if outer.protocol == UDP && ip.get(start.saturating_add(6)..end).is_some_and(has_sum) {
            let length = end.saturating_sub(start);
            around = Some((start..end, pseudo_header(outer.src, outer.dst, UDP, length)));
        }
        let Carried::Ip(offset, ether_type) = carried else {
            break;
        };
        at = start.saturating_add(offset);
        let Some(inside) = ip.get_mut(at..end) else {
            break;
        };
        let Ok(inner) = IpPacket::parse(inside, ether_type) else {
            break;
        };
        if checksum::is_partial(inside, &inner) {
            // A sum around it that is right already says that the packet inside is as it should be.
            let is_right = around.is_some_and(|(range, pseudo)| {
                let sum = ip.get(range).map_or(0, sum);
                fold(pseudo.wrapping_add(sum)) == 0xffff
            });
            if let (false, Some(inside)) = (is_right, ip.get_mut(at..end)) {
                result.finished = finish_partial(inside, &inner) == Finish::Finished;
            }
            break;
        }
        outer = inner;
    }
    result
}

/// A UDP checksum of 0 is none (RFC 768).
fn has_sum(field: &[u8]) -> bool {
    field.first_chunk::<2>().is_some_and(|sum| *sum != [0; 2])
}
