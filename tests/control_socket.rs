//! Clients of the control socket that are silent, many, or come when files have run out.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::{Daemon, Testbed, must, vtep_mac, wait_for};

struct Site {
    router: Daemon,
    bed: Testbed,
}

impl Site {
    fn new() -> Self {
        let mut bed = Testbed::new();
        let node = bed.node(1, 1);
        let pod = bed.pod(&node, "web", 2);
        let router = bed.router(&node, &[&pod], &[(2, &vtep_mac(2))], "count = 1");
        Self { router, bed }
    }

    /// A client that sends so much and waits.
    fn client(&self, bytes: &str) -> UnixStream {
        let socket = self.bed.directory.path();
        let socket = socket.join(format!("{}.sock", self.router.name));
        let mut client = UnixStream::connect(socket).expect("it listens");
        client.write_all(bytes.as_bytes()).expect("it is open");
        client
    }

    fn command(&self, words: &str) {
        let (did, said) = self.router.command(words);
        assert!(did, "{words}: {said}");
    }
}

#[test]
fn silent_clients_delay_neither_commands_nor_changes() {
    let site = Site::new();
    let mut clients = Vec::new();
    // More than are served at a time: the oldest ones are closed.
    for n in 0..100 {
        clients.push(site.client(["", "half a requ", "status\n"][n % 3]));
    }
    for round in 0..5 {
        for what in ["status", "ports", "routes", "drops"] {
            site.router.ask(what);
        }
        site.command(&format!(
            "route add 10.244.{}.0/24 --vtep 192.0.2.9 --vtep-mac 02:00:00:00:00:09",
            50 + round
        ));
        site.command(&format!("route del 10.244.{}.0/24", 50 + round));
    }
    // A file that is read again is a change, too.
    site.router
        .reload(|text| text.replace("10.244.2.0/24", "10.244.3.0/24"));
    wait_for("the file's route", || {
        site.router
            .ask("routes")
            .to_string()
            .contains("10.244.3.0/24")
    });
    drop(clients);
    site.router.ask("status");
}

#[test]
fn clients_that_talk_at_once_are_all_answered() {
    let site = Site::new();
    std::thread::scope(|scope| {
        for n in 0..40 {
            let site = &site;
            scope.spawn(move || {
                let prefix = format!("10.244.{}.0/24", 50 + n);
                site.command(&format!(
                    "route add {prefix} --vtep 192.0.2.9 --vtep-mac 02:00:00:00:00:09"
                ));
                site.router.ask("routes");
                site.command(&format!("route del {prefix}"));
            });
        }
    });
    assert_eq!(site.router.ask("status")["routes"], 2);
}

/// The process may open no further file.
#[test]
fn commands_are_answered_when_files_have_run_out() {
    let site = Site::new();
    let pid = site.router.pid();
    let limit = |soft: &str| {
        must(Command::new("prlimit").args([&format!("--pid={pid}"), &format!("--nofile={soft}:")]));
    };
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let before = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let before = before.and_then(|line| line.split_whitespace().nth(3));
    let before = before.expect("a limit").to_owned();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files");
    let open: Vec<u32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let free = (0..65536)
        .find(|number| !open.contains(number))
        .expect("one");
    limit(&free.to_string());
    for _ in 0..5 {
        site.router.ask("status");
        site.router.ask("ports");
        site.command("route add 10.244.9.0/24 --vtep 192.0.2.9 --vtep-mac 02:00:00:00:00:09");
        site.command("route del 10.244.9.0/24");
    }
    // Silent ones have to give way.
    let silent: Vec<_> = (0..10).map(|_| site.client("")).collect();
    for _ in 0..3 {
        site.router.ask("status");
    }
    drop(silent);
    limit(&before);
    site.router.ask("status");
}
