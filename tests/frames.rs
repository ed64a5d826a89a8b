//! Every frame of a UMEM stays in somebody's hands, whatever comes and goes.

#![allow(clippy::format_push_string, reason = "a batch is made once")]

mod common;

use std::fs;
use std::process::{Child, Stdio};

use common::{Daemon, Namespace, Pod, Testbed, must, wait_for};

/// Ports that come and go, this many at a time.
const AT_ONCE: u8 = 8;
const ROUNDS: u32 = 125;
const PACKETS: u64 = 1_000_000;

/// A program that runs until it is dropped.
struct Running(Child);

impl Running {
    fn start(namespace: &Namespace, program: &str, words: &str) -> Self {
        let mut command = namespace.command(program);
        command
            .args(words.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nsenter has become the program, so this ends it and nothing else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One command of `ip` for many changes.
fn batch(namespace: &Namespace, bed: &Testbed, lines: &str) {
    let file = bed.directory.path().join("batch");
    fs::write(&file, lines).expect("a batch is written");
    let mut ip = namespace.command("ip");
    must(ip.arg("-batch").arg(&file));
}

fn states(router: &Daemon, state: &str) -> usize {
    let ports = router.ask("ports");
    let ports = ports["ports"].as_array().expect("ports");
    ports.iter().filter(|p| p["state"] == state).count()
}

#[test]
fn the_umem_is_whole_after_a_million_packets_and_a_thousand_ports() {
    let mut bed = Testbed::new();
    let a = bed.node(1, 2);
    let (web, dns) = (bed.pod(&a, "web", 2), bed.pod(&a, "dns", 3));
    let passing: Vec<Pod> = (0..AT_ONCE)
        .map(|n| Pod {
            namespace: a.namespace.clone(),
            interface: format!("veth-p{n}"),
            n: 1,
            host: 100 + n,
            queues: 2,
            classic: false,
        })
        .collect();
    let (mut make, mut delete) = (String::new(), String::new());
    for pod in &passing {
        let name = &pod.interface;
        make += &format!(
            "link add {name} mtu 1450 numrxqueues 2 numtxqueues 2 type veth peer name {name}p mtu 1450 numrxqueues 2 numtxqueues 2\n\
             link set {name} up\nlink set {name}p up\n"
        );
        delete += &format!("link delete {name}\n");
    }
    batch(&a.namespace, &bed, &make);
    let pods: Vec<&Pod> = [&web, &dns].into_iter().chain(&passing).collect();
    let router = bed.router(&a, &pods, &[], "count = 2");
    let steady = pods.len() + 1 - usize::from(AT_ONCE);

    let _server = Running::start(&dns.namespace, "iperf3", "-s");
    wait_for("iperf3 to listen", || {
        dns.namespace.run("ss -ltnH").contains(":5201")
    });
    let words = format!("-c {} -u -b 30M -l 100 -P 4 -t 600", dns.v4());
    let client = Running::start(&web.namespace, "iperf3", &words);
    let carried = || router.port("veth-dns", "tx_packets");
    wait_for("the stream to begin", || carried() > 1000);
    for round in 0..ROUNDS {
        let before = carried();
        wait_for("the ports to be attached", || {
            states(&router, "up") == steady + passing.len()
        });
        batch(&a.namespace, &bed, &delete);
        wait_for("the ports to go down", || states(&router, "up") == steady);
        batch(&a.namespace, &bed, &make);
        assert!(
            carried() > before,
            "the stream stands still in round {round}"
        );
    }
    let mut last = 0;
    while carried() < PACKETS {
        let now = carried();
        assert!(now > last, "the stream stands still at {now} packets");
        last = now;
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    drop(client);
    router.assert_whole();
    router.assert_balanced();
    for port in router.ask("ports")["ports"].as_array().expect("ports") {
        assert_eq!(port["kernel"]["invalid_descriptors"], 0, "{port}");
    }
}
