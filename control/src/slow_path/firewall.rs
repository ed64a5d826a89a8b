//! Our own nftables table, and a look at what others' tables would do to the slow path.
//!
//! The `nft` command is the interface: one transaction a call, and its JSON is stable
//! (libnftables-json(5)).

use std::fmt::Write as _;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tracing::debug;

use super::guard::{self, PodMacs};
use super::plan;
use crate::options::{AgentOptions, NetworkOptions};

const TABLE: &str = "viaduct";

/// The table's whole text. Each rule is there for flows that the kernel translates:
///
/// - Packets between pods are not tracked. The kernel sees only those that the workers leave it,
///   and would call what it sees of a connection invalid.
/// - What enters the tunnel with a source outside the cluster, and what was translated (a service,
///   a host port) between pods, gets the node's own overlay address. So the answer comes back to
///   this node's kernel, which can undo the translation, and not to a worker.
/// - Pods' packets to the outside get the node's address, if asked for.
/// - Forged packets ([`guard`]).
pub(super) fn ruleset(
    options: &AgentOptions,
    macs: &PodMacs,
    network: &NetworkOptions,
    devices: &[&str],
    masquerade: bool,
) -> String {
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
    format!(
        "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{}  \
         chain untracked {{\n    type filter hook prerouting priority raw; policy accept;\n{untracked}  }}\n  \
         chain translated {{\n    type nat hook postrouting priority srcnat; policy accept;\n{translated}{outside}  }}\n}}\n",
        guard::chains(options, network, macs)
    )
}

fn set(prefixes: &[IpNet], v4: bool) -> String {
    let of_family = prefixes.iter().filter(|p| p.addr().is_ipv4() == v4);
    let all: Vec<String> = of_family.map(ToString::to_string).collect();
    format!("{{ {} }}", all.join(", "))
}

/// Runs `nft` with this input; what it printed, or what it complained of.
async fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let failed = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            "the nft command is missing; install nftables".to_owned()
        } else {
            format!("cannot run nft: {error}")
        }
    };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(complaint.lines().next().unwrap_or("nft failed").to_owned())
}

/// Tells that some firewall table has changed: nothing is read of what the kernel says but that
/// it says something (`NFNLGRP_NFTABLES`, `linux/netfilter/nfnetlink.h`).
pub(crate) struct Changes(TokioSocket);

impl Changes {
    /// Listens from now on, in the thread's network namespace.
    pub(crate) fn subscribe() -> io::Result<Self> {
        const NFNLGRP_NFTABLES: u32 = 7;
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self(socket))
    }

    /// Waits for the next change. Lost messages are changes, too.
    pub(crate) async fn next(&mut self) {
        if let Err(error) = self.0.recv_from_full().await {
            debug!(%error, "messages of the firewall were lost");
            // Whatever is wrong with the socket, it must not keep the agent busy.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The table as the kernel has it, counters apart; none if there is none.
pub(super) async fn list() -> Option<String> {
    nft(&["-s", "list", "table", "inet", TABLE], "").await.ok()
}

/// Replaces the table, in one step.
pub(super) async fn apply(ruleset: &str) -> Result<(), String> {
    nft(&["-f", "-"], ruleset).await.map(drop)
}

/// Removes the table; no error if it is not there.
pub(super) async fn remove() -> Result<(), String> {
    let both = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    nft(&["-f", "-"], &both).await.map(drop)
}

/// What in others' tables would stop packets between pods on the kernel's path.
pub(super) async fn obstacles() -> Vec<String> {
    let Ok(text) = nft(&["-j", "list", "ruleset"], "").await else {
        return Vec::new();
    };
    serde_json::from_str(&text).map_or_else(|_| Vec::new(), |all| find_obstacles(&all))
}

fn find_obstacles(ruleset: &Value) -> Vec<String> {
    let empty = Vec::new();
    let items = ruleset["nftables"].as_array().unwrap_or(&empty);
    let name = |of: &Value, chain: &str| {
        let text = |key: &str| of[key].as_str().unwrap_or("?").to_owned();
        format!("{} {} {}", text("family"), text("table"), text(chain))
    };
    let mut obstacles = Vec::new();
    for chain in items.iter().map(|item| &item["chain"]) {
        if chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != TABLE {
            obstacles.push(format!(
                "firewall chain {} drops what it does not accept (policy drop): accept what comes from and \
                 goes to pods there",
                name(chain, "name")
            ));
        }
    }
    for rule in items.iter().map(|item| &item["rule"]) {
        let empty = Vec::new();
        let parts = rule["expr"].as_array().unwrap_or(&empty);
        let drops = parts.iter().any(|part| {
            let part = part.as_object();
            part.is_some_and(|part| part.contains_key("drop") || part.contains_key("reject"))
        });
        let about_invalid = parts.iter().any(|part| {
            let matched = &part["match"];
            matched["left"]["ct"]["key"] == "state"
                && matched["right"].to_string().contains("invalid")
        });
        if drops && about_invalid && rule["table"] != TABLE {
            obstacles.push(format!(
                "firewall chain {} drops invalid connections: harmless between pods, which are not tracked, \
                 as long as the table inet {TABLE} stands",
                name(rule, "chain")
            ));
        }
    }
    obstacles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn every_family_has_its_rules() {
        let options = testing::options();
        let text = ruleset(
            &options,
            &PodMacs::new(),
            &options.networks[0],
            &["viaduct.1"],
            true,
        );
        for part in [
            "ip saddr { 10.42.0.0/16 } ip daddr { 10.42.0.0/16 } fib daddr type != local notrack",
            "snat ip to 10.42.1.0",
            "snat ip6 to fd00:42:1::",
            "ip saddr { 10.42.1.0/24 } ip daddr != { 10.42.0.0/16 } oifname != { \"viaduct.1\" } masquerade",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let without = ruleset(
            &options,
            &PodMacs::new(),
            &options.networks[0],
            &["viaduct.1"],
            false,
        );
        assert!(!without.contains("masquerade"));
    }

    #[test]
    fn foreign_policies_are_found() {
        let text = r#"{"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
            {"rule": {"family": "ip", "table": "filter", "chain": "KUBE-FORWARD", "expr": [
                {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}]}}]}"#;
        let found = find_obstacles(&serde_json::from_str(text).unwrap());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("ip filter FORWARD"));
        assert!(found[1].contains("ip filter KUBE-FORWARD"));
    }
}
