//! The slow path: the host's own kernel made able to carry the default network, as flannel does
//! it. It carries what the workers leave alone, and everything when they are gone.
//!
//! One function does all: [`SlowPath::reconcile`] compares what the kernel has with what it is to
//! have, and does what is missing. The same again changes nothing; what somebody else removed comes
//! back. Both sides are kept ([`wanted`], [`mirror`]), so that a change costs what it changes.

mod bring;
mod bring_entries;
mod changes;
pub(crate) mod device;
mod error;
mod firewall;
pub(crate) mod guard;
mod host_firewall;
mod leftovers;
mod looked;
mod mirror;
mod nft;
mod nodes;
mod plan;
mod rules;
mod settings;
mod sysctls;
mod table;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ipnet::IpNet;
use tracing::{debug, info, warn};

use self::bring_entries::remove_entries;
pub use self::error::SlowPathError;
use self::firewall::Firewall;
pub(crate) use self::firewall::{FirewallEvent, Soon};
use self::guard::PodMacs;
pub use self::leftovers::{Leftovers, LeftoversError};
use self::looked::Looked;
use self::mirror::Mirror;
use self::nodes::Nodes;
use self::settings::Settings;
pub use self::settings::note_place;
use self::wanted::Wanted;
use crate::kernel::{Entry, EntryChange, Kernel, KernelError, Key, LinkInfo, VxlanDevice};
use crate::options::{AgentOptions, SlowPathOptions};
use crate::overlaps::Overlaps;
use crate::status::SlowPathStatus;

/// Keeps the kernel able to carry the default network.
#[derive(Debug)]
pub(crate) struct SlowPath {
    /// Whose it is: this node's name marks it.
    node: String,
    settings: Settings,
    /// The VXLAN devices' numbers.
    devices: BTreeSet<u32>,
    by_family: plan::Devices,
    /// Theirs, and those of the pods' interfaces that are up.
    interfaces: BTreeSet<u32>,
    /// What the kernel is to have of entries, and what it is known to have.
    wanted: Wanted,
    mirror: Mirror,
    /// What the firewall is to know of other nodes.
    nodes: Nodes,
    /// What of the host's lies in the cluster's prefixes.
    overlaps: Looked,
    firewall: Firewall,
    /// Numbers of pods' interfaces whose rules have stood once: what the kernel has for them is not
    /// taken away while the table is made anew, or when they get other names.
    covered: BTreeSet<u32>,
    /// The pods' MACs, for the firewall.
    macs: PodMacs,
    /// What the kernel refused, so that it is logged once.
    refused: BTreeMap<Entry, String>,
    status: SlowPathStatus,
    /// Whether everything has been brought about once: what is missing since was removed.
    settled: bool,
    /// Whether nothing else is done yet, so that the firewall may be waited for.
    starting: bool,
}

impl SlowPath {
    /// Takes over what a predecessor wrote down; touches nothing yet.
    pub(crate) fn new(options: &SlowPathOptions, overlaps: Overlaps) -> Self {
        Self {
            node: options.node.clone(),
            settings: Settings::load(options.saved.clone(), options.place.clone()),
            devices: BTreeSet::new(),
            by_family: plan::Devices::default(),
            interfaces: BTreeSet::new(),
            wanted: Wanted::default(),
            mirror: Mirror::new(),
            nodes: Nodes::default(),
            overlaps: Looked::new(overlaps),
            firewall: Firewall::new(),
            covered: BTreeSet::new(),
            macs: PodMacs::new(),
            refused: BTreeMap::new(),
            status: SlowPathStatus::default(),
            settled: false,
            starting: false,
        }
    }

    /// Takes over what the kernel announces of an entry; true if something is not as wanted now.
    pub(crate) fn note_entry(&mut self, change: &EntryChange) -> bool {
        self.mirror.note(change, &self.wanted, &self.interfaces)
    }

    /// Takes over that somebody else's route to a prefix came, changed or went. It may have replaced
    /// ours, of which nothing is announced.
    pub(crate) fn note_others_route(&mut self, destination: IpNet) {
        let wanted = |refusing| self.wanted.get(&Key::Route(destination, refusing));
        if wanted(false).or_else(|| wanted(true)).is_some() {
            self.mirror.distrust();
        }
    }

    /// Takes over that an interface has changed.
    pub(crate) fn note_link(&mut self, link: &LinkInfo) {
        if !link.up && self.interfaces.contains(&link.index) {
            self.mirror.went_down(link.index);
        }
    }

    /// Takes over that an interface is gone.
    pub(crate) fn note_removed_link(&mut self, index: u32) {
        self.mirror.removed(index);
    }

    /// Has everything compared at the next look: events may have been lost.
    pub(crate) fn check_again(&mut self) {
        self.mirror.distrust();
        self.firewall.check_again();
    }

    /// Takes over what the pods' MACs are; true if that is new.
    pub(crate) fn set_macs(&mut self, macs: PodMacs) -> bool {
        let new = macs != self.macs;
        self.macs = macs;
        new
    }

    /// The numbers of its VXLAN devices over IPv4 and IPv6.
    pub(crate) const fn overlay(&self) -> [Option<u32>; 2] {
        [self.by_family.v4, self.by_family.v6]
    }

    pub(crate) fn status(&self) -> &SlowPathStatus {
        &self.status
    }

    /// Whether the kernel has something of ours already, of a predecessor.
    pub(crate) async fn exists(kernel: &Kernel) -> Result<bool, KernelError> {
        let (_, devices) = kernel.links().await?;
        let entries = kernel.entries(&BTreeSet::new()).await?;
        let ours = entries.values().any(|ours| *ours);
        Ok(devices.iter().any(VxlanDevice::is_ours) || ours)
    }

    /// As [`reconcile`](Self::reconcile), and waits for the firewall, which later nothing does.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) async fn start(
        &mut self,
        kernel: &Kernel,
        options: &AgentOptions,
    ) -> Result<(), SlowPathError> {
        self.starting = true;
        let result = self.reconcile(kernel, options).await;
        self.starting = false;
        result
    }

    /// Brings everything about that is missing, and removes what is ours and not wanted.
    ///
    /// # Errors
    ///
    /// If there can be no VXLAN device. Smaller problems are in the status.
    pub(crate) async fn reconcile(
        &mut self,
        kernel: &Kernel,
        options: &AgentOptions,
    ) -> Result<(), SlowPathError> {
        let (Some(wanted), Some(network)) = (&options.slow_path, plan::network(options)) else {
            return Ok(());
        };
        let result = self.bring_about(kernel, options, wanted, network).await;
        match &result {
            Ok(problems) => {
                self.set_problems(problems.clone());
                let notes = self.overlaps.found.notes.iter().cloned();
                self.status.notes = notes.chain(self.firewall.notes()).collect();
            }
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

    /// The next thing that happened at the firewall, or was found of the host's; none for the
    /// latter. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<FirewallEvent> {
        tokio::select! {
            biased;
            event = self.firewall.next() => Some(event),
            () = self.overlaps.next() => None,
        }
    }

    /// Takes note of it: how soon [`reconcile`](Self::reconcile) has something to do, if it has.
    pub(crate) fn note(&mut self, event: Option<FirewallEvent>) -> Option<Soon> {
        match event {
            Some(event) => self.firewall.note(event),
            None => Some(Soon::Now),
        }
    }

    /// When there is something to do though nothing happens.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.firewall.next_due()
    }

    /// Routes or addresses of the host have changed.
    pub(crate) fn host_changed(&mut self) {
        self.overlaps.changed();
    }

    /// Whether what was asked of the firewall has been done, or cannot be.
    pub(crate) fn is_settled(&self) -> bool {
        self.firewall.is_settled()
    }

    /// Waits until the firewall is as it was asked to be, or cannot be.
    pub(crate) async fn settle(&mut self) {
        self.firewall.settle().await;
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

    /// Removes everything that Viaduct made here, and restores settings.
    pub(crate) async fn remove(mut self, kernel: &Kernel) -> Result<(), KernelError> {
        if let Err(error) = self.firewall.remove().await {
            debug!(error, "no firewall table removed");
        }
        remove_entries(kernel).await?;
        self.settings.restore();
        Ok(())
    }
}

/// Whether the kernel has something that a router made, dead or alive.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub async fn has_slow_path(kernel: &Kernel) -> Result<bool, KernelError> {
    SlowPath::exists(kernel).await
}
