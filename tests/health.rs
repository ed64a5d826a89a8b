//! Workers that hang and workers that panic: who notices, and what comes of it.

mod common;

use common::{Daemon, Pair, Setup, Testbed, vtep_mac, wait_for};
use serde_json::Value;

fn state(router: &Daemon, name: &str) -> Value {
    let ports = router.ask("ports");
    let ports = ports["ports"].as_array().expect("ports");
    let port = ports.iter().find(|port| port["name"] == name);
    port.expect("the port").clone()
}

#[test]
fn a_router_whose_worker_hangs_is_not_ready_and_says_so() {
    let pair = Pair::new(&Setup::default());
    let router = &pair.routers[0];
    let status = router.ask("status");
    assert_eq!(
        (&status["ready"], &status["problems"]),
        (&true.into(), &serde_json::json!([]))
    );
    assert_eq!(status["workers"][0]["state"], "alive");
    assert_eq!(state(router, "veth-web")["state"], "up");
    let stuck = router.stick("worker-0");
    wait_for("the router not to be ready", || {
        router.ask("status")["ready"] == false
    });
    let status = router.ask("status");
    let worker = &status["workers"][0];
    assert_eq!(worker["state"], "silent");
    assert!(worker["heartbeat_age_ms"].as_u64() >= Some(500), "{worker}");
    let problem = status["problems"][0]["text"].as_str().expect("a problem");
    assert!(
        problem.starts_with("worker 0 has shown no life for"),
        "{problem}"
    );
    for name in ["veth-web", "underlay"] {
        let port = state(router, name);
        assert_eq!(port["state"], "down", "{port}");
        assert!(port["reason"].as_str().expect("why").contains("worker 0"));
    }
    drop(stuck);
    wait_for("the router to be ready", || {
        router.ask("status")["ready"] == true
    });
    assert_eq!(state(router, "veth-web")["state"], "up");
}

/// Releases have no way to provoke it.
#[cfg(debug_assertions)]
#[test]
fn a_worker_that_panics_ends_the_process_and_connections_outlive_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut pair = Pair::new(&Setup {
        environment: &[(
            "VIADUCT_TEST_PANIC",
            folder.path().to_str().expect("a path"),
        )],
        ..Setup::default()
    });
    let streams = pair.streams();
    pair.goes_on_by_worker(&streams);
    let file = folder.path().join(&pair.routers[0].name);
    std::fs::write(file, "0").expect("the file");
    assert_eq!(pair.routers[0].ended(), Some(1));
    let log = pair.routers[0].log();
    assert!(log.contains("provoked by a test"), "with its place: {log}");
    assert!(
        log.contains("worker 0 has panicked: provoked by a test"),
        "{log}"
    );
    pair.goes_on_alone(&streams);
    pair.routers[0].start();
    pair.goes_on_by_worker(&streams);
}

/// A pod goes and comes while its worker hangs: once the worker goes on, the pod is up by itself.
#[test]
fn a_port_that_a_hanging_worker_holds_comes_back_by_itself() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let (web, app) = (bed.pod(&a, "web", 2), bed.pod(&a, "app", 3));
    let router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let add = format!(
        "port add --interface veth-app --address {} --address {}",
        app.v4(),
        app.v6()
    );
    let command = |words: &str| {
        let (did, said) = router.command(words);
        assert!(did, "{said}");
    };
    command(&add);
    assert_eq!(app.namespace.ping(&web.v4(), 3, 56), 3);
    let stuck = router.stick("worker-0");
    // More often than messages have room: some cannot even be sent.
    for _ in 0..20 {
        command("port del veth-app");
        command(&add);
    }
    let port = state(&router, "veth-app");
    assert_eq!(port["state"], "down", "{port}");
    let reason = port["reason"].as_str().expect("why");
    assert!(
        reason.contains("has not given back its sockets on veth-app"),
        "{reason}"
    );
    drop(stuck);
    wait_for("the port to be up", || {
        state(&router, "veth-app")["state"] == "up"
    });
    let before = router.port("veth-app", "rx_packets");
    for address in [web.v4(), web.v6()] {
        wait_for("the pod", || app.namespace.ping(&address, 1, 56) == 1);
        assert_eq!(app.namespace.ping(&address, 3, 56), 3, "{address}");
    }
    assert!(
        router.port("veth-app", "rx_packets") >= before + 6,
        "by the worker"
    );
    router.assert_whole();
}

#[test]
fn a_router_whose_worker_hangs_can_be_stopped() {
    let mut pair = Pair::new(&Setup::default());
    let stuck = pair.routers[0].stick("worker-0");
    wait_for("the worker to be silent", || {
        pair.routers[0].ask("status")["ready"] == false
    });
    pair.routers[0].signal("-TERM");
    // A thread under a debugger does not end before the debugger lets it.
    wait_for("the control side to let go", || {
        pair.routers[0].log().contains("stopping")
    });
    drop(stuck);
    assert_eq!(pair.routers[0].ended(), Some(0));
}
