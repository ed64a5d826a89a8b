//! Doing things in network namespaces: by threads of their own, since a thread is in one.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use viaduct_encap::MacAddr;

use crate::sys;
use crate::traffic::Origin;

/// Where `ip netns` keeps names.
const NAMED: &str = "/run/netns";

/// A network namespace: by name as `ip netns` has it, by path, or the process's own.
#[derive(Clone, Debug, Default)]
pub struct Namespace(Option<PathBuf>);

impl Namespace {
    /// By name, or by path if it has a slash; the process's own if there is none.
    pub fn new(name: Option<&str>) -> Self {
        Self(name.map(|name| {
            if name.contains('/') {
                PathBuf::from(name)
            } else {
                Path::new(NAMED).join(name)
            }
        }))
    }

    /// Takes the thread into it.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn enter(&self) -> anyhow::Result<()> {
        let Some(path) = &self.0 else {
            return Ok(());
        };
        let namespace = File::open(path)
            .with_context(|| format!("no network namespace at {}", path.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {}", path.display()))
    }

    /// Does something in it, by another thread.
    ///
    /// # Errors
    /// When there is no such namespace, and those of `work`.
    pub fn with<R: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<R> + Send,
    ) -> anyhow::Result<R> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread
                .join()
                .map_err(|_| anyhow!("a thread has panicked"))?
        })
    }
}

/// What the thread's namespace knows about an interface.
pub(crate) fn interface(name: &str) -> anyhow::Result<Origin> {
    let missing = || anyhow!("there is no interface {name} in its network namespace");
    let ifindex = nix::net::if_::if_nametoindex(name).map_err(|_| missing())?;
    let addresses: Vec<_> = getifaddrs()
        .context("cannot list addresses")?
        .filter(|a| a.interface_name == name)
        .filter_map(|a| a.address)
        .collect();
    let mac = addresses
        .iter()
        .find_map(|a| a.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr));
    let address = addresses
        .iter()
        .find_map(|a| a.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip));
    Ok(Origin {
        name: name.to_owned(),
        ifindex,
        mac: MacAddr(mac.ok_or_else(missing)?),
        address,
        mtu: sys::mtu(name).with_context(|| format!("cannot tell the MTU of {name}"))?,
    })
}
