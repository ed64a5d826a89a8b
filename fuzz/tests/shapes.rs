//! Packets of every shape, sound and damaged, from either side.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p viaduct-fuzz --test shapes` runs for long; what
//! it finds goes to `shapes.proptest-regressions`, which is committed and run first.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_fib::PortId;
use viaduct_fuzz::decode::ip_frame;
use viaduct_fuzz::fixture::{GATEWAY, HEADROOM, POD, chunk, vtep_mac};
use viaduct_fuzz::forward::{Input, Side, check, check_bytes};
use viaduct_router::{Exception, Verdict};

/// A packet of some shape.
#[derive(Clone, Debug)]
struct Shape {
    side: Side,
    resolved: bool,
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
    /// As an Ethernet frame from its side, or with a tunnel's outer headers from the underlay.
    fn input(&self) -> Input {
        let (ether_type, ip) = if self.v6 {
            (ethernet::IPV6, self.ip_v6())
        } else {
            (ethernet::IPV4, self.ip_v4())
        };
        let (destination, source) = match self.side {
            Side::Pod => (GATEWAY, POD),
            Side::Underlay | Side::Tunnel(_) => (vtep_mac(1), vtep_mac(2)),
        };
        let ethernet = Ethernet {
            destination,
            source,
            ether_type,
        };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend(ip);
        frame.extend((0..self.payload).map(|n| u8::try_from(n % 251).expect("small")));
        Input {
            side: self.side,
            resolved: self.resolved,
            frame,
        }
    }

    /// Sender and receiver: from the underlay, the other way round.
    fn ends(&self) -> (Host, Host) {
        match self.side {
            Side::Pod => (self.from, self.to),
            Side::Underlay | Side::Tunnel(_) => (self.to, self.from),
        }
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
        let (from, to) = self.ends();
        ip[12..16].copy_from_slice(&from.v4());
        ip[16..20].copy_from_slice(&to.v4());
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
        let (from, to) = self.ends();
        ip[8..24].copy_from_slice(&from.v6());
        ip[24..].copy_from_slice(&to.v6());
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
    let side = prop_oneof![
        3 => Just(Side::Pod),
        3 => (0u8..4).prop_map(Side::Tunnel),
        1 => Just(Side::Underlay),
    ];
    // Mostly from the pod to the other node's, or back.
    let host = |usual, other| {
        prop_oneof![
            8 => Just(usual),
            2 => Just(other),
            1 => any::<[u8; 16]>().prop_map(Host::Other),
        ]
    };
    let protocol = prop_oneof![Just(17), Just(6), Just(1), Just(58), Just(132), any::<u8>()];
    let flags = prop_oneof![
        3 => Just(0u16),
        2 => Just(0x4000),
        1 => Just(0x2000),
        1 => any::<u16>()
    ];
    let extra = prop::collection::vec(prop_oneof![Just(0u8), Just(60), Just(43), Just(44)], 0..4);
    (
        (
            side,
            prop::bool::weighted(0.9),
            any::<bool>(),
            host(Host::Here, Host::There),
            host(Host::There, Host::Here),
        ),
        prop_oneof![4 => Just(64), 1 => any::<u8>()],
        any::<u8>(),
        protocol,
        extra,
        flags,
        prop_oneof![0usize..200, 1300usize..1700],
    )
        .prop_map(
            |((side, resolved, v6, from, to), ttl, tos, protocol, extra, flags, payload)| Shape {
                side,
                resolved,
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

proptest! {
    #[test]
    fn packets_of_every_shape(shape in shape()) {
        check(&shape.input());
    }

    /// Some bytes of a sound packet are others, and it may be cut short.
    #[test]
    fn damaged_packets(
        shape in shape(),
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..200),
    ) {
        let mut input = shape.input();
        for (at, byte) in damage {
            if let Some(place) = input.frame.get_mut(at) { *place = byte; }
        }
        if let Some(cut) = cut { input.frame.truncate(cut); }
        check(&input);
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_bytes(&bytes);
    }
}

/// Gives the fuzzer frames that come far, which it would be long in guessing.
#[test]
#[ignore = "writes to target/fuzz/found/forward: ./dev fuzz seed"]
fn seeds() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/found/forward");
    fs::create_dir_all(&found).expect("a directory");
    let mut runner = TestRunner::deterministic();
    for n in 0..2000 {
        let shape = shape().new_tree(&mut runner).expect("a shape").current();
        let mut input = shape.input();
        // What lies behind the headers adds nothing.
        input.frame.iter_mut().skip(110).for_each(|byte| *byte = 0);
        fs::write(found.join(format!("seed-{n}")), input.to_bytes()).expect("written");
        let read = Input::from_bytes(&input.to_bytes()).expect("whole");
        assert_eq!(
            (read.frame, read.resolved),
            (input.frame.clone(), input.resolved)
        );
        // A tunnel's outer headers, too, for the fuzzer to work on.
        let wire = Input {
            frame: input.on_the_wire(),
            side: if input.side == Side::Pod {
                Side::Pod
            } else {
                Side::Underlay
            },
            ..input
        };
        fs::write(found.join(format!("wire-{n}")), wire.to_bytes()).expect("written");
    }
}

/// The shapes do come everywhere, or the rest would show little.
#[test]
fn every_kind_of_verdict_is_met() {
    let mut runner = TestRunner::deterministic();
    let mut met = [0; 6];
    for _ in 0..4000 {
        let shape = shape().new_tree(&mut runner).expect("a shape").current();
        met[match check(&shape.input()) {
            Verdict::Send(PortId::UNDERLAY) => 0,
            Verdict::Send(_) => 1,
            Verdict::Punt(_) => 2,
            Verdict::Drop(_) => 3,
            Verdict::Exception(Exception::IcmpError { .. }) => 4,
            Verdict::Exception(Exception::Fragment { .. }) => 5,
        }] += 1;
    }
    assert!(met.iter().all(|&count| count > 20), "{met:?}");
}

/// The decoder does see faults: the checks can fail.
#[test]
fn the_decoder_finds_faults() {
    let (chunk, len) = chunk([10, 244, 1, 2], [10, 244, 2, 2], 64, 20);
    let frame = &chunk[HEADROOM..HEADROOM + len];
    assert_eq!(ip_frame(frame).hop_limit, 64);
    for at in [14 + 8, 14 + 3] {
        let mut bad = frame.to_vec();
        bad[at] ^= 1;
        let caught = std::panic::catch_unwind(|| ip_frame(&bad));
        assert!(caught.is_err(), "byte {at}");
    }
    let mut built = Vec::new();
    PacketBuilder::ethernet2(POD.0, GATEWAY.0)
        .ipv6([0; 16], [0; 16], 9)
        .udp(1, 2)
        .write(&mut built, &[0; 30])
        .expect("a packet");
    assert_eq!(ip_frame(&built).hop_limit, 9);
}
