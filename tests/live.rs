//! Pods and routes that come and go while a router runs.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Daemon, Node, Testbed, vtep_mac, wait_for};

/// A pod's state as the router tells.
fn state(router: &Daemon, name: &str) -> String {
    let ports = router.ask("ports");
    let ports = ports["ports"].as_array().expect("ports");
    let port = ports.iter().find(|port| port["name"] == name);
    port.map_or("none", |port| port["state"].as_str().expect("a state"))
        .to_owned()
}

fn add(name: &str, address: &str) -> String {
    format!("port add --interface veth-{name} --address {address}")
}

#[test]
fn pods_and_routes_come_and_go_and_others_lose_nothing() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
    let (app, two) = (bed.pod(&a, "app", 3), bed.pod(&a, "two", 4));
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    let stream = web.udp_stream(&far, &far.v4(), 5005, 1_000);
    let before = stream.lost();

    // A pod comes.
    assert_eq!(app.namespace.ping(&far.v4(), 1, 56), 0, "not yet");
    let (did, said) = ra.command(&format!("{} --address {}", add("app", &app.v4()), app.v6()));
    assert!(did, "{said}");
    assert_eq!(state(&ra, "veth-app"), "up");
    for address in [far.v4(), far.v6(), web.v4()] {
        assert_eq!(app.namespace.ping(&address, 3, 56), 3, "{address}");
    }
    assert!(ra.port("veth-app", "rx_packets") >= 9, "by the worker");
    // And goes, and comes again, by another name.
    let (did, said) = ra.command("port del veth-app");
    assert!(did, "{said}");
    assert_eq!(state(&ra, "veth-app"), "none");
    assert!(!a.namespace.run("ip link show veth-app").contains("xdp"));
    assert!(!a.namespace.run("ip route").contains("veth-app"));
    let (did, said) = ra.command(&format!("{} --name again", add("app", &app.v4())));
    assert!(did, "{said}");
    assert_eq!(app.namespace.ping(&far.v4(), 3, 56), 3);
    assert!(ra.port("again", "rx_packets") < 9, "counted anew");

    // A route goes to a node that is not there, and away again.
    let (did, said) = ra.command(&format!(
        "route add 10.244.7.0/24 --vtep 192.0.2.7 --vtep-mac {}",
        vtep_mac(7)
    ));
    assert!(did, "{said}");
    assert!(
        a.namespace
            .run("ip route")
            .contains("10.244.7.0/24 via 10.244.7.0")
    );
    assert_eq!(ra.ask("routes")["routes"].as_array().map(Vec::len), Some(3));
    let (did, said) = ra.command("route del 10.244.7.0/24");
    assert!(did, "{said}");
    assert!(!a.namespace.run("ip route").contains("10.244.7.0"));

    // The file gains a pod and loses one; what was added by command stays.
    ra.reload(|text| {
        text + &format!(
            "[[pods]]\ninterface = \"veth-two\"\naddresses = [\"{}\"]\n",
            two.v4()
        )
    });
    assert_eq!(state(&ra, "veth-two"), "up", "{}", ra.log());
    assert_eq!(state(&ra, "again"), "up");
    assert_eq!(two.namespace.ping(&app.v4(), 3, 56), 3);
    // A pod's interface vanishes.
    a.namespace.run("ip link delete veth-two");
    wait_for("the pod to be down", || state(&ra, "veth-two") == "down");

    stream.goes_on();
    assert_eq!(stream.lost(), before, "nothing of others is lost");
    drop(stream);
    ra.assert_balanced();
    rb.assert_balanced();
}

#[test]
fn what_cannot_be_is_said_and_changes_nothing() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let _app = bed.pod(&a, "app", 3);
    let router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let ports = router.ask("ports");
    let ways = router.ask("routes");
    let mac = vtep_mac(3);
    for (words, part) in [
        (add("web", "10.244.1.9"), "already"),
        (add("app", "10.244.1.2"), "10.244.1.2 is already used"),
        (
            add("app", "10.244.9.9"),
            "outside the network's pod_prefixes",
        ),
        (add("app", "nonsense"), "not an IP address"),
        (add("app\"\n[[x]]", "10.244.1.3"), ""),
        ("port del veth-web".into(), "is in"),
        ("port del nobody".into(), "there is no nobody"),
        (
            format!("route add 10.244.2.0/24 --vtep 192.0.2.3 --vtep-mac {mac}"),
            "10.244.2.0/24",
        ),
        (
            format!("route add 10.99.0.0/24 --vtep 192.0.2.3 --vtep-mac {mac}"),
            "cluster_prefixes",
        ),
        (
            "route add 10.244.3.0/24 --vtep 192.0.2.3".into(),
            "vtep_mac",
        ),
        ("route del 10.244.2.0/24".into(), "is in"),
        ("route del 10.244.4.0/24".into(), "there is no"),
    ] {
        let (did, said) = router.command(&words);
        assert!(!did && said.contains(part), "{words}: {said}");
    }
    router.reload(|text| text.replace("count = 1", "count = 2"));
    assert!(
        router.log().contains("[workers] has changed"),
        "{}",
        router.log()
    );
    router.reload(|text| text.replace("count = 2", "count = 1") + "nonsense\n");
    assert!(
        router.log().contains("was not read again"),
        "{}",
        router.log()
    );
    assert_eq!(router.ask("ports"), ports);
    assert_eq!(router.ask("routes"), ways);
    // A pod whose interface is not there yet is taken up when it comes.
    let (did, said) = router.command(&add("late", "10.244.1.77"));
    assert!(did, "{said}");
    assert_eq!(state(&router, "veth-late"), "down");
    let late = bed.pod(&a, "late", 77);
    wait_for("the late pod", || state(&router, "veth-late") == "up");
    assert_eq!(late.namespace.ping(&web.v4(), 3, 56), 3);
}

const AT_ONCE: u32 = 10;

fn name(n: u32) -> String {
    format!("veth-c{n}")
}

/// Makes the interfaces that [`churn`] needs.
fn make_interfaces(node: &Node) {
    let pair = |n| {
        let name = name(n);
        format!(
            "link add {name} mtu 1450 type veth peer name {name}p mtu 1450\nlink set {name} up\nlink set {name}p up\n"
        )
    };
    let make: String = (0..AT_ONCE).map(pair).collect();
    let mut ip = node.namespace.command("ip");
    let mut ip = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("ip runs");
    ip.stdin
        .take()
        .expect("piped")
        .write_all(make.as_bytes())
        .expect("written");
    assert!(ip.wait().expect("a child").success());
}

/// Adds and removes ports of a router, a few at a time, `rounds` times over.
fn churn(router: &Daemon, rounds: u32) {
    for round in 0..rounds {
        for n in 0..AT_ONCE {
            let (did, said) =
                router.command(&add(&format!("c{n}"), &format!("10.244.1.{}", 100 + n)));
            assert!(did, "round {round}: {said}");
        }
        for n in 0..AT_ONCE {
            assert_eq!(
                state(router, &name(n)),
                "up",
                "round {round}: {}",
                router.log()
            );
            let (did, said) = router.command(&format!("port del {}", name(n)));
            assert!(did, "round {round}: {said}");
        }
    }
}

/// Free frames, and free ones with those in rings.
fn frames(router: &Daemon) -> (u64, u64) {
    // Written by a worker's last look before it sleeps: one whole turn from here on is to be in it.
    let waits = || router.ask("status")["workers"][0]["waits"].as_u64();
    let before = waits();
    wait_for("the worker to sleep twice", || {
        waits() >= before.map(|waits| waits + 2)
    });
    let worker = &router.ask("status")["workers"][0];
    let count = |name: &str| worker[name].as_u64().expect("a number");
    (
        count("free_frames"),
        count("free_frames") + count("ring_frames"),
    )
}

/// So many times 500 ports come and go.
fn the_same_frames_are_free_after(times: u32) {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
    let ra = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    let (free, all) = frames(&ra);
    make_interfaces(&a);
    for _ in 0..times {
        // A stream lasts two minutes.
        let stream = web.udp_stream(&far, &far.v4(), 5005, 1_000);
        let lost = stream.lost();
        churn(&ra, 500 / AT_ONCE);
        stream.goes_on();
        assert_eq!(stream.lost(), lost, "nothing of others is lost");
    }
    let after = frames(&ra);
    assert_eq!(after.1, all, "the UMEM is whole");
    // A fill ring that lacks fewer than 32 is not topped up.
    assert!(
        after.0.abs_diff(free) < 64,
        "{free} free frames, then {}",
        after.0
    );
}

#[test]
fn five_hundred_ports_come_and_go_under_traffic() {
    the_same_frames_are_free_after(1);
}

#[test]
#[ignore = "20 minutes: ./dev test --test live -- --ignored"]
fn ten_thousand_ports_come_and_go_under_traffic() {
    the_same_frames_are_free_after(20);
}

/// A pod and a route that were added by command, with a router that dies, and one that stops.
#[test]
fn what_was_added_by_command_outlives_the_router() {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let (web, far) = (bed.pod(&a, "web", 2), bed.pod(&b, "far", 2));
    let app = bed.pod(&a, "app", 3);
    let mut ra = bed.router(&a, &[&web], &[], "count = 1");
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    for words in [
        format!("{} --address {}", add("app", &app.v4()), app.v6()),
        format!(
            "route add 10.244.2.0/24 --vtep 192.0.2.2 --vtep-mac {}",
            vtep_mac(2)
        ),
        format!(
            "route add fd00:10:244:2::/64 --vtep 192.0.2.2 --vtep-mac {}",
            vtep_mac(2)
        ),
        add("gone", "10.244.1.44"),
    ] {
        let (did, said) = ra.command(&words);
        assert!(did, "{words}: {said}");
    }
    for dies in [true, false] {
        if dies {
            ra.kill();
        } else {
            ra.stop();
        }
        ra.start();
        wait_for("the pod", || state(&ra, "veth-app") == "up");
        assert_eq!(state(&ra, "veth-gone"), "down");
        for address in [far.v4(), far.v6(), web.v4()] {
            wait_for("the way", || app.namespace.ping(&address, 1, 56) == 1);
            assert_eq!(app.namespace.ping(&address, 3, 56), 3, "{address}");
        }
        assert!(ra.port("veth-app", "rx_packets") > 0, "by the worker");
        let said = ra.log();
        assert!(said.contains("are back"), "{said}");
        let removed = said.lines().find(|line| {
            line.contains("removed") && [&app.v4(), &app.v6()].iter().any(|a| line.contains(*a))
        });
        assert_eq!(removed, None);
        let sources = ra.ask("routes")["routes"].to_string();
        assert_eq!(sources.matches("\"command\"").count(), 2, "{sources}");
    }
    // One that is not there is followed, and can be removed.
    let _gone = bed.pod(&a, "gone", 44);
    wait_for("the late pod", || state(&ra, "veth-gone") == "up");
    let (did, said) = ra.command("port del veth-gone");
    assert!(did, "{said}");

    // A file that is damaged is kept aside, and a router that was removed is forgotten.
    ra.stop();
    let file = ra.directory.join(format!("{}.commands", ra.name));
    let text = std::fs::read_to_string(&file).expect("its commands");
    std::fs::write(&file, &text[..text.len() / 2]).expect("written");
    ra.start();
    assert_eq!(state(&ra, "veth-app"), "none");
    wait_for("the file's pod", || state(&ra, "veth-web") == "up");
    assert!(ra.log().contains("is damaged"), "{}", ra.log());
    let aside = ra.directory.join(format!("{}.commands.damaged", ra.name));
    assert!(aside.exists());
    let (did, said) = ra.command(&add("app", &app.v4()));
    assert!(did, "{said}");
    ra.stop();
    assert!(file.exists());
    ra.cleanup();
    assert!(!file.exists());
}

/// Two VTEPs with one MAC, and a VTEP with two, whoever adds them.
#[test]
fn a_command_that_contradicts_a_route_is_refused() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let add = |prefix: &str, vtep: &str, mac: &str| {
        router.command(&format!(
            "route add {prefix} --vtep {vtep} --vtep-mac {mac}"
        ))
    };
    let (did, said) = add("10.244.7.0/24", "192.0.2.7", "02:00:00:00:00:77");
    assert!(did, "{said}");
    for (vtep, mac, why) in [
        (
            "192.0.2.8",
            "02:00:00:00:00:77",
            "a MAC belongs to one VTEP",
        ),
        ("192.0.2.7", "02:00:00:00:00:78", "a VTEP has one"),
        ("192.0.2.8", &vtep_mac(1), "own VTEP MAC"),
        ("192.0.2.1", "02:00:00:00:00:78", "this node's own"),
        (
            "10.244.3.3",
            "02:00:00:00:00:78",
            "inside the cluster prefix",
        ),
    ] {
        let (did, said) = add("10.244.8.0/24", vtep, mac);
        assert!(!did && said.contains(why), "{vtep} {mac}: {said}");
    }
    let (did, said) = router.command("port add --interface veth-x --address 10.244.1.2");
    assert!(
        !did && said.contains("used in line") && said.contains(".toml"),
        "{said}"
    );
    let (did, said) = add("10.244.7.0/24", "192.0.2.9", "02:00:00:00:00:79");
    assert!(!did && said.contains("used by a command"), "{said}");
    // What is added is stable: nothing fights over an entry of the kernel's.
    let added = || router.ask("status")["slow_path"]["added"].clone();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let before = added();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(added(), before);
}
