//! Turns what is wanted and what is seen into forwarding table and data plane.
//!
//! It asks nobody and waits for nothing: observations and the time are arguments, so that all it
//! decides can be tested without a kernel. Every step is idempotent: the same observation again
//! changes nothing.

mod backoff;
mod port;
mod ports;
mod report;
mod routes;
#[cfg(test)]
mod tests;
mod underlay;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::warn;
use viaduct_fib::{NetworkId, PortId, Publisher, ReaderStuck, TunnelId, Update};

use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::next_hop::{Underlay, Unresolved};
use crate::observe::{ObservedPort, ObservedUnderlay, ObservedVtep};
use crate::options::{AgentOptions, PortOptions, RouteOptions};
use crate::status::{AgentStatus, SlowPathStatus, StatusHandle};
use backoff::Backoff;
use port::Port;
use routes::{Tunnel, Vtep};

/// How long after a publication that a stuck worker prevented it is tried again.
const PUBLISH_RETRY: Duration = Duration::from_secs(1);

/// All that is seen at the start.
pub(crate) struct Observed {
    pub(crate) underlay: ObservedUnderlay,
    /// In the order of the options.
    pub(crate) ports: Vec<ObservedPort>,
    pub(crate) vteps: BTreeMap<IpAddr, ObservedVtep>,
    /// This host's own addresses.
    pub(crate) host: Vec<IpAddr>,
}

/// Holds the desired state, what has been done for it, and the means to do it.
pub(crate) struct Reconciler<D> {
    options: AgentOptions,
    publisher: Publisher,
    data_plane: D,
    /// The number of the underlay interface that the data plane has; 0: none.
    underlay_index: u32,
    /// The underlay's MTU as it was seen last, in bytes.
    underlay_mtu: u32,
    underlay: Result<Underlay, Unresolved>,
    /// When to try again to have the data plane take the underlay.
    underlay_backoff: Backoff,
    ports: BTreeMap<PortId, Port>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// The prefixes of other nodes that the table has.
    remotes: BTreeMap<(NetworkId, IpNet), TunnelId>,
    vteps: BTreeMap<IpAddr, Vtep>,
    /// When to publish what is staged; none if nothing is.
    publish_at: Option<Instant>,
    /// The epoch that was published last.
    epoch: u64,
    /// What the status says of the kernel's path.
    slow_path: Option<SlowPathStatus>,
    status: watch::Sender<Arc<AgentStatus>>,
    /// Whether something has changed since the status was written.
    status_stale: bool,
}

impl<D: DataPlane> Reconciler<D> {
    /// Brings about all of the desired state that is possible without a working underlay: a route
    /// may be unresolved, but every pod must be there.
    ///
    /// # Errors
    ///
    /// If something is missing or refused. What was done at the data plane has been undone. The
    /// options have been checked.
    pub(crate) fn start(
        options: AgentOptions,
        publisher: Publisher,
        data_plane: D,
        observed: &Observed,
        now: Instant,
    ) -> Result<Self, AgentError> {
        let mut reconciler = Self {
            ports: ports::plan(&options),
            options,
            publisher,
            data_plane,
            underlay_index: 0,
            underlay_mtu: 0,
            underlay: Err(Unresolved::UnderlayGone),
            underlay_backoff: Backoff::default(),
            tunnels: BTreeMap::new(),
            remotes: BTreeMap::new(),
            vteps: BTreeMap::new(),
            publish_at: None,
            epoch: 0,
            slow_path: None,
            status: watch::Sender::default(),
            status_stale: true,
        };
        // Nothing reaches a worker yet: no pod has a pinhole.
        reconciler.start_underlay(&observed.underlay, now)?;
        reconciler.add_networks()?;
        reconciler.add_routes(&observed.vteps, now)?;
        reconciler.publish()?;
        reconciler.observe_host(&observed.host);
        if let Err(error) = reconciler.add_ports(&observed.ports, now) {
            reconciler.let_underlay_go();
            return Err(error);
        }
        reconciler.report();
        Ok(reconciler)
    }

    /// Takes everything away from the workers, so that the kernel has it, and gives the data
    /// plane back. The forwarding table stays as it is: nothing asks it any more.
    pub(crate) fn shut_down(mut self) -> D {
        if !self.options.keep_ports {
            self.release_ports();
        }
        self.report();
        self.data_plane
    }

    /// Has the status say this of the kernel's path.
    pub(crate) fn note_slow_path(&mut self, status: &SlowPathStatus) {
        if self.slow_path.as_ref() != Some(status) {
            self.slow_path = Some(status.clone());
            self.status_stale = true;
        }
    }

    /// Tells the data plane which addresses are this host's own.
    pub(crate) fn observe_host(&mut self, addresses: &[IpAddr]) {
        if let Err(error) = self.data_plane.set_host_addresses(addresses) {
            warn!(%error, "packets to some of this host's addresses may go astray");
        }
    }

    /// Makes these the pods and routes that are wanted, or, if they contradict themselves, changes
    /// nothing. What is new has to be looked at: ports and nodes are returned.
    ///
    /// # Errors
    ///
    /// Why they cannot be had.
    pub(crate) fn reconfigure(
        &mut self,
        ports: Vec<PortOptions>,
        routes: Vec<RouteOptions>,
        now: Instant,
    ) -> Result<(Vec<PortId>, Vec<IpAddr>), AgentError> {
        let wanted = AgentOptions {
            ports,
            routes,
            ..self.options.clone()
        };
        wanted.check()?;
        self.options = wanted;
        let (ports, routes) = (self.options.ports.clone(), self.options.routes.clone());
        let vteps = self.want_routes(&routes, now)?;
        let ids = self.want_ports(&ports, now);
        self.publish_soon(now);
        self.status_stale = true;
        Ok((ids, vteps))
    }

    /// Where to read what this does.
    pub(crate) fn status(&self) -> StatusHandle {
        StatusHandle::new(self.status.subscribe())
    }

    /// What is wanted.
    pub(crate) fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// When there is something to do next even if nothing is seen; none: never.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let retries = self.ports.values().filter_map(Port::retry_at);
        let probes = self.vteps.values().map(|vtep| vtep.probe_at);
        let underlay = self.underlay_backoff.retry_at();
        let rest = self.publish_at.into_iter().chain(underlay);
        retries.chain(probes).chain(rest).min()
    }

    /// Publishes what is staged, if it is time. So all changes of a round are published together.
    pub(crate) fn publish_due(&mut self, now: Instant) {
        if self.publish_at.is_some_and(|at| at <= now) {
            self.publish_or_retry(now);
        }
    }

    fn add_networks(&mut self) -> Result<(), AgentError> {
        for network in 0..self.options.networks.len() {
            if let Some(update) = self.network_update(network) {
                self.publisher.apply(update)?;
            }
        }
        Ok(())
    }

    /// What the table is to know of a network.
    fn network_update(&self, network: usize) -> Option<Update> {
        let options = self.options.networks.get(network)?;
        Some(Update::PutNetwork {
            id: network_id(network)?,
            network: options.in_table(self.underlay_mtu),
        })
    }

    fn publish(&mut self) -> Result<(), ReaderStuck> {
        self.status_stale = true;
        self.epoch = self.publisher.publish()?;
        self.publish_at = None;
        Ok(())
    }

    /// Has what is staged published at the end of the round, or later if that is put off already.
    fn publish_soon(&mut self, now: Instant) {
        self.publish_at.get_or_insert(now);
    }

    /// Publishes now, or later if a worker is stuck: the table keeps what is to be published.
    fn publish_or_retry(&mut self, now: Instant) {
        if let Err(error) = self.publish() {
            warn!(%error, "will try again");
            self.publish_at = Some(now + PUBLISH_RETRY);
        }
    }
}

fn network_id(network: usize) -> Option<NetworkId> {
    u16::try_from(network).ok().map(NetworkId)
}
