//! Changes as the kernel announces them (rtnetlink multicast groups).

use std::net::IpAddr;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::{AbortOnDrop, KernelError, LinkInfo};

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
    RouteChanged,
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

/// The kernel's announcements, from the time of [`Events::subscribe`] on.
#[derive(Debug)]
pub struct Events {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _connection: AbortOnDrop,
}

impl Events {
    /// Subscribes to changes of links, addresses, routes and neighbours in the thread's
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
    pub async fn next(&mut self) -> Option<KernelEvent> {
        loop {
            let (message, _) = self.messages.next().await?;
            let event = event(message.payload);
            if event == Some(KernelEvent::Resync) {
                // After it has said so once, the kernel goes on dropping events, silently, until
                // the socket has been read empty (`NETLINK_S_CONGESTED`, Linux
                // `net/netlink/af_netlink.c`). A new socket loses nothing from now on.
                *self = Self::subscribe().ok()?;
            }
            if event.is_some() {
                return event;
            }
        }
    }

    /// The next change, if it is there already.
    pub fn try_next(&mut self) -> Option<KernelEvent> {
        self.next().now_or_never().flatten()
    }
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
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
            Some(KernelEvent::RouteChanged)
        }
        RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
            Some(neighbour_changed(&message))
        }
        _ => None,
    }
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
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;

    #[test]
    fn lost_events_ask_for_a_resync() {
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert_eq!(event(overrun), Some(KernelEvent::Resync));
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
