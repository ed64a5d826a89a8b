//! Which way the kernel would send a packet (`RTM_GETROUTE`).

use std::net::IpAddr;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Kernel, KernelError};

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

impl Kernel {
    /// The ways by which the kernel would send packets to `destination`, of which each flow takes
    /// one. None if it would not send any: no route, or one that refuses.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn routes_to(&self, destination: IpAddr) -> Result<Vec<RouteTo>, KernelError> {
        let mut request = RouteMessage::default();
        let (family, length) = match destination {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = length;
        // The route as it stands in the table, with all its next hops, not the one hop of a flow
        // without ports.
        request.header.flags = RouteFlags::FibMatch;
        let address = RouteAttribute::Destination(RouteAddress::from(destination));
        request.attributes.push(address);
        let what = format!("look up the route to {destination}");
        let message = RouteNetlinkMessage::GetRoute(request);
        match self.request(&what, message, 0).await {
            Ok(answers) => {
                let first = answers.iter().find_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) => Some(routes_to(message)),
                    _ => None,
                });
                Ok(first.unwrap_or_default())
            }
            Err(error) if error.errno().is_some_and(is_unreachable) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
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
    use rtnetlink::packet_route::route::RouteNextHop;

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
