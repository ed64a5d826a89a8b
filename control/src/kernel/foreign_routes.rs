//! Routes that others made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::routes::ip;
use super::{Kernel, KernelError, PROTOCOL};

/// A route of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// What it leads to.
    pub destination: IpNet,
    /// The table that it stands in.
    pub table: u32,
    /// The interface that packets leave by; of several, the first.
    pub interface: Option<u32>,
    /// The next hops that have addresses.
    pub gateways: Vec<IpAddr>,
}

impl Kernel {
    /// The unicast routes that Viaduct did not make, of all tables but the local one.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn foreign_routes(&self) -> Result<Vec<ForeignRoute>, KernelError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(request);
            let answers = self.dump("list all routes", request).await?;
            routes.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => foreign_route(message),
                _ => None,
            }));
        }
        Ok(routes)
    }
}

fn foreign_route(message: &RouteMessage) -> Option<ForeignRoute> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.protocol == RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let nothing: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut destination = nothing;
    let mut route = ForeignRoute {
        destination: nothing.into(),
        table: header.table.into(),
        interface: None,
        gateways: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Gateway(address) => route.gateways.extend(ip(address)),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::MultiPath(hops) => {
                route.interface = hops.first().map(|hop| hop.interface_index);
                let gateways = hops.iter().flat_map(|hop| &hop.attributes);
                route
                    .gateways
                    .extend(gateways.filter_map(|attribute| match attribute {
                        RouteAttribute::Gateway(address) => ip(address),
                        _ => None,
                    }));
            }
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    (route.table != u32::from(libc::RT_TABLE_LOCAL)).then_some(route)
}
