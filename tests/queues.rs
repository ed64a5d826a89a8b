//! Devices with more and with fewer queues than there are workers: who receives, who sends, and
//! what goes from one worker to another.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{Daemon, Hooks, Pair, Setup, Testbed, wait_for};

const FLOWS: u32 = 64;
const EACH: u32 = 25;

/// Two nodes with a router and a pod each, so many queues of the underlay and the pods.
fn pair(underlay_queues: u8, pod_queues: u8, workers: u8) -> Pair {
    let workers = format!("count = {workers}");
    let setup = Setup {
        workers: &workers,
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    Pair::with_queues(&setup, underlay_queues, pod_queues, |_| {})
}

/// Ping, TCP and UDP, IPv4 and IPv6, both ways, with so many flows that every queue has some.
fn traffic(pair: &Pair) {
    let [web, far] = &pair.pods;
    for (from, to) in [(web, far), (far, web)] {
        for address in [to.v4(), to.v6()] {
            for size in [1, 1000] {
                let answered = from.namespace.ping(&address, 5, size);
                assert_eq!(answered, 5, "{address} with {size} bytes");
            }
            for _ in 0..4 {
                from.tcp(to, &address, 200_000);
            }
            let answers = from.udp(to, &address, &[1, 64, 700, 1400]);
            assert_eq!(answers.answered, 4, "{answers:?}");
            let flows = from.udp_flows(to, &address, FLOWS, EACH);
            assert_eq!((u64::from(FLOWS), 0), (flows.flows, flows.bad), "{flows:?}");
            assert!(
                flows.received >= u64::from(FLOWS * EACH) * 98 / 100,
                "{flows:?}"
            );
        }
    }
}

/// What each worker of both routers did, once nothing is under way and all is accounted for.
fn accounted(pair: &Pair) -> [Vec<Done>; 2] {
    for router in &pair.routers {
        router.assert_balanced();
        router.assert_whole();
        router.assert_no_drops_of_workers();
        let stale = &router.ask("status")["xdp"]["stale"];
        assert_eq!(*stale, 0, "every owner of a queue showed life");
    }
    pair.routers.each_ref().map(done)
}

/// What a worker did.
#[derive(Clone, Copy, Debug)]
struct Done {
    received: u64,
    sent: u64,
    handed_over: u64,
    taken_over: u64,
}

fn done(router: &Daemon) -> Vec<Done> {
    let status = router.ask("status");
    let workers = status["workers"].as_array().expect("workers");
    let worker = |w: &serde_json::Value| {
        let number = |name: &str| w[name].as_u64().expect("a number");
        Done {
            received: number("rx_packets"),
            sent: number("tx_packets"),
            handed_over: number("handed_over"),
            taken_over: number("taken_over"),
        }
    };
    workers.iter().map(worker).collect()
}

fn turns(router: &Daemon, worker: usize) -> u64 {
    let status = router.ask("status");
    status["workers"][worker]["turns"].as_u64().expect("turns")
}

/// One way each, 64 flows of a family.
const ONE_WAY: u64 = (FLOWS * EACH) as u64;

#[test]
fn four_queues_are_shared_by_two_workers() {
    let pair = pair(4, 4, 2);
    traffic(&pair);
    for node in &pair.nodes {
        for interface in ["eth0", "veth-web"] {
            for queue in 0..4 {
                // The bridge between the nodes puts some queues' packets into one: the last gets
                // a sixteenth of the flows.
                let packets = node.redirected(interface, queue);
                assert!(packets > 0, "{interface}, queue {queue}");
            }
        }
    }
    for workers in accounted(&pair) {
        for worker in &workers {
            assert!(worker.received > ONE_WAY / 2, "{workers:?}");
            assert_eq!(worker.received, worker.sent, "by themselves: {workers:?}");
            assert_eq!((0, 0), (worker.handed_over, worker.taken_over));
        }
    }
}

#[test]
fn with_one_queue_everywhere_the_second_worker_only_shows_life() {
    let pair = pair(1, 1, 2);
    let before = turns(&pair.routers[0], 1);
    traffic(&pair);
    for workers in accounted(&pair) {
        assert!(workers[0].received > 4 * ONE_WAY, "{workers:?}");
        assert_eq!(workers[0].received, workers[0].sent);
        let idle = workers[1];
        assert_eq!((0, 0), (idle.received, idle.sent), "{workers:?}");
        assert!(workers.iter().all(|w| w.handed_over + w.taken_over == 0));
    }
    assert!(turns(&pair.routers[0], 1) > before, "it beats");
}

/// Has traffic pass: the second worker receives it, and hands all of it to the first.
fn the_second_hands_over(pair: &Pair) {
    traffic(pair);
    for workers in accounted(pair) {
        let [first, second] = workers[..] else {
            panic!("{workers:?}")
        };
        assert!(second.received > ONE_WAY / 2, "{workers:?}");
        assert_eq!((second.handed_over, second.sent), (second.received, 0));
        assert_eq!(
            (first.taken_over, first.handed_over),
            (second.handed_over, 0)
        );
    }
}

/// The second worker receives from the underlay and owns nothing of the pod.
#[test]
fn a_worker_without_a_queue_of_the_pod_hands_over() {
    let pair = pair(2, 1, 2);
    the_second_hands_over(&pair);
    for workers in accounted(&pair) {
        let first = &workers[0];
        assert_eq!(first.sent, first.received + first.taken_over);
    }
}

/// The second worker receives from the pod and owns nothing of the underlay. Its exceptions leave
/// by the same door: fragments of what is too long, and answers come to what lives too short.
#[test]
fn a_worker_without_a_queue_of_the_underlay_hands_over_fragments_too() {
    let pair = pair(1, 2, 2);
    the_second_hands_over(&pair);
    let [web, far] = &pair.pods;
    for (node, pod) in pair.nodes.iter().zip([web, far]) {
        node.namespace.run("ip link set veth-web mtu 1500");
        pod.namespace.run("ip link set eth0 mtu 1500");
    }
    // Each is a flow of its own: in both pods, some come to the second queue.
    let before = pair.routers.each_ref().map(|r| done(r)[1]);
    for _ in 0..16 {
        let answers = web.udp_cut(far, &far.v4(), &[1423, 1472]);
        assert_eq!((answers.answered, answers.lost), (2, 0));
    }
    for hop in [1, 2] {
        let ping = format!("-n -c 3 -i 0.2 -W 1 -t {hop} {}", far.v4());
        let mut command = web.namespace.command("ping");
        let output = command.args(ping.split_whitespace()).output();
        let said = String::from_utf8_lossy(&output.expect("ping runs").stdout).into_owned();
        assert_eq!(said.matches(&format!("From 10.244.{hop}.0")).count(), 3);
    }
    for (router, before) in pair.routers.iter().zip(before) {
        let originated = ["underlay", "veth-web"].map(|port| router.port(port, "originated"));
        let expected = 32 + 3;
        assert_eq!(originated[0] + originated[1], expected, "{originated:?}");
        let now = done(router)[1];
        let (received, handed) = (
            now.received - before.received,
            now.handed_over - before.handed_over,
        );
        assert!(handed > received, "fragments of {received}: {handed}");
        assert_eq!(router.dropped("handoff-full"), 0);
        router.assert_balanced();
        router.assert_whole();
    }
}

/// Workers 2 and 3 own nothing of the pod: each has its own among those that do.
#[test]
fn who_hands_over_is_spread_over_who_sends() {
    let pair = pair(4, 2, 4);
    traffic(&pair);
    for workers in accounted(&pair) {
        for (giver, taker) in [(2, 0), (3, 1)] {
            assert!(workers[giver].received > 0, "{workers:?}");
            assert_eq!(workers[giver].handed_over, workers[giver].received);
            assert_eq!(workers[taker].taken_over, workers[giver].handed_over);
        }
    }
}

#[test]
fn ports_come_and_go_while_packets_are_handed_over_to_them() {
    const ROUNDS: u32 = 10;
    let mut bed = Testbed::new();
    let a = bed.node(1, 2);
    let web = bed.pod_with_queues(&a, "web", 2, 2);
    let dns = bed.pod_with_queues(&a, "dns", 3, 1);
    let setup = Setup {
        workers: "count = 2",
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    let router = bed.router_with(&a, &[&web, &dns], &[], &setup);
    let flood = web.udp_flood(&dns.v4(), 32);
    let handed = || done(&router)[1].handed_over;
    let state = |state: &str| {
        wait_for("the port to change", || {
            router.ask("ports")["ports"][2]["state"] == state
        });
    };
    for _ in 0..ROUNDS {
        let before = handed();
        wait_for("packets to be handed over", || handed() > before + 100);
        a.namespace.run("ip link delete veth-dns");
        state("down");
        dns.plug(&a);
        state("up");
    }
    drop(flood);
    router.assert_balanced();
    router.assert_whole();
    assert_eq!(router.dropped("handoff-full"), 0);
}

/// What the second worker could only hand over would be lost; it plays dead, too, and the kernel
/// carries all.
#[test]
fn a_worker_whose_helper_is_stuck_leaves_its_packets_to_the_kernel() {
    let pair = pair(2, 1, 2);
    let [web, far] = &pair.pods;
    let router = &pair.routers[1];
    let second = || done(router)[1].received;
    let flows = |each: u32| {
        let flows = web.udp_flows(far, &far.v4(), FLOWS, each);
        assert_eq!((u64::from(FLOWS), 0), (flows.flows, flows.bad), "{flows:?}");
        flows.received
    };
    flows(EACH);
    assert!(second() > ONE_WAY / 8);
    let stuck = router.stick("worker-0");
    // Two time-outs at most: one to be missed, a quarter of another until that is seen.
    sleep(Duration::from_secs(1));
    let before = second();
    assert!(flows(EACH) >= ONE_WAY * 98 / 100);
    assert_eq!(second(), before, "the kernel carried them");
    drop(stuck);
    wait_for("the worker to show life again", || {
        flows(2);
        second() > before
    });
}

/// The second worker owns queues of pods only: the first of them goes, and others come.
#[test]
fn pods_whose_worker_has_no_other_queue_come_and_go() {
    let mut pair = pair(1, 2, 2);
    let router = &pair.routers[0];
    let app = pair.bed.pod_with_queues(&pair.nodes[0], "app", 3, 2);
    let add = format!(
        "port add --interface veth-app --address {} --address {}",
        app.v4(),
        app.v6()
    );
    for round in 0..3 {
        let (did, said) = router.command(&add);
        assert!(did, "{said}");
        if round == 0 {
            pair.nodes[0].namespace.run("ip link delete veth-web");
        }
        for address in [pair.pods[1].v4(), pair.pods[1].v6()] {
            assert_eq!(app.namespace.ping(&address, 3, 56), 3);
        }
        assert!(router.port("veth-app", "rx_packets") >= 6, "by the worker");
        let (did, said) = router.command("port del veth-app");
        assert!(did, "{said}");
        pair.nodes[0].namespace.run("ip link delete veth-app");
        app.plug(&pair.nodes[0]);
    }
    router.assert_whole();
}
