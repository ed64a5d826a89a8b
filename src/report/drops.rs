//! Dropped packets, by port and reason: by the workers, by the kernel in front of their sockets, by
//! the XDP programs.

use serde_json::{Value, json};
use viaduct_fib::PortId;
use viaduct_router::{Outcomes, SocketTotals};

use super::View;
use super::table::table;

const TRUNK_FULL: &str = "The port had its share of the places in front of the workers: they take its packets more slowly than it sends.";

/// The port of rows that are of all ports together.
const ALL: &str = "(all)";

/// Rows of `port`, `fate`, `reason`, `packets` and `meaning`. Fates: a worker dropped the packets
/// (`dropped`) or left them to the kernel (`punted`); the kernel dropped them in front of a worker's
/// socket (`kernel`), mostly for the reason that is counted as `cause`; a hook dropped them (`xdp`, whether it is in XDP
/// or in tc; `hook`, of a single port).
pub(crate) fn drops(view: &View<'_>) -> Value {
    let router = view.router.lock();
    let mut names = vec![(PortId::UNDERLAY, "underlay".to_owned())];
    names.extend(
        view.agent
            .ports
            .iter()
            .map(|p| (PortId(p.id), p.name.clone())),
    );
    let mut list = Vec::new();
    let present = names
        .iter()
        .map(|(id, name)| (name.clone(), router.port_totals(*id)));
    let gone = ("(gone)".to_owned(), router.retired_totals());
    for (name, totals) in present.chain([gone]) {
        for (fate, counts) in [("dropped", totals.drops), ("punted", totals.punts)] {
            list.extend(counts.into_iter().map(|(reason, packets)| {
                row(&name, fate, reason.label(), packets, reason.sentence())
            }));
        }
    }
    for (id, name) in names {
        let refused = router.carried(id).refused;
        if refused > 0 {
            list.push(row(&name, "hook", "trunk-full", refused, TRUNK_FULL));
        }
        let counts = of_sockets(router.socket_totals(id)).into_iter();
        let counts = counts.filter(|(_, _, packets, _)| *packets > 0);
        list.extend(counts.map(|(fate, reason, n, meaning)| row(&name, fate, reason, n, meaning)));
    }
    let outcomes = of_xdp(router.outcomes()).into_iter();
    let outcomes = outcomes.filter(|(_, packets, _)| *packets > 0);
    list.extend(outcomes.map(|(reason, packets, text)| row(ALL, "xdp", reason, packets, text)));
    json!({ "drops": list })
}

fn row(port: &str, fate: &str, reason: &str, packets: u64, meaning: &str) -> Value {
    json!({ "port": port, "fate": fate, "reason": reason, "packets": packets, "meaning": meaning })
}

/// What the kernel says of a port's sockets.
fn of_sockets(totals: SocketTotals) -> [(&'static str, &'static str, u64, &'static str); 4] {
    let SocketTotals {
        rx_dropped,
        rx_ring_full,
        fill_ring_empty,
        invalid_descriptors,
    } = totals;
    [
        (
            "kernel",
            "rx-dropped",
            rx_dropped,
            "The kernel had no free frame for the packet, or the packet was larger than a frame.",
        ),
        (
            "kernel",
            "rx-ring-full",
            rx_ring_full,
            "The worker had not yet taken what had come before: the receive ring was full.",
        ),
        (
            "cause",
            "fill-ring-empty",
            fill_ring_empty,
            "How often the kernel found the fill ring without a frame: a cause of rx-dropped.",
        ),
        (
            "kernel",
            "invalid-descriptors",
            invalid_descriptors,
            "The kernel refused a descriptor of this router: please report it.",
        ),
    ]
}

/// What the XDP programs dropped; what they pass to the kernel is no drop.
fn of_xdp(outcomes: Outcomes) -> [(&'static str, u64, &'static str); 9] {
    // A new outcome has to be named here or said to be no drop.
    let Outcomes {
        redirected: _,
        passed: _,
        stale: _,
        closed,
        spoofed,
        unknown_vtep,
        tunnel_from_pod,
        no_slow_path,
        multicast,
        vlan_tagged,
        malformed,
        // The kernel drops it, and counts it at the interface.
        foreign_mac: _,
        port_gone,
    } = outcomes;
    [
        (
            "closed",
            closed,
            "No worker was alive, and slow_path.on_exit = \"fail-closed\" keeps packets from the kernel.",
        ),
        (
            "spoofed",
            spoofed,
            "A pod's packet to the kernel had a MAC or source address that is not the pod's.",
        ),
        (
            "unknown-vtep",
            unknown_vtep,
            "A tunnel packet's inner source address does not belong to the node that sent it.",
        ),
        (
            "tunnel-from-pod",
            tunnel_from_pod,
            "A pod sent a packet to the tunnels' UDP port of a node.",
        ),
        (
            "no-slow-path",
            no_slow_path,
            "Only workers carry this network, and the packet was not one for them.",
        ),
        (
            "multicast",
            multicast,
            "A pod sent a multicast or broadcast packet that is not neighbour discovery.",
        ),
        ("vlan-tagged", vlan_tagged, "The frame had a VLAN tag."),
        (
            "port-gone",
            port_gone,
            "A worker sent the packet to a port that had gone in the meantime.",
        ),
        (
            "malformed",
            malformed,
            "A tunnel packet had neither IPv4 nor IPv6 inside, or an incomplete header.",
        ),
    ]
}

pub(crate) fn drops_text(reply: &Value) -> String {
    let drops = reply.get("drops").unwrap_or(&Value::Null);
    if drops.as_array().is_none_or(Vec::is_empty) {
        return "nothing was dropped\n".to_owned();
    }
    table(
        drops,
        &[
            ("PORT", "port"),
            ("PACKETS", "packets"),
            ("FATE", "fate"),
            ("REASON", "reason"),
            ("MEANING", "meaning"),
        ],
    )
}
