//! Writes the status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::warn;
use viaduct_fib::PortId;

use super::Reconciler;
use super::port::{Port, State};
use super::vtep::Vtep;
use crate::data_plane::DataPlane;
use crate::next_hop::{self, FirstHop, IPV6_MIN_MTU, Unresolved};
use crate::options::{AgentOptions, RouteOptions};
use crate::status::{AgentStatus, NextHopStatus, NodeRoute, PortState, PortStatus, RouteState};

impl<D: DataPlane> Reconciler<D> {
    /// Writes the status, if something has changed.
    pub(crate) fn report(&mut self) {
        if !self.status_stale {
            return;
        }
        self.status_stale = false;
        let status = AgentStatus {
            ports: self.port_statuses(),
            routes: self.listing.list(),
            epoch: self.epoch,
            underlay_interface: self
                .underlay_link
                .name(&self.options.underlay.name)
                .to_owned(),
            underlay_addresses: self.options.underlay.addresses.iter().collect(),
            underlay_problem: self.underlay.as_ref().err().map(ToString::to_string),
            slow_path: self.slow_path.clone(),
        };
        self.status.send_replace(Arc::new(status));
    }

    fn port_statuses(&self) -> Vec<PortStatus> {
        let ports = self.ports.iter();
        ports
            .map(|(&id, port)| port_status(id, port, &self.options))
            .collect()
    }

    /// Lists the wanted routes anew, but the first `front` and the last `back`, which are as they
    /// were.
    pub(super) fn list_routes(&mut self, front: usize, back: usize) {
        let routes = &self.options.routes;
        let end = routes.len().saturating_sub(back);
        let middle: Vec<&RouteOptions> = routes.iter().take(end).skip(front).collect();
        // A node that is new has no state yet.
        let mut states = BTreeMap::new();
        for route in &middle {
            states
                .entry(route.vtep)
                .or_insert_with(|| Arc::new(self.route_state(route.vtep)));
        }
        for (vtep, state) in &states {
            if let Some(known) = self.ways.vteps.get_mut(vtep) {
                known.state = Arc::clone(state);
            }
        }
        let listed = middle.into_iter().filter_map(|route| {
            let entry = NodeRoute {
                network: network_name(&self.options, route.network),
                prefixes: route.prefixes.clone(),
                vtep: route.vtep,
                vtep_mac: route.vtep_mac,
                tunnel: self.ways.tunnel_of(route)?.0,
            };
            Some((entry, Arc::clone(states.get(&route.vtep)?)))
        });
        self.listing.replace(front, back, listed);
    }

    /// Lists a node's state, if it has changed.
    pub(super) fn list_state(&mut self, vtep: IpAddr) {
        let state = self.route_state(vtep);
        let Some(known) = self.ways.vteps.get_mut(&vtep) else {
            return;
        };
        if *known.state == state {
            return;
        }
        if let RouteState::Resolved {
            warning: Some(warning),
            ..
        } = &state
        {
            warn!(%vtep, %warning, "the way to the node");
        }
        known.state = Arc::new(state);
        self.listing.set_state(vtep, &known.state);
        self.status_stale = true;
    }

    /// The underlay's fault comes before the route's.
    fn route_state(&self, vtep: IpAddr) -> RouteState {
        let underlay = match &self.underlay {
            Ok(underlay) => underlay,
            Err(reason) => {
                return RouteState::Unresolved {
                    reason: format!("the underlay cannot be used: {reason}"),
                };
            }
        };
        let own = underlay.addresses.like(vtep);
        let state = self.ways.vteps.get(&vtep);
        let hops = state.map_or(Err(&Unresolved::NoRoute), |state| state.hops.as_ref());
        match own
            .ok_or(&Unresolved::NoOwnAddress)
            .and_then(|own| Ok((own, hops?)))
        {
            Err(reason) => RouteState::Unresolved {
                reason: reason.to_string(),
            },
            Ok((own, hops)) => {
                let limits = state.map(Vtep::limits).unwrap_or_default();
                let mtu = next_hop::tunnel_mtu(underlay.mtu, limits);
                let pod_mtu = next_hop::overlay_mtu(mtu.bytes.into(), own);
                RouteState::Resolved {
                    next_hops: hops.iter().map(next_hop_status).collect(),
                    mtu: mtu.bytes,
                    mtu_by: mtu.by,
                    pod_mtu,
                    warning: self.too_short(pod_mtu),
                }
            }
        }
    }

    fn too_short(&self, pod_mtu: u16) -> Option<String> {
        let networks = &self.options.networks;
        let six = networks.iter().any(|it| it.overlay_v6().is_some());
        (six && u32::from(pod_mtu) < IPV6_MIN_MTU).then(|| {
            format!(
                "it leaves {pod_mtu} bytes for pods' packets, and IPv6 needs {IPV6_MIN_MTU}: longer IPv6 packets \
                 of pods are dropped; use links with a larger MTU on the underlay"
            )
        })
    }
}

fn port_status(id: PortId, port: &Port, all: &AgentOptions) -> PortStatus {
    let options = &port.options;
    let (mac, state) = match &port.state {
        State::Up { port, .. } => (Some(port.mac), PortState::Up),
        State::Down(reason) => {
            let reason = reason.to_string();
            (options.mac, PortState::Down { reason })
        }
    };
    PortStatus {
        id: id.0,
        name: options.name.clone(),
        interface: port.interface().to_owned(),
        renamed_from: (port.interface() != options.interface).then(|| options.interface.clone()),
        network: network_name(all, options.network),
        addresses: options.addresses.clone(),
        mac,
        state,
        attached_index: port.attached(),
    }
}

fn next_hop_status(hop: &FirstHop) -> NextHopStatus {
    NextHopStatus {
        address: hop.address,
        mac: hop.mac,
        weight: hop.weight,
    }
}

fn network_name(options: &AgentOptions, network: usize) -> String {
    let network = options.networks.get(network);
    network.map_or_else(String::new, |network| network.name.clone())
}
