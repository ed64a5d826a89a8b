//! The router as the control plane asks for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use viaduct_control::kernel::LinkInfo;
use viaduct_control::{DataPlane, DataPlaneError, OwnAddresses, PodSide};
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::{PortId, Update};
use viaduct_router::{Attached, ClusterPrefix, Router, XdpMode};

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
    /// Where pods' packets are the workers', by the configuration.
    pub(crate) cluster: Vec<ClusterPrefix>,
    /// The network that the host is in, too.
    pub(crate) host: Option<Vni>,
    /// UDP ports of the networks.
    pub(crate) ports: BTreeSet<u16>,
    /// What was wrong with the XDP programs' maps when it was looked at last.
    pub(crate) problems: Vec<String>,
    /// Whether any hook is in tc, and reads what is settled.
    pub(crate) settles: bool,
    /// Whether a worse XDP mode than the driver's is worth a word.
    pub(crate) expects_native: bool,
}

impl Plane {
    /// Says why XDP does not run in a driver, if it could be expected to.
    fn warn_of_generic(&self, attached: &Attached) {
        if attached.mode == Some(XdpMode::Generic) && self.expects_native {
            let interface = &attached.interface;
            let why = attached.not_native.as_deref();
            let why = why.unwrap_or("a predecessor's program is in generic mode");
            tracing::warn!(interface, why, "XDP runs in generic mode, which is slower");
        }
    }

    /// These addresses with each UDP port of a network.
    fn at_ports(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, u16)> {
        addresses.flat_map(|address| self.ports.iter().map(move |&port| (address, port)))
    }
}

/// How a device is hooked, for the log.
fn hook(attached: &Attached) -> &'static str {
    match attached.mode {
        Some(XdpMode::Native) => "xdp",
        Some(XdpMode::Generic) => "xdp, generic",
        None => "tc",
    }
}

fn contains(prefix: &ClusterPrefix, address: IpAddr) -> bool {
    IpNet::new(prefix.address, prefix.length).is_ok_and(|prefix| prefix.contains(&address))
}

impl DataPlane for Plane {
    fn attach_underlay(&mut self, link: &LinkInfo) -> Result<(), DataPlaneError> {
        let attached = self
            .router
            .lock()
            .attach(PortId::UNDERLAY, &link.name, link.index, None);
        let attached = attached.map_err(DataPlaneError::new)?;
        // Until this is written the XDP program does not look at frames' destination.
        if let Some(mac) = link.mac
            && let Err(error) = self.set_port_mac(PortId::UNDERLAY, mac)
        {
            tracing::warn!(interface = link.name, %mac, %error, "the XDP program does not have the underlay's MAC yet");
        }
        tracing::info!(
            interface = attached.interface,
            hook = hook(&attached),
            queues = attached.queues,
            zero_copy = attached.zero_copy,
            "underlay attached"
        );
        self.warn_of_generic(&attached);
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
        let places = self.at_ports(addresses.iter());
        let set = self.router.lock().set_vteps(places);
        set.map_err(DataPlaneError::new)
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
            sockets: pod.sockets,
        };
        let mut router = self.router.lock();
        let attached = router.attach(id, &link.name, link.index, Some(pod));
        let attached = attached.map_err(DataPlaneError::new)?;
        tracing::info!(
            interface = link.name,
            hook = hook(&attached),
            queues = attached.queues,
            zero_copy = attached.zero_copy,
            "port attached"
        );
        drop(router);
        self.warn_of_generic(&attached);
        Ok(())
    }

    fn set_port_mac(&mut self, id: PortId, mac: MacAddr) -> Result<(), DataPlaneError> {
        self.router
            .lock()
            .set_mac(id, mac)
            .map_err(DataPlaneError::new)
    }

    fn set_own_xdp(&mut self, id: PortId, has: bool) -> Result<(), DataPlaneError> {
        let set = self.router.lock().set_own_xdp(id, has);
        set.map_err(DataPlaneError::new)
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
        let places = self.at_ports(addresses.iter().copied());
        let set = self.router.lock().set_nodes(places);
        set.map_err(DataPlaneError::new)
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
        let inside = |it: &ClusterPrefix| {
            let mut prefixes = self.cluster.iter();
            prefixes.any(|prefix| prefix.vni == it.vni && contains(prefix, it.address))
        };
        let host = self.host.into_iter().flat_map(|vni| {
            addresses.iter().map(move |&address| ClusterPrefix {
                vni,
                address,
                length: IpNet::from(address).prefix_len(),
                to_workers: false,
            })
        });
        let host: Vec<_> = host.filter(inside).collect();
        let mut router = self.router.lock();
        let set = router.set_cluster(self.cluster.iter().chain(&host));
        set.map_err(DataPlaneError::new)
    }

    fn set_overlay_devices(&mut self, devices: [Option<u32>; 2]) -> Result<(), DataPlaneError> {
        if !self.settles {
            return Ok(());
        }
        let mut router = self.router.lock();
        router
            .set_overlay_devices(devices)
            .map_err(DataPlaneError::new)
    }

    fn withdraw(&mut self, changes: &[Update]) {
        if !self.settles {
            return;
        }
        let mut router = self.router.lock();
        for change in changes {
            if let Err(error) = router.withdraw_settled(change) {
                tracing::warn!(%error, "hooks may go by it until it is repaired");
            }
        }
    }

    fn settle(&mut self, changes: &[Update]) {
        if !self.settles || changes.is_empty() {
            return;
        }
        let mut router = self.router.lock();
        // What workers have of a flow goes before what hooks carry of it.
        router.quiesce();
        for change in changes {
            if let Err(error) = router.settle(change) {
                tracing::warn!(%error, "workers carry it");
            }
        }
    }

    fn maintain(&mut self) {
        let mut router = self.router.lock();
        let repaired = router.maintain();
        let problems = router.problems();
        drop(router);
        if repaired > 0 {
            tracing::warn!(
                entries = repaired,
                "somebody else had changed BPF maps of the XDP programs; they are as they were"
            );
        }
        for problem in problems.iter().filter(|it| !self.problems.contains(it)) {
            tracing::warn!("{problem}");
        }
        if problems.is_empty() && !self.problems.is_empty() {
            tracing::info!("all BPF maps are as they are wanted again");
        }
        self.problems = problems;
    }

    fn quiesce(&mut self) {
        self.router.lock().quiesce();
    }
}
