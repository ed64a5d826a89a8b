//! The slow path: the host's own kernel made able to carry the default network, as flannel does
//! it. It carries what the workers leave alone, and everything when they are gone.
//!
//! One function does all: [`SlowPath::reconcile`] looks at what the kernel has, compares it with
//! what it is to have, and does what is missing. The same again changes nothing; what somebody
//! else removed comes back.

pub(crate) mod firewall;
pub(crate) mod guard;
mod plan;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use self::guard::PodMacs;
use self::plan::{Devices, Lower, PodLink};
use self::settings::Settings;
use crate::kernel::{
    Entries, Entry, Kernel, KernelError, LinkInfo, LinkState, VxlanDevice, VxlanSettings,
};
use crate::options::{AgentOptions, NetworkOptions, SlowPathOptions};
use crate::status::SlowPathStatus;

/// How often others' firewall tables are looked at, at most.
const OBSTACLES_INTERVAL: Duration = Duration::from_secs(10);

/// Why the kernel cannot carry the network.
#[derive(Debug, thiserror::Error)]
pub enum SlowPathError {
    /// Somebody else has a VXLAN device with the network's VNI and port, and it does not fit.
    #[error(
        "cannot use VXLAN device {device}, which has VNI {vni} and port {port} already: {misfits}; \
         correct it, remove it (ip link delete {device}), or choose another VNI or port"
    )]
    Misfit {
        /// Its name.
        device: String,
        /// The network's number on the wire.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// What does not fit.
        misfits: String,
    },
    /// Somebody else has an interface of the device's name.
    #[error(
        "cannot make VXLAN device {device}: another interface has this name; remove that, or set \
         slow_path.device"
    )]
    NameTaken {
        /// The name.
        device: String,
    },
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What else could not be done.
    #[error("cannot prepare the kernel's path: {0}")]
    Problems(String),
}

/// Keeps the kernel able to carry the default network.
#[derive(Debug)]
pub(crate) struct SlowPath {
    settings: Settings,
    /// The VXLAN devices' numbers.
    devices: BTreeSet<u32>,
    /// The firewall table as the kernel listed it after it was made.
    table: Option<String>,
    /// When to look at others' tables again.
    obstacles_at: Option<Instant>,
    /// The pods' MACs, for the firewall.
    macs: PodMacs,
    /// What the kernel refused, so that it is logged once.
    refused: BTreeMap<Entry, String>,
    status: SlowPathStatus,
    /// Whether everything has been brought about once: what is missing since was removed.
    settled: bool,
}

/// What was found, and is to be.
struct Device {
    index: u32,
    name: String,
    adopted: bool,
}

impl SlowPath {
    /// Takes over what a predecessor wrote down; touches nothing yet.
    pub(crate) fn new(options: &SlowPathOptions) -> Self {
        Self {
            settings: Settings::load(options.saved.clone()),
            devices: BTreeSet::new(),
            table: None,
            obstacles_at: None,
            macs: PodMacs::new(),
            refused: BTreeMap::new(),
            status: SlowPathStatus::default(),
            settled: false,
        }
    }

    /// Whether a change of this interface's neighbours may be one of ours.
    pub(crate) fn watches(&self, interface: u32) -> bool {
        self.devices.contains(&interface)
    }

    /// Takes over what the pods' MACs are; true if that is new.
    pub(crate) fn set_macs(&mut self, macs: PodMacs) -> bool {
        let new = macs != self.macs;
        self.macs = macs;
        new
    }

    pub(crate) fn status(&self) -> &SlowPathStatus {
        &self.status
    }

    /// Whether the kernel has something of ours already, of a predecessor.
    pub(crate) async fn exists(kernel: &Kernel) -> Result<bool, KernelError> {
        let (_, devices) = kernel.links().await?;
        let entries = kernel.entries(&BTreeSet::new()).await?;
        Ok(devices.iter().any(|device| device.ours) || !entries.is_empty())
    }

    /// Brings everything about that is missing, and removes what is ours and not wanted. `look`
    /// at the firewall too, which costs a few milliseconds.
    ///
    /// # Errors
    ///
    /// If there can be no VXLAN device. Smaller problems are in the status.
    pub(crate) async fn reconcile(
        &mut self,
        kernel: &Kernel,
        options: &AgentOptions,
        look: bool,
    ) -> Result<(), SlowPathError> {
        let (Some(wanted), Some(network)) = (&options.slow_path, plan::network(options)) else {
            return Ok(());
        };
        let result = self
            .bring_about(kernel, options, wanted, network, look)
            .await;
        match &result {
            Ok(problems) => self.set_problems(problems.clone()),
            Err(error) => self.set_problems(vec![error.to_string()]),
        }
        result.map(drop)
    }

    fn set_problems(&mut self, problems: Vec<String>) {
        for problem in &problems {
            if !self.status.problems.contains(problem) {
                warn!(%problem, "the kernel's path");
            }
        }
        self.status.problems = problems;
    }

    async fn bring_about(
        &mut self,
        kernel: &Kernel,
        options: &AgentOptions,
        wanted: &SlowPathOptions,
        network: &NetworkOptions,
        look: bool,
    ) -> Result<Vec<String>, SlowPathError> {
        let (links, devices) = kernel.links().await?;
        let Some(lower) = links.iter().find(|l| l.name == options.underlay.name) else {
            return Ok(vec![format!(
                "there is no underlay {}",
                options.underlay.name
            )]);
        };
        let lower = Lower {
            index: lower.index,
            mtu: lower.mtu,
        };
        let mut made = Vec::new();
        let mut indexes = Devices::default();
        for own in plan::locals(options) {
            let (settings, state) = plan::device(network, own, lower);
            let (name, index) = if own.is_ipv4() {
                (&wanted.device, &mut indexes.v4)
            } else {
                (&wanted.device6, &mut indexes.v6)
            };
            let device = self
                .device(kernel, name, &settings, state, &links, &devices)
                .await?;
            *index = Some(device.index);
            made.push(device);
        }
        for stale in devices.iter().filter(|found| found.ours) {
            if !made.iter().any(|device| device.name == stale.link.name) {
                info!(
                    device = stale.link.name,
                    "removing a VXLAN device that is not wanted"
                );
                kernel.remove_link(stale.link.index).await?;
            }
        }
        let pods: Vec<PodLink<'_>> = options
            .ports
            .iter()
            .filter_map(|pod| {
                let link = links.iter().find(|link| link.name == pod.interface)?;
                link.up.then_some(PodLink {
                    index: link.index,
                    pod,
                })
            })
            .collect();
        self.devices = indexes.iter().collect();
        let names: Vec<&str> = made.iter().map(|device| device.name.as_str()).collect();
        self.status.device = (!names.is_empty()).then(|| names.join(" and "));
        self.status.adopted = made.iter().any(|device| device.adopted);
        let mut problems = self.bring_settings(options, &names, &pods);
        let entries = plan::entries(options, network, indexes, &pods);
        let mut interfaces: BTreeSet<u32> = pods.iter().map(|pod| pod.index).collect();
        interfaces.extend(indexes.iter());
        let found = kernel.entries(&interfaces).await?;
        self.bring_entries(kernel, &entries, &found).await;
        problems.extend(self.refused.values().cloned());
        let ruleset = firewall::ruleset(options, &self.macs, network, &names, wanted.masquerade);
        problems.extend(self.bring_table(&ruleset, look).await);
        self.settled = true;
        Ok(problems)
    }

    /// The device that there is, or is made: ours adjusted, somebody else's only if it fits.
    async fn device(
        &mut self,
        kernel: &Kernel,
        name: &str,
        settings: &VxlanSettings,
        state: LinkState,
        links: &[LinkInfo],
        devices: &[VxlanDevice],
    ) -> Result<Device, SlowPathError> {
        let v6 = |of: &VxlanSettings| of.local.is_some_and(|local| local.is_ipv6());
        let same = |found: &&VxlanDevice| {
            found.settings.vni == settings.vni
                && found.settings.port == settings.port
                && v6(&found.settings) == v6(settings)
        };
        let ours = devices.iter().find(|d| d.ours && d.link.name == name);
        if let Some(found) = devices.iter().find(same).filter(|found| !found.ours) {
            let misfits = plan::misfits(found, settings, state);
            if !misfits.is_empty() {
                return Err(SlowPathError::Misfit {
                    device: found.link.name.clone(),
                    vni: settings.vni.get(),
                    port: settings.port,
                    misfits: misfits.join("; "),
                });
            }
            if !found.link.up {
                let as_it_is = LinkState {
                    mtu: found.link.mtu,
                    ..state
                };
                kernel.set_link(&found.link, as_it_is).await?;
            }
            return Ok(Device {
                index: found.link.index,
                name: found.link.name.clone(),
                adopted: true,
            });
        }
        if let Some(stale) = ours.filter(|found| found.settings != *settings) {
            info!(
                device = name,
                "making the VXLAN device anew, with other settings"
            );
            kernel.remove_link(stale.link.index).await?;
        }
        if let Some(found) = ours.filter(|found| found.settings == *settings) {
            if found.link.mac != Some(state.mac) || found.link.mtu != state.mtu || !found.link.up {
                self.repaired(&format!("state of {name}"));
                kernel.set_link(&found.link, state).await?;
            }
            return Ok(Device {
                index: found.link.index,
                name: name.to_owned(),
                adopted: false,
            });
        }
        if ours.is_none() && links.iter().any(|link| link.name == name) {
            return Err(SlowPathError::NameTaken {
                device: name.to_owned(),
            });
        }
        self.repaired(&format!("VXLAN device {name}"));
        kernel.add_vxlan(name, settings, state).await?;
        let made = kernel.link_by_name(name).await?;
        // No address of its own choice: its MAC may be another device's, too.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        kernel.set_link(&made, state).await?;
        Ok(Device {
            index: made.index,
            name: name.to_owned(),
            adopted: false,
        })
    }

    fn bring_settings(
        &mut self,
        options: &AgentOptions,
        devices: &[&str],
        pods: &[PodLink<'_>],
    ) -> Vec<String> {
        let names = |carried: bool| -> Vec<&str> {
            let of = pods.iter().filter(|pod| (pod.pod.network == 0) == carried);
            of.map(|pod| pod.pod.interface.as_str()).collect()
        };
        let mut wanted = settings::wanted(&options.underlay.name, devices, &names(true), |name| {
            self.settings.original(name)
        });
        settings::add_strangers(&mut wanted, &names(false));
        self.settings.apply(&wanted)
    }

    async fn bring_entries(&mut self, kernel: &Kernel, wanted: &BTreeSet<Entry>, found: &Entries) {
        self.refused.retain(|entry, _| wanted.contains(entry));
        let destination = |entry: &Entry| match entry {
            Entry::Route { destination, .. } => Some(*destination),
            _ => None,
        };
        let ours: BTreeSet<_> = found.keys().filter_map(destination).collect();
        for entry in wanted.iter().filter(|entry| !found.contains_key(entry)) {
            let replace = destination(entry).is_some_and(|d| ours.contains(&d));
            match kernel.add(entry, replace).await {
                Ok(()) => {
                    self.refused.remove(entry);
                    self.repaired(&entry.to_string());
                }
                Err(error) => self.refuse(kernel, entry, &error).await,
            }
        }
        let kept: BTreeSet<_> = wanted.iter().filter_map(destination).collect();
        for (entry, _) in found.iter().rev().filter(|(_, ours)| **ours) {
            // A route that has been replaced is gone already.
            let replaced = destination(entry).is_some_and(|d| kept.contains(&d));
            if wanted.contains(entry) || replaced {
                continue;
            }
            debug!(%entry, "removing");
            if let Err(error) = kernel.remove(entry).await {
                warn!(%error, "will try again");
            }
        }
    }

    /// What somebody else made in our place may do as well: a route to a pod by a CNI plugin.
    async fn refuse(&mut self, kernel: &Kernel, entry: &Entry, error: &KernelError) {
        if error.exists() {
            match *entry {
                Entry::Address { .. } => return,
                Entry::Route {
                    destination,
                    way: crate::kernel::Way::Interface { interface, .. },
                } => {
                    let first: IpAddr = destination.network();
                    if let Ok(ways) = kernel.routes_to(first).await
                        && ways.iter().any(|way| way.interface == interface)
                    {
                        return;
                    }
                }
                _ => {}
            }
        }
        self.refused.insert(*entry, error.to_string());
    }

    /// Compares the firewall table with what it was when it was made; makes it anew if another
    /// is wanted or somebody changed it.
    async fn bring_table(&mut self, ruleset: &str, look: bool) -> Vec<String> {
        let same = self.status.ruleset == ruleset && self.table.is_some();
        if same && !look {
            return self.status.obstacles.clone();
        }
        if !same || firewall::list().await != self.table {
            if let Err(error) = firewall::apply(ruleset).await {
                self.table = None;
                return vec![format!(
                    "no firewall table: {error}; flows that the kernel translates (services, host ports) may break"
                )];
            }
            self.repaired("firewall table");
            self.table = firewall::list().await;
            ruleset.clone_into(&mut self.status.ruleset);
        }
        // All tables of a busy host are long: not at each of others' changes.
        let now = Instant::now();
        if self.obstacles_at.is_none_or(|at| at <= now) {
            self.obstacles_at = Some(now + OBSTACLES_INTERVAL);
            self.status.obstacles = firewall::obstacles().await;
        }
        self.status.obstacles.clone()
    }

    /// Counts what was missing after it had been there once.
    fn repaired(&mut self, what: &str) {
        if self.settled {
            info!(what, "added");
            self.status.added += 1;
        } else {
            debug!(what, "added");
        }
    }

    /// Removes everything that Viaduct made, whoever made it, and restores settings.
    pub(crate) async fn remove(mut self, kernel: &Kernel) -> Result<(), KernelError> {
        if let Err(error) = firewall::remove().await {
            debug!(error, "no firewall table removed");
        }
        let (_, devices) = kernel.links().await?;
        let found = kernel.entries(&BTreeSet::new()).await?;
        for (entry, _) in found.iter().rev().filter(|(_, ours)| **ours) {
            kernel.remove(entry).await?;
        }
        for device in devices.iter().filter(|device| device.ours) {
            kernel.remove_link(device.link.index).await?;
        }
        self.settings.restore();
        Ok(())
    }
}

/// Removes what a router, dead or alive, had made in the kernel of this network namespace, and
/// restores the settings that it wrote down in `saved`.
///
/// # Errors
///
/// If the kernel cannot be asked, or refuses.
pub async fn remove_slow_path(kernel: &Kernel, saved: PathBuf) -> Result<bool, KernelError> {
    let there = SlowPath::exists(kernel).await?;
    let options = SlowPathOptions {
        device: String::new(),
        device6: String::new(),
        masquerade: false,
        remove_at_end: false,
        saved,
    };
    SlowPath::new(&options).remove(kernel).await?;
    Ok(there)
}
