//! Frames of every shape from either side: one verdict, and what is sent is valid for a decoder that
//! shares no code with the router.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p viaduct-router --test frames` runs for long;
//! what it finds goes to `frames.proptest-regressions`, which is committed and run first.

mod fixture;

use std::net::Ipv6Addr;

use etherparse::{
    EtherType, Ethernet2Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};
use fixture::{GATEWAY, HEADROOM, POD, PORT, chunk, node, vtep_mac};
use proptest::prelude::*;
use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_fib::{PortId, Reader};
use viaduct_router::{Exception, Frame, Tick, Verdict, WorkerState, answer, forward};

/// A packet of some shape.
#[derive(Clone, Debug)]
struct Shape {
    /// Otherwise IPv4.
    v6: bool,
    from: Host,
    to: Host,
    ttl: u8,
    tos: u8,
    protocol: u8,
    /// IPv4: words of options. IPv6: extension headers, in this order.
    extra: Vec<u8>,
    flags: u16,
    payload: usize,
}

#[derive(Clone, Copy, Debug)]
enum Host {
    Here,
    There,
    Other([u8; 16]),
}

impl Host {
    fn v4(self) -> [u8; 4] {
        match self {
            Self::Here => [10, 244, 1, 2],
            Self::There => [10, 244, 2, 2],
            Self::Other([a, b, c, d, ..]) => [a, b, c, d],
        }
    }

    fn v6(self) -> [u8; 16] {
        let pod = |node: u16| Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, 2).octets();
        match self {
            Self::Here => pod(1),
            Self::There => pod(2),
            Self::Other(address) => address,
        }
    }
}

impl Shape {
    /// As an Ethernet frame from the pod.
    fn frame(&self) -> Vec<u8> {
        let (ether_type, ip) = if self.v6 {
            (ethernet::IPV6, self.ip_v6())
        } else {
            (ethernet::IPV4, self.ip_v4())
        };
        let ethernet = Ethernet {
            destination: GATEWAY,
            source: POD,
            ether_type,
        };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend(ip);
        frame.extend((0..self.payload).map(|n| u8::try_from(n % 251).expect("small")));
        frame
    }

    fn ip_v4(&self) -> Vec<u8> {
        let header = 20 + 4 * self.extra.len();
        let mut ip = vec![0; header];
        ip[0] = 0x40 | u8::try_from(header / 4).expect("at most 60 bytes");
        ip[1] = self.tos;
        let length = u16::try_from(header + self.payload).expect("short");
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[6..8].copy_from_slice(&self.flags.to_be_bytes());
        (ip[8], ip[9]) = (self.ttl, self.protocol);
        ip[12..16].copy_from_slice(&self.from.v4());
        ip[16..20].copy_from_slice(&self.to.v4());
        // No-operations, which fill up.
        ip[20..].fill(1);
        let sum = viaduct_encap::checksum::fold(viaduct_encap::checksum::sum(&ip));
        ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
        ip
    }

    fn ip_v6(&self) -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[1]) = (0x60 | self.tos >> 4, self.tos << 4);
        let length = u16::try_from(8 * self.extra.len() + self.payload).expect("short");
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        let mut kinds = self.extra.iter().copied().chain([self.protocol]);
        (ip[6], ip[7]) = (kinds.next().expect("at least one"), self.ttl);
        ip[8..24].copy_from_slice(&self.from.v6());
        ip[24..].copy_from_slice(&self.to.v6());
        for (kind, next) in self.extra.iter().zip(kinds) {
            let [flags0, flags1] = self.flags.to_be_bytes();
            ip.extend(match kind {
                // A fragment: offset and flags, and an identification.
                44 => [next, 0, flags0, flags1, 1, 2, 3, 4],
                // Padding of six bytes (RFC 8200, section 4.2).
                _ => [next, 0, 1, 4, 0, 0, 0, 0],
            });
        }
        ip
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let host = prop_oneof![
        4 => Just(Host::Here),
        4 => Just(Host::There),
        1 => any::<[u8; 16]>().prop_map(Host::Other),
    ];
    let protocol = prop_oneof![Just(17), Just(6), Just(1), Just(58), Just(132), any::<u8>()];
    let flags = prop_oneof![
        3 => Just(0u16),
        2 => Just(0x4000),
        1 => Just(0x2000),
        1 => any::<u16>()
    ];
    let extra = prop::collection::vec(prop_oneof![Just(0u8), Just(60), Just(43), Just(44)], 0..4);
    (
        (any::<bool>(), host.clone(), host),
        prop_oneof![4 => Just(64), 1 => any::<u8>()],
        any::<u8>(),
        protocol,
        extra,
        flags,
        prop_oneof![0usize..200, 1300usize..1700],
    )
        .prop_map(
            |((v6, from, to), ttl, tos, protocol, extra, flags, payload)| Shape {
                v6,
                from,
                to,
                ttl,
                tos,
                protocol,
                extra,
                flags,
                payload,
            },
        )
}

/// A frame in a chunk, and what forwarding makes of it.
struct Run {
    chunk: Vec<u8>,
    verdict: Verdict,
    start: usize,
    len: usize,
}

fn run(reader: &Reader, frame: &[u8], from: PortId) -> Option<Run> {
    let mut chunk = vec![0; 4096];
    chunk
        .get_mut(HEADROOM..HEADROOM + frame.len())?
        .copy_from_slice(frame);
    let mut at = Frame::new(&mut chunk, HEADROOM, frame.len())?;
    let mut state = WorkerState::default();
    let verdict = forward(&reader.load(), &mut state, &mut at, from, Tick(0));
    let (start, len) = (at.start(), at.len());
    Some(Run {
        chunk,
        verdict,
        start,
        len,
    })
}

/// An Ethernet frame with an IP packet that fills it, headers sound; its TTL or hop limit. What the
/// pod has put behind the IP headers is its own affair.
fn decoded(frame: &[u8]) -> u8 {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).expect("an Ethernet frame");
    let payload = ethernet.payload().payload;
    match ethernet.ether_type() {
        EtherType::IPV4 => {
            let header = Ipv4HeaderSlice::from_slice(payload).expect("valid for etherparse");
            // etherparse would leave the reserved flag out of the sum (RFC 791, section 3.1).
            let words = header.slice().chunks(2);
            let sum = words.fold(0, |sum, word| {
                sum + u64::from(word[0]) * 256 + u64::from(word[1])
            });
            assert_eq!(sum % 0xffff, 0, "header checksum");
            assert_eq!(usize::from(header.total_len()), payload.len());
            header.ttl()
        }
        EtherType::IPV6 => {
            // Its extension headers are for the receiver; etherparse also reads what stands behind
            // a later fragment's header as such, which is payload.
            let header = Ipv6HeaderSlice::from_slice(payload).expect("valid for etherparse");
            assert_eq!(usize::from(header.payload_length()), payload.len() - 40);
            header.hop_limit()
        }
        other => panic!("{other:?} was sent"),
    }
}

/// Checks what is sent to the underlay, and gives the inner frame.
fn decapsulated(frame: &[u8]) -> &[u8] {
    assert_eq!(decoded(frame), 64, "the outer TTL is our own");
    let sliced = SlicedPacket::from_ethernet(frame).expect("checked");
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP: {sliced:?}");
    };
    assert_eq!((udp.destination_port(), udp.checksum()), (8472, 0));
    let inner = udp.payload();
    assert_eq!(inner[..8], [8, 0, 0, 0, 0, 0, 1, 0], "VXLAN");
    &inner[8..]
}

/// Everything that has to be true of what becomes of a frame.
fn check(reader: &Reader, frame: &[u8], from: PortId, ttl: Option<u8>) {
    let Some(mut run) = run(reader, frame, from) else {
        return;
    };
    assert!(run.start + run.len <= run.chunk.len());
    let sent = run.chunk[run.start..run.start + run.len].to_vec();
    match run.verdict {
        Verdict::Send(PortId::UNDERLAY) => {
            let inner = decapsulated(&sent);
            assert_eq!(inner[..6], vtep_mac(2).0);
            let left = decoded(inner);
            assert!(ttl.is_none_or(|ttl| left + 1 == ttl), "one hop less");
        }
        Verdict::Send(to) => {
            assert_eq!(to, PORT);
            assert_eq!(sent[..6], POD.0);
            decoded(&sent);
        }
        Verdict::Exception(Exception::IcmpError { network, error, .. }) => {
            let mut at = Frame::new(&mut run.chunk, run.start, run.len).expect("inside");
            if let Some(Verdict::Send(_)) = answer(&reader.load(), &mut at, network, error) {
                let packet = at.packet().to_vec();
                let error = if packet[..6] == POD.0 {
                    &packet[..]
                } else {
                    decapsulated(&packet)
                };
                decoded(error);
            }
        }
        Verdict::Punt(_) | Verdict::Exception(_) => {
            assert!(
                matches!(sent.first().map(|b| b >> 4), Some(4 | 6)),
                "at the IP header"
            );
        }
        Verdict::Drop(_) => {}
    }
}

proptest! {
    #[test]
    fn packets_of_every_shape(shape in shape()) {
        let (_publisher, reader) = node(1, true);
        check(&reader, &shape.frame(), PORT, Some(shape.ttl));
    }

    /// Some bytes of a sound packet are others, and it may be cut short.
    #[test]
    fn damaged_packets(
        shape in shape(),
        tunnelled: bool,
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..200),
    ) {
        let (_publisher, reader) = node(1, true);
        let mut frame = shape.frame();
        if tunnelled {
            // As the other node would send it.
            let (_other, other) = node(2, true);
            let Some(run) = run(&other, &frame, PORT) else { return Ok(()) };
            frame = run.chunk[run.start..run.start + run.len].to_vec();
        }
        for (at, byte) in damage {
            if let Some(place) = frame.get_mut(at) { *place = byte; }
        }
        if let Some(cut) = cut { frame.truncate(cut); }
        check(&reader, &frame, if tunnelled { PortId::UNDERLAY } else { PORT }, None);
    }

    #[test]
    fn noise(frame in prop::collection::vec(any::<u8>(), 0..300), underlay: bool) {
        let (_publisher, reader) = node(1, true);
        check(&reader, &frame, if underlay { PortId::UNDERLAY } else { PORT }, None);
    }
}

/// The decoder does see faults: these checks can fail.
#[test]
fn the_decoder_finds_faults() {
    let (chunk, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 20);
    let frame = &chunk[HEADROOM..HEADROOM + len];
    assert_eq!(decoded(frame), 64);
    for at in [14 + 8, 14 + 3] {
        let mut bad = frame.to_vec();
        bad[at] ^= 1;
        let caught = std::panic::catch_unwind(|| decoded(&bad));
        assert!(caught.is_err(), "byte {at}");
    }
    let mut built = Vec::new();
    PacketBuilder::ethernet2(POD.0, GATEWAY.0)
        .ipv6([0; 16], [0; 16], 9)
        .udp(1, 2)
        .write(&mut built, &[0; 30])
        .expect("a packet");
    assert_eq!(decoded(&built), 9);
}
