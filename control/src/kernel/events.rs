//! Changes as the kernel announces them (rtnetlink multicast groups).

use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::entries::{self, EntryChange};
use super::routes::ip;
use super::{AbortOnDrop, KernelError, LinkInfo, PROTOCOL};

/// Room for events that have not been read yet, in bytes. The kernel's default, 208 kB, holds a
/// few hundred; the kernel may grant less than this.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// A change of what the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// An interface appeared or changed.
    LinkChanged(LinkInfo),
    /// An interface went away, or to another namespace.
    LinkRemoved {
        /// Its number here.
        index: u32,
        /// Its name here.
        name: String,
    },
    /// An interface gained or lost an address.
    AddressChanged {
        /// The interface's number.
        interface: u32,
    },
    /// A route came, changed or went.
    RouteChanged {
        /// What it leads to: only packets that go there can now go another way.
        destination: IpNet,
        /// Whether Viaduct made it ([`PROTOCOL`](super::PROTOCOL)).
        ours: bool,
    },
    /// A rule that chooses among routing tables came or went.
    RuleChanged,
    /// An entry of a neighbour table came, changed or went.
    NeighbourChanged {
        /// The interface's number.
        interface: u32,
        /// The neighbour's address.
        address: IpAddr,
    },
    /// An entry of a bridge's or VXLAN device's forwarding table came, changed or went.
    ForwardingChanged {
        /// The interface's number.
        interface: u32,
    },
    /// Events were lost, because they came faster than they were read: anything may have changed.
    /// What happens from here on is told of again.
    Resync,
}

/// A change, and what it says of an entry of the kinds that the slow path has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What has changed.
    pub event: KernelEvent,
    /// Which entry is there now, or is gone.
    pub entry: Option<EntryChange>,
}

impl From<KernelEvent> for Change {
    fn from(event: KernelEvent) -> Self {
        Self { event, entry: None }
    }
}

/// The kernel's announcements, from the time of [`Events::subscribe`] on.
#[derive(Debug)]
pub struct Events {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _connection: AbortOnDrop,
}

impl Events {
    /// Subscribes to changes of links, addresses, routes, rules and neighbours in the thread's
    /// network namespace. Like [`Kernel::open`](super::Kernel::open) it needs a tokio runtime.
    ///
    /// Subscribe before looking at anything: then no change falls in between.
    ///
    /// # Errors
    ///
    /// [`KernelError::Socket`] if the socket cannot be had.
    pub fn subscribe() -> Result<Self, KernelError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Neigh,
        ];
        let (mut connection, _, messages) =
            new_multicast_connection(&groups).map_err(KernelError::Socket)?;
        connection
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(RECEIVE_BUFFER)
            .map_err(KernelError::Socket)?;
        let task = tokio::spawn(connection);
        Ok(Self {
            messages,
            _connection: AbortOnDrop(task.abort_handle()),
        })
    }

    /// The next change; None if the socket has failed and could not be replaced, after which there
    /// will be no more.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            let change = change(message.payload);
            if change
                .as_ref()
                .is_some_and(|it| it.event == KernelEvent::Resync)
            {
                // After it has said so once, the kernel goes on dropping events, silently, until
                // the socket has been read empty (`NETLINK_S_CONGESTED`, Linux
                // `net/netlink/af_netlink.c`). A new socket loses nothing from now on.
                *self = Self::subscribe().ok()?;
            }
            if change.is_some() {
                return change;
            }
        }
    }

    /// The next change, if it is there already.
    pub fn try_next(&mut self) -> Option<Change> {
        self.next().now_or_never().flatten()
    }
}

fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    let entry = match &payload {
        NetlinkPayload::InnerMessage(message) => entries::change(message),
        _ => None,
    };
    event(payload).map(|event| Change { event, entry })
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<KernelEvent> {
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        // How the library reports ENOBUFS, the kernel's word for "events were lost".
        NetlinkPayload::Overrun(_) => return Some(KernelEvent::Resync),
        _ => return None,
    };
    match message {
        RouteNetlinkMessage::NewLink(message) => {
            LinkInfo::from_message(&message).map(KernelEvent::LinkChanged)
        }
        RouteNetlinkMessage::DelLink(message) => {
            LinkInfo::from_message(&message).map(|link| KernelEvent::LinkRemoved {
                index: link.index,
                name: link.name,
            })
        }
        RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
            Some(KernelEvent::AddressChanged {
                interface: message.header.index,
            })
        }
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            route_changed(&message)
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
            Some(KernelEvent::RuleChanged)
        }
        RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
            Some(neighbour_changed(&message))
        }
        _ => None,
    }
}

/// A default route comes without a destination.
fn route_changed(message: &RouteMessage) -> Option<KernelEvent> {
    let header = &message.header;
    let mut attributes = message.attributes.iter();
    let destination = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let destination = destination.unwrap_or(any);
    Some(KernelEvent::RouteChanged {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        ours: u8::from(header.protocol) == PROTOCOL,
    })
}

/// Forwarding entries come as neighbours without an IP address.
fn neighbour_changed(message: &NeighbourMessage) -> KernelEvent {
    let interface = message.header.ifindex;
    let mut addresses = message.attributes.iter();
    let address = addresses.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    });
    address.map_or(KernelEvent::ForwardingChanged { interface }, |address| {
        KernelEvent::NeighbourChanged { interface, address }
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
    use rtnetlink::packet_route::route::RouteAddress;

    use super::*;

    #[test]
    fn lost_events_ask_for_a_resync() {
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(event(overrun), Some(KernelEvent::Resync));
    }

    #[test]
    fn a_route_names_what_it_leads_to() {
        let changed = |message: &RouteMessage| {
            let message = RouteNetlinkMessage::DelRoute(message.clone());
            event(NetlinkPayload::InnerMessage(message))
        };
        let of = |destination: &str, ours| {
            let destination = destination.parse().unwrap();
            Some(KernelEvent::RouteChanged { destination, ours })
        };
        let mut message = RouteMessage::default();
        assert_eq!(changed(&message), None, "of no family that carries tunnels");
        message.header.address_family = AddressFamily::Inet6;
        assert_eq!(changed(&message), of("::/0", false));
        message.header.address_family = AddressFamily::Inet;
        assert_eq!(changed(&message), of("0.0.0.0/0", false));
        message.header.destination_prefix_length = 24;
        message.header.protocol = PROTOCOL.into();
        let destination = RouteAttribute::Destination(RouteAddress::Inet([192, 0, 2, 0].into()));
        message.attributes.push(destination);
        assert_eq!(changed(&message), of("192.0.2.0/24", true));
    }

    #[test]
    fn leaving_a_bridge_is_not_leaving_the_node() {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message
            .attributes
            .push(LinkAttribute::IfName("pod0".into()));
        let removal = |message: &LinkMessage| {
            event(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(
                message.clone(),
            )))
        };
        let removed = KernelEvent::LinkRemoved {
            index: 9,
            name: "pod0".into(),
        };
        assert_eq!(removal(&message), Some(removed));
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(removal(&message), None);
    }
}
