//! Network interfaces (`RTM_GETLINK`, Linux `net/core/rtnetlink.c`).

use rtnetlink::packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo as InfoAttribute, LinkMessage, LinkXdp,
    XdpAttached as Attached,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use viaduct_encap::MacAddr;

use super::{Kernel, KernelError};

/// The longest name that an interface can have, in bytes (`IFNAMSIZ` less the final zero).
const MAX_NAME_LEN: usize = 15;

/// What the kernel says of a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// The interface's number; unique within its namespace only.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; none if it has no hardware address or one of another kind.
    pub mac: Option<MacAddr>,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// The kind of a virtual interface, such as `veth` or `bridge`; none for hardware.
    pub kind: Option<String>,
    /// How many receive queues it was made with.
    pub num_rx_queues: u32,
    /// How many transmit queues it was made with.
    pub num_tx_queues: u32,
    /// The XDP program that is attached to it.
    pub xdp: Option<XdpAttached>,
    /// The interface that it belongs to: for a veth, the pair's other end.
    pub peer: Option<Peer>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttached {
    /// The program's number, as `bpftool prog` shows it.
    pub program_id: u32,
    /// Where the program runs.
    pub mode: XdpMode,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver (`XDP_FLAGS_DRV_MODE`).
    Native,
    /// In the network stack, after the driver (`XDP_FLAGS_SKB_MODE`).
    Generic,
    /// On the hardware (`XDP_FLAGS_HW_MODE`).
    Offloaded,
    /// Several programs are attached, in different places.
    Multiple,
}

/// The interface that another one belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number in its own namespace (`IFLA_LINK`).
    pub index: u32,
    /// What our namespace calls the namespace that it is in (`IFLA_LINK_NETNSID`); none if it is
    /// ours.
    pub netns_id: Option<i32>,
}

impl Kernel {
    /// What the kernel says of the interface of this name.
    ///
    /// # Errors
    ///
    /// [`KernelError::NoSuchInterface`] if there is none; others if the kernel cannot be asked.
    pub async fn link_by_name(&self, name: &str) -> Result<LinkInfo, KernelError> {
        let missing = || KernelError::NoSuchInterface { name: name.into() };
        if name.is_empty() || name.len() > MAX_NAME_LEN {
            return Err(missing());
        }
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.into()));
        match self
            .link(&format!("look up interface {name}"), request)
            .await
        {
            Err(error) if error.errno() == Some(libc::ENODEV) => Err(missing()),
            other => other,
        }
    }

    /// What the kernel says of the interface of this number; none if there is none. An error says
    /// that `what` was looked up, such as "interface eth0": a number says nothing to people.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn link_by_index(
        &self,
        index: u32,
        what: &str,
    ) -> Result<Option<LinkInfo>, KernelError> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        match self.link(&format!("look up {what}"), request).await {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface that this one belongs to: for a veth, the pair's other end, also if that is in another namespace. None if
    /// there is no such interface.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or the caller may not look into that namespace.
    pub async fn peer(&self, link: &LinkInfo) -> Result<Option<LinkInfo>, KernelError> {
        let Some(peer) = link.peer else {
            return Ok(None);
        };
        let mut request = LinkMessage::default();
        request.header.index = peer.index;
        if let Some(id) = peer.netns_id {
            // IFLA_TARGET_NETNSID has the number of IFLA_IF_NETNSID, its older name.
            request.attributes.push(LinkAttribute::IfNetnsId(id));
        }
        let what = format!("look up the peer of interface {}", link.name);
        match self.link(&what, request).await {
            Ok(peer) => Ok(Some(peer)),
            // ENODEV: the peer has gone. EINVAL: its namespace has, and the number with it.
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn link(&self, what: &str, mut request: LinkMessage) -> Result<LinkInfo, KernelError> {
        let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        request.attributes.push(without_statistics);
        let answers = self
            .request(what, RouteNetlinkMessage::GetLink(request), 0)
            .await?;
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => LinkInfo::from_message(&message),
            _ => None,
        });
        link.ok_or_else(|| KernelError::NoAnswer { what: what.into() })
    }
}

impl LinkInfo {
    /// None for a message that is not about the interface itself but, say, about its place in a
    /// bridge: that comes as the same kind of message with family `AF_BRIDGE`.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            num_rx_queues: 1,
            num_tx_queues: 1,
            xdp: None,
            peer: None,
        };
        let mut peer_index = None;
        let mut peer_netns = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::NumRxQueues(queues) => link.num_rx_queues = *queues,
                LinkAttribute::NumTxQueues(queues) => link.num_tx_queues = *queues,
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
                LinkAttribute::Xdp(attributes) => link.xdp = xdp(attributes),
                LinkAttribute::Link(index) => peer_index = Some(*index),
                LinkAttribute::LinkNetNsId(id) => peer_netns = Some(*id),
                _ => {}
            }
        }
        link.peer = peer_index
            // 0: the other end has gone.
            .filter(|&index| index != 0)
            // Below 0: its namespace has no name here, so it cannot be asked about.
            .filter(|_| peer_netns.is_none_or(|id| id >= 0))
            .map(|index| Peer {
                index,
                netns_id: peer_netns,
            });
        Some(link)
    }
}

/// A MAC from a link-layer address; none if it has another length or says nothing.
pub(super) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    let bytes = <[u8; 6]>::try_from(bytes).ok()?;
    (bytes != [0; 6]).then_some(MacAddr(bytes))
}

fn kind(attributes: &[InfoAttribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match attribute {
        InfoAttribute::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn xdp(attributes: &[LinkXdp]) -> Option<XdpAttached> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(Attached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(Attached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(Attached::Hardware) => Some(XdpMode::Offloaded),
        LinkXdp::Attached(Attached::Multiple) => Some(XdpMode::Multiple),
        _ => None,
    })?;
    // With several programs there is no IFLA_XDP_PROG_ID: name one of them.
    let program_id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id)
        | LinkXdp::DrvProgId(id)
        | LinkXdp::SkbProgId(id)
        | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(XdpAttached { program_id, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.attributes = attributes;
        message
    }

    fn parse(attributes: Vec<LinkAttribute>) -> LinkInfo {
        LinkInfo::from_message(&message(attributes)).unwrap()
    }

    #[test]
    fn a_bridge_port_message_is_not_about_the_link() {
        let mut message = message(vec![]);
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(LinkInfo::from_message(&message), None);
    }

    #[test]
    fn odd_hardware_addresses_are_no_mac() {
        for bytes in [vec![], vec![0; 6], vec![1; 4], vec![1; 20]] {
            assert_eq!(parse(vec![LinkAttribute::Address(bytes)]).mac, None);
        }
        let link = parse(vec![LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1])]);
        assert_eq!(link.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
    }

    #[test]
    fn a_peer_that_cannot_be_asked_about_is_none() {
        let peer = |index, id: Option<i32>| {
            let mut attributes = vec![LinkAttribute::Link(index)];
            attributes.extend(id.map(LinkAttribute::LinkNetNsId));
            parse(attributes).peer
        };
        assert_eq!(peer(0, None), None);
        assert_eq!(peer(3, Some(-1)), None);
        let here = Peer {
            index: 3,
            netns_id: None,
        };
        assert_eq!(peer(3, None), Some(here));
        let there = Peer {
            index: 3,
            netns_id: Some(0),
        };
        assert_eq!(peer(3, Some(0)), Some(there));
    }

    #[test]
    fn an_xdp_program_has_a_number_and_a_mode() {
        let none = LinkAttribute::Xdp(vec![LinkXdp::Attached(Attached::None)]);
        assert_eq!(parse(vec![none]).xdp, None);
        let native = LinkAttribute::Xdp(vec![
            LinkXdp::Attached(Attached::Driver),
            LinkXdp::DrvProgId(42),
            LinkXdp::ProgId(42),
        ]);
        let expected = XdpAttached {
            program_id: 42,
            mode: XdpMode::Native,
        };
        assert_eq!(parse(vec![native]).xdp, Some(expected));
    }
}
