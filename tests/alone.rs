//! Hooks whose router has ended: they go on with what is settled, by the kernel's own neighbours.

mod common;

use std::thread::sleep;
use std::time::Duration;

use common::{Daemon, Hooks, Namespace, Pair, Setup, wait_for};

/// How long a heartbeat counts, and a little more.
const STALE: Duration = Duration::from_millis(700);

fn settled() -> Setup<'static> {
    Setup {
        hooks: Some(Hooks::Settled),
        ..Setup::default()
    }
}

/// How a router ends.
type End = fn(&mut Daemon);

const ENDS: [(&str, End); 2] = [("stop", Daemon::stop), ("kill", Daemon::kill)];

/// Packets that come to the first node's pod while it sends three over each family: by hooks, and by the kernel's device.
fn pinged(pair: &Pair) -> (u32, u64, u64) {
    let [web, far] = &pair.pods;
    let (hooks, kernel) = (pair.by_hooks(), pair.by_kernel());
    let answered = [far.v4(), far.v6()].map(|to| web.namespace.ping(&to, 3, 1000));
    let answered: u32 = answered.iter().sum();
    (answered, pair.by_hooks() - hooks, pair.by_kernel() - kernel)
}

#[test]
fn the_other_nodes_new_mac_is_found() {
    the_other_nodes_mac_changes(&settled());
}

/// With an outer checksum of zero: a computed one is the kernel's device's.
#[test]
fn the_other_nodes_new_mac_is_found_over_ipv6() {
    the_other_nodes_mac_changes(&Setup {
        over_v6: &[1, 2],
        network: "udp_checksum6 = \"zero\"",
        ..settled()
    });
}

fn the_other_nodes_mac_changes(setup: &Setup<'_>) {
    for (what, end) in ENDS {
        let mut pair = Pair::new(setup);
        assert_eq!(pinged(&pair), (6, 6, 0));
        end(&mut pair.routers[0]);
        sleep(STALE);
        let [near, other] = [&pair.nodes[0].namespace, &pair.nodes[1].namespace];
        other.run("ip link set eth0 address 02:00:5e:00:53:77");
        near.run("ip neighbour flush dev eth0");
        other.run("ip neighbour flush dev eth0");
        wait_for("the other router to follow", || {
            pair.pods[0].namespace.ping(&pair.pods[1].v4(), 1, 56) == 1
        });
        assert_eq!(pinged(&pair), (6, 6, 0), "after a {what}");
    }
}

/// What the kernel has no way for by the underlay, hooks do not send there.
#[test]
fn what_leads_elsewhere_is_the_kernels() {
    let mut pair = Pair::new(&settled());
    pair.routers[0].stop();
    sleep(STALE);
    let host = &pair.nodes[0].namespace;
    host.run("ip route add unreachable 192.0.2.2/32");
    let (answered, hooks, kernel) = pinged(&pair);
    assert_eq!((answered, hooks, kernel), (0, 0, 0));
    host.run("ip route delete unreachable 192.0.2.2/32");
    assert_eq!(pinged(&pair), (6, 6, 0), "as before");
    // A path that takes less.
    host.run("ip route add 192.0.2.2/32 dev eth0 mtu lock 900");
    let (answered, hooks, kernel) = pinged(&pair);
    assert_eq!((answered, hooks), (6, 0), "too long for it");
    assert!(kernel >= 6, "the kernel fragments: {kernel}");
}

/// What one ping says, whether it is answered or not.
fn said(namespace: &Namespace, to: &str) -> String {
    let mut ping = namespace.command("ping");
    let output = ping.args(["-c", "2", "-W", "2", to]).output();
    String::from_utf8_lossy(&output.expect("ping").stdout).into_owned()
}

#[test]
fn a_pod_that_has_gone_is_unreachable() {
    let mut bed = common::Testbed::new();
    let node = bed.node(1, 1);
    let (web, app) = (bed.pod(&node, "web", 2), bed.pod(&node, "app", 3));
    let mut router = bed.router_with(&node, &[&web, &app], &[], &settled());
    assert_eq!(web.namespace.ping(&app.v4(), 3, 56), 3);
    router.stop();
    sleep(STALE);
    assert_eq!(web.namespace.ping(&app.v4(), 3, 56), 3);
    node.namespace.run("ip link delete veth-app");
    for address in [app.v4(), app.v6()] {
        let said = said(&web.namespace, &address);
        assert!(
            said.contains("nreachable") || said.contains("No route"),
            "{said}"
        );
    }
}

/// A stop or a kill, and a start, under datagrams both ways and TCP: nothing is lost. `./dev bench failover` has more of them.
#[test]
fn restarts_lose_nothing_that_is_settled() {
    let mut pair = Pair::new(&settled());
    let [web, far] = &pair.pods;
    let datagrams = [
        web.udp_stream(far, &far.v4(), 5005, 5_000),
        far.udp_stream(web, &web.v6(), 5006, 5_000),
    ];
    let connections = pair.streams();
    let sender = web.namespace.clone();
    let sent_again = || sender.protocol_count("TcpExt", "TCPFastRetrans");
    let before = sent_again();
    let go_on = || {
        for stream in datagrams.iter().chain(&connections) {
            stream.goes_on();
        }
    };
    for _ in 0..3 {
        for (what, end) in ENDS {
            go_on();
            end(&mut pair.routers[0]);
            go_on();
            sleep(STALE);
            go_on();
            pair.routers[0].start();
            go_on();
            // What has been overtaken has not arrived yet.
            wait_for(&format!("all datagrams, after a {what}"), || {
                datagrams.iter().all(|stream| stream.lost() == 0)
            });
        }
    }
    // Some are without any restart, on the kernel's path, too: a sender that changes its processor overtakes itself.
    let sent_again = sent_again() - before;
    assert!(sent_again < 30, "{sent_again} segments were sent again");
}
