//! Packets of every shape, sound and damaged, from either side.
#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

use std::net::Ipv6Addr;

use proptest::prelude::*;
use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_fuzz::fixture::{GATEWAY, POD, vtep_mac};
use viaduct_fuzz::forward::{Input, Side};

/// A packet of some shape.
#[derive(Clone, Debug)]
pub struct Shape {
    pub side: Side,
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
pub enum Host {
    Here,
    /// A further pod of this node, where it has one.
    Beside,
    There,
    Other([u8; 16]),
}

impl Host {
    fn v4(self) -> [u8; 4] {
        match self {
            Self::Here => [10, 244, 1, 2],
            Self::Beside => [10, 244, 1, 3],
            Self::There => [10, 244, 2, 2],
            Self::Other([a, b, c, d, ..]) => [a, b, c, d],
        }
    }

    fn v6(self) -> [u8; 16] {
        let pod = |node, host| Ipv6Addr::new(0xfd00, 0x10, 0x244, node, 0, 0, 0, host).octets();
        match self {
            Self::Here => pod(1, 2),
            Self::Beside => pod(1, 3),
            Self::There => pod(2, 2),
            Self::Other(address) => address,
        }
    }
}

impl Shape {
    /// As an Ethernet frame from its side, or with a tunnel's outer headers from the underlay.
    pub fn input(&self) -> Input {
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

pub fn shape() -> impl Strategy<Value = Shape> {
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
            1 => Just(Host::Beside),
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
    let word = prop_oneof![Just(0u8), Just(60), Just(43), Just(44)];
    let extra = prop_oneof![
        1 => Just(Vec::new()),
        1 => prop::collection::vec(word, 0..4),
    ];
    (
        (
            side,
            prop::bool::weighted(0.9),
            any::<bool>(),
            host(Host::Here, Host::There),
            host(Host::There, Host::Here),
        ),
        prop_oneof![8 => Just(64), 1 => 0..3u8, 1 => any::<u8>()],
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

/// Some bytes of a sound packet are others, and it may be cut short.
pub fn damaged() -> impl Strategy<Value = Input> {
    let damage = prop::collection::vec((0usize..120, any::<u8>()), 0..6);
    (shape(), damage, prop::option::of(0usize..200)).prop_map(|(shape, damage, cut)| {
        let mut input = shape.input();
        for (at, byte) in damage {
            if let Some(place) = input.frame.get_mut(at) {
                *place = byte;
            }
        }
        if let Some(cut) = cut {
            input.frame.truncate(cut);
        }
        input
    })
}
