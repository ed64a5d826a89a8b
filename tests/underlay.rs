//! The underlay changes while traffic runs: link, address, MTU, queues, the interface itself.

mod common;

use common::{Hooks, Pair, Setup, wait_for};

/// The kernel's VXLAN device on the first node, as `ip` shows it.
fn vxlan(pair: &Pair) -> String {
    pair.nodes[0]
        .namespace
        .run("ip -d -o link show dev viaduct.1")
}

#[test]
fn a_link_that_flaps() {
    let pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    let [a, _] = &pair.nodes;
    for _ in 0..3 {
        a.switch.run(&format!("ip link set {} down", a.switch_port));
        wait_for("the loss of carrier", || {
            a.namespace
                .run("ip -o link show dev eth0")
                .contains("NO-CARRIER")
        });
        a.switch.run(&format!("ip link set {} up", a.switch_port));
        pair.goes_on_by_worker(&streams);
    }
    a.namespace.run("ip link set eth0 down");
    wait_for("the underlay to be down", || {
        pair.routers[0].ask("status")["underlay"]["problem"] == "it is down"
    });
    assert_eq!(pair.routers[0].ask("status")["ready"], false);
    a.namespace.run("ip link set eth0 up");
    pair.goes_on_by_worker(&streams);
    assert_eq!(pair.routers[0].ask("status")["ready"], true);
}

#[test]
fn another_address() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    let host = pair.nodes[0].namespace.clone();
    host.run("sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1");
    host.run("ip address add 192.0.2.101/24 dev eth0");
    pair.goes_on_by_worker(&streams);
    assert!(vxlan(&pair).contains("local 192.0.2.1 "), "kept");
    host.run("ip address delete 192.0.2.1/24 dev eth0");
    // The other node is told.
    pair.routers[1].reload(|text| text.replace("\"192.0.2.1\"", "\"192.0.2.101\""));
    pair.goes_on_by_worker(&streams);
    let addresses = &pair.routers[0].ask("status")["underlay"]["addresses"];
    assert_eq!(addresses[0], "192.0.2.101");
    assert!(
        vxlan(&pair).contains("local 192.0.2.101 "),
        "the kernel's path, too"
    );
    pair.routers[0].kill();
    pair.goes_on_alone(&streams);
}

/// One that the configuration names is not exchanged for another.
#[test]
fn a_fixed_address_is_waited_for() {
    let setup = Setup {
        underlay: "address = \"192.0.2.1\"",
        ..Setup::default()
    };
    let mut bed = common::Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let router = bed.router_with(&a, &[&web], &[(2, &common::vtep_mac(2))], &setup);
    a.namespace.run("ip address add 192.0.2.101/32 dev eth0");
    a.namespace.run("ip address delete 192.0.2.1/24 dev eth0");
    let problem = || router.ask("routes")["routes"][0]["reason"].to_string();
    wait_for("the reason", || {
        problem().contains("no address of its family")
    });
    a.namespace.run("ip address add 192.0.2.1/24 dev eth0");
    wait_for("it to be over", || !problem().contains("no address"));
}

#[test]
fn another_mtu() {
    let pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    let [web, far] = &pair.pods;
    let set_mtu = |mtu: u32| {
        for node in &pair.nodes {
            node.namespace.run(&format!("ip link set eth0 mtu {mtu}"));
        }
    };
    for (mtu, overlay) in [(1400, 1350), (1350, 1300)] {
        set_mtu(mtu);
        wait_for("the kernel's device to follow", || {
            vxlan(&pair).contains(&format!("mtu {overlay} "))
        });
        pair.goes_on_by_worker(&streams);
        // Senders learn it, and then send what fits.
        for address in [far.v4(), far.v6()] {
            web.namespace.ping(&address, 1, 1390);
            assert_eq!(web.namespace.ping(&address, 3, 1390), 3, "{address}");
            let way = web.namespace.run(&format!("ip route get {address}"));
            assert!(way.contains(&format!("mtu {overlay} ")), "{way}");
        }
    }
    set_mtu(1500);
    wait_for("the kernel's device to follow", || {
        vxlan(&pair).contains("mtu 1450 ")
    });
    web.namespace.run("ip route flush cache");
    pair.goes_on_by_worker(&streams);
    let first = web
        .namespace
        .command("ping")
        .args(["-q", "-c1", "-W1", "-Mdo", "-s1422", &far.v4()])
        .output()
        .expect("ping runs");
    assert!(first.status.success(), "1,450 bytes go through whole");
    // What does not fit the frames of sockets, the kernel carries. Hooks in tc do not mind.
    set_mtu(1700);
    if Hooks::usual() == Hooks::Xdp {
        pair.goes_on_by_kernel(&streams);
    } else {
        pair.goes_on_by_worker(&streams);
    }
    set_mtu(1500);
    pair.goes_on_by_worker(&streams);
}

#[test]
fn an_interface_that_goes_and_comes_again() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    pair.nodes[0].namespace.run("ip link delete eth0");
    wait_for("the underlay to be gone", || {
        let problem = &pair.routers[0].ask("status")["underlay"]["problem"];
        problem
            .as_str()
            .is_some_and(|p| p.contains("no such interface"))
    });
    pair.nodes[0].plug();
    wait_for("the kernel's device to be back", || {
        let host = &pair.nodes[0].namespace;
        host.run("ip -o link show type vxlan").contains("viaduct.1")
    });
    pair.goes_on_by_worker(&streams);
    pair.routers[0].kill();
    pair.goes_on_alone(&streams);
    pair.routers[0].start();
    pair.goes_on_by_worker(&streams);
}

#[test]
fn more_queues() {
    let setup = Setup {
        workers: "count = 2",
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    let pair = Pair::with_queues(&setup, 4, 4, |node| {
        node.switch
            .run(&format!("ethtool -L {} rx 2 tx 2", node.switch_port));
        node.namespace.run("ethtool -L eth0 rx 2 tx 2");
    });
    let [web, far] = &pair.pods;
    let [a, _] = &pair.nodes;
    let queues = || pair.routers[0].ask("status")["underlay"]["device"]["queues"].clone();
    assert_eq!(queues(), 2);
    let streams = pair.streams();
    let host = &a.namespace;
    host.run("ethtool -L eth0 rx 4 tx 4");
    a.switch
        .run(&format!("ethtool -L {} rx 4 tx 4", a.switch_port));
    wait_for("all queues to be owned", || queues() == 4);
    pair.goes_on_by_worker(&streams);
    let before: u64 = (2..4).map(|q| a.redirected("eth0", q)).sum();
    let arrived = far.udp_flows(web, &web.v4(), 64, 10);
    assert!(arrived.received > 600, "{} of 640", arrived.received);
    let after: u64 = (2..4).map(|q| a.redirected("eth0", q)).sum();
    assert!(after > before, "by new queues");
    // The kernel takes no queue away that a worker has.
    let fewer = host
        .command("ethtool")
        .args(["-L", "eth0", "rx", "1", "tx", "1"])
        .output();
    assert!(!fewer.expect("ethtool runs").status.success());
    pair.goes_on_by_worker(&streams);
    for router in &pair.routers {
        router.assert_whole();
    }
}
