//! Rules against forged packets on the kernel's path, in the table that outlives the daemon.
//!
//! - What comes into a tunnel comes from a node that is known, with an inner source that is that
//!   node's. The kernel's VXLAN device checks neither.
//! - What a pod sends has one of its own addresses, and is no tunnel packet to a node.
//! - No pod, here or elsewhere, says how long tunnels' packets may be: routers of the underlay do.
//! - Pods of networks that the kernel does not carry send it nothing but neighbour discovery, and
//!   neighbour discovery stays on its link.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use viaduct_encap::MacAddr;

use super::nodes::{Nodes, node_set};
use super::table::Table;
use crate::options::{AgentOptions, NetworkOptions};

/// The MACs of pods, by interface, as far as they are known.
pub(crate) type PodMacs = BTreeMap<String, MacAddr>;

/// Where things are behind the outer UDP header's first bit: UDP 8 bytes, VXLAN 8 (the VNI in its
/// fifth to seventh), Ethernet 14, then IP (RFC 7348, section 5).
const VNI_BIT: u32 = 96;

/// Puts the rules, and what they look up, into the table. What changes with nodes and pods is in
/// sets; only another network, port or length of prefix is another chain.
pub(super) fn fill(
    table: &mut Table,
    options: &AgentOptions,
    network: &NetworkOptions,
    macs: &PodMacs,
    nodes: &Nodes,
) {
    tunnels(table, network, nodes);
    lengths(table, options);
    pods(table, options, macs, nodes);
    table.chains(&format!(
        "  chain guard {{\n    type filter hook prerouting priority raw - 10; policy accept;\n    \
         meta iifkind {{ \"vxlan\", \"tun\" }} jump lengths\n    \
         iifname vmap @ports\n    \
         udp dport {} fib daddr type local jump tunnels\n  }}\n",
        network.udp_port
    ));
}

/// Whether a table has the rules for a pod's interface.
pub(super) fn covers(table: &Table, interface: &str) -> bool {
    [true, false]
        .iter()
        .any(|&carried| table.has("ports", &port(interface, carried)))
}

/// An element of `ports`.
fn port(interface: &str, carried: bool) -> String {
    let chain = if carried { "pods" } else { "isolated" };
    format!("\"{interface}\" : jump {chain}")
}

/// The chain for what comes in a tunnel. Which inner sources are whose is in one set for each
/// family and length of prefix that is in use, with the node's address and the network's: a look-up
/// costs the same whatever there is, and a node more is an element more.
fn tunnels(table: &mut Table, network: &NetworkOptions, nodes: &Nodes) {
    let mut rules = String::new();
    for (name, set) in &nodes.origins {
        table.set(name, &set.declaration);
        table.share(name, set.sources.elements());
        rules += &set.rule;
    }
    table.chains(&format!(
        "  chain tunnels {{\n    @th,{VNI_BIT},24 != {} accept\n{rules}    counter drop\n  }}\n",
        network.vni.get()
    ));
}

/// Drops answers of the kind "too long for the way" (ICMP, ICMPv6) that quote a tunnel's packet. The
/// kernel believes them from anywhere, and workers follow the kernel. What is quoted stands behind 8
/// bytes of ICMP: an IPv4 header (protocol in byte 9), or an IPv6 header (next header in byte 6), and
/// the UDP destination port in the third byte behind it. An answer that hides that, by fragments,
/// options or extension headers, is dropped, too.
fn lengths(table: &mut Table, options: &AgentOptions) {
    const V4: &str = "icmp type destination-unreachable icmp code 4";
    const V6: &str = "icmpv6 type packet-too-big";
    let ports: BTreeSet<u16> = options.networks.iter().map(|n| n.udp_port).collect();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    table.chains(&format!(
        "  chain lengths {{\n    \
         {V4} ip frag-off & 0x3fff != 0 counter drop\n    \
         {V4} @th,64,8 != 0x45 counter drop\n    \
         {V4} @th,136,8 17 @th,240,16 {{ {ports} }} counter drop\n    \
         {V6} exthdr frag exists counter drop\n    \
         {V6} @th,112,8 {{ 0, 43, 44, 60 }} counter drop\n    \
         {V6} @th,112,8 17 @th,400,16 {{ {ports} }} counter drop\n  }}\n"
    ));
}

/// What belongs to which pod, and the chains that look it up.
fn pods(table: &mut Table, options: &AgentOptions, macs: &PodMacs, nodes: &Nodes) {
    table.map("ports", "type ifname : verdict");
    table.set("macs_known", "type ifname");
    table.set("pods_mac", "type ifname . ether_addr");
    table.set("pods_ip", "type ifname . ipv4_addr");
    table.set("pods_ip6", "type ifname . ipv6_addr");
    for pod in &options.ports {
        let (interface, carried) = (&pod.interface, pod.network == 0);
        table.put("ports", &port(interface, carried));
        for address in pod.addresses.iter().filter(|_| carried) {
            let set = if address.is_ipv4() {
                "pods_ip"
            } else {
                "pods_ip6"
            };
            table.put(set, &format!("\"{interface}\" . {address}"));
        }
    }
    for (interface, mac) in macs {
        table.put("macs_known", &format!("\"{interface}\""));
        table.put("pods_mac", &format!("\"{interface}\" . {mac}"));
    }
    let tunnels = no_tunnels(table, options, nodes);
    // Discovery has link-local sources, and none while an address is new (RFC 4861, 4862).
    table.chains(&format!(
        "{DISCOVERY}  chain othersip {{\n    counter drop\n  }}\n  \
         chain othersip6 {{\n    ip6 saddr != {{ ::, fe80::/10 }} counter drop\n    \
         jump discovery\n    \
         ip6 saddr fe80::/10 ip6 daddr fe80::/10 return\n    counter drop\n  }}\n  \
         chain pods {{\n    jump lengths\n{tunnels}{OWN_MACS}{NO_ROUTERS}    \
         meta nfproto ipv4 iifname . ip saddr != @pods_ip goto othersip\n    \
         meta nfproto ipv6 iifname . ip6 saddr != @pods_ip6 goto othersip6\n    \
         ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} counter drop\n    \
         ip6 daddr ff00::/8 jump discovery\n    \
         ip6 daddr ff00::/8 counter drop\n  }}\n  \
         chain isolated {{\n{OWN_MACS}    jump discovery\n    counter drop\n  }}\n"
    ));
}

/// Rules that drop what pods send to tunnels' ports of nodes, here and elsewhere.
fn no_tunnels(table: &mut Table, options: &AgentOptions, nodes: &Nodes) -> String {
    table.set("nodes_ip", "type ipv4_addr");
    table.set("nodes_ip6", "type ipv6_addr");
    table.share("nodes_ip", nodes.addresses.elements());
    table.share("nodes_ip6", nodes.addresses6.elements());
    for own in options.underlay.addresses.iter() {
        table.put(node_set(own), &own.to_string());
    }
    let ports: BTreeSet<u16> = options.networks.iter().map(|n| n.udp_port).collect();
    let mut tunnels = String::new();
    for port in ports {
        for to in [
            "ip daddr @nodes_ip",
            "ip6 daddr @nodes_ip6",
            "fib daddr type local",
        ] {
            let _ = writeln!(tunnels, "    udp dport {port} {to} counter drop");
        }
    }
    tunnels
}

/// Takes neighbour discovery, and returns for everything else. It stands right behind the IPv6
/// header, has made no hop, and is for this link: for a link-local address, or for the group that
/// RFC 4861 names for its type (sections 4.1, 4.3 and 4.4). With any other destination the kernel
/// would forward it, whatever is inside.
const DISCOVERY: &str = "  chain discovery {
    ip6 nexthdr != icmpv6 return
    ip6 hoplimit != 255 return
    ip6 daddr fe80::/10 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept
    ip6 daddr ff02::2 icmpv6 type nd-router-solicit accept
    ip6 daddr ff02::1:ff00:0/104 icmpv6 type nd-neighbor-solicit accept
    ip6 daddr ff02::1 icmpv6 type nd-neighbor-advert accept
  }
";

/// No pod is a router of its link.
const NO_ROUTERS: &str = "    icmpv6 type { nd-router-advert, nd-redirect } counter drop\n";

/// A pod whose MAC is known sends from no other.
const OWN_MACS: &str = "    iifname @macs_known iifname . ether saddr != @pods_mac counter drop\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn filled(options: &AgentOptions, macs: &PodMacs) -> String {
        let mut table = Table::new("node x".into());
        let nodes = Nodes::of(&options.routes);
        fill(&mut table, options, &options.networks[0], macs, &nodes);
        table.script()
    }

    #[test]
    fn each_node_has_its_sources_and_each_pod_its_addresses() {
        let options = testing::options();
        let macs = PodMacs::from([("pod-a".into(), testing::mac(0x10))]);
        let text = filled(&options, &macs);
        for part in [
            "pods_mac { \"pod-a\" . 02:00:00:00:00:10, }",
            "@th,224,16 0x0800 ip saddr . @th,336,32 & 0xffffff00 @origins4_4_24 accept",
            "origins4_4_24 { 192.0.2.2 . 0xa2a0200, }",
            "origins4_4_32 { 192.0.2.2 . 0xc0000202, }",
            "\"pod-a\" . 10.42.1.10",
            "\"pod-a\" . fd00:42:1::10",
            "nodes_ip { 192.0.2.1, 192.0.2.2, }",
            "udp dport 8472 ip daddr @nodes_ip counter drop",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_node_or_a_pod_more_is_elements_more() {
        let of = |options: &AgentOptions| {
            let mut table = Table::new(String::new());
            let nodes = Nodes::of(&options.routes);
            fill(
                &mut table,
                options,
                &options.networks[0],
                &PodMacs::new(),
                &nodes,
            );
            table
        };
        let mut options = testing::options();
        let before = of(&options);
        let mut route = options.routes[0].clone();
        route.vtep = "192.0.2.3".parse().unwrap();
        route.prefixes = vec!["10.42.3.0/24".parse().unwrap()];
        options.routes.push(route);
        options.ports.pop();
        let script = of(&options).script_from(&before).unwrap();
        let lines: Vec<_> = script.lines().collect();
        assert_eq!(
            lines,
            [
                "add element inet viaduct nodes_ip { 192.0.2.3, }",
                "add element inet viaduct origins4_4_24 { 192.0.2.3 . 0xa2a0300, }",
                "add element inet viaduct origins4_4_32 { 192.0.2.3 . 0xc0000203, }",
                "delete element inet viaduct pods_ip { \"pod-b\" . 10.42.1.11, }",
                "delete element inet viaduct ports { \"pod-b\" : jump pods, }",
            ]
        );
    }

    #[test]
    fn pods_of_other_networks_have_discovery_on_their_link_and_no_more() {
        let mut options = testing::options();
        options.networks.push(options.networks[0].clone());
        options.ports[1].network = 1;
        let text = filled(&options, &PodMacs::new());
        assert!(text.contains("\"pod-b\" : jump isolated"), "{text}");
        assert!(!text.contains("\"pod-b\" . "), "{text}");
        let isolated = text.split("chain isolated {").nth(1);
        let isolated = isolated.and_then(|rest| rest.split('}').next());
        let rules: Vec<&str> = isolated.expect(&text).lines().map(str::trim).collect();
        assert_eq!(
            rules,
            ["", OWN_MACS.trim(), "jump discovery", "counter drop", ""]
        );
        let discovery = text.split("chain discovery {").nth(1).expect(&text);
        let accepted = discovery.lines().filter(|line| line.ends_with("accept"));
        for rule in accepted.take(4) {
            let on_link = rule.contains("daddr fe80::/10") || rule.contains("daddr ff02::");
            assert!(on_link, "{rule}");
        }
    }
}
