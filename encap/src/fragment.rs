//! IPv4 fragmentation (RFC 791, section 2.3 and the procedure in section 3.2).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::net::IpAddr;
use std::ops::Range;

use crate::IpPacket;
use crate::checksum::{fold, sum};

const MIN_HEADER: usize = 20;
const MAX_HEADER: usize = 60;
const MORE_FRAGMENTS: u16 = 0x2000;
const RESERVED: u16 = 0x8000;
const OFFSET: u16 = 0x1fff;

/// A header of a fragment, with the options that it carries.
#[derive(Clone, Copy, Debug)]
struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
    /// Payload behind it in every fragment but the last: a multiple of 8.
    payload: usize,
}

impl Header {
    fn new(mtu: usize, parts: &[&[u8]]) -> Option<Self> {
        let mut bytes = [0; MAX_HEADER];
        let mut used = 0usize;
        for (to, from) in bytes.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
            used = used.saturating_add(1);
        }
        // Padded with the end-of-options octet, which is 0.
        let len = used.next_multiple_of(4);
        let payload = mtu.checked_sub(len)? & !7;
        let ihl = u8::try_from(len >> 2).ok()?;
        *bytes.first_mut()? = 0x40 | ihl;
        (payload > 0).then_some(Self {
            bytes,
            len,
            payload,
        })
    }
}

/// How a packet is cut into pieces of at most an MTU.
#[derive(Clone, Debug)]
pub struct Fragments {
    first: Header,
    /// Of all others: only options whose copied flag is set.
    later: Header,
    /// Bytes behind the packet's own header.
    payload: Range<usize>,
    /// Reserved and more-fragments bit, and offset, of the packet itself.
    field: u16,
}

impl Fragments {
    /// Plans the cuts of the packet that `ip` begins with, at `mtu` bytes of IP
    /// packet. `None` when it may not be cut (IPv6, don't fragment) or the MTU
    /// is below a header and 8 bytes.
    pub fn new(ip: &[u8], packet: &IpPacket, mtu: usize) -> Option<Self> {
        if packet.dont_fragment || !matches!(packet.src, IpAddr::V4(_)) {
            return None;
        }
        // Without extension headers, what is in front of the payload is the header.
        let header = ip.get(..packet.l4_offset)?;
        let (fixed, options) = header.split_at_checked(MIN_HEADER)?;
        let (mut copied, mut copied_len) = ([0u8; MAX_HEADER], 0usize);
        for option in Options(options) {
            if option.first().is_some_and(|kind| kind & 0x80 != 0) {
                let end = copied_len.saturating_add(option.len());
                copied.get_mut(copied_len..end)?.copy_from_slice(option);
                copied_len = end;
            }
        }
        let [.., f0, f1] = *fixed.first_chunk::<8>()?;
        Some(Self {
            first: Header::new(mtu, &[fixed, options])?,
            later: Header::new(mtu, &[fixed, copied.get(..copied_len)?])?,
            payload: packet.l4_offset..packet.len,
            field: u16::from_be_bytes([f0, f1]),
        })
    }

    /// How many pieces there will be, at least one.
    pub fn count(&self) -> usize {
        let rest = self.payload.len().saturating_sub(self.first.payload);
        rest.div_ceil(self.later.payload).saturating_add(1)
    }

    /// Writes piece `index` of the same packet to the front of `out` and returns
    /// its bytes. `None` when there is no such piece, no room for it, or its
    /// offset has more than 13 bits.
    pub fn write(&self, index: usize, ip: &[u8], out: &mut [u8]) -> Option<usize> {
        let last = self.count().checked_sub(1)?;
        if index > last {
            return None;
        }
        let (header, begin) = match index.checked_sub(1) {
            None => (&self.first, 0),
            Some(before) => {
                let begin = before.checked_mul(self.later.payload)?;
                (&self.later, begin.checked_add(self.first.payload)?)
            }
        };
        let end = begin.checked_add(header.payload)?.min(self.payload.len());
        let payload = ip.get(self.payload.clone())?.get(begin..end)?;

        let offset = usize::from(self.field & OFFSET).checked_add(begin >> 3)?;
        let offset = u16::try_from(offset).ok().filter(|&o| o <= OFFSET)?;
        let more = if index < last {
            MORE_FRAGMENTS
        } else {
            self.field & MORE_FRAGMENTS
        };
        let [f0, f1] = (self.field & RESERVED | more | offset).to_be_bytes();

        let len = header.len.checked_add(payload.len())?;
        let out = out.get_mut(..len)?;
        let (head, body) = out.split_at_mut_checked(header.len)?;
        head.copy_from_slice(header.bytes.get(..header.len)?);
        body.copy_from_slice(payload);
        let [l0, l1] = u16::try_from(len).ok()?.to_be_bytes();
        let [_, _, h2, h3, _, _, h6, h7, _, _, c0, c1] = head.first_chunk_mut::<12>()?;
        [*h2, *h3, *h6, *h7, *c0, *c1] = [l0, l1, f0, f1, 0, 0];
        let checksum = !fold(sum(head));
        let [.., c0, c1] = head.first_chunk_mut::<12>()?;
        [*c0, *c1] = checksum.to_be_bytes();
        Some(len)
    }
}

/// The options of an IPv4 header, one by one, without no-operations; ends at
/// the first that is broken.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            match *self.0 {
                [1, ref rest @ ..] => self.0 = rest,
                [kind, len, ..] if kind != 0 && len >= 2 => {
                    let (option, rest) = self.0.split_at_checked(usize::from(len))?;
                    self.0 = rest;
                    return Some(option);
                }
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ethernet;
    use crate::ip::Fragment;
    use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Options};
    use proptest::prelude::*;

    /// A packet that may be a fragment itself, with options.
    fn packet(payload: &[u8], options: &[u8], offset: u16, more: bool) -> Vec<u8> {
        let mut header = Ipv4Header::new(
            u16::try_from(payload.len()).unwrap(),
            9,
            IpNumber(253),
            [1; 4],
            [2; 4],
        )
        .unwrap();
        header.dont_fragment = false;
        header.identification = 77;
        header.options = Ipv4Options::try_from(options).unwrap();
        header.set_payload_len(payload.len()).unwrap();
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        header.more_fragments = more;
        header.header_checksum = header.calc_header_checksum();
        let mut out = Vec::new();
        header.write(&mut out).unwrap();
        out.extend_from_slice(payload);
        out
    }

    fn pieces(ip: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
        let parsed = IpPacket::parse(ip, ethernet::IPV4).unwrap();
        let plan = Fragments::new(ip, &parsed, mtu)?;
        let piece = |i| {
            let mut out = vec![0; 1600];
            let len = plan.write(i, ip, &mut out).unwrap();
            out.truncate(len);
            out
        };
        let made = (0..plan.count()).map(piece).collect();
        assert_eq!(plan.write(plan.count(), ip, &mut [0; 1600]), None);
        Some(made)
    }

    proptest! {
        #[test]
        fn pieces_make_the_packet_again(
            payload in prop::collection::vec(any::<u8>(), 0..1600), mtu in 68usize..1500,
            offset in 0u16..4000, more: bool, options in 0usize..4,
        ) {
            // Router alert (copied), record route (not copied), padding.
            let options = &[148, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 1][..options * 4];
            let options = if options.len() == 8 { &[1; 8] } else { options };
            let payload = if more { &payload[..payload.len() & !7] } else { &payload[..] };
            let ip = packet(payload, options, offset, more);
            let made = pieces(&ip, mtu).unwrap();
            let mut whole = Vec::new();
            for (i, piece) in made.iter().enumerate() {
                prop_assert!(piece.len() <= mtu);
                let read = Ipv4HeaderSlice::from_slice(piece).unwrap();
                prop_assert_eq!(read.header_checksum(), read.to_header().calc_header_checksum());
                prop_assert_eq!(usize::from(read.total_len()), piece.len());
                prop_assert_eq!((read.identification(), read.ttl(), read.protocol()), (77, 9, IpNumber(253)));
                prop_assert_eq!((read.source(), read.destination()), ([1; 4], [2; 4]));
                prop_assert_eq!(usize::from(read.fragments_offset().value() - offset) * 8, whole.len());
                let last = i + 1 == made.len();
                prop_assert_eq!(read.more_fragments(), !last || more);
                if i > 0 {
                    let alert: &[u8] = if options.first() == Some(&148) { &[148, 4, 0, 0] } else { &[] };
                    prop_assert_eq!(read.options(), alert);
                } else {
                    prop_assert_eq!(read.options(), options);
                }
                let body = &piece[read.slice().len()..];
                prop_assert!(last || body.len() % 8 == 0);
                whole.extend_from_slice(body);
            }
            prop_assert_eq!(&whole[..], payload);
        }
    }

    #[test]
    fn what_may_not_be_cut_is_not() {
        let ip = packet(&[3; 1400], &[], 0, false);
        let parsed = IpPacket::parse(&ip, ethernet::IPV4).unwrap();
        let with = |change: fn(&mut IpPacket)| {
            let mut packet = parsed;
            change(&mut packet);
            Fragments::new(&ip, &packet, 1000).is_some()
        };
        assert!(with(|_| ()));
        assert!(with(|p| p.fragment = Fragment::Later));
        assert!(!with(|p| p.dont_fragment = true));
        assert!(!with(|p| p.src = IpAddr::from([1; 16])));
        assert!(Fragments::new(&ip, &parsed, 27).is_none());
        assert!(Fragments::new(&ip, &parsed, 28).is_some());
    }
}
