//! One entry of a kernel table, and what the kernel tells entries apart by.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_encap::MacAddr;

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

/// What the kernel tells entries apart by: of one key it has one, but for forwarding entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An interface's address.
    Address(u32, IpNet),
    /// An address among an interface's neighbours.
    Neighbour(u32, IpAddr),
    /// A MAC in a device's forwarding table.
    Forward(u32, MacAddr),
    /// An address that is answered for on an interface.
    Proxy(u32, IpAddr),
    /// A destination, and whether it is by the metric of routes that refuse.
    Route(IpNet, bool),
}

impl Entry {
    /// What the kernel tells it from others by.
    pub fn key(&self) -> Key {
        match *self {
            Self::Address { interface, address } => Key::Address(interface, address),
            Self::Neighbour {
                interface, address, ..
            } => Key::Neighbour(interface, address),
            Self::Forward { interface, mac, .. } => Key::Forward(interface, mac),
            Self::Proxy { interface, address } => Key::Proxy(interface, address),
            Self::Route { destination, way } => Key::Route(destination, way == Way::Unreachable),
        }
    }

    /// Whether the kernel may have several of its key: a VXLAN device floods to all of them.
    pub(crate) fn may_stand_beside(&self) -> bool {
        matches!(self, Self::Forward { .. })
    }

    /// Whether it is about IPv4 addresses, of whatever family the underlay is.
    pub(crate) fn is_v4(&self) -> bool {
        match self {
            Self::Address { address, .. } => address.addr().is_ipv4(),
            Self::Neighbour { address, .. } | Self::Proxy { address, .. } => address.is_ipv4(),
            Self::Route { destination, .. } => destination.addr().is_ipv4(),
            Self::Forward { .. } => true,
        }
    }

    /// Whether it goes with this interface.
    pub(crate) fn is_of(&self, interface: u32) -> bool {
        match *self {
            Self::Route { way, .. } => {
                matches!(way, Way::Interface { interface: by, .. } if by == interface)
            }
            _ => self.interface() == Some(interface),
        }
    }

    /// The interface whose entry it is; none for a route.
    pub(crate) fn interface(&self) -> Option<u32> {
        match *self {
            Self::Address { interface, .. }
            | Self::Neighbour { interface, .. }
            | Self::Forward { interface, .. }
            | Self::Proxy { interface, .. } => Some(interface),
            Self::Route { .. } => None,
        }
    }
}

/// What an event says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryChange {
    /// It is there, and whether Viaduct made it.
    Is(Entry, bool),
    /// What had this key is not there any more: this entry, or whatever it was.
    Gone(Key, Option<Entry>),
}

/// Interfaces' names by their numbers, for messages.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<u32, String>);

impl Names {
    /// Of these interfaces.
    pub fn new(all: impl IntoIterator<Item = (u32, String)>) -> Self {
        Self(all.into_iter().collect())
    }

    /// Adds some.
    pub(crate) fn extend(&mut self, more: impl IntoIterator<Item = (u32, String)>) {
        self.0.extend(more);
    }

    /// An entry in words.
    pub fn of<'a>(&'a self, entry: &'a Entry) -> impl fmt::Display + 'a {
        Named { names: self, entry }
    }

    fn name(&self, interface: u32) -> &str {
        let name = self.0.get(&interface).map(String::as_str);
        name.unwrap_or("an interface that is gone")
    }
}

struct Named<'a> {
    names: &'a Names,
    entry: &'a Entry,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |interface: u32| self.names.name(interface);
        match *self.entry {
            Entry::Address { interface, address } => {
                write!(f, "address {address} on {}", name(interface))
            }
            Entry::Neighbour {
                interface,
                address,
                mac,
            } => write!(f, "neighbour {address} {mac} on {}", name(interface)),
            Entry::Forward { interface, mac, to } => {
                write!(f, "forwarding of {mac} to {to} on {}", name(interface))
            }
            Entry::Proxy { interface, address } => {
                write!(f, "proxy for {address} on {}", name(interface))
            }
            Entry::Route { destination, way } => match way {
                Way::Unreachable => write!(f, "unreachable route to {destination}"),
                Way::Interface { interface, .. } => {
                    write!(f, "route to {destination} by {}", name(interface))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_said_with_names_and_without_numbers() {
        let names = Names::new([(7, "veth-web".to_owned())]);
        let address = "fe80::1/64".parse().unwrap();
        let entry = |interface| Entry::Address { interface, address };
        let said = |interface| names.of(&entry(interface)).to_string();
        assert_eq!(said(7), "address fe80::1/64 on veth-web");
        assert_eq!(said(8), "address fe80::1/64 on an interface that is gone");
    }
}
