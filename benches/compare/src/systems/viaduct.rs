//! This router: the program as it is, with a configuration.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::variant::merged;
use super::{System, stop_process};
use crate::bed::{self, UNDERLAY};
use crate::host::run;
use crate::node::Node;
use crate::plan::Case;
use crate::watchdog::BPFFS;

/// How long it may take until all ways are known.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Viaduct {
    program: PathBuf,
    folder: PathBuf,
    node: String,
    child: Child,
    /// What the XDP programs had left to the kernel, when last asked.
    passed: u64,
}

impl Viaduct {
    /// `extra`: TOML that its configuration has in addition, one after the other.
    pub(crate) fn start(node: &Node, program: &Path, extra: &[&str]) -> anyhow::Result<Self> {
        ensure!(
            program.exists(),
            "{} is missing: cargo build --release --bin viaduct",
            program.display()
        );
        let folder = node.folder.clone();
        let file = folder.join(format!("{}.toml", node.name));
        fs::write(&file, configuration(node, extra)?).context("its configuration")?;
        let log_file = folder.join(format!("{}.log", node.name));
        let log = fs::File::create(&log_file).context("its log")?;
        let child = node
            .host
            .command(&program.to_string_lossy())
            .args(["run", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run it")?;
        let mut viaduct = Self {
            program: program.to_owned(),
            folder,
            node: node.name.clone(),
            child,
            passed: 0,
        };
        viaduct.wait_for_ways(node, &log_file)?;
        viaduct.others()?;
        Ok(viaduct)
    }

    fn wait_for_ways(&mut self, node: &Node, log: &Path) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait()?.is_some();
            if ended || Instant::now() > until {
                let log = fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("it is not ready: {}", tail.join(" | "));
            }
            let known = self
                .ask("routes")
                .ok()
                .map(|routes| resolved(&routes["routes"]));
            let ports = self.ask("ports").ok().map(|ports| up(&ports["ports"]));
            let wanted = (node.routes(), node.pods.len() + 1);
            if known == Some(wanted.0) && ports == Some(wanted.1) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ask(&self, what: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.program);
        let command = command
            .args([what, "--json", "--node", &self.node, "--directory"])
            .arg(&self.folder);
        Ok(serde_json::from_str(&run(command)?)?)
    }
}

impl Viaduct {
    /// What it has sent on this way, by its own count.
    fn sent(&self, case: Case, what: &str) -> anyhow::Result<u64> {
        let ports = self.ask("ports")?;
        let ports = ports["ports"].as_array().context("no ports")?;
        let of = |port: &&Value| (port["name"] == "underlay") == (case == Case::Encap);
        let sent = ports.iter().filter(of);
        // By workers, and by hooks in tc.
        let tiers = sent.flat_map(|port| [&port[what], &port["hooks"][what]]);
        Ok(tiers.filter_map(Value::as_u64).sum())
    }
}

fn resolved(routes: &Value) -> usize {
    let routes = routes.as_array().into_iter().flatten();
    routes.filter(|r| r["state"] == "resolved").count()
}

fn up(ports: &Value) -> usize {
    let ports = ports.as_array().into_iter().flatten();
    ports.filter(|p| p["state"] == "up").count()
}

impl System for Viaduct {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        self.sent(case, "tx_packets").map(Some)
    }

    fn carried_bytes(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        self.sent(case, "tx_bytes").map(Some)
    }

    fn others(&mut self) -> anyhow::Result<u64> {
        let status = self.ask("status")?;
        let count = |name: &str| status["xdp"][name].as_u64().unwrap_or(0);
        let passed = count("passed") + count("stale");
        let before = std::mem::replace(&mut self.passed, passed);
        Ok(passed - before)
    }

    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        stop_process(self.child.id(), pause)
    }
}

impl Drop for Viaduct {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(node: &Node, extra: &[&str]) -> anyhow::Result<String> {
    let mut text = format!(
        "[node]\nname = \"{name}\"\n[underlay]\ninterface = \"{UNDERLAY}\"\n\
         [workers]\ncount = 1\n\
         [runtime]\ndirectory = \"{folder}\"\nbpffs = \"{BPFFS}/{name}\"\n\
         [[networks]]\nname = \"default\"\nvni = {vni}\nport = {port}\nvtep_mac = \"{vtep}\"\n\
         pod_prefixes = [\"{prefix}/24\"]\ncluster_prefixes = [\"10.0.0.0/8\"]\n",
        name = node.name,
        folder = node.folder.display(),
        vni = bed::VNI,
        port = bed::VXLAN_PORT,
        vtep = node.vtep.mac,
        prefix = node.prefix,
    );
    for pod in &node.pods {
        write!(
            text,
            "[[pods]]\ninterface = \"{}\"\naddresses = [\"{}\"]\nmac = \"{}\"\n",
            pod.interface, pod.address, pod.mac
        )?;
    }
    for other in &node.others {
        let prefixes = other.prefixes.iter();
        let prefixes: Vec<_> = prefixes.map(|p| format!("\"{p}/24\"")).collect();
        write!(
            text,
            "[[routes]]\nprefixes = [{}]\nvtep = \"{}\"\nvtep_mac = \"{}\"\n",
            prefixes.join(", "),
            other.vtep.address,
            other.vtep.mac
        )?;
    }
    merged(&text, extra)
}
