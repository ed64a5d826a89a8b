//! Nodes without a router: Open vSwitch, its userspace datapath, as a peer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Namespace, Node, Pod, Process, Testbed, must, vtep_mac, wait_for};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// `OpenFlow` number of the pod's port; tunnels have ten more than their node's number.
const POD: u8 = 1;
const TUNNELS: u8 = 10;

/// Open vSwitch's daemons in a node's namespace, ended when dropped.
pub struct OpenVswitch {
    folder: PathBuf,
    host: Namespace,
    _daemons: [Process; 2],
}

impl OpenVswitch {
    /// Has Open vSwitch carry the pod's packets from and to other nodes: the underlay in a bridge
    /// that has the node's address, the pod and a tunnel for each other node in another, whose
    /// flows do what a router does. `underlay` is how it opens `eth0`: "system" (packet sockets)
    /// or "afxdp".
    pub fn start(bed: &Testbed, node: &Node, pod: &Pod, peers: &[u8], underlay: &str) -> Self {
        let folder = bed.directory.path().join(format!("ovs-{}", node.n));
        std::fs::create_dir(&folder).expect("a folder");
        let database = folder.join("conf.db");
        must(
            Command::new("ovsdb-tool")
                .arg("create")
                .arg(&database)
                .arg(SCHEMA),
        );
        let host = node.namespace.clone();
        let socket = folder.join("db.sock");
        let server = daemon(&host, &folder, "ovsdb-server", |command| {
            command
                .arg(&database)
                .arg(format!("--remote=punix:{}", socket.display()));
        });
        wait_for("Open vSwitch's database", || socket.exists());
        let switch = daemon(&host, &folder, "ovs-vswitchd", |command| {
            command.arg(format!("unix:{}", socket.display()));
        });
        let ovs = Self {
            folder,
            host,
            _daemons: [server, switch],
        };
        ovs.connect(node, pod, peers, underlay);
        ovs.route(node, pod, peers);
        ovs
    }

    fn connect(&self, node: &Node, pod: &Pod, peers: &[u8], underlay: &str) {
        let host = &self.host;
        let mac = host.mac("eth0");
        self.vsctl("--no-wait init");
        self.vsctl(&format!(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev other_config:hwaddr=\"{mac}\" \
             -- add-port br-phy eth0 -- set interface eth0 type={underlay}"
        ));
        self.vsctl(&format!(
            "add-br br-int -- set bridge br-int datapath_type=netdev fail-mode=secure \
             -- add-port br-int {pod} -- set interface {pod} ofport_request={POD}",
            pod = pod.interface,
        ));
        for peer in peers {
            self.vsctl(&format!(
                "add-port br-int vx{peer} -- set interface vx{peer} type=vxlan options:key=1 \
                 options:dst_port=8472 options:remote_ip=192.0.2.{peer} ofport_request={}",
                TUNNELS + peer,
            ));
        }
        host.run("ip address flush dev eth0 scope global");
        host.run(&format!("ip address add 192.0.2.{}/24 dev br-phy", node.n));
        host.run("ip link set br-phy up");
        host.run("ip link set br-int up");
    }

    fn route(&self, node: &Node, pod: &Pod, peers: &[u8]) {
        let own = vtep_mac(node.n);
        for peer in peers {
            let (tunnel, far) = (TUNNELS + peer, vtep_mac(*peer));
            for (family, destination) in [
                ("ip", format!("nw_dst=10.244.{peer}.0/24")),
                ("ipv6", format!("ipv6_dst=fd00:10:244:{peer}::/64")),
            ] {
                self.flow(&format!(
                    "in_port={POD},{family},{destination},actions=dec_ttl,\
                     mod_dl_src:{own},mod_dl_dst:{far},output:{tunnel}"
                ));
                self.flow(&format!(
                    "in_port={tunnel},{family},dl_dst={own},actions=dec_ttl,\
                     mod_dl_dst:{},output:{POD}",
                    pod.namespace.mac("eth0"),
                ));
            }
        }
        // Nobody answers for the gateway, and nobody finishes checksums.
        let pod = &pod.namespace;
        for gateway in ["169.254.1.1", "fe80::1"] {
            pod.run(&format!(
                "ip neighbour add {gateway} lladdr {own} dev eth0 nud permanent"
            ));
        }
        pod.run("ethtool -K eth0 tx off");
    }

    fn vsctl(&self, words: &str) {
        let mut command = Command::new("ovs-vsctl");
        command
            .arg("--timeout=20")
            .arg(format!("--db=unix:{}/db.sock", self.folder.display()));
        must(command.args(words.split_whitespace()));
    }

    fn flow(&self, flow: &str) {
        let mut command = Command::new("ovs-ofctl");
        must(
            command
                .env("OVS_RUNDIR", &self.folder)
                .args(["add-flow", "br-int", flow]),
        );
    }

    /// Packets that its flows have sent to the pod, and taken from it.
    pub fn packets(&self) -> [u64; 2] {
        let mut command = Command::new("ovs-ofctl");
        command
            .env("OVS_RUNDIR", &self.folder)
            .args(["dump-flows", "br-int"]);
        let flows = must(&mut command);
        let count = |line: &str| {
            let packets = line.split("n_packets=").nth(1)?.split(',').next()?;
            packets.parse::<u64>().ok()
        };
        let from_pod = format!("in_port={POD},");
        let (from, to): (Vec<&str>, Vec<&str>) = flows
            .lines()
            .filter(|line| line.contains("n_packets="))
            .partition(|line| line.contains(&from_pod) || line.contains("in_port=\"veth"));
        [to, from].map(|lines| lines.into_iter().filter_map(count).sum())
    }

    /// What its datapath is, with its ports.
    pub fn datapath(&self) -> String {
        let mut command = Command::new("ovs-appctl");
        let control = self.folder.join("ovs-vswitchd.ctl");
        must(command.arg("-t").arg(control).arg("dpif/show"))
    }
}

fn daemon(
    host: &Namespace,
    folder: &Path,
    program: &str,
    arguments: impl FnOnce(&mut Command),
) -> Process {
    let mut command = host.command(program);
    arguments(&mut command);
    for (name, file) in [("unixctl", "ctl"), ("pidfile", "pid"), ("log-file", "log")] {
        command.arg(format!("--{name}={}/{program}.{file}", folder.display()));
    }
    command
        .arg("--no-chdir")
        .env("OVS_RUNDIR", folder)
        .env("OVS_DBDIR", folder)
        .env("OVS_LOGDIR", folder)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    Process::start(command)
}
