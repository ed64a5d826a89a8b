//! Turns what is wanted and what is seen into forwarding table and data plane.
//!
//! It asks nobody and waits for nothing: observations and the time are arguments, so that all it
//! decides can be tested without a kernel. Every step is idempotent: the same observation again
//! changes nothing.

mod backoff;
mod followed;
mod listing;
mod port;
mod ports;
mod report;
mod routes;
#[cfg(test)]
mod tests;
mod underlay;
mod vtep;
mod ways;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;
use viaduct_encap::MacAddr;
use viaduct_fib::{NetworkId, PortId, Publisher, ReaderStuck, Update, UpdateError};

use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::next_hop::{Underlay, Unresolved};
use crate::observe::{ObservedUnderlay, ObservedVtep};
use crate::options::{AgentOptions, OptionsError, PortOptions, RouteOptions};
use crate::status::{AgentStatus, SlowPathStatus, StatusHandle};
use backoff::Backoff;
use followed::Followed;
use listing::Listing;
use port::Port;
use ways::Ways;

pub(crate) use port::can_come_up;
pub(crate) use underlay::{can_send, is_fit, no_address};

/// How long after a publication that a stuck worker prevented it is tried again.
const PUBLISH_RETRY: Duration = Duration::from_secs(1);

/// What is seen before the pods, at the start.
pub(crate) struct Observed {
    pub(crate) underlay: ObservedUnderlay,
    pub(crate) vteps: BTreeMap<IpAddr, ObservedVtep>,
    /// This host's own addresses.
    pub(crate) host: Vec<IpAddr>,
}

/// Holds the desired state, what has been done for it, and the means to do it.
pub(crate) struct Reconciler<D> {
    options: AgentOptions,
    publisher: Publisher,
    /// Changes of the table that are not published yet.
    staged: Vec<Update>,
    data_plane: D,
    /// The number of the underlay interface that the data plane has; 0: none.
    underlay_index: u32,
    /// The MAC that the data plane has for it.
    underlay_mac: Option<MacAddr>,
    /// The underlay interface as it was seen last, whether the data plane has it or not.
    underlay_link: Followed,
    underlay: Result<Underlay, Unresolved>,
    /// When to try again to have the data plane take the underlay.
    underlay_backoff: Backoff,
    ports: BTreeMap<PortId, Port>,
    ways: Ways,
    /// The routes as the status shows them.
    listing: Listing,
    /// Whether the data plane has yet to be told where tunnels end.
    nodes_stale: bool,
    /// When to publish what is staged; none if nothing is.
    publish_at: Option<Instant>,
    /// The epoch that was published last.
    epoch: u64,
    /// What the status says of the kernel's path.
    slow_path: Option<SlowPathStatus>,
    /// The kernel's VXLAN devices, as the data plane knows them.
    overlay: Option<[Option<u32>; 2]>,
    status: watch::Sender<Arc<AgentStatus>>,
    /// Whether something has changed since the status was written.
    status_stale: bool,
}

impl<D: DataPlane> Reconciler<D> {
    /// Brings about the desired state as far as that is possible now, all but the pods: these come
    /// as they are looked at. What is not possible is in the status, and followed.
    ///
    /// # Errors
    ///
    /// If the forwarding table refuses the options, which have been checked. What was done at the
    /// data plane has been undone.
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
            staged: Vec::new(),
            data_plane,
            underlay_index: 0,
            underlay_mac: None,
            underlay_link: Followed::default(),
            underlay: Err(Unresolved::UnderlayRefused(
                "it has not been looked at yet".into(),
            )),
            underlay_backoff: Backoff::default(),
            ways: Ways::default(),
            listing: Listing::default(),
            nodes_stale: true,
            publish_at: None,
            epoch: 0,
            slow_path: None,
            overlay: None,
            status: watch::Sender::default(),
            status_stale: true,
        };
        // The XDP program on the underlay drops packets of nodes that it does not know, so it has to know them before it
        // is attached. Without an underlay the routes are not resolved yet.
        reconciler.add_networks()?;
        reconciler.add_routes(now)?;
        // Nothing reaches a worker yet: no pod has a pinhole.
        reconciler.observe_underlay(&observed.underlay, now);
        if let Err(error) = reconciler.fill_table(observed, now) {
            reconciler.let_underlay_go();
            return Err(error);
        }
        reconciler.observe_host(&observed.host);
        reconciler.report();
        Ok(reconciler)
    }

    fn fill_table(&mut self, observed: &Observed, now: Instant) -> Result<(), AgentError> {
        // Now with the underlay's MTU.
        self.add_networks()?;
        for (&vtep, observed) in &observed.vteps {
            self.observe_vtep(vtep, observed, now);
        }
        self.publish()?;
        Ok(())
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

    /// Has the data plane do what is to be done now and then.
    pub(crate) fn maintain(&mut self) {
        self.data_plane.maintain();
    }

    /// Has the status say this of the kernel's path.
    pub(crate) fn note_slow_path(&mut self, status: &SlowPathStatus) {
        if self.slow_path.as_ref() != Some(status) {
            self.slow_path = Some(status.clone());
            self.status_stale = true;
        }
    }

    /// Tells the data plane which the kernel's VXLAN devices are, over IPv4 and IPv6.
    pub(crate) fn note_overlay(&mut self, devices: [Option<u32>; 2]) {
        if self.overlay != Some(devices) {
            let set = self.data_plane.set_overlay_devices(devices);
            if let Err(error) = &set {
                warn!(%error, "what comes through the kernel's VXLAN device is forwarded by the kernel");
            }
            self.overlay = set.is_ok().then_some(devices);
        }
    }

    /// Tells the data plane which addresses are this host's own.
    pub(crate) fn observe_host(&mut self, addresses: &[IpAddr]) {
        if let Err(error) = self.data_plane.set_host_addresses(addresses) {
            warn!(%error, "packets to some of this host's addresses may go astray");
        }
    }

    /// Makes these the pods and routes that are wanted, or changes nothing. What is new has to be
    /// looked at: ports and nodes are returned.
    ///
    /// # Errors
    ///
    /// Why they cannot be had: they contradict themselves, or the table does not take them.
    pub(crate) fn reconfigure(
        &mut self,
        ports: Vec<PortOptions>,
        routes: Vec<RouteOptions>,
        now: Instant,
    ) -> Result<(Vec<PortId>, Vec<IpAddr>), AgentError> {
        let (ports, routes) = self.checked(ports, routes)?;
        // The last that may fail; it is taken whole or not at all.
        let vteps = self.want_routes(routes, now)?;
        let ids = self.want_ports(&ports, now);
        self.options.ports = ports;
        self.publish_soon(now);
        self.status_stale = true;
        Ok((ids, vteps))
    }

    /// Whether these pods and routes could be had beside all else; they are given back.
    fn checked(
        &mut self,
        mut ports: Vec<PortOptions>,
        mut routes: Vec<RouteOptions>,
    ) -> Result<(Vec<PortOptions>, Vec<RouteOptions>), OptionsError> {
        let mut swap = |options: &mut AgentOptions| {
            std::mem::swap(&mut options.ports, &mut ports);
            std::mem::swap(&mut options.routes, &mut routes);
        };
        swap(&mut self.options);
        let result = self.options.check();
        swap(&mut self.options);
        result.map(|()| (ports, routes))
    }

    /// Where to read what this does.
    pub(crate) fn status(&self) -> StatusHandle {
        StatusHandle::new(self.status.subscribe())
    }

    /// What is wanted.
    pub(crate) fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// What is wanted, with the names that interfaces have now, and with what is known of them now:
    /// those that were renamed have other names than the options say.
    pub(crate) fn current_options(&self) -> Cow<'_, AgentOptions> {
        let mut options = Cow::Borrowed(&self.options);
        let underlay = self.underlay_link.name(&self.options.underlay.name);
        if underlay != self.options.underlay.name {
            underlay.clone_into(&mut options.to_mut().underlay.name);
        }
        for port in self.ports.values().filter(|port| port.has_changed()) {
            let mut ports = options.to_mut().ports.iter_mut();
            if let Some(wanted) = ports.find(|wanted| wanted.is_same_pod(&port.options)) {
                wanted.binding.clone_from(&port.options.binding);
                port.interface().clone_into(&mut wanted.interface);
            }
        }
        options
    }

    /// When there is something to do next even if nothing is seen; none: never.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let retries = self.ports.values().filter_map(Port::retry_at);
        let vteps = self.ways.vteps.values();
        let probes = vteps.flat_map(|vtep| vtep.ask_at.into_iter().chain([vtep.probe_at]));
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
                self.stage(update)?;
            }
        }
        Ok(())
    }

    /// What the table is to know of a network.
    fn network_update(&self, network: usize) -> Option<Update> {
        let options = self.options.networks.get(network)?;
        Some(Update::PutNetwork {
            id: network_id(network)?,
            network: options.in_table(),
        })
    }

    fn publish(&mut self) -> Result<(), ReaderStuck> {
        self.status_stale = true;
        self.data_plane.withdraw(&self.staged);
        self.epoch = self.publisher.publish()?;
        self.publish_at = None;
        self.data_plane.settle(&self.staged);
        self.staged.clear();
        Ok(())
    }

    /// Stages a change of the table.
    fn stage(&mut self, update: Update) -> Result<(), UpdateError> {
        self.publisher.apply(update.clone())?;
        self.staged.push(update);
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
