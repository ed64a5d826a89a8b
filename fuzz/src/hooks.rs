//! The same frames through the hooks' programs, which the kernel runs, and through `forward()`: a hook
//! does what a worker would do, or hands the frame over.

use std::net::{IpAddr, Ipv6Addr};

use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Tunnel, TunnelParams, Vni, VtepMacs};
use viaduct_fib::{
    Limits, NetworkId, NextHop, NextHopState, Port, PortId, Publisher, Reader, Update,
};
use viaduct_router::{ClusterPrefix, Trial, Tried, Verdict};

use crate::fixture::{PORT, updates, vtep_mac};
use crate::forward::{Input, Side, decide};

/// The interface that frames seem to come from: the loopback interface's number.
const LOOPBACK: u32 = 1;
/// Any other interface.
const UNDERLAY: u32 = 2;
/// A further pod's port and interface.
const BESIDE: PortId = PortId(2);
const BESIDES_INTERFACE: u32 = 3;
const UDP_PORT: u16 = 8472;
const ETHERNET: usize = 14;

/// A node's table, as workers and as hooks have it.
struct Node {
    trial: Trial,
    reader: Reader,
    _publisher: Publisher,
}

impl Node {
    fn new(own: IpAddr, updates: Vec<Update>, alone: bool) -> Self {
        let (mut publisher, readers) = Publisher::new();
        let mut trial = Trial::load(alone).expect("the kernel takes the programs");
        let settled = &mut trial.settled;
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        // Hooks that are alone ask the kernel about interfaces.
        let [underlay, beside_it] = if alone {
            [LOOPBACK; 2]
        } else {
            [UNDERLAY, BESIDES_INTERFACE]
        };
        settled.set_underlay(underlay, mac).expect("written");
        settled.set_link(BESIDE, beside_it).expect("written");
        settled.set_link(PORT, LOOPBACK).expect("written");
        for update in updates.into_iter().chain(beside()) {
            settled.apply(&update).expect("written");
            publisher.apply(update).expect("sound");
        }
        publisher.publish().expect("nobody reads yet");
        let vteps = [(own, UDP_PORT)].into_iter();
        trial.set_vteps(vteps).expect("written");
        // The table decides here: a destination outside the cluster never reaches it.
        let all = ["0.0.0.0", "::"].map(|address| ClusterPrefix {
            vni: Vni::new(1).expect("24 bits"),
            address: address.parse().expect("an address"),
            length: 0,
            to_workers: true,
        });
        trial.set_cluster(all.into_iter()).expect("written");
        Self {
            trial,
            reader: readers.reader(),
            _publisher: publisher,
        }
    }
}

/// A further pod of node 1.
fn beside() -> [Update; 3] {
    let network = NetworkId(0);
    let address = |text: &str| Update::PutLocal {
        network,
        address: text.parse().expect("an address"),
        port: BESIDE,
    };
    let port = Port {
        network,
        mac: MacAddr([2, 0, 0, 0, 2, 3]),
        gateway_mac: MacAddr([2, 0, 0, 0, 2, 4]),
        mtu: 1400,
        identity: 0,
        limits: Limits::default(),
    };
    [
        Update::PutPort { id: BESIDE, port },
        address("10.244.1.3"),
        address("fd00:10:244:1::3"),
    ]
}

/// Node `n`'s address over IPv6.
fn vtep6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, n.into()).into()
}

/// The MAC of node `n`'s VTEP over IPv6.
fn vtep_mac6(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 6, n])
}

/// A way from node `n` of two to the other over IPv6, by one of several gateways.
fn tunnel6(n: u8, gateway: u8) -> Tunnel {
    Tunnel::new(&TunnelParams {
        outer_source_mac: MacAddr([2, 0, 0, 0, 0, n]),
        outer_destination_mac: MacAddr([2, 0, 0, 0, 9, gateway]),
        source: vtep6(n),
        destination: vtep6(3 - n),
        udp_port: UDP_PORT,
        udp_checksum6: false,
        vni: Vni::new(1).expect("24 bits"),
        inner_source_mac: vtep_mac6(n),
        inner_destination_mac: vtep_mac6(3 - n),
        hop_limit: 64,
        dscp: Dscp::Copy,
        mtu: 1500,
    })
}

/// Node 1, whose way to the other one is over IPv6: three of one cost, with the pods' DSCP.
fn over_v6() -> Vec<Update> {
    let mut all = updates(1, true);
    for update in &mut all {
        match update {
            Update::PutNetwork { network, .. } => {
                network.vtep_macs = VtepMacs {
                    v4: vtep_mac(1),
                    v6: vtep_mac6(1),
                };
            }
            Update::PutNextHop { next_hop, .. } => {
                let ways = (0..3).map(|gateway| tunnel6(1, gateway));
                *next_hop = NextHop {
                    vtep: vtep6(2),
                    state: NextHopState::Multipath(ways.collect()),
                };
            }
            _ => {}
        }
    }
    all
}

/// A frame of the other node's inside its tunnel over IPv6.
fn inside_v6(frame: &[u8], ecn: u8) -> Option<Vec<u8>> {
    let (header, packet) = frame.split_at_checked(ETHERNET)?;
    let tunnel = tunnel6(2, 1);
    let room = tunnel.header_len();
    let mut wire = vec![0; room];
    wire.extend_from_slice(packet);
    tunnel.write(&mut wire, 0, 50_000, ecn).ok()?;
    // As it was made, but for the VTEP's MAC.
    wire[room - ETHERNET..room].copy_from_slice(header);
    if header.starts_with(&vtep_mac(1).0) {
        wire[room - ETHERNET..][..6].copy_from_slice(&vtep_mac6(1).0);
    }
    Some(wire)
}

/// Nodes with hooks.
pub struct Hooks {
    unresolved: Node,
    resolved: Node,
    over_v6: Node,
}

/// What a hook has done with a frame, over an underlay of IPv4 and of IPv6.
#[derive(Debug)]
pub struct Both {
    /// Over IPv4.
    pub v4: Tried,
    /// Over IPv6, with several ways and the pods' DSCP.
    pub v6: Tried,
}

impl Hooks {
    /// Loads the programs, which takes root. `alone`: as if their router had ended. Then the loopback interface of this thread's
    /// namespace has to lead to 192.0.2.2 and fd99::2.
    #[must_use]
    pub fn new(alone: bool) -> Self {
        let own = IpAddr::from([192, 0, 2, 1]);
        Self {
            unresolved: Node::new(own, updates(1, false), alone),
            resolved: Node::new(own, updates(1, true), alone),
            over_v6: Node::new(vtep6(1), over_v6(), alone),
        }
    }

    /// Gives a frame to hooks and workers, and compares.
    ///
    /// # Panics
    /// When they do not agree.
    pub fn check(&mut self, input: &Input) -> Both {
        let node = if input.resolved {
            &mut self.resolved
        } else {
            &mut self.unresolved
        };
        let wire = input.on_the_wire();
        let wire6 = match input.side {
            Side::Tunnel(ecn) => inside_v6(&input.frame, ecn),
            Side::Pod | Side::Underlay => None,
        };
        Both {
            v4: check(node, input.ingress(), &wire),
            v6: check(
                &mut self.over_v6,
                input.ingress(),
                wire6.as_ref().unwrap_or(&wire),
            ),
        }
    }
}

fn check(node: &mut Node, ingress: PortId, wire: &[u8]) -> Tried {
    // The kernel runs no program for less than an Ethernet header and, behind it, the IP header of
    // the version that it names (net/bpf/test_run.c).
    let Ok(tried) = node.trial.frame(ingress == PORT, wire) else {
        assert!(wire.len() < ETHERNET + 40, "{} bytes", wire.len());
        return Tried::HandedOver;
    };
    let worker = decide(&node.reader, ingress, wire);
    match &tried {
        Tried::HandedOver => {}
        Tried::Dropped => panic!("a hook drops nothing"),
        Tried::Carried(port, sent) => {
            assert_eq!(Verdict::Send(*port), worker.verdict);
            assert_eq!(sent.len(), worker.sent.len());
            let mut differ = (0..).zip(sent.iter().zip(&worker.sent));
            let same = if worker.finished {
                // In a hook the kernel finishes it, on the packet's further way.
                let at = checksum(sent, *port);
                differ.all(|(n, (a, b))| a == b || (at..at + 2).contains(&n))
            } else {
                differ.all(|(_, (a, b))| a == b)
            };
            assert!(same, "{sent:02x?}\n{:02x?}", worker.sent);
        }
    }
    tried
}

/// Where the transport checksum of a frame is that was sent by this port.
fn checksum(frame: &[u8], port: PortId) -> usize {
    let ip = match (port, frame[12]) {
        (PortId::UNDERLAY, 0x86) => 84,
        (PortId::UNDERLAY, _) => 64,
        _ => ETHERNET,
    };
    let (header, protocol) = if frame[ip] >> 4 == 4 {
        (20, frame[ip + 9])
    } else {
        (40, frame[ip + 6])
    };
    ip + header + if protocol == 6 { 16 } else { 6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram from the pod at [`PORT`] to the one at [`BESIDE`].
    fn datagram(updates: &[Update]) -> Vec<u8> {
        let port = updates.iter().find_map(|update| match update {
            Update::PutPort { id: PORT, port } => Some(*port),
            _ => None,
        });
        let port = port.expect("the pod's port");
        let mut frame = [port.gateway_mac.0, port.mac.0].concat();
        frame.extend([8, 0]);
        let mut ip = [
            0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 244, 1, 2, 10, 244, 1, 3,
        ];
        let words = ip
            .chunks_exact(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend([0x30, 0, 0x30, 1, 0, 8, 0, 0]);
        frame
    }

    #[test]
    fn what_is_known_of_an_address_ends_with_a_change() {
        let all = updates(1, true);
        let frame = datagram(&all);
        let mut node = Node::new(IpAddr::from([192, 0, 2, 1]), all, false);
        let tried = |node: &mut Node| node.trial.frame(true, &frame).expect("the kernel runs it");
        for _ in 0..2 {
            let carried = tried(&mut node);
            assert!(matches!(carried, Tried::Carried(BESIDE, _)), "{carried:?}");
        }
        // Its port is there as before.
        let gone = Update::RemoveLocal {
            network: NetworkId(0),
            address: IpAddr::from([10, 244, 1, 3]),
        };
        node.trial.settled.withdraw(&gone).expect("removed");
        assert_eq!(tried(&mut node), Tried::HandedOver);
    }
}
