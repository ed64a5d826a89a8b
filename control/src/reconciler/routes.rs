//! The underlay, the ways to other nodes, and the tunnels that follow from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{debug, error, info, warn};
use viaduct_fib::{NetworkId, NextHop, NextHopState, TunnelId, Update};

use super::{Reconciler, network_id};
use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::next_hop::{self, FirstHop, TunnelEnds, Underlay, Unresolved};
use crate::observe::{ObservedUnderlay, ObservedVtep};
use crate::options::{AgentOptions, NetworkOptions, RouteOptions, UnderlayOptions};

/// How often the kernel is asked to resolve a neighbour that it has not resolved.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the kernel is asked to check a neighbour that it has resolved. The kernel does not
/// see the workers' packets, so without this it would forget the neighbour.
const REVALIDATE_INTERVAL: Duration = Duration::from_secs(15);

/// A way to one other node within one network.
pub(super) struct Tunnel {
    id: TunnelId,
    vtep: Ipv4Addr,
    ends: TunnelEnds,
}

/// Another node, as the underlay leads to it.
pub(super) struct Vtep {
    observed: ObservedVtep,
    pub(super) hop: Result<FirstHop, Unresolved>,
    pub(super) probe_at: Instant,
    /// The tunnels that end there, by place.
    tunnels: Vec<usize>,
}

/// What the options' routes come to.
pub(super) struct Plan {
    /// By number.
    pub(super) tunnels: Vec<Tunnel>,
    pub(super) vteps: BTreeMap<Ipv4Addr, Vtep>,
    /// Each route's tunnel, by place in the options.
    pub(super) route_tunnels: Vec<TunnelId>,
}

/// A neighbour that the kernel is to be asked to resolve or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
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
            mtu: next_hop::overlay_mtu(underlay_mtu, self.vni),
        }
    }
}

/// Tunnels and nodes for all routes; routes to one VTEP in one network share a tunnel. The
/// options have been checked.
pub(super) fn plan(options: &AgentOptions, now: Instant) -> Plan {
    let mut plan = Plan {
        tunnels: Vec::new(),
        vteps: BTreeMap::new(),
        route_tunnels: Vec::new(),
    };
    let mut known = BTreeMap::new();
    for route in &options.routes {
        let Some(network) = options.networks.get(route.network) else {
            continue;
        };
        let key = (route.network, route.vtep, route.vtep_mac);
        let tunnel = *known
            .entry(key)
            .or_insert_with(|| plan.add_tunnel(network, route, now));
        plan.route_tunnels.push(tunnel);
    }
    plan
}

impl Plan {
    fn add_tunnel(
        &mut self,
        network: &NetworkOptions,
        route: &RouteOptions,
        now: Instant,
    ) -> TunnelId {
        let place = self.tunnels.len();
        // Beyond the table's limit any number does: the table refuses it.
        let id = TunnelId(u32::try_from(place).unwrap_or(u32::MAX));
        self.tunnels.push(Tunnel {
            id,
            vtep: route.vtep,
            ends: TunnelEnds {
                vni: network.vni,
                udp_port: network.udp_port,
                local_mac: network.vtep_mac,
                remote_mac: route.vtep_mac,
            },
        });
        let vtep = self.vteps.entry(route.vtep).or_insert_with(|| Vtep {
            observed: ObservedVtep::default(),
            hop: Err(Unresolved::NoRoute),
            probe_at: now,
            tunnels: Vec::new(),
        });
        vtep.tunnels.push(place);
        id
    }
}

/// The underlay as it must be for a start.
pub(super) fn first_underlay(
    options: &UnderlayOptions,
    observed: &ObservedUnderlay,
) -> Result<Underlay, AgentError> {
    let name = || options.name.clone();
    let link = observed
        .link
        .as_ref()
        .ok_or_else(|| AgentError::NoUnderlay { name: name() })?;
    let mac = link
        .mac
        .ok_or_else(|| AgentError::UnderlayWithoutMac { name: name() })?;
    if !observed.has_address {
        let address = options.address;
        return Err(AgentError::NoUnderlayAddress {
            name: name(),
            address,
        });
    }
    Ok(Underlay {
        index: link.index,
        mac,
        address: options.address,
        mtu: link.mtu,
    })
}

impl<D: DataPlane> Reconciler<D> {
    /// Puts all routes into the table, resolved or not.
    pub(super) fn add_routes(
        &mut self,
        observed: &BTreeMap<Ipv4Addr, ObservedVtep>,
        now: Instant,
    ) -> Result<(), AgentError> {
        for (&vtep, observed) in observed {
            self.set_vtep(vtep, observed, now);
        }
        for place in 0..self.tunnels.len() {
            if let Some(update) = self.next_hop_update(place) {
                self.publisher.apply(update)?;
            }
        }
        let mut remotes = Vec::new();
        for (route, &tunnel) in self.options.routes.iter().zip(&self.route_tunnels) {
            let Some(network) = network_id(route.network) else {
                continue;
            };
            remotes.extend(route.prefixes.iter().map(|&prefix| Update::PutRemote {
                network,
                prefix,
                tunnel,
            }));
        }
        remotes.extend(self.node_addresses());
        for update in remotes {
            self.publisher.apply(update)?;
        }
        Ok(())
    }

    /// In the default network a node also sends from its own addresses: answers of the host
    /// itself, and of services that it translated. The source check is to know them.
    fn node_addresses(&self) -> Vec<Update> {
        let routes = self.options.routes.iter().zip(&self.route_tunnels);
        let mut updates = BTreeMap::new();
        for (route, &tunnel) in routes.filter(|(route, _)| route.network == 0) {
            let own = route.addresses.iter().copied().chain([route.vtep.into()]);
            updates.extend(own.map(|address| (IpNet::from(address), tunnel)));
        }
        let update = |(prefix, tunnel)| Update::PutRemote {
            network: NetworkId(0),
            prefix,
            tunnel,
        };
        updates.into_iter().map(update).collect()
    }

    /// Follows what is seen of the underlay interface.
    pub(crate) fn observe_underlay(&mut self, observed: &ObservedUnderlay, now: Instant) {
        let underlay = self.judge_underlay(observed);
        if underlay == self.underlay {
            return;
        }
        match &underlay {
            Ok(underlay) => info!(mac = %underlay.mac, mtu = underlay.mtu, "the underlay changed"),
            Err(reason) => warn!(%reason, "the underlay cannot be used"),
        }
        self.underlay = underlay;
        self.status_stale = true;
        for network in 0..self.options.networks.len() {
            self.refresh_network(network);
        }
        for place in 0..self.tunnels.len() {
            self.refresh_tunnel(place);
        }
        self.publish_soon(now);
    }

    /// Notes that the underlay interface went away, even if one of its name has come back since:
    /// the data plane's sockets are gone.
    pub(crate) fn underlay_removed(&mut self, now: Instant) {
        let gone = ObservedUnderlay {
            link: None,
            has_address: false,
        };
        self.observe_underlay(&gone, now);
    }

    /// Follows what is seen of the way to another node.
    pub(crate) fn observe_vtep(&mut self, vtep: Ipv4Addr, observed: &ObservedVtep, now: Instant) {
        if !self.set_vtep(vtep, observed, now) {
            return;
        }
        let tunnels = self.vteps.get(&vtep).map(|state| state.tunnels.clone());
        for place in tunnels.into_iter().flatten() {
            self.refresh_tunnel(place);
        }
        self.publish_soon(now);
    }

    /// The underlay interface's number; while it is gone, the last one.
    pub(crate) fn underlay_index(&self) -> u32 {
        self.underlay_index
    }

    /// All other nodes.
    pub(crate) fn vteps(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.vteps.keys().copied()
    }

    /// The nodes whose first hop is this neighbour on the underlay.
    pub(crate) fn vteps_behind(&self, neighbour: IpAddr) -> impl Iterator<Item = Ipv4Addr> {
        let index = self.underlay_index;
        let behind = move |vtep: Ipv4Addr, state: &Vtep| {
            next_hop::neighbour_towards(index, vtep, state.observed.route.as_ref()) == Ok(neighbour)
        };
        let all = self.vteps.iter();
        all.filter_map(move |(&vtep, state)| behind(vtep, state).then_some(vtep))
    }

    /// The neighbours that the kernel is to be asked for now, each once. They are not due again
    /// for a while.
    pub(crate) fn due_probes(&mut self, now: Instant) -> Vec<Probe> {
        let mut probes = Vec::new();
        for (&vtep, state) in self
            .vteps
            .iter_mut()
            .filter(|(_, state)| state.probe_at <= now)
        {
            state.probe_at = now + probe_interval(&state.hop);
            let route = state.observed.route.as_ref();
            if let Ok(address) = next_hop::neighbour_towards(self.underlay_index, vtep, route) {
                probes.push(Probe {
                    interface: self.underlay_index,
                    address,
                });
            }
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    fn judge_underlay(&self, observed: &ObservedUnderlay) -> Result<Underlay, Unresolved> {
        // Once gone it stays so: another interface of that name has no sockets of the workers.
        if self.underlay == Err(Unresolved::UnderlayGone) {
            return Err(Unresolved::UnderlayGone);
        }
        let link = observed
            .link
            .as_ref()
            .filter(|link| link.index == self.underlay_index)
            .ok_or(Unresolved::UnderlayGone)?;
        if !link.up {
            return Err(Unresolved::UnderlayDown);
        }
        let address = self.options.underlay.address;
        if !observed.has_address {
            return Err(Unresolved::AddressGone(address));
        }
        Ok(Underlay {
            index: link.index,
            mac: link.mac.ok_or(Unresolved::UnderlayWithoutMac)?,
            address,
            mtu: link.mtu.min(self.options.max_mtu),
        })
    }

    /// Takes over what is seen; true if the first hop is another one.
    fn set_vtep(&mut self, vtep: Ipv4Addr, observed: &ObservedVtep, now: Instant) -> bool {
        let index = self.underlay_index;
        let Some(state) = self.vteps.get_mut(&vtep) else {
            return false;
        };
        state.observed = *observed;
        let neighbour = observed.neighbour.as_ref();
        let hop = next_hop::first_hop(index, vtep, observed.route.as_ref(), neighbour);
        if hop == state.hop {
            return false;
        }
        match &hop {
            Ok(hop) => info!(%vtep, next_hop = %hop.address, mac = %hop.mac, "node resolved"),
            Err(reason) if state.hop.is_ok() => warn!(%vtep, %reason, "node unresolved"),
            Err(reason) => debug!(%vtep, %reason, "node still unresolved"),
        }
        // What has just been lost, or not been asked for yet, is worth asking for at once; what
        // failed has just been asked for.
        state.probe_at = match &hop {
            Err(Unresolved::NeighbourPending(_)) if state.hop.is_ok() => now,
            Err(Unresolved::NeighbourPending(_)) => state.probe_at.min(now + RESOLVE_INTERVAL),
            other => now + probe_interval(other),
        };
        state.hop = hop;
        self.status_stale = true;
        true
    }

    fn refresh_network(&mut self, network: usize) {
        let Some(update) = self.network_update(network) else {
            return;
        };
        if let Update::PutNetwork { id, network } = &update
            && self.publisher.fib().network(*id) == Some(network)
        {
            return;
        }
        self.apply(update);
    }

    /// Stages a tunnel's next hop, if it has changed.
    fn refresh_tunnel(&mut self, place: usize) {
        let Some(update) = self.next_hop_update(place) else {
            return;
        };
        if let Update::PutNextHop { tunnel, next_hop } = &update
            && self.publisher.fib().next_hop(*tunnel) == Some(next_hop)
        {
            return;
        }
        self.apply(update);
    }

    fn next_hop_update(&self, place: usize) -> Option<Update> {
        let tunnel = self.tunnels.get(place)?;
        let hop = self.vteps.get(&tunnel.vtep)?.hop.as_ref();
        let state = match (&self.underlay, hop) {
            (Ok(underlay), Ok(hop)) => {
                NextHopState::Resolved(next_hop::tunnel(underlay, tunnel.vtep, hop, &tunnel.ends))
            }
            _ => NextHopState::Unresolved,
        };
        let next_hop = NextHop {
            vtep: tunnel.vtep.into(),
            state,
        };
        Some(Update::PutNextHop {
            tunnel: tunnel.id,
            next_hop,
        })
    }

    fn apply(&mut self, update: Update) {
        if let Err(error) = self.publisher.apply(update) {
            error!(%error, "the table refuses a change");
        }
    }
}

fn probe_interval(hop: &Result<FirstHop, Unresolved>) -> Duration {
    match hop {
        Ok(_) => REVALIDATE_INTERVAL,
        Err(_) => RESOLVE_INTERVAL,
    }
}
