//! Writes the status.

use std::net::IpAddr;
use std::sync::Arc;

use viaduct_fib::PortId;

use super::Reconciler;
use super::port::{Port, State};
use crate::data_plane::DataPlane;
use crate::next_hop::{FirstHop, Underlay, Unresolved};
use crate::options::AgentOptions;
use crate::status::{AgentStatus, NextHopStatus, PortState, PortStatus, RouteState, RouteStatus};

impl<D: DataPlane> Reconciler<D> {
    /// Writes the status, if something has changed.
    pub(crate) fn report(&mut self) {
        if !self.status_stale {
            return;
        }
        self.status_stale = false;
        let status = AgentStatus {
            ports: self.port_statuses(),
            routes: self.route_statuses(),
            epoch: self.epoch,
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

    fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut statuses = Vec::new();
        for route in &self.options.routes {
            let (Some(vtep), Some(tunnel)) = (self.vteps.get(&route.vtep), self.tunnel_of(route))
            else {
                continue;
            };
            let state = route_state(self.underlay.as_ref(), route.vtep, &vtep.hops);
            statuses.extend(route.prefixes.iter().map(|&prefix| RouteStatus {
                network: network_name(&self.options, route.network),
                prefix,
                vtep: route.vtep,
                vtep_mac: route.vtep_mac,
                tunnel: tunnel.0,
                state: state.clone(),
            }));
        }
        statuses
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
        interface: options.interface.clone(),
        network: network_name(all, options.network),
        addresses: options.addresses.clone(),
        mac,
        state,
        attached_index: port.attached(),
    }
}

/// The underlay's fault comes before the route's.
fn route_state(
    underlay: Result<&Underlay, &Unresolved>,
    vtep: IpAddr,
    hops: &Result<Vec<FirstHop>, Unresolved>,
) -> RouteState {
    let underlay = match underlay {
        Ok(underlay) => underlay,
        Err(reason) => {
            return RouteState::Unresolved {
                reason: format!("the underlay cannot be used: {reason}"),
            };
        }
    };
    let own = underlay.addresses.like(vtep);
    let hops = own
        .ok_or(&Unresolved::NoOwnAddress)
        .and(hops.as_ref())
        .map(|hops| hops.iter().map(next_hop_status).collect::<Vec<_>>());
    match hops {
        Err(reason) => RouteState::Unresolved {
            reason: reason.to_string(),
        },
        Ok(next_hops) => RouteState::Resolved { next_hops },
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
