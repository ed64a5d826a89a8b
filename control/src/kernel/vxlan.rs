//! The kernel's own VXLAN devices (Linux `drivers/net/vxlan`): finding, making, adjusting.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo as Info,
    LinkMessage,
};
use viaduct_encap::{MacAddr, Vni};

use super::{Kernel, KernelError, LinkInfo};

/// What the description (`IFLA_IFALIAS`) of the devices that Viaduct made begins with; the node's
/// name follows.
const MADE_BY_US: &str = "made by viaduct";
const FOR_NODE: &str = " for node ";

/// What tells one VXLAN device from another, and cannot be changed while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanSettings {
    /// The network's number on the wire.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// This node's underlay address; none: whatever the kernel chooses.
    pub local: Option<IpAddr>,
    /// The underlay interface's number; none: whatever the routes say.
    pub underlay: Option<u32>,
    /// Whether it learns where MACs are from the packets that come.
    pub learning: bool,
    /// Outer IPv6: sends UDP checksum 0.
    pub zero_tx6: bool,
    /// Outer IPv6: takes UDP checksum 0.
    pub zero_rx6: bool,
    /// The outer TOS, ECN apart; 1: the inner packet's.
    pub tos: u8,
}

/// A VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    /// What all interfaces have.
    pub link: LinkInfo,
    /// What VXLAN devices have.
    pub settings: VxlanSettings,
    /// The node whose Viaduct made it; empty if it does not say, none if Viaduct did not.
    pub owner: Option<String>,
}

impl VxlanDevice {
    /// Whether Viaduct made it.
    pub fn is_ours(&self) -> bool {
        self.owner.is_some()
    }
}

/// What may be changed of a device while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Its MAC.
    pub mac: MacAddr,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u32,
}

impl Kernel {
    /// All interfaces, and those of them that are VXLAN devices.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn links(&self) -> Result<(Vec<LinkInfo>, Vec<VxlanDevice>), KernelError> {
        let mut request = LinkMessage::default();
        let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        request.attributes.push(without_statistics);
        let request = RouteNetlinkMessage::GetLink(request);
        let answers = self.dump("list interfaces", request).await?;
        let mut links = Vec::new();
        let mut devices = Vec::new();
        for answer in &answers {
            if let RouteNetlinkMessage::NewLink(message) = answer
                && let Some(link) = LinkInfo::from_message(message)
            {
                devices.extend(device(message, &link));
                links.push(link);
            }
        }
        Ok((links, devices))
    }

    /// Makes a VXLAN device for a node, up, without IPv6 addresses of its own choice.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; [`KernelError::exists`] is true if the name, or the VNI with the
    /// port, is taken.
    pub async fn add_vxlan(
        &self,
        name: &str,
        settings: &VxlanSettings,
        state: LinkState,
        node: &str,
    ) -> Result<(), KernelError> {
        let mut request = LinkMessage::default();
        request.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(state.mac.0.to_vec()),
            LinkAttribute::Mtu(state.mtu),
            LinkAttribute::LinkInfo(vec![
                Info::Kind(InfoKind::Vxlan),
                Info::Data(InfoData::Vxlan(attributes(settings))),
            ]),
        ];
        let what = format!("make VXLAN device {name}");
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        self.request(&what, RouteNetlinkMessage::NewLink(request), flags)
            .await?;
        // The kernel ignores a description given at birth (`rtnl_create_link`).
        self.set_owner(name, node).await
    }

    /// Marks a device as made for a node.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn set_owner(&self, name: &str, node: &str) -> Result<(), KernelError> {
        let mut alias = LinkMessage::default();
        alias.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::IfAlias(format!("{MADE_BY_US}{FOR_NODE}{node}")),
        ];
        let what = format!("mark {name} as made for {node}");
        self.request(&what, RouteNetlinkMessage::SetLink(alias), NLM_F_ACK)
            .await
            .map(drop)
    }

    /// Gives an interface a MAC and an MTU, and brings it up.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn set_link(&self, link: &LinkInfo, state: LinkState) -> Result<(), KernelError> {
        let mut request = LinkMessage::default();
        request.header.index = link.index;
        request.header.flags = LinkFlags::Up;
        request.header.change_mask = LinkFlags::Up;
        if link.mac != Some(state.mac) {
            let mac = LinkAttribute::Address(state.mac.0.to_vec());
            request.attributes.push(mac);
        }
        if link.mtu != state.mtu {
            request.attributes.push(LinkAttribute::Mtu(state.mtu));
        }
        let what = format!("set up {}", link.name);
        self.request(&what, RouteNetlinkMessage::SetLink(request), NLM_F_ACK)
            .await
            .map(drop)
    }

    /// Removes an interface; one that is not there any more is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove_link(&self, link: &LinkInfo) -> Result<(), KernelError> {
        let mut request = LinkMessage::default();
        request.header.index = link.index;
        let what = format!("remove interface {}", link.name);
        let request = RouteNetlinkMessage::DelLink(request);
        match self.request(&what, request, NLM_F_ACK).await {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn attributes(settings: &VxlanSettings) -> Vec<InfoVxlan> {
    let mut all = vec![
        InfoVxlan::Id(settings.vni.get()),
        InfoVxlan::Port(settings.port),
        InfoVxlan::Learning(settings.learning),
        InfoVxlan::Tos(settings.tos),
    ];
    all.extend(settings.underlay.map(InfoVxlan::Link));
    match settings.local {
        Some(IpAddr::V4(local)) => all.push(InfoVxlan::Local(local)),
        Some(IpAddr::V6(local)) => {
            all.push(InfoVxlan::Local6(local));
            all.push(InfoVxlan::UDPZeroCsumTX(settings.zero_tx6));
            all.push(InfoVxlan::UDPZeroCsumRX(settings.zero_rx6));
        }
        None => {}
    }
    all
}

fn device(message: &LinkMessage, link: &LinkInfo) -> Option<VxlanDevice> {
    let mut owner = None;
    let mut data = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => owner = owner_of(alias),
            LinkAttribute::LinkInfo(infos) => {
                data = infos.iter().find_map(|info| match info {
                    Info::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let mut settings = VxlanSettings {
        vni: Vni::new(0)?,
        port: 0,
        local: None,
        underlay: None,
        learning: false,
        zero_tx6: false,
        zero_rx6: false,
        tos: 0,
    };
    for attribute in data? {
        match attribute {
            InfoVxlan::Id(id) => settings.vni = Vni::new(*id)?,
            InfoVxlan::Port(port) => settings.port = *port,
            InfoVxlan::Local(local) => settings.local = Some((*local).into()),
            InfoVxlan::Local6(local) => settings.local = Some((*local).into()),
            InfoVxlan::Link(index) if *index != 0 => settings.underlay = Some(*index),
            InfoVxlan::Tos(tos) => settings.tos = *tos,
            InfoVxlan::Learning(learning) => settings.learning = *learning,
            InfoVxlan::UDPZeroCsumTX(zero) => settings.zero_tx6 = *zero,
            InfoVxlan::UDPZeroCsumRX(zero) => settings.zero_rx6 = *zero,
            _ => {}
        }
    }
    Some(VxlanDevice {
        link: link.clone(),
        settings,
        owner,
    })
}

fn owner_of(alias: &str) -> Option<String> {
    let rest = alias.strip_prefix(MADE_BY_US)?;
    match rest.strip_prefix(FOR_NODE) {
        Some(node) => Some(node.to_owned()),
        None => rest.is_empty().then(String::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_says_whose_a_device_is() {
        assert_eq!(owner_of("made by viaduct for node a-1"), Some("a-1".into()));
        assert_eq!(owner_of("made by viaduct"), Some(String::new()));
        assert_eq!(owner_of("made by viaducts"), None);
        assert_eq!(owner_of("flannel"), None);
    }
}
