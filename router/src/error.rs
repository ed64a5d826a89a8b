//! What can go wrong outside the hot path.

use std::fmt;
use std::fs;
use std::io;

/// What was being done, and why it could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterError {
    doing: String,
    cause: String,
}

impl RouterError {
    pub(crate) fn new(doing: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            cause: cause.into(),
        }
    }
}

impl fmt::Display for RouterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

impl std::error::Error for RouterError {}

/// What came of a system call that needs memory, file descriptors or a right, with the limit or the
/// right that is in the way. `frames` is how much memory was to be locked, in bytes.
pub(crate) fn cause(error: &io::Error, frames: u64) -> String {
    let locked = || match limit("Max locked memory") {
        Some(limit) => format!("RLIMIT_MEMLOCK is {limit} bytes"),
        None => "RLIMIT_MEMLOCK".to_owned(),
    };
    let megabytes = frames.div_ceil(1 << 20);
    match error.raw_os_error() {
        // `xdp_umem_account_pages` of Linux `net/xdp/xdp_umem.c`.
        Some(libc::ENOBUFS) if frames > 0 => format!(
            "{error}: its {megabytes} MB of frames are more memory than this user may lock ({}); raise it \
             (LimitMEMLOCK= of the unit, ulimit -l), grant CAP_IPC_LOCK, or reduce workers.max_ports",
            locked()
        ),
        Some(libc::ENOMEM) if frames > 0 => format!(
            "{error}: there is no room for its {megabytes} MB of frames; give more memory, or reduce \
             workers.count or workers.max_ports"
        ),
        Some(libc::EMFILE) => format!(
            "{error}: RLIMIT_NOFILE is {}; raise it (LimitNOFILE= of the unit, ulimit -n)",
            limit("Max open files").unwrap_or_default()
        ),
        Some(libc::ENFILE) => format!("{error}: all of the machine's files are open (fs.file-max)"),
        Some(libc::EPERM | libc::EACCES) => {
            format!("{error}: CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (or CAP_SYS_ADMIN) are needed")
        }
        _ => error.to_string(),
    }
}

/// This process's limit of that name, as it is now (proc(5), `limits`).
pub(crate) fn limit(name: &str) -> Option<String> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.split_whitespace().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_in_the_way_is_named() {
        let of = |number, frames| cause(&io::Error::from_raw_os_error(number), frames);
        let said = of(libc::ENOBUFS, 53 << 20);
        assert!(
            said.contains("53 MB") && said.contains("RLIMIT_MEMLOCK is "),
            "{said}"
        );
        assert!(of(libc::ENOMEM, 1).contains("1 MB"));
        let said = of(libc::EMFILE, 0);
        assert!(
            said.contains("RLIMIT_NOFILE is ") && !said.contains("is ;"),
            "{said}"
        );
        assert!(of(libc::EPERM, 0).contains("CAP_BPF"));
        // A queue's ring has no frames of its own.
        assert!(!of(libc::ENOBUFS, 0).contains("MEMLOCK"));
    }
}
