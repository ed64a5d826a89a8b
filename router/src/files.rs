//! File descriptors: some are kept for what the process needs beside its ports.

use std::fs;

use crate::error::{RouterError, limit};

/// How many a port leaves free: for clients of the daemon, its programs, and files that it reads.
const KEPT: usize = 24;

/// Whether a port may take `wanted` descriptors.
///
/// # Errors
/// When too few are left. Where that cannot be seen, the kernel will say so.
pub(crate) fn check_room(doing: &str, wanted: usize) -> Result<(), RouterError> {
    let most = limit("Max open files").and_then(|most| most.parse().ok());
    let (Some(most), Ok(open)) = (most, fs::read_dir("/proc/self/fd")) else {
        return Ok(());
    };
    let open = open.count();
    if fits(open, wanted, most) {
        return Ok(());
    }
    Err(RouterError::new(
        doing,
        format!(
            "{open} of {most} files are open (RLIMIT_NOFILE), and the last {KEPT} are not for ports; raise the limit \
             (LimitNOFILE= of the unit, ulimit -n)"
        ),
    ))
}

fn fits(open: usize, wanted: usize, most: usize) -> bool {
    open.saturating_add(wanted).saturating_add(KEPT) <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept() {
        assert!(fits(100, 2, 100 + 2 + KEPT));
        assert!(!fits(100, 3, 100 + 2 + KEPT));
        assert!(!fits(usize::MAX, 1, 1024));
        check_room("cannot test", 1).expect("room");
        let error = check_room("cannot test", usize::MAX).expect_err("too many");
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    }
}
