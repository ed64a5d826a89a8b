//! What a system makes of a packet, looked at byte by byte: whoever sends on something else is not measured.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use viaduct_encap::MacAddr;
use viaduct_encap::checksum::{fold, sum};
use viaduct_pktgen::{Namespace, Size};

use crate::bed::{self, Bed, Pod};
use crate::plan::{Case, Point};
use crate::traffic::{End, generator};

/// Packets a second, and for how long.
const RATE: u64 = 500;
const DURATION: Duration = Duration::from_millis(100);
/// How long nothing must come until all has.
const QUIET: i64 = 300_000;
/// Packets that are looked at, of whatever kind, at most.
const MOST: usize = 1000;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const VXLAN: usize = 8;
/// Where the generator's flows go to.
const PORT: u16 = 6024;
/// The generator's shortest packet: headers and its stamp.
const LEAST: usize = ETHERNET + IPV4 + UDP + 20;

/// Sends some packets through the system and looks at what comes out.
pub(crate) fn check(bed: &Bed, point: &Point, cpu: usize) -> anyhow::Result<()> {
    let end = match point.case {
        Case::Encap => bed.far(),
        Case::Decap => bed.pods(),
    };
    let tap = tap(&end).context("cannot look at packets")?;
    let mut pktgen = generator(bed, point, End::Open, cpu, false)?;
    let mut sound = 0;
    // The first ones may be lost while a way is still unknown.
    for _ in 0..3 {
        let outcome = pktgen.run(Some(RATE), DURATION, |_| {})?;
        if outcome.interrupted {
            bail!("interrupted");
        }
        let mut packet = [0; 4096];
        for _ in 0..MOST {
            let Ok(length) = recv(tap.as_raw_fd(), &mut packet, MsgFlags::empty()) else {
                break;
            };
            if let Some(packet) = ours(&packet[..length], point.case) {
                examine(packet, point).with_context(|| format!("it sends on {packet:02x?}"))?;
                sound += 1;
            }
        }
        if sound > 0 {
            return Ok(());
        }
    }
    bail!("nothing comes through it")
}

/// Sees all packets of a namespace.
fn tap(namespace: &Namespace) -> anyhow::Result<OwnedFd> {
    let tap = namespace.with(|| {
        let all = SockProtocol::EthAll;
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(socket(AddressFamily::Packet, SockType::Raw, flags, all)?)
    })?;
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::new(0, QUIET))?;
    Ok(tap)
}

/// A packet that may be one of the generator's; neighbour discovery and its like are not.
fn ours(packet: &[u8], case: Case) -> Option<&[u8]> {
    let port = match case {
        Case::Encap => bed::VXLAN_PORT,
        Case::Decap => PORT,
    };
    let udp = packet.get(12..14)? == [8, 0] && *packet.get(23)? == 17;
    (udp && packet.get(36..38)? == port.to_be_bytes()).then_some(packet)
}

fn examine(packet: &[u8], point: &Point) -> anyhow::Result<()> {
    let inner = match point.case {
        Case::Encap => tunnelled(packet, point)?,
        Case::Decap => packet,
    };
    ensure!(inner.len() >= LEAST, "the inner packet is cut");
    if let Size::Fixed(length) = point.size {
        let length = usize::from(length);
        ensure!(inner.len() == length, "it is not {length} bytes long");
    }
    let addresses = match point.case {
        Case::Encap => (bed::far_vtep_mac(0), bed::VTEP_MAC),
        Case::Decap => (Pod(0).mac(), bed::GATEWAY_MAC),
    };
    // With several pods and routes, each has its own address: those of others are looked at as far as they are alike.
    let several = point.shape.pods > 1 || point.shape.routes > 1;
    macs(inner, several, addresses)?;
    let (source, destination) = ipv4(inner)?;
    let wanted = match point.case {
        Case::Encap => (Pod(0).address(), bed::far_pod(0)),
        Case::Decap => (bed::far_pod(0), Pod(0).address()),
    };
    ensure!(
        several || (source, destination) == wanted,
        "the inner addresses are {source} and {destination}"
    );
    let hops = inner[ETHERNET + 8];
    ensure!(hops == 63 || hops == 64, "the inner time to live is {hops}");
    Ok(())
}

/// The packet in a tunnel whose headers are as they should be.
fn tunnelled<'a>(packet: &'a [u8], point: &Point) -> anyhow::Result<&'a [u8]> {
    let start = ETHERNET + IPV4 + UDP;
    ensure!(packet.len() >= start + VXLAN, "the outer headers are cut");
    macs(packet, false, (bed::FAR_MAC, bed::NODE_MAC))?;
    let (source, destination) = ipv4(packet)?;
    ensure!(
        source == bed::NODE,
        "the outer source is {source}, not {}",
        bed::NODE
    );
    ensure!(
        point.shape.routes > 1 || destination == bed::far(0),
        "the outer destination is {destination}"
    );
    // The outer UDP checksum may be 0 or, on a veth, left to a NIC that is not there: nobody looks at it.
    let vxlan = &packet[start..start + VXLAN];
    ensure!(
        vxlan[0] == 8 && vxlan[4..7] == [0, 0, 1],
        "it is not network 1: {vxlan:02x?}"
    );
    Ok(&packet[start + VXLAN..])
}

fn macs(packet: &[u8], any: bool, (to, from): (MacAddr, MacAddr)) -> anyhow::Result<()> {
    let right = packet[..6] == to.0 && packet[6..12] == from.0;
    let alike = packet[..5] == to.0[..5] && packet[6..12] == from.0;
    ensure!(
        right || (any && alike),
        "the MACs are {:02x?}, not {to} and {from}",
        &packet[..12]
    );
    Ok(())
}

/// Source and destination of a UDP packet whose lengths and checksum are right.
fn ipv4(packet: &[u8]) -> anyhow::Result<(Ipv4Addr, Ipv4Addr)> {
    let ip = &packet[ETHERNET..];
    ensure!(ip.len() >= IPV4 + UDP, "a packet is cut");
    let number = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
    ensure!(ip[0] == 0x45 && ip[9] == 17, "it is not UDP over IPv4");
    ensure!(
        number(2) == ip.len() && number(IPV4 + 4) == ip.len() - IPV4,
        "a length is wrong"
    );
    ensure!(
        fold(sum(&ip[..IPV4])) == 0xffff,
        "an IPv4 checksum is wrong"
    );
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    Ok((address(12), address(16)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Source;
    use crate::systems::{OUTER_LEN, Outer};

    fn point(case: Case) -> Point {
        Point::base(case, Source::Skb)
    }

    /// What a pod sends, with these Ethernet addresses.
    fn inner(macs: (MacAddr, MacAddr)) -> Vec<u8> {
        let mut packet = [macs.0.0, macs.1.0].concat();
        packet.extend([8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet.extend(Pod(0).address().octets());
        packet.extend(bed::far_pod(0).octets());
        let sum = !fold(sum(&packet[14..34]));
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        packet.extend([4, 0, 0x17, 0x88, 0, 30, 0, 0]);
        packet.resize(64, 0);
        packet
    }

    fn pushed() -> Vec<u8> {
        let mut frame = vec![0; OUTER_LEN];
        frame.extend(inner((bed::GATEWAY_MAC, Pod(0).mac())));
        let outer = Outer::new(&bed::NODE_VTEP, &bed::far_vtep(0));
        outer.expect("a header").write(&mut frame);
        frame
    }

    #[test]
    fn what_the_ceilings_push_is_right() {
        examine(&pushed(), &point(Case::Encap)).expect("a sound packet");
    }

    #[test]
    fn a_wrong_byte_is_found() {
        // Ethernet, IPv4 (length, checksum, source), UDP's length, VXLAN's flags and network, inner MACs and addresses.
        for at in [0, 7, 14, 17, 25, 29, 33, 39, 42, 48, 50, 57, 66, 78, 81] {
            let mut frame = pushed();
            frame[at] ^= 0x10;
            examine(&frame, &point(Case::Encap)).expect_err("a wrong packet");
        }
        let mut short = pushed();
        short.pop();
        examine(&short, &point(Case::Encap)).expect_err("a wrong packet");
    }

    #[test]
    fn others_packets_are_not_ours() {
        assert!(ours(&pushed(), Case::Encap).is_some());
        assert!(ours(&pushed(), Case::Decap).is_none());
        assert!(ours(&[0; 20], Case::Encap).is_none());
    }
}
