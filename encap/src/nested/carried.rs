//! How encapsulations show, and where the packet inside begins.

use crate::ethernet;
use crate::ip::{IpPacket, UDP};
use crate::layout::{ipv6, udp};

/// Tags, or MPLS labels, behind one another that are followed.
const MAX_TAGS: usize = 8;

/// Protocol numbers (IANA) of what carries packets.
pub(super) const IPIP: u8 = 4;
pub(super) const SIX_IN_FOUR: u8 = 41;
pub(super) const GRE: u8 = 47;
pub(super) const MPLS_IN_IP: u8 = 137;

/// `EtherType`s of what is carried.
const TRANSPARENT_ETHERNET: u16 = 0x6558;
const ERSPAN: u16 = 0x88be;
const ERSPAN_3: u16 = 0x22eb;
const MPLS: u16 = 0x8847;

/// What an encapsulation carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// IP of this `EtherType`, so many bytes behind.
    Ip(usize, u16),
    /// Something else, such as ARP.
    Other,
}

impl Carried {
    fn behind(self, bytes: usize) -> Self {
        match self {
            Self::Ip(at, kind) => Self::Ip(at.saturating_add(bytes), kind),
            Self::Other => Self::Other,
        }
    }
}

/// What the payload of an IP packet carries, if it is an encapsulation.
pub(super) fn carried(protocol: u8, l4: &[u8]) -> Option<Carried> {
    match protocol {
        IPIP => Some(Carried::Ip(0, ethernet::IPV4)),
        SIX_IN_FOUR => Some(Carried::Ip(0, ethernet::IPV6)),
        MPLS_IN_IP => mpls(l4),
        GRE => gre(l4),
        UDP => {
            let payload = l4.get(udp::HEADER_LEN..)?;
            Some(in_udp(payload)?.behind(udp::HEADER_LEN))
        }
        _ => None,
    }
}

/// Ports are anybody's choice, so it is the shape that tells: bits that have to be zero, a type that
/// is known, and of several the one inside which there is a sound header. Where something else looks
/// so by chance, a checksum that is the pseudo-header's sum has still to be found.
pub(super) fn in_udp(payload: &[u8]) -> Option<Carried> {
    if !has_known_start(payload) {
        return None;
    }
    let sound = |carried: &Carried| match *carried {
        Carried::Ip(at, kind) => payload
            .get(at..)
            .is_some_and(|rest| IpPacket::parse(rest, kind).is_ok()),
        Carried::Other => true,
    };
    let (geneve, vxlan) = (geneve(payload), vxlan(payload));
    geneve
        .filter(sound)
        .or_else(|| vxlan.filter(sound))
        .or_else(|| exactly_ip(payload, 0))
        .or_else(|| gue(payload))
        .or_else(|| exactly(payload, gre(payload)?))
        .or(geneve)
        .or(vxlan)
}

/// Whether the first eight bytes of a datagram are possible for one of the encapsulations of
/// [`in_udp`]. Each of its functions checks more: this one only spares the others a search.
#[inline]
pub(super) fn has_known_start(payload: &[u8]) -> bool {
    // What is shorter has no room for a header and a packet.
    let Some(&[first, second, t0, t1, l0, l1, _, last]) = payload.first_chunk() else {
        return false;
    };
    let third = u16::from_be_bytes([t0, t1]);
    match first >> 4 {
        // IP itself, whose length is that of the payload.
        4 => usize::from(third) == payload.len(),
        6 => {
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            length.saturating_add(ipv6::HEADER_LEN) == payload.len()
        }
        0..4 | 8..12 => {
            let reserved = second & 0x3f != 0;
            let geneve_or_gre = !reserved && is_known_type(third);
            let gue = third == 0 && matches!(second, IPIP | SIX_IN_FOUR | GRE);
            let vxlan = matches!(first, 0x08 | 0x0c | 0x88) && last == 0;
            geneve_or_gre || gue || vxlan
        }
        _ => false,
    }
}

/// The `EtherType`s that [`gre`] and [`of_type`] know.
fn is_known_type(ether_type: u16) -> bool {
    matches!(
        ether_type,
        ethernet::IPV4 | ethernet::IPV6 | TRANSPARENT_ETHERNET | MPLS | ERSPAN | ERSPAN_3
    )
}

/// Behind an `EtherType`, `at` bytes into `bytes`.
fn of_type(ether_type: u16, bytes: &[u8], at: usize) -> Option<Carried> {
    let rest = bytes.get(at..)?;
    match ether_type {
        ethernet::IPV4 | ethernet::IPV6 => Some(Carried::Ip(at, ether_type)),
        TRANSPARENT_ETHERNET => Some(in_ethernet(rest)?.behind(at)),
        MPLS => Some(mpls(rest)?.behind(at)),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*word))
}

fn in_ethernet(frame: &[u8]) -> Option<Carried> {
    let mut at = ethernet::HEADER_LEN;
    let mut kind = word(frame, 12)?;
    for _ in 0..MAX_TAGS {
        if !matches!(kind, ethernet::VLAN | ethernet::QINQ) {
            break;
        }
        kind = word(frame, at.saturating_add(2))?;
        at = at.saturating_add(4);
    }
    Some(of_type(kind, frame, at).unwrap_or(Carried::Other))
}

/// Labels, the last of which says so (RFC 3032, section 2.1); IP shows by its version.
fn mpls(bytes: &[u8]) -> Option<Carried> {
    let (labels, _) = bytes.as_chunks::<4>();
    let last = labels
        .iter()
        .take(MAX_TAGS)
        .position(|[_, _, bottom, _]| bottom & 1 == 1)?;
    let at = last.saturating_add(1).saturating_mul(4);
    Some(match bytes.get(at)? >> 4 {
        4 => Carried::Ip(at, ethernet::IPV4),
        6 => Carried::Ip(at, ethernet::IPV6),
        _ => Carried::Other,
    })
}

/// RFC 2784 and 2890; ERSPAN as Linux has it (`include/net/erspan.h`).
pub(super) fn gre(bytes: &[u8]) -> Option<Carried> {
    let &[flags, version, k0, k1] = bytes.first_chunk()?;
    if flags & 0x4f != 0 || version != 0 {
        return None;
    }
    let optional = (flags & 0xb0).count_ones().saturating_mul(4);
    let at = usize::try_from(optional).ok()?.saturating_add(4);
    match u16::from_be_bytes([k0, k1]) {
        ERSPAN => {
            let at = at.saturating_add(if flags & 0x10 == 0 { 0 } else { 8 });
            of_type(TRANSPARENT_ETHERNET, bytes, at)
        }
        ERSPAN_3 => {
            let more = *bytes.get(at.saturating_add(11))? & 1;
            let at = at.saturating_add(if more == 0 { 12 } else { 20 });
            of_type(TRANSPARENT_ETHERNET, bytes, at)
        }
        kind => of_type(kind, bytes, at),
    }
}

/// RFC 8926, section 3.4: version 0, reserved bits zero.
pub(super) fn geneve(payload: &[u8]) -> Option<Carried> {
    let &[first, second, k0, k1, _, _, _, reserved] = payload.first_chunk()?;
    if first >> 6 != 0 || second & 0x3f != 0 || reserved != 0 {
        return None;
    }
    let options = usize::from(first & 0x3f).saturating_mul(4);
    of_type(
        u16::from_be_bytes([k0, k1]),
        payload,
        options.saturating_add(8),
    )
}

/// RFC 7348, section 5, with the bits of a group policy (draft-smith-vxlan-group-policy) or a next
/// protocol (draft-ietf-nvo3-vxlan-gpe). Not with remote checksum offload, whose inner checksum is
/// meant to be partial.
pub(super) fn vxlan(payload: &[u8]) -> Option<Carried> {
    const IPV4: u8 = 1;
    const IPV6: u8 = 2;
    const ETHERNET: u8 = 3;
    let &[flags, policy, _, next, _, _, _, reserved] = payload.first_chunk()?;
    if reserved != 0 {
        return None;
    }
    let kind = match (flags, policy, next) {
        (0x08, 0, 0) | (0x0c, 0, ETHERNET) | (0x88, 0 | 0x08 | 0x40 | 0x48, _) => {
            TRANSPARENT_ETHERNET
        }
        (0x0c, 0, IPV4) => ethernet::IPV4,
        (0x0c, 0, IPV6) => ethernet::IPV6,
        _ => return None,
    };
    of_type(kind, payload, 8)
}

/// Generic UDP encapsulation of a data message without flags (draft-ietf-intarea-gue, section 3).
pub(super) fn gue(payload: &[u8]) -> Option<Carried> {
    let &[first, protocol, 0, 0] = payload.first_chunk()? else {
        return None;
    };
    if first & 0xe0 != 0 {
        return None;
    }
    let at = usize::from(first & 0x1f)
        .saturating_mul(4)
        .saturating_add(4);
    match protocol {
        IPIP | SIX_IN_FOUR => exactly_ip(payload, at),
        GRE => exactly(payload, gre(payload.get(at..)?)?.behind(at)),
        _ => None,
    }
}

/// IP that fills the rest, its header sound: foo over UDP has nothing else to be known by.
pub(super) fn exactly_ip(payload: &[u8], at: usize) -> Option<Carried> {
    let kind = match payload.get(at)? >> 4 {
        4 => ethernet::IPV4,
        6 => ethernet::IPV6,
        _ => return None,
    };
    exactly(payload, Carried::Ip(at, kind))
}

pub(super) fn exactly(payload: &[u8], carried: Carried) -> Option<Carried> {
    let Carried::Ip(at, kind) = carried else {
        return None;
    };
    let rest = payload.get(at..)?;
    let packet = IpPacket::parse(rest, kind).ok()?;
    (packet.len == rest.len()).then_some(carried)
}
