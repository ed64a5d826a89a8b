//! What the kernel lets this process do: its limits, which are raised as far as it may, and its
//! capabilities.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use viaduct_router::RouterOptions;

use crate::host::Finding;

/// Capabilities by number, of Linux `include/uapi/linux/capability.h`.
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const IPC_LOCK: u32 = 14;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

/// What a router needs, each with what for; one of a group is enough.
const NEEDED: [(&[u32], &str, &str); 3] = [
    (
        &[NET_ADMIN],
        "CAP_NET_ADMIN",
        "to attach XDP, and to make devices and routes",
    ),
    (&[NET_RAW], "CAP_NET_RAW", "to open AF_XDP sockets"),
    (
        &[BPF, SYS_ADMIN],
        "CAP_BPF (or CAP_SYS_ADMIN)",
        "to load XDP programs",
    ),
];

/// Raises the limits on locked memory and open files to the highest that this process may have.
pub(crate) fn raise() {
    for limit in [Resource::RLIMIT_MEMLOCK, Resource::RLIMIT_NOFILE] {
        if let Ok((soft, hard)) = getrlimit(limit)
            && soft < hard
            && let Err(error) = setrlimit(limit, hard, hard)
        {
            tracing::warn!(?limit, %error, "cannot raise a limit to what is allowed");
        }
    }
}

/// The capabilities that are missing, and the limits that are too low even when they are raised.
pub(crate) fn findings(options: &RouterOptions, pods: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Where it is not said, the kernel will say what is missing when it is needed.
    let has = effective(&status).unwrap_or(u64::MAX);
    for (any, name, why) in NEEDED {
        if !any.iter().any(|bit| has & (1 << bit) != 0) {
            findings.push(Finding::refused(format!(
                "{name} is missing: it is needed {why}; run as root, or grant it"
            )));
        }
    }
    if has & (1 << IPC_LOCK) == 0
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
    {
        findings.extend(too_little_locked(options, hard));
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        findings.extend(too_few_files(options, pods, hard));
    }
    findings
}

fn too_little_locked(options: &RouterOptions, hard: u64) -> Option<Finding> {
    let wanted = options.frame_bytes().saturating_mul(options.workers as u64);
    (hard != RLIM_INFINITY && hard < wanted).then(|| {
        Finding::refused(format!(
            "{} of frames are more memory than this process may lock (RLIMIT_MEMLOCK, {}): raise the hard limit \
             (LimitMEMLOCK= of the unit, ulimit -Hl), grant CAP_IPC_LOCK, or reduce workers.count or workers.max_ports",
            megabytes(wanted),
            megabytes(hard)
        ))
    })
}

/// A worker needs some files, a pod at least one socket; the rest is for netlink, clients, `nft`.
fn too_few_files(options: &RouterOptions, pods: usize, hard: u64) -> Option<Finding> {
    let wanted = 64 + 8 * options.workers as u64 + 2 * pods as u64;
    (hard < wanted).then(|| {
        Finding::problem(format!(
            "this process may open {hard} files (RLIMIT_NOFILE); {pods} pods and {} workers need some {wanted}: raise the \
             hard limit (LimitNOFILE= of the unit, ulimit -Hn), or pods will be left to the kernel",
            options.workers
        ))
    })
}

/// Whether there is the memory that a router needs.
pub(crate) fn memory(options: &RouterOptions, pods: usize) -> Option<Finding> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let available = available(&info)?;
    let granted = left_by_cgroup().unwrap_or(u64::MAX);
    too_little_memory(options, pods, available.min(granted))
}

fn too_little_memory(options: &RouterOptions, pods: usize, available: u64) -> Option<Finding> {
    let wanted = options.memory(pods);
    let text = format!(
        "{} workers with room for {} pods need {} of memory, and {} are available: reduce workers.count or \
         workers.max_ports",
        options.workers,
        options.max_ports,
        megabytes(wanted),
        megabytes(available)
    );
    if wanted > available {
        Some(Finding::refused(text))
    } else if wanted > available / 2 {
        Some(Finding::problem(text))
    } else {
        None
    }
}

/// What this process's control group may still use, of cgroup v2 or v1, in bytes; none if it is not
/// limited.
fn left_by_cgroup() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let number =
        |path: String| -> Option<u64> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let left = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (folder, most, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
            _ => return None,
        };
        // In a container the path is that of the host: its own is the root.
        let at = |path: &str| {
            let most = number(format!("{folder}{path}/{most}"))?;
            Some(most.saturating_sub(number(format!("{folder}{path}/{used}"))?))
        };
        at(path).or_else(|| at(""))
    });
    left.min()
}

/// The effective capabilities in `/proc/self/status`, a bit each.
fn effective(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Memory that can be had without swapping, of `/proc/meminfo`, in bytes.
fn available(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options(workers: usize, max_ports: usize) -> RouterOptions {
        RouterOptions {
            underlay: viaduct_router::Hook::Xdp,
            tc: viaduct_router::InTc::Nothing,
            workers,
            cpus: None,
            adaptive: true,
            gather: Duration::ZERO,
            max_ports,
            flow_cache: 4096,
            heartbeat_timeout: Duration::from_secs(1),
            xdp_mode: None,
            max_queues: None,
            fail_closed: false,
            pins: "/none".into(),
        }
    }

    #[test]
    fn what_proc_says_is_understood() {
        assert_eq!(
            effective("Name:\tx\nCapEff:\t0000000000003000\n"),
            Some(0x3000)
        );
        assert_eq!(effective("Name:\tx\n"), None);
        assert_eq!(
            available("MemFree: 1 kB\nMemAvailable:    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(available("MemAvailable: x kB\n"), None);
    }

    #[test]
    fn frames_that_no_machine_has_room_for_are_refused() {
        let many = options(48, 1024);
        let finding = too_little_memory(&many, 10, 4 << 30).expect("refused");
        assert!(
            finding.refused && finding.text.contains("workers.max_ports"),
            "{finding}"
        );
        let much = too_little_memory(&many, 10, 20 << 30).expect("a warning");
        assert!(!much.refused, "{much}");
        assert_eq!(too_little_memory(&options(1, 16), 10, 4 << 30), None);
        assert!(too_little_locked(&options(1, 16), 8 << 20).is_some());
        assert_eq!(too_little_locked(&options(1, 16), RLIM_INFINITY), None);
        assert!(too_few_files(&options(1, 110), 110, 64).is_some_and(|it| !it.refused));
        assert_eq!(too_few_files(&options(1, 110), 110, 1024), None);
    }
}
