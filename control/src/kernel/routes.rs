//! Which way the kernel would send a packet (`RTM_GETROUTE`).

use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Kernel, KernelError};

/// UDP in the IP header (RFC 768).
const UDP: u8 = 17;
/// Ticks of `clock_t` in a second, as netlink gives times out (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// A way that the kernel's routing rules choose for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface that packets leave by.
    pub interface: u32,
    /// The router that they go to; none if the destination is on the interface's own network.
    /// It may be an IPv6 address for an IPv4 destination (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// Its share of the flows, as against that of other ways to the same destination.
    pub weight: u16,
}

/// Packets that the routing rules are asked about: UDP from one of this host's addresses. Rules
/// may choose by any of it (`ip rule`: `from`, `ipproto`, `dport`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpFlow {
    /// Where they come from; none: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Where they go.
    pub destination: IpAddr,
    /// Their UDP destination port.
    pub port: u16,
}

/// What the kernel would do with packets of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// The usable ways, of which each flow takes one. None: it would send nothing.
    pub ways: Vec<RouteTo>,
    /// All interfaces that the route names, usable or not, by number.
    pub interfaces: Vec<u32>,
    /// What it knows of the longest packet; none if that is the interface's affair alone.
    pub mtu: Option<RouteMtu>,
}

/// The longest packet that a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMtu {
    /// Bytes of IP packet.
    pub bytes: u32,
    /// When the kernel forgets this, if it has learned it from a router's answer (RFC 1191,
    /// RFC 8201); none if the route itself has it (`ip route ... mtu`).
    pub expires: Option<Duration>,
}

impl Kernel {
    /// The ways by which the kernel would send packets to `destination`, of which each flow takes
    /// one. None if it would not send any: no route, or one that refuses.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn routes_to(&self, destination: IpAddr) -> Result<Vec<RouteTo>, KernelError> {
        let answer = self.route(request(destination), destination, true).await?;
        Ok(answer.map_or_else(Vec::new, |route| routes_to(&route)))
    }

    /// What the kernel would do with packets of a flow.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn routes_of(&self, flow: &UdpFlow) -> Result<Routes, KernelError> {
        let destination = flow.destination;
        let mut request = request(destination);
        if let Some(source) = flow.source {
            request.header.source_prefix_length = request.header.destination_prefix_length;
            let source = RouteAttribute::Source(RouteAddress::from(source));
            request.attributes.push(source);
        }
        request.attributes.push(RouteAttribute::IpProto(UDP));
        request.attributes.push(RouteAttribute::Dport(flow.port));
        let Some(whole) = self.route(request.clone(), destination, true).await? else {
            return Ok(Routes::default());
        };
        let ways = routes_to(&whole);
        // The route as it stands in the table does not tell what was learned of one destination.
        let mtu = if ways.is_empty() {
            None
        } else {
            let one = self.route(request, destination, false).await?;
            one.as_ref().and_then(mtu)
        };
        Ok(Routes {
            interfaces: interfaces(&whole),
            ways,
            mtu,
        })
    }

    /// Asks for the route of packets: as it stands in the table, with all its next hops
    /// (`whole`), or what becomes of one flow. None if the kernel would not send any.
    async fn route(
        &self,
        mut request: RouteMessage,
        destination: IpAddr,
        whole: bool,
    ) -> Result<Option<RouteMessage>, KernelError> {
        if whole {
            request.header.flags = RouteFlags::FibMatch;
        }
        let what = format!("look up the route to {destination}");
        let message = RouteNetlinkMessage::GetRoute(request);
        match self.request(&what, message, 0).await {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Some(message),
                _ => None,
            })),
            Err(error) if error.errno().is_some_and(is_unreachable) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn request(destination: IpAddr) -> RouteMessage {
    let mut request = RouteMessage::default();
    let (family, length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    let address = RouteAttribute::Destination(RouteAddress::from(destination));
    request.attributes.push(address);
    request
}

/// The MTU of an answer about one flow. An IPv6 route may expire as a whole (a router's
/// advertisement); only what was learned of one destination is marked as cloned.
fn mtu(message: &RouteMessage) -> Option<RouteMtu> {
    let mut bytes = None;
    let mut ticks = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Metrics(metrics) => {
                bytes = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(bytes) if *bytes > 0 => Some(*bytes),
                    _ => None,
                });
            }
            RouteAttribute::CacheInfo(info) => ticks = info.expires,
            _ => {}
        }
    }
    let learned = ticks > 0 && message.header.flags.contains(RouteFlags::Cloned);
    Some(RouteMtu {
        bytes: bytes?,
        expires: learned.then(|| Duration::from_millis(u64::from(ticks) * 1000 / TICKS_PER_SECOND)),
    })
}

fn interfaces(message: &RouteMessage) -> Vec<u32> {
    let mut all = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => all.push(*index),
            RouteAttribute::MultiPath(hops) => {
                all.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether the kernel says with this error that it would not send the packet: no route, or one
/// of type unreachable, prohibit or blackhole (Linux `net/ipv4/fib_semantics.c`, `fib_props`).
fn is_unreachable(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL
    )
}

fn routes_to(message: &RouteMessage) -> Vec<RouteTo> {
    let refusing = matches!(
        message.header.kind,
        RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole | RouteType::Throw
    );
    if refusing {
        return Vec::new();
    }
    let several = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    let Some(several) = several else {
        let interface = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
        let gateway = gateway(&message.attributes);
        let only = interface.map(|interface| RouteTo {
            interface,
            gateway,
            weight: 1,
        });
        return only.into_iter().collect();
    };
    let unusable =
        RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown | RouteNextHopFlags::Unresolved;
    let usable = several.iter().filter(|hop| !hop.flags.intersects(unusable));
    let mut ways: Vec<RouteTo> = usable
        .map(|hop| RouteTo {
            interface: hop.interface_index,
            gateway: gateway(&hop.attributes),
            weight: u16::from(hop.hops) + 1,
        })
        .collect();
    // The kernel has no fixed order; with one, the same flows take the same ways.
    ways.sort_by_key(|way| (way.interface, way.gateway));
    ways
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{RouteCacheInfo, RouteNextHop};

    use super::*;

    #[test]
    fn a_refusing_route_is_no_way() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unreachable;
        message.attributes.push(RouteAttribute::Oif(1));
        assert_eq!(routes_to(&message), []);
        message.header.kind = RouteType::Unicast;
        assert_eq!(routes_to(&message)[0].interface, 1);
    }

    #[test]
    fn what_was_learned_of_a_destination_expires_and_a_metric_does_not() {
        let mut message = RouteMessage::default();
        assert_eq!(mtu(&message), None);
        let metrics = vec![RouteMetric::Lock(4), RouteMetric::Mtu(1400)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
        let of = |expires| RouteMtu {
            bytes: 1400,
            expires,
        };
        assert_eq!(mtu(&message), Some(of(None)));
        let mut info = [0; 32];
        info[8..12].copy_from_slice(&150_u32.to_ne_bytes());
        let info = RouteCacheInfo::parse(&info).unwrap();
        message.attributes.push(RouteAttribute::CacheInfo(info));
        assert_eq!(mtu(&message), Some(of(None)), "the route's own time");
        message.header.flags = RouteFlags::Cloned;
        let learned = of(Some(Duration::from_millis(1500)));
        assert_eq!(mtu(&message), Some(learned));
    }

    #[test]
    fn an_ipv4_destination_may_have_an_ipv6_gateway() {
        let gateway = "fe80::1".parse().unwrap();
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::Oif(3));
        let via = RouteAttribute::Via(RouteVia::Inet6(gateway));
        message.attributes.push(via);
        assert_eq!(routes_to(&message)[0].gateway, Some(IpAddr::V6(gateway)));
    }

    #[test]
    fn of_several_next_hops_the_living_count_with_their_weights() {
        let hop = |index, hops, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.hops = hops;
            hop.flags = flags;
            let gateway = RouteAddress::Inet([192, 0, 2, 254].into());
            hop.attributes.push(RouteAttribute::Gateway(gateway));
            hop
        };
        let alive = RouteNextHopFlags::empty();
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::MultiPath(vec![
            hop(3, 0, alive),
            hop(3, 4, alive),
            hop(4, 0, RouteNextHopFlags::Linkdown),
        ]));
        let weights: Vec<u16> = routes_to(&message).iter().map(|way| way.weight).collect();
        assert_eq!(weights, [1, 5]);
    }
}
