//! The ways to other nodes, and the tunnels that follow from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, error, info, warn};
use viaduct_fib::{MAX_TUNNELS, NetworkId, NextHop, NextHopState, TunnelId, Update, UpdateError};

use super::{Reconciler, network_id};
use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::next_hop::{self, FirstHop, TunnelEnds, Unresolved};
use crate::observe::ObservedVtep;
use crate::options::{NetworkOptions, RouteOptions};

/// How often the kernel is asked to resolve a neighbour that it has not resolved.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the kernel is asked to check a neighbour that it has resolved. The kernel does not
/// see the workers' packets, so without this it would forget the neighbour.
const REVALIDATE_INTERVAL: Duration = Duration::from_secs(15);

/// A way to one other node within one network.
pub(super) struct Tunnel {
    /// The network's place in the options.
    network: usize,
    vtep: IpAddr,
    ends: TunnelEnds,
}

/// Another node, as the underlay leads to it.
pub(super) struct Vtep {
    observed: ObservedVtep,
    pub(super) hops: Result<Vec<FirstHop>, Unresolved>,
    pub(super) probe_at: Instant,
}

/// A neighbour that the kernel is to be asked to resolve or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
}

impl Vtep {
    /// How soon to ask for its neighbours again: often while one is missing.
    fn probe_interval(&self, underlay: u32, vtep: IpAddr) -> Duration {
        let all = next_hop::neighbours_towards(underlay, vtep, &self.observed).count();
        match &self.hops {
            Ok(hops) if hops.len() == all => REVALIDATE_INTERVAL,
            _ => RESOLVE_INTERVAL,
        }
    }
}

impl NetworkOptions {
    /// What the table is to know of this network on an underlay of this MTU, in bytes.
    pub(super) fn in_table(&self, underlay_mtu: u32) -> viaduct_fib::Network {
        viaduct_fib::Network {
            vni: self.vni,
            udp_port: self.udp_port,
            vtep_mac: self.vtep_mac,
            overlay_v4: self.overlay_v4(),
            overlay_v6: self.overlay_v6(),
            underlay_mtu: u16::try_from(underlay_mtu).unwrap_or(u16::MAX),
        }
    }
}

impl<D: DataPlane> Reconciler<D> {
    /// Puts all routes into the table, resolved or not.
    pub(super) fn add_routes(
        &mut self,
        observed: &BTreeMap<IpAddr, ObservedVtep>,
        now: Instant,
    ) -> Result<(), AgentError> {
        let routes = self.options.routes.clone();
        self.want_routes(&routes, now)?;
        for (&vtep, observed) in observed {
            self.set_vtep(vtep, observed, now);
        }
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.refresh_tunnel(id);
        }
        Ok(())
    }

    /// Makes these the routes that the table has; routes to one VTEP in one network share a tunnel.
    /// The options have been checked. Nodes that are new have to be looked at: they are returned.
    pub(super) fn want_routes(
        &mut self,
        routes: &[RouteOptions],
        now: Instant,
    ) -> Result<Vec<IpAddr>, UpdateError> {
        let mut new = Vec::new();
        let mut wanted = BTreeMap::new();
        for route in routes {
            let Some(network) = network_id(route.network) else {
                continue;
            };
            let tunnel = match self.tunnel_of(route) {
                Some(tunnel) => tunnel,
                None => self.add_tunnel(route)?,
            };
            self.vteps.entry(route.vtep).or_insert_with(|| {
                new.push(route.vtep);
                Vtep {
                    observed: ObservedVtep::default(),
                    hops: Err(Unresolved::NoRoute),
                    probe_at: now,
                }
            });
            wanted.extend(
                route
                    .prefixes
                    .iter()
                    .map(|&prefix| ((network, prefix), tunnel)),
            );
            if network == NetworkId(0) {
                let own = node_addresses(route).map(|prefix| ((network, prefix), tunnel));
                wanted.extend(own);
            }
        }
        self.change_remotes(wanted)?;
        self.drop_unused_tunnels()?;
        let vteps: BTreeSet<IpAddr> = self.tunnels.values().map(|tunnel| tunnel.vtep).collect();
        self.vteps.retain(|vtep, _| vteps.contains(vtep));
        self.note_nodes();
        Ok(new)
    }

    /// The tunnel that a route's packets take.
    pub(super) fn tunnel_of(&self, route: &RouteOptions) -> Option<TunnelId> {
        let same = |tunnel: &Tunnel| {
            (
                tunnel.network,
                tunnel.vtep,
                tunnel.ends.remote_mac,
                tunnel.ends.udp_checksum6,
            ) == (
                route.network,
                route.vtep,
                route.vtep_mac,
                route.udp_checksum6,
            )
        };
        let mut tunnels = self.tunnels.iter();
        tunnels.find_map(|(&id, tunnel)| same(tunnel).then_some(id))
    }

    fn add_tunnel(&mut self, route: &RouteOptions) -> Result<TunnelId, UpdateError> {
        // Beyond the table's limit any number does: the table refuses it.
        let id = (0..MAX_TUNNELS)
            .map(TunnelId)
            .find(|id| !self.tunnels.contains_key(id))
            .unwrap_or(TunnelId(MAX_TUNNELS));
        let Some(network) = self.options.networks.get(route.network) else {
            return Ok(id);
        };
        let ends = TunnelEnds {
            vni: network.vni,
            udp_port: network.udp_port,
            udp_checksum6: route.udp_checksum6,
            dscp: network.dscp,
            local_mac: network.vtep_mac,
            remote_mac: route.vtep_mac,
        };
        let unresolved = NextHop {
            vtep: route.vtep,
            state: NextHopState::Unresolved,
        };
        self.publisher.apply(Update::PutNextHop {
            tunnel: id,
            next_hop: unresolved,
        })?;
        let tunnel = Tunnel {
            network: route.network,
            vtep: route.vtep,
            ends,
        };
        self.tunnels.insert(id, tunnel);
        self.refresh_tunnel(id);
        Ok(id)
    }

    fn change_remotes(
        &mut self,
        wanted: BTreeMap<(NetworkId, IpNet), TunnelId>,
    ) -> Result<(), UpdateError> {
        let mut origins = Vec::new();
        for (&(network, prefix), &tunnel) in &wanted {
            if self.remotes.get(&(network, prefix)) != Some(&tunnel) {
                self.publisher.apply(Update::PutRemote {
                    network,
                    prefix,
                    tunnel,
                })?;
                let vtep = self.tunnels.get(&tunnel).map(|tunnel| tunnel.vtep);
                origins.push((network, prefix, vtep));
            }
        }
        for &(network, prefix) in self.remotes.keys().filter(|key| !wanted.contains_key(key)) {
            self.publisher
                .apply(Update::RemoveRemote { network, prefix })?;
            origins.push((network, prefix, None));
        }
        self.remotes = wanted;
        for (network, prefix, vtep) in origins {
            self.set_origin(network, prefix, vtep);
        }
        Ok(())
    }

    fn set_origin(&mut self, network: NetworkId, prefix: IpNet, vtep: Option<IpAddr>) {
        let Some(options) = self.options.networks.get(usize::from(network.0)) else {
            return;
        };
        if let Err(error) = self.data_plane.set_origin(options.vni, prefix, vtep) {
            warn!(%error, "the kernel may not get what comes from there");
        }
    }

    /// Tells the data plane where tunnels end, here and elsewhere.
    pub(super) fn note_nodes(&mut self) {
        let mut nodes: BTreeSet<IpAddr> = self.options.underlay.addresses.iter().collect();
        for route in &self.options.routes {
            nodes.insert(route.vtep);
            nodes.extend(&route.addresses);
        }
        if let Err(error) = self.data_plane.set_nodes(&nodes) {
            warn!(%error, "pods may be able to send tunnel packets");
        }
    }

    fn drop_unused_tunnels(&mut self) -> Result<(), UpdateError> {
        let used: BTreeSet<TunnelId> = self.remotes.values().copied().collect();
        let unused: Vec<TunnelId> = self
            .tunnels
            .keys()
            .copied()
            .filter(|id| !used.contains(id))
            .collect();
        for tunnel in unused {
            self.publisher.apply(Update::RemoveNextHop { tunnel })?;
            self.tunnels.remove(&tunnel);
        }
        Ok(())
    }

    /// Follows what is seen of the way to another node.
    pub(crate) fn observe_vtep(&mut self, vtep: IpAddr, observed: &ObservedVtep, now: Instant) {
        if !self.set_vtep(vtep, observed, now) {
            return;
        }
        let there = self
            .tunnels
            .iter()
            .filter(|(_, tunnel)| tunnel.vtep == vtep);
        for id in there.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.refresh_tunnel(id);
        }
        self.publish_soon(now);
    }

    /// All other nodes.
    pub(crate) fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        self.vteps.keys().copied()
    }

    /// The nodes whose first hop is, on some way, this neighbour on the underlay.
    pub(crate) fn vteps_behind(&self, neighbour: IpAddr) -> impl Iterator<Item = IpAddr> {
        let index = self.underlay_index;
        let behind = move |vtep: IpAddr, state: &Vtep| {
            next_hop::neighbours_towards(index, vtep, &state.observed).any(|it| it == neighbour)
        };
        let all = self.vteps.iter();
        all.filter_map(move |(&vtep, state)| behind(vtep, state).then_some(vtep))
    }

    /// The neighbours that the kernel is to be asked for now, each once. They are not due again
    /// for a while.
    pub(crate) fn due_probes(&mut self, now: Instant) -> Vec<Probe> {
        let interface = self.underlay_index;
        let mut probes = Vec::new();
        for (&vtep, state) in self
            .vteps
            .iter_mut()
            .filter(|(_, state)| state.probe_at <= now)
        {
            state.probe_at = now + state.probe_interval(interface, vtep);
            let neighbours = next_hop::neighbours_towards(interface, vtep, &state.observed);
            probes.extend(neighbours.map(|address| Probe { interface, address }));
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    /// Takes over what is seen; true if the first hops are others.
    fn set_vtep(&mut self, vtep: IpAddr, observed: &ObservedVtep, now: Instant) -> bool {
        let index = self.underlay_index;
        let Some(state) = self.vteps.get_mut(&vtep) else {
            return false;
        };
        state.observed = observed.clone();
        let hops = next_hop::first_hops(index, vtep, observed);
        if hops == state.hops {
            return false;
        }
        match &hops {
            Ok(hops) => {
                let by = |hop: &FirstHop| format!("{} ({})", hop.address, hop.mac);
                let by: Vec<String> = hops.iter().map(by).collect();
                info!(%vtep, next_hop = by.join(", "), "node resolved");
            }
            Err(reason) if state.hops.is_ok() => warn!(%vtep, %reason, "node unresolved"),
            Err(reason) => debug!(%vtep, %reason, "node still unresolved"),
        }
        let before = std::mem::replace(&mut state.hops, hops);
        // What has just been lost, or not been asked for yet, is worth asking for at once; what
        // failed has just been asked for.
        state.probe_at = match &state.hops {
            Err(Unresolved::NeighbourPending(_)) if before.is_ok() => now,
            Err(Unresolved::NeighbourPending(_)) => state.probe_at.min(now + RESOLVE_INTERVAL),
            _ => now + state.probe_interval(index, vtep),
        };
        self.status_stale = true;
        true
    }

    /// Stages a tunnel's next hop, if it has changed.
    pub(super) fn refresh_tunnel(&mut self, id: TunnelId) {
        let Some(update) = self.next_hop_update(id) else {
            return;
        };
        if let Update::PutNextHop { tunnel, next_hop } = &update
            && self.publisher.fib().next_hop(*tunnel) == Some(next_hop)
        {
            return;
        }
        self.apply(update);
    }

    fn next_hop_update(&self, id: TunnelId) -> Option<Update> {
        let tunnel = self.tunnels.get(&id)?;
        let hops = &self.vteps.get(&tunnel.vtep)?.hops;
        let state = match (&self.underlay, hops) {
            (Ok(underlay), Ok(hops)) => {
                next_hop::next_hop_state(underlay, tunnel.vtep, hops, &tunnel.ends)
            }
            _ => NextHopState::Unresolved,
        };
        let next_hop = NextHop {
            vtep: tunnel.vtep,
            state,
        };
        Some(Update::PutNextHop {
            tunnel: id,
            next_hop,
        })
    }

    pub(super) fn apply(&mut self, update: Update) {
        if let Err(error) = self.publisher.apply(update) {
            error!(%error, "the table refuses a change");
        }
    }
}

/// In the default network a node also sends from its own addresses: answers of the host itself,
/// and of services that it translated. The source check is to know them.
fn node_addresses(route: &RouteOptions) -> impl Iterator<Item = IpNet> {
    let own = route.addresses.iter().copied();
    own.chain([route.vtep]).map(IpNet::from)
}
