//! What the configuration, commands and other nodes want, as the merge is told, and what came of it.

use std::collections::HashSet;

use viaduct_config::{Config, GossipConfig, PodConfig, RouteConfig, Trust};
use viaduct_control::OwnAddresses;
use viaduct_control::gossip::Nodes;
use viaduct_control::sources::{
    Announced, Delegated, Entries, Grant, Refused, Rules, Source, Sources, StaticRoute, Wanted,
    merge,
};

use crate::desired::Desired;
use crate::options::{network_options, port_options, route_options};

/// What is wanted, and what is not used of what the sources say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) wanted: Wanted,
    pub(crate) refused: Vec<Refused>,
}

impl Merged {
    /// What is wanted on a node with these underlay addresses, beside nodes that say this.
    pub(crate) fn of(desired: &Desired, own: OwnAddresses, nodes: Option<&Nodes>) -> Self {
        let sources = sources(desired, own, nodes);
        let (wanted, mut refused) = merge(&sources);
        refused.extend_from_slice(desired.refused());
        Self { wanted, refused }
    }

    /// What is refused of the commands here that was not refused before.
    pub(crate) fn newly_refused(&self, before: &Self) -> Option<&Refused> {
        let mut refused = self.refused.iter();
        refused.find(|it| it.source == Source::Command && !before.refused.contains(it))
    }

    /// Whether some route leads to this node as it announces it.
    pub(crate) fn uses(&self, node: &str) -> bool {
        let mut origins = self.wanted.origins.iter();
        origins.any(|origin| origin.node.as_deref() == Some(node))
    }

    /// Logs what is refused that was not refused before.
    pub(crate) fn log_news(&self, before: &Self) {
        let known: HashSet<_> = before.refused.iter().collect();
        for refused in self
            .refused
            .iter()
            .filter(|refused| !known.contains(refused))
        {
            let Refused {
                node, what, why, ..
            } = refused;
            let mend = refused.mend.as_deref().unwrap_or("-");
            if refused.notice {
                tracing::debug!(node, what, mend, "not used: {why}");
            } else {
                tracing::warn!(node, what, mend, "not used: {why}");
            }
        }
    }

    /// How many things somebody misses.
    pub(crate) fn not_used(&self) -> usize {
        self.refused
            .iter()
            .filter(|refused| !refused.notice)
            .count()
    }
}

fn sources(desired: &Desired, own: OwnAddresses, nodes: Option<&Nodes>) -> Sources {
    let config = desired.config();
    let (pods, routes) = desired.of_file();
    let (file_pods, more_pods) = config.pods.split_at(pods.min(config.pods.len()));
    let (file_routes, more_routes) = config.routes.split_at(routes.min(config.routes.len()));
    let delegations = config.delegations.iter().map(|d| Delegated {
        network: d.network,
        prefix: d.prefix,
        to: d.node.clone(),
    });
    let mut command = entries(config, more_pods, more_routes);
    let mut bindings = desired.bindings();
    for port in &mut command.ports {
        port.binding = bindings.remove(&*port.name).unwrap_or_default();
    }
    let announced = nodes.into_iter().flat_map(|nodes| nodes.values());
    Sources {
        node: config.node.name.clone(),
        networks: network_options(config),
        own,
        max_ports: config.workers.max_ports,
        file: Entries {
            delegations: delegations.collect(),
            ..entries(config, file_pods, file_routes)
        },
        command,
        announced: announced.map(|node| Announced::from(&**node)).collect(),
        rules: config.gossip.as_ref().map(rules).unwrap_or_default(),
    }
}

fn entries(config: &Config, pods: &[PodConfig], routes: &[RouteConfig]) -> Entries {
    let routes = routes.iter().map(|route| StaticRoute {
        node: route.node.clone(),
        route: route_options(route),
    });
    Entries {
        ports: pods
            .iter()
            .map(|pod| port_options(pod, config.hooks.pods))
            .collect(),
        routes: routes.collect(),
        delegations: Vec::new(),
    }
}

fn rules(gossip: &GossipConfig) -> Rules {
    let nodes = gossip.nodes.iter().map(|node| {
        let grant = Grant {
            prefixes: node.allowed_prefixes.clone(),
            addresses: node.allowed_addresses.clone(),
        };
        (node.name.clone(), grant)
    });
    Rules {
        prefixes: gossip.allowed_prefixes.clone(),
        addresses: gossip.allowed_addresses.clone(),
        nodes: nodes.collect(),
        certified: matches!(gossip.trust, Trust::Authority { .. }),
    }
}
