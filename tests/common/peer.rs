//! Nodes without a router: the kernel's own VXLAN device as a peer.

use super::{Namespace, Node, Pod, vtep_mac};

/// How a peer's VXLAN device is made.
#[derive(Clone, Copy, Default)]
pub struct Vxlan<'a> {
    /// The underlay's family.
    pub over_v6: bool,
    /// The device learns where MACs are; it is told only whom to flood.
    pub learning: bool,
    /// Further options of the device.
    pub options: &'a str,
}

impl Vxlan<'_> {
    pub fn device(self) -> &'static str {
        if self.over_v6 {
            "flannel-v6.1"
        } else {
            "flannel.1"
        }
    }
}

impl Node {
    /// Makes the kernel of this node carry its pod's packets from and to other nodes, as flannel
    /// does.
    pub fn be_kernel_peer(&self, pod: &Pod, peers: &[u8], vxlan: Vxlan<'_>) {
        pod.route_by_hand(self);
        let (host, n, device) = (&self.namespace, self.n, vxlan.device());
        let (net, mtu) = if vxlan.over_v6 {
            ("fd00:99::", 1430)
        } else {
            ("192.0.2.", 1450)
        };
        let learning = if vxlan.learning {
            "learning"
        } else {
            "nolearning"
        };
        host.run(&format!(
            "ip link add {device} address {} mtu {mtu} type vxlan id 1 dstport 8472 \
             local {net}{n} dev eth0 {learning} {}",
            vtep_mac(n),
            vxlan.options,
        ));
        host.run(&format!("ip address add 10.244.{n}.0/32 dev {device}"));
        host.run(&format!(
            "ip address add fd00:10:244:{n}::/128 dev {device} nodad"
        ));
        host.run(&format!("ip link set {device} up"));
        for &peer in peers {
            for (family, prefix, via) in [
                (
                    "-4",
                    format!("10.244.{peer}.0/24"),
                    format!("10.244.{peer}.0"),
                ),
                (
                    "-6",
                    format!("fd00:10:244:{peer}::/64"),
                    format!("fd00:10:244:{peer}::"),
                ),
            ] {
                host.run(&format!(
                    "ip {family} route add {prefix} via {via} dev {device} onlink"
                ));
                let mac = vtep_mac(peer);
                host.run(&format!(
                    "ip neighbour add {via} lladdr {mac} dev {device} nud permanent"
                ));
            }
            let mac = if vxlan.learning {
                "00:00:00:00:00:00".to_owned()
            } else {
                vtep_mac(peer)
            };
            host.run(&format!(
                "bridge fdb append {mac} dev {device} dst {net}{peer}"
            ));
        }
    }
}

impl Node {
    /// A count of UDP's in the node's kernel.
    pub fn udp_count(&self, name: &str) -> u64 {
        self.namespace.protocol_count("Udp", name)
    }
}

impl Namespace {
    /// A count of a protocol's in this namespace (proc(5), `net/snmp` and `net/netstat`).
    pub fn protocol_count(&self, protocol: &str, name: &str) -> u64 {
        let text = self.run("cat /proc/net/snmp /proc/net/netstat");
        let begin = format!("{protocol}: ");
        let mut rows = text.lines().filter(|line| line.starts_with(&begin));
        let (names, counts) = (rows.next().expect("names"), rows.next().expect("counts"));
        let mut all = names.split(' ').zip(counts.split(' '));
        let (_, count) = all.find(|(it, _)| *it == name).expect("such a count");
        count.parse().expect("a count")
    }

    /// Packets that a device has sent and received, as the kernel counts them; a merged one is one.
    pub fn device_packets(&self, device: &str) -> [u64; 2] {
        self.device_counts(device, "packets")
    }

    /// Bytes that a device has sent and received, as the kernel counts them.
    pub fn device_bytes(&self, device: &str) -> [u64; 2] {
        self.device_counts(device, "bytes")
    }

    fn device_counts(&self, device: &str, what: &str) -> [u64; 2] {
        let out = self.run(&format!("ip -j -s link show {device}"));
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        ["tx", "rx"].map(|way| all[0]["stats64"][way][what].as_u64().expect("a count"))
    }

    /// The MAC of a device.
    pub fn mac(&self, device: &str) -> String {
        let out = self.run(&format!("ip -j link show {device}"));
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        all[0]["address"].as_str().expect("a MAC").to_owned()
    }
}
