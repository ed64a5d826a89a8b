//! Rules against forged packets on the kernel's path, in the table that outlives the daemon.
//!
//! - What comes into a tunnel comes from a node that is known, with an inner source that is that
//!   node's. The kernel's VXLAN device checks neither.
//! - What a pod sends has one of its own addresses, and is no tunnel packet to a node.
//! - Pods of networks that the kernel does not carry send it nothing but neighbour discovery.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use viaduct_encap::MacAddr;

use crate::options::{AgentOptions, NetworkOptions};

/// The MACs of pods, by interface, as far as they are known.
pub(crate) type PodMacs = BTreeMap<String, MacAddr>;

/// Where things are behind the outer UDP header's first bit: UDP 8 bytes, VXLAN 8 (the VNI in its
/// fifth to seventh), Ethernet 14, then IP (RFC 7348, section 5).
const VNI_BIT: u32 = 96;
const ETHER_TYPE_BIT: u32 = 224;
const V4_SOURCE_BIT: u32 = (8 + 8 + 14 + 12) * 8;
const V6_SOURCE_BIT: u32 = (8 + 8 + 14 + 8) * 8;

/// The chains' text, to stand inside the table.
pub(super) fn chains(options: &AgentOptions, network: &NetworkOptions, macs: &PodMacs) -> String {
    let mut text = String::new();
    let origins = origins(options);
    for (index, sources) in origins.values().enumerate() {
        let _ = writeln!(text, "  chain from_node_{index} {{");
        for source in sources {
            let _ = writeln!(text, "    {} accept", inner_source(*source));
        }
        text += "    counter drop\n  }\n";
    }
    let _ = writeln!(
        text,
        "  chain tunnels {{\n    @th,{VNI_BIT},24 != {} accept",
        network.vni.get()
    );
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let nodes = origins.keys().enumerate();
        let nodes: Vec<String> = nodes
            .filter(|(_, vtep)| vtep.is_ipv4() == v4)
            .map(|(index, vtep)| format!("{vtep} : jump from_node_{index}"))
            .collect();
        if !nodes.is_empty() {
            let _ = writeln!(text, "    {family} saddr vmap {{ {} }}", nodes.join(", "));
        }
    }
    text += "    counter drop\n  }\n";
    pods(&mut text, options, macs);
    text += "  chain guard {\n    type filter hook prerouting priority raw - 10; policy accept;\n";
    if !options.ports.is_empty() {
        text += "    iifname vmap @ports\n";
    }
    let _ = writeln!(
        text,
        "    udp dport {} fib daddr type local jump tunnels\n  }}",
        network.udp_port
    );
    text
}

/// What each node may send into the first network: its pods' addresses and its own.
fn origins(options: &AgentOptions) -> BTreeMap<IpAddr, Vec<IpNet>> {
    let mut origins: BTreeMap<IpAddr, Vec<IpNet>> = BTreeMap::new();
    for route in options.routes.iter().filter(|route| route.network == 0) {
        let own = route.addresses.iter().chain([&route.vtep]);
        let all = route.prefixes.iter().copied().chain(own.map(|&a| a.into()));
        let sources = origins.entry(route.vtep).or_default();
        sources.extend(all);
    }
    for sources in origins.values_mut() {
        sources.sort_unstable();
        sources.dedup();
    }
    origins
}

/// Matches packets whose inner source lies in a prefix.
fn inner_source(source: IpNet) -> String {
    let bits = u32::from(source.prefix_len());
    let (ether_type, first, value) = match source {
        IpNet::V4(net) => (
            0x0800,
            V4_SOURCE_BIT,
            u128::from(u32::from(net.network())).checked_shr(32 - bits),
        ),
        IpNet::V6(net) => (
            0x86dd,
            V6_SOURCE_BIT,
            u128::from(net.network()).checked_shr(128 - bits),
        ),
    };
    let kind = format!("@th,{ETHER_TYPE_BIT},16 {ether_type:#06x}");
    match value {
        Some(value) if bits > 0 => format!("{kind} @th,{first},{bits} {value:#x}"),
        // Everything.
        _ => kind,
    }
}

/// A set of pods' interfaces, one of what belongs to whom, and the chains that use them.
fn pods(text: &mut String, options: &AgentOptions, macs: &PodMacs) {
    if options.ports.is_empty() {
        return;
    }
    let verdicts = options.ports.iter().map(|pod| {
        let chain = if pod.network == 0 {
            "pods"
        } else {
            "strangers"
        };
        format!("\"{}\" : jump {chain}", pod.interface)
    });
    let _ = writeln!(
        text,
        "  map ports {{\n    type ifname : verdict\n    elements = {{ {} }}\n  }}",
        verdicts.collect::<Vec<_>>().join(", ")
    );
    let mut checks = String::new();
    let known: Vec<String> = macs
        .iter()
        .map(|(interface, mac)| format!("\"{interface}\" . {mac}"))
        .collect();
    if !known.is_empty() {
        let interfaces: Vec<String> = macs.keys().map(|name| format!("\"{name}\"")).collect();
        let _ = writeln!(
            text,
            "  set pods_mac {{\n    type ifname . ether_addr\n    elements = {{ {} }}\n  }}",
            known.join(", ")
        );
        let _ = writeln!(
            checks,
            "    iifname {{ {} }} iifname . ether saddr != @pods_mac counter drop",
            interfaces.join(", ")
        );
    }
    for (family, kind, v4) in [("ip", "ipv4_addr", true), ("ip6", "ipv6_addr", false)] {
        let carried = options.ports.iter().filter(|pod| pod.network == 0);
        let own: Vec<String> = carried
            .flat_map(|pod| pod.addresses.iter().map(move |address| (pod, address)))
            .filter(|(_, address)| address.is_ipv4() == v4)
            .map(|(pod, address)| format!("\"{}\" . {address}", pod.interface))
            .collect();
        if own.is_empty() {
            let _ = writeln!(
                checks,
                "    meta nfproto {} goto others{family}",
                nfproto(v4)
            );
            continue;
        }
        let _ = writeln!(
            text,
            "  set pods_{family} {{\n    type ifname . {kind}\n    elements = {{ {} }}\n  }}",
            own.join(", ")
        );
        let _ = writeln!(
            checks,
            "    meta nfproto {} iifname . {family} saddr != @pods_{family} goto others{family}",
            nfproto(v4)
        );
    }
    let tunnels = no_tunnels(options);
    // Discovery has link-local sources, and none while an address is new (RFC 4861, 4862).
    let _ = write!(
        text,
        "  chain othersip {{\n    counter drop\n  }}\n  \
         chain othersip6 {{\n    ip6 saddr {{ ::, fe80::/64 }} icmpv6 type {{ {DISCOVERY} }} return\n    \
         ip6 saddr fe80::/64 ip6 daddr fe80::/64 return\n    counter drop\n  }}\n  \
         chain pods {{\n{tunnels}{checks}    \
         ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} counter drop\n    \
         ip6 daddr ff00::/8 icmpv6 type {{ {DISCOVERY} }} return\n    \
         ip6 daddr ff00::/8 counter drop\n  }}\n  \
         chain strangers {{\n    icmpv6 type {{ {DISCOVERY} }} return\n    counter drop\n  }}\n"
    );
}

/// Drops what pods send to tunnels' ports of nodes, here and elsewhere.
fn no_tunnels(options: &AgentOptions) -> String {
    let mut tunnels = String::new();
    let mut ports: Vec<u16> = options.networks.iter().map(|n| n.udp_port).collect();
    ports.sort_unstable();
    ports.dedup();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let mut nodes: Vec<IpAddr> = options.underlay.addresses.iter().collect();
        for route in &options.routes {
            nodes.push(route.vtep);
            nodes.extend(&route.addresses);
        }
        nodes.retain(|node| node.is_ipv4() == v4);
        nodes.sort_unstable();
        nodes.dedup();
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        for port in &ports {
            if !nodes.is_empty() {
                let _ = writeln!(
                    tunnels,
                    "    udp dport {port} {family} daddr {{ {} }} counter drop",
                    nodes.join(", ")
                );
            }
            if v4 {
                let _ = writeln!(
                    tunnels,
                    "    udp dport {port} fib daddr type local counter drop"
                );
            }
        }
    }
    tunnels
}

const DISCOVERY: &str =
    "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report";

fn nfproto(v4: bool) -> &'static str {
    if v4 { "ipv4" } else { "ipv6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn inner_sources_are_matched_by_the_bits_of_their_prefix() {
        for (source, expected) in [
            ("10.244.2.0/24", "@th,224,16 0x0800 @th,336,24 0xaf402"),
            ("192.0.2.2/32", "@th,224,16 0x0800 @th,336,32 0xc0000202"),
            (
                "fd00:10:244:2::/64",
                "@th,224,16 0x86dd @th,304,64 0xfd00001002440002",
            ),
            ("0.0.0.0/0", "@th,224,16 0x0800"),
            ("::/0", "@th,224,16 0x86dd"),
        ] {
            assert_eq!(inner_source(source.parse().unwrap()), expected);
        }
    }

    #[test]
    fn each_node_has_its_sources_and_each_pod_its_addresses() {
        let options = testing::options();
        let macs = PodMacs::from([("pod-a".into(), testing::mac(0x10))]);
        let text = chains(&options, &options.networks[0], &macs);
        for part in [
            "\"pod-a\" . 02:00:00:00:00:10",
            "192.0.2.2 : jump from_node_0",
            "@th,336,24 0xa2a02 accept",
            "@th,336,32 0xc0000202 accept",
            "\"pod-a\" . 10.42.1.10",
            "\"pod-a\" . fd00:42:1::10",
            "udp dport 8472 ip daddr { 192.0.2.1, 192.0.2.2 } counter drop",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn pods_of_other_networks_are_strangers_to_the_kernel() {
        let mut options = testing::options();
        options.networks.push(options.networks[0].clone());
        options.ports[1].network = 1;
        let text = chains(&options, &options.networks[0], &PodMacs::new());
        assert!(text.contains("\"pod-b\" : jump strangers"), "{text}");
        assert!(!text.contains("\"pod-b\" . "), "{text}");
    }
}
