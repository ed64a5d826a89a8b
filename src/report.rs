//! What `status`, `ports`, `routes` and `drops` say, as JSON and for people.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use viaduct_config::Config;
use viaduct_control::AgentStatus;
use viaduct_fib::PortId;
use viaduct_router::{Attached, DropReason, PortTotals, Router};

use crate::plane::SharedRouter;

/// What is reported of, at one moment.
pub(crate) struct View<'a> {
    pub(crate) config: &'a Config,
    pub(crate) router: &'a SharedRouter,
    pub(crate) agent: Arc<AgentStatus>,
}

pub(crate) fn status(view: &View<'_>) -> Value {
    let router = view.router.lock();
    let agent = &view.agent;
    let totals = router.worker_totals();
    let workers = totals.iter().enumerate().map(|(index, w)| {
        json!({
            "worker": index, "turns": w.turns, "waits": w.waits, "rx_packets": w.rx_packets,
            "tx_packets": w.tx_packets, "handed_over": w.handed_over, "taken_over": w.taken_over,
            "frames": w.frames, "free_frames": w.free_frames, "ring_frames": w.ring_frames,
            "checksums_finished": w.checksums_finished, "staged": w.staged, "short_fills": w.short_fills,
            "icmp_errors": w.icmp_errors, "icmp_errors_withheld": w.icmp_errors_withheld,
        })
    });
    let outcomes = router.outcomes();
    json!({
        "node": view.config.node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": agent.underlay_problem.is_none(),
        "underlay": { "problem": agent.underlay_problem, "addresses": agent.underlay_addresses, "device": router.attached(PortId::UNDERLAY).map(device) },
        "networks": view.config.networks.iter().map(|n| json!({
            "name": n.name, "vni": n.vni, "port": n.port, "vtep_mac": n.vtep_mac.to_string(),
        })).collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
        "xdp": { "redirected": outcomes.redirected, "passed": outcomes.passed, "stale": outcomes.stale, "closed": outcomes.closed,
            "spoofed": outcomes.spoofed, "unknown_vtep": outcomes.unknown_vtep,
            "tunnel_from_pod": outcomes.tunnel_from_pod, "no_slow_path": outcomes.no_slow_path,
            "multicast": outcomes.multicast, "vlan_tagged": outcomes.vlan_tagged,
            "malformed": outcomes.malformed },
        "epoch": agent.epoch,
        "ports": agent.ports.len(),
        "routes": agent.routes.len(),
        "slow_path": agent.slow_path,
    })
}

fn device(a: &Attached) -> Value {
    json!({
        "interface": a.interface, "ifindex": a.ifindex, "xdp": format!("{:?}", a.mode).to_lowercase(),
        "zero_copy": a.zero_copy, "queues": a.queues,
    })
}

fn port(router: &Router, id: PortId, mut report: Value) -> Value {
    counted(&mut report, router.port_totals(id));
    let sockets = router.socket_totals(id);
    let kernel = json!({
        "kernel_drops": sockets.rx_dropped + sockets.rx_ring_full,
        "kernel": {
            "rx_dropped": sockets.rx_dropped, "rx_ring_full": sockets.rx_ring_full,
            "fill_ring_empty": sockets.fill_ring_empty, "invalid_descriptors": sockets.invalid_descriptors,
        },
        "device": router.attached(id).map(device),
    });
    extend(&mut report, kernel);
    report
}

fn counted(report: &mut Value, totals: PortTotals) {
    let PortTotals {
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
        originated,
        receive_frames,
        punts,
        drops,
    } = totals;
    let sum = |of: &[(DropReason, u64)]| of.iter().map(|(_, n)| n).sum::<u64>();
    let counts = json!({
        "rx_packets": rx_packets, "rx_bytes": rx_bytes, "tx_packets": tx_packets, "tx_bytes": tx_bytes,
        "originated": originated, "receive_frames": receive_frames, "punts": sum(&punts), "drops": sum(&drops),
    });
    extend(report, counts);
}

fn extend(report: &mut Value, more: Value) {
    if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
        report.extend(more);
    }
}

pub(crate) fn ports(view: &View<'_>) -> Value {
    let router = view.router.lock();
    let problem = &view.agent.underlay_problem;
    let underlay = json!({
        "id": 0, "name": "underlay", "interface": view.config.underlay.interface,
        "state": if problem.is_none() { "up" } else { "down" }, "reason": problem,
    });
    let mut list = vec![port(&router, PortId::UNDERLAY, underlay)];
    for pod in &view.agent.ports {
        list.push(port(&router, PortId(pod.id), json!(pod)));
    }
    // Ports that have gone for good, together: or the sums would not be those of all packets.
    let retired = router.retired_totals();
    if retired != PortTotals::default() {
        let mut gone = json!({ "name": "(gone)", "state": "gone" });
        counted(&mut gone, retired);
        list.push(gone);
    }
    json!({ "ports": list })
}

pub(crate) fn routes(view: &View<'_>) -> Value {
    json!({ "routes": view.agent.routes })
}

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
        .into_iter()
        .map(|(id, name)| (name, router.port_totals(id)));
    let gone = ("(gone)".to_owned(), router.retired_totals());
    for (name, totals) in present.chain([gone]) {
        for (fate, counts) in [("dropped", totals.drops), ("punted", totals.punts)] {
            list.extend(counts.into_iter().map(|(reason, packets)| {
                json!({ "port": name, "fate": fate, "reason": reason.label(), "packets": packets, "meaning": reason.sentence() })
            }));
        }
    }
    json!({ "drops": list })
}

/// A field for people: text without quotes, nothing for null.
fn field(of: &Value, name: &str) -> String {
    match of.pointer(&format!("/{}", name.replace('.', "/"))) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => "-".into(),
        Some(Value::Array(items)) => {
            let plain = |item: &Value| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            };
            items.iter().map(plain).collect::<Vec<_>>().join(" ")
        }
        Some(other) => other.to_string(),
    }
}

fn table(rows: &Value, columns: &[(&str, &str)]) -> String {
    let empty = Vec::new();
    let rows = rows.as_array().unwrap_or(&empty);
    let mut cells = vec![
        columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect::<Vec<_>>(),
    ];
    cells.extend(
        rows.iter()
            .map(|row| columns.iter().map(|(_, name)| field(row, name)).collect()),
    );
    let width = |column: usize| {
        cells
            .iter()
            .filter_map(|r| r.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &cells {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, w)| format!("{cell:w$}"))
            .collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

/// How the kernel stands by.
fn slow_path_text(reply: &Value) -> String {
    let path = &reply["slow_path"];
    let Some(device) = path["device"].as_str() else {
        return "no path beside the workers (slow_path.enabled)".to_owned();
    };
    let whose = if path["adopted"] == true {
        "adopted"
    } else {
        "made here"
    };
    let state = match path["problems"].as_array().map_or(0, Vec::len) {
        0 => "ready".to_owned(),
        n => format!("{n} problem(s)"),
    };
    format!("{device}, {whose}; {state}")
}

pub(crate) fn status_text(reply: &Value) -> String {
    let mut out = String::new();
    let line = |out: &mut String, title: &str, text: String| {
        let _ = writeln!(out, "{title:10} {text}");
    };
    line(&mut out, "node", field(reply, "node"));
    line(
        &mut out,
        "underlay",
        format!(
            "{} {}, XDP {}, {} queue(s), zero-copy {}",
            field(reply, "underlay.device.interface"),
            field(reply, "underlay.addresses"),
            field(reply, "underlay.device.xdp"),
            field(reply, "underlay.device.queues"),
            field(reply, "underlay.device.zero_copy"),
        ),
    );
    line(
        &mut out,
        "table",
        format!(
            "{} ports, {} routes, epoch {}; not used of what nodes say: {}",
            field(reply, "ports"),
            field(reply, "routes"),
            field(reply, "epoch"),
            field(reply, "not_used"),
        ),
    );
    line(
        &mut out,
        "pinholes",
        format!(
            "{} to workers, {} to the kernel, {} to the kernel for want of a heartbeat",
            field(reply, "xdp.redirected"),
            field(reply, "xdp.passed"),
            field(reply, "xdp.stale"),
        ),
    );
    line(
        &mut out,
        "refused",
        format!(
            "{} with a source not the pod's, {} not the node's, {} tunnel packets from pods, {} of networks without a kernel's path, {} to many, {} with a VLAN tag, {} malformed",
            field(reply, "xdp.spoofed"),
            field(reply, "xdp.unknown_vtep"),
            field(reply, "xdp.tunnel_from_pod"),
            field(reply, "xdp.no_slow_path"),
            field(reply, "xdp.multicast"),
            field(reply, "xdp.vlan_tagged"),
            field(reply, "xdp.malformed"),
        ),
    );
    line(&mut out, "kernel", slow_path_text(reply));
    for problem in reply["slow_path"]["problems"]
        .as_array()
        .into_iter()
        .flatten()
    {
        line(
            &mut out,
            "  problem",
            problem.as_str().unwrap_or_default().to_owned(),
        );
    }
    let networks = reply.get("networks").unwrap_or(&Value::Null);
    out += &table(
        networks,
        &[
            ("NETWORK", "name"),
            ("VNI", "vni"),
            ("PORT", "port"),
            ("VTEP MAC", "vtep_mac"),
        ],
    );
    let workers = reply.get("workers").unwrap_or(&Value::Null);
    out += &table(
        workers,
        &[
            ("WORKER", "worker"),
            ("TURNS", "turns"),
            ("SLEEPS", "waits"),
            ("RECEIVED", "rx_packets"),
            ("SENT", "tx_packets"),
            ("HANDED OVER", "handed_over"),
            ("TAKEN OVER", "taken_over"),
            ("FRAMES", "frames"),
            ("FREE", "free_frames"),
            ("IN RINGS", "ring_frames"),
            ("SHORT FILLS", "short_fills"),
            ("ICMP ERRORS", "icmp_errors"),
            ("CHECKSUMS FINISHED", "checksums_finished"),
            ("NOT FROM FLOW CACHE", "staged"),
        ],
    );
    out
}

pub(crate) fn ports_text(reply: &Value) -> String {
    table(
        reply.get("ports").unwrap_or(&Value::Null),
        &[
            ("PORT", "name"),
            ("INTERFACE", "interface"),
            ("STATE", "state"),
            ("RECEIVED", "rx_packets"),
            ("SENT", "tx_packets"),
            ("PUNTED", "punts"),
            ("DROPPED", "drops"),
            ("KERNEL DROPS", "kernel_drops"),
            ("XDP", "device.xdp"),
            ("ADDRESSES", "addresses"),
            ("REASON", "reason"),
        ],
    )
}

pub(crate) fn routes_text(reply: &Value) -> String {
    let mut routes = reply.get("routes").cloned().unwrap_or_default();
    for route in routes.as_array_mut().into_iter().flatten() {
        // One word for each of several: what belongs together stands at the same place.
        for (column, field) in [
            ("next_hop", "address"),
            ("mac", "mac"),
            ("weight", "weight"),
        ] {
            let hops = route["next_hops"].as_array().into_iter().flatten();
            let values: Vec<Value> = hops.map(|hop| hop[field].clone()).collect();
            route[column] = values.into();
        }
    }
    let mut text = String::new();
    for own in reply["own"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "{} of network {} is this node's own.",
            field(own, "prefix"),
            field(own, "network")
        );
    }
    text += &table(
        &routes,
        &[
            ("NETWORK", "network"),
            ("PREFIX", "prefix"),
            ("VTEP", "vtep"),
            ("STATE", "state"),
            ("SOURCE", "source"),
            ("NODE", "node"),
            ("KNOWN FOR S", "known_for_s"),
            ("NEXT HOP", "next_hop"),
            ("MAC", "mac"),
            ("WEIGHT", "weight"),
            ("REASON", "reason"),
        ],
    );
    if reply["not_used"]
        .as_array()
        .is_some_and(|all| !all.is_empty())
    {
        text += "\nNot used:\n";
        text += &table(
            &reply["not_used"],
            &[("NODE", "node"), ("PREFIX", "what"), ("WHY", "why")],
        );
    }
    text
}

pub(crate) fn drops_text(reply: &Value) -> String {
    table(
        reply.get("drops").unwrap_or(&Value::Null),
        &[
            ("PORT", "port"),
            ("PACKETS", "packets"),
            ("FATE", "fate"),
            ("REASON", "reason"),
            ("MEANING", "meaning"),
        ],
    )
}

pub(crate) fn peers_text(reply: &Value) -> String {
    let nodes = table(
        reply.get("peers").unwrap_or(&Value::Null),
        &[
            ("NODE", "node"),
            ("STATE", "state"),
            ("ADDRESS", "address"),
            ("PREFIXES", "prefixes"),
            ("KNOWN FOR S", "known_for_s"),
        ],
    );
    let mut text = nodes;
    let unused = reply["unused"].as_array().map_or(0, Vec::len);
    if unused > 0 {
        text += "\nNot used of what they say:\n";
        text += &table(
            &reply["unused"],
            &[("NODE", "node"), ("WHAT", "what"), ("WHY", "why")],
        );
    }
    if let Some(address) = reply["yielded_to"].as_str() {
        let _ = writeln!(
            text,
            "\nThe node at {address} has this node's name: this one says nothing."
        );
    }
    let counts = reply["refused"].as_object().into_iter().flatten();
    let counts: Vec<_> = counts.map(|(why, n)| format!("{why} {n}")).collect();
    if !counts.is_empty() {
        let _ = writeln!(
            text,
            "\nDatagrams that were not taken: {}",
            counts.join(", ")
        );
    }
    text
}

pub(crate) fn keys_text(reply: &Value) -> String {
    table(
        reply.get("keys").unwrap_or(&Value::Null),
        &[("KEY", "id"), ("USED", "used"), ("HEARD S AGO", "heard_s")],
    )
}
