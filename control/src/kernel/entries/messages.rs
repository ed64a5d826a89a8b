//! Entries as netlink messages.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
    AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::links::mac;
use super::super::routes::ip;
use super::{Entry, EntryChange, Key, PROTOCOL, Way};

/// Metric of the routes that refuse what no other route takes: the last choice.
const REFUSING_METRIC: u32 = u32::MAX - 1;

/// What an event says of an entry of the kinds that the slow path has; none if it is about another.
pub(in super::super) fn change(message: &RouteNetlinkMessage) -> Option<EntryChange> {
    let is = |(entry, ours)| EntryChange::Is(entry, ours);
    let gone = |entry: Entry| EntryChange::Gone(entry.key(), Some(entry));
    match message {
        RouteNetlinkMessage::NewAddress(message) => address(message).map(is),
        RouteNetlinkMessage::DelAddress(message) => address(message).map(|(entry, _)| gone(entry)),
        RouteNetlinkMessage::NewRoute(message) => own_route(message).map(|entry| is((entry, true))),
        RouteNetlinkMessage::DelRoute(message) => own_route(message).map(gone),
        // One that is not permanent any more has the place of one that was.
        RouteNetlinkMessage::NewNeighbour(message) => {
            let key = || neighbour_key(message).map(|key| EntryChange::Gone(key, None));
            neighbour(message).map(is).or_else(key)
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            let forward = || neighbour(message).map(|(entry, _)| gone(entry));
            let key = neighbour_key(message).map(|key| EntryChange::Gone(key, None));
            key.or_else(forward)
        }
        _ => None,
    }
}

/// The key of a neighbour or proxy, which an event about its end may have without a MAC; none for
/// a forwarding entry.
fn neighbour_key(message: &NeighbourMessage) -> Option<Key> {
    let header = &message.header;
    if header.family == AddressFamily::Bridge {
        return None;
    }
    let mut attributes = message.attributes.iter();
    let address = attributes.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(address) => neighbour_address(address),
        _ => None,
    })?;
    Some(if header.flags.contains(NeighbourFlags::Proxy) {
        Key::Proxy(header.ifindex, address)
    } else {
        Key::Neighbour(header.ifindex, address)
    })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn address_message(interface: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.index = interface;
    message.header.prefix_len = address.prefix_len();
    // Nothing that the host sends elsewhere is to have such a source.
    message.header.scope = AddressScope::Link;
    message.header.flags = AddressHeaderFlags::empty();
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        // The same on several interfaces, and usable at once.
        AddressAttribute::Flags(AddressFlags::Nodad),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ];
    message
}

pub(super) fn address(message: &AddressMessage) -> Option<(Entry, bool)> {
    let mut local = None;
    let mut far = None;
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => far = Some(*ip),
            AddressAttribute::Protocol(by) => ours = u8::from(*by) == PROTOCOL,
            _ => {}
        }
    }
    let entry = Entry::Address {
        interface: message.header.index,
        address: IpNet::new(local.or(far)?, message.header.prefix_len).ok()?,
    };
    Some((entry, ours))
}

pub(super) fn route_message(destination: IpNet, way: Way) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(destination.addr().into()));
    match way {
        Way::Interface {
            interface,
            via,
            source,
        } => {
            attributes.push(RouteAttribute::Oif(interface));
            match via {
                Some(via) => {
                    attributes.push(RouteAttribute::Gateway(via.into()));
                    message.header.flags = RouteFlags::Onlink;
                }
                None if destination.addr().is_ipv4() => message.header.scope = RouteScope::Link,
                None => {}
            }
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        }
        Way::Unreachable => {
            message.header.kind = RouteType::Unreachable;
            attributes.push(RouteAttribute::Priority(REFUSING_METRIC));
        }
    }
    message
}

pub(super) fn own_route(message: &RouteMessage) -> Option<Entry> {
    let header = &message.header;
    if header.protocol != RouteProtocol::Other(PROTOCOL)
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let mut destination = None;
    let (mut interface, mut via, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    let way = match header.kind {
        RouteType::Unreachable => Way::Unreachable,
        _ => Way::Interface {
            interface: interface?,
            via,
            source,
        },
    };
    Some(Entry::Route {
        destination: IpNet::new(destination?, header.destination_prefix_length).ok()?,
        way,
    })
}

pub(super) fn neighbour_message(entry: &Entry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let header = &mut message.header;
    header.state = NeighbourState::Permanent;
    let protocol = NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
    match *entry {
        Entry::Neighbour {
            interface,
            address,
            mac,
        } => {
            header.family = family(address);
            header.ifindex = interface;
            message.attributes = vec![
                NeighbourAttribute::Destination(address.into()),
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                protocol,
            ];
        }
        Entry::Forward { interface, mac, to } => {
            header.family = AddressFamily::Bridge;
            header.ifindex = interface;
            header.flags = NeighbourFlags::Own | NeighbourFlags::ExtLearned;
            message.attributes = vec![
                NeighbourAttribute::Destination(to.into()),
                NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            ];
        }
        Entry::Proxy { interface, address } => {
            header.family = family(address);
            header.ifindex = interface;
            header.flags = NeighbourFlags::Proxy;
            message.attributes = vec![NeighbourAttribute::Destination(address.into()), protocol];
        }
        Entry::Address { .. } | Entry::Route { .. } => {}
    }
    message
}

/// None for what is not permanent: it is the kernel's.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(Entry, bool)> {
    let header = &message.header;
    let interface = header.ifindex;
    let (mut destination, mut lladdr, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => destination = neighbour_address(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            NeighbourAttribute::Protocol(by) => ours = u8::from(*by) == PROTOCOL,
            _ => {}
        }
    }
    if header.flags.contains(NeighbourFlags::Proxy) {
        let address = destination?;
        return Some((Entry::Proxy { interface, address }, ours));
    }
    if header.family == AddressFamily::Bridge {
        let entry = Entry::Forward {
            interface,
            mac: lladdr?,
            to: destination?,
        };
        return Some((entry, header.flags.contains(NeighbourFlags::ExtLearned)));
    }
    let entry = Entry::Neighbour {
        interface,
        address: destination?,
        mac: lladdr?,
    };
    (header.state == NeighbourState::Permanent).then_some((entry, ours))
}

/// In a forwarding table the family is the bridge's; the length says which address it is.
fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
                .ok()
        }
        _ => None,
    }
}
