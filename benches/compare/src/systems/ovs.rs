//! Open vSwitch's userspace datapath with AF_XDP ports, and flows that do what a router does.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::{Setup, System, stop_process};
use crate::bed::{self, Bed, UNDERLAY};
use crate::host::run;
use crate::plan::Case;

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// `OpenFlow` numbers: the tunnel's, and the first pod's.
const TUNNEL: u32 = 1;
const FIRST_POD: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long its flows' counters may be behind, and how often they are looked at for that.
const LAG: Duration = Duration::from_millis(1200);
const LOOKS: u32 = 4;

pub(crate) struct OpenVswitch {
    folder: PathBuf,
    daemons: Vec<Child>,
}

impl OpenVswitch {
    pub(crate) fn start(bed: &Bed, setup: &Setup) -> anyhow::Result<Self> {
        let folder = bed.hosts.folder.path().join("ovs");
        fs::create_dir(&folder).context("a folder")?;
        let mut ovs = Self {
            folder,
            daemons: Vec::new(),
        };
        let database = ovs.folder.join("conf.db");
        run(Command::new("ovsdb-tool")
            .arg("create")
            .arg(&database)
            .arg(SCHEMA))?;
        let socket = ovs.folder.join("db.sock");
        ovs.daemon(
            bed,
            "ovsdb-server",
            &[
                database.display().to_string(),
                format!("--remote=punix:{}", socket.display()),
            ],
        )?;
        let until = Instant::now() + PATIENCE;
        while !socket.exists() {
            ensure!(
                Instant::now() < until,
                "Open vSwitch's database does not start"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        ovs.daemon(bed, "ovs-vswitchd", &[format!("unix:{}", socket.display())])?;
        ovs.connect(bed, setup)?;
        ovs.set_flows(bed)?;
        ovs.check_ports(bed)?;
        Ok(ovs)
    }

    fn daemon(&mut self, bed: &Bed, program: &str, arguments: &[String]) -> anyhow::Result<()> {
        let folder = &self.folder;
        let mut command = bed.host.command(program);
        command.args(arguments).arg("--no-chdir");
        for (name, file) in [("unixctl", "ctl"), ("pidfile", "pid"), ("log-file", "log")] {
            command.arg(format!("--{name}={}/{program}.{file}", folder.display()));
        }
        for name in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"] {
            command.env(name, folder);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.daemons
            .push(child.with_context(|| format!("cannot run {program}"))?);
        Ok(())
    }

    /// The underlay is in a bridge that has the node's address; pods and tunnel are in another.
    fn connect(&self, bed: &Bed, setup: &Setup) -> anyhow::Result<()> {
        let mask = 1u64 << setup.cpu;
        self.vsctl("--no-wait init")?;
        self.vsctl(&format!(
            "set Open_vSwitch . other_config:pmd-cpu-mask=0x{mask:x}"
        ))?;
        self.vsctl(&format!(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev other_config:hwaddr=\"{mac}\" \
             -- add-port br-phy {UNDERLAY} -- set interface {UNDERLAY} type=afxdp",
            mac = bed::NODE_MAC,
        ))?;
        let mut words =
            "add-br br-int -- set bridge br-int datapath_type=netdev fail-mode=secure".to_owned();
        write!(
            words,
            " -- add-port br-int vx -- set interface vx type=vxlan options:key={} options:dst_port={} \
             options:remote_ip=flow ofport_request={TUNNEL}",
            bed::VNI,
            bed::VXLAN_PORT,
        )?;
        for pod in bed.shape.pods() {
            let name = pod.host_interface();
            write!(
                words,
                " -- add-port br-int {name} -- set interface {name} type=afxdp ofport_request={}",
                FIRST_POD + pod.0
            )?;
        }
        self.vsctl(&words)?;
        bed.host
            .run(&format!("ip address flush dev {UNDERLAY} scope global"))?;
        bed.host
            .run(&format!("ip address add {}/16 dev br-phy", bed::NODE))?;
        bed.host.run("ip link set br-phy up")?;
        bed.host.run("ip link set br-int up")?;
        for node in 0..bed.shape.nodes() {
            let words = format!("tnl/arp/set br-phy {} {}", bed::far(node), bed::FAR_MAC);
            self.appctl(&words)?;
        }
        Ok(())
    }

    fn set_flows(&self, bed: &Bed) -> anyhow::Result<()> {
        let mut flows = String::new();
        for node in 0..bed.shape.nodes() {
            let (far, mac) = (bed::far(node), bed::far_vtep_mac(node));
            for n in bed.shape.prefixes_of(node) {
                writeln!(
                    flows,
                    "cookie=1,ip,nw_dst={}/24,actions=dec_ttl,mod_dl_src:{},mod_dl_dst:{mac},\
                     set_field:{far}->tun_dst,output:{TUNNEL}",
                    bed::prefix(n),
                    bed::VTEP_MAC,
                )?;
            }
        }
        for pod in bed.shape.pods() {
            writeln!(
                flows,
                "cookie=2,in_port={TUNNEL},ip,dl_dst={},nw_dst={},actions=dec_ttl,mod_dl_src:{},mod_dl_dst:{},output:{}",
                bed::VTEP_MAC,
                pod.address(),
                bed::GATEWAY_MAC,
                pod.mac(),
                FIRST_POD + pod.0,
            )?;
        }
        let file = self.folder.join("flows");
        fs::write(&file, flows).context("its flows")?;
        let mut command = Command::new("ovs-ofctl");
        command.env("OVS_RUNDIR", &self.folder);
        run(command.args(["add-flows", "br-int"]).arg(&file))?;
        Ok(())
    }

    /// All of its ports are AF_XDP's; else something else would be measured.
    fn check_ports(&self, bed: &Bed) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        let wanted = bed.shape.pods as usize + 1;
        loop {
            let shown = self.appctl("dpif/show")?;
            let ports = shown.lines().filter(|l| l.contains("(afxdp:")).count();
            if ports == wanted && shown.contains("netdev@ovs-netdev") {
                return Ok(());
            }
            if Instant::now() > until {
                let log = fs::read_to_string(self.folder.join("ovs-vswitchd.log"));
                let log = log.unwrap_or_default();
                let said = log.lines().rev().find(|l| l.contains("|ERR|"));
                bail!(
                    "{ports} of {wanted} ports have AF_XDP: {}",
                    said.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn vsctl(&self, words: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ovs-vsctl");
        // A hundred AF_XDP ports take a while.
        command
            .arg("--timeout=120")
            .arg(format!("--db=unix:{}/db.sock", self.folder.display()));
        run(command.args(words.split_whitespace()))?;
        Ok(())
    }

    fn appctl(&self, words: &str) -> anyhow::Result<String> {
        let mut command = Command::new("ovs-appctl");
        let control = self.folder.join("ovs-vswitchd.ctl");
        run(command
            .arg("-t")
            .arg(control)
            .args(words.split_whitespace()))
    }

    /// Packets of one way's flows.
    fn packets(&self, case: Case) -> anyhow::Result<u64> {
        let cookie = match case {
            Case::Encap => "cookie=1/-1",
            Case::Decap => "cookie=2/-1",
        };
        let mut command = Command::new("ovs-ofctl");
        command.env("OVS_RUNDIR", &self.folder);
        let text = run(command.args(["dump-aggregate", "br-int", cookie]))?;
        let count = text
            .split_whitespace()
            .find_map(|w| w.strip_prefix("packet_count="));
        count
            .and_then(|n| n.trim_end_matches(',').parse().ok())
            .with_context(|| format!("no packet_count in {text}"))
    }
}

impl System for OpenVswitch {
    /// Its flows are counted some time after packets have passed: waits until there are no more.
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        let mut seen = self.packets(case)?;
        for _ in 0..LOOKS {
            std::thread::sleep(LAG);
            let now = self.packets(case)?;
            if now == seen {
                break;
            }
            seen = now;
        }
        Ok(Some(seen))
    }

    fn counts_slowly(&self) -> bool {
        true
    }

    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        match self.daemons.get(1) {
            Some(switch) => stop_process(switch.id(), pause),
            None => Ok(()),
        }
    }
}

impl Drop for OpenVswitch {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
