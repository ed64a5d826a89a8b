//! What our own nftables table has.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::guard::{self, PodMacs};
use super::nodes::Nodes;
use super::plan;
use super::table::{self, Table};
use crate::options::{AgentOptions, NetworkOptions};

/// The whole table. The rules here are for flows that the kernel translates, and for tunnels'
/// packets as the kernel sees them:
///
/// - Packets between pods are not tracked. The kernel sees only those that the workers leave it,
///   and would call what it sees of a connection invalid.
/// - Tunnels' own packets are not tracked, in and out: each flow of a pod would be a connection
///   of the host's, without an answer.
/// - What enters the tunnel with a source outside the cluster, and what was translated (a service,
///   a host port) between pods, gets the node's own overlay address. So the answer comes back to
///   this node's kernel, which can undo the translation, and not to a worker.
/// - Pods' packets to the outside get the node's address, if asked for.
/// - Forged packets ([`guard`]).
pub(super) fn table(
    options: &AgentOptions,
    macs: &PodMacs,
    nodes: &Nodes,
    network: &NetworkOptions,
    devices: &[&str],
    masquerade: bool,
) -> Table {
    let quoted: Vec<String> = devices.iter().map(|name| format!("\"{name}\"")).collect();
    let device = format!("{{ {} }}", quoted.join(", "));
    let mut untracked = String::new();
    let mut translated = String::new();
    let mut outside = String::new();
    for own in plan::own_addresses(network) {
        let v4 = own.is_ipv4();
        let family = if v4 { "ip" } else { "ip6" };
        let cluster = set(&network.cluster_prefixes, v4);
        let pods = set(&network.pod_prefixes, v4);
        let _ = writeln!(
            untracked,
            "    {family} saddr {cluster} {family} daddr {cluster} fib daddr type != local notrack"
        );
        let _ = writeln!(
            translated,
            "    oifname {device} {family} saddr != {cluster} snat {family} to {own}\n    \
             ct status dnat {family} saddr {cluster} {family} daddr {cluster} snat {family} to {own}"
        );
        if masquerade {
            let _ = writeln!(
                outside,
                "    {family} saddr {pods} {family} daddr != {cluster} oifname != {device} masquerade"
            );
        }
    }
    let port = network.udp_port;
    let node = options.slow_path.as_ref().map_or("", |path| &*path.node);
    let mut whole = Table::new(table::owner_comment(node));
    guard::fill(&mut whole, options, network, macs, nodes);
    whole.chains(&format!(
        "  chain untracked {{\n    type filter hook prerouting priority raw; policy accept;\n{untracked}    \
         udp dport {port} fib daddr type local notrack\n  }}\n  \
         chain untracked_out {{\n    type filter hook output priority raw; policy accept;\n    \
         udp dport {port} notrack\n  }}\n  \
         chain translated {{\n    type nat hook postrouting priority srcnat; policy accept;\n{translated}{outside}  }}\n"
    ));
    whole
}

fn set(prefixes: &[IpNet], v4: bool) -> String {
    let of_family = prefixes.iter().filter(|p| p.addr().is_ipv4() == v4);
    let all: Vec<String> = of_family.map(ToString::to_string).collect();
    format!("{{ {} }}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn every_family_has_its_rules() {
        let options = testing::options();
        let text = table(
            &options,
            &PodMacs::new(),
            &Nodes::of(&options.routes),
            &options.networks[0],
            &["viaduct.1"],
            true,
        )
        .script();
        for part in [
            "ip saddr { 10.42.0.0/16 } ip daddr { 10.42.0.0/16 } fib daddr type != local notrack",
            "snat ip to 10.42.1.0",
            "snat ip6 to fd00:42:1::",
            "ip saddr { 10.42.1.0/24 } ip daddr != { 10.42.0.0/16 } oifname != { \"viaduct.1\" } masquerade",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let without = table(
            &options,
            &PodMacs::new(),
            &Nodes::of(&options.routes),
            &options.networks[0],
            &["viaduct.1"],
            false,
        )
        .script();
        assert!(!without.contains("masquerade"));
    }
}
