//! Network namespaces of this machine that stand for hosts, and commands that are run in them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};
use tempfile::TempDir;
use viaduct_pktgen::Namespace;

use crate::watchdog;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The namespaces of one system, with a folder for its files. All of it is removed when this is dropped.
pub(crate) struct Hosts {
    /// Names of namespaces, and of what is pinned, begin with it.
    pub(crate) id: String,
    pub(crate) folder: TempDir,
    names: Vec<String>,
}

impl Hosts {
    pub(crate) fn new() -> anyhow::Result<Self> {
        watchdog::start()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{number}", watchdog::prefix());
        let folder = tempfile::Builder::new()
            .prefix(&format!("{id}-"))
            .tempdir()
            .context("no temporary folder")?;
        Ok(Self {
            id,
            folder,
            names: Vec::new(),
        })
    }

    /// Makes a namespace for this role.
    pub(crate) fn add(&mut self, role: &str) -> anyhow::Result<Host> {
        let name = format!("{}-{role}", self.id);
        run(Command::new("ip").args(["netns", "add", &name]))?;
        self.names.push(name.clone());
        let host = Host { name };
        host.run(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
             net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
             net.ipv6.conf.default.router_solicitations=0",
        )?;
        Ok(host)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
        let pinned = std::fs::read_dir(watchdog::BPFFS);
        for entry in pinned.into_iter().flatten().flatten() {
            // A router's pins have its node's name: this id, or this id and a role.
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == self.id || name.starts_with(&format!("{}-", self.id)) {
                let _ = std::fs::remove_dir_all(Path::new(watchdog::BPFFS).join(name));
            }
        }
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
}

impl Host {
    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::new(Some(&self.name))
    }

    /// A command in the namespace. `ip netns exec` would hide the BPF filesystem.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs words in the namespace: what they printed.
    pub(crate) fn run(&self, words: &str) -> anyhow::Result<String> {
        let (program, arguments) = words.split_once(' ').unwrap_or((words, ""));
        run(self.command(program).args(arguments.split_whitespace()))
    }

    /// Writes a setting of an interface below its namespace's /sys/class/net.
    pub(crate) fn write_sys(&self, file: &str, value: &str) -> anyhow::Result<()> {
        let script = format!("echo {value} > /sys/class/net/{file}");
        run(Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", &script]))?;
        Ok(())
    }

    /// Has `ip` or `bridge` do many things.
    pub(crate) fn batch(&self, program: &str, lines: &str) -> anyhow::Result<()> {
        let mut child = Command::new(program)
            .args(["-n", &self.name, "-batch", "-"])
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

    /// Packets and bytes that an interface has received (`rx`) or sent (`tx`).
    pub(crate) fn counted(&self, interface: &str, way: &str) -> anyhow::Result<(u64, u64)> {
        let text = self.run(&format!("ip -json -stats link show {interface}"))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let stats = &all[0]["stats64"][way];
        let number = |name: &str| stats[name].as_u64();
        number("packets")
            .zip(number("bytes"))
            .with_context(|| format!("ip shows no counters of {interface}"))
    }
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
