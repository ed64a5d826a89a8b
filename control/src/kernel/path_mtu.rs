//! What routers say of packets that were too long for the way (ICMP "fragmentation needed",
//! RFC 1191 section 4; ICMPv6 "packet too big", RFC 4443 section 3.2).
//!
//! No netlink event tells of a path MTU that the kernel has learned, so these messages are
//! received here, too: as news of whom to ask it about. The kernel itself learns only where it has
//! a socket for what is quoted. For tunnels that is a VXLAN device of the same VNI (Linux
//! `drivers/net/vxlan/vxlan_core.c`, `vxlan_err_lookup`), which not every network has.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;
use tracing::debug;
use viaduct_encap::{Vni, checksum, vxlan};

/// Longer than any ICMP error (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const MOST: usize = 2048;
/// How long to wait after a socket has failed.
const PAUSE: Duration = Duration::from_millis(100);
const UDP: u8 = 17;
const UDP_HEADER_LEN: usize = 8;

/// A packet of a tunnel was too long for a link on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtuNews {
    /// The source of the packet.
    pub source: IpAddr,
    /// Where it was to go.
    pub destination: IpAddr,
    /// Its UDP destination port.
    pub port: u16,
    /// Its VNI; none if the router did not quote so much of it.
    pub vni: Option<Vni>,
    /// The longest packet, in bytes, that the link takes; 0 if the router does not say.
    pub mtu: u32,
}

/// Receives what routers say of packets that were too long.
#[derive(Debug)]
pub struct PathMtus {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl PathMtus {
    /// Listens on one interface, in the thread's network namespace. It needs a tokio runtime.
    /// A host without IPv6 is no error.
    ///
    /// # Errors
    ///
    /// If a raw socket cannot be had: it takes `CAP_NET_RAW`.
    pub fn open(interface: &str) -> io::Result<Self> {
        Ok(Self {
            v4: listen(interface, Domain::IPV4, Protocol::ICMPV4, &FILTER_V4)?,
            v6: listen(interface, Domain::IPV6, Protocol::ICMPV6, &FILTER_V6).ok(),
        })
    }

    /// The next message about a UDP packet. Cancel-safe.
    pub async fn next(&mut self) -> PathMtuNews {
        loop {
            let news = tokio::select! {
                news = receive(Some(&self.v4), parse_v4) => news,
                news = receive(self.v6.as_ref(), parse_v6) => news,
            };
            match news {
                Ok(Some(news)) => return news,
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "cannot receive ICMP errors; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// `type == 3 && code == 4`, behind an IPv4 header.
const FILTER_V4: [SockFilter; 7] = [
    SockFilter::new(0xb1, 0, 0, 0),      // ldx 4 * ([0] & 0xf)
    SockFilter::new(0x50, 0, 0, 0),      // ldb [x + 0]
    SockFilter::new(0x15, 0, 3, 3),      // jeq 3
    SockFilter::new(0x50, 0, 0, 1),      // ldb [x + 1]
    SockFilter::new(0x15, 0, 1, 4),      // jeq 4
    SockFilter::new(0x06, 0, 0, 0xffff), // ret all
    SockFilter::new(0x06, 0, 0, 0),      // ret nothing
];

/// `type == 2`; the socket gets ICMPv6 without the IPv6 header.
const FILTER_V6: [SockFilter; 4] = [
    SockFilter::new(0x30, 0, 0, 0),      // ldb [0]
    SockFilter::new(0x15, 0, 1, 2),      // jeq 2
    SockFilter::new(0x06, 0, 0, 0xffff), // ret all
    SockFilter::new(0x06, 0, 0, 0),      // ret nothing
];

fn listen(
    interface: &str,
    domain: Domain,
    protocol: Protocol,
    filter: &[SockFilter],
) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    socket.attach_filter(filter)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // A raw socket is read as a UDP socket is, and there is no type of its own for it.
    UdpSocket::from_std(socket.into())
}

/// The next message that can be understood; for ever pending without a socket.
async fn receive(
    socket: Option<&UdpSocket>,
    parse: fn(&[u8]) -> Option<PathMtuNews>,
) -> io::Result<Option<PathMtuNews>> {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let mut buffer = [0; MOST];
    let read = socket.recv(&mut buffer).await?;
    Ok(buffer.get(..read).and_then(parse))
}

/// A whole IPv4 packet with an ICMP message. The kernel does not check its checksum before it
/// gives it to raw sockets.
fn parse_v4(packet: &[u8]) -> Option<PathMtuNews> {
    let icmp = packet.get(ipv4_header_len(packet)?..)?;
    let &[3, 4, _, _, _, _, m0, m1] = icmp.first_chunk::<8>()? else {
        return None;
    };
    if checksum::fold(checksum::sum(icmp)) != 0xffff {
        return None;
    }
    let mtu = u32::from(u16::from_be_bytes([m0, m1]));
    let quoted = icmp.get(8..)?;
    let &[
        _,
        _,
        l0,
        l1,
        _,
        _,
        f0,
        f1,
        _,
        UDP,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = quoted.first_chunk::<20>()?
    else {
        return None;
    };
    // Only the first fragment has ports.
    if u16::from_be_bytes([f0, f1]) & 0x1fff != 0 {
        return None;
    }
    let length = u32::from(u16::from_be_bytes([l0, l1]));
    let udp = quoted.get(ipv4_header_len(quoted)?..)?;
    let source = Ipv4Addr::new(s0, s1, s2, s3).into();
    let destination = Ipv4Addr::new(d0, d1, d2, d3).into();
    news(source, destination, length, udp, mtu)
}

/// An ICMPv6 message. The kernel has checked its checksum: a filter makes it do so.
fn parse_v6(icmp: &[u8]) -> Option<PathMtuNews> {
    let &[2, 0, _, _, m0, m1, m2, m3] = icmp.first_chunk::<8>()? else {
        return None;
    };
    let mtu = u32::from_be_bytes([m0, m1, m2, m3]);
    let (header, udp) = icmp.get(8..)?.split_first_chunk::<40>()?;
    let (&[b0, _, _, _, l0, l1, next, _], addresses) = header.split_first_chunk::<8>()?;
    if b0 >> 4 != 6 || next != UDP {
        return None;
    }
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let destination = destination.first_chunk::<16>()?;
    let length = u32::from(u16::from_be_bytes([l0, l1])).saturating_add(40);
    let source = Ipv6Addr::from(*source).into();
    news(
        source,
        Ipv6Addr::from(*destination).into(),
        length,
        udp,
        mtu,
    )
}

/// A packet that was no longer than the link takes was not dropped for its length.
fn news(
    source: IpAddr,
    destination: IpAddr,
    length: u32,
    udp: &[u8],
    mtu: u32,
) -> Option<PathMtuNews> {
    let &[_, _, p0, p1] = udp.first_chunk::<4>()?;
    let vxlan = udp.get(UDP_HEADER_LEN..).and_then(<[u8]>::first_chunk);
    let vni = match vxlan {
        Some(header) => Some(vxlan::parse(*header)?),
        None => None,
    };
    (length > mtu).then_some(PathMtuNews {
        source,
        destination,
        port: u16::from_be_bytes([p0, p1]),
        vni,
        mtu,
    })
}

/// How long the kernel keeps a path MTU that it has learned, in the thread's network namespace.
pub(crate) fn lifetime() -> Duration {
    let text = fs::read_to_string("/proc/sys/net/ipv4/route/mtu_expires");
    let seconds = text.ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

fn ipv4_header_len(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    let length = usize::from(first & 0xf).checked_mul(4)?;
    (first >> 4 == 4 && length >= 20).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a router with a link of 1400 bytes answers a VXLAN packet of 1458.
    fn v4() -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 254, 192, 0, 2, 1,
        ];
        let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
        icmp.extend([0x45, 0, 0x05, 0xb2, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        icmp.extend([192, 0, 2, 1, 198, 51, 100, 2]);
        icmp.extend([
            0xd9, 3, 0x21, 0x18, 0x05, 0x9e, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0,
        ]);
        let sum = !checksum::fold(checksum::sum(&icmp));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        packet.extend(icmp);
        packet
    }

    fn v6() -> Vec<u8> {
        let mut icmp = vec![
            2, 0, 0, 0, 0, 0, 0x05, 0x78, 0x60, 0, 0, 0, 0x05, 0x9e, 17, 64,
        ];
        for last in [1, 2] {
            icmp.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        icmp.extend([
            0xd9, 3, 0x21, 0x18, 0x05, 0x9e, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0,
        ]);
        icmp
    }

    fn told(source: &str, destination: &str) -> PathMtuNews {
        PathMtuNews {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port: 8472,
            vni: Vni::new(7),
            mtu: 1400,
        }
    }

    #[test]
    fn what_a_router_says_is_read() {
        let news = told("192.0.2.1", "198.51.100.2");
        assert_eq!(parse_v4(&v4()), Some(news));
        assert_eq!(parse_v6(&v6()), Some(told("fd00::1", "fd00::2")));
        // It may quote the IP header and eight bytes only (RFC 792).
        let mut short = v6();
        short.truncate(8 + 40 + 8);
        assert_eq!(parse_v6(&short).map(|news| news.vni), Some(None));
    }

    #[test]
    fn lies_are_not_believed() {
        let mut bad = v4();
        bad[27] = 0x00;
        assert_eq!(parse_v4(&bad), None, "checksum");
        let mut fits = v6();
        fits[7] = 0xff;
        fits[6] = 0x06;
        assert_eq!(parse_v6(&fits), None, "it would have fitted");
        let mut other = v6();
        other[14] = 6;
        assert_eq!(parse_v6(&other), None, "TCP");
        let mut not_vxlan = v6();
        not_vxlan[56] = 0;
        assert_eq!(parse_v6(&not_vxlan), None, "no VNI");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_ignored(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..100, cut in 0_usize..120, value: u8,
        ) {
            let _ = (parse_v4(&bytes), parse_v6(&bytes));
            for mut packet in [v4(), v6()] {
                let at = at % packet.len();
                packet[at] = value;
                packet.truncate(cut);
                let _ = (parse_v4(&packet), parse_v6(&packet));
            }
            if let Some(first) = bytes.first_mut() {
                *first = 0x45;
            }
            let _ = parse_v4(&bytes);
        }
    }
}
