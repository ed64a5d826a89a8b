//! The router as the control plane asks for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use viaduct_control::kernel::LinkInfo;
use viaduct_control::{DataPlane, DataPlaneError, OwnAddresses, PodSide};
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::PortId;
use viaduct_router::{Router, XdpMode};

/// The router, shared by the agent and the status server. Workers never see
/// the lock.
#[derive(Clone)]
pub(crate) struct SharedRouter(Arc<Mutex<Router>>);

impl SharedRouter {
    pub(crate) fn new(router: Router) -> Self {
        Self(Arc::new(Mutex::new(router)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Router> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`DataPlane`] over the router; knows which network the host is in.
pub(crate) struct Plane {
    pub(crate) router: SharedRouter,
    /// The network that the host is in, too, and its cluster's prefixes.
    pub(crate) cluster: Option<(Vni, Vec<IpNet>)>,
    /// The host's own addresses inside these, as the pinholes know them.
    pub(crate) host: BTreeSet<IpAddr>,
    /// UDP ports of the networks.
    pub(crate) ports: BTreeSet<u16>,
    /// Where the networks' packets come in, as the pinholes know it.
    pub(crate) vteps: BTreeSet<(IpAddr, u16)>,
    /// Where pods send no tunnel packets, as the XDP programs know it.
    pub(crate) nodes: BTreeSet<(IpAddr, u16)>,
    /// Whether a worse XDP mode than the driver's is worth a word.
    pub(crate) expects_native: bool,
}

impl DataPlane for Plane {
    fn attach_underlay(&mut self, link: &LinkInfo) -> Result<(), DataPlaneError> {
        let attached = self
            .router
            .lock()
            .attach(PortId::UNDERLAY, &link.name, link.index, None);
        let attached = attached.map_err(DataPlaneError::new)?;
        tracing::info!(interface = attached.interface, mode = ?attached.mode, queues = attached.queues, zero_copy = attached.zero_copy, "underlay attached");
        if attached.mode == XdpMode::Generic && self.expects_native {
            tracing::warn!(
                interface = attached.interface,
                "the driver has no native XDP; generic mode is slower"
            );
        }
        Ok(())
    }

    fn detach_underlay(&mut self) -> Result<(), DataPlaneError> {
        let mut router = self.router.lock();
        router.detach(PortId::UNDERLAY).map_err(DataPlaneError::new)
    }

    fn underlay_fits(&self) -> bool {
        self.router.lock().fits(PortId::UNDERLAY)
    }

    fn set_own_addresses(&mut self, addresses: OwnAddresses) -> Result<(), DataPlaneError> {
        let all = addresses
            .iter()
            .flat_map(|own| self.ports.iter().map(move |&port| (own, port)));
        let wanted: BTreeSet<(IpAddr, u16)> = all.collect();
        let mut router = self.router.lock();
        for &(own, port) in wanted.difference(&self.vteps) {
            router.add_vtep(own, port).map_err(DataPlaneError::new)?;
        }
        for &(own, port) in self.vteps.difference(&wanted) {
            router.remove_vtep(own, port).map_err(DataPlaneError::new)?;
        }
        drop(router);
        self.vteps = wanted;
        Ok(())
    }

    fn attach_port(
        &mut self,
        id: PortId,
        pod: PodSide<'_>,
        link: &LinkInfo,
    ) -> Result<(), DataPlaneError> {
        let pod = viaduct_router::PodSide {
            vni: pod.vni,
            mac: pod.mac,
            addresses: pod.addresses.to_vec(),
            carried: pod.carried,
        };
        let mut router = self.router.lock();
        let attached = router.attach(id, &link.name, link.index, Some(pod));
        let attached = attached.map_err(DataPlaneError::new)?;
        tracing::info!(interface = link.name, mode = ?attached.mode, queues = attached.queues, zero_copy = attached.zero_copy, "port attached");
        Ok(())
    }

    fn set_port_mac(&mut self, id: PortId, mac: MacAddr) -> Result<(), DataPlaneError> {
        self.router
            .lock()
            .set_mac(id, mac)
            .map_err(DataPlaneError::new)
    }

    fn set_origin(
        &mut self,
        vni: Vni,
        prefix: IpNet,
        vtep: Option<IpAddr>,
    ) -> Result<(), DataPlaneError> {
        let prefix = (prefix.network(), prefix.prefix_len());
        let mut router = self.router.lock();
        router
            .set_origin(vni, prefix, vtep)
            .map_err(DataPlaneError::new)
    }

    fn set_nodes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DataPlaneError> {
        let all = addresses
            .iter()
            .flat_map(|&node| self.ports.iter().map(move |&port| (node, port)));
        let wanted: BTreeSet<(IpAddr, u16)> = all.collect();
        let mut router = self.router.lock();
        for &(node, port) in wanted.difference(&self.nodes) {
            router
                .set_node(node, port, true)
                .map_err(DataPlaneError::new)?;
        }
        for &(node, port) in self.nodes.difference(&wanted) {
            router
                .set_node(node, port, false)
                .map_err(DataPlaneError::new)?;
        }
        drop(router);
        self.nodes = wanted;
        Ok(())
    }

    fn forget_port(&mut self, id: PortId) {
        self.router.lock().retire(id);
    }

    fn detach_port(&mut self, id: PortId) -> Result<(), DataPlaneError> {
        self.router.lock().detach(id).map_err(DataPlaneError::new)
    }

    fn admit_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        self.router
            .lock()
            .admit_pod(vni, address)
            .map_err(DataPlaneError::new)
    }

    fn expel_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        self.router
            .lock()
            .expel_pod(vni, address)
            .map_err(DataPlaneError::new)
    }

    fn set_host_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DataPlaneError> {
        let Some((vni, prefixes)) = &self.cluster else {
            return Ok(());
        };
        let inside = |address: &&IpAddr| prefixes.iter().any(|p| p.contains(*address));
        let wanted: BTreeSet<IpAddr> = addresses.iter().filter(inside).copied().collect();
        let mut router = self.router.lock();
        for &address in wanted.difference(&self.host) {
            let prefix = IpNet::from(address);
            router
                .add_cluster_prefix(*vni, address, prefix.prefix_len(), false)
                .map_err(DataPlaneError::new)?;
        }
        for &address in self.host.difference(&wanted) {
            let prefix = IpNet::from(address);
            router
                .remove_cluster_prefix(*vni, address, prefix.prefix_len())
                .map_err(DataPlaneError::new)?;
        }
        self.host = wanted;
        Ok(())
    }

    fn quiesce(&mut self) {
        self.router.lock().quiesce();
    }
}
