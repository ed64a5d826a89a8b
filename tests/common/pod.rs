//! Nodes, and pods as a CNI plugin would connect them.

use super::Namespace;

pub struct Node {
    pub n: u8,
    pub queues: u8,
    pub namespace: Namespace,
    pub switch: Namespace,
    pub switch_port: String,
}

impl Node {
    /// Connects `eth0` to the switch.
    pub fn plug(&self) {
        let (host, n, q) = (&self.namespace, self.n, self.queues);
        host.run(&format!(
            "ip link add eth0 numrxqueues {q} numtxqueues {q} type veth \
             peer name u{n} numrxqueues {q} numtxqueues {q} netns {}",
            self.switch.name
        ));
        self.switch
            .run(&format!("ip link set {} master br0 up", self.switch_port));
        host.run(&format!("ip address add 192.0.2.{n}/24 dev eth0"));
        host.run(&format!("ip address add fd00:99::{n}/64 dev eth0 nodad"));
        host.run("ip link set eth0 up");
    }

    /// Packets that the kernel has given to AF_XDP at one receive queue.
    pub fn redirected(&self, interface: &str, queue: u8) -> u64 {
        let counters = self.namespace.run(&format!("ethtool -S {interface}"));
        let name = format!("rx_queue_{queue}_xdp_redirect:");
        let value = counters
            .lines()
            .find_map(|l| l.trim().strip_prefix(&name))
            .unwrap_or_else(|| panic!("no {name} in {counters}"));
        value.trim().parse().expect("a number")
    }
}

pub struct Pod {
    pub namespace: Namespace,
    pub interface: String,
    pub n: u8,
    pub host: u8,
    /// Of both ends of its veth pair.
    pub queues: u8,
    /// With a /24 and a /64, and gateways in them; else with single addresses.
    pub classic: bool,
}

impl Pod {
    pub fn v4(&self) -> String {
        format!("10.244.{}.{}", self.n, self.host)
    }

    pub fn v6(&self) -> String {
        format!("fd00:10:244:{}::{}", self.n, self.host)
    }

    /// Makes the veth pair between node and pod, as a CNI plugin would; the host's routes and the
    /// pod's gateway are the router's.
    pub fn plug(&self, node: &Node) {
        let (veth, q) = (&self.interface, self.queues);
        let host = &node.namespace;
        host.run(&format!(
            "ip link add {veth} mtu 1450 numrxqueues {q} numtxqueues {q} type veth \
             peer name eth0 mtu 1450 numrxqueues {q} numtxqueues {q} netns {}",
            self.namespace.name
        ));
        host.run(&format!("ip link set {veth} up"));
        let pod = &self.namespace;
        pod.run("ip link set eth0 up");
        if self.classic {
            let net = format!("10.244.{}", self.n);
            let net6 = format!("fd00:10:244:{}", self.n);
            pod.run(&format!("ip address add {}/24 dev eth0", self.v4()));
            pod.run(&format!("ip address add {}/64 dev eth0 nodad", self.v6()));
            pod.run(&format!("ip route add default via {net}.1"));
            pod.run(&format!("ip -6 route add default via {net6}::1"));
            return;
        }
        pod.run(&format!("ip address add {}/32 dev eth0", self.v4()));
        pod.run(&format!("ip address add {}/128 dev eth0 nodad", self.v6()));
        pod.run("ip route add 169.254.1.1 dev eth0 scope link");
        pod.run("ip route add default via 169.254.1.1");
        pod.run("ip -6 route add default via fe80::1 dev eth0");
    }

    /// What the router does for a pod, for a node without one.
    pub fn route_by_hand(&self, node: &Node) {
        let (veth, n) = (&self.interface, node.n);
        let host = &node.namespace;
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        host.run(&format!("ip address add 169.254.1.1/32 dev {veth}"));
        host.run(&format!("ip address add fe80::1/64 dev {veth} nodad"));
        host.run(&format!(
            "ip route add {}/32 dev {veth} src 192.0.2.{n}",
            self.v4()
        ));
        host.run(&format!("ip -6 route add {}/128 dev {veth}", self.v6()));
    }
}
