//! Whether the router is ready, and what it is doing.

use std::fmt::Write;

use serde_json::{Value, json};
use viaduct_control::{AgentStatus, RouteState};
use viaduct_fib::PortId;

use super::View;
use super::health;
use super::ports::{device, extend};
use super::problems::problems;
use super::table::{WIDTH, field, table, titled, wrapped};

pub(crate) fn status(view: &View<'_>) -> Value {
    let problems = problems(view);
    let router = view.router.lock();
    let agent = &view.agent;
    let config = view.config();
    let totals = router.worker_totals();
    let health = router.health();
    let workers = totals.iter().zip(&health).enumerate().map(|(index, (w, health))| {
        let mut counts = json!({
            "worker": index, "turns": w.turns, "waits": w.waits, "rx_packets": w.rx_packets,
            "tx_packets": w.tx_packets, "handed_over": w.handed_over, "taken_over": w.taken_over,
            "frames": w.frames, "free_frames": w.free_frames, "ring_frames": w.ring_frames,
            "checksums_finished": w.checksums_finished, "staged": w.staged, "short_fills": w.short_fills,
            "icmp_errors": w.icmp_errors, "icmp_errors_withheld": w.icmp_errors_withheld,
        });
        extend(&mut counts, health::worker(health));
        counts
    });
    let outcomes = router.outcomes();
    json!({
        "node": config.node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": !problems.iter().any(|problem| problem.not_ready),
        "problems": problems,
        "underlay": {
            "interface": config.underlay.interface, "problem": agent.underlay_problem,
            "addresses": agent.underlay_addresses,
            "device": router.attached(PortId::UNDERLAY).map(device),
        },
        "networks": config.networks.iter().map(|n| json!({
            "name": n.name, "vni": n.vni, "port": n.port, "vtep_mac": n.vtep_mac.to_string(),
            "vtep_mac6": n.vtep_mac6.to_string(),
        })).collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
        "xdp": { "redirected": outcomes.redirected, "passed": outcomes.passed, "stale": outcomes.stale, "closed": outcomes.closed,
            "spoofed": outcomes.spoofed, "unknown_vtep": outcomes.unknown_vtep,
            "tunnel_from_pod": outcomes.tunnel_from_pod, "no_slow_path": outcomes.no_slow_path,
            "multicast": outcomes.multicast, "vlan_tagged": outcomes.vlan_tagged,
            "malformed": outcomes.malformed, "foreign_mac": outcomes.foreign_mac, "port_gone": outcomes.port_gone },
        "carried": router.carried_by_all(),
        "epoch": agent.epoch,
        "ports": agent.ports.len(),
        "routes": agent.routes.len(),
        "pod_mtu": pod_mtu(agent),
        "not_used": view.state.merged.not_used(),
        "slow_path": agent.slow_path,
    })
}

/// The longest packet of a pod, in bytes, that every way takes; none while there is no way.
fn pod_mtu(agent: &AgentStatus) -> Option<u16> {
    let ways = agent.routes.iter().filter_map(|route| match route.state {
        RouteState::Resolved { pod_mtu, .. } => Some(pod_mtu),
        RouteState::Unresolved { .. } => None,
    });
    ways.min()
}

pub(crate) fn status_text(reply: &Value) -> String {
    let mut out = verdict(reply);
    titled(
        &mut out,
        "node",
        &format!(
            "{}, viaduct {}",
            field(reply, "node"),
            field(reply, "version")
        ),
    );
    titled(&mut out, "underlay", &underlay_text(reply));
    titled(
        &mut out,
        "table",
        &format!(
            "{} ports, {} routes{}, epoch {}{}",
            field(reply, "ports"),
            field(reply, "routes"),
            match reply["pod_mtu"].as_u64() {
                None => String::new(),
                Some(mtu) => format!(" (all take packets of {mtu} bytes)"),
            },
            field(reply, "epoch"),
            match reply["not_used"].as_u64() {
                None | Some(0) => String::new(),
                Some(n) => format!("; {n} entries are not used (viaduct peers says why)"),
            },
        ),
    );
    titled(&mut out, "hooks", &hooks_text(reply));
    titled(&mut out, "kernel", &slow_path_text(reply));
    out.push('\n');
    let networks = reply.get("networks").unwrap_or(&Value::Null);
    out += &table(
        networks,
        &[
            ("NETWORK", "name"),
            ("VNI", "vni"),
            ("PORT", "port"),
            ("VTEP MAC", "vtep_mac"),
            ("OVER IPV6", "vtep_mac6"),
        ],
    );
    out.push('\n');
    out + &workers_text(reply.get("workers").unwrap_or(&Value::Null))
}

/// The first line, which has the first problem that keeps the router from being ready, and the others.
fn verdict(reply: &Value) -> String {
    let mut out = String::new();
    let mend = |out: &mut String, problem: &Value| {
        if problem["mend"].is_string() {
            titled(out, "", &format!("To mend it: {}", field(problem, "mend")));
        }
    };
    let problems = reply["problems"].as_array().map_or(&[][..], Vec::as_slice);
    let first = problems.iter().position(|p| p["not_ready"] == true);
    match first.map(|first| &problems[first]) {
        _ if reply["ready"] == true => out += "ready\n",
        None => out += "NOT READY\n",
        Some(first) => {
            for line in wrapped(&format!("NOT READY: {}", field(first, "text")), WIDTH) {
                let _ = writeln!(out, "{line}");
            }
            mend(&mut out, first);
        }
    }
    for (place, problem) in problems.iter().enumerate() {
        if Some(place) != first {
            titled(&mut out, "problem", &field(problem, "text"));
            mend(&mut out, problem);
        }
    }
    for note in reply["slow_path"]["notes"].as_array().into_iter().flatten() {
        titled(&mut out, "note", note.as_str().unwrap_or_default());
    }
    out.push('\n');
    out
}

fn underlay_text(reply: &Value) -> String {
    let interface = field(reply, "underlay.interface");
    if reply["underlay"]["device"].is_null() {
        return format!("{interface}, not attached");
    }
    if reply["underlay"]["device"]["hook"] == "tc" {
        let addresses = field(reply, "underlay.addresses");
        return format!("{interface} {addresses}, hook in tc");
    }
    let copy = match reply["underlay"]["device"]["zero_copy"].as_bool() {
        Some(true) => "zero-copy",
        _ => "copy mode",
    };
    format!(
        "{interface} {}, XDP {}, {} queue(s), {copy}",
        field(reply, "underlay.addresses"),
        field(reply, "underlay.device.xdp"),
        field(reply, "underlay.device.queues"),
    )
}

/// What hooks did with packets.
fn hooks_text(reply: &Value) -> String {
    let outcomes = reply["xdp"].as_object().into_iter().flatten();
    let dropped: u64 = outcomes
        .filter(|(name, _)| !["redirected", "passed", "stale"].contains(&&name[..]))
        .filter_map(|(_, count)| count.as_u64())
        .sum();
    format!(
        "{} packets carried, {} to workers, {} to the kernel, {} to it for want of a worker, {dropped} dropped{}",
        field(reply, "carried"),
        field(reply, "xdp.redirected"),
        field(reply, "xdp.passed"),
        field(reply, "xdp.stale"),
        if dropped == 0 { "" } else { " (viaduct drops)" },
    )
}

/// How the kernel stands by.
fn slow_path_text(reply: &Value) -> String {
    let path = &reply["slow_path"];
    let Some(device) = path["device"].as_str() else {
        return "carries no pods' packets (slow_path.enabled = false)".to_owned();
    };
    let whose = if path["adopted"] == true {
        "which was there before"
    } else {
        "made by viaduct"
    };
    let state = match path["problems"].as_array().map_or(0, Vec::len) {
        0 => "ready".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    format!("VXLAN device {device}, {whose}; {state}")
}

fn workers_text(workers: &Value) -> String {
    let carried = table(
        workers,
        &[
            ("WORKER", "worker"),
            ("TURNS", "turns"),
            ("SLEEPS", "waits"),
            ("RECEIVED", "rx_packets"),
            ("SENT", "tx_packets"),
            ("NOT CACHED", "staged"),
            ("HANDED OVER", "handed_over"),
            ("TAKEN OVER", "taken_over"),
        ],
    );
    let frames = table(
        workers,
        &[
            ("WORKER", "worker"),
            ("FRAMES", "frames"),
            ("FREE", "free_frames"),
            ("IN RINGS", "ring_frames"),
            ("SHORT FILLS", "short_fills"),
            ("ICMP ERRORS", "icmp_errors"),
            ("CHECKSUMS FINISHED", "checksums_finished"),
        ],
    );
    format!("{carried}\n{frames}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(ready: bool, problems: &Value) -> Value {
        json!({
            "node": "a", "version": "1", "ready": ready, "problems": problems,
            "underlay": { "interface": "eth0", "addresses": ["192.0.2.1"] }, "not_used": 0,
            "xdp": { "redirected": 1, "passed": 2, "stale": 3, "spoofed": 4, "malformed": 5 },
            "slow_path": { "device": "viaduct.1", "adopted": false, "problems": [] },
            "workers": [{ "worker": 0, "turns": u64::MAX / 2 }],
        })
    }

    #[test]
    fn the_first_line_says_whether_it_is_ready_and_why_not() {
        let text = status_text(&reply(true, &json!([])));
        assert!(
            text.starts_with("ready\n\nnode       a, viaduct 1\n"),
            "{text}"
        );
        let problems = json!([
            { "subject": "underlay", "text": "the underlay eth0 cannot be used: it is down", "mend": null, "not_ready": true },
            { "subject": "kernel", "text": "a rule ".repeat(40), "mend": "remove it", "not_ready": false },
        ]);
        let text = status_text(&reply(false, &problems));
        let first = text.lines().next();
        assert_eq!(
            first,
            Some("NOT READY: the underlay eth0 cannot be used: it is down")
        );
        assert!(text.contains("To mend it: remove it"), "{text}");
        assert!(text.contains("9 dropped"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
    }
}
