//! This router: the program as it is, with a configuration.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{Setup, System, stop_process};
use crate::bed::{self, Bed, UNDERLAY};
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
    pub(crate) fn start(bed: &Bed, setup: &Setup, polling: &str) -> anyhow::Result<Self> {
        ensure!(
            setup.viaduct.exists(),
            "{} is missing: cargo build --release --bin viaduct",
            setup.viaduct.display()
        );
        let folder = bed.folder.path().to_owned();
        let file = folder.join("node.toml");
        fs::write(&file, configuration(bed, setup, polling)?).context("its configuration")?;
        let log = fs::File::create(folder.join("viaduct.log")).context("its log")?;
        let child = bed
            .command(&setup.viaduct.to_string_lossy())
            .args(["run", "--config"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run it")?;
        let mut viaduct = Self {
            program: setup.viaduct.clone(),
            folder,
            node: bed.id.clone(),
            child,
            passed: 0,
        };
        viaduct.wait_for_ways(bed)?;
        viaduct.others()?;
        Ok(viaduct)
    }

    fn wait_for_ways(&mut self, bed: &Bed) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait()?.is_some();
            if ended || Instant::now() > until {
                let log = fs::read_to_string(self.folder.join("viaduct.log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("it is not ready: {}", tail.join(" | "));
            }
            let known = self
                .ask("routes")
                .ok()
                .map(|routes| resolved(&routes["routes"]));
            let ports = self.ask("ports").ok().map(|ports| up(&ports["ports"]));
            let wanted = (bed.shape.routes as usize, bed.shape.pods as usize + 1);
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
        Ok(serde_json::from_str(&bed::run(command)?)?)
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
    /// By its workers: what they have sent on, by port.
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        let ports = self.ask("ports")?;
        let ports = ports["ports"].as_array().context("no ports")?;
        let of = |port: &&Value| (port["name"] == "underlay") == (case == Case::Encap);
        let sent = ports
            .iter()
            .filter(of)
            .filter_map(|p| p["tx_packets"].as_u64());
        Ok(Some(sent.sum()))
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

fn configuration(bed: &Bed, setup: &Setup, polling: &str) -> anyhow::Result<String> {
    let mut text = format!(
        "[node]\nname = \"{id}\"\n[underlay]\ninterface = \"{UNDERLAY}\"\n\
         [workers]\ncount = 1\ncpus = [{cpu}]\npolling = \"{polling}\"\n\
         [runtime]\ndirectory = \"{folder}\"\nbpffs = \"{BPFFS}/{id}\"\n\
         [[networks]]\nname = \"default\"\nvni = {vni}\nport = {port}\nvtep_mac = \"{vtep}\"\n\
         pod_prefixes = [\"10.244.1.0/24\"]\ncluster_prefixes = [\"10.0.0.0/8\"]\n",
        id = bed.id,
        cpu = setup.cpu,
        folder = bed.folder.path().display(),
        vni = bed::VNI,
        port = bed::VXLAN_PORT,
        vtep = bed::VTEP_MAC,
    );
    for pod in bed.shape.pods() {
        write!(
            text,
            "[[pods]]\ninterface = \"{}\"\naddresses = [\"{}\"]\nmac = \"{}\"\n",
            pod.host_interface(),
            pod.address(),
            pod.mac()
        )?;
    }
    for node in 0..bed.shape.nodes() {
        let prefixes: Vec<_> = bed
            .shape
            .prefixes_of(node)
            .map(|n| format!("\"{}/24\"", bed::prefix(n)))
            .collect();
        write!(
            text,
            "[[routes]]\nprefixes = [{}]\nvtep = \"{}\"\nvtep_mac = \"{}\"\n",
            prefixes.join(", "),
            bed::far(node),
            bed::far_vtep_mac(node)
        )?;
    }
    Ok(text)
}
