//! The whole agent in namespaces: a node, another node on its underlay, and a pod.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use common::{Namespace, eventually};
use ipnet::IpNet;
use tokio::sync::oneshot;
use viaduct_control::kernel::{Kernel, LinkInfo};
use viaduct_control::{
    Agent, AgentOptions, DataPlane, DataPlaneError, NetworkOptions, OwnAddresses, PodSide,
    PortOptions, PortState, PortStatus, RouteOptions, RouteState, RouteStatus, StatusHandle,
    UnderlayOptions,
};
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{NextHopState, PortId, Publisher, ReaderFactory, TunnelId};

const NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 2]);
const POD_MAC: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn note(&self, call: String) {
        self.0.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl DataPlane for Recorder {
    fn attach_underlay(&mut self, link: &LinkInfo) -> Result<(), DataPlaneError> {
        {
            self.note(format!("underlay {}", link.name));
            Ok(())
        }
    }

    fn detach_underlay(&mut self) -> Result<(), DataPlaneError> {
        {
            self.note("no underlay".into());
            Ok(())
        }
    }

    fn underlay_fits(&self) -> bool {
        true
    }

    fn set_own_addresses(&mut self, addresses: OwnAddresses) -> Result<(), DataPlaneError> {
        let _ = addresses;
        Ok(())
    }

    fn forget_port(&mut self, _: PortId) {}

    fn set_port_mac(&mut self, id: PortId, mac: MacAddr) -> Result<(), DataPlaneError> {
        self.note(format!("mac {} {mac}", id.0));
        Ok(())
    }

    fn set_origin(&mut self, _: Vni, _: IpNet, _: Option<IpAddr>) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn set_nodes(&mut self, _: &BTreeSet<IpAddr>) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn attach_port(
        &mut self,
        id: PortId,
        _: PodSide<'_>,
        link: &LinkInfo,
    ) -> Result<(), DataPlaneError> {
        self.note(format!("attach {} {}", id.0, link.name));
        Ok(())
    }

    fn detach_port(&mut self, id: PortId) -> Result<(), DataPlaneError> {
        self.note(format!("detach {}", id.0));
        Ok(())
    }

    fn admit_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        self.note(format!("admit {} {address}", vni.get()));
        Ok(())
    }

    fn expel_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        self.note(format!("expel {} {address}", vni.get()));
        Ok(())
    }

    fn set_host_addresses(&mut self, _: &[IpAddr]) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn quiesce(&mut self) {
        self.note("quiesce".into());
    }
}

struct Site {
    node: Namespace,
    peer: Namespace,
    pod: Namespace,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            node: Namespace::new("node"),
            peer: Namespace::new("peer"),
            pod: Namespace::new("pod"),
        };
        site.connect();
        site.add_pod(POD_MAC);
        site
    }

    fn connect(&self) {
        self.node.connect("eth1", &self.peer, "eth1");
        self.node.ip(&format!("link set eth1 address {NODE_MAC}"));
        self.peer.ip(&format!("link set eth1 address {PEER_MAC}"));
        self.node.ip("address add 192.0.2.1/24 dev eth1");
        self.peer.ip("address add 192.0.2.2/24 dev eth1");
    }

    fn add_pod(&self, mac: MacAddr) {
        self.node.connect("pod-a", &self.pod, "eth0");
        self.pod.ip(&format!("link set eth0 address {mac}"));
        self.pod.ip("address add 10.42.1.10/24 dev eth0");
        self.node.ip("address add 10.42.1.1/32 dev pod-a");
        self.node.ip("route add 10.42.1.10 dev pod-a");
    }
}

fn options() -> AgentOptions {
    AgentOptions {
        underlay: UnderlayOptions {
            name: "eth1".into(),
            fixed: OwnAddresses::default(),
            addresses: OwnAddresses {
                v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
                v6: None,
            },
            sockets: true,
        },
        networks: vec![NetworkOptions {
            name: "default".into(),
            vni: Vni::new(1).unwrap(),
            udp_port: 8472,
            vtep_macs: VtepMacs::both(MacAddr([2, 0, 0, 0, 9, 1])),
            udp_checksum6: false,
            dscp: viaduct_encap::ecn::Dscp::default(),
            pod_prefixes: vec!["10.42.1.0/24".parse().unwrap()],
            cluster_prefixes: vec!["10.42.0.0/16".parse().unwrap()],
        }],
        ports: vec![PortOptions {
            name: "a".into(),
            interface: "pod-a".into(),
            network: 0,
            addresses: vec!["10.42.1.10".parse().unwrap()],
            mac: None,
            limits: viaduct_fib::Limits::default(),
            sockets: true,
            binding: viaduct_control::Binding::Name,
        }],
        routes: vec![RouteOptions {
            network: 0,
            prefixes: vec!["10.42.2.0/24".parse().unwrap()],
            addresses: Vec::new(),
            vtep: VTEP.into(),
            udp_checksum6: false,
            vtep_mac: MacAddr([2, 0, 0, 0, 9, 2]),
        }],
        peers: Vec::new(),
        gossip_port: None,
        max_mtu: 1600,
        keep_ports: false,
        slow_path: None,
    }
}

/// What a test has of a running agent.
struct Running {
    status: StatusHandle,
    readers: ReaderFactory,
    recorder: Recorder,
}

impl Running {
    async fn route(&self, what: &str, wanted: impl Fn(&RouteStatus) -> bool) -> RouteStatus {
        let look = async || self.status.get().routes.first().filter(|r| wanted(r));
        eventually(what, look).await
    }

    async fn port(&self, what: &str, wanted: impl Fn(&PortStatus) -> bool) -> PortStatus {
        let look = async || {
            self.status
                .get()
                .ports
                .first()
                .filter(|p| wanted(p))
                .cloned()
        };
        eventually(what, look).await
    }

    fn next_hop(&self) -> NextHopState {
        let reader = self.readers.reader();
        reader.load().next_hop(TunnelId(0)).unwrap().state.clone()
    }
}

/// Runs an agent in the node while `test` works, then stops it.
async fn with_agent(test: impl AsyncFnOnce(&Running)) {
    let (publisher, readers) = Publisher::new();
    let recorder = Recorder::default();
    let agent = Agent::start(options(), publisher, recorder.clone())
        .await
        .unwrap();
    let running = Running {
        status: agent.status(),
        readers,
        recorder,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = tokio::spawn(agent.run(async {
        let _ = stopped.await;
    }));
    test(&running).await;
    running.recorder.calls();
    stop.send(()).unwrap();
    agent.await.unwrap();
    let release = ["expel 1 10.42.1.10", "quiesce", "detach 1"];
    assert_eq!(running.recorder.calls(), release);
}

fn resolved_to(mac: MacAddr) -> impl Fn(&RouteStatus) -> bool {
    move |route| matches!(&route.state, RouteState::Resolved { next_hops, .. } if next_hops[0].mac == mac)
}

fn unresolved_because(text: &str) -> impl Fn(&RouteStatus) -> bool {
    move |route| matches!(&route.state, RouteState::Unresolved { reason } if reason.contains(text))
}

#[test]
fn next_hops_follow_the_kernel() {
    let site = Site::new();
    let test = async |agent: &Running| {
        agent.route("first", resolved_to(PEER_MAC)).await;
        assert!(matches!(agent.next_hop(), NextHopState::Resolved(_)));

        let other = MacAddr([2, 0, 0, 0, 1, 0x33]);
        site.node.ip(&format!(
            "neighbour replace 192.0.2.2 lladdr {other} dev eth1 nud permanent"
        ));
        agent.route("neighbour changed", resolved_to(other)).await;
        site.node.ip("neighbour del 192.0.2.2 dev eth1");
        agent.route("asked for again", resolved_to(PEER_MAC)).await;

        site.peer.ip("address add 192.0.2.3/24 dev eth1");
        site.node.ip("route add 192.0.2.2/32 via 192.0.2.3");
        let router: IpAddr = [192, 0, 2, 3].into();
        let by_router = |route: &RouteStatus| matches!(&route.state, RouteState::Resolved { next_hops, .. } if next_hops[0].address == router);
        agent.route("by a router", by_router).await;

        site.node.ip("route replace unreachable 192.0.2.2/32");
        agent.route("refused", unresolved_because("no route")).await;
        assert_eq!(agent.next_hop(), NextHopState::Unresolved);
        site.node.ip("route del unreachable 192.0.2.2/32");
        agent.route("back", resolved_to(PEER_MAC)).await;

        site.node.ip("route add 192.0.2.2/32 dev pod-a");
        agent
            .route("elsewhere", unresolved_because("another interface (pod-a)"))
            .await;
        site.node.ip("route del 192.0.2.2/32 dev pod-a");
        agent.route("back again", resolved_to(PEER_MAC)).await;
    };
    site.node.run(|| with_agent(test));
}

#[test]
fn tunnels_follow_the_underlay() {
    let site = Site::new();
    let test = async |agent: &Running| {
        agent.route("first", resolved_to(PEER_MAC)).await;
        let before = agent.next_hop();
        site.node
            .ip("link set eth1 address 02:00:00:00:01:77 mtu 1400");
        let short =
            |route: &RouteStatus| matches!(&route.state, RouteState::Resolved { mtu: 1400, .. });
        agent.route("the underlay's MTU", short).await;
        let room = async || match agent.next_hop() {
            NextHopState::Resolved(tunnel) => (tunnel.room() == 1350).then_some(()),
            _ => None,
        };
        eventually("the tunnel's room", room).await;
        let changed = async || match agent.next_hop() {
            NextHopState::Resolved(_) => (agent.next_hop() != before).then_some(()),
            _ => None,
        };
        eventually("the outer source", changed).await;

        site.node.ip("address del 192.0.2.1/24 dev eth1");
        let gone = unresolved_because("none of this node's addresses (192.0.2.1)");
        agent.route("without address", gone).await;
        site.node.ip("address add 192.0.2.1/24 dev eth1");
        agent.route("with address", resolved_to(PEER_MAC)).await;
        site.node.ip("link set eth1 down");
        agent.route("down", unresolved_because("is down")).await;
        site.node.ip("link set eth1 up");
        agent.route("up", resolved_to(PEER_MAC)).await;
        site.node.ip("link del eth1");
        agent
            .route("deleted", unresolved_because("no such interface"))
            .await;
        assert_eq!(
            agent.recorder.calls().last().map(String::as_str),
            Some("no underlay")
        );
        site.connect();
        agent.route("another", resolved_to(PEER_MAC)).await;
        assert_eq!(agent.recorder.calls(), ["underlay eth1"]);
    };
    site.node.run(|| with_agent(test));
}

#[test]
fn pods_come_and_go() {
    let site = Site::new();
    let test = async |agent: &Running| {
        let port = agent
            .port("first", |port| port.state == PortState::Up)
            .await;
        assert_eq!(port.mac, Some(POD_MAC));
        let up = ["attach 1 pod-a", "admit 1 10.42.1.10"];
        assert_eq!(agent.recorder.calls()[1..], up);

        site.pod.ip("link del eth0");
        let down = |port: &PortStatus| matches!(port.state, PortState::Down { .. });
        agent.port("gone", down).await;
        assert_eq!(agent.recorder.calls(), ["expel 1 10.42.1.10", "detach 1"]);
        assert_eq!(agent.readers.reader().load().ports().count(), 0);

        let second = MacAddr([2, 0, 0, 0, 2, 2]);
        site.add_pod(second);
        let back = |port: &PortStatus| port.attached_index.is_some();
        let again = agent.port("back", back).await;
        assert_ne!(again.attached_index, port.attached_index);
        assert_eq!(agent.recorder.calls(), up);

        // The pod speaks, so the host's neighbour table learns its MAC, and says so.
        let third = MacAddr([2, 0, 0, 0, 2, 3]);
        site.pod.ip(&format!("link set eth0 address {third}"));
        site.pod.run(|| async {
            let kernel = Kernel::open().unwrap();
            let index = kernel.link_by_name("eth0").await.unwrap().index;
            kernel.probe(index, GATEWAY).await.unwrap();
            eventually("the gateway answers", async || {
                kernel
                    .neighbour(index, GATEWAY)
                    .await
                    .unwrap()?
                    .usable_mac()
            })
            .await;
        });
        agent
            .port("its new MAC", |port| port.mac == Some(third))
            .await;
        assert_eq!(agent.recorder.calls(), [format!("mac 1 {third}")]);
    };
    site.node.run(|| with_agent(test));
}

#[test]
fn a_start_without_a_pod_or_underlay_says_so_and_follows() {
    let site = Site::new();
    let start = async |options: AgentOptions| {
        let recorder = Recorder::default();
        let (publisher, _) = Publisher::new();
        let agent = Agent::start(options, publisher, recorder.clone()).await;
        let agent = agent.unwrap_or_else(|error| panic!("{error}"));
        let status = agent.status().get();
        (agent, status, recorder.calls())
    };
    site.node.run(|| async {
        let mut without = options();
        let mut missing = without.ports[0].clone();
        missing.name = "b".into();
        missing.interface = "pod-b".into();
        missing.addresses = vec!["10.42.1.11".parse().unwrap()];
        without.ports.insert(0, missing);
        let (_, status, calls) = start(without).await;
        assert!(matches!(&status.ports[0].state, PortState::Down { reason } if reason.contains("does not exist")));
        assert_eq!(status.ports[1].state, PortState::Up);
        assert_eq!(calls, ["underlay eth1", "attach 2 pod-a", "admit 1 10.42.1.10"]);

        let mut without = options();
        without.underlay.name = "eth9".into();
        without.underlay.addresses = OwnAddresses::default();
        let (agent, status, calls) = start(without).await;
        let problem = status.underlay_problem.clone().unwrap();
        assert!(problem.contains("no such interface"), "{problem}");
        assert_eq!(calls, ["attach 1 pod-a", "admit 1 10.42.1.10"]);
        let mut watched = agent.status();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = tokio::spawn(agent.run(async { drop(stopped.await) }));
        site.node.ip("link set eth1 down");
        site.node.ip("link set eth1 name eth9");
        site.node.ip("link set eth9 up");
        while watched.get().underlay_problem.is_some() {
            assert!(watched.changed().await);
        }
        stop.send(()).unwrap();
        run.await.unwrap();
        site.node.ip("link set eth9 down");
        site.node.ip("link set eth9 name eth1");
        site.node.ip("link set eth1 up");

        let mut without = options();
        let fixed = Some(Ipv4Addr::new(192, 0, 2, 77));
        without.underlay.fixed.v4 = fixed;
        without.underlay.addresses.v4 = fixed;
        let (_, status, _) = start(without).await;
        let problem = status.underlay_problem.clone().unwrap();
        assert!(problem.contains("192.0.2.77"), "{problem}");
    });
}
