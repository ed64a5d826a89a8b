//! Packets that take more than a header: too long, too short-lived, or for
//! somebody whom only the kernel knows. Real kernels read the answers.

mod common;

use common::{Node, Pod, Testbed, vtep_mac, wait_for};

/// What `ping` says, errors that it received included.
fn ping_says(pod: &Pod, words: &str) -> String {
    let mut ping = pod.namespace.command("ping");
    let words = format!("-n -W 1 -i 0.2 {words}");
    let output = ping.args(words.split_whitespace()).output();
    let output = output.expect("ping runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A pod whose interface takes more than the overlay does.
fn widen(node: &Node, pod: &Pod) {
    let (host, inside) = (&node.namespace, &pod.namespace);
    host.run(&format!("ip link set {} mtu 1500", pod.interface));
    inside.run("ip link set eth0 mtu 1500");
}

#[test]
fn each_node_is_a_hop_that_answers_from_its_overlay_address() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    for (to, hops) in [
        (far.v4(), ["10.244.1.0", "10.244.2.0"]),
        (far.v6(), ["fd00:10:244:1::", "fd00:10:244:2::"]),
    ] {
        for (ttl, hop) in (1..).zip(hops) {
            let says = ping_says(&web, &format!("-c 3 -t {ttl} {to}"));
            assert!(
                says.contains(&format!("From {hop} icmp_seq=1 Time")),
                "{to} with {ttl} hops: {says}"
            );
        }
        let says = ping_says(&web, &format!("-c 3 -t 3 {to}"));
        assert!(says.contains("3 received"), "three hops suffice: {says}");
    }
    for router in [&ra, &rb] {
        assert_eq!(router.dropped("hop-limit-exceeded"), 6);
        assert_eq!(router.ask("status")["workers"][0]["icmp_errors"], 6);
        router.assert_balanced();
    }
}

/// The nodes on the way to `to`, as `traceroute` shows them; the pod itself comes last.
fn hops(from: &Pod, to: &str) -> Vec<String> {
    let said = from
        .namespace
        .run(&format!("traceroute -n -q 2 -w 2 -m 6 {to}"));
    let lines = said.lines().skip(1);
    let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    lines.map(|line| hop(line).expect("a hop")).collect()
}

#[test]
fn traceroute_shows_the_way_by_workers_and_by_the_kernel() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    let mut ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let mut rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    // traceroute sends sixteen probes at once, more than a kernel answers.
    far.namespace
        .run("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
    let ways = [
        ["10.244.1.0".to_owned(), "10.244.2.0".to_owned(), far.v4()],
        [
            "fd00:10:244:1::".to_owned(),
            "fd00:10:244:2::".to_owned(),
            far.v6(),
        ],
    ];
    for way in &ways {
        assert_eq!(hops(&web, &way[2]), way);
    }
    for router in [&ra, &rb] {
        assert!(router.dropped("hop-limit-exceeded") >= 4);
    }
    for router in [&mut ra, &mut rb] {
        router.kill();
    }
    for way in &ways {
        assert_eq!(hops(&web, &way[2]), way, "by the kernel");
    }
}

/// UDP with don't-fragment, from a pod whose interface takes more than the way.
#[test]
fn udp_learns_the_path_mtu() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    widen(&a, &web);
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    for to in [far.v4(), far.v6()] {
        let said = web.namespace.run(&format!("tracepath -n -m 6 {to}"));
        assert!(said.contains("pmtu 1500"), "at first: {said}");
        assert!(said.contains("pmtu 1450 hops 3"), "at last: {said}");
        assert!(said.contains("reached"), "{said}");
    }
    assert!(ra.dropped("too-big") >= 2);
    ra.assert_balanced();
}

#[test]
fn a_path_mtu_is_discovered_and_ipv4_without_df_is_cut() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    widen(&a, &web);
    widen(&b, &far);
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    // 1,500 bytes, not yet knowing better: both directions are cut, by us.
    let says = ping_says(&web, &format!("-c 5 -M dont -s 1472 {}", far.v4()));
    assert!(says.contains("5 received"), "{says}");
    assert_eq!(ra.port("veth-web", "originated"), 5, "one more piece each");
    assert_eq!(rb.port("veth-web", "originated"), 5, "one more piece each");
    // Cut by the pod, and then by us once more.
    let says = ping_says(&web, &format!("-c 5 -M dont -s 4000 {}", far.v4()));
    assert!(says.contains("5 received"), "{says}");

    web.tcp(&far, &far.v4(), 300_000);
    web.tcp(&far, &far.v6(), 300_000);
    assert!(ra.dropped("too-big") > 0, "the senders had to learn");
    let says = ping_says(&web, &format!("-c 2 -M do -s 1472 {}", far.v4()));
    assert!(
        says.contains("mtu=1450") || says.contains("mtu = 1450"),
        "{says}"
    );
    let says = ping_says(&far, &format!("-c 2 -M do -s 1452 {}", web.v6()));
    assert!(
        says.contains("mtu=1450") || says.contains("mtu = 1450"),
        "{says}"
    );
    ra.assert_balanced();
    rb.assert_balanced();
}

#[test]
fn a_pod_that_only_the_kernel_knows_is_reached_through_it() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let (web, other) = (bed.pod(&a, "web", 2), bed.pod(&a, "other", 3));
    other.route_by_hand(&a);
    let router = bed.router(&a, &[&web], &[], "count = 1");
    assert_eq!(web.namespace.ping(&other.v4(), 5, 56), 5);
    assert_eq!(web.namespace.ping(&other.v6(), 5, 56), 5);
    web.tcp(&other, &other.v4(), 100_000);
    assert!(router.port("veth-web", "punts") > 15);
    let drops = router.ask("drops");
    assert_eq!(drops["drops"][0]["fate"], "punted", "{drops}");
    assert_eq!(drops["drops"][0]["reason"], "no-route", "{drops}");
    router.assert_balanced();
}

#[test]
fn icmp_errors_are_rationed() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let (web, dns) = (bed.pod(&a, "web", 2), bed.pod(&a, "dns", 3));
    let router = bed.router(&a, &[&web, &dns], &[], "count = 1");
    let mut flood = web.namespace.command("ping");
    let words = format!("-q -i 0.001 -c 1000 -W 1 -t 1 {}", dns.v4());
    let output = flood.args(words.split_whitespace()).output();
    output.expect("ping runs");
    let sent = router.dropped("hop-limit-exceeded");
    let worker = &router.ask("status")["workers"][0];
    let count = |name: &str| worker[name].as_u64().expect("a number");
    assert!(sent >= 500, "{sent} pings");
    assert!(count("icmp_errors_withheld") > 0, "{worker}");
    assert_eq!(count("icmp_errors") + count("icmp_errors_withheld"), sent);
    router.assert_balanced();
}

/// Nobody has the address: the kernel's unreachable route says so, whatever way the packet took.
#[test]
fn what_nobody_has_is_unreachable() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    // The kernel rations its errors, too.
    a.namespace
        .run("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
    let mut router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    for state in ["running", "killed"] {
        for address in ["10.244.7.7", "fd00:10:244:7::7"] {
            let says = ping_says(&web, &format!("-c 2 {address}"));
            let said = says.contains("Unreachable") || says.contains("No route");
            assert!(
                said && says.contains("+2 errors"),
                "{state}, {address}: {says}"
            );
        }
        if state == "running" {
            assert_eq!(router.dropped("no-route"), 0);
            // The last answer may be here before it is counted.
            wait_for("four punts", || router.port("veth-web", "punts") >= 4);
            router.kill();
        }
    }
}
