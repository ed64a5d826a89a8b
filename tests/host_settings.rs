//! Settings of the host that would be in the way: ours win where they can, and what they cannot is
//! named with the command that mends it.

mod common;

use common::{Pair, Setup, wait_for};

const EVIL: &str = "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 \
                    net.ipv4.conf.all.arp_ignore=2 net.ipv4.conf.all.arp_announce=2 \
                    net.ipv4.conf.all.arp_filter=1 net.ipv4.conf.all.proxy_arp=1 \
                    net.ipv6.conf.default.disable_ipv6=1 net.ipv4.conf.all.send_redirects=1 \
                    net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0";

/// By workers, by the kernel, and the host's own: each family.
fn all_pass(pair: &Pair, when: &str) {
    let [web, far] = &pair.pods;
    let [a, _] = &pair.nodes;
    web.namespace.run("ip neighbour flush dev eth0");
    a.namespace.run("ip neighbour flush dev veth-web");
    for address in [far.v4(), far.v6()] {
        assert_eq!(web.namespace.ping(&address, 3, 56), 3, "{address}, {when}");
        assert_eq!(
            a.namespace.ping(&address, 3, 56),
            3,
            "host to {address}, {when}"
        );
    }
    for address in [web.v4(), web.v6()] {
        assert_eq!(a.namespace.ping(&address, 3, 56), 3, "{address}, {when}");
    }
    for address in ["10.244.1.0", "fd00:10:244:1::"] {
        assert_eq!(web.namespace.ping(address, 3, 56), 3, "{address}, {when}");
    }
}

#[test]
fn ours_win_where_they_can() {
    let mut pair = Pair::with_queues(&Setup::default(), 1, 1, |node| {
        node.namespace.run(EVIL);
    });
    let problems = |pair: &Pair| pair.routers[0].ask("status")["slow_path"]["problems"].clone();
    assert_eq!(problems(&pair), serde_json::json!([]));
    all_pass(&pair, "by workers");
    // Said while it runs, it is noticed by the clock.
    pair.nodes[0]
        .namespace
        .run("sysctl -qw net.ipv4.conf.veth-web.arp_ignore=0 net.ipv4.conf.viaduct/1.rp_filter=1");
    wait_for("the settings to be ours again", || {
        let now = pair.nodes[0]
            .namespace
            .run("sysctl -n net.ipv4.conf.veth-web.arp_ignore net.ipv4.conf.viaduct/1.rp_filter");
        now.split_whitespace().eq(["3", "2"])
    });
    pair.routers.iter_mut().for_each(common::Daemon::stop);
    all_pass(&pair, "by the kernel");
    // One line for all of them.
    let log = pair.routers[0].log();
    assert!(log.matches("set kernel settings").count() <= 3, "{log}");
    pair.routers[0].cleanup();
    let node = &pair.nodes[0].namespace;
    let after = node.run("sysctl -n net.ipv4.conf.veth-web.arp_ignore");
    assert_eq!(after.trim(), "0", "restored");
}

#[test]
fn what_is_the_hosts_is_named_with_what_mends_it() {
    let pair = Pair::with_queues(&Setup::default(), 1, 1, |node| {
        node.namespace
            .run("sysctl -qw net.ipv4.conf.all.arp_ignore=8");
        node.namespace.run(&format!(
            "ip neighbour add 192.0.2.{} lladdr 02:00:00:00:09:09 dev eth0 nud permanent",
            3 - node.n
        ));
    });
    let [router, _] = &pair.routers;
    let host = &pair.nodes[0].namespace;
    let problems = || router.ask("status")["slow_path"]["problems"].to_string();
    wait_for("ARP to be said to be off", || {
        problems().contains("sysctl -w net.ipv4.conf.all.arp_ignore=1")
    });
    host.run("sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv6.conf.all.disable_ipv6=1");
    // Each with one sentence, not one a pod or an address.
    wait_for("IPv6 to be said to be off", || {
        let problems = router.ask("status")["slow_path"]["problems"].clone();
        let all = problems.as_array().expect("problems");
        let said = all.iter().filter(|said| said.to_string().contains("IPv6"));
        said.count() == 1
            && all
                .iter()
                .all(|said| !said.to_string().contains("arp_ignore"))
            && all.iter().all(|said| !said.to_string().contains("fe80::1"))
    });
    host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
    wait_for("nothing to be wrong", || problems() == "[]");
    let addresses = host.run("ip -6 address show dev veth-web");
    assert!(addresses.contains("fe80::1/64"), "{addresses}");
}
