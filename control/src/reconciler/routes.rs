//! The ways to other nodes, and the tunnels that follow from them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, error, info, warn};
use viaduct_fib::{NetworkId, NextHop, NextHopState, TunnelId, Update};

use super::Reconciler;
use super::vtep::Before;
use super::ways::Plan;
use crate::data_plane::DataPlane;
use crate::difference::difference;
use crate::error::AgentError;
use crate::kernel::{PathMtuNews, UdpFlow};
use crate::next_hop::{self, FirstHop, TunnelMtu};
use crate::observe::ObservedVtep;
use crate::options::{NetworkOptions, RouteOptions};

/// A neighbour that the kernel is to be asked to resolve or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
}

impl NetworkOptions {
    /// What the table is to know of this network.
    pub(super) fn in_table(&self) -> viaduct_fib::Network {
        viaduct_fib::Network {
            vni: self.vni,
            udp_port: self.udp_port,
            vtep_macs: self.vtep_macs,
            overlay_v4: self.overlay_v4(),
            overlay_v6: self.overlay_v6(),
        }
    }
}

impl<D: DataPlane> Reconciler<D> {
    /// Puts all routes into the table, resolved or not.
    pub(super) fn add_routes(&mut self, now: Instant) -> Result<(), AgentError> {
        let routes = std::mem::take(&mut self.options.routes);
        self.want_routes(routes, now)?;
        Ok(())
    }

    /// Makes these the wanted routes and stages what that changes in the table, or changes
    /// nothing. Routes to one VTEP in one network share a tunnel. Nodes that are new have to be
    /// looked at: they are returned.
    ///
    /// # Errors
    ///
    /// If a route is unsound, or contradicts another, or the table refuses it.
    pub(super) fn want_routes(
        &mut self,
        routes: Vec<RouteOptions>,
        now: Instant,
    ) -> Result<Vec<IpAddr>, AgentError> {
        let difference = difference(&self.options.routes, &routes);
        for route in &difference.added {
            self.options.check_route(route)?;
        }
        let networks = &self.options.networks;
        let mut plan = self
            .ways
            .plan(networks, &difference.removed, &difference.added)?;
        let updates = std::mem::take(&mut plan.updates);
        self.publisher.apply_all(updates.clone())?;
        self.staged.extend(updates);
        // From here on nothing is refused.
        let (front, back) = (difference.front, difference.back);
        self.options.routes = routes;
        let new = self.commit(plan, now);
        self.list_routes(front, back);
        self.status_stale = true;
        Ok(new)
    }

    fn commit(&mut self, mut plan: Plan, now: Instant) -> Vec<IpAddr> {
        let origins = std::mem::take(&mut plan.origins);
        let tunnels = plan.new_tunnels();
        let changed = self.ways.commit(plan, now);
        for id in tunnels {
            self.refresh_tunnel(id);
        }
        for (network, prefix, vtep) in origins {
            self.set_origin(network, prefix, vtep);
        }
        self.nodes_stale |= changed.nodes;
        self.note_nodes();
        changed.new
    }

    fn set_origin(&mut self, network: NetworkId, prefix: IpNet, vtep: Option<IpAddr>) {
        let Some(options) = self.options.networks.get(usize::from(network.0)) else {
            return;
        };
        if let Err(error) = self.data_plane.set_origin(options.vni, prefix, vtep) {
            warn!(%error, "the kernel may not get what comes from there");
        }
    }

    /// Tells the data plane where tunnels end, here and elsewhere, if that has changed.
    pub(super) fn note_nodes(&mut self) {
        if !self.nodes_stale {
            return;
        }
        let mut nodes: BTreeSet<IpAddr> = self.options.underlay.addresses.iter().collect();
        nodes.extend(self.ways.nodes());
        match self.data_plane.set_nodes(&nodes) {
            Ok(()) => self.nodes_stale = false,
            Err(error) => warn!(%error, "pods may be able to send tunnel packets"),
        }
    }

    /// Follows what is seen of the way to another node.
    pub(crate) fn observe_vtep(&mut self, vtep: IpAddr, observed: &ObservedVtep, now: Instant) {
        let index = self.underlay_index;
        let Some(before) = self.ways.observe(index, vtep, observed, now) else {
            return;
        };
        if self.log_change(vtep, &before) {
            self.refresh_vtep(vtep);
            self.publish_soon(now);
        }
    }

    /// False if nothing has changed.
    fn log_change(&self, vtep: IpAddr, before: &Before) -> bool {
        let Some(state) = self.ways.vteps.get(&vtep) else {
            return false;
        };
        let limits = state.limits();
        if before.hops == state.hops && before.limits == limits {
            return false;
        }
        match &state.hops {
            Ok(hops) if before.hops != state.hops => {
                let by = |hop: &FirstHop| format!("{} ({})", hop.address, hop.mac);
                let by: Vec<String> = hops.iter().map(by).collect();
                info!(%vtep, next_hop = by.join(", "), "node resolved");
            }
            Ok(_) => {}
            Err(reason) if before.hops.is_ok() => warn!(%vtep, %reason, "node unresolved"),
            Err(reason) => debug!(%vtep, %reason, "node still unresolved"),
        }
        if let Ok(underlay) = &self.underlay {
            let mtu = |limits| next_hop::tunnel_mtu(underlay.mtu, limits);
            let (mtu, before) = (mtu(limits), mtu(before.limits));
            if mtu != before {
                info!(%vtep, mtu = mtu.bytes, before = before.bytes, by = ?mtu.by, "the way to the node takes other lengths");
            }
        }
        true
    }

    /// The packets that the kernel is asked about for a node: what its tunnels send.
    pub(crate) fn flow_to(&self, vtep: IpAddr) -> Option<UdpFlow> {
        let state = self.ways.vteps.get(&vtep)?;
        let tunnel = self.ways.tunnel(*state.tunnels.first()?)?;
        let own = match &self.underlay {
            Ok(underlay) => underlay.addresses,
            Err(_) => self.options.underlay.addresses,
        };
        Some(UdpFlow {
            source: own.like(vtep),
            destination: vtep,
            port: tunnel.ends.udp_port,
        })
    }

    /// All other nodes.
    pub(crate) fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        self.ways.vteps.keys().copied()
    }

    /// The nodes that may get another way when a route to this prefix changes.
    pub(crate) fn vteps_in(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
        self.ways.inside(prefix)
    }

    /// The nodes that may get another way when this interface changes, which is not the underlay.
    pub(crate) fn vteps_by(&self, interface: u32) -> impl Iterator<Item = IpAddr> {
        self.ways.may_leave_by(interface)
    }

    /// The nodes whose first hop is, on some way, this neighbour on the underlay.
    pub(crate) fn vteps_behind(&self, neighbour: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.ways.behind(neighbour)
    }

    /// The nodes to look at again because something that the kernel has learned expires.
    pub(crate) fn due_vteps(&mut self, now: Instant) -> Vec<IpAddr> {
        let vteps = self.ways.vteps.iter_mut();
        let due = vteps.filter(|(_, state)| state.ask_at.is_some_and(|at| at <= now));
        due.map(|(&vtep, state)| {
            state.ask_at = None;
            vtep
        })
        .collect()
    }

    /// Takes note of what a router says of a tunnel's packet. True if the node has to be looked
    /// at: then the kernel's own knowledge comes first, and where it has none, this counts for
    /// `lifetime`.
    pub(crate) fn note_path_mtu(
        &mut self,
        news: &PathMtuNews,
        lifetime: Duration,
        now: Instant,
    ) -> bool {
        let vtep = news.destination;
        let ours = self.ways.sends(vtep, news.port, news.vni);
        let (Ok(underlay), Some(state)) = (&self.underlay, self.ways.vteps.get_mut(&vtep)) else {
            return false;
        };
        let ours = ours && underlay.addresses.like(vtep) == Some(news.source);
        let bytes = news.mtu.max(next_hop::least_mtu(vtep));
        let known = next_hop::tunnel_mtu(underlay.mtu, state.limits());
        if !ours || bytes >= u32::from(known.bytes) {
            return false;
        }
        state.tell(bytes, now + lifetime);
        true
    }

    /// The neighbours that the kernel is to be asked for now, each once. They are not due again
    /// for a while.
    pub(crate) fn due_probes(&mut self, now: Instant) -> Vec<Probe> {
        let interface = self.underlay_index;
        let mut probes = Vec::new();
        let states = self.ways.vteps.values_mut();
        for state in states.filter(|state| state.probe_at <= now) {
            state.probe_at = now + state.probe_interval();
            let neighbours = state.neighbours.iter();
            probes.extend(neighbours.map(|&address| Probe { interface, address }));
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    /// Brings a node's tunnels and status up to date.
    fn refresh_vtep(&mut self, vtep: IpAddr) {
        let Some(state) = self.ways.vteps.get(&vtep) else {
            return;
        };
        for id in state.tunnels.clone() {
            self.refresh_tunnel(id);
        }
        self.list_state(vtep);
    }

    /// Brings all nodes' tunnels and status up to date, as the underlay has changed.
    pub(super) fn refresh_vteps(&mut self) {
        for vtep in self.vteps().collect::<Vec<_>>() {
            self.refresh_vtep(vtep);
        }
    }

    /// Stages a tunnel's next hop, if it has changed.
    fn refresh_tunnel(&mut self, tunnel: TunnelId) {
        let Some(next_hop) = self.next_hop(tunnel) else {
            return;
        };
        if self.publisher.fib().next_hop(tunnel) != Some(&next_hop) {
            self.apply(Update::PutNextHop { tunnel, next_hop });
        }
    }

    fn next_hop(&self, id: TunnelId) -> Option<NextHop> {
        let tunnel = self.ways.tunnel(id)?;
        let state = self.ways.vteps.get(&tunnel.vtep)?;
        let state = match (&self.underlay, &state.hops) {
            (Ok(underlay), Ok(hops)) => {
                let TunnelMtu { bytes, .. } = next_hop::tunnel_mtu(underlay.mtu, state.limits());
                next_hop::next_hop_state(underlay, tunnel.vtep, hops, &tunnel.ends, bytes)
            }
            _ => NextHopState::Unresolved,
        };
        Some(NextHop {
            vtep: tunnel.vtep,
            state,
        })
    }

    pub(super) fn apply(&mut self, update: Update) {
        if let Err(error) = self.stage(update) {
            error!(%error, "the table refuses a change");
        }
    }
}
