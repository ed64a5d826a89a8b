//! Never dark: what happens to connections when a router dies, hangs, stops and comes back.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{Daemon, Hooks, Pair, Setup, Stream, wait_for};

#[test]
fn connections_outlive_a_killed_router_and_its_successor() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    pair.goes_on_by_worker(&streams);
    let programs = |pair: &Pair| {
        let pins = pair.bed.pins();
        let mut ids = Vec::new();
        for folder in std::fs::read_dir(pins).expect("pins").flatten() {
            for pin in std::fs::read_dir(folder.path()).expect("pins").flatten() {
                let mut bpftool = std::process::Command::new("bpftool");
                bpftool
                    .args(["-j", "link", "show", "pinned"])
                    .arg(pin.path());
                let link: serde_json::Value =
                    serde_json::from_str(&common::must(&mut bpftool)).expect("JSON");
                ids.push((link["id"].clone(), link["prog_id"].clone()));
            }
        }
        ids.sort_by_key(|(id, _)| id.as_u64());
        ids
    };
    let before = programs(&pair);
    // In tc the kernel's VXLAN device has a hook, too.
    let each = if Hooks::usual() == Hooks::Xdp { 2 } else { 3 };
    assert_eq!(
        before.len(),
        2 * each,
        "two nodes, an underlay and a pod each"
    );
    pair.routers[0].kill();
    pair.goes_on_alone(&streams);
    pair.routers[0].start();
    pair.goes_on_by_worker(&streams);
    let after = programs(&pair);
    let ids = |all: &[(serde_json::Value, serde_json::Value)]| -> Vec<u64> {
        all.iter().filter_map(|(id, _)| id.as_u64()).collect()
    };
    assert_eq!(
        ids(&before),
        ids(&after),
        "no link was taken off its device"
    );
    assert_ne!(before, after, "the successor's programs are in them");
}

#[test]
fn connections_outlive_a_router_that_hangs() {
    let pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    pair.goes_on_by_worker(&streams);
    pair.routers[0].signal("-STOP");
    pair.goes_on_alone(&streams);
    pair.routers[0].signal("-CONT");
    pair.goes_on_by_worker(&streams);
    // What hooks carry on has its count with the rest of theirs.
    if Hooks::usual() != Hooks::Settled {
        assert!(pair.routers[0].ask("status")["xdp"]["stale"].as_u64() > Some(20));
    }
}

#[test]
fn connections_outlive_a_worker_that_is_stuck() {
    let pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    pair.goes_on_by_worker(&streams);
    let stuck = pair.routers[0].stick("worker-0");
    pair.goes_on_alone(&streams);
    drop(stuck);
    pair.goes_on_by_worker(&streams);
    // What hooks carry on has its count with the rest of theirs.
    if Hooks::usual() != Hooks::Settled {
        assert!(pair.routers[0].ask("status")["xdp"]["stale"].as_u64() > Some(20));
    }
}

#[test]
fn connections_outlive_a_clean_stop_and_a_start() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    pair.goes_on_by_worker(&streams);
    pair.routers[0].stop();
    pair.goes_on_alone(&streams);
    pair.routers[0].start();
    pair.goes_on_by_worker(&streams);
}

#[test]
fn fail_closed_lets_nothing_pass() {
    let mut pair = Pair::new(&Setup {
        slow_path: "on_exit = \"fail-closed\"",
        ..Setup::default()
    });
    let passes = |pair: &Pair, from: usize| {
        let [a, b] = [&pair.pods[from], &pair.pods[1 - from]];
        let pinged = |address: &str| a.namespace.ping(address, 3, 56);
        [pinged(&b.v4()), pinged(&b.v6())]
    };
    assert_eq!(passes(&pair, 0), [3, 3]);
    let kernel = pair.by_kernel();
    for end in ["kill", "stop"] {
        if end == "kill" {
            pair.routers[0].kill();
        } else {
            pair.routers[0].stop();
        }
        assert_eq!(passes(&pair, 0), [0, 0], "from the pod, after a {end}");
        assert_eq!(passes(&pair, 1), [0, 0], "to the pod, after a {end}");
        let node = &pair.nodes[0].namespace;
        assert_eq!(node.ping(&pair.pods[0].v4(), 3, 56), 3, "from its node");
        pair.routers[0].start();
        assert_eq!(passes(&pair, 0), [3, 3], "again, after a {end}");
    }
    assert_eq!(pair.by_kernel(), kernel, "nothing took the kernel's path");
    pair.routers[0].signal("-STOP");
    wait_for("its heartbeat to be stale", || passes(&pair, 0) == [0, 0]);
    assert_eq!(passes(&pair, 0), [0, 0], "while it hangs");
    pair.routers[0].signal("-CONT");
    wait_for("the worker's return", || passes(&pair, 0) == [3, 3]);
    pair.routers[0].stop();
    pair.routers[0].cleanup();
    assert!(!pair.nodes[0].namespace.run("ip link").contains("xdp"));
}

/// Datagrams lost while the first node's router ends (`end`) and is started again.
fn lost_in_a_cycle(pair: &mut Pair, stream: &Stream, end: fn(&mut Daemon)) -> u64 {
    stream.goes_on();
    let before = stream.lost();
    end(&mut pair.routers[0]);
    sleep(Duration::from_secs(1));
    stream.goes_on();
    pair.routers[0].start();
    sleep(Duration::from_secs(1));
    stream.goes_on();
    stream.lost() - before
}

/// Nothing is dropped of what comes to the node and leaves it, however often its router is stopped and started: hooks stay
/// where they are meanwhile.
#[test]
fn clean_restarts_drop_nothing() {
    let mut pair = Pair::new(&Setup::default());
    let [web, far] = &pair.pods;
    let streams = [
        far.udp_stream(web, &web.v4(), 5005, 2_000),
        web.udp_stream(far, &far.v6(), 5006, 2_000),
    ];
    let lost = |streams: &[Stream; 2]| streams.each_ref().map(Stream::lost);
    let go_on = |streams: &[Stream; 2]| {
        for stream in streams {
            stream.goes_on();
        }
    };
    let before = lost(&streams);
    for round in 0..10 {
        pair.routers[0].stop();
        go_on(&streams);
        pair.routers[0].start();
        go_on(&streams);
        let router = &pair.routers[0];
        assert_eq!(router.ask("status")["xdp"]["unknown_vtep"], 0, "{round}");
        // A pod's kernel announces its groups when its link comes up: that multicast goes nowhere.
        let drops = router.ask("drops");
        let rows = drops["drops"].as_array().expect("drops").iter();
        let others: Vec<_> = rows.filter(|row| row["reason"] != "multicast").collect();
        assert!(others.is_empty(), "{others:?}");
    }
    // What has been overtaken has not arrived yet.
    wait_for("all datagrams", || lost(&streams) == before);
}

/// Not what is lost is asserted here but that it is a fraction: `./dev bench failover` measures.
#[test]
fn a_steady_stream_loses_little_when_a_router_ends_and_starts() {
    let mut pair = Pair::new(&Setup::default());
    let [web, far] = &pair.pods;
    let stream = web.udp_stream(far, &far.v4(), 5005, 2_000);
    for (what, end) in [
        ("stop", Daemon::stop as fn(&mut Daemon)),
        ("kill", Daemon::kill),
    ] {
        let lost = lost_in_a_cycle(&mut pair, &stream, end);
        assert!(lost < 2_000, "a {what} and start: {lost} of about 5,000");
    }
}

#[test]
#[ignore = "a measurement of a minute: ./dev bench failover"]
fn ten_stops_and_ten_kills() {
    const RATE: u32 = 10_000;
    let mut pair = Pair::new(&Setup::default());
    for (what, end) in [
        ("stop", Daemon::stop as fn(&mut Daemon)),
        ("kill", Daemon::kill),
    ] {
        let [web, far] = &pair.pods;
        let stream = web.udp_stream(far, &far.v4(), 5005, RATE);
        let mut lost: Vec<u64> = (0..10)
            .map(|_| lost_in_a_cycle(&mut pair, &stream, end))
            .collect();
        println!("{what}/start, {RATE} packets/s, lost in each of ten cycles: {lost:?}");
        lost.sort_unstable();
        let median = u64::midpoint(lost[4], lost[5]);
        println!(
            "  median {median} packets, {} ms of traffic",
            median * 1000 / u64::from(RATE)
        );
        drop(stream);
    }
}
