//! A configuration that was found sound: plain values, defaults filled in, names resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::Mac;

/// The UDP port of a network that names none: that of Linux's VXLAN device and of flannel, older than the one of
/// RFC 7348 (4789).
pub const DEFAULT_UDP_PORT: u16 = 8472;

/// One node's whole configuration. Made by [`Config::load`] or [`Config::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it was read from, for messages that name a line of it.
    pub file: PathBuf,
    /// `[node]`.
    pub node: NodeConfig,
    /// `[underlay]`.
    pub underlay: UnderlayConfig,
    /// `[workers]`.
    pub workers: WorkersConfig,
    /// `[hooks]`.
    pub hooks: HooksConfig,
    /// `[runtime]`.
    pub runtime: RuntimeConfig,
    /// `[slow_path]`.
    pub slow_path: SlowPathConfig,
    /// `[gossip]`; none: this node hears of no other by itself.
    pub gossip: Option<GossipConfig>,
    /// `[[networks]]`, at least one; names and VNIs are unique.
    pub networks: Vec<NetworkConfig>,
    /// `[[pods]]`, at most [`WorkersConfig::max_ports`]; names and interfaces are unique.
    pub pods: Vec<PodConfig>,
    /// `[[routes]]`; a prefix occurs once in a network.
    pub routes: Vec<RouteConfig>,
    /// `[[delegations]]`; a prefix occurs once in a network.
    pub delegations: Vec<DelegationConfig>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// One or more RFC 1123 labels joined by dots, 1 to 63 bytes, lower case.
    pub name: String,
}

/// The network between nodes, as this node reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayConfig {
    /// The interface's name, 1 to 15 bytes.
    pub interface: String,
    /// The address other nodes send to; none when it is to be found on the interface.
    pub address: Option<Ipv4Addr>,
    /// The same over IPv6.
    pub address6: Option<Ipv6Addr>,
    /// Where its packets are looked at first; none: [`Hook::Tc`] where the kernel has it.
    pub hook: Option<Hook>,
    /// How XDP programs are attached.
    pub xdp: XdpMode,
    /// How many receive queues Viaduct may own, 1 to 1024; none for all.
    pub queues: Option<usize>,
    /// The line that names the interface, from 1.
    pub line: usize,
}

impl UnderlayConfig {
    /// The addresses that were given.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.address.map(IpAddr::V4);
        v4.into_iter().chain(self.address6.map(IpAddr::V6))
    }
}

/// How XDP programs are attached to the underlay interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// Native where the driver has it, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's stack, with any driver.
    Generic,
}

/// Where packets of a device are looked at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// In XDP, with AF_XDP sockets at the device's own queues.
    Xdp,
    /// In tc (tcx, Linux 6.6): the device keeps its offloads, and workers get what is theirs over veth pairs of their own.
    Tc,
}

/// What looks at packets first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HooksConfig {
    /// Of pods that do not say; none: [`Hook::Tc`] where the kernel has it.
    pub pods: Option<Hook>,
    /// Whether hooks in tc carry what is settled. All is the workers' otherwise.
    pub settled: bool,
}

impl Default for HooksConfig {
    fn default() -> Self {
        Self {
            pods: None,
            settled: true,
        }
    }
}

/// The threads that forward packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkersConfig {
    /// How many, 1 to 64.
    pub count: usize,
    /// The CPU of each worker, [`count`](Self::count) different ones; none when the choice is left to the program.
    pub cpus: Option<Vec<usize>>,
    /// What a worker without packets does.
    pub polling: Polling,
    /// For how long packets may gather at an adaptive worker while they come fast, at most 1 ms.
    pub gather: Duration,
    /// The most pods that can be attached at a time, 1 to 1024.
    pub max_ports: usize,
    /// Flows that each worker remembers, at most; 128 bytes each.
    pub flow_cache: usize,
    /// How long XDP programs trust a worker that shows no life, 100 ms to 60 s.
    pub heartbeat_timeout: Duration,
}

/// What a worker without packets does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Polling {
    /// Sleeps until there are packets.
    #[default]
    Adaptive,
    /// Goes on asking, on a CPU of its own.
    Busy,
}

/// Where a running daemon keeps what others find it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Holds control sockets and locks. Absolute.
    pub directory: PathBuf,
    /// Holds pinned BPF links. Absolute, in a mounted bpffs.
    pub bpffs: PathBuf,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            directory: "/run/viaduct".into(),
            bpffs: "/sys/fs/bpf/viaduct".into(),
        }
    }
}

impl RuntimeConfig {
    /// The control socket of `node`'s daemon: `<directory>/<node>.sock`.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.sock"))
    }

    /// The file that `node`'s daemon holds locked while it runs: `<directory>/<node>.lock`.
    pub fn lock(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.lock"))
    }

    /// Where the kernel settings are written down that `node`'s daemon changed: `<directory>/<node>.settings`.
    pub fn settings(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.settings"))
    }

    /// Where what `node`'s daemon was told by command is written down: `<directory>/<node>.commands`.
    pub fn commands(&self, node: &str) -> PathBuf {
        self.directory.join(format!("{node}.commands"))
    }

    /// The directory of `node`'s pins: `<bpffs>/<node>`, dots in the name replaced by underscores, because a bpffs
    /// refuses names with dots (kernel `bpf_lookup` in kernel/bpf/inode.c). Node names have no underscores, so two
    /// nodes never share one.
    pub fn pins(&self, node: &str) -> PathBuf {
        self.bpffs.join(node.replace('.', "_"))
    }
}

/// The kernel as a path beside the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowPathConfig {
    /// Whether Viaduct makes the kernel able to carry the first network.
    pub enabled: bool,
    /// The name of the VXLAN device that is made where none is adopted, 1 to 15 bytes.
    pub device: String,
    /// The same for the one over IPv6.
    pub device6: String,
    /// Whether pods' packets to the outside get the node's address.
    pub masquerade: bool,
    /// What is left when the daemon ends.
    pub on_exit: OnExit,
}

/// What becomes of the pods' traffic when the daemon has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExit {
    /// Hooks go on with what is settled, and the kernel carries the rest, after a clean stop and after a crash.
    #[default]
    Kernel,
    /// As `Kernel` after a crash; a clean stop removes all that Viaduct made, and restores the
    /// kernel's settings.
    Remove,
    /// Nothing passes, until a daemon runs again or `viaduct cleanup` is called.
    FailClosed,
}

/// The UDP port of gossip where none is named. IANA has assigned it to nobody, and it is none that other software
/// of nodes uses: docs/gossip.md names these.
pub const DEFAULT_GOSSIP_PORT: u16 = 7950;

/// How this node learns of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// A name as a node's; nodes of other clusters are not heard.
    pub cluster: String,
    /// Holds the cluster's key: 64 hexadecimal digits. Absolute.
    pub key_file: PathBuf,
    /// Where other nodes may be found: host (a name, or an address) and UDP port.
    pub peers: Vec<(String, u16)>,
    /// The UDP port of this node's gossip, not 0.
    pub port: u16,
    /// A directory that outlives a restart of the machine: this node's own key and incarnation. Absolute.
    pub state: PathBuf,
    /// What binds other nodes' names to their keys.
    pub trust: Trust,
    /// What nodes without prefixes of their own in [`nodes`](Self::nodes) may claim; none: all of the cluster's.
    pub allowed_prefixes: Option<Vec<IpNet>>,
    /// Underlay addresses that any node may have beside the one of its gossip, if they are free.
    pub allowed_addresses: Vec<IpNet>,
    /// `[[gossip.nodes]]`; names are unique.
    pub nodes: Vec<GossipNode>,
    /// How soon a node that does not answer is missed.
    pub detection: DetectionConfig,
}

/// What binds a node's name to its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The first key that is seen with a name: the weakest.
    FirstSight,
    /// Each of [`GossipConfig::nodes`] has one.
    Configured,
    /// A signature of the cluster's authority.
    Authority {
        /// The authority's Ed25519 public key.
        key: [u8; 32],
        /// Holds what it signed for this node. Absolute.
        certificate: PathBuf,
    },
}

/// What is known of a node before it says anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipNode {
    /// Its name.
    pub name: String,
    /// Its Ed25519 public key; there, when [`Trust::Configured`].
    pub key: Option<[u8; 32]>,
    /// What it may announce, and nobody else; none: what is free. No host bits.
    pub allowed_prefixes: Option<Vec<IpNet>>,
    /// Underlay addresses that it may have, and nobody else; none: the one of its gossip.
    pub allowed_addresses: Option<Vec<IpNet>>,
}

/// Times of SWIM; none: those of a local network, by the number of nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DetectionConfig {
    /// How often a node asks another whether it lives, 50 ms to 60 s.
    pub probe_interval: Option<Duration>,
    /// How long it waits for the answer before it has others ask, 50 ms to half of the interval.
    pub probe_timeout: Option<Duration>,
    /// How long a node is suspected before it is missed, 50 ms to 10 min.
    pub suspicion: Option<Duration>,
}

/// An address of this node's prefixes that another node has: its pod has moved there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelegationConfig {
    /// Index into [`Config::networks`].
    pub network: usize,
    /// Inside one of this node's pod prefixes, and not all of it. No host bits.
    pub prefix: IpNet,
    /// The other node's name.
    pub node: String,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Unique; 1 to 253 bytes without white space.
    pub name: String,
    /// VXLAN network identifier (RFC 7348 section 5), 1 to 16777215, unique.
    pub vni: u32,
    /// UDP destination port, not 0.
    pub port: u16,
    /// This node's address inside VXLAN, unicast; [`derive_vtep_mac`](crate::derive_vtep_mac) when not given.
    pub vtep_mac: Mac,
    /// The same in packets over IPv6, where it is another one; `vtep_mac` when not given.
    pub vtep_mac6: Mac,
    /// Whether outer UDP checksums over IPv6 are computed, where a route says nothing else; they are
    /// by default.
    pub udp_checksum6: bool,
    /// DSCP of outer packets, 0 to 63; none: that of the inner packet.
    pub dscp: Option<u8>,
    /// Prefixes of this node's pods, at least one, disjoint, each inside one of `cluster_prefixes`. No host bits.
    pub pod_prefixes: Vec<IpNet>,
    /// Prefixes of all nodes' pods, at least one. No host bits.
    pub cluster_prefixes: Vec<IpNet>,
    /// The line that names it, from 1.
    pub line: usize,
}

/// How much a pod may send, or receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateConfig {
    /// Bits a second, at least 1,000.
    pub bits_per_second: u64,
    /// Bits at once; what passes in 50 ms, and at least 8 frames of 1,514 bytes, when not given.
    pub burst_bits: u64,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodConfig {
    /// Unique; 1 to 253 bytes without white space; the interface's name when not given.
    pub name: String,
    /// The host's end of its veth pair, 1 to 15 bytes, unique.
    pub interface: String,
    /// Index into [`Config::networks`].
    pub network: usize,
    /// At least one, each of no other pod in the network, and inside its pod prefixes, or, if the pod has
    /// [`moved`](Self::moved), outside them and inside the cluster's.
    pub addresses: Vec<IpAddr>,
    /// Whether it has come from another node with its addresses.
    pub moved: bool,
    /// Unicast; none when it is to be learned.
    pub mac: Option<Mac>,
    /// What it may send; none when that is not limited.
    pub egress: Option<RateConfig>,
    /// What it may receive; none when that is not limited.
    pub ingress: Option<RateConfig>,
    /// Where its packets are looked at first; none: as [`HooksConfig::pods`] says. One whose rate is limited has [`Hook::Xdp`].
    pub attach: Option<Hook>,
    /// The line that names the interface, from 1; 0 when a command gave the pod.
    pub line: usize,
}

/// A static route to pods on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// Index into [`Config::networks`].
    pub network: usize,
    /// At least one, each inside the network's cluster prefixes. No host bits.
    pub prefixes: Vec<IpNet>,
    /// The other node's own addresses beside `vtep`, outside the cluster's prefixes.
    pub addresses: Vec<IpAddr>,
    /// The other node's underlay address, unicast.
    pub vtep: IpAddr,
    /// Whether outer UDP checksums are computed for it, where `vtep` is IPv6.
    pub udp_checksum6: bool,
    /// The other node's address inside VXLAN, unicast; one for each VTEP of a network.
    pub vtep_mac: Mac,
    /// The other node's name, when the operator gave it in place of the MAC.
    pub node: Option<String>,
    /// The line that names the VTEP, from 1; 0 when a command gave the route.
    pub line: usize,
}
