//! The command line against routers that run, are not ready, are dead, are not there; and with
//! readers that go away.

mod common;

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Daemon, Hooks, Setup, Testbed, vtep_mac, wait_for};

const VIADUCT: &str = env!("CARGO_BIN_EXE_viaduct");

/// A command for routers of a folder.
fn ask(words: &str, directory: &Path) -> Command {
    let mut command = Command::new(VIADUCT);
    command
        .args(words.split_whitespace())
        .arg("--directory")
        .arg(directory)
        .stdin(Stdio::null());
    command
}

/// Its exit code and all that it says.
fn said(mut command: Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("viaduct runs");
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// A pipe that nobody reads from.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A router with one pod and one route.
fn router(bed: &mut Testbed) -> Daemon {
    let node = bed.node(1, 1);
    let pod = bed.pod(&node, "web", 2);
    bed.router(&node, &[&pod], &[(2, &vtep_mac(2))], "count = 1")
}

#[test]
fn status_says_first_whether_the_router_is_ready_and_why_not() {
    let mut bed = Testbed::new();
    let router = router(&mut bed);
    let directory = bed.directory.path().to_owned();
    let status = || said(ask("status", &directory));
    let (code, text) = status();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("ready\n"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    let node = common::Namespace {
        name: format!("{}-n1", bed.id),
    };
    node.run("ip link set eth0 down");
    wait_for("the underlay to be down", || {
        router.ask("status")["ready"] == false
    });
    let (code, text) = status();
    assert_eq!(code, Some(1), "{text}");
    let first = text.lines().next().unwrap_or_default();
    assert!(first.starts_with("NOT READY: the underlay eth0 "), "{text}");
    assert!(first.contains("it is down"), "{text}");
    // Programs read the fields; the exit code says that there is an answer.
    let (code, _) = said(ask("status --json", &directory));
    assert_eq!(code, Some(0));
    let problems = router.ask("status")["problems"].clone();
    assert_eq!(problems[0]["subject"], "underlay", "{problems}");
    assert_eq!(problems[0]["not_ready"], true, "{problems}");
    node.run("ip link set eth0 up");
    wait_for("the router to be ready", || status().0 == Some(0));
    // A problem that leaves the router ready is shown, too.
    node.run("ip link set veth-web down");
    wait_for("the pod to be down", || {
        status().1.contains("web (veth-web)")
    });
    assert_eq!(status().0, Some(0));
}

#[test]
fn a_router_that_is_not_there_is_named_and_so_are_those_that_are() {
    let mut bed = Testbed::new();
    let directory = bed.directory.path().to_owned();
    let none = directory.join("none");
    let refused = |words: &str, directory: &Path, wanted: &[&str]| {
        let (code, text) = said(ask(words, directory));
        assert_eq!(code, Some(3), "{words}: {text}");
        for wanted in wanted {
            assert!(text.contains(wanted), "{words}: {wanted}: {text}");
        }
    };
    refused(
        "status",
        &none,
        &["no such folder", &none.display().to_string()],
    );
    refused("routes --node a", &none, &["no such folder"]);
    refused(
        "ports",
        &directory,
        &["has no control socket", "--directory"],
    );
    let mut router = router(&mut bed);
    let name = router.name.clone();
    // What another router left, that was killed.
    drop(UnixListener::bind(directory.join("dead.sock")).expect("a socket"));
    for words in [
        "status",
        "ports",
        "routes",
        "drops",
        "forget x",
        "port del x",
    ] {
        let words = format!("{words} --node typo");
        refused(&words, &directory, &["typo.sock", &name, "dead"]);
    }
    refused("status --node dead", &directory, &["cleanup --node dead"]);
    let (code, text) = said(ask("status", &directory));
    assert_eq!(code, Some(0), "the one that lives needs no --node: {text}");
    // A pod that is not there yet is followed; the command says so.
    let (code, text) = said(ask(
        "port add --interface nope --address 10.244.1.9",
        &directory,
    ));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.starts_with("done; but the workers do not carry nope"),
        "{text}"
    );
    assert!(text.contains("does not exist"), "{text}");
    assert_eq!(
        said(ask("port del nope", &directory)),
        (Some(0), "done\n".to_owned())
    );
    // A command that is refused, or none, is no missing router.
    assert_eq!(said(ask("peers", &directory)).0, Some(1));
    assert_eq!(said(ask("port del nobody", &directory)).0, Some(1));
    assert_eq!(said(ask("status --node a/b", &directory)).0, Some(1));
    assert_eq!(said(ask("stats", &directory)).0, Some(2));
    router.kill();
    refused("status", &directory, &["not running any more"]);
    refused(
        &format!("drops --node {name}"),
        &directory,
        &[&format!("cleanup --node {name}")],
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut bed = Testbed::new();
    let router = router(&mut bed);
    let directory = bed.directory.path().to_owned();
    let without_reader = |mut command: Command, wanted: i32| {
        let output = command.stdout(closed()).output().expect("viaduct runs");
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(wanted), "{command:?}: {says}");
        assert_eq!(says, "", "{command:?}");
        // Nor is it one when errors have no reader.
        let status = command.stdout(closed()).stderr(closed()).status();
        assert_eq!(
            status.expect("viaduct runs").code(),
            Some(wanted),
            "{command:?}"
        );
    };
    let asked = ["status", "ports", "routes", "drops", "routes 10.244.2.1"];
    for words in asked {
        without_reader(ask(words, &directory), 0);
        without_reader(ask(&format!("{words} --json"), &directory), 0);
    }
    let plain = |words: &str| {
        let mut command = Command::new(VIADUCT);
        command.args(words.split_whitespace());
        command
    };
    for words in ["--help", "status --help", "--version", "key new"] {
        without_reader(plain(words), 0);
    }
    let node = common::Namespace {
        name: format!("{}-n1", bed.id),
    };
    let mut generate = node.command(VIADUCT);
    let words = "pktgen --interface eth0 --gateway 02:00:00:00:00:09 --destination 192.0.2.9 --rate 100 --duration 0.05";
    generate.args(words.split_whitespace());
    without_reader(generate, 0);
    // Errors keep their codes.
    let failing = |mut command: Command, wanted: i32| {
        let status = command.stdout(closed()).stderr(closed()).status();
        assert_eq!(
            status.expect("viaduct runs").code(),
            Some(wanted),
            "{command:?}"
        );
    };
    failing(ask("status --node typo", &directory), 3);
    failing(plain("no-such-command"), 2);
    failing(plain("check --config /no/such/file"), 1);
    drop(router);
}

#[test]
fn a_router_outlives_the_reader_of_its_log() {
    let mut bed = Testbed::new();
    let mut router = router(&mut bed);
    let directory = bed.directory.path().to_owned();
    router.stop();
    let node = common::Namespace {
        name: format!("{}-n1", bed.id),
    };
    let mut command = node.command(VIADUCT);
    command
        .args(["run", "--config"])
        .arg(&router.file)
        .env("RUST_LOG", "debug")
        .stdin(Stdio::null())
        .stdout(closed())
        .stderr(closed());
    let mut child = command.spawn().expect("viaduct runs");
    wait_for("the router to be ready", || {
        said(ask("status", &directory)).0 == Some(0)
    });
    common::must(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    wait_for("the router to stop", || {
        child.try_wait().expect("a child").is_some()
    });
    assert!(child.wait().expect("a child").success());
}

/// A node with this further prefix, where it is not empty, that gossips with node 1.
fn gossiping(bed: &Testbed, node: &common::Node, prefix: &str) -> Daemon {
    let mut router = bed.gossiping_router(node, &[], 1);
    router.stop();
    let text = fs::read_to_string(&router.file).expect("its configuration");
    let text = text.replace(
        "pod_prefixes = [",
        &format!("pod_prefixes = [\"{prefix}\", "),
    );
    fs::write(&router.file, text).expect("written");
    router.start();
    router
}

/// A prefix of this node that others send to another one: `status` says so, and which command
/// mends it.
#[test]
fn a_node_that_others_do_not_send_to_is_not_ready_and_says_what_mends_it() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let mut older = gossiping(&bed, &nodes[0], "10.244.77.0/24");
    let older_claim = "claimed 10.244.77.0/24 first";
    let second = std::time::SystemTime::now();
    wait_for(
        "the next second, which makes the other claim a later one",
        || second.elapsed().is_ok_and(|passed| passed.as_secs() >= 2),
    );
    let newer = gossiping(&bed, &nodes[1], "10.244.77.0/25");
    let directory = bed.directory.path();
    let status = || said(ask(&format!("status --node {}", newer.name), directory));
    wait_for("the later claim to be no use", || {
        let (code, text) = status();
        let unwrapped = text.split_whitespace().collect::<Vec<_>>().join(" ");
        code == Some(1) && text.starts_with("NOT READY: ") && unwrapped.contains(older_claim)
    });
    let problems = newer.ask("status")["problems"].clone();
    assert_eq!(problems[0]["subject"], "prefix", "{problems}");
    assert_eq!(newer.ask("status")["ready"], false);
    // The other one dies; its claim stands until it is forgotten, or has been silent for long.
    older.kill();
    let forget = format!("viaduct forget {}", older.name);
    wait_for(
        "the command that mends it, or time to have mended it",
        || {
            let (code, text) = status();
            code == Some(0) || text.contains(&format!("To mend it: {forget}"))
        },
    );
    let words = forget.replacen("viaduct ", "", 1);
    let (_, text) = said(ask(&format!("{words} --node {}", newer.name), directory));
    wait_for("the node to be ready", || status().0 == Some(0));
    assert!(!text.contains("panic"), "{text}");
}

/// What the kernel drops in front of a worker's socket, and what XDP drops, stand in `drops` with
/// their meaning.
#[test]
fn drops_shows_what_sockets_and_hooks_dropped() {
    drops_in_front_of_a_stuck_worker(Hooks::Xdp, "kernel");
    drops_in_front_of_a_stuck_worker(Hooks::Settled, "hook");
}

/// `fate`: who drops what finds no place in front of the worker.
fn drops_in_front_of_a_stuck_worker(hooks: Hooks, fate: &str) {
    let mut bed = Testbed::new();
    let node = bed.node(1, 1);
    let pod = bed.pod(&node, "web", 2);
    let setup = Setup {
        workers: "count = 1\nheartbeat_timeout_ms = 60000",
        hooks: Some(hooks),
        ..Setup::default()
    };
    let router = bed.router_with(&node, &[&pod], &[(2, &vtep_mac(2))], &setup);
    let rows = |fate: &str| {
        let drops = router.ask("drops");
        let rows = drops["drops"].as_array().expect("rows").iter();
        let rows = rows.filter(|row| row["fate"] == fate && row["packets"].as_u64() > Some(0));
        rows.cloned().collect::<Vec<_>>()
    };
    let spoofed = || rows("xdp").iter().any(|row| row["reason"] == "spoofed");
    assert!(rows(fate).is_empty() && !spoofed());
    let stuck = router.stick("worker-0");
    let gateway = node.namespace.run("ip -brief link show veth-web");
    let gateway = gateway.split_whitespace().nth(2).expect("its MAC");
    let mut generate = pod.namespace.command(VIADUCT);
    let words = format!(
        "pktgen --interface eth0 --gateway {gateway} --destination 10.244.2.9 --engine af-xdp --rate 50000 --duration 0.3"
    );
    common::must(generate.args(words.split_whitespace()));
    // To the host, from an address that is not the pod's.
    pod.namespace.run("ip address add 10.9.9.9/32 dev eth0");
    pod.namespace
        .ping_with(&["-I", "10.9.9.9"], "192.0.2.1", 1, 56);
    drop(stuck);
    wait_for("drops in front of the worker", || !rows(fate).is_empty());
    let row = &rows(fate)[0];
    assert_eq!(row["port"], "veth-web", "{row}");
    wait_for("what the pod's hook dropped", spoofed);
    let (code, text) = said(ask("drops", bed.directory.path()));
    assert_eq!(code, Some(0));
    assert!(
        text.contains("spoofed") && text.contains("not the pod's"),
        "{text}"
    );
    assert!(text.contains(&format!(" {fate}  ")), "{text}");
}

#[test]
fn what_a_command_adds_and_cannot_be_written_down_is_a_problem_until_it_is() {
    let mut bed = Testbed::new();
    let router = router(&mut bed);
    let directory = bed.directory.path();
    // The new file cannot be made where a folder is.
    let in_the_way = directory.join(format!("{}.commands.new", router.name));
    fs::create_dir(&in_the_way).expect("a folder");
    let (done, said) = router.command(&format!(
        "route add 10.244.9.0/24 --vtep 192.0.2.9 --vtep-mac {}",
        vtep_mac(9)
    ));
    assert!(done, "{said}");
    let status = router.ask("status");
    let text = status["problems"].to_string();
    assert!(text.contains("ends with this daemon"), "{text}");
    assert_eq!(status["ready"], true, "it works all the same");
    fs::remove_dir(&in_the_way).expect("empty");
    wait_for("it to be written down", || {
        let text = router.ask("status")["problems"].to_string();
        !text.contains("ends with this daemon")
    });
    let file = directory.join(format!("{}.commands", router.name));
    let text = fs::read_to_string(file).expect("it is there");
    assert!(text.contains("10.244.9.0/24"), "{text}");
}
