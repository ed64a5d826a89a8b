//! What the unit tests share: a node's options, and a data plane that only notes what it is asked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use proptest::prelude::{Strategy, any};
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{NetworkId, PortId, Reader};

use crate::data_plane::{DataPlane, DataPlaneError, PodSide};
use crate::kernel::{InterfaceAddress, LinkInfo, Neighbour, NeighbourState, RouteTo};
use crate::observe::{ObservedPath, ObservedPort, ObservedUnderlay, ObservedVtep};
use crate::options::{
    AgentOptions, NetworkOptions, OwnAddresses, PortOptions, RouteOptions, UnderlayOptions,
};

/// The other node.
pub(crate) const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The underlay interface's number.
pub(crate) const UNDERLAY: u32 = 2;

pub(crate) const fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// One network, two pods (`a` with two addresses, `b` with one), one other node.
pub(crate) fn options() -> AgentOptions {
    let prefixes = |all: &[&str]| all.iter().map(|p| p.parse().unwrap()).collect();
    let port = |name: &str, addresses: &[&str]| PortOptions {
        name: name.into(),
        interface: format!("pod-{name}"),
        network: 0,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mac: None,
        limits: viaduct_fib::Limits::default(),
        sockets: true,
        binding: crate::binding::Binding::Name,
    };
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
            vtep_macs: VtepMacs::both(mac(0xa1)),
            udp_checksum6: false,
            dscp: viaduct_encap::ecn::Dscp::default(),
            pod_prefixes: prefixes(&["10.42.1.0/24", "fd00:42:1::/64"]),
            cluster_prefixes: prefixes(&["10.42.0.0/16", "fd00:42::/32"]),
        }],
        ports: vec![
            port("a", &["10.42.1.10", "fd00:42:1::10"]),
            port("b", &["10.42.1.11"]),
        ],
        routes: vec![RouteOptions {
            network: 0,
            prefixes: prefixes(&["10.42.2.0/24", "fd00:42:2::/64"]),
            addresses: Vec::new(),
            vtep: VTEP.into(),
            udp_checksum6: false,
            vtep_mac: mac(0xa2),
        }],
        peers: Vec::new(),
        gossip_port: None,
        max_mtu: 9000,
        keep_ports: false,
        slow_path: None,
    }
}

/// The way to the n-th node of the documentation's network, with its prefix.
pub(crate) fn route(n: u8) -> RouteOptions {
    RouteOptions {
        network: 0,
        prefixes: vec![IpNet::new([10, 42, n, 0].into(), 24).unwrap()],
        addresses: Vec::new(),
        vtep: IpAddr::from([192, 0, 2, n]),
        udp_checksum6: false,
        vtep_mac: mac(n),
    }
}

/// Lists of routes that differ in little, and contradict each other now and then.
pub(crate) fn route_lists() -> impl Strategy<Value = Vec<RouteOptions>> {
    const PREFIXES: [&str; 5] = [
        "10.42.2.0/24",
        "10.42.2.0/25",
        "10.42.3.0/24",
        "fd00:42:2::/64",
        "fd00:42:3::/64",
    ];
    let prefixes = proptest::sample::subsequence(PREFIXES.to_vec(), 0..3);
    let one = (2_u8..6, 0_u8..20, any::<bool>(), prefixes, 0_usize..9);
    let one = one.prop_map(|(n, other_mac, six, prefixes, network)| {
        let mut route = route(n);
        route
            .prefixes
            .extend(prefixes.iter().map(|it| it.parse::<IpNet>().unwrap()));
        if other_mac == 0 {
            route.vtep_mac = mac(2);
        }
        if six {
            route.addresses = vec![IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, n.into()])];
        }
        route.network = usize::from(network == 8);
        route
    });
    proptest::collection::vec(one, 0..6)
}

pub(crate) fn link(index: u32, name: &str) -> LinkInfo {
    LinkInfo {
        index,
        name: name.into(),
        mac: Some(mac(0xe0)),
        mtu: 1500,
        up: true,
        kind: Some("veth".into()),
        num_rx_queues: 2,
        num_tx_queues: 2,
        xdp: None,
        peer: None,
    }
}

pub(crate) fn underlay() -> ObservedUnderlay {
    ObservedUnderlay {
        link: Some(link(UNDERLAY, "eth1")),
        addresses: on_underlay(&["192.0.2.1/24"]),
    }
}

/// These addresses, on the underlay.
pub(crate) fn on_underlay(all: &[&str]) -> Vec<InterfaceAddress> {
    let one = |address: &&str| InterfaceAddress {
        interface: UNDERLAY,
        address: address.parse().unwrap(),
        flags: 0,
        protocol: None,
    };
    all.iter().map(one).collect()
}

/// Pod `a`, or the interface that has taken its place.
pub(crate) fn pod(index: u32) -> ObservedPort {
    ObservedPort {
        link: Some(link(index, "pod-a")),
        mac: Some(mac(0x10)),
        own_xdp: false,
    }
}

pub(crate) fn no_pod() -> ObservedPort {
    ObservedPort {
        link: None,
        mac: None,
        own_xdp: false,
    }
}

/// The other node on the underlay's own network, its neighbour entry in this state.
pub(crate) fn vtep(state: NeighbourState, mac: MacAddr) -> ObservedVtep {
    ObservedVtep {
        paths: vec![path(None, state, mac)],
        interfaces: vec![UNDERLAY],
        mtu: None,
    }
}

/// A way by the underlay, its first hop's neighbour entry in this state.
pub(crate) fn path(gateway: Option<IpAddr>, state: NeighbourState, mac: MacAddr) -> ObservedPath {
    ObservedPath {
        route: RouteTo {
            interface: UNDERLAY,
            gateway,
            weight: 1,
        },
        name: None,
        neighbour: Some(Neighbour {
            mac: Some(mac),
            state,
        }),
    }
}

/// What is asked of the data plane, and what is to fail; shared with the test.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    calls: Vec<String>,
    failing: Option<String>,
    /// Whether the underlay has other queues than it was attached with.
    other_queues: bool,
}

impl Log {
    /// What has been asked since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    /// From now on the call that is noted so fails; none: all succeed.
    pub(crate) fn fail(&self, call: Option<&str>) {
        self.0.lock().unwrap().failing = call.map(Into::into);
    }

    /// From now on, until it is attached again, the underlay has other queues.
    pub(crate) fn other_queues(&self) {
        self.0.lock().unwrap().other_queues = true;
    }

    fn note(&self, call: String) -> Result<(), DataPlaneError> {
        let mut log = self.0.lock().unwrap();
        let failing = log.failing.as_ref() == Some(&call);
        log.calls.push(call);
        if failing {
            return Err(DataPlaneError::new("told to fail"));
        }
        Ok(())
    }
}

/// Notes what it is asked, and refuses what would break the order of change.
pub(crate) struct Recorder {
    pub(crate) log: Log,
    pub(crate) reader: Reader,
    /// What was noted of the node's addresses last.
    pub(crate) own: String,
}

impl Recorder {
    fn published(&self, address: IpAddr) -> bool {
        self.reader.load().local(NetworkId(0), address).is_some()
    }
}

impl DataPlane for Recorder {
    fn attach_underlay(&mut self, link: &LinkInfo) -> Result<(), DataPlaneError> {
        self.log.note(format!("underlay {}", link.index))?;
        self.log.0.lock().unwrap().other_queues = false;
        Ok(())
    }

    fn detach_underlay(&mut self) -> Result<(), DataPlaneError> {
        self.log.note("no underlay".into())
    }

    fn underlay_fits(&self) -> bool {
        !self.log.0.lock().unwrap().other_queues
    }

    fn set_own_addresses(&mut self, addresses: OwnAddresses) -> Result<(), DataPlaneError> {
        let all: Vec<_> = addresses.iter().map(|own| own.to_string()).collect();
        let call = format!("own {}", all.join(" "));
        // As a data plane does, nothing if they are the same.
        let before = std::mem::replace(&mut self.own, call.clone());
        if before == call {
            return Ok(());
        }
        self.log.note(call)
    }

    fn forget_port(&mut self, _: PortId) {}

    fn set_port_mac(&mut self, id: PortId, mac: MacAddr) -> Result<(), DataPlaneError> {
        self.log.note(format!("mac {} {mac}", id.0))
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
        assert!(
            self.reader.load().port(id).is_some(),
            "attached before published"
        );
        self.log.note(format!("attach {} {}", id.0, link.index))
    }

    fn detach_port(&mut self, id: PortId) -> Result<(), DataPlaneError> {
        self.log.note(format!("detach {}", id.0))
    }

    fn admit_pod(&mut self, _: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        assert!(self.published(address), "admitted before published");
        self.log.note(format!("admit {address}"))
    }

    fn expel_pod(&mut self, _: Vni, address: IpAddr) -> Result<(), DataPlaneError> {
        assert!(self.published(address), "withdrawn before expelled");
        self.log.note(format!("expel {address}"))
    }

    fn set_host_addresses(&mut self, _: &[IpAddr]) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn quiesce(&mut self) {
        self.log.note("quiesce".into()).unwrap();
    }
}
