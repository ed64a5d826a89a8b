//! A start knows the same states as a run: what is missing is reported, followed, and taken up when
//! it comes.

mod common;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{Daemon, Hooks, Node, Pair, Process, Setup, Testbed, vtep_mac, wait_for};
use serde_json::Value;

fn problem(router: &Daemon) -> String {
    let status = router.ask("status");
    text(&status["underlay"]["problem"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A pod's state and, while it is down, the reason.
fn pod(router: &Daemon, name: &str) -> (String, String) {
    let ports = router.ask("ports");
    let ports = ports["ports"].as_array().expect("ports");
    let port = ports.iter().find(|port| port["name"] == name);
    let port = port.unwrap_or_else(|| panic!("no {name}"));
    (text(&port["state"]), text(&port["reason"]))
}

fn is_up(router: &Daemon, name: &str) -> bool {
    pod(router, name).0 == "up"
}

#[test]
fn a_start_before_the_underlay_and_the_pods_are_there() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    let host = pair.nodes[0].namespace.clone();
    pair.routers[0].stop();

    // An interface without an address, then none at all.
    host.run("ip address flush dev eth0");
    pair.routers[0].start();
    assert!(problem(&pair.routers[0]).contains("no address"));
    assert_eq!(pair.routers[0].ask("status")["ready"], false);
    assert!(is_up(&pair.routers[0], "veth-web"), "pods do without");
    pair.routers[0].stop();
    host.run("ip link delete eth0");
    pair.routers[0].start();
    assert!(problem(&pair.routers[0]).contains("no such interface"));
    pair.nodes[0].plug();
    wait_for("the kernel's device to be back", || {
        host.run("ip -o link show type vxlan").contains("viaduct.1")
    });
    pair.goes_on_by_worker(&streams);
    assert_eq!(problem(&pair.routers[0]), "");

    // One that is down.
    pair.routers[0].stop();
    host.run("ip link set eth0 down");
    pair.routers[0].start();
    assert_eq!(problem(&pair.routers[0]), "it is down");
    host.run("ip link set eth0 up");
    // IPv6 addresses went with the link.
    host.run("ip address replace fd00:99::1/64 dev eth0 nodad");
    pair.goes_on_by_worker(&streams);
}

#[test]
fn a_pod_that_is_missing_or_does_not_fit_keeps_no_other_down() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let [web, dns, big] =
        [("web", 2), ("dns", 3), ("big", 4)].map(|(name, host)| bed.pod(&a, name, host));
    a.namespace.run("ip link delete veth-dns");
    a.namespace.run("ip link set veth-big mtu 9000");
    let router = bed.router_with(&a, &[&dns, &big, &web], &[], &sockets());
    assert!(is_up(&router, "veth-web"));
    assert!(pod(&router, "veth-dns").1.contains("does not exist"));
    assert!(pod(&router, "veth-big").1.contains("MTU of 9000"));
    dns.plug(&a);
    a.namespace.run("ip link set veth-big mtu 1450");
    wait_for("all pods to be up", || {
        ["veth-web", "veth-dns", "veth-big"]
            .iter()
            .all(|name| is_up(&router, name))
    });
    assert_eq!(web.namespace.ping(&dns.v4(), 3, 56), 3);
}

#[test]
fn an_underlay_that_does_not_fit_frames_is_left_to_the_kernel_from_the_start() {
    let mut pair = Pair::new(&Setup {
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    });
    let streams = pair.streams();
    pair.routers[0].stop();
    pair.nodes[0].namespace.run("ip link set eth0 mtu 1700");
    pair.routers[0].start();
    assert!(problem(&pair.routers[0]).contains("MTU of 1700"));
    pair.goes_on_by_kernel(&streams);
    pair.nodes[0].namespace.run("ip link set eth0 mtu 1500");
    pair.goes_on_by_worker(&streams);
}

/// One worker, with AF_XDP sockets at the devices.
fn sockets() -> Setup<'static> {
    Setup {
        workers: "count = 1",
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    }
}

/// Hooks in tc stay when a router stops. One of another name does not share a device with them.
#[test]
fn hooks_of_a_router_of_another_name_are_named_and_waited_for() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let settled = || Setup {
        hooks: Some(Hooks::Settled),
        // The kernel's path has the name of its node, too, and is refused by that.
        slow_path: "enabled = false",
        ..Setup::default()
    };
    let mut owner = bed.router_with(&a, &[&web], &[], &settled());
    owner.stop();
    let setup = Setup {
        name: Some("successor"),
        ..settled()
    };
    let router = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup);
    let cure = format!("viaduct cleanup --node {}", owner.name);
    assert!(problem(&router).contains(&cure), "{}", problem(&router));
    assert!(pod(&router, "veth-web").1.contains(&cure));
    let pins = bed.pins().join(&owner.name);
    for pin in fs::read_dir(pins).expect("pins") {
        fs::remove_file(pin.expect("a pin").path()).expect("unpinned");
    }
    wait_for("its own hooks", || {
        problem(&router).is_empty() && is_up(&router, "veth-web")
    });
}

/// The program of a dead router of another name is as foreign as any.
#[test]
fn a_foreign_xdp_program_is_named_and_waited_for() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let mut owner = bed.router_with(&a, &[&web], &[], &sockets());
    owner.kill();
    let foreign: Vec<_> = fs::read_dir(bed.pins().join(&owner.name))
        .expect("its pins")
        .map(|entry| entry.expect("a pin").path())
        .filter(|pin| pin.to_string_lossy().contains("link-"))
        .collect();
    assert_eq!(foreign.len(), 2);
    let setup = Setup {
        name: Some("successor"),
        ..sockets()
    };
    let router = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup);
    let foreign_program = "another XDP program";
    assert!(
        problem(&router).contains(foreign_program),
        "{}",
        problem(&router)
    );
    assert!(pod(&router, "veth-web").1.contains(foreign_program));
    for pin in foreign {
        fs::remove_file(pin).expect("unpinned");
    }
    wait_for("its own programs", || {
        problem(&router).is_empty() && is_up(&router, "veth-web")
    });
}

#[test]
fn queues_that_nobody_would_own_are_named() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 2);
    let web = bed.pod(&a, "web", 2);
    let setup = Setup {
        workers: "count = 1",
        underlay: "queues = 1",
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    let router = bed.router_with(&a, &[&web], &[], &setup);
    assert!(
        problem(&router).contains("2 receive queues"),
        "{}",
        problem(&router)
    );
    a.namespace.run("ethtool -L eth0 rx 1");
    wait_for("the underlay", || problem(&router).is_empty());
}

#[test]
fn renamed_interfaces_are_followed() {
    let mut pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    let host = pair.nodes[0].namespace.clone();
    host.run("ip link set veth-web name ens-web0");
    host.run("ip link set eth0 name ens0");
    pair.goes_on_by_worker(&streams);
    let router = &pair.routers[0];
    wait_for("the names", || {
        let ports = router.ask("ports")["ports"].clone();
        ports[1]["interface"] == "ens-web0" && ports[1]["renamed_from"] == "veth-web"
    });
    assert_eq!(problem(router), "");
    let problems = || router.ask("status")["slow_path"]["problems"].clone();
    wait_for("no problem", || {
        problems().as_array().is_some_and(Vec::is_empty)
    });
    // The kernel's path has them, too.
    wait_for("the firewall to know the new names", || {
        let guard = host.run("nft list table inet viaduct");
        guard.contains("ens-web0") && !guard.contains("veth-web")
    });
    pair.routers[0].kill();
    pair.goes_on_alone(&streams);

    // At a start the configured names count.
    pair.routers[0].start();
    assert!(problem(&pair.routers[0]).contains("no such interface"));
    assert!(
        pod(&pair.routers[0], "veth-web")
            .1
            .contains("if it was renamed")
    );
    host.run("ip link set ens-web0 name veth-web");
    host.run("ip link set ens0 name eth0");
    pair.goes_on_by_worker(&streams);
}

/// A start of a router that was stopped, which waits for `nft` until it is released.
struct HeldStart {
    process: Process,
    hold: PathBuf,
}

impl HeldStart {
    fn new(bed: &Testbed, node: &Node, router: &Daemon) -> Self {
        let folder = bed.directory.path().join("bin");
        fs::create_dir(&folder).expect("a folder");
        let hold = folder.join("hold");
        fs::write(&hold, "").expect("written");
        let script = format!(
            "#!/bin/sh\nif mkdir {0}/called 2>/dev/null; then while [ -e {0}/hold ]; do sleep 0.1; done; fi\nexec /usr/sbin/nft \"$@\"\n",
            folder.display()
        );
        let nft = folder.join("nft");
        fs::write(&nft, script).expect("written");
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).expect("executable");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = node.namespace.command(env!("CARGO_BIN_EXE_viaduct"));
        command
            .args(["run", "--config"])
            .arg(router.file())
            .env("PATH", format!("{}:{path}", folder.display()));
        let process = Process::start(command);
        wait_for("nft to be called", || folder.join("called").exists());
        Self { process, hold }
    }

    fn release(&self) {
        fs::remove_file(&self.hold).expect("removed");
    }
}

/// A start that waits ends when it is told to, and leaves nothing.
#[test]
fn a_start_hears_sigterm() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let mut router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    router.stop();
    router.cleanup();
    let before = state(&a);
    let mut start = HeldStart::new(&bed, &a, &router);
    start.process.signal("-TERM");
    start.process.ended("the start to end");
    let (said, code) = start.process.finish();
    assert!(code.success() && !said.contains("ready"), "{said}");
    start.release();
    assert_eq!(state(&a), before);
    assert!(!bed.pins().exists());
    let left = fs::read_dir(bed.directory.path())
        .expect("a folder")
        .flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name().into_string().expect("a name"))
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.contains(".sock") || name.contains(".lock")),
        "{left:?}"
    );
}

/// Who changes the file while a router starts, and has it read again, is heard: the signal ends
/// nothing, and what the file says now is there when the router is ready.
#[test]
fn a_start_hears_sighup() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let late = bed.pod(&a, "late", 3);
    let mut router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    router.stop();
    let mut start = HeldStart::new(&bed, &a, &router);
    let text = fs::read_to_string(router.file()).expect("its configuration");
    let pod = format!(
        "\n[[pods]]\ninterface = \"{}\"\naddresses = [\"{}\"]\n",
        late.interface,
        late.v4()
    );
    fs::write(router.file(), text + &pod).expect("its configuration");
    start.process.signal("-HUP");
    start.release();
    assert_eq!(start.process.line(), "ready");
    wait_for("the pod of the changed file", || {
        let ports = router.ask("ports");
        let ports = ports["ports"].as_array().expect("ports");
        ports
            .iter()
            .any(|port| port["name"] == "veth-late" && port["state"] == "up")
    });
    start.process.signal("-TERM");
    start.process.ended("the router to stop");
}

/// What a start may have changed.
fn state(node: &Node) -> String {
    let words = [
        "ip -d link show",
        "ip address show",
        "ip route show",
        "ip -6 route show",
        "nft -s list ruleset",
        "sysctl net.ipv4.conf.eth0.forwarding net.ipv4.conf.veth-web.proxy_arp",
    ];
    words
        .iter()
        .map(|words| node.namespace.run(words))
        .collect()
}

/// An address that moves from host to host is no address of one of them.
#[test]
fn virtual_addresses_are_not_taken_for_the_nodes_own() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let host = a.namespace.clone();
    host.run("ip address flush dev eth0 scope global");
    // As they come when virtual ones are configured before the subnet's.
    for address in ["192.0.2.200/32", "192.0.2.1/24", "192.0.2.201/24"] {
        host.run(&format!("ip address add {address} dev eth0"));
    }
    for address in [
        "fd00:99::dead/128 nodad",
        "fd00:99::5/64 nodad preferred_lft 0 valid_lft 3600",
        "fd00:99::1/64 nodad",
    ] {
        host.run(&format!("ip address add {address} dev eth0"));
    }
    let router = bed.router(&a, &[&web], &[(2, &vtep_mac(2))], "count = 1");
    let own = || {
        let addresses = router.ask("status")["underlay"]["addresses"].clone();
        addresses.to_string()
    };
    let chosen = "[\"192.0.2.1\",\"fd00:99::1\"]";
    assert_eq!(own(), chosen);
    for address in ["192.0.2.200/32", "fd00:99::dead/128"] {
        host.run(&format!("ip address delete {address} dev eth0"));
        host.run(&format!("ip address add {address} dev eth0 nodad"));
    }
    // While the node's own is away, another has to do; when it is back, it is taken again.
    host.run("ip address delete fd00:99::1/64 dev eth0");
    wait_for("another address", || own().contains("fd00:99::dead"));
    host.run("ip address add fd00:99::1/64 dev eth0 nodad");
    wait_for("the node's own", || own() == chosen);
}

/// A veth has XDP in its driver: what is in the way is the other end.
#[test]
fn generic_mode_has_its_reason() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    a.switch.run("ip link set u1 mtu 9000");
    let router = bed.router_with(&a, &[&web], &[], &sockets());
    let log = router.log();
    let line = log
        .lines()
        .find(|line| line.contains("generic mode"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains("MTU") && line.contains("eth0") && !line.contains("no native"),
        "{line}"
    );
}

/// Pods that find no file left are the kernel's; commands are served.
#[test]
fn commands_are_served_when_files_run_out() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let setup = Setup {
        workers: "count = 1\nmax_ports = 64",
        // A hook in tc needs few files.
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    };
    let mut router = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], &setup);
    router.stop();
    let mut text = fs::read_to_string(router.file()).expect("its configuration");
    for n in 10..50 {
        a.namespace
            .run(&format!("ip link add veth-{n} type veth peer name p{n}"));
        a.namespace.run(&format!("ip link set veth-{n} up"));
        let _ = writeln!(
            text,
            "[[pods]]\ninterface = \"veth-{n}\"\naddresses = [\"10.244.1.{n}\"]"
        );
    }
    fs::write(router.file(), text).expect("its configuration");
    router.limit_files(104);
    router.start();
    let reasons = || -> Vec<String> {
        let ports = router.ask("ports")["ports"].clone();
        let ports = ports.as_array().expect("ports").iter().skip(1);
        ports.map(|port| text_of(port, "reason")).collect()
    };
    let (down, up): (Vec<_>, Vec<_>) = reasons().into_iter().partition(|reason| !reason.is_empty());
    assert!(up.len() > 5 && down.len() > 5, "{down:?}");
    assert!(
        down.iter().all(|reason| reason.contains("RLIMIT_NOFILE")),
        "{down:?}"
    );
    for n in 10..15 {
        let (done, said) = router.command(&format!(
            "route add 10.244.{n}.0/24 --vtep 192.0.2.{n} --vtep-mac {}",
            vtep_mac(n)
        ));
        assert!(done, "{said}");
    }
    router.reload(|text| text.replace("veth-49", "veth-48x"));
    assert!(router.log().contains("the configuration was read again"));
}

fn text_of(value: &Value, key: &str) -> String {
    text(&value[key])
}

/// What cannot be written down is said, and keeps nobody from starting who has a key.
#[test]
fn a_state_directory_that_cannot_be_written() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod(&a, "web", 2);
    let mut router = bed.gossiping_router(&a, &[&web], 2);
    router.stop();
    let state = bed.directory.path().join("state").display().to_string();
    let read_only = format!("mount --bind {state} {state}\nmount -o remount,ro,bind {state}");
    let full = format!(
        "kept=$(mktemp -d)\nmount --bind {state} $kept\nmount -t tmpfs -o size=64k none {state}\ncp $kept/* {state}\n\
         umount $kept\nrmdir $kept\ndd if=/dev/zero of={state}/filler bs=4k 2>/dev/null || true"
    );
    for (mounts, why) in [(&read_only, "Read-only"), (&full, "is full")] {
        router.mount(mounts);
        router.start();
        assert!(is_up(&router, "veth-web"), "{}", router.log());
        assert_eq!(
            router.ask("peers")["peers"][0]["node"],
            router.name.as_str()
        );
        let log = router.log();
        let said = log
            .lines()
            .any(|line| line.contains("cannot write in") && line.contains(why));
        assert!(said, "{log}");
        assert!(log.contains("this start is not counted"), "{log}");
        router.stop();
    }
}
