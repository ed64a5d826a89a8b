//! Three network namespaces: pods, the node under measurement, and the far end of its underlay.
//!
//! All of a node's pods are interfaces of one namespace, since the generator takes turns among interfaces.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::ensure;
use viaduct_encap::MacAddr;
use viaduct_pktgen::Namespace;

use crate::host::{Host, Hosts};
use crate::node::{Local, Node, Remote, Vtep};

/// Pods that a node may have here.
pub(crate) const MOST_PODS: u32 = 110;
/// Prefixes of other nodes' pods that there may be: of 10.0.0.0/8, below 10.244.0.0.
pub(crate) const MOST_ROUTES: u32 = 62_000;
/// Other nodes; prefixes take turns among them.
pub(crate) const MOST_NODES: u32 = 100;
/// Bytes of IP packet that a pod may send.
pub(crate) const POD_MTU: u32 = 1450;
/// The node's interface to others.
pub(crate) const UNDERLAY: &str = "eth0";
/// VXLAN's network and port, as flannel has them.
pub(crate) const VNI: u32 = 1;
pub(crate) const VXLAN_PORT: u16 = 8472;

/// The underlay addresses of the node and of the `n`th other node.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(crate) fn far(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(NODE) + 1 + n)
}

/// The underlay MACs of the node and of all others.
pub(crate) const NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const FAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// The VTEPs' MACs.
pub(crate) const VTEP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
pub(crate) fn far_vtep_mac(n: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, byte(n)])
}

pub(crate) const NODE_VTEP: Vtep = Vtep {
    address: NODE,
    underlay_mac: NODE_MAC,
    mac: VTEP_MAC,
};
pub(crate) fn far_vtep(n: u32) -> Vtep {
    Vtep {
        address: far(n),
        underlay_mac: FAR_MAC,
        mac: far_vtep_mac(n),
    }
}

/// The MAC of the node's end of all pods' interfaces.
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 4]);

fn byte(n: u32) -> u8 {
    u8::try_from(n % 256).unwrap_or(0)
}

/// The /24 of the node's pods.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);

/// The `n`th prefix of other nodes' pods is this /24.
pub(crate) fn prefix(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n * 256)
}

/// The first address that is sent to in a prefix.
pub(crate) fn far_pod(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix(n)) + 2)
}

/// One of the node's pods.
#[derive(Clone, Copy)]
pub(crate) struct Pod(pub(crate) u32);

impl Pod {
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(PODS) + 2 + self.0)
    }
    /// Its interface, in the pods' namespace.
    pub(crate) fn interface(self) -> String {
        format!("p{}", self.0)
    }
    /// The other end, at the node.
    pub(crate) fn host_interface(self) -> String {
        format!("h{}", self.0)
    }
    pub(crate) fn mac(self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 3, byte(self.0)])
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) pods: u32,
    /// Prefixes of other nodes.
    pub(crate) routes: u32,
}

impl Shape {
    pub(crate) fn nodes(self) -> u32 {
        self.routes.min(MOST_NODES)
    }
    pub(crate) fn pods(self) -> impl Iterator<Item = Pod> {
        (0..self.pods).map(Pod)
    }
    /// By other node: its prefixes' numbers.
    pub(crate) fn prefixes_of(self, node: u32) -> impl Iterator<Item = u32> {
        (node..self.routes).step_by(self.nodes() as usize)
    }
}

/// The three namespaces, removed when this is dropped.
pub(crate) struct Bed {
    pub(crate) shape: Shape,
    pub(crate) host: Host,
    pods: Host,
    far: Host,
    pub(crate) hosts: Hosts,
}

impl Bed {
    pub(crate) fn new(shape: Shape) -> anyhow::Result<Self> {
        ensure!(
            (1..=MOST_PODS).contains(&shape.pods),
            "{} pods: 1 to {MOST_PODS} are possible",
            shape.pods
        );
        ensure!(
            (1..=MOST_ROUTES).contains(&shape.routes),
            "{} routes: 1 to {MOST_ROUTES} are possible",
            shape.routes
        );
        let mut hosts = Hosts::new()?;
        let bed = Self {
            shape,
            pods: hosts.add("pods")?,
            host: hosts.add("node")?,
            far: hosts.add("far")?,
            hosts,
        };
        bed.connect()?;
        Ok(bed)
    }

    pub(crate) fn pods(&self) -> Namespace {
        self.pods.namespace()
    }
    pub(crate) fn node(&self) -> Namespace {
        self.host.namespace()
    }
    pub(crate) fn far(&self) -> Namespace {
        self.far.namespace()
    }

    /// The node as systems set it up.
    pub(crate) fn as_node(&self) -> Node {
        let pods = self.shape.pods().map(|pod| Local {
            address: pod.address(),
            mac: pod.mac(),
            interface: pod.host_interface(),
        });
        let others = (0..self.shape.nodes()).map(|n| Remote {
            vtep: far_vtep(n),
            prefixes: self.shape.prefixes_of(n).map(prefix).collect(),
        });
        Node {
            host: self.host.clone(),
            name: self.hosts.id.clone(),
            folder: self.hosts.folder.path().to_owned(),
            vtep: NODE_VTEP,
            prefix: PODS,
            pods: pods.collect(),
            others: others.collect(),
        }
    }

    fn connect(&self) -> anyhow::Result<()> {
        let (pods, far_name) = (&self.pods.name, &self.far.name);
        let mut lines = format!(
            "link set lo up\n\
             link add {UNDERLAY} address {NODE_MAC} type veth peer name {UNDERLAY} address {FAR_MAC} netns {far_name}\n\
             address add {NODE}/16 dev {UNDERLAY}\n\
             link set {UNDERLAY} up\n"
        );
        for pod in self.shape.pods() {
            let (host, interface) = (pod.host_interface(), pod.interface());
            writeln!(
                lines,
                "link add {host} address {GATEWAY_MAC} mtu {POD_MTU} type veth peer name {interface} address {} mtu {POD_MTU} netns {pods}\n\
                 link set {host} up",
                pod.mac(),
            )?;
        }
        for n in 0..self.shape.nodes() {
            writeln!(
                lines,
                "neighbour add {} lladdr {FAR_MAC} dev {UNDERLAY} nud permanent",
                far(n)
            )?;
        }
        self.host.batch("ip", &lines)?;
        let mut lines = String::new();
        for pod in self.shape.pods() {
            let interface = pod.interface();
            writeln!(
                lines,
                "address add {}/32 dev {interface}\nlink set {interface} up",
                pod.address()
            )?;
        }
        self.pods.batch("ip", &lines)?;
        let lines = format!(
            "address add {}/16 dev {UNDERLAY}\nlink set {UNDERLAY} up\n",
            far(0)
        );
        self.far.batch("ip", &lines)?;
        // Frames that XDP sends enter a veth only so, unless an XDP program is at its end.
        self.host.run(&format!("ethtool -K {UNDERLAY} gro on"))?;
        self.far.run(&format!("ethtool -K {UNDERLAY} gro on"))?;
        for pod in self.shape.pods() {
            self.pods
                .run(&format!("ethtool -K {} gro on", pod.interface()))?;
        }
        Ok(())
    }
}
