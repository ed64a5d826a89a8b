//! Requests for other pods and routes: all of one, or nothing; at the cost of the difference.

use proptest::prelude::*;
use viaduct_fib::{MAX_TUNNELS, Network};

use super::*;
use crate::error::AgentError;
use crate::options::{PortOptions, RouteOptions};

/// All that a refused request must leave as it is.
#[derive(Debug, PartialEq)]
struct Everything {
    remotes: BTreeMap<(NetworkId, ipnet::IpNet), TunnelId>,
    next_hops: Vec<(TunnelId, viaduct_fib::NextHop)>,
    networks: Vec<(NetworkId, Network)>,
    ports: Vec<PortId>,
    routes: Vec<RouteOptions>,
    pods: Vec<PortOptions>,
    vteps: Vec<IpAddr>,
    listed: String,
}

impl Node {
    fn everything(&mut self) -> Everything {
        self.settle();
        let reconciler = &self.reconciler;
        let fib = reconciler.publisher.fib();
        let status = reconciler.status().get();
        Everything {
            remotes: fib.remotes().map(|(n, p, t)| ((n, p), t)).collect(),
            next_hops: fib.next_hops().map(|(id, n)| (id, n.clone())).collect(),
            networks: fib.networks().map(|(id, &n)| (id, n)).collect(),
            ports: reconciler.port_ids().collect(),
            routes: reconciler.options.routes.clone(),
            pods: reconciler.options.ports.clone(),
            vteps: reconciler.vteps().collect(),
            listed: serde_json::to_string(&status.routes).unwrap(),
        }
    }

    fn want(&mut self, routes: &[RouteOptions]) -> Result<Vec<IpAddr>, AgentError> {
        let ports = self.reconciler.options.ports.clone();
        let now = self.now;
        let changed = self.reconciler.reconfigure(ports, routes.to_vec(), now);
        changed.map(|(_, vteps)| vteps)
    }

    /// What the table leads to, by VTEP.
    fn table(&self) -> BTreeMap<String, IpAddr> {
        let fib = self.reconciler.publisher.fib();
        let remotes = fib.remotes();
        remotes
            .map(|(_, prefix, tunnel)| (prefix.to_string(), fib.next_hop(tunnel).unwrap().vtep))
            .collect()
    }
}

fn route(n: u8, prefixes: &[&str]) -> RouteOptions {
    RouteOptions {
        network: 0,
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
        addresses: vec![format!("fd00:99::{n}").parse().unwrap()],
        vtep: [192, 0, 2, n].into(),
        udp_checksum6: false,
        vtep_mac: mac(n),
    }
}

#[test]
fn a_refused_request_changes_nothing() {
    let mut node = start();
    let before = node.everything();
    let good = options().routes;
    let mut twice = good.clone();
    twice.push(route(9, &["10.42.9.0/24", "10.42.2.0/24"]));
    let mut outside = good.clone();
    outside.insert(0, route(9, &["10.42.9.0/24", "10.99.0.0/24"]));
    let mut unknown = good.clone();
    unknown[0].network = 7;
    // What only the table refuses, after other changes that it would have taken.
    let mut host_bits = vec![route(9, &["10.42.9.0/24"])];
    host_bits.push(route(8, &["10.42.8.1/24"]));
    for wanted in [twice, outside, unknown, host_bits] {
        assert!(node.want(&wanted).is_err(), "{wanted:?}");
        assert_eq!(node.everything(), before);
    }
    // Pods are refused before routes are changed, and routes before pods.
    let mut doubled = options().ports;
    doubled[1].interface = doubled[0].interface.clone();
    let now = node.now;
    let routes = vec![route(9, &["10.42.9.0/24"])];
    let refused = node.reconciler.reconfigure(doubled, routes, now);
    assert!(refused.is_err());
    assert_eq!(node.everything(), before);
    let refused = node
        .reconciler
        .reconfigure(Vec::new(), vec![route(8, &["10.42.8.1/24"])], now);
    assert!(refused.is_err());
    assert_eq!(node.everything(), before);
    assert!(node.log.take().is_empty(), "the data plane was not asked");
}

#[test]
fn more_nodes_than_the_table_holds_are_refused_whole() {
    let mut node = start();
    let before = node.everything();
    let all: Vec<RouteOptions> = (0..=MAX_TUNNELS)
        .map(|n| RouteOptions {
            vtep: Ipv4Addr::from((203 << 24) + n).into(),
            prefixes: Vec::new(),
            addresses: Vec::new(),
            ..route(1, &[])
        })
        .collect();
    // Past the checks that stand in front of the table.
    let now = node.now;
    let refused = node.reconciler.want_routes(all.clone(), now);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("65536"), "{error}");
    assert_eq!(node.everything(), before);
    let fitting = all[2..].to_vec();
    node.reconciler.want_routes(fitting, now).unwrap();
    assert_eq!(node.reconciler.vteps().count(), 65_535);
}

#[test]
fn a_stuck_worker_refuses_nothing() {
    let mut node = start();
    let reader = node.readers.reader();
    let held = reader.load();
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb3)));
    node.settle();
    let wanted = [route(9, &["10.42.9.0/24"])];
    node.want(&wanted).unwrap();
    node.settle();
    drop(held);
    node.now = node.reconciler.next_due().unwrap();
    node.settle();
    let prefixes: Vec<String> = node.table().into_keys().collect();
    assert_eq!(prefixes, ["10.42.9.0/24", "192.0.2.9/32", "fd00:99::9/128"]);
}

#[test]
fn a_nodes_own_address_yields_to_a_route() {
    let mut node = start();
    let mut routes = vec![route(3, &["10.42.3.0/24"]), route(4, &["10.42.4.0/24"])];
    routes[0].addresses = vec!["10.42.4.9".parse().unwrap()];
    let want = |node: &mut Node, routes: &[RouteOptions]| {
        let now = node.now;
        node.reconciler.want_routes(routes.to_vec(), now).unwrap();
    };
    want(&mut node, &routes);
    let to = |node: &Node| node.table().get("10.42.4.9/32").copied();
    assert_eq!(to(&node), Some(routes[0].vtep));
    let prefixes = &mut routes[1].prefixes;
    prefixes.push("10.42.4.9/32".parse().unwrap());
    want(&mut node, &routes);
    assert_eq!(to(&node), Some(routes[1].vtep));
    routes[1].prefixes.pop();
    want(&mut node, &routes);
    assert_eq!(to(&node), Some(routes[0].vtep));
}

/// Lists of few nodes and prefixes, so that they meet.
fn lists() -> impl Strategy<Value = Vec<Vec<(u8, bool, Vec<u8>)>>> {
    let one = (
        1..5_u8,
        any::<bool>(),
        prop::collection::vec(0..12_u8, 0..4),
    );
    prop::collection::vec(prop::collection::vec(one, 0..6), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// However a list was arrived at, what comes of it is the same; what is refused changes
    /// nothing.
    #[test]
    fn differences_come_to_the_same_as_a_start(lists in lists()) {
        let mut node = start();
        for list in lists {
            let routes: Vec<RouteOptions> = list
                .iter()
                .map(|(n, mac, prefixes)| {
                    let prefixes: Vec<String> = prefixes.iter().map(|p| format!("10.42.{p}.0/24")).collect();
                    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
                    let mut route = route(*n, &prefixes);
                    route.vtep_mac = super::mac(0x40 + 2 * n + u8::from(*mac));
                    route
                })
                .collect();
            let wanted = AgentOptions { routes: routes.clone(), ..options() };
            let before = node.everything();
            let sound = wanted.check().is_ok();
            prop_assert_eq!(node.want(&routes).is_ok(), sound);
            if !sound {
                prop_assert_eq!(node.everything(), before);
                continue;
            }
            let fresh = start_of(wanted, &observed());
            prop_assert_eq!(node.table(), fresh.table());
            let vteps: Vec<IpAddr> = node.reconciler.vteps().collect();
            prop_assert_eq!(vteps, fresh.reconciler.vteps().collect::<Vec<_>>());
            let nodes: Vec<IpAddr> = node.reconciler.ways.nodes().collect();
            prop_assert_eq!(nodes, fresh.reconciler.ways.nodes().collect::<Vec<_>>());
            let used = node.reconciler.publisher.fib().counts().next_hops;
            prop_assert_eq!(used, fresh.reconciler.publisher.fib().counts().next_hops);
            node.settle();
            let listed = node.reconciler.status().get().routes.clone();
            let prefixes: Vec<_> = listed.iter().map(|route| (route.prefix, route.vtep)).collect();
            let expected: Vec<_> = routes
                .iter()
                .flat_map(|route| route.prefixes.iter().map(|&prefix| (prefix, route.vtep)))
                .collect();
            prop_assert_eq!(prefixes, expected);
        }
    }
}
