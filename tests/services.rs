//! Flows that the kernel translates, as for Kubernetes' services and host ports, and what pods
//! look like from the outside.

mod common;

use common::{Daemon, Namespace, Node, Pod, Process, Setup, Testbed, vtep_mac};

struct Cluster {
    _bed: Testbed,
    nodes: [Node; 2],
    /// Two on the first node, one on the second.
    pods: [Pod; 3],
    routers: [Daemon; 2],
    outside: Namespace,
}

fn cluster(setup: &Setup<'_>) -> Cluster {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let pods = [
        bed.pod(&a, "web", 2),
        bed.pod(&a, "app", 3),
        bed.pod(&b, "far", 2),
    ];
    let outside = bed.node(50, 1).namespace;
    let ra = bed.router_with(&a, &[&pods[0], &pods[1]], &[(2, &vtep_mac(2))], setup);
    let rb = bed.router_with(&b, &[&pods[2]], &[(1, &vtep_mac(1))], setup);
    // The way to service addresses, which nobody has.
    for node in [&a, &b] {
        node.namespace
            .run("ip route add default via 192.0.2.254 dev eth0 onlink");
        node.namespace
            .run("ip -6 route add default via fd00:99::fe dev eth0");
    }
    Cluster {
        _bed: bed,
        nodes: [a, b],
        pods,
        routers: [ra, rb],
        outside,
    }
}

/// Translates as kube-proxy does: for what comes, and for what the host sends.
fn translate(node: &Node, rules: &[(&str, String, String)]) {
    let chain: String = rules
        .iter()
        .flat_map(|(family, from, to)| {
            [
                *family,
                " daddr ",
                from,
                " tcp dport 80 dnat ",
                family,
                " to ",
                to,
                "\n",
            ]
        })
        .collect();
    let text = format!(
        "table inet services {{\n\
         chain come {{ type nat hook prerouting priority dstnat; {chain} }}\n\
         chain go {{ type nat hook output priority -100; {chain} }}\n}}\n"
    );
    let file = std::env::temp_dir().join(format!("{}-nft", node.namespace.name));
    std::fs::write(&file, text).expect("rules are written");
    node.namespace.run(&format!("nft -f {}", file.display()));
    let _ = std::fs::remove_file(&file);
}

/// A server that tells everybody the address that it sees them with.
fn mirror(at: &Namespace) -> [Process; 2] {
    [("TCP4", 8080), ("TCP6", 8080)].map(|(family, port)| {
        let only = if family == "TCP6" { ",ipv6only=1" } else { "" };
        let mut command = at.command("socat");
        command
            .arg(format!("{family}-LISTEN:{port},fork,reuseaddr{only}"))
            .arg("SYSTEM:echo $SOCAT_PEERADDR")
            .stdin(std::process::Stdio::null());
        Process::start(command)
    })
}

/// Connects and says what the server saw.
fn seen(from: &Namespace, to: &str, port: u16) -> String {
    let target = if to.contains(':') {
        format!("TCP6:[{to}]:{port},connect-timeout=3")
    } else {
        format!("TCP4:{to}:{port},connect-timeout=3")
    };
    for _ in 0..20 {
        let output = from
            .command("timeout")
            .args(["5", "socat", "-T3", "-", &target])
            .stdin(std::process::Stdio::null())
            .output()
            .expect("socat runs");
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !said.is_empty() {
            return plain(&said);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    "nobody".to_owned()
}

/// socat writes IPv6 addresses out, in brackets.
fn plain(address: &str) -> String {
    let bare = address.trim_matches(['[', ']']);
    let parsed: Result<std::net::IpAddr, _> = bare.parse();
    parsed.map_or_else(|_| address.to_owned(), |address| address.to_string())
}

#[test]
fn services_answer_pods_and_hosts_and_see_addresses_that_come_back() {
    let cluster = cluster(&Setup::default());
    let [a, b] = &cluster.nodes;
    let [web, app, far] = &cluster.pods;
    let rules = [
        ("ip", "10.96.0.1".to_owned(), format!("{}:8080", far.v4())),
        ("ip", "10.96.0.2".to_owned(), format!("{}:8080", app.v4())),
        (
            "ip6",
            "fd00:96::1".to_owned(),
            format!("[{}]:8080", far.v6()),
        ),
        (
            "ip6",
            "fd00:96::2".to_owned(),
            format!("[{}]:8080", app.v6()),
        ),
    ];
    translate(a, &rules);
    let _servers = [mirror(&far.namespace), mirror(&app.namespace)];
    let pod = &web.namespace;
    let host = &a.namespace;
    for (remote, local, own, node) in [
        ("10.96.0.1", "10.96.0.2", "10.244.1.0", "192.0.2.1"),
        ("fd00:96::1", "fd00:96::2", "fd00:10:244:1::", "fd00:99::1"),
    ] {
        assert_eq!(seen(pod, remote, 80), own, "pod to a service elsewhere");
        assert_eq!(seen(pod, local, 80), own, "pod to a service here");
        assert_eq!(seen(host, remote, 80), own, "host to a service elsewhere");
        assert_eq!(seen(host, local, 80), node, "host to a service here");
    }
    // Without translation: the pod itself, by the workers; and the node's own address.
    assert_eq!(seen(pod, &far.v4(), 8080), web.v4());
    assert_eq!(seen(pod, &far.v6(), 8080), web.v6());
    assert_eq!(seen(host, &far.v4(), 8080), "10.244.1.0");
    assert_eq!(seen(&b.namespace, &app.v6(), 8080), "fd00:10:244:2::");
    for router in &cluster.routers {
        assert_eq!(router.dropped("unknown-vtep"), 0);
    }
}

#[test]
fn host_ports_answer_pods_everywhere_hosts_and_the_outside() {
    let cluster = cluster(&Setup::default());
    let [a, b] = &cluster.nodes;
    let [web, app, far] = &cluster.pods;
    translate(
        a,
        &[
            ("ip", "192.0.2.1".to_owned(), format!("{}:8080", app.v4())),
            (
                "ip6",
                "fd00:99::1".to_owned(),
                format!("[{}]:8080", app.v6()),
            ),
        ],
    );
    let _servers = mirror(&app.namespace);
    for (address, own, other, outside) in [
        ("192.0.2.1", "10.244.1.0", "192.0.2.2", "192.0.2.50"),
        ("fd00:99::1", "fd00:10:244:1::", "fd00:99::2", "fd00:99::50"),
    ] {
        assert_eq!(
            seen(&far.namespace, address, 80),
            own,
            "from another node's pod"
        );
        assert_eq!(
            seen(&web.namespace, address, 80),
            own,
            "from a pod of the node"
        );
        assert_eq!(seen(&b.namespace, address, 80), other, "from another node");
        assert_eq!(seen(&cluster.outside, address, 80), outside, "from outside");
    }
}

#[test]
fn the_outside_sees_the_node_where_pods_are_masqueraded() {
    let cluster = cluster(&Setup {
        slow_path: "masquerade = true",
        ..Setup::default()
    });
    let [web, _, far] = &cluster.pods;
    let _servers = mirror(&cluster.outside);
    assert_eq!(seen(&web.namespace, "192.0.2.50", 8080), "192.0.2.1");
    assert_eq!(seen(&web.namespace, "fd00:99::50", 8080), "fd00:99::1");
    let _servers = mirror(&far.namespace);
    assert_eq!(
        seen(&web.namespace, &far.v4(), 8080),
        web.v4(),
        "not inside"
    );
}
