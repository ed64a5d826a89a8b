//! Network namespaces and the programs that run inside.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use super::{must, text, wait_for};

/// A network namespace.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// A command inside. `ip netns exec` would hide the BPF filesystem; nsenter
    /// becomes the program, so its pid is the program's.
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

    /// Starts words inside; what they print is kept for [`Process`].
    pub fn spawn(&self, words: &str) -> Process {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        command.args(words).stdin(Stdio::null());
        Process::start(command)
    }

    /// How many of `count` pings are answered.
    pub fn ping(&self, address: &str, count: u32, size: u32) -> u32 {
        self.ping_with(&[], address, count, size)
    }

    /// [`ping`](Self::ping) with further options.
    pub fn ping_with(&self, options: &[&str], address: &str, count: u32, size: u32) -> u32 {
        let output = self
            .command("ping")
            // All at once, since ping waits one interval for the last answer, or twice the longest
            // round trip, and not `-W` seconds as soon as one has come: on a busy machine short
            // intervals lose what is merely late.
            .args(["-W", "1", "-i", "1"])
            .args(["-l", &count.to_string(), "-c", &count.to_string()])
            .args(["-s", &size.to_string()])
            .args(options)
            .arg(address)
            .output()
            .expect("ping runs");
        let out = text(&output.stdout);
        let received = out.split(", ").find_map(|p| p.strip_suffix(" received"));
        let received = received
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("ping {address}: {out}"));
        if received < count {
            // Which of them, and how late the others were; shown when the test fails.
            println!("{out}");
        }
        received
    }
}

/// A program that runs beside the test, killed when dropped.
pub struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints; empty at its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("what it prints");
        line.trim_end().to_owned()
    }

    /// The rest of what it prints, and how it ended.
    pub fn finish(&mut self) -> (String, ExitStatus) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).expect("what it prints");
        (rest, self.child.wait().expect("a child"))
    }

    pub fn signal(&self, signal: &str) {
        must(Command::new("kill").args([signal, &self.id().to_string()]));
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, what: &str) {
        wait_for(what, || self.child.try_wait().expect("a child").is_some());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
