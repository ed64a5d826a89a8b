//! Nothing stays behind, not even when this process is killed: a shell script, in a session of its own, waits for its
//! end and removes what has names of its prefix.

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::Context;

/// Where BPF objects are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
const SCRIPT: &str = include_str!("../../../tests/common/watchdog.sh");

/// Holds the write end of its standard input, which closes when this process ends, however it does.
static WATCHDOG: OnceLock<Child> = OnceLock::new();

/// What this process makes has names that begin so.
pub(crate) fn prefix() -> String {
    format!("vdc{}-", std::process::id())
}

pub(crate) fn start() -> anyhow::Result<()> {
    if WATCHDOG.get().is_some() {
        return Ok(());
    }
    let child = Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "watchdog", &prefix()])
        .arg(std::env::temp_dir())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run setsid, which cleans up after this program")?;
    let _ = WATCHDOG.set(child);
    Ok(())
}
