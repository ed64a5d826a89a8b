//! Nodes, pods and routers in network namespaces, removed when dropped.
//!
//! What a test makes is named `vdt<pid>-...`; the watchdog removes what a test
//! that is killed leaves.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::format_push_string,
    clippy::cast_possible_truncation,
    reason = "each test uses a part"
)]

mod daemon;
mod forge;
mod gossip;
mod namespace;
mod ovs;
mod pair;
mod peer;
mod pod;
mod stream;
mod traffic;
mod trust;
mod watchdog;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use daemon::Daemon;
pub use forge::Ears;
pub use gossip::{CLUSTER, write_key};
pub use namespace::{Namespace, Process};
pub use ovs::OpenVswitch;
pub use pair::Pair;
pub use peer::Vxlan;
pub use pod::{Node, Pod};
pub use stream::Stream;
pub use traffic::{Answers, OneWay, PYTHON, capture, captured, captured_lengths, script};
pub use trust::{Authority, Signee};
pub use watchdog::prefix_of;

static NEXT: AtomicU32 = AtomicU32::new(0);
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

/// Waits until `ready` says so, for half a minute at most: machines that test are busy.
pub fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !ready() {
        assert!(Instant::now() < until, "timed out: {what}");
        sleep(Duration::from_millis(20));
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
    pub id: String,
    pub directory: TempDir,
    namespaces: Vec<String>,
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
        watchdog::start();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", watchdog::prefix());
        let directory = tempfile::Builder::new().prefix(&format!("{id}-")).tempdir();
        let mut testbed = Self {
            id,
            directory: directory.expect("a temporary folder"),
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

    /// A node with `eth0` (192.0.2.N, fd00:99::N) on the switch; its pods have as many queues.
    pub fn node(&mut self, n: u8, queues: u8) -> Node {
        let node = Node {
            n,
            queues,
            namespace: self.namespace(&format!("n{n}")),
            switch_port: format!("u{n}"),
            switch: Namespace {
                name: format!("{}-sw", self.id),
            },
        };
        node.plug();
        node
    }

    /// A pod of a node at host part `host`: 10.244.N.host and its like.
    pub fn pod(&mut self, node: &Node, name: &str, host: u8) -> Pod {
        self.pod_with(node, name, host, node.queues, false)
    }

    /// One whose veth pair has so many queues at both ends.
    pub fn pod_with_queues(&mut self, node: &Node, name: &str, host: u8, queues: u8) -> Pod {
        self.pod_with(node, name, host, queues, false)
    }

    /// One with a /24 and a /64.
    pub fn classic_pod(&mut self, node: &Node, name: &str, host: u8) -> Pod {
        self.pod_with(node, name, host, node.queues, true)
    }

    fn pod_with(&mut self, node: &Node, name: &str, host: u8, queues: u8, classic: bool) -> Pod {
        let namespace = self.namespace(&format!("n{}{name}", node.n));
        let pod = Pod {
            namespace,
            interface: format!("veth-{name}"),
            n: node.n,
            host,
            queues,
            classic,
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
        let setup = Setup {
            workers,
            ..Setup::default()
        };
        self.router_with(node, pods, peers, &setup)
    }

    pub fn router_with(
        &self,
        node: &Node,
        pods: &[&Pod],
        peers: &[(u8, &str)],
        setup: &Setup<'_>,
    ) -> Daemon {
        let n = node.n;
        let name = match setup.name {
            Some(name) => format!("{}-{name}", self.id),
            None => format!("{}-{n}", self.id),
        };
        let max_ports = if setup.workers.contains("max_ports") {
            ""
        } else {
            "max_ports = 16"
        };
        let [hook, hooks] = setup.hooks.unwrap_or_else(Hooks::usual).lines();
        let mut config = format!(
            "[node]\nname = \"{name}\"\n[underlay]\ninterface = \"eth0\"\n{hook}\n{}\n{hooks}\n[workers]\n{}\n{max_ports}\n\
             [slow_path]\n{}\n[runtime]\ndirectory = \"{}\"\nbpffs = \"{BPFFS}/{}\"\n\
             [[networks]]\nname = \"default\"\nvni = 1\nvtep_mac = \"{}\"\n\
             pod_prefixes = [\"10.244.{n}.0/24\", \"fd00:10:244:{n}::/64\"]\n\
             cluster_prefixes = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]\n{}\n",
            setup.underlay,
            setup.workers,
            setup.slow_path,
            self.directory.path().display(),
            self.id,
            vtep_mac(n),
            setup.network,
        );
        // With several, each says its own.
        let network = if setup.more.is_empty() {
            ""
        } else {
            "network = \"default\"\n"
        };
        for pod in pods {
            config += &format!(
                "[[pods]]\n{network}interface = \"{}\"\naddresses = [\"{}\", \"{}\"]\n",
                pod.interface,
                pod.v4(),
                pod.v6()
            );
        }
        for (peer, mac) in peers {
            config += &format!(
                "[[routes]]\n{network}prefixes = [\"10.244.{peer}.0/24\", \"fd00:10:244:{peer}::/64\"]\n\
                 addresses = [\"fd00:99::{peer}\", \"192.0.2.{peer}\"]\n\
                 vtep = \"{}\"\nvtep_mac = \"{mac}\"\n{}\n",
                setup.vtep(*peer),
                setup.route,
            );
        }
        config += setup.more;
        let file = self.directory.path().join(format!("{name}.toml"));
        fs::write(&file, config).expect("the configuration is written");
        let mut daemon = Daemon {
            name,
            namespace: node.namespace.clone(),
            directory: self.directory.path().to_owned(),
            file,
            arguments: setup.arguments.iter().map(ToString::to_string).collect(),
            environment: setup
                .environment
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            mounts: None,
            files: None,
            hosts: None,
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

/// Where a router looks at packets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// In XDP, with sockets at all devices.
    Xdp,
    /// In tc; all is the workers'.
    Tc,
    /// In tc, which carries what is settled: as a router has them by default.
    Settled,
}

impl Hooks {
    /// Which hooks routers have whose test does not say: `VIADUCT_TEST_HOOKS` is `xdp` or `tc`, or they are the default's.
    pub fn usual() -> Self {
        match std::env::var("VIADUCT_TEST_HOOKS").as_deref() {
            Ok("xdp") => Self::Xdp,
            Ok("tc") => Self::Tc,
            _ => Self::Settled,
        }
    }

    /// A line of `[underlay]`, and the table `[hooks]`.
    const fn lines(self) -> [&'static str; 2] {
        match self {
            Self::Xdp => ["hook = \"xdp\"", "[hooks]\npods = \"xsk\""],
            Self::Tc => ["hook = \"tc\"", "[hooks]\npods = \"tc\"\nsettled = false"],
            Self::Settled => ["", ""],
        }
    }
}

/// How a router differs from the usual one.
#[derive(Default)]
pub struct Setup<'a> {
    /// The end of the node's name, where it is not its number.
    pub name: Option<&'a str>,
    /// Lines of `[workers]`.
    pub workers: &'a str,
    /// Lines of `[underlay]`.
    pub underlay: &'a str,
    /// Where packets are looked at first, where it is not for the environment to say.
    pub hooks: Option<Hooks>,
    /// Lines of `[slow_path]`.
    pub slow_path: &'a str,
    /// Peers that are reached over IPv6; the others over IPv4.
    pub over_v6: &'a [u8],
    /// Peers that have this VTEP.
    pub vteps: &'a [(u8, &'a str)],
    /// Further lines of each `[[routes]]`.
    pub route: &'a str,
    /// Further lines of `[[networks]]`.
    pub network: &'a str,
    /// The end of the configuration: further networks, their pods and routes.
    pub more: &'a str,
    /// Further arguments of `viaduct run`.
    pub arguments: &'a [&'a str],
    pub environment: &'a [(&'a str, &'a str)],
}

impl Setup<'_> {
    fn vtep(&self, peer: u8) -> String {
        if let Some((_, vtep)) = self.vteps.iter().find(|(node, _)| *node == peer) {
            (*vtep).to_owned()
        } else if self.over_v6.contains(&peer) {
            format!("fd00:99::{peer}")
        } else {
            format!("192.0.2.{peer}")
        }
    }
}

/// The VTEP MAC of node N in tests.
pub fn vtep_mac(n: u8) -> String {
    format!("02:00:00:00:01:{n:02x}")
}
