//! The same packets by the workers and by the kernel beside them: the same arrive.

mod common;

use common::{Daemon, Hooks, Pair, Setup, vtep_mac, wait_for};

/// Frames of a pod, by family, and whether they arrive; forge.py says what each is.
const V4: [(&str, bool); 11] = [
    ("loose-route", false),
    ("strict-route", false),
    ("bad-length", false),
    ("zero-length", false),
    ("cut-option", false),
    ("bad-pointer", false),
    ("bad-timestamp", false),
    ("record-route", true),
    ("timestamp", true),
    ("unknown-option", true),
    ("nothing", true),
];
const V6: [(&str, bool); 10] = [
    ("hop-skip", true),
    ("hop-discard", false),
    ("hop-answer", false),
    ("hop-answer-one", false),
    ("hop-long", false),
    ("hop-pad", true),
    ("hop-pad-data", false),
    ("hop-pad-much", false),
    ("hop-many", false),
    ("hop-alert-long", false),
];
const EITHER: [(&str, bool); 8] = [
    ("plain", true),
    ("foreign-mac", false),
    ("zero-mac", false),
    ("priority", true),
    ("priorities", true),
    ("vlan", false),
    ("priority-vlan", false),
    ("three", false),
];
/// Tunnel packets of the other node.
const TUNNELS: [(&str, bool); 11] = [
    ("plain", true),
    ("right-sum", true),
    ("wrong-sum", false),
    ("unsummed", true),
    ("options", true),
    ("padded", true),
    ("gbp", false),
    ("gpe", false),
    ("reserved-flag", false),
    ("reserved-byte", false),
    ("vlan", false),
];

/// What each end hears of everything, in order of the words.
fn heard(pair: &Pair) -> Vec<String> {
    let ([web, far], [a, b]) = (&pair.pods, &pair.nodes);
    let near_ears = web.namespace.hear(&[&web.v4(), &web.v6()]);
    let far_ears = far.namespace.hear(&[&far.v4(), &far.v6()]);
    let (own, gateway) = (web.namespace.mac("eth0"), a.namespace.mac("veth-web"));
    for (own_kinds, from, to) in [(&V4[..], web.v4(), far.v4()), (&V6[..], web.v6(), far.v6())] {
        for (kind, _) in own_kinds.iter().chain(&EITHER) {
            web.namespace.forge(&format!(
                "varied {kind} eth0 {own} {gateway} {from} {to} {}",
                word(kind, &to)
            ));
        }
        web.namespace.forge(&format!("say {from} {to} end-{to}"));
    }
    let mac = vtep_mac(1);
    for (from, to) in [(far.v4(), web.v4()), (far.v6(), web.v6())] {
        for (kind, _) in TUNNELS {
            b.namespace.forge(&format!(
                "odd {kind} 192.0.2.2 192.0.2.1 {mac} 1 {from} {to} {}",
                word(kind, &to)
            ));
        }
        far.namespace.forge(&format!("say {from} {to} end-{to}"));
    }
    let mut all = far_ears.until(&[far.v4(), far.v6()].map(|to| format!("end-{to}")));
    all.extend(near_ears.until(&[web.v4(), web.v6()].map(|to| format!("end-{to}"))));
    all.sort();
    all
}

fn word(kind: &str, to: &str) -> String {
    format!("{kind}-{to}")
}

fn expected(pair: &Pair) -> Vec<String> {
    let [web, far] = &pair.pods;
    let mut all = Vec::new();
    let mut add = |kinds: &[(&str, bool)], to: String| {
        let arriving = kinds.iter().filter(|(_, arrives)| *arrives);
        all.extend(arriving.map(|(kind, _)| word(kind, &to)));
    };
    add(&V4, far.v4());
    add(&V6, far.v6());
    for to in [far.v4(), far.v6()] {
        add(&EITHER, to);
    }
    for to in [web.v4(), web.v6()] {
        add(&TUNNELS, to);
    }
    all.sort();
    all
}

#[test]
fn what_arrives_by_workers_arrives_by_the_kernel() {
    let mut pair = Pair::new(&Setup::default());
    let expected = expected(&pair);
    let punted = pair.routers[0].port("veth-web", "punts");
    assert_eq!(heard(&pair), expected, "by workers");
    let router = &pair.routers[0];
    wait_for("all to be counted", || router.dropped("bad-option") >= 5);
    for reason in ["foreign-mac", "source-route", "bad-outer"] {
        assert!(router.dropped(reason) > 0, "{reason}");
    }
    // Hooks that settle leave checksums to the kernel's VXLAN device.
    let wrong_sums = match Hooks::usual() {
        Hooks::Settled => pair.nodes[0].udp_count("InCsumErrors"),
        Hooks::Tc | Hooks::Xdp => router.dropped("bad-outer-checksum"),
    };
    assert!(wrong_sums > 0);
    assert_eq!(router.port("veth-web", "punts"), punted);
    for router in &mut pair.routers {
        router.kill();
    }
    assert_eq!(heard(&pair), expected, "by the kernel");
}

/// A bridge in the pod has a VLAN tag beside its packets and not in them: there a native XDP program
/// does not see it, and a redirected packet has it no more.
#[test]
fn a_tag_beside_the_packet_is_seen() {
    let mut pair = Pair::new(&Setup::default());
    let ([web, far], [a, _]) = (&pair.pods, &pair.nodes);
    let (pod, own) = (&web.namespace, web.namespace.mac("eth0"));
    let gateway = a.namespace.mac("veth-web");
    // What comes in with a tag, at x1, has it beside it from then on.
    for line in [
        "ip link add br0 type bridge",
        "ip link add x0 type veth peer name x1",
        "ip link set x1 master br0 up",
        "ip link set x0 up",
        "ip link set eth0 master br0",
        "ip link set br0 up",
    ] {
        pod.run(line);
    }
    let ears = far.namespace.hear(&[&far.v4(), &far.v6()]);
    let tagged = |router: &Daemon| router.ask("status")["xdp"]["vlan_tagged"].as_u64();
    let before = tagged(&pair.routers[0]);
    for state in ["running", "killed"] {
        let mut arriving = Vec::new();
        for (kind, arrives) in [
            ("plain", true),
            ("vlan", false),
            ("priority", true),
            ("plain", true),
        ] {
            for (from, to) in [(web.v4(), far.v4()), (web.v6(), far.v6())] {
                let word = format!("{state}-{}", word(kind, &to));
                pod.forge(&format!(
                    "varied {kind} x0 {own} {gateway} {from} {to} {word}"
                ));
                if arrives {
                    arriving.push(word);
                }
            }
        }
        let others = ears.until(&arriving);
        assert!(others.is_empty(), "{state}: {others:?}");
        if state == "running" {
            assert_eq!(tagged(&pair.routers[0]), before.map(|n| n + 2));
            pair.routers[0].kill();
        }
    }
}

/// A switch floods a frame whose station it does not know, and its packet is for this node all the
/// same: neither path takes it. An interface that gets another MAC has that one from then on.
#[test]
fn a_frame_for_another_station_is_not_taken() {
    let mut pair = Pair::new(&Setup::default());
    let ([web, far], [a, b]) = (&pair.pods, &pair.nodes);
    let ears = web.namespace.hear(&[&web.v4(), &web.v6()]);
    let foreign = |router: &Daemon| {
        let count = router.ask("status")["xdp"]["foreign_mac"].as_u64();
        count.expect("a count")
    };
    let send_to = |station: &str, word: &str| {
        b.namespace.run(&format!(
            "ip neighbour replace 192.0.2.1 lladdr {station} dev eth0 nud permanent"
        ));
        for (from, to) in [(far.v4(), web.v4()), (far.v6(), web.v6())] {
            b.namespace.forge(&format!(
                "odd plain 192.0.2.2 192.0.2.1 {} 1 {from} {to} {word}-{to}",
                vtep_mac(1)
            ));
        }
    };
    let words = |word: &str| [web.v4(), web.v6()].map(|to| format!("{word}-{to}"));
    let mut own = a.namespace.mac("eth0");
    for state in ["running", "changed", "killed"] {
        if state == "changed" {
            own = "02:00:00:00:55:01".to_owned();
            a.namespace.run(&format!("ip link set eth0 address {own}"));
            // As soon as the program has the new MAC, workers take what is for it.
            let workers = |router: &Daemon| router.port("underlay", "rx_packets");
            let mut n = 0;
            wait_for("the new MAC to be followed", || {
                n += 1;
                let before = (foreign(&pair.routers[0]), workers(&pair.routers[0]));
                send_to(&own, &format!("try{n}"));
                ears.until(&words(&format!("try{n}")));
                let after = (foreign(&pair.routers[0]), workers(&pair.routers[0]));
                after.0 == before.0 && after.1 >= before.1 + 2
            });
        }
        if state == "killed" {
            pair.routers[0].kill();
        }
        let before = (state != "killed").then(|| foreign(&pair.routers[0]));
        send_to("02:00:00:00:66:99", &format!("{state}-foreign"));
        send_to(&own, &format!("{state}-own"));
        let others = ears.until(&words(&format!("{state}-own")));
        let unwanted = words(&format!("{state}-foreign"));
        let taken = others.iter().any(|word| unwanted.contains(word));
        assert!(!taken, "{state}: {others:?}");
        if let Some(before) = before {
            assert_eq!(foreign(&pair.routers[0]), before + 2, "{state}");
        }
    }
}
