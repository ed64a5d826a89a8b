//! Nothing stays behind, not even of a test run that is killed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use super::BPFFS;

/// Holds the write end of the watchdog's standard input, which is CLOEXEC: it
/// closes when this process ends, however it does.
static WATCHDOG: OnceLock<Child> = OnceLock::new();

/// What this process makes has names that begin so.
pub(super) fn prefix() -> String {
    prefix_of(std::process::id())
}

pub fn prefix_of(pid: u32) -> String {
    format!("vdt{pid}-")
}

/// The watchdog has a session of its own: what interrupts or kills the group of
/// the test process does not reach it.
fn watchdog(prefix: &str) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/watchdog.sh");
    let mut command = Command::new("setsid");
    command
        .args(["sh", script, prefix])
        .arg(std::env::temp_dir())
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Starts this process's watchdog, once, after cleaning up for those whose
/// watchdog died too.
pub(super) fn start() {
    WATCHDOG.get_or_init(|| {
        for pid in left_by_the_dead() {
            let _ = watchdog(&prefix_of(pid)).stdin(Stdio::null()).status();
        }
        let mut command = watchdog(&prefix());
        command.stdin(Stdio::piped()).spawn().expect("setsid runs")
    });
}

/// Processes that are gone, but not their namespaces or pins.
fn left_by_the_dead() -> BTreeSet<u32> {
    let folders = ["/run/netns", BPFFS];
    let entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
    entries
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let pid = name.strip_prefix("vdt")?.split_once('-')?.0.parse().ok()?;
            (!Path::new("/proc").join(format!("{pid}")).exists()).then_some(pid)
        })
        .collect()
}
