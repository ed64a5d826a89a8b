//! Network namespaces that a test makes, works in and removes again, also when it fails.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace; removed, with all that is in it, when dropped.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new(label: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vdc{}-{number}-{label}", std::process::id());
        let output = ip(&["netns", "add", &name]);
        assert!(
            output.status.success(),
            "cannot make a network namespace; run this test as root, with iproute2 installed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self { name }
    }

    /// A pair of interfaces that are up, one end in each namespace.
    pub(crate) fn connect(&self, end: &str, other: &Self, other_end: &str) {
        self.ip(&format!(
            "link add {end} type veth peer name {other_end} netns {}",
            other.name
        ));
        self.ip(&format!("link set {end} up"));
        other.ip(&format!("link set {other_end} up"));
    }

    /// Runs an `ip` command inside; it must succeed.
    pub(crate) fn ip(&self, command: &str) {
        let mut arguments = vec!["-n", &self.name];
        arguments.extend(command.split_whitespace());
        let output = ip(&arguments);
        assert!(
            output.status.success(),
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs many `ip` commands inside, one a line; all must succeed.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn ip_batch(&self, commands: &str) {
        let mut batch = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // Taken, so that it is closed before the wait.
        let mut input = batch.stdin.take().unwrap();
        input.write_all(commands.as_bytes()).unwrap();
        drop(input);
        assert!(batch.wait().unwrap().success());
    }

    /// Runs a future on a thread that is inside.
    pub(crate) fn run<T: Send, F: Future<Output = T>>(
        &self,
        future: impl FnOnce() -> F + Send,
    ) -> T {
        let inside = || {
            let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(future())
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Looks again and again until there is something, for five seconds.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn ip(arguments: &[&str]) -> Output {
    Command::new("ip")
        .args(arguments)
        .output()
        .expect("the ip command is missing; install iproute2")
}
