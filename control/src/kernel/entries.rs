//! What the slow path consists of, one entry of a kernel table each: read, added and removed.
//!
//! Entries that Viaduct made are told from others by their protocol number (routes, addresses,
//! neighbours; `rtnetlink.h`, `if_addr.h`, `neighbour.h`) or, in the VXLAN device's forwarding
//! table, which has none, by the flag that says "learned from a control plane".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
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
use viaduct_encap::MacAddr;

use super::links::mac;
use super::routes::ip;
use super::{Kernel, KernelError};

/// Who made a route, address or neighbour entry: Viaduct. In the range that the kernel leaves to
/// daemons, and nobody's in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 118;

/// Metric of the routes that refuse what no other route takes: the last choice.
const REFUSING_METRIC: u32 = u32::MAX - 1;

/// One entry of a kernel table. The order is that of making them: what a later one needs comes
/// first, and a route only when all behind it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// An address of an interface.
    Address {
        /// The interface's number.
        interface: u32,
        /// The address with the length of the prefix that is reached through the interface.
        address: IpNet,
    },
    /// A neighbour that never has to be asked for.
    Neighbour {
        /// The interface's number.
        interface: u32,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: MacAddr,
    },
    /// Where a VXLAN device sends frames for a MAC.
    Forward {
        /// The device's number.
        interface: u32,
        /// The MAC.
        mac: MacAddr,
        /// The other node's underlay address.
        to: IpAddr,
    },
    /// An IPv6 address that the kernel answers for on an interface (`ip -6 neighbour add proxy`).
    Proxy {
        /// The interface's number.
        interface: u32,
        /// The address.
        address: IpAddr,
    },
    /// A route in the main table.
    Route {
        /// What it leads to.
        destination: IpNet,
        /// Where to.
        way: Way,
    },
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Out of an interface.
    Interface {
        /// Its number.
        interface: u32,
        /// The next hop, taken to be on the link whatever the addresses say.
        via: Option<IpAddr>,
        /// The source address of what this host sends.
        source: Option<IpAddr>,
    },
    /// Nowhere: the sender is told that the destination is unreachable.
    Unreachable,
}

impl Entry {
    /// The interface whose entry it is; none for a route.
    fn interface(&self) -> Option<u32> {
        match *self {
            Self::Address { interface, .. }
            | Self::Neighbour { interface, .. }
            | Self::Forward { interface, .. }
            | Self::Proxy { interface, .. } => Some(interface),
            Self::Route { .. } => None,
        }
    }
}

/// Entries of the kernel, and whether Viaduct made them.
pub type Entries = BTreeMap<Entry, bool>;

impl Kernel {
    /// What there is of entries: addresses, permanent neighbours, forwarding entries and proxies
    /// of these interfaces, whoever made them, and on any interface all that Viaduct made.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn entries(&self, interfaces: &BTreeSet<u32>) -> Result<Entries, KernelError> {
        let mut entries = self.own_routes().await?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", request).await?;
        entries.extend(answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(message),
            _ => None,
        }));
        let kinds = [
            (AddressFamily::Inet, NeighbourFlags::empty()),
            (AddressFamily::Inet6, NeighbourFlags::empty()),
            (AddressFamily::Inet6, NeighbourFlags::Proxy),
            (AddressFamily::Bridge, NeighbourFlags::empty()),
        ];
        for (family, flags) in kinds {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            request.header.flags = flags;
            let request = RouteNetlinkMessage::GetNeighbour(request);
            let answers = self.dump("list neighbours", request).await?;
            entries.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
                _ => None,
            }));
        }
        // Other control planes learn, too: forwarding entries are ours only on devices where
        // neighbours are.
        let tunnels: BTreeSet<u32> = entries
            .iter()
            .filter(|(entry, ours)| **ours && matches!(entry, Entry::Neighbour { .. }))
            .filter_map(|(entry, _)| entry.interface())
            .collect();
        entries.retain(|entry, ours| {
            let wanted = |set: &BTreeSet<u32>| entry.interface().is_none_or(|i| set.contains(&i));
            match entry {
                Entry::Forward { .. } => wanted(interfaces) || wanted(&tunnels),
                _ => *ours || wanted(interfaces),
            }
        });
        Ok(entries)
    }

    async fn own_routes(&self) -> Result<Entries, KernelError> {
        let mut entries = Entries::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = RouteProtocol::Other(PROTOCOL);
            let request = RouteNetlinkMessage::GetRoute(request);
            let answers = self.dump("list routes", request).await?;
            let routes = answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => own_route(message),
                _ => None,
            });
            entries.extend(routes.map(|route| (route, true)));
        }
        Ok(entries)
    }

    /// Makes an entry. A neighbour, forwarding or proxy entry of the same key is replaced; a route
    /// only if `replace` says so.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; [`KernelError::exists`] is true if something of somebody else's is
    /// in the way.
    pub async fn add(&self, entry: &Entry, replace: bool) -> Result<(), KernelError> {
        let what = format!("add {entry}");
        let (message, flags) = match *entry {
            Entry::Address { interface, address } => (
                RouteNetlinkMessage::NewAddress(address_message(interface, address)),
                NLM_F_EXCL,
            ),
            Entry::Route { destination, way } => (
                RouteNetlinkMessage::NewRoute(route_message(destination, way)),
                if replace { NLM_F_REPLACE } else { NLM_F_EXCL },
            ),
            _ => (
                RouteNetlinkMessage::NewNeighbour(neighbour_message(entry)),
                NLM_F_REPLACE,
            ),
        };
        self.request(&what, message, flags | NLM_F_CREATE | NLM_F_ACK)
            .await
            .map(drop)
    }

    /// Removes an entry; one that is not there any more is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove(&self, entry: &Entry) -> Result<(), KernelError> {
        let what = format!("remove {entry}");
        let message = match *entry {
            Entry::Address { interface, address } => {
                RouteNetlinkMessage::DelAddress(address_message(interface, address))
            }
            Entry::Route { destination, way } => {
                RouteNetlinkMessage::DelRoute(route_message(destination, way))
            }
            _ => RouteNetlinkMessage::DelNeighbour(neighbour_message(entry)),
        };
        match self.request(&what, message, NLM_F_ACK).await {
            Err(error) if error.errno().is_some_and(is_gone) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Whether the kernel says with this error that what was to be removed is not there.
fn is_gone(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL
    )
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn address_message(interface: u32, address: IpNet) -> AddressMessage {
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

fn address(message: &AddressMessage) -> Option<(Entry, bool)> {
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

fn route_message(destination: IpNet, way: Way) -> RouteMessage {
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

fn own_route(message: &RouteMessage) -> Option<Entry> {
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

fn neighbour_message(entry: &Entry) -> NeighbourMessage {
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
fn neighbour(message: &NeighbourMessage) -> Option<(Entry, bool)> {
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

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address { interface, address } => {
                write!(f, "address {address} of interface {interface}")
            }
            Self::Neighbour {
                interface,
                address,
                mac,
            } => write!(f, "neighbour {address} {mac} on interface {interface}"),
            Self::Forward { interface, mac, to } => {
                write!(f, "forwarding of {mac} to {to} on interface {interface}")
            }
            Self::Proxy { interface, address } => {
                write!(f, "proxy for {address} on interface {interface}")
            }
            Self::Route { destination, way } => match way {
                Way::Unreachable => write!(f, "unreachable route to {destination}"),
                Way::Interface { interface, .. } => {
                    write!(f, "route to {destination} by interface {interface}")
                }
            },
        }
    }
}
