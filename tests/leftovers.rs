//! A test run leaves nothing, however it ends.

mod common;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Process, Testbed, must, prefix_of, vtep_mac, wait_for};

/// The test run of the tests below: a router and a pod, until its input ends.
#[test]
#[ignore = "run by the other tests of this file"]
fn a_test_run() {
    let mut bed = Testbed::new();
    let node = bed.node(1, 1);
    let pod = bed.pod(&node, "web", 2);
    let router = bed.router(&node, &[&pod], &[(2, &vtep_mac(2))], "count = 1");
    let _listener = pod.namespace.spawn("socat -u TCP4-LISTEN:22 STDOUT");
    assert_eq!(router.ask("status")["ready"], true);
    println!("\nup");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Starts the above in a process of its own and waits until all is up.
fn test_run(input: Stdio) -> Process {
    let this = std::env::current_exe().expect("this test's program");
    let mut command = Command::new(this);
    command
        .args(["--exact", "a_test_run", "--ignored", "--nocapture"])
        .stdin(input);
    let mut run = Process::start(command);
    let lines = std::iter::from_fn(|| Some(run.line()));
    assert!(lines.take(20).any(|line| line == "up"), "it did not start");
    run
}

/// Names that begin with `prefix` in `folder`.
fn names(folder: &str, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

/// Processes with `word` in their command line, zombies (without one) apart.
fn processes(word: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|e| fs::read(e.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(word))
        .collect()
}

/// All there is of a test run, its watchdog included.
fn traces(prefix: &str) -> Vec<String> {
    let temporary = std::env::temp_dir();
    let folders = [
        "/run/netns",
        "/sys/fs/bpf",
        temporary.to_str().expect("a path"),
    ];
    let mut all: Vec<_> = folders.iter().flat_map(|f| names(f, prefix)).collect();
    all.extend(processes(prefix));
    all
}

fn wait_until_gone(what: &str, traces: impl Fn() -> Vec<String>) {
    let until = Instant::now() + Duration::from_secs(15);
    while !traces().is_empty() {
        assert!(Instant::now() < until, "{what} left {:#?}", traces());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_test_run_leaves_nothing_and_others_keep_theirs() {
    let mut bed = Testbed::new();
    let own = bed.namespace("own");
    let mut run = test_run(Stdio::piped());
    let prefix = prefix_of(run.id());
    let inside = || {
        let mut pids: Vec<String> = Vec::new();
        for file in names("/run/netns", &prefix) {
            let name = file.trim_start_matches("/run/netns/");
            let inside = must(Command::new("ip").args(["netns", "pids", name]));
            pids.extend(inside.lines().map(str::to_owned));
        }
        pids
    };
    // The router may have just started a program that is about to end.
    wait_for("a router and a listener inside", || inside().len() == 2);
    let pids = inside();
    // Switch, node, pod; the folder; the pins; router; watchdog.
    assert!(traces(&prefix).len() >= 7, "{:#?}", traces(&prefix));
    run.signal("-KILL");
    run.ended("the killed test run");
    wait_until_gone("a killed test run", || {
        let running = |pid: &&String| {
            let line = fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| !line.is_empty())
        };
        let mut left = traces(&prefix);
        left.extend(pids.iter().filter(running).cloned());
        left
    });
    own.run("ip link show lo");
    assert!(bed.directory.path().exists());
}

#[test]
fn a_test_run_that_ends_by_itself_leaves_not_even_its_watchdog() {
    let mut run = test_run(Stdio::null());
    let prefix = prefix_of(run.id());
    let (said, status) = run.finish();
    assert!(status.success(), "{said}");
    wait_until_gone("a finished test run", || traces(&prefix));
}
