//! A node as a system sets it up: its address, its pods, and the other nodes.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use viaduct_encap::MacAddr;

use crate::bed::UNDERLAY;
use crate::host::Host;

/// Everything that a system has to know.
pub(crate) struct Node {
    pub(crate) host: Host,
    /// Unique on this machine.
    pub(crate) name: String,
    /// For its files.
    pub(crate) folder: PathBuf,
    pub(crate) vtep: Vtep,
    /// The /24 of its pods, whose first address is the node's own in the overlay.
    pub(crate) prefix: Ipv4Addr,
    pub(crate) pods: Vec<Local>,
    pub(crate) others: Vec<Remote>,
}

/// An end of tunnels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vtep {
    /// Address and MAC of the underlay.
    pub(crate) address: Ipv4Addr,
    pub(crate) underlay_mac: MacAddr,
    /// Of inner frames.
    pub(crate) mac: MacAddr,
}

/// A pod of the node.
pub(crate) struct Local {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: MacAddr,
    /// The node's end of its interface.
    pub(crate) interface: String,
}

/// Another node.
pub(crate) struct Remote {
    pub(crate) vtep: Vtep,
    /// Its pods' /24s.
    pub(crate) prefixes: Vec<Ipv4Addr>,
}

impl Node {
    /// How many prefixes other nodes have.
    pub(crate) fn routes(&self) -> usize {
        self.others.iter().map(|other| other.prefixes.len()).sum()
    }

    /// Its interfaces to pods and to other nodes.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &str> {
        let pods = self.pods.iter().map(|pod| pod.interface.as_str());
        pods.chain([UNDERLAY])
    }

    /// Has interfaces without XDP program take frames, as from a NIC.
    pub(crate) fn take_frames(&self) -> anyhow::Result<()> {
        for device in self.devices() {
            self.host.run(&format!("ethtool -K {device} gro on"))?;
        }
        Ok(())
    }
}
