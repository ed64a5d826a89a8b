//! The router as the control plane asks for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use viaduct_control::kernel::LinkInfo;
use viaduct_control::{DataPlane, DataPlaneError};
use viaduct_encap::Vni;
use viaduct_fib::PortId;
use viaduct_router::Router;

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
}

impl DataPlane for Plane {
    fn attach_port(&mut self, id: PortId, vni: Vni, link: &LinkInfo) -> Result<(), DataPlaneError> {
        let attached = self
            .router
            .lock()
            .attach(id, &link.name, link.index, Some(vni));
        let attached = attached.map_err(DataPlaneError::new)?;
        tracing::info!(interface = link.name, mode = ?attached.mode, queues = attached.queues, zero_copy = attached.zero_copy, "port attached");
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
