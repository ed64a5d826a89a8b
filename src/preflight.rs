//! What a router needs of its host before anything is touched. A start and `viaduct check` look at
//! the same things.

use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};
use viaduct_config::{Config, RuntimeConfig};

use crate::host::Finding;
use crate::limits;
use crate::options::router_options;
use crate::ports::is_udp_port_taken;

/// What is missing on this host, or in the way. `running`: this node's router lives, so what it has
/// taken is not in its own way.
pub(crate) fn findings(config: &Config, running: bool) -> Vec<Finding> {
    let options = router_options(config);
    let pods = config.pods.len();
    let mut findings = limits::findings(&options, pods);
    let refused = |e: viaduct_router::RouterError| Finding::refused(e.to_string());
    findings.extend(options.check().err().map(refused));
    findings.extend(viaduct_router::check_tun().err().map(refused));
    findings.extend(fixed_settings());
    findings.extend(no_bpffs(&config.runtime.bpffs));
    if let Some(why) = unwritable(&config.runtime.directory) {
        findings.push(Finding::refused(format!(
            "cannot write in {}, where the router's lock and control socket have to be: {why}",
            config.runtime.directory.display()
        )));
    }
    findings.extend(unusable_files(&config.runtime, &config.node.name));
    if !running {
        findings.extend(limits::memory(&options, pods));
    }
    if let Some(gossip) = &config.gossip {
        findings.extend(unwritable_state(&gossip.state, &config.node.name));
        if !running && is_udp_port_taken(gossip.port) {
            findings.push(Finding::problem(format!(
                "UDP port {} is taken, which gossip needs: stop the program that has it (ss -ulpn), or set gossip.port on all nodes",
                gossip.port
            )));
        }
    }
    if config.slow_path.enabled && !is_program("nft") {
        findings.push(Finding::problem(
            "there is no program nft: on the kernel's path nothing keeps pods from sending forged packets, and flows that the \
             kernel translates (services, host ports) may break; install nftables",
        ));
    }
    findings.extend(pods_at_gateways(config));
    findings
}

/// Pods that have the address which is the gateway of others: the first host address of the node's
/// first prefix of each family, for pods with the prefix's length instead of single addresses.
fn pods_at_gateways(config: &Config) -> Vec<Finding> {
    let Some(network) = config.networks.first() else {
        return Vec::new();
    };
    let first_of = |v4: bool| {
        let mut prefixes = network.pod_prefixes.iter();
        let prefix = prefixes.find(|prefix| prefix.addr().is_ipv4() == v4)?;
        prefix.hosts().find(|host| *host != prefix.network())
    };
    let gateways = [first_of(true), first_of(false)];
    let pods = config.pods.iter().filter(|pod| pod.network == 0);
    let taken = pods.flat_map(|pod| {
        let addresses = pod.addresses.iter();
        addresses.filter(|address| gateways.contains(&Some(**address))).map(move |address| {
            let name = &pod.name;
            Finding::problem(format!(
                "{}:{}: pod {name} has {address}, which is the gateway of pods with a /24 or /64: these have none; give pod \
                 {name} another address",
                config.file.display(),
                pod.line
            ))
        })
    });
    taken.collect()
}

/// What stands where the router's files have to be, and a control socket that nobody can listen at.
fn unusable_files(runtime: &RuntimeConfig, node: &str) -> Vec<Finding> {
    let is_folder = |file: &PathBuf| file.is_dir();
    let text = |file: PathBuf, what: &str| {
        let file = file.display();
        format!("{file} is a folder, where {what} has to be: remove it")
    };
    let mut findings = Vec::new();
    let socket = runtime.socket(node);
    if SocketAddr::from_pathname(&socket).is_err() {
        findings.push(Finding::refused(format!(
            "cannot listen on {}: the path of a Unix socket has at most 107 bytes, and this one has {}; choose a shorter \
             runtime.directory or node.name",
            socket.display(),
            socket.as_os_str().len()
        )));
    }
    let needed = [
        (socket, "the control socket"),
        (runtime.lock(node), "the router's lock"),
    ];
    let needed = needed.into_iter().filter(|(file, _)| is_folder(file));
    findings.extend(needed.map(|(file, what)| Finding::refused(text(file, what))));
    let kept = [
        (runtime.settings(node), "what settings were"),
        (runtime.commands(node), "what commands added"),
    ];
    let kept = kept.into_iter().filter(|(file, _)| is_folder(file));
    findings.extend(kept.map(|(file, what)| Finding::problem(text(file, what))));
    findings
}

/// Whether network settings can be changed: a router has to for its TUN device, and for pods'
/// interfaces.
fn fixed_settings() -> Option<Finding> {
    let setting = "/proc/sys/net/ipv4/conf/all/rp_filter";
    let error = access(setting, AccessFlags::W_OK).err()?;
    Some(Finding::refused(format!(
        "cannot change network settings ({setting}: {error}): mount /proc/sys writable (a container has to be privileged, or \
         have its own)"
    )))
}

/// Whether there can be pins.
fn no_bpffs(folder: &Path) -> Option<Finding> {
    let place = existing(folder);
    let shown = folder.display();
    match statfs(&place) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => unwritable(folder)
            .map(|why| Finding::refused(format!("cannot write in {shown}: {why}"))),
        Ok(_) => Some(Finding::refused(format!(
            "{shown} is not in a BPF filesystem: mount one (mount -t bpf bpf /sys/fs/bpf), or set runtime.bpffs"
        ))),
        Err(e) => Some(Finding::refused(format!("cannot look at {shown}: {e}"))),
    }
}

/// A state directory that cannot be written will do for a node that has its key: what it would write
/// down is then not known at its next start.
fn unwritable_state(state: &Path, node: &str) -> Option<Finding> {
    let why = unwritable(state)?;
    let has_key = state.join(format!("{node}.key")).exists();
    let text = format!(
        "cannot write in {}, where gossip keeps what has to outlive a start: {why}",
        state.display()
    );
    Some(if has_key {
        Finding::problem(text)
    } else {
        Finding::refused(format!(
            "{text}; the node's own key is not there yet, and has to be made"
        ))
    })
}

/// Why nothing can be written in a folder, which may have to be made first.
fn unwritable(folder: &Path) -> Option<String> {
    let place = existing(folder);
    let at = place.display();
    if !place.is_dir() {
        return Some(format!("{at} is no folder"));
    }
    if let Err(e) = access(&place, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Some(format!("{at}: {e}"));
    }
    let found = statvfs(&place).ok()?;
    if found.flags().contains(FsFlags::ST_RDONLY) {
        return Some(format!("{at} is read-only"));
    }
    // Some filesystems do not count blocks or files: they have none at all.
    let full = found.blocks() > 0 && found.blocks_available() == 0;
    let no_files = found.files() > 0 && found.files_available() == 0;
    (full || no_files).then(|| format!("the filesystem of {at} is full"))
}

/// The folder, or the closest one above it that there is.
fn existing(folder: &Path) -> PathBuf {
    let mut all = folder.ancestors();
    let there = all.find(|folder| folder.exists());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// Whether there is a program of this name to run.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| access(&folder.join(name), AccessFlags::X_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_that_has_to_be_made_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(unwritable(&folder.path().join("a/b")), None);
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        assert!(unwritable(&file.join("a")).is_some_and(|why| why.contains("no folder")));
        assert!(no_bpffs(folder.path()).is_some_and(|it| it.refused));
        assert!(!is_program("no-such-program"));
    }

    #[test]
    fn what_stands_where_files_have_to_be_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = RuntimeConfig {
            directory: folder.path().to_owned(),
            ..RuntimeConfig::default()
        };
        assert_eq!(unusable_files(&runtime, "a"), []);
        let all = [
            (runtime.socket("a"), true),
            (runtime.lock("a"), true),
            (runtime.settings("a"), false),
            (runtime.commands("a"), false),
        ];
        for (file, _) in &all {
            fs::create_dir(file).expect("a folder");
        }
        let found = unusable_files(&runtime, "a");
        assert_eq!(found.len(), all.len());
        for (found, (file, refused)) in found.iter().zip(&all) {
            assert_eq!(found.refused, *refused, "{found}");
            assert!(found.text.contains(&file.display().to_string()), "{found}");
        }
        let runtime = RuntimeConfig {
            directory: folder.path().join("x".repeat(100)),
            ..RuntimeConfig::default()
        };
        let found = unusable_files(&runtime, "a");
        assert!(
            found[0].refused && found[0].text.contains("107"),
            "{found:?}"
        );
    }
}
