//! One router a node name, and one a network namespace: what says that it lives.
//!
//! A router is the only one in its network namespace, because its devices, routes, settings and
//! firewall table are the namespace's: two would take them from each other. Names of abstract Unix
//! sockets are per network namespace (unix(7)), so one of them is the lock. It goes with the
//! process, however that ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use viaduct_config::RuntimeConfig;

/// The abstract name that a namespace's router holds.
const ROUTER: &str = "viaduct/router";
/// Another one says which node it is.
const NODE: &str = "viaduct/node/";

/// How long a lock may be held by what is no router.
const PATIENCE: Duration = Duration::from_secs(2);

/// One router a node name: the lock says that it lives.
pub(crate) fn lock(runtime: &RuntimeConfig, node: &str) -> anyhow::Result<File> {
    let path = runtime.lock(node);
    fs::create_dir_all(&runtime.directory)
        .with_context(|| format!("cannot make {}", runtime.directory.display()))?;
    let since = Instant::now();
    loop {
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            // What a killed router had just started holds its lock, and its socket, until it becomes another program.
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "a router for node {node} is running (it holds {}); stop it first",
                    path.display()
                )
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // A router that ends removes the file: then what we hold is nobody's, and another holds,
        // or will hold, the one of that name.
        let ours = file.metadata().ok().map(|m| m.ino());
        if ours.is_some() && ours == fs::metadata(&path).ok().map(|m| m.ino()) {
            return Ok(file);
        }
    }
}

/// Removes the files by which others find a router.
pub(crate) fn forget(runtime: &RuntimeConfig, node: &str) {
    let _ = fs::remove_file(runtime.socket(node));
    let _ = fs::remove_file(runtime.lock(node));
}

/// Whether a router of this name answers on its control socket.
pub(crate) fn is_running(runtime: &RuntimeConfig, node: &str) -> bool {
    UnixStream::connect(runtime.socket(node)).is_ok()
}

/// The thread's network namespace is this router's until it is dropped.
#[derive(Debug)]
pub(crate) struct NamespaceLock(#[expect(dead_code, reason = "held")] [UnixDatagram; 2]);

impl NamespaceLock {
    /// Takes the namespace for a node's router.
    ///
    /// # Errors
    /// When another router has it.
    pub(crate) fn take(node: &str) -> anyhow::Result<Self> {
        let bind = |name: &str| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?);
        let lock = match bind(ROUTER) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                bail!(taken(&holder().unwrap_or_default()));
            }
            Err(e) => return Err(e).context("cannot lock the network namespace"),
        };
        let name = bind(&format!("{NODE}{node}")).context("cannot lock the network namespace")?;
        Ok(Self([lock, name]))
    }
}

/// Why a router cannot start in a namespace that another node's router has.
pub(crate) fn taken(other: &str) -> String {
    let whose = match other {
        "" => "another node's".to_owned(),
        other => format!("node {other}'s"),
    };
    format!(
        "{whose} router is running in this network namespace, where there can be one; stop it, or use a namespace for each"
    )
}

/// The node whose router has this network namespace, if there is one; empty if it does not say.
pub(crate) fn holder() -> Option<String> {
    // What there is in the thread's own namespace.
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
    holder_in(&sockets)
}

fn holder_in(sockets: &str) -> Option<String> {
    let mut names = sockets
        .lines()
        .filter_map(|line| line.split_once('@'))
        .map(|(_, name)| name);
    names.clone().find(|name| *name == ROUTER)?;
    let node = names.find_map(|name| name.strip_prefix(NODE));
    Some(node.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_name() {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let line = |name: &str| {
            format!("0000000000000000: 00000002 00000000 00000000 0002 01 25 {name}\n")
        };
        let other = line("@viaduct/node/x") + &line("/run/viaduct/x.sock");
        assert_eq!(holder_in(&(head.to_owned() + &other)), None);
        let all = head.to_owned() + &line("@viaduct/node/node-a") + &line("@viaduct/router");
        assert_eq!(holder_in(&all).as_deref(), Some("node-a"));
        assert_eq!(holder_in(&line("@viaduct/router")).as_deref(), Some(""));
        assert!(taken("node-a").contains("node node-a's router"));
    }
}
