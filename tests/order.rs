//! Packets of a flow stay in order when they change between hooks and workers.

mod common;

use std::process::Command;

use common::{Hooks, PYTHON, Pair, Setup, must, wait_for};

/// Changes of the way, each of which takes packets to workers for a moment.
const CHANGES: u32 = 40;

#[test]
fn a_flow_keeps_its_order_while_its_way_changes() {
    // On the sender's processor, whose queues of packets are behind one another: what goes by two at once may overtake in
    // the veths between the nodes, whoever sends it.
    let mut python = Command::new(PYTHON);
    let processor = must(python.args(["-c", "import os; print(max(os.sched_getaffinity(0)))"]));
    let workers = format!("count = 1\ncpus = [{}]", processor.trim());
    let pair = Pair::new(&Setup {
        hooks: Some(Hooks::Settled),
        workers: &workers,
        ..Setup::default()
    });
    let [web, far] = &pair.pods;
    let host = &pair.nodes[0].namespace;
    let streams = [
        web.udp_stream(far, &far.v4(), 5005, 10_000),
        web.udp_stream(far, &far.v6(), 5006, 10_000),
        far.udp_stream(web, &web.v4(), 5007, 10_000),
    ];
    let before = (pair.by_worker(), pair.by_hooks());
    for n in 0..CHANGES {
        let mtu = 1400 + n % 2 * 50;
        host.run(&format!("ip route replace 192.0.2.2/32 dev eth0 mtu {mtu}"));
        wait_for("the way to change", || {
            pair.routers[0].ask("routes")["routes"][0]["mtu"] == mtu
        });
    }
    for stream in &streams {
        stream.goes_on();
        assert_eq!(stream.late(), 0, "of {:?}", stream.arrived());
    }
    let now = (pair.by_worker(), pair.by_hooks());
    assert!(
        now.0 > before.0,
        "workers carried some: {before:?}, {now:?}"
    );
    assert!(
        now.1 > before.1 + 1000,
        "and hooks most: {before:?}, {now:?}"
    );
}
