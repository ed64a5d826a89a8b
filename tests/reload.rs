//! Peers and prefixes in the configuration that change while a node runs.

mod common;

use std::fs;
use std::time::Duration;

use common::{Testbed, wait_for};

/// A node alone, whose peer's name comes to be known later.
#[test]
fn a_peer_may_have_a_name_that_is_known_later() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    let mut second = bed.gossiping_router(&nodes[1], &[], 2);
    second.stop();
    let hosts = bed.directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("written");
    let file = second.file.clone();
    let text = fs::read_to_string(&file).expect("its configuration");
    let named = text.replace("192.0.2.2:7950", "first.example:7950");
    assert_ne!(named, text);
    fs::write(&file, named).expect("written");
    second.hosts = Some(hosts.clone());
    second.start();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(second.ways(), [""; 0]);
    // In place: the file itself is mounted.
    fs::write(&hosts, "192.0.2.1 first.example\n").expect("written");
    second.knows(&[1]);
    first.knows(&[2]);
}

/// Who is asked, and what nodes may announce, change while a node runs; a file that is wrong
/// changes nothing.
#[test]
fn peers_and_allowed_prefixes_are_read_again() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    // Nobody is there.
    let second = bed.gossiping_router(&nodes[1], &[], 7);
    let asks = |host: &str| format!("peers = [\"{host}:7950\"]");
    let wrong = [
        (asks("192.0.2.1").replace(":7950", ":0"), "is no peer"),
        (
            asks("192.0.2.1") + "\nprobe_interval_ms = 400",
            "[gossip] has changed",
        ),
        (
            asks("192.0.2.1") + "\nallowed_prefixes = [\"10.244.1.1/24\"]",
            "host bits set",
        ),
    ];
    for (number, (text, why)) in (1..).zip(wrong) {
        let mut sound = String::new();
        second.reload(|before| {
            assert!(before.contains(&asks("192.0.2.7")), "{before}");
            sound.clone_from(&before);
            before.replace(&asks("192.0.2.7"), &text)
        });
        let log = second.log();
        let refusals = log.matches("the configuration was not read again");
        assert_eq!(refusals.count(), number, "{log}");
        assert!(log.contains(why), "{why}: {log}");
        fs::write(&second.file, sound).expect("written");
    }
    // The node that it was to ask does so every second, had it taken any of these.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(second.ways(), [""; 0]);
    second.reload(|before| before.replace(&asks("192.0.2.7"), &asks("192.0.2.1")));
    second.knows(&[1]);
    first.knows(&[2]);

    let allowed = "\nallowed_prefixes = [\"10.244.0.0/16\"]";
    second.reload(|before| before.replace(&asks("192.0.2.1"), &(asks("192.0.2.1") + allowed)));
    wait_for("what is not allowed any more", || {
        second.ways() == ["10.244.1.0/24"]
    });
    let log = second.log();
    assert!(log.contains("it lies outside allowed_prefixes"), "{log}");
    second.reload(|before| before.replace(allowed, ""));
    second.knows(&[1]);
    assert_eq!(second.peer(&first.name), "answers");
}

/// What nobody would take is refused before anything is done.
#[test]
fn a_configuration_that_is_too_long_to_say_changes_nothing() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pod = bed.pod(&nodes[0], "web", 2);
    let first = bed.gossiping_router(&nodes[0], &[&pod], 1);
    let second = bed.gossiping_router(&nodes[1], &[], 1);
    second.knows(&[1]);
    let delegations = (0..4000).map(|n| {
        let node = "n".repeat(60);
        format!("[[delegations]]\nprefix = \"fd00:10:244:1::1:{n:x}/128\"\nnode = \"{node}\"\n")
    });
    let delegations = delegations.collect::<String>();
    first.reload(|text| {
        let pods = text.find("[[pods]]").expect("a pod");
        let rest = text.find("[gossip]").expect("gossip");
        text[..pods].to_owned() + &text[rest..] + &delegations
    });
    let log = first.log();
    assert!(log.contains("announce fewer prefixes"), "{log}");
    let ports = first.ask("ports")["ports"].to_string();
    assert!(ports.contains(&pod.interface), "{ports}");
    second.knows(&[1]);
}
