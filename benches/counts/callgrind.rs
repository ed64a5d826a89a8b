//! One case below callgrind, in a process of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cases::{COUNTED, PACKETS};

/// Seconds that a case may take: some hundred times what it does.
const TIMEOUT: &str = "300";

/// Instructions that a packet takes in a case.
pub(crate) fn count(name: &str, number: usize) -> Result<f64, String> {
    let me = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("callgrind.{}.{number}", std::process::id()));
    let output = Command::new("timeout")
        .args([TIMEOUT, "valgrind", "--tool=callgrind", "--quiet"])
        .args(["--collect-atstart=no", "--combine-dumps=yes"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(me)
        .args(["--case", name])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{name}: cannot run timeout valgrind: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{name}: valgrind, {}: {errors}\nIs it installed? ./dev setup does it",
            output.status
        ));
    }
    let text = fs::read_to_string(&out).map_err(|e| format!("{name}: {}: {e}", out.display()))?;
    let _ = fs::remove_file(&out);
    let total = total(&text).ok_or_else(|| {
        format!("{name}: callgrind counted nothing: is there a function {COUNTED}?")
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let total = total as f64;
    Ok(total / f64::from(PACKETS))
}

/// All instructions of a profile; none if it has none.
fn total(profile: &str) -> Option<u64> {
    let line = profile.lines().find_map(|l| l.strip_prefix("totals:"))?;
    line.trim().parse().ok().filter(|n| *n > 0)
}
