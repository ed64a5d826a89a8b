//! Addresses of interfaces (`RTM_GETADDR`).

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::{Kernel, KernelError};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's number.
    pub interface: u32,
    /// The address, with the length of the prefix that is reached through the interface.
    pub address: IpNet,
    /// What the kernel says of it: `IFA_F_...` of Linux `include/uapi/linux/if_addr.h`.
    pub flags: u32,
    /// Who made it (`IFA_PROTO`), where that is said.
    pub protocol: Option<u8>,
}

impl Kernel {
    /// The addresses of one interface, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn addresses(&self, interface: u32) -> Result<Vec<InterfaceAddress>, KernelError> {
        let mut all = self.all_addresses().await?;
        all.retain(|entry| entry.interface == interface);
        Ok(all)
    }

    /// All addresses in the namespace, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn all_addresses(&self) -> Result<Vec<InterfaceAddress>, KernelError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", request).await?;
        let addresses = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => interface_address(message),
            _ => None,
        });
        Ok(addresses.collect())
    }
}

fn interface_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut local = None;
    let mut address = None;
    let mut flags = u32::from(message.header.flags.bits());
    let mut protocol = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            // All of them; the header has room for the first eight.
            AddressAttribute::Flags(all) => flags = all.bits(),
            AddressAttribute::Protocol(by) => protocol = Some(u8::from(*by)),
            _ => {}
        }
    }
    // On a point-to-point interface IFA_ADDRESS is the far end's, and IFA_LOCAL ours.
    let ip: IpAddr = local.or(address)?;
    Some(InterfaceAddress {
        interface: message.header.index,
        address: IpNet::new(ip, message.header.prefix_len).ok()?,
        flags,
        protocol,
    })
}
