//! Looks at the kernel: at everything at the start, later at what may have changed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tracing::warn;
use viaduct_fib::PortId;

use super::{ASK_AGAIN, Agent};
use crate::data_plane::DataPlane;
use crate::kernel::{Kernel, KernelError, UdpFlow};
use crate::observe::{self, ObservedUnderlay};
use crate::options::AgentOptions;
use crate::reconciler::Observed;

/// What is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) underlay: bool,
    pub(super) ports: BTreeSet<PortId>,
    pub(super) vteps: BTreeSet<IpAddr>,
    pub(super) all_vteps: bool,
    /// Where routes have changed that lead to these.
    pub(super) routes: BTreeSet<IpNet>,
    pub(super) host: bool,
}

impl<D: DataPlane> Agent<D> {
    /// Looks at what may have changed; soon again where the kernel could not be asked.
    pub(super) async fn look_or_again(&mut self, dirty: Dirty) {
        if let Err(error) = self.look(dirty).await {
            warn!(%error, "will look again");
            self.resync_at = self.resync_at.min(Instant::now() + ASK_AGAIN);
        }
    }

    /// Looks at what may have changed, the underlay first: routes are judged by it. A pod that
    /// cannot be looked at does not keep the others from it.
    async fn look(&mut self, mut dirty: Dirty) -> Result<(), KernelError> {
        let kernel = &self.kernel;
        let reconciler = &mut self.reconciler;
        if dirty.host {
            let seen = observe::host(kernel).await?;
            reconciler.observe_host(&seen);
        }
        if dirty.underlay {
            let wanted = &reconciler.options().underlay;
            let followed = reconciler.underlay_link().index();
            let seen = observe::underlay(kernel, wanted, followed).await?;
            reconciler.observe_underlay(&seen, Instant::now());
        }
        let mut result = Ok(());
        for id in dirty.ports {
            let followed = reconciler.port_followed(id);
            let Some(options) = reconciler.port_options(id) else {
                continue;
            };
            match observe::port(kernel, options, followed).await {
                Ok(seen) => reconciler.observe_port(id, &seen, Instant::now()),
                Err(error) => result = Err(error),
            }
        }
        if dirty.all_vteps {
            dirty.vteps.extend(reconciler.vteps());
        } else {
            for &prefix in &dirty.routes {
                dirty.vteps.extend(reconciler.vteps_in(prefix));
            }
        }
        for vtep in dirty.vteps {
            let Some(flow) = reconciler.flow_to(vtep) else {
                continue;
            };
            let seen = observe::vtep(kernel, reconciler.underlay_index(), &flow).await?;
            reconciler.observe_vtep(vtep, &seen, Instant::now());
        }
        result
    }
}

/// Looks at the host's addresses and the ways to other nodes.
pub(super) async fn look_at_ways(
    kernel: &Kernel,
    options: &AgentOptions,
    underlay: ObservedUnderlay,
) -> Result<Observed, KernelError> {
    let index = underlay.link.as_ref().map_or(0, |link| link.index);
    let mut observed = Observed {
        underlay,
        vteps: BTreeMap::new(),
        host: observe::host(kernel).await?,
    };
    for route in &options.routes {
        if let Entry::Vacant(entry) = observed.vteps.entry(route.vtep) {
            let network = options.networks.get(route.network);
            let flow = UdpFlow {
                source: options.underlay.addresses.like(route.vtep),
                destination: route.vtep,
                port: network.map_or(0, |network| network.udp_port),
            };
            entry.insert(observe::vtep(kernel, index, &flow).await?);
        }
    }
    Ok(observed)
}
