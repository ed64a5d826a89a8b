//! The rules. Each function takes a part of the file as written, reports what is wrong with it and gives that part of
//! the configuration; a value that was reported has some stand-in, since a configuration with problems is thrown away.
//! So one pass finds all mistakes, and a mistake does not cause others to be reported.

mod delegations;
mod gossip;
mod host;
mod networks;
mod pods;
mod prefix;
mod routes;
mod values;

pub use values::is_node_name;

use std::path::Path;

use networks::Checked;
use toml::Spanned;

use crate::model::{Config, PodConfig, RouteConfig};
use crate::raw::{Pod, Root, Route};
use crate::source::Problems;

/// The configuration in `root`. Only to be used when nothing was reported.
pub(crate) fn config(root: &Root, file: &Path, problems: &mut Problems<'_>) -> Config {
    let node = host::node(root.node.as_ref(), problems);
    let underlay = host::underlay(root.underlay.as_ref(), problems);
    let workers = host::workers(&root.workers, problems);
    let hooks = host::hooks(&root.hooks, problems);
    let runtime = host::runtime(&root.runtime, &node.name, problems);
    let gossip = gossip::gossip(root.gossip.as_ref(), &node.name, problems);
    let networks = networks::networks(&root.networks, &node.name, &underlay, problems);
    let host = pods::Host {
        underlay: &underlay,
        hooks: &hooks,
    };
    let pods = pods::pods(&root.pods, &networks, host, workers.max_ports, problems);
    let routes = routes::routes(&root.routes, &networks, &node.name, &underlay, problems);
    let gossips = root.gossip.is_some();
    let delegations =
        delegations::delegations(&root.delegations, &networks, &node.name, gossips, problems);
    // The first network is the one that the kernel carries too.
    let vni = networks.first().map_or(0, |checked| checked.network.vni);
    let slow_path = host::slow_path(&root.slow_path, vni, problems);
    let networks = networks
        .into_iter()
        .map(|checked| checked.network)
        .collect();
    Config {
        file: file.to_owned(),
        node,
        underlay,
        workers,
        hooks,
        runtime,
        slow_path,
        gossip,
        networks,
        pods,
        routes,
        delegations,
    }
}

/// A pod that a command gives beside a configuration. Only to be used when nothing was reported.
pub(crate) fn one_pod(
    raw: &Spanned<Pod>,
    beside: &Config,
    problems: &mut Problems<'_>,
) -> PodConfig {
    pods::one(raw, beside, &again(beside), problems)
}

/// The same for a route.
pub(crate) fn one_route(
    raw: &Spanned<Route>,
    beside: &Config,
    problems: &mut Problems<'_>,
) -> RouteConfig {
    routes::one(raw, beside, &again(beside), problems)
}

fn again(config: &Config) -> Vec<Checked> {
    config.networks.iter().map(Checked::again).collect()
}
