//! Which way the kernel would send a packet (`RTM_GETROUTE`).

use std::net::IpAddr;

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Kernel, KernelError};

/// The way that the kernel's routing rules choose for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// The interface that packets leave by.
    pub interface: u32,
    /// The router that they go to; none if the destination is on the interface's own network.
    /// It may be an IPv6 address for an IPv4 destination (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
}

impl Kernel {
    /// Which way the kernel would send a packet to `destination`. None if it would not send it:
    /// no route, or one that refuses.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn route_to(&self, destination: IpAddr) -> Result<Option<RouteTo>, KernelError> {
        let mut request = RouteMessage::default();
        let (family, length) = match destination {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        request.header.address_family = family;
        request.header.destination_prefix_length = length;
        let address = RouteAttribute::Destination(RouteAddress::from(destination));
        request.attributes.push(address);
        let what = format!("look up the route to {destination}");
        let message = RouteNetlinkMessage::GetRoute(request);
        match self.request(&what, message, 0).await {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route_to(message),
                _ => None,
            })),
            Err(error) if error.errno().is_some_and(is_unreachable) => Ok(None),
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

fn route_to(message: &RouteMessage) -> Option<RouteTo> {
    let refusing = matches!(
        message.header.kind,
        RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole | RouteType::Throw
    );
    if refusing {
        return None;
    }
    let mut interface = None;
    let mut gateway = None;
    let mut source = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    interface.map(|interface| RouteTo {
        interface,
        gateway,
        source,
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
    use super::*;

    #[test]
    fn a_refusing_route_is_no_way() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unreachable;
        message.attributes.push(RouteAttribute::Oif(1));
        assert_eq!(route_to(&message), None);
        message.header.kind = RouteType::Unicast;
        assert_eq!(route_to(&message).map(|route| route.interface), Some(1));
    }

    #[test]
    fn an_ipv4_destination_may_have_an_ipv6_gateway() {
        let gateway = "fe80::1".parse().unwrap();
        let mut message = RouteMessage::default();
        message.attributes.push(RouteAttribute::Oif(3));
        let via = RouteAttribute::Via(RouteVia::Inet6(gateway));
        message.attributes.push(via);
        let route = route_to(&message).unwrap();
        assert_eq!(route.gateway, Some(IpAddr::V6(gateway)));
    }
}
