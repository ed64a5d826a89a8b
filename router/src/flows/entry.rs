//! What is done to the packets of a flow.

use viaduct_encap::ethernet::HEADER_LEN as ETHERNET;
use viaduct_encap::layout::ipv4::{self, HEADER_LEN as IPV4, PLAIN};
use viaduct_encap::layout::over_v4::{IP, PACKET as TUNNEL, UDP, VXLAN};
use viaduct_encap::layout::{ethernet, udp};
use viaduct_encap::{checksum, outer_sum_is_right, patch_v4};
use viaduct_fib::PortId;

use super::key::{Key, at};
use super::{Decision, Side};
use crate::frame::Frame;

/// An inner IP packet and what is in front of it make an outer one that is so much longer.
#[expect(clippy::cast_possible_truncation, reason = "50")]
const OUTER: u16 = (TUNNEL - IP) as u16;

/// A flow's decision: two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(super) struct Entry {
    pub(super) key: Key,
    /// Of which table it is.
    pub(super) generation: u32,
    egress: u16,
    /// Bytes of IP packet that the way takes.
    room: u16,
    /// Sum of the outer IPv4 header without its length and checksum, folded.
    outer_sum: u16,
    /// Sum of the inner pseudo-header without the length, folded.
    pseudo_header: u16,
    /// Bytes of [`header`](Self::header) that are written.
    header_len: u8,
    /// Bytes from the IP header to the transport checksum.
    checksum_at: u8,
    /// The header begins with the second cache line.
    _gap: u16,
    header: [u8; TUNNEL],
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            key: Key::default(),
            generation: 0,
            egress: 0,
            room: 0,
            outer_sum: 0,
            pseudo_header: 0,
            header_len: 0,
            checksum_at: 0,
            _gap: 0,
            header: [0; TUNNEL],
        }
    }
}

impl Entry {
    /// From a decision and the packet that it has made. `None` when it cannot be repeated by
    /// copying a header.
    pub(super) fn new<S: Side>(
        key: Key,
        generation: u32,
        decision: Decision,
        packet: &[u8],
    ) -> Option<Self> {
        let header_len = if decision.egress == PortId::UNDERLAY {
            TUNNEL
        } else {
            ETHERNET
        };
        let (made, ip) = packet.split_at_checked(header_len)?;
        let mut header = [0; TUNNEL];
        header.get_mut(..header_len)?.copy_from_slice(made);
        let outer = header.get(IP..UDP)?;
        // Outer IPv6 is longer; an ECN mark that went inside is of this packet only.
        let outer_is_ipv4 = header_len == ETHERNET
            || (at(&header, ethernet::TYPE) == [8, 0, PLAIN]
                && outer.get(ipv4::PROTOCOL) == Some(&17));
        if !decision.cacheable || !outer_is_ipv4 || ip.get(..2)? != [PLAIN, key.tos()] {
            return None;
        }
        // One that is cut short has no ports: it is not as its flow's others.
        let checksum_at = key.checksum_at::<S>()?;
        if ip.len() < usize::from(checksum_at).saturating_add(2) {
            return None;
        }
        let variable =
            u64::from(u16::from_be_bytes(at(&header, IP + ipv4::TOTAL_LEN))).wrapping_add(
                u64::from(u16::from_be_bytes(at(&header, IP + ipv4::CHECKSUM))),
            );
        // Both words are subtracted in ones' complement: their complements are added.
        let outer_sum = checksum::sum(outer)
            .wrapping_add(2 * 0xffff)
            .wrapping_sub(variable);
        Some(Self {
            key,
            generation,
            egress: decision.egress.0,
            room: decision.room,
            outer_sum: checksum::fold(outer_sum),
            pseudo_header: key.pseudo_header(),
            header_len: u8::try_from(header_len).ok()?,
            checksum_at,
            _gap: 0,
            header,
        })
    }

    /// A word of each cache line.
    #[inline(always)]
    pub(super) fn ends(&self) -> (u32, u8) {
        let [.., last] = self.header;
        (self.generation, last)
    }

    /// Does to a packet with this key what was decided. `None`, and nothing has changed, when the
    /// packet itself does not allow it.
    #[inline(always)]
    pub(super) fn apply<S: Side>(
        &self,
        frame: &mut Frame<'_>,
        finished: &mut u64,
    ) -> Option<PortId> {
        let ip_at = if S::UNDERLAY { TUNNEL } else { ETHERNET };
        let packet = frame.packet();
        let ip = if S::UNDERLAY {
            let end = outer_end(packet)?;
            packet.get(ip_at..end)?
        } else {
            packet.get(ip_at..)?
        };
        let header = ip.first_chunk::<IPV4>()?;
        let length = u16::from_be_bytes(at(header, ipv4::TOTAL_LEN));
        let [ttl] = at(header, ipv4::TTL);
        let ip = ip.get(..usize::from(length))?;
        let field = usize::from(self.checksum_at);
        let checksum = <[u8; 2]>::try_from(ip.get(field..field.wrapping_add(2))?).ok()?;
        if length > self.room || ttl <= 1 || !checksum::is_sound(header) {
            return None;
        }
        let is_partial = u16::from_be_bytes(checksum) == self.partial(length);
        let header_len = usize::from(self.header_len);
        let start = frame.start().wrapping_add(ip_at).checked_sub(header_len)?;
        let packet = frame.place(start, header_len.wrapping_add(usize::from(length)))?;
        if header_len == TUNNEL {
            let headers = packet.first_chunk_mut()?;
            self.write_tunnel(headers, length);
            take_hop::<TUNNEL, _>(headers);
        } else {
            let headers = packet.first_chunk_mut::<{ ETHERNET + IPV4 }>()?;
            put(headers, 0, at::<ETHERNET, _>(&self.header, 0));
            take_hop::<ETHERNET, _>(headers);
        }
        if is_partial {
            self.finish_checksum(packet);
            *finished = finished.wrapping_add(1);
        }
        Some(PortId(self.egress))
    }

    fn finish_checksum(&self, packet: &mut [u8]) {
        let l4 = packet.get_mut(usize::from(self.header_len)..);
        if let Some(l4) = l4.and_then(|ip| ip.get_mut(IPV4..)) {
            checksum::finish(l4, usize::from(self.checksum_at).wrapping_sub(IPV4));
        }
    }

    /// The transport checksum that a sender's kernel leaves to hardware: the pseudo-header's sum.
    #[inline(always)]
    fn partial(&self, ip_len: u16) -> u16 {
        fold(u32::from(self.pseudo_header).wrapping_add(u32::from(ip_len.wrapping_sub(ipv4::LEN))))
    }

    #[inline(always)]
    fn write_tunnel(&self, to: &mut [u8; TUNNEL + IPV4], ip_len: u16) {
        let total = ip_len.wrapping_add(OUTER);
        let sum = !fold(u32::from(self.outer_sum).wrapping_add(u32::from(total)));
        put(to, 0, self.header);
        patch_v4(to, total, sum);
    }
}

/// Where the inner frame ends. `None` when outer lengths or an outer checksum are wrong.
#[inline(always)]
fn outer_end(packet: &[u8]) -> Option<usize> {
    let outer = packet.first_chunk::<VXLAN>()?;
    let total = u16::from_be_bytes(at(outer, IP + ipv4::TOTAL_LEN));
    let length = u16::from_be_bytes(at(outer, UDP + udp::LENGTH));
    let end = usize::from(total).wrapping_add(IP);
    let sound = checksum::is_sound(&at(outer, IP)) && total == length.wrapping_add(ipv4::LEN);
    if !sound || end > packet.len() {
        return None;
    }
    if at(outer, UDP + udp::CHECKSUM) != [0; 2] && !is_right(outer, packet.get(UDP..end)?) {
        return None;
    }
    Some(end)
}

/// Whether an outer UDP checksum is right. Few peers compute one.
#[cold]
#[inline(never)]
fn is_right(outer: &[u8; VXLAN], datagram: &[u8]) -> bool {
    let [source, destination] =
        [0, 4].map(|n| at::<4, _>(outer, (IP + ipv4::SOURCE).wrapping_add(n)));
    outer_sum_is_right(source.into(), destination.into(), datagram)
}

/// Folds the sum of two words, as [`checksum::fold`] does.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    ((sum >> 16).wrapping_add(sum) & 0xffff) as u16
}

/// As [`viaduct_encap::decrement_hop_limit`], for an IPv4 header at `IP` whose TTL is known to be
/// above 1: the word that it is the upper half of becomes 0x100 less (RFC 1624, equation 3).
#[inline(always)]
fn take_hop<const IP: usize, const N: usize>(headers: &mut [u8; N]) {
    let [ttl] = at(headers, IP.wrapping_add(ipv4::TTL));
    let sum = !u16::from_be_bytes(at(headers, IP.wrapping_add(ipv4::CHECKSUM)));
    let sum = !fold(u32::from(sum).wrapping_add(0xffff - 0x100));
    put(headers, IP.wrapping_add(ipv4::TTL), [ttl.wrapping_sub(1)]);
    put(headers, IP.wrapping_add(ipv4::CHECKSUM), sum.to_be_bytes());
}

/// Writes bytes at a place; with arrays of known size the compiler leaves no check.
#[inline(always)]
fn put<const N: usize, const M: usize>(to: &mut [u8; M], at: usize, bytes: [u8; N]) {
    if let Some(place) = to.get_mut(at..at.wrapping_add(N)) {
        place.copy_from_slice(&bytes);
    }
}
