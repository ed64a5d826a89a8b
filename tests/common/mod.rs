//! Nodes, pods and routers in network namespaces, removed when dropped.
//!
//! A test that is killed leaves namespaces named `vdt<pid>-...`; the next test
//! removes those whose process is gone.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::format_push_string,
    clippy::cast_possible_truncation,
    reason = "each test uses a part"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();
const BPFFS: &str = "/sys/fs/bpf";

/// Runs a command and returns what it printed; fails the test with its errors.
pub fn must(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `ready` says so, for ten seconds at most.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < until, "timed out: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn sweep() {
    let listed = must(Command::new("ip").args(["netns", "list"]));
    for name in listed.lines().filter_map(|l| l.split_whitespace().next()) {
        let pid = name
            .strip_prefix("vdt")
            .and_then(|n| n.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
    for entry in fs::read_dir(BPFFS).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("vdt")
            .and_then(|n| n.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_pins(&entry.path());
        }
    }
}

fn remove_pins(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_pins(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// A switch, and everything that a test connects to it.
pub struct Testbed {
    id: String,
    pub directory: TempDir,
    namespaces: Vec<String>,
}

/// A network namespace.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// A command inside. `ip netns exec` would hide the BPF filesystem.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs words inside.
    pub fn run(&self, words: &str) -> String {
        let mut words = words.split_whitespace();
        must(self.command(words.next().expect("a program")).args(words))
    }

    /// How many of `count` pings (20 ms apart) are answered.
    pub fn ping(&self, address: &str, count: u32, size: u32) -> u32 {
        let output = self
            .command("ping")
            .args([
                "-q",
                "-W",
                "1",
                "-i",
                "0.02",
                "-c",
                &count.to_string(),
                "-s",
                &size.to_string(),
                address,
            ])
            .output()
            .expect("ping runs");
        let out = text(&output.stdout);
        let received = out.split(", ").find_map(|p| p.strip_suffix(" received"));
        received
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("ping {address}: {out}"))
    }
}

impl Testbed {
    pub fn new() -> Self {
        assert!(
            Path::new("/proc/self/ns/net").exists(),
            "network namespaces are needed"
        );
        let id = must(Command::new("id").arg("-u"));
        assert_eq!(
            id.trim(),
            "0",
            "these tests make network namespaces: run them as root"
        );
        let kind = must(Command::new("stat").args(["-f", "-c", "%T", BPFFS]));
        assert_eq!(
            kind.trim(),
            "bpf_fs",
            "no BPF filesystem: mount -t bpf bpf {BPFFS} (./dev setup does)"
        );
        SWEEP.call_once(sweep);
        let id = format!(
            "vdt{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut testbed = Self {
            id,
            directory: TempDir::new().expect("a temporary folder"),
            namespaces: Vec::new(),
        };
        let switch = testbed.namespace("sw");
        switch.run("ip link add br0 type bridge");
        switch.run("ip link set br0 up");
        testbed
    }

    pub fn namespace(&mut self, name: &str) -> Namespace {
        let namespace = Namespace {
            name: format!("{}-{name}", self.id),
        };
        must(Command::new("ip").args(["netns", "add", &namespace.name]));
        self.namespaces.push(namespace.name.clone());
        namespace.run("ip link set lo up");
        namespace
            .run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        namespace
    }

    /// A node with `eth0` (192.0.2.N) on the switch.
    pub fn node(&mut self, n: u8, queues: u8) -> Node {
        let namespace = self.namespace(&format!("n{n}"));
        let switch = Namespace {
            name: format!("{}-sw", self.id),
        };
        namespace.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        namespace.run(&format!(
            "ip link add eth0 numrxqueues {queues} numtxqueues {queues} type veth \
             peer name u{n} numrxqueues {queues} numtxqueues {queues} netns {}",
            switch.name
        ));
        switch.run(&format!("ip link set u{n} master br0 up"));
        namespace.run(&format!("ip address add 192.0.2.{n}/24 dev eth0"));
        namespace.run("ip link set eth0 up");
        Node {
            n,
            queues,
            namespace,
            switch_port: format!("u{n}"),
            switch,
        }
    }

    /// A pod of a node at host part `host`: 10.244.N.host and its like.
    pub fn pod(&mut self, node: &Node, name: &str, host: u8) -> Pod {
        let namespace = self.namespace(&format!("n{}{name}", node.n));
        let pod = Pod {
            namespace,
            interface: format!("veth-{name}"),
            n: node.n,
            host,
        };
        pod.plug(node);
        pod
    }

    /// Starts a router with this configuration on a node.
    pub fn router(
        &self,
        node: &Node,
        pods: &[&Pod],
        peers: &[(u8, &str)],
        workers: &str,
    ) -> Daemon {
        let n = node.n;
        let name = format!("{}-{n}", self.id);
        let mut config = format!(
            "[node]\nname = \"{name}\"\n[underlay]\ninterface = \"eth0\"\n[workers]\n{workers}\nmax_ports = 16\n\
             [runtime]\ndirectory = \"{}\"\nbpffs = \"{BPFFS}/{}\"\n\
             [[networks]]\nname = \"default\"\nvni = 1\nvtep_mac = \"{}\"\n\
             pod_prefixes = [\"10.244.{n}.0/24\", \"fd00:10:244:{n}::/64\"]\n\
             cluster_prefixes = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]\n",
            self.directory.path().display(),
            self.id,
            vtep_mac(n),
        );
        for pod in pods {
            config += &format!(
                "[[pods]]\ninterface = \"{}\"\naddresses = [\"{}\", \"{}\"]\n",
                pod.interface,
                pod.v4(),
                pod.v6()
            );
        }
        for (peer, mac) in peers {
            config += &format!(
                "[[routes]]\nprefixes = [\"10.244.{peer}.0/24\", \"fd00:10:244:{peer}::/64\"]\n\
                 vtep = \"192.0.2.{peer}\"\nvtep_mac = \"{mac}\"\n"
            );
        }
        let file = self.directory.path().join(format!("node-{n}.toml"));
        fs::write(&file, config).expect("the configuration is written");
        let mut daemon = Daemon {
            name,
            namespace: node.namespace.clone(),
            directory: self.directory.path().to_owned(),
            file,
            child: None,
        };
        daemon.start();
        daemon
    }

    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.id)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
        remove_pins(&self.pins());
    }
}

/// The VTEP MAC of node N in tests.
pub fn vtep_mac(n: u8) -> String {
    format!("02:00:00:00:01:{n:02x}")
}

pub struct Node {
    pub n: u8,
    pub queues: u8,
    pub namespace: Namespace,
    pub switch: Namespace,
    pub switch_port: String,
}

pub struct Pod {
    pub namespace: Namespace,
    pub interface: String,
    pub n: u8,
    pub host: u8,
}

impl Pod {
    pub fn v4(&self) -> String {
        format!("10.244.{}.{}", self.n, self.host)
    }

    pub fn v6(&self) -> String {
        format!("fd00:10:244:{}::{}", self.n, self.host)
    }

    /// Makes the veth pair between node and pod, as a CNI plugin would.
    pub fn plug(&self, node: &Node) {
        let (veth, q, n) = (&self.interface, node.queues, node.n);
        let host = &node.namespace;
        host.run(&format!(
            "ip link add {veth} mtu 1450 numrxqueues {q} numtxqueues {q} type veth \
             peer name eth0 mtu 1450 numrxqueues {q} numtxqueues {q} netns {}",
            self.namespace.name
        ));
        host.run(&format!("ip address add 169.254.1.1/32 dev {veth}"));
        host.run(&format!("ip address add fe80::1/64 dev {veth} nodad"));
        host.run(&format!("ip link set {veth} up"));
        host.run(&format!(
            "ip route add {}/32 dev {veth} src 192.0.2.{n}",
            self.v4()
        ));
        host.run(&format!("ip -6 route add {}/128 dev {veth}", self.v6()));
        let pod = &self.namespace;
        pod.run(&format!("ip address add {}/32 dev eth0", self.v4()));
        pod.run(&format!("ip address add {}/128 dev eth0 nodad", self.v6()));
        pod.run("ip link set eth0 up");
        pod.run("ip route add 169.254.1.1 dev eth0 scope link");
        pod.run("ip route add default via 169.254.1.1");
        pod.run("ip -6 route add default via fe80::1 dev eth0");
    }

    /// Sends `bytes` of a pattern over TCP to `address` of `to` and has them
    /// compared there.
    pub fn tcp(&self, to: &Pod, address: &str, bytes: usize) {
        let data = Path::new("/tmp").join(format!("{}-data", self.namespace.name));
        let pattern: Vec<u8> = (0..bytes)
            .map(|i| ((i * 2_654_435_761) >> 7) as u8)
            .collect();
        fs::write(&data, &pattern).expect("data is written");
        let family = if address.contains(':') {
            "TCP6"
        } else {
            "TCP4"
        };
        let listen = format!("{family}-LISTEN:5000,reuseaddr");
        let sink = data.with_extension("received");
        let file = fs::File::create(&sink).expect("a file for what arrives");
        let mut server = to.namespace.command("timeout");
        server
            .args(["30", "socat", "-u", &listen, "STDOUT"])
            .stdout(file);
        let mut server = server.spawn().expect("socat runs");
        let target = if address.contains(':') {
            format!("TCP6:[{address}]:5000")
        } else {
            format!("TCP4:{address}:5000")
        };
        let source = format!("FILE:{}", data.display());
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let sent: Output = self
                .namespace
                .command("timeout")
                .args(["30", "socat", "-u", &source, &target])
                .output()
                .expect("socat runs");
            if sent.status.success() {
                break;
            }
            assert!(
                Instant::now() < until,
                "tcp to {address}: {}",
                text(&sent.stderr)
            );
            sleep(Duration::from_millis(50));
        }
        let _ = server.wait();
        let received = fs::read(&sink).expect("what arrived");
        let _ = fs::remove_file(&sink);
        let _ = fs::remove_file(&data);
        assert!(
            received == pattern,
            "tcp to {address}: {} of {bytes} bytes, or not the same",
            received.len()
        );
    }
}

/// A running router.
pub struct Daemon {
    name: String,
    namespace: Namespace,
    directory: PathBuf,
    file: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    pub fn start(&mut self) {
        let log =
            fs::File::create(self.directory.join(format!("{}.log", self.name))).expect("a log");
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_viaduct"));
        command
            .args(["run", "--config"])
            .arg(&self.file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().expect("the router starts"));
        let until = Instant::now() + Duration::from_secs(10);
        while self.try_ask("status").is_none() {
            let ended = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().ok().flatten());
            assert!(
                ended.is_none() && Instant::now() < until,
                "the router did not start: {}",
                self.log()
            );
            sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    fn try_ask(&self, what: &str) -> Option<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
            .args([what, "--json", "--node", &self.name, "--directory"])
            .arg(&self.directory)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// `status`, `ports`, `routes` or `drops`.
    pub fn ask(&self, what: &str) -> Value {
        self.try_ask(what)
            .unwrap_or_else(|| panic!("no answer to {what}: {}", self.log()))
    }

    /// A counter of a port, "underlay" or a pod's interface.
    pub fn port(&self, name: &str, counter: &str) -> u64 {
        let ports = self.ask("ports");
        let ports = ports["ports"].as_array().expect("ports");
        let port = ports
            .iter()
            .find(|p| p["name"] == name)
            .unwrap_or_else(|| panic!("no port {name}"));
        port[counter]
            .as_u64()
            .unwrap_or_else(|| panic!("no {counter} at {name}"))
    }

    /// Packets that came up, received or made here, and what became of them:
    /// sent, punted or dropped.
    pub fn balance(&self) -> (u64, u64) {
        let ports = self.ask("ports");
        let sum = |c: &str| {
            ports["ports"]
                .as_array()
                .expect("ports")
                .iter()
                .map(|p| p[c].as_u64().unwrap_or(0))
                .sum::<u64>()
        };
        (
            sum("rx_packets") + sum("originated"),
            sum("tx_packets") + sum("punts") + sum("drops"),
        )
    }

    pub fn signal(&self, signal: &str) {
        let pid = self
            .child
            .as_ref()
            .expect("a running router")
            .id()
            .to_string();
        must(Command::new("kill").args([signal, &pid]));
    }

    /// Kills it, as the kernel would.
    pub fn kill(&mut self) {
        self.signal("-KILL");
        let _ = self.child.take().map(|mut c| c.wait());
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let mut child = self.child.take().expect("a running router");
        wait_for("the router to stop", || {
            child.try_wait().expect("a child").is_some()
        });
        let code = child.wait().expect("a child");
        assert!(code.success(), "{code}: {}", self.log());
    }

    /// `viaduct cleanup` with its configuration.
    pub fn cleanup(&self) -> String {
        must(
            self.namespace
                .command(env!("CARGO_BIN_EXE_viaduct"))
                .args(["cleanup", "--config"])
                .arg(&self.file),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                eprintln!("--- log of {}\n{}", self.name, self.log());
            }
        }
    }
}
