//! A router under test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::traffic::{PYTHON, script};
use super::{Namespace, must, wait_for};

/// A running router.
pub struct Daemon {
    pub name: String,
    pub(super) namespace: Namespace,
    pub directory: PathBuf,
    pub file: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    /// Makes mounts that only it sees.
    pub(super) mounts: Option<String>,
    /// The most files that it may open, if that is to be less than usual.
    pub(super) files: Option<u32>,
    /// In place of `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    pub(super) child: Option<Child>,
}

impl Daemon {
    pub fn start(&mut self) {
        let log =
            fs::File::create(self.directory.join(format!("{}.log", self.name))).expect("a log");
        let program = env!("CARGO_BIN_EXE_viaduct");
        let mut command = match &self.hosts {
            None => self.namespace.command(program),
            Some(file) => {
                // With an /etc/hosts of its own.
                let mut command = self.namespace.command("unshare");
                let mount = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
                command
                    .args(["--mount", "sh", "-c", mount])
                    .arg(file)
                    .arg(program);
                command
            }
        };
        if let Some(script) = &self.mounts {
            command = self.namespace.command("unshare");
            let script = format!("set -e\n{script}\nexec \"$@\"");
            command.args(["--mount", "sh", "-c", &script, "sh", program]);
        }
        if let Some(files) = self.files {
            let mut limited = self.namespace.command("prlimit");
            limited
                .arg(format!("--nofile={files}:{files}"))
                .arg(program);
            command = limited;
        }
        command
            .args(["run", "--config"])
            .arg(&self.file)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().expect("the router starts"));
        // Its XDP programs are verified meanwhile, which takes seconds on a busy machine.
        let until = Instant::now() + Duration::from_secs(60);
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
        let workers = port[counter].as_u64();
        let workers = workers.unwrap_or_else(|| panic!("no {counter} at {name}"));
        workers + port["hooks"][counter].as_u64().unwrap_or(0)
    }

    /// Packets that came up, received or made here, and what became of them:
    /// sent, left to the kernel, or dropped for a reason.
    fn balance(&self) -> Option<(u64, u64)> {
        let ports = self.try_ask("ports")?;
        let ports = ports["ports"].as_array().expect("ports");
        let sum = |counters: &[&str]| -> u64 {
            let all = ports.iter().flat_map(|p| counters.iter().map(|c| &p[*c]));
            all.filter_map(Value::as_u64).sum()
        };
        Some((
            sum(&["rx_packets", "originated"]),
            sum(&["tx_packets", "punts", "drops"]),
        ))
    }

    /// Every packet has one fate. Also looked at when a router is dropped; it
    /// takes a moment when packets are on their way.
    pub fn assert_balanced(&self) {
        wait_for("received + originated = sent + punted + dropped", || {
            self.balance().is_none_or(|(came, went)| came == went)
        });
    }

    /// Free frames and those in rings are all that there are, at every worker; and what workers
    /// handed to each other has arrived.
    pub fn assert_whole(&self) {
        wait_for("all frames to be accounted for", || {
            let status = self.ask("status");
            let workers = status["workers"].as_array().expect("workers");
            let sum = |name: &str| -> u64 { workers.iter().filter_map(|w| w[name].as_u64()).sum() };
            sum("handed_over") == sum("taken_over")
                && workers.iter().all(|worker| {
                    let frames = |name: &str| worker[name].as_u64().expect("a number");
                    frames("free_frames") + frames("ring_frames") == frames("frames")
                })
        });
    }

    /// Workers dropped nothing and left nothing to the kernel. What the kernel dropped in front of
    /// their sockets, or an XDP program (a pod's multicast, say), is listed beside and does not count.
    pub fn assert_no_drops_of_workers(&self) {
        let drops = self.ask("drops");
        let rows = drops["drops"].as_array().expect("drops").iter();
        let of_workers = |row: &&Value| row["fate"] == "dropped" || row["fate"] == "punted";
        let of_workers: Vec<_> = rows.filter(of_workers).collect();
        assert!(of_workers.is_empty(), "{of_workers:?}");
    }

    /// Packets dropped for a reason, all ports together.
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.ask("drops");
        let rows = drops["drops"].as_array().expect("drops");
        let of = rows
            .iter()
            .filter(|d| d["fate"] == "dropped" && d["reason"] == reason);
        of.filter_map(|d| d["packets"].as_u64()).sum()
    }

    /// Processor time so far, user and system, in clock ticks (proc(5), `stat`).
    pub fn cpu_ticks(&self) -> u64 {
        let pid = self.child.as_ref().expect("a running router").id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        fields
            .skip(11)
            .take(2)
            .map(|n| n.parse::<u64>().expect("ticks"))
            .sum()
    }

    /// A command for this router, `viaduct port add ...`: whether it did, and what it said.
    pub fn command(&self, words: &str) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        command
            .args(words.split_whitespace())
            .args(["--node", &self.name, "--directory"])
            .arg(&self.directory);
        let output = command.output().expect("viaduct runs");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Changes its configuration for the next start.
    pub fn reconfigured(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.file).expect("its configuration");
        fs::write(&self.file, text.replace(from, to)).expect("its configuration");
    }

    /// Writes its configuration anew and has it read.
    pub fn reload(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.file).expect("its configuration");
        fs::write(&self.file, change(text)).expect("its configuration");
        let said = self.log().matches("read again").count();
        self.signal("-HUP");
        wait_for("an answer to SIGHUP", || {
            self.log().matches("read again").count() > said
        });
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

    /// From its next start on it has mounts of its own, which these lines of shell make.
    pub fn mount(&mut self, script: &str) {
        self.mounts = Some(script.to_owned());
    }

    /// From its next start on it may open so many files.
    pub fn limit_files(&mut self, files: u32) {
        self.files = Some(files);
    }

    /// Its configuration.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running router").id()
    }

    /// Stops one of its threads until what is returned is dropped.
    pub fn stick(&self, thread: &str) -> Stuck {
        let mut command = Command::new(PYTHON);
        command
            .arg(script("stick.py"))
            .arg(self.pid().to_string())
            .arg(thread);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut said).expect("a line");
        assert_eq!(said.trim(), "stuck");
        Stuck(child)
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

    /// Waits until it has ended; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a running router");
        wait_for("the router to end", || {
            child.try_wait().expect("a child").is_some()
        });
        child.wait().expect("a child").code()
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

/// A thread that does not go on.
pub struct Stuck(Child);

impl Drop for Stuck {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        // Ended in any case, also when this fails.
        let counted = if std::thread::panicking() {
            Ok(())
        } else {
            catch_unwind(AssertUnwindSafe(|| self.assert_balanced()))
        };
        if counted.is_err() || std::thread::panicking() {
            // What was lost, and who lost it, is mostly told by one of these.
            for what in ["status", "ports", "drops"] {
                let answer = self.try_ask(what).map(|a| a.to_string());
                eprintln!(
                    "--- {what} of {}\n{}",
                    self.name,
                    answer.unwrap_or_default()
                );
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if counted.is_err() || std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
        if let Err(failure) = counted {
            resume_unwind(failure);
        }
    }
}
