//! Ways to other nodes follow what the kernel knows of its neighbours.

mod common;

use common::{Daemon, Namespace, Node, Pod, Setup, Testbed, vtep_mac, wait_for};

#[test]
fn a_node_that_is_not_there_yet_is_looked_for_and_found() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    assert_eq!(web.namespace.ping("10.244.2.2", 3, 56), 0);
    assert_eq!(ra.dropped("next-hop-unresolved"), 3, "dropped, not queued");

    let b = bed.node(2, 1);
    let far = bed.pod(&b, "web", 2);
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    wait_for("the route to be resolved", || {
        ra.ask("routes")["routes"][0]["state"] == "resolved"
    });
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);
}

#[test]
fn a_node_that_changes_its_mac_is_followed_both_ways() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "web", 2));
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    assert_eq!(web.namespace.ping(&far.v4(), 3, 56), 3);

    // As a replaced NIC does: a new address, announced.
    let mac = "02:00:00:00:0b:0b";
    b.namespace
        .run("sysctl -qw net.ipv4.conf.eth0.arp_notify=1");
    b.namespace.run("ip link set eth0 down");
    b.namespace.run(&format!("ip link set eth0 address {mac}"));
    b.namespace.run("ip link set eth0 up");
    wait_for("the new address to be known", || {
        ra.ask("routes")["routes"][0]["next_hops"][0]["mac"] == mac
    });
    let before = rb.port("underlay", "tx_packets");
    wait_for("pings to pass again", || {
        web.namespace.ping(&far.v4(), 1, 56) == 1
    });
    assert_eq!(far.namespace.ping(&web.v6(), 3, 56), 3);
    assert!(
        rb.port("underlay", "tx_packets") > before + 3,
        "by the workers"
    );
    let frames = a.namespace.run("ip -j neighbour show 192.0.2.2 dev eth0");
    assert!(frames.contains(mac), "{frames}");
}

/// Two nodes on networks of their own, and two routers of the underlay between them.
struct Site {
    routers: [Daemon; 2],
    nodes: [Node; 2],
    pods: [Pod; 2],
    gateways: [Namespace; 2],
    v6: bool,
    _bed: Testbed,
}

impl Site {
    fn new(v6: bool) -> Self {
        let mut bed = Testbed::new();
        let (a, b) = (bed.node(1, 1), bed.node(2, 1));
        let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
        let right = bed.namespace("right");
        right.run("ip link add br0 type bridge");
        right.run("ip link set br0 up");
        let (left, port) = (&b.switch, &b.switch_port);
        left.run(&format!("ip link set {port} nomaster netns {}", right.name));
        right.run(&format!("ip link set {port} master br0 up"));
        b.namespace.run("ip address flush dev eth0 scope global");
        b.namespace.run("ip address add 198.51.100.2/24 dev eth0");
        b.namespace
            .run("ip address add fd00:98::2/64 dev eth0 nodad");
        let gateways = [1, 2].map(|n: u8| {
            let gateway = bed.namespace(&format!("gateway{n}"));
            gateway.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            for (side, switch, v4, v6) in [
                ("left", left, "192.0.2", "fd00:99"),
                ("right", &right, "198.51.100", "fd00:98"),
            ] {
                let peer = format!("gw{n}{side}");
                gateway.run(&format!(
                    "ip link add {side} type veth peer name {peer} netns {}",
                    switch.name
                ));
                switch.run(&format!("ip link set {peer} master br0 up"));
                gateway.run(&format!("ip link set {side} up"));
                gateway.run(&format!("ip address add {v4}.25{n}/24 dev {side}"));
                gateway.run(&format!("ip address add {v6}::25{n}/64 dev {side} nodad"));
            }
            gateway
        });
        let vteps = if v6 {
            [(1, "fd00:99::1"), (2, "fd00:98::2")]
        } else {
            [(1, "192.0.2.1"), (2, "198.51.100.2")]
        };
        let setup = Setup {
            vteps: &vteps,
            ..Setup::default()
        };
        set_ways(&a, v6, &[(1, 1)]);
        for (family, by) in [("", "198.51.100.251"), ("-6 ", "fd00:98::251")] {
            b.namespace
                .run(&format!("ip {family}route add default via {by}"));
        }
        let routers = [
            bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup),
            bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], &setup),
        ];
        Self {
            routers,
            nodes: [a, b],
            pods: [web, far],
            gateways,
            v6,
            _bed: bed,
        }
    }

    fn set_ways(&self, ways: &[(u8, u8)]) {
        set_ways(&self.nodes[0], self.v6, ways);
    }

    /// Gateways and weights as the first node's router has them.
    fn ways(&self) -> Vec<(String, u64)> {
        let routes = self.routers[0].ask("routes");
        let hops = routes["routes"][0]["next_hops"].as_array().cloned();
        let hop = |hop: serde_json::Value| {
            let address = hop["address"].as_str().expect("an address").to_owned();
            (address, hop["weight"].as_u64().expect("a weight"))
        };
        hops.into_iter().flatten().map(hop).collect()
    }

    fn wait_for_ways(&self, wanted: &[(u8, u64)]) {
        let wanted: Vec<(String, u64)> = wanted
            .iter()
            .map(|&(n, weight)| (gateway(self.v6, n), weight))
            .collect();
        wait_for(&format!("{wanted:?}"), || self.ways() == wanted);
    }

    /// Packets that each gateway gets from the left while 256 flows of 4 datagrams go there.
    fn spread(&self) -> [u64; 2] {
        let [web, far] = &self.pods;
        let counts = || {
            self.gateways.each_ref().map(|gateway| {
                let out = gateway.run("ip -j -s link show left");
                let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
                let packets = &all[0]["stats64"]["rx"]["packets"];
                packets.as_u64().expect("a count")
            })
        };
        let before = counts();
        let worker = self.routers[0].port("underlay", "tx_packets");
        let arrived = web.udp_flows(far, &far.v6(), 256, 4);
        assert_eq!((256, 0), (arrived.flows, arrived.bad));
        let sent = self.routers[0].port("underlay", "tx_packets") - worker;
        assert!(sent >= 1024, "by the worker");
        let after = counts();
        [after[0] - before[0], after[1] - before[1]]
    }
}

fn gateway(v6: bool, n: u8) -> String {
    let net = if v6 { "fd00:99::25" } else { "192.0.2.25" };
    format!("{net}{n}")
}

/// Routes to the right-hand network by these gateways, with their weights.
fn set_ways(node: &Node, v6: bool, ways: &[(u8, u8)]) {
    let (family, net) = if v6 {
        ("-6", "fd00:98::/64")
    } else {
        ("-4", "198.51.100.0/24")
    };
    let hops: Vec<String> = ways
        .iter()
        .map(|&(n, weight)| format!("nexthop via {} weight {weight}", gateway(v6, n)))
        .collect();
    node.namespace.run(&format!(
        "ip {family} route replace {net} {}",
        hops.join(" ")
    ));
}

/// Next hops through gateways, several of them, changes of routes and neighbours, under traffic.
fn ways_to_another_network(v6: bool) {
    let site = Site::new(v6);
    let [web, far] = &site.pods;
    site.wait_for_ways(&[(1, 1)]);
    let stream = web.tcp_stream(far, &far.v4(), 5003);
    let [first, second] = site.spread();
    assert!(first > 1024 && second < 100, "{first}, {second}");

    // Another gateway.
    site.set_ways(&[(2, 1)]);
    site.wait_for_ways(&[(2, 1)]);
    let [first, second] = site.spread();
    assert!(second > 1024 && first < 100, "{first}, {second}");
    stream.goes_on();

    // Both, with weights. The stream is one flow: it has one way.
    site.set_ways(&[(1, 1), (2, 1)]);
    site.wait_for_ways(&[(1, 1), (2, 1)]);
    stream.goes_on();
    drop(stream);
    let [first, second] = site.spread();
    let share = |part: u64, whole: u64| part * 100 / whole;
    assert!(
        (35..65).contains(&share(first, first + second)),
        "{first}, {second}"
    );
    site.set_ways(&[(1, 1), (2, 7)]);
    site.wait_for_ways(&[(1, 1), (2, 7)]);
    let [first, second] = site.spread();
    assert!(
        (5..25).contains(&share(first, first + second)),
        "{first}, {second}"
    );

    // One of them fails: the other has all, until it is back.
    let streams = [5004, 5005, 5006].map(|port| web.tcp_stream(far, &far.v4(), port));
    site.gateways[1].run("ip link set left down");
    let failed = gateway(v6, 2);
    site.nodes[0].namespace.run(&format!(
        "ip neighbour replace {failed} dev eth0 nud failed"
    ));
    site.wait_for_ways(&[(1, 1)]);
    for stream in &streams {
        stream.goes_on();
    }
    site.gateways[1].run("ip link set left up");
    if v6 {
        let back = "ip address replace fd00:99::252/64 dev left nodad";
        site.gateways[1].run(back);
    }
    site.wait_for_ways(&[(1, 1), (2, 7)]);
    for stream in &streams {
        stream.goes_on();
    }
    // No way at all is not a way by somebody else.
    site.nodes[0].namespace.run(if v6 {
        "ip -6 route delete fd00:98::/64"
    } else {
        "ip route delete 198.51.100.0/24"
    });
    wait_for("no route", || {
        site.routers[0].ask("routes")["routes"][0]["reason"] == "no route"
    });
}

#[test]
fn gateways_over_ipv4() {
    ways_to_another_network(false);
}

#[test]
fn gateways_over_ipv6() {
    ways_to_another_network(true);
}
