//! What is news to the agent, from the kernel, the firewall and routers, and what has to be looked at
//! because of it.

use std::time::Instant;

use ipnet::IpNet;
use tracing::{debug, warn};

use super::Agent;
use crate::data_plane::DataPlane;
use crate::kernel::{Change, Events, KernelEvent, PathMtuNews, PathMtus, path_mtu_lifetime};
use crate::slow_path::{FirewallEvent, SlowPath, Soon};

impl<D: DataPlane> Agent<D> {
    /// Notes an event and all others that are there already, so that what a burst of them is
    /// about is looked at once.
    pub(super) fn note_all(&mut self, first: Option<Change>) {
        let mut event = first;
        if event.is_none() {
            warn!("the kernel's event socket has failed; opening another");
            self.events = None;
            self.note(KernelEvent::Resync.into());
        }
        while let Some(this) = event {
            self.note(this);
            event = self.events.as_mut().and_then(Events::try_next);
        }
    }

    fn note(&mut self, change: Change) {
        debug!(?change, "the kernel says");
        if self.concerns_slow_path(&change) {
            self.look_at_slow_path();
        }
        let event = change.event;
        match event {
            KernelEvent::LinkChanged(link) => self.note_link(&link.name, link.index),
            KernelEvent::LinkRemoved { index, name } => {
                self.note_link(&name, index);
                self.reconciler.link_removed(index, Instant::now());
            }
            KernelEvent::ForwardingChanged { .. } => {}
            KernelEvent::AddressChanged { interface } => {
                self.dirty.host = true;
                if interface == self.reconciler.underlay_link().index() {
                    self.dirty.underlay = true;
                    // The kernel removes routes with an address without a word for each.
                    self.dirty.all_vteps = true;
                }
                self.dirty.vteps.extend(self.reconciler.vteps_by(interface));
            }
            KernelEvent::RouteChanged { destination, .. } => {
                self.dirty.routes.insert(destination);
            }
            KernelEvent::RuleChanged => self.dirty.all_vteps = true,
            KernelEvent::NeighbourChanged { interface, address } => {
                if interface == self.reconciler.underlay_index() {
                    let behind = self.reconciler.vteps_behind(address);
                    self.dirty.vteps.extend(behind);
                }
                self.dirty.ports.extend(self.reconciler.port_on(interface));
            }
            KernelEvent::Resync => self.mark_all(),
        }
    }

    /// Has the kernel's path take a change over, and says whether it is to be looked at.
    fn concerns_slow_path(&mut self, change: &Change) -> bool {
        let others_route = match change.event {
            KernelEvent::RouteChanged {
                destination,
                ours: false,
            } => Some((destination, self.concerns_pods(destination))),
            _ => None,
        };
        let Some(slow_path) = &mut self.slow_path else {
            return false;
        };
        let entry = change.entry.as_ref();
        let news = entry.is_some_and(|entry| slow_path.note_entry(entry));
        match &change.event {
            KernelEvent::LinkChanged(link) => slow_path.note_link(link),
            KernelEvent::LinkRemoved { index, .. } => slow_path.note_removed_link(*index),
            KernelEvent::AddressChanged { .. } => slow_path.host_changed(),
            _ => {}
        }
        if let Some((destination, _)) = others_route {
            slow_path.note_others_route(destination);
            slow_path.host_changed();
        }
        let host = matches!(
            change.event,
            KernelEvent::LinkChanged(_)
                | KernelEvent::LinkRemoved { .. }
                | KernelEvent::AddressChanged { .. }
        );
        // Others' routes are of interest where ours are.
        news || host || others_route.is_some_and(|(_, concerns)| concerns)
    }

    /// Notes that an interface changed. A name may be new to a number, and a number to a name.
    fn note_link(&mut self, name: &str, index: u32) {
        let options = self.reconciler.options();
        if name == options.underlay.name || index == self.reconciler.underlay_link().index() {
            self.dirty.underlay = true;
            self.dirty.all_vteps = true;
        }
        // The kernel takes routes out of use, and back, with their interface, without a word.
        self.dirty.vteps.extend(self.reconciler.vteps_by(index));
        self.dirty.ports.extend(self.reconciler.port_named(name));
        self.dirty.ports.extend(self.reconciler.port_on(index));
    }

    pub(super) fn note_firewall(&mut self, event: Option<FirewallEvent>) {
        match self.slow_path.as_mut().and_then(|path| path.note(event)) {
            Some(Soon::Now) => self.slow_path_at = Some(Instant::now()),
            Some(Soon::Later) => self.look_at_slow_path(),
            None => {}
        }
    }

    pub(super) fn mark_all(&mut self) {
        self.dirty.underlay = true;
        self.dirty.host = true;
        if let Some(slow_path) = &mut self.slow_path {
            slow_path.check_again();
        }
        self.look_at_slow_path();
        self.dirty.ports.extend(self.reconciler.port_ids());
        self.dirty.all_vteps = true;
        if self.path_mtus.is_none() {
            self.listening_on = 0;
        }
    }

    /// Whether a route to this prefix may lead to pods of the network that the kernel carries too,
    /// or stand in the way of ours.
    fn concerns_pods(&self, destination: IpNet) -> bool {
        let networks = &self.reconciler.options().networks;
        let clusters = networks.first().map(|network| &network.cluster_prefixes);
        let mut clusters = clusters.into_iter().flatten();
        // A default route is no news of theirs.
        destination.prefix_len() > 0
            && clusters
                .any(|cluster| cluster.contains(&destination) || destination.contains(cluster))
    }

    pub(super) fn note_path_mtu(&mut self, news: &PathMtuNews) {
        debug!(?news, "a router says");
        let (lifetime, now) = (path_mtu_lifetime(), Instant::now());
        if self.reconciler.note_path_mtu(news, lifetime, now) {
            self.dirty.vteps.insert(news.destination);
        }
    }
}

/// The next event; for ever pending without a socket, as then the clock drives the agent.
pub(super) async fn next(events: &mut Option<Events>) -> Option<Change> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// The next that happened at the firewall; for ever pending without a slow path.
pub(super) async fn next_of_firewall(slow_path: &mut Option<SlowPath>) -> Option<FirewallEvent> {
    match slow_path {
        Some(slow_path) => slow_path.next().await,
        None => std::future::pending().await,
    }
}

/// What a router says next; for ever pending without a socket.
pub(super) async fn next_path_mtu(path_mtus: &mut Option<PathMtus>) -> PathMtuNews {
    match path_mtus {
        Some(path_mtus) => path_mtus.next().await,
        None => std::future::pending().await,
    }
}
