//! Where and of what the measurements are.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The first line that a command prints; null if there is none.
fn said(program: &str, arguments: &[&str]) -> Value {
    let output = Command::new(program).args(arguments).output();
    let output = output.ok().filter(|o| o.status.success());
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.and_then(|t| t.lines().next().map(|l| l.trim().to_owned()))
        .map_or(Value::Null, Value::from)
}

fn processor() -> Value {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map_or(Value::Null, |(_, name)| name.trim().into())
}

fn kernel() -> Value {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease");
    text.map_or(Value::Null, |t| t.trim().into())
}

/// The machine, the commit, the systems' versions.
pub(crate) fn describe(viaduct: &Path) -> Value {
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no"]);
    json!({
        "kernel": kernel(),
        "cpu": processor(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "commit": said("git", &["rev-parse", "HEAD"]),
        "changed_since": !changed.is_null(),
        "versions": {
            "kernel": kernel(),
            "ovs": said("ovs-vswitchd", &["--version"]),
            "viaduct": said(&viaduct.to_string_lossy(), &["--version"]),
        },
    })
}
