//! What the control plane asks of the data plane.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::{PortId, Update};

use crate::kernel::LinkInfo;
use crate::options::OwnAddresses;

/// What the reconciler asks of the data plane.
///
/// What fails has changed nothing. Calls may block for milliseconds.
pub trait DataPlane: Send {
    /// Makes this the interface towards the other nodes. Until there is one, the pods' packets are
    /// left to the kernel.
    ///
    /// # Errors
    ///
    /// If that is not possible now. It is tried again later.
    fn attach_underlay(&mut self, link: &LinkInfo) -> Result<(), DataPlaneError>;

    /// Undoes [`attach_underlay`](Self::attach_underlay). The interface may be gone.
    ///
    /// # Errors
    ///
    /// If something is left behind. The underlay counts as detached all the same.
    fn detach_underlay(&mut self) -> Result<(), DataPlaneError>;

    /// Whether the underlay still has the queues that it was attached with.
    fn underlay_fits(&self) -> bool;

    /// Takes the networks' packets to these addresses of this node, and no longer those to
    /// addresses of an earlier call.
    ///
    /// # Errors
    ///
    /// If that is not possible now, or in part.
    fn set_own_addresses(&mut self, addresses: OwnAddresses) -> Result<(), DataPlaneError>;

    /// Makes the interface of a pod of this network one that workers receive from and transmit to: sockets and the XDP
    /// program on the host's end of its veth pair.
    ///
    /// # Errors
    ///
    /// If that is not possible now. It is tried again later.
    fn attach_port(
        &mut self,
        id: PortId,
        pod: PodSide<'_>,
        link: &LinkInfo,
    ) -> Result<(), DataPlaneError>;

    /// Notes that a pod has another MAC, or that the underlay has.
    ///
    /// # Errors
    ///
    /// If the XDP programs may not know.
    fn set_port_mac(&mut self, id: PortId, mac: MacAddr) -> Result<(), DataPlaneError>;

    /// Notes that a pod has XDP of its own on its end of the veth pair, or no longer has: its packets go where that sees
    /// them. After [`attach_port`](Self::attach_port) it has none.
    ///
    /// # Errors
    ///
    /// If hooks may not know.
    fn set_own_xdp(&mut self, _id: PortId, _has: bool) -> Result<(), DataPlaneError> {
        Ok(())
    }

    /// Undoes [`attach_port`](Self::attach_port). The interface may be gone.
    ///
    /// # Errors
    ///
    /// If something is left behind. The port counts as detached all the same.
    fn detach_port(&mut self, id: PortId) -> Result<(), DataPlaneError>;

    /// Notes that a port's number, detached, is nobody's from now on: what was counted for it is
    /// not the next one's.
    fn forget_port(&mut self, id: PortId);

    /// Lets the network's packets for a pod through to the workers: a pinhole in the XDP program
    /// on the underlay.
    ///
    /// # Errors
    ///
    /// If that is not possible now.
    fn admit_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError>;

    /// Undoes [`admit_pod`](Self::admit_pod).
    ///
    /// # Errors
    ///
    /// If the pinhole may still be open. The pod counts as expelled all the same.
    fn expel_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError>;

    /// Says which node's inner sources of this prefix are, none: nobody's. The kernel's path gets
    /// no packets in which another node has them.
    ///
    /// # Errors
    ///
    /// If that is not possible now.
    fn set_origin(
        &mut self,
        vni: Vni,
        prefix: IpNet,
        vtep: Option<IpAddr>,
    ) -> Result<(), DataPlaneError>;

    /// Has pods send no tunnel packets to these nodes, here and elsewhere, and no longer to those
    /// of an earlier call.
    ///
    /// # Errors
    ///
    /// If that is not possible now, or in part.
    fn set_nodes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DataPlaneError>;

    /// Leaves packets to these addresses to the kernel, also inside the cluster's prefixes, and no
    /// longer those to addresses of an earlier call.
    ///
    /// # Errors
    ///
    /// If that is not possible now, or in part.
    fn set_host_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DataPlaneError>;

    /// Notes the numbers of the kernel's VXLAN devices over IPv4 and IPv6, which carry the first network, and forgets those
    /// of an earlier call.
    ///
    /// # Errors
    ///
    /// If that is not possible now, or in part.
    fn set_overlay_devices(&mut self, _devices: [Option<u32>; 2]) -> Result<(), DataPlaneError> {
        Ok(())
    }

    /// Leaves to the workers what these changes of the forwarding table are about; called before the table takes them. Nothing
    /// in front of the workers goes by what the table is about to forget then.
    fn withdraw(&mut self, _changes: &[Update]) {}

    /// Lets what is in front of the workers go by these changes, which the table has taken.
    fn settle(&mut self, _changes: &[Update]) {}

    /// Does what is to be done now and then, once a second: repairs what somebody else has changed, and does what was not
    /// possible so far.
    fn maintain(&mut self) {}

    /// Waits until every worker has begun a batch since the call, so that none still acts on what
    /// was published before. It must not wait for ever.
    fn quiesce(&mut self);
}

/// A pod, as far as its packets are checked in front of the workers.
#[derive(Clone, Copy, Debug)]
pub struct PodSide<'a> {
    /// Its network.
    pub vni: Vni,
    /// Its own MAC.
    pub mac: MacAddr,
    /// Its own addresses.
    pub addresses: &'a [IpAddr],
    /// Whether the kernel carries its network, too.
    pub carried: bool,
    /// Whether workers have sockets at its own queues; its hook is in tc otherwise.
    pub sockets: bool,
}

/// Why the data plane could not do what it was asked for. The text is shown to operators as it is,
/// without the error's sources, so it should say all.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DataPlaneError(#[from] Box<dyn Error + Send + Sync>);

impl DataPlaneError {
    /// Wraps an error, or a text, of the data plane.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}
