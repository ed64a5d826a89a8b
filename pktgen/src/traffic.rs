//! What is sent: headers for each interface and length, and what differs between flows.

use std::net::Ipv4Addr;

use anyhow::{bail, ensure};
use viaduct_encap::checksum::{fold, sum};
use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::{MacAddr, Tunnel, TunnelParams, Vni};

/// The shortest frame: with a checksum behind it, Ethernet's shortest is as long.
pub const SHORTEST: u16 = 64;
/// Most flows.
pub const MOST_FLOWS: u32 = 1_000_000;
/// Lengths in the order of simple IMIX: 7 short, 4 middle and 1 long of 12.
const IMIX: [usize; 12] = [0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 2];
const IMIX_MIDDLE: u16 = 594;
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const PLAIN_LEN: usize = ethernet::HEADER_LEN + IP_LEN + UDP_LEN;
/// Bytes that a tunnel puts in front of a frame.
pub(crate) const OUTER_LEN: usize = 50;
/// Where a frame's stamp is: a run, a flow, its sequence number, the time; 20 bytes.
pub(crate) const STAMP_LEN: usize = 20;
/// Room for a header.
pub(crate) const HEADER_ROOM: usize = 96;
/// Different lengths that one run may have.
pub(crate) const LENGTHS: usize = 4;
/// The first of the ports that are used.
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 60_000;

/// Frames' lengths, in bytes and without Ethernet's checksum; in a tunnel, the inner ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of this length.
    Fixed(u16),
    /// Simple IMIX: of twelve frames seven of 64 bytes, four of 594, one as long as the interface takes (at most 1514).
    Imix,
}

impl std::str::FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self::Imix);
        }
        match text.parse() {
            Ok(bytes) if bytes >= SHORTEST => Ok(Self::Fixed(bytes)),
            _ => bail!("neither imix nor a length of {SHORTEST} bytes or more"),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(bytes) => write!(f, "{bytes}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// A VXLAN header in front of every frame, as from another node.
#[derive(Clone, Debug)]
pub struct Outer {
    /// The receiving node's underlay address.
    pub destination: Ipv4Addr,
    /// The sending node's, if not the interface's.
    pub source: Option<Ipv4Addr>,
    /// UDP port of the tunnel.
    pub port: u16,
    /// The network.
    pub vni: Vni,
    /// The sending VTEP's MAC.
    pub inner_source_mac: MacAddr,
    /// The receiving VTEP's MAC.
    pub inner_destination_mac: MacAddr,
}

/// All that a run's packets have in common, and how its flows differ.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Their lengths.
    pub size: Size,
    /// How many flows, that take turns.
    pub flows: u32,
    /// Where the first flow goes.
    pub destination: Ipv4Addr,
    /// How many addresses the flows go to.
    pub destinations: u32,
    /// Distance between two of them.
    pub step: u32,
    /// Where they come from, if not from their interface's address.
    pub source: Option<Ipv4Addr>,
    /// MAC that frames are sent to.
    pub gateway: MacAddr,
    /// A tunnel around all.
    pub outer: Option<Outer>,
}

/// An interface that sends.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    pub(crate) mac: MacAddr,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) mtu: u32,
}

/// `struct header` of pktgen.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) bytes: [u8; HEADER_ROOM],
    pub(crate) length: u32,
    /// Of the inner IPv4 header, without its destination; in memory's order.
    pub(crate) sum: u32,
}

/// `struct flow` of pktgen.bpf.c: addresses and ports in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) destination: [u8; 4],
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) outer_port: [u8; 2],
    pub(crate) interface: u16,
    pub(crate) sequence: u32,
}

impl Traffic {
    /// Refuses what cannot be sent by these interfaces.
    pub(crate) fn check(&self, origins: &[Origin]) -> anyhow::Result<()> {
        ensure!(
            (1..=MOST_FLOWS).contains(&self.flows),
            "{} flows: 1 to {MOST_FLOWS} are possible",
            self.flows
        );
        ensure!(self.destinations > 0, "no destination");
        let span = u64::from(self.destinations - 1) * u64::from(self.step);
        ensure!(
            u32::try_from(u64::from(u32::from(self.destination)) + span).is_ok(),
            "there are no {} addresses, {} apart, from {} on",
            self.destinations,
            self.step,
            self.destination
        );
        for origin in origins {
            ensure!(
                self.source.is_some() || origin.address.is_some(),
                "{} has no IPv4 address to send from: give one with --source",
                origin.name
            );
            if let (Size::Fixed(bytes), most) = (self.size, self.longest(origin)) {
                ensure!(
                    u32::from(bytes) <= most,
                    "frames of {bytes} bytes are too long for {}: its MTU of {} leaves {most}",
                    origin.name,
                    origin.mtu
                );
            }
        }
        Ok(())
    }

    fn longest(&self, origin: &Origin) -> u32 {
        let outer = if self.outer.is_some() { OUTER_LEN } else { 0 };
        (origin.mtu + 14).saturating_sub(u32::try_from(outer).unwrap_or(0))
    }

    /// The lengths of frames, without a tunnel's bytes.
    pub(crate) fn lengths(&self, origin: &Origin) -> Vec<u16> {
        match self.size {
            Size::Fixed(bytes) => vec![bytes],
            Size::Imix => {
                let long = self.longest(origin).min(1514);
                let long = u16::try_from(long).unwrap_or(1514);
                vec![SHORTEST, IMIX_MIDDLE.min(long), long]
            }
        }
    }

    /// The order of lengths, as places among them.
    pub(crate) fn pattern(&self) -> &'static [usize] {
        match self.size {
            Size::Fixed(_) => &IMIX[..1],
            Size::Imix => &IMIX,
        }
    }

    /// Bytes in front of the stamp.
    pub(crate) fn header_len(&self) -> usize {
        PLAIN_LEN + self.inner()
    }

    /// Bytes in front of the inner frame.
    pub(crate) fn inner(&self) -> usize {
        if self.outer.is_some() { OUTER_LEN } else { 0 }
    }

    /// The headers of frames from an interface. Addresses and ports that differ between flows are 0.
    pub(crate) fn header(&self, origin: &Origin, length: u16) -> Header {
        let inner = self.inner();
        let total = usize::from(length) + inner;
        let mut frame = vec![0; total.max(HEADER_ROOM)];
        let ip = inner + ethernet::HEADER_LEN;
        let address = self.source.or(origin.address);
        let bytes = usize::from(length) - ethernet::HEADER_LEN;
        let source = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let header = ipv4_header(source, u16::try_from(bytes).unwrap_or(0));
        frame[ip..ip + IP_LEN].copy_from_slice(&header);
        // No checksum: allowed over IPv4 (RFC 768), and nobody on the way may look at it.
        let udp = u16::try_from(bytes - IP_LEN).unwrap_or(0).to_be_bytes();
        frame[ip + IP_LEN + 4..ip + IP_LEN + 6].copy_from_slice(&udp);
        match &self.outer {
            None => {
                let ethernet = Ethernet {
                    destination: self.gateway,
                    source: origin.mac,
                    ether_type: ethernet::IPV4,
                };
                frame[..ethernet::HEADER_LEN].copy_from_slice(&ethernet.to_bytes());
            }
            Some(outer) => {
                let source = outer.source.or(origin.address);
                let tunnel = Tunnel::new(&TunnelParams {
                    outer_source_mac: origin.mac,
                    outer_destination_mac: self.gateway,
                    source: source.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
                    destination: outer.destination.into(),
                    udp_port: outer.port,
                    udp_checksum6: false,
                    vni: outer.vni,
                    inner_source_mac: outer.inner_source_mac,
                    inner_destination_mac: outer.inner_destination_mac,
                    hop_limit: 64,
                    dscp: viaduct_encap::ecn::Dscp::default(),
                    mtu: 1500,
                });
                let written = tunnel.write(&mut frame[..total], ethernet::IPV4, 0, 0);
                debug_assert!(written.is_ok(), "at most an MTU");
            }
        }
        let mut bytes = [0; HEADER_ROOM];
        bytes.copy_from_slice(&frame[..HEADER_ROOM]);
        Header {
            bytes,
            length: u32::try_from(total).unwrap_or(0),
            // The program adds words as they lie in memory, and the sum works in any order (RFC 1071).
            sum: u32::from(fold(sum(&header)).to_be()),
        }
    }

    /// What a flow differs in. No two have the same addresses and ports.
    pub(crate) fn flow(&self, number: u32, interfaces: u32) -> Flow {
        let round = number / self.destinations.max(interfaces);
        let address = u32::from(self.destination) + number % self.destinations * self.step;
        let port = |n: u32| {
            u16::try_from(FIRST_PORT + n % PORTS)
                .unwrap_or(0)
                .to_be_bytes()
        };
        // Any even spread will do: another node's entropy.
        let outer = 0xc000 | (number.wrapping_mul(0x9e37_79b1) >> 18);
        Flow {
            destination: address.to_be_bytes(),
            source_port: port(round),
            destination_port: port(5000 + round / PORTS),
            outer_port: u16::try_from(outer).unwrap_or(0xffff).to_be_bytes(),
            interface: u16::try_from(number % interfaces).unwrap_or(0),
            sequence: 0,
        }
    }
}

/// Without destination and checksum.
fn ipv4_header(source: Ipv4Addr, total: u16) -> [u8; IP_LEN] {
    let mut header = [0; IP_LEN];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    // Don't fragment.
    header[6] = 0x40;
    header[8] = 64;
    header[9] = 17;
    header[12..16].copy_from_slice(&source.octets());
    header
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn traffic(flows: u32, destinations: u32) -> Traffic {
        Traffic {
            size: Size::Fixed(64),
            flows,
            destination: Ipv4Addr::new(10, 1, 0, 2),
            destinations,
            step: 256,
            source: None,
            gateway: MacAddr([2, 0, 0, 0, 0, 9]),
            outer: None,
        }
    }

    fn origin() -> Origin {
        Origin {
            name: "eth0".to_owned(),
            ifindex: 2,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            address: Some(Ipv4Addr::new(10, 1, 0, 1)),
            mtu: 1500,
        }
    }

    #[test]
    fn no_two_flows_are_the_same() {
        for (destinations, interfaces) in [(1, 1), (7, 110), (10_000, 3), (110, 110)] {
            let traffic = traffic(MOST_FLOWS, destinations);
            let flows: HashSet<_> = (0..traffic.flows)
                .map(|n| {
                    let f = traffic.flow(n, interfaces);
                    (
                        f.destination,
                        f.source_port,
                        f.destination_port,
                        f.interface,
                    )
                })
                .collect();
            assert_eq!(flows.len(), 1_000_000, "{destinations} {interfaces}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let origins = [origin()];
        assert!(traffic(1, 1).check(&origins).is_ok());
        assert!(traffic(0, 1).check(&origins).is_err());
        assert!(traffic(1_000_001, 1).check(&origins).is_err());
        assert!(traffic(1, 0).check(&origins).is_err());
        assert!(traffic(1, 20_000_000).check(&origins).is_err());
        let mut long = traffic(1, 1);
        long.size = Size::Fixed(1514);
        assert!(long.check(&origins).is_ok());
        long.size = Size::Fixed(1515);
        assert!(long.check(&origins).is_err());
        let mut nameless = origin();
        nameless.address = None;
        assert!(traffic(1, 1).check(&[nameless]).is_err());
    }

    #[test]
    fn imix_is_seven_four_one() {
        let mut mixed = traffic(1, 1);
        mixed.size = Size::Imix;
        let count = |place| mixed.pattern().iter().filter(|p| **p == place).count();
        assert_eq!([0, 1, 2].map(count), [7, 4, 1]);
        assert_eq!(mixed.lengths(&origin()), [64, 594, 1514]);
    }
}
