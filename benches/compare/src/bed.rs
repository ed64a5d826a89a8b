//! Three network namespaces: pods, the node under measurement, and the far end of its underlay.
//!
//! All of a node's pods are interfaces of one namespace, since the generator takes turns among interfaces.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use viaduct_encap::MacAddr;
use viaduct_pktgen::Namespace;

use crate::watchdog;

/// Pods that a node may have here.
pub(crate) const MOST_PODS: u32 = 110;
/// Prefixes of other nodes' pods that there may be: of 10.0.0.0/8, below 10.244.0.0.
pub(crate) const MOST_ROUTES: u32 = 62_000;
/// Other nodes; prefixes take turns among them.
pub(crate) const MOST_NODES: u32 = 100;
/// Bytes of IP packet that a pod may send.
pub(crate) const POD_MTU: u32 = 1450;
/// The node's interface to others.
pub(crate) const UNDERLAY: &str = "eth0";
/// VXLAN's network and port, as flannel has them.
pub(crate) const VNI: u32 = 1;
pub(crate) const VXLAN_PORT: u16 = 8472;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The underlay addresses of the node and of the `n`th other node.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(crate) fn far(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(NODE) + 1 + n)
}

/// The underlay MACs of the node and of all others.
pub(crate) const NODE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const FAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// The VTEPs' MACs.
pub(crate) const VTEP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
pub(crate) fn far_vtep_mac(n: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, 2, byte(n)])
}

/// The MAC of the node's end of all pods' interfaces.
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 4]);

fn byte(n: u32) -> u8 {
    u8::try_from(n % 256).unwrap_or(0)
}

/// The `n`th prefix of other nodes' pods is this /24.
pub(crate) fn prefix(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n * 256)
}

/// The first address that is sent to in a prefix.
pub(crate) fn far_pod(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix(n)) + 2)
}

/// One of the node's pods.
#[derive(Clone, Copy)]
pub(crate) struct Pod(pub(crate) u32);

impl Pod {
    pub(crate) fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(0x0af4_0102 + self.0)
    }
    /// Its interface, in the pods' namespace.
    pub(crate) fn interface(self) -> String {
        format!("p{}", self.0)
    }
    /// The other end, at the node.
    pub(crate) fn host_interface(self) -> String {
        format!("h{}", self.0)
    }
    pub(crate) fn mac(self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 3, byte(self.0)])
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) pods: u32,
    /// Prefixes of other nodes.
    pub(crate) routes: u32,
}

impl Shape {
    pub(crate) fn nodes(self) -> u32 {
        self.routes.min(MOST_NODES)
    }
    pub(crate) fn pods(self) -> impl Iterator<Item = Pod> {
        (0..self.pods).map(Pod)
    }
    /// By other node: its prefixes' numbers.
    pub(crate) fn prefixes_of(self, node: u32) -> impl Iterator<Item = u32> {
        (node..self.routes).step_by(self.nodes() as usize)
    }
}

/// The namespaces, removed when this is dropped.
pub(crate) struct Bed {
    pub(crate) id: String,
    pub(crate) shape: Shape,
    pub(crate) folder: TempDir,
    names: Vec<String>,
}

impl Bed {
    pub(crate) fn new(shape: Shape) -> anyhow::Result<Self> {
        ensure!(
            (1..=MOST_PODS).contains(&shape.pods),
            "{} pods: 1 to {MOST_PODS} are possible",
            shape.pods
        );
        ensure!(
            (1..=MOST_ROUTES).contains(&shape.routes),
            "{} routes: 1 to {MOST_ROUTES} are possible",
            shape.routes
        );
        watchdog::start()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", watchdog::prefix());
        let folder = tempfile::Builder::new()
            .prefix(&format!("{id}-"))
            .tempdir()
            .context("no temporary folder")?;
        let mut bed = Self {
            id,
            shape,
            folder,
            names: Vec::new(),
        };
        for role in ["pods", "node", "far"] {
            let name = bed.name(role);
            run(Command::new("ip").args(["netns", "add", &name]))?;
            bed.names.push(name);
        }
        bed.connect()?;
        Ok(bed)
    }

    fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.id)
    }

    pub(crate) fn pods(&self) -> Namespace {
        Namespace::new(Some(&self.name("pods")))
    }
    pub(crate) fn node(&self) -> Namespace {
        Namespace::new(Some(&self.name("node")))
    }
    pub(crate) fn far(&self) -> Namespace {
        Namespace::new(Some(&self.name("far")))
    }

    /// A command in the node's namespace. `ip netns exec` would hide the BPF filesystem.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name("node")))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Words in the node's namespace, for [`run_words`].
    pub(crate) fn words(&self, words: &str) -> Vec<String> {
        let net = format!("--net=/run/netns/{}", self.name("node"));
        let words = words.split_whitespace().map(ToOwned::to_owned);
        ["nsenter".to_owned(), net, "--".to_owned()]
            .into_iter()
            .chain(words)
            .collect()
    }

    /// Runs words in the node's namespace.
    pub(crate) fn run(&self, words: &str) -> anyhow::Result<String> {
        self.run_in("node", words)
    }

    fn run_in(&self, role: &str, words: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name(role)))
            .arg("--");
        run(command.args(words.split_whitespace()).stdin(Stdio::null()))
    }

    /// Writes a setting of an interface below its namespace's /sys/class/net.
    pub(crate) fn write_sys(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let script = format!("echo {value} > /sys/class/net/{file}");
        run(Command::new("ip").args(["netns", "exec", &self.name("node"), "sh", "-c", &script]))?;
        Ok(())
    }

    /// Has `ip` do many things in the node's namespace.
    pub(crate) fn batch(&self, program: &str, lines: &str) -> anyhow::Result<()> {
        batch(program, &self.name("node"), lines)
    }

    fn connect(&self) -> anyhow::Result<()> {
        let (pods, node, far_name) = (self.name("pods"), self.name("node"), self.name("far"));
        for role in ["pods", "node", "far"] {
            self.run_in(
                role,
                "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
                 net.ipv6.conf.default.router_solicitations=0",
            )?;
        }
        let mut lines = format!(
            "link set lo up\n\
             link add {UNDERLAY} address {NODE_MAC} type veth peer name {UNDERLAY} address {FAR_MAC} netns {far_name}\n\
             address add {NODE}/16 dev {UNDERLAY}\n\
             link set {UNDERLAY} up\n"
        );
        for pod in self.shape.pods() {
            let (host, interface) = (pod.host_interface(), pod.interface());
            writeln!(
                lines,
                "link add {host} address {GATEWAY_MAC} mtu {POD_MTU} type veth peer name {interface} address {} mtu {POD_MTU} netns {pods}\n\
                 link set {host} up",
                pod.mac(),
            )?;
        }
        for n in 0..self.shape.nodes() {
            writeln!(
                lines,
                "neighbour add {} lladdr {FAR_MAC} dev {UNDERLAY} nud permanent",
                far(n)
            )?;
        }
        batch("ip", &node, &lines)?;
        let mut lines = String::new();
        for pod in self.shape.pods() {
            let interface = pod.interface();
            writeln!(
                lines,
                "address add {}/32 dev {interface}\nlink set {interface} up",
                pod.address()
            )?;
        }
        batch("ip", &pods, &lines)?;
        let lines = format!(
            "address add {}/16 dev {UNDERLAY}\nlink set {UNDERLAY} up\n",
            far(0)
        );
        batch("ip", &far_name, &lines)?;
        // Frames that XDP sends enter a veth only so, unless an XDP program is at its end.
        self.run(&format!("ethtool -K {UNDERLAY} gro on"))?;
        self.run_in("far", &format!("ethtool -K {UNDERLAY} gro on"))?;
        for pod in self.shape.pods() {
            self.run_in("pods", &format!("ethtool -K {} gro on", pod.interface()))?;
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
        let _ = std::fs::remove_dir_all(Path::new(watchdog::BPFFS).join(&self.id));
    }
}

fn batch(program: &str, namespace: &str, lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| missing(program))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // It reads all before it says much.
    let written = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    checked(&format!("{program} -batch"), &output)?;
    Ok(written?)
}

fn missing(program: &str) -> String {
    format!("cannot run {program}: is it installed? (./dev setup)")
}

fn checked(what: &str, output: &Output) -> anyhow::Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        bail!("{what}: {} {}", text(&output.stderr), text(&output.stdout));
    }
    Ok(text(&output.stdout))
}

/// Runs a command: what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| missing(&program))?;
    checked(&shortened(&format!("{command:?}")), &output)
}

/// Commands have long lines; who reads what went wrong needs their beginning.
fn shortened(command: &str) -> String {
    const MOST: usize = 200;
    match command.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &command[..end]),
        None => command.to_owned(),
    }
}

/// Runs words: what they printed.
pub(crate) fn run_words(words: &[String]) -> anyhow::Result<String> {
    let (program, arguments) = words.split_first().context("no command")?;
    run(Command::new(program).args(arguments))
}
