//! The reconciler with made-up observations, a recording data plane and a real table.

mod changes;
mod mtu;
mod ports;
mod routes;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use viaduct_encap::{Tunnel, TunnelParams, Vni};
use viaduct_fib::{NetworkId, NextHopState, PortId, Publisher, ReaderFactory, TunnelId};

use super::port::Port;
use super::routes::Probe;
use super::{Observed, Reconciler};
use crate::kernel::NeighbourState;
use crate::observe::{ObservedPort, ObservedUnderlay, ObservedVtep};
use crate::options::AgentOptions;
use crate::status::{AgentStatus, MtuBy, PortState, RouteState};
use crate::testing::{
    Log, Recorder, UNDERLAY, VTEP, link, mac, no_pod, on_underlay, options, path, pod, underlay,
    vtep,
};

const UP: [&str; 7] = [
    "underlay 2",
    "own 192.0.2.1",
    "attach 1 11",
    "admit 10.42.1.10",
    "admit fd00:42:1::10",
    "attach 2 12",
    "admit 10.42.1.11",
];
const A_UP: [&str; 3] = ["attach 1 21", "admit 10.42.1.10", "admit fd00:42:1::10"];
const A_DOWN: [&str; 3] = ["expel fd00:42:1::10", "expel 10.42.1.10", "detach 1"];
const MS: Duration = Duration::from_millis(1);

struct Node {
    reconciler: Reconciler<Recorder>,
    readers: ReaderFactory,
    log: Log,
    now: Instant,
}

fn observed() -> Observed {
    Observed {
        underlay: underlay(),
        vteps: BTreeMap::from([(VTEP.into(), vtep(NeighbourState::Valid, mac(0xb2)))]),
        host: Vec::new(),
    }
}

/// Starts, and looks at the pods.
fn start_with(
    options: AgentOptions,
    observed: &Observed,
    pods: &[ObservedPort; 2],
    log: Log,
) -> Node {
    let (publisher, readers) = Publisher::new();
    let data_plane = Recorder {
        log: log.clone(),
        reader: readers.reader(),
        own: String::new(),
    };
    let now = Instant::now();
    let reconciler = Reconciler::start(options, publisher, data_plane, observed, now).unwrap();
    let mut node = Node {
        reconciler,
        readers,
        log,
        now,
    };
    for (id, pod) in (1..).map(PortId).zip(pods) {
        node.reconciler.observe_port(id, pod, now);
    }
    node.settle();
    node
}

fn start_of(options: AgentOptions, observed: &Observed) -> Node {
    start_with(options, observed, &[pod(11), pod(12)], Log::default())
}

fn start() -> Node {
    let node = start_of(options(), &observed());
    assert_eq!(node.log.take(), UP);
    settle_ports(node)
}

/// Looks at the pods until that is not asked for any more.
fn settle_ports(mut node: Node) -> Node {
    loop {
        let due: Vec<PortId> = node.reconciler.due_ports(node.now).collect();
        for id in due {
            let seen = [pod(11), pod(12)];
            let seen = &seen[usize::from(id.0) - 1];
            node.reconciler.observe_port(id, seen, node.now);
        }
        let settled = |port: &Port| port.retry_at().is_none();
        if node.reconciler.ports.values().all(settled) {
            return node;
        }
        node.now += 16 * MS;
    }
}

impl Node {
    fn settle(&mut self) -> u64 {
        self.reconciler.publish_due(self.now);
        self.reconciler.report();
        self.readers.reader().load().epoch()
    }

    fn next_hop(&self) -> NextHopState {
        let reader = self.readers.reader();
        reader.load().next_hop(TunnelId(0)).unwrap().state.clone()
    }

    fn local(&self, address: &str) -> Option<PortId> {
        let address: IpAddr = address.parse().unwrap();
        self.readers.reader().load().local(NetworkId(0), address)
    }

    fn port_state(&self) -> PortState {
        self.reconciler.status().get().ports[0].state.clone()
    }

    fn status(&mut self) -> Arc<AgentStatus> {
        self.settle();
        self.reconciler.status().get()
    }

    fn see_port(&mut self, observed: &ObservedPort) {
        self.reconciler.observe_port(PortId(1), observed, self.now);
    }

    /// What the status says of the first route.
    fn route_state(&mut self) -> RouteState {
        self.settle();
        let status = self.reconciler.status().get();
        status.routes.first().unwrap().state
    }

    fn see_vtep(&mut self, observed: &ObservedVtep) {
        self.reconciler
            .observe_vtep(VTEP.into(), observed, self.now);
    }
}

fn tunnel(outer_source: u8, outer_destination: u8) -> NextHopState {
    tunnel_of(outer_source, outer_destination, 1500)
}

fn tunnel_of(outer_source: u8, outer_destination: u8, mtu: u16) -> NextHopState {
    NextHopState::Resolved(Tunnel::new(&TunnelParams {
        outer_source_mac: mac(outer_source),
        outer_destination_mac: mac(outer_destination),
        source: [192, 0, 2, 1].into(),
        destination: VTEP.into(),
        udp_port: 8472,
        udp_checksum6: false,
        vni: Vni::new(1).unwrap(),
        inner_source_mac: mac(0xa1),
        inner_destination_mac: mac(0xa2),
        hop_limit: 64,
        dscp: viaduct_encap::ecn::Dscp::default(),
        mtu,
    }))
}
