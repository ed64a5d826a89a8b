//! What concerns the node itself: `[node]`, `[underlay]`, `[hooks]`, `[workers]`, `[runtime]`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::values::{Once, choice, interface, node_name, number, required, underlay_address};
use crate::model::{
    Hook, HooksConfig, NodeConfig, OnExit, Polling, RuntimeConfig, SlowPathConfig, UnderlayConfig,
    WorkersConfig, XdpMode,
};
use crate::raw::{Hooks, List, Node, Runtime, SlowPath, Text, Underlay, Workers};
use crate::source::Problems;

/// The longest path of a unix socket in bytes: `sun_path` less its closing zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// CPUs that a fixed `cpu_set_t` can name (`CPU_SETSIZE`, sched.h).
const MAX_CPUS: usize = 1024;

pub(super) fn node(raw: Option<&Spanned<Node>>, problems: &mut Problems<'_>) -> NodeConfig {
    let Some(raw) = raw else {
        problems.report(
            &(0..0),
            "there is no [node] table; add one with name = \"node-a\"".into(),
        );
        return NodeConfig {
            name: String::new(),
        };
    };
    let name = required(
        raw.get_ref().name.as_ref(),
        &raw.span(),
        "name = \"node-a\"",
        problems,
    );
    let name = name
        .filter(|(name, at)| node_name(name, at, problems))
        .map_or("", |(name, _)| name);
    NodeConfig {
        name: name.to_owned(),
    }
}

pub(super) fn underlay(
    raw: Option<&Spanned<Underlay>>,
    problems: &mut Problems<'_>,
) -> UnderlayConfig {
    let none = UnderlayConfig {
        interface: String::new(),
        address: None,
        address6: None,
        hook: None,
        xdp: XdpMode::Auto,
        queues: None,
        line: 1,
    };
    let Some(raw) = raw else {
        problems.report(
            &(0..0),
            "there is no [underlay] table; add one with interface = \"eth0\"".into(),
        );
        return none;
    };
    let at = raw.span();
    let raw = raw.get_ref();
    let modes = [
        ("auto", XdpMode::Auto),
        ("native", XdpMode::Native),
        ("generic", XdpMode::Generic),
    ];
    let mut underlay = UnderlayConfig {
        address: match own_address(raw.address.as_ref(), "address", true, problems) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        },
        address6: match own_address(raw.address6.as_ref(), "address6", false, problems) {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        },
        hook: hook(raw, problems),
        xdp: choice(raw.xdp.as_ref(), "xdp", &modes, problems),
        queues: number(raw.queues.as_ref(), "queues", &(1..=1024), problems),
        ..none
    };
    if let Some((name, at)) = required(
        raw.interface.as_ref(),
        &at,
        "interface = \"eth0\"",
        problems,
    ) {
        interface(name, &at, problems);
        name.clone_into(&mut underlay.interface);
        underlay.line = problems.line(&at);
    }
    underlay
}

/// The underlay's hook. Keys that are about XDP speak for it.
fn hook(raw: &Underlay, problems: &mut Problems<'_>) -> Option<Hook> {
    let hooks = [("tc", Some(Hook::Tc)), ("xdp", Some(Hook::Xdp))];
    let said = choice(raw.hook.as_ref(), "hook", &hooks, problems);
    let about_xdp = [
        ("xdp", raw.xdp.as_ref().map(Spanned::span)),
        ("queues", raw.queues.as_ref().map(Spanned::span)),
    ];
    let given = about_xdp
        .into_iter()
        .filter_map(|(key, at)| Some((key, at?)));
    let mut said = said;
    for (key, at) in given {
        if said == Some(Hook::Tc) {
            let message =
                format!("`{key}` is about XDP, and the hook is in tc; remove one of both");
            problems.report(&at, message);
        } else {
            said = Some(Hook::Xdp);
        }
    }
    said
}

/// One of the node's own addresses, of the key's family.
fn own_address(
    value: Option<&Text>,
    key: &str,
    v4: bool,
    problems: &mut Problems<'_>,
) -> Option<IpAddr> {
    let text = value?;
    let address = underlay_address(text.get_ref(), &text.span(), problems)?;
    if address.is_ipv4() == v4 {
        return Some(address);
    }
    let (family, other) = if v4 {
        ("IPv4", "address6")
    } else {
        ("IPv6", "address")
    };
    let message =
        format!("`{key}` is for the node's {family} address; give {address} as `{other}`");
    problems.report(&text.span(), message);
    None
}

/// Words for how a pod is attached.
pub(super) const ATTACH: [(&str, Option<Hook>); 2] =
    [("tc", Some(Hook::Tc)), ("xsk", Some(Hook::Xdp))];

pub(super) fn hooks(raw: &Hooks, problems: &mut Problems<'_>) -> HooksConfig {
    HooksConfig {
        pods: choice(raw.pods.as_ref(), "pods", &ATTACH, problems),
        settled: raw.settled.unwrap_or(true),
    }
}

pub(super) fn workers(raw: &Workers, problems: &mut Problems<'_>) -> WorkersConfig {
    let count = match &raw.count {
        Some(value) => number(Some(value), "count", &(1..=64), problems),
        None => Some(1),
    };
    let timeout = number(
        raw.heartbeat_timeout_ms.as_ref(),
        "heartbeat_timeout_ms",
        &(100..=60_000),
        problems,
    );
    let gather = number(raw.gather_us.as_ref(), "gather_us", &(0..=1000), problems);
    WorkersConfig {
        count: count.unwrap_or(1),
        cpus: raw.cpus.as_ref().map(|list| cpus(list, count, problems)),
        polling: choice(
            raw.polling.as_ref(),
            "polling",
            &[("adaptive", Polling::Adaptive), ("busy", Polling::Busy)],
            problems,
        ),
        gather: Duration::from_micros(gather.unwrap_or(25)),
        max_ports: number(raw.max_ports.as_ref(), "max_ports", &(1..=1024), problems)
            .unwrap_or(110),
        flow_cache: number(
            raw.flow_cache.as_ref(),
            "flow_cache",
            &(0..=4_194_304),
            problems,
        )
        .unwrap_or(131_072),
        heartbeat_timeout: Duration::from_millis(timeout.unwrap_or(500)),
    }
}

/// One CPU for each of `count` workers; `count` is none when it was wrong itself.
fn cpus(list: &List<i64>, count: Option<usize>, problems: &mut Problems<'_>) -> Vec<usize> {
    let given = list.get_ref().len();
    if let Some(count) = count.filter(|count| *count != given) {
        let message = format!(
            "`cpus` has {given} CPUs for {count} workers; give one for each, or change `count`"
        );
        problems.report(&list.span(), message);
    }
    let mut once = Once::default();
    let mut cpus = Vec::with_capacity(given);
    for cpu in list.get_ref() {
        if let Some(number) = number(Some(cpu), "cpus", &(0..=MAX_CPUS - 1), problems) {
            once.note(number, &format_args!("CPU {number}"), &cpu.span(), problems);
            cpus.push(number);
        }
    }
    cpus
}

pub(super) fn runtime(raw: &Runtime, node: &str, problems: &mut Problems<'_>) -> RuntimeConfig {
    let default = RuntimeConfig::default();
    let runtime = RuntimeConfig {
        directory: path(raw.directory.as_ref(), default.directory, problems),
        bpffs: path(raw.bpffs.as_ref(), default.bpffs, problems),
    };
    let socket = runtime.socket(node);
    let length = socket.as_os_str().len();
    if let Some(text) = raw.directory.as_ref().filter(|_| length > MAX_SOCKET_PATH) {
        let message = format!(
            "the control socket would be {}, {length} bytes where a socket's path has at most {MAX_SOCKET_PATH}; give \
             a shorter directory",
            socket.display()
        );
        problems.report(&text.span(), message);
    }
    runtime
}

pub(super) fn slow_path(raw: &SlowPath, vni: u32, problems: &mut Problems<'_>) -> SlowPathConfig {
    let mut device = |given: &Option<Text>, default: &str| match given {
        Some(name) => {
            interface(name.get_ref(), &name.span(), problems);
            name.get_ref().clone()
        }
        // A name has at most 15 bytes, a VNI up to eight digits.
        None if vni < 1_000_000 => format!("viaduct{default}.{vni}"),
        None => format!("vdt{default}.{vni}"),
    };
    let (device, device6) = (device(&raw.device, ""), device(&raw.device6, "6"));
    let choices = [
        ("kernel", OnExit::Kernel),
        ("remove", OnExit::Remove),
        ("fail-closed", OnExit::FailClosed),
    ];
    SlowPathConfig {
        enabled: raw.enabled.unwrap_or(true),
        device,
        device6,
        masquerade: raw.masquerade.unwrap_or(false),
        on_exit: choice(raw.on_exit.as_ref(), "on_exit", &choices, problems),
    }
}

pub(super) fn path(value: Option<&Text>, default: PathBuf, problems: &mut Problems<'_>) -> PathBuf {
    let Some(value) = value else { return default };
    let given = value.get_ref();
    if !Path::new(given).is_absolute() || given.contains('\0') {
        problems.report(
            &value.span(),
            format!("{given:?} is not an absolute path; begin it with a slash"),
        );
    }
    PathBuf::from(given)
}
