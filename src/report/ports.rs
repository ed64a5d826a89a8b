//! What each port has carried.

use serde_json::{Value, json};
use viaduct_fib::PortId;
use viaduct_router::{Attached, Carried, DropReason, PortTotals, Router, WorkerHealth};

use super::View;
use super::health;
use super::table::table;

pub(super) fn device(a: &Attached) -> Value {
    json!({
        "interface": a.interface, "ifindex": a.ifindex, "hook": if a.mode.is_some() { "xdp" } else { "tc" },
        "xdp": a.mode.map(|mode| format!("{mode:?}").to_lowercase()),
        "zero_copy": a.zero_copy, "queues": a.queues,
    })
}

fn port(router: &Router, health: &[WorkerHealth], id: PortId, mut report: Value) -> Value {
    // A port of a worker that does nothing is not up, whatever has been done for it.
    if report["state"] == "up"
        && let Some(problem) = health::port_problem(router, health, id)
    {
        report["state"] = "down".into();
        report["reason"] = problem.into();
    }
    let hooks = router.carried(id);
    counted(&mut report, router.port_totals(id), hooks);
    let sockets = router.socket_totals(id);
    let kernel = json!({
        "kernel_drops": sockets.rx_dropped + sockets.rx_ring_full + hooks.refused,
        "kernel": {
            "rx_dropped": sockets.rx_dropped, "rx_ring_full": sockets.rx_ring_full,
            "fill_ring_empty": sockets.fill_ring_empty, "invalid_descriptors": sockets.invalid_descriptors,
        },
        "device": router.attached(id).map(device),
    });
    extend(&mut report, kernel);
    report
}

/// Packets of workers, and of hooks.
fn counted(report: &mut Value, totals: PortTotals, hooks: Carried) {
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
        "hooks": {
            "rx_packets": hooks.rx_packets, "rx_bytes": hooks.rx_bytes,
            "tx_packets": hooks.tx_packets, "tx_bytes": hooks.tx_bytes, "refused": hooks.refused,
        },
        "originated": originated, "receive_frames": receive_frames, "punts": sum(&punts), "drops": sum(&drops),
    });
    extend(report, counts);
}

pub(super) fn extend(report: &mut Value, more: Value) {
    if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
        report.extend(more);
    }
}

pub(crate) fn ports(view: &View<'_>) -> Value {
    let router = view.router.lock();
    let problem = &view.agent.underlay_problem;
    let underlay = json!({
        "id": 0, "name": "underlay", "interface": view.config().underlay.interface,
        "state": if problem.is_none() { "up" } else { "down" }, "reason": problem,
    });
    let health = router.health();
    let mut list = vec![port(&router, &health, PortId::UNDERLAY, underlay)];
    for pod in &view.agent.ports {
        list.push(port(&router, &health, PortId(pod.id), json!(pod)));
    }
    // Ports that have gone for good, together: or the sums would not be those of all packets.
    let retired = router.retired_totals();
    let carried = router.retired_carried();
    if retired != PortTotals::default() || carried != Carried::default() {
        let mut gone = json!({ "name": "(gone)", "state": "gone" });
        counted(&mut gone, retired, carried);
        list.push(gone);
    }
    json!({ "ports": list })
}

pub(crate) fn ports_text(reply: &Value) -> String {
    table(
        reply.get("ports").unwrap_or(&Value::Null),
        &[
            ("PORT", "name"),
            ("INTERFACE", "interface"),
            ("STATE", "state"),
            ("HOOKS IN", "hooks.rx_packets"),
            ("HOOKS OUT", "hooks.tx_packets"),
            ("WORKERS IN", "rx_packets"),
            ("WORKERS OUT", "tx_packets"),
            ("PUNTED", "punts"),
            ("DROPPED", "drops"),
            ("KERNEL", "kernel_drops"),
            ("ADDRESSES", "addresses"),
            ("REASON", "reason"),
        ],
    )
}
