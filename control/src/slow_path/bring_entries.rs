//! Entries of the kernel's tables are made what they are to be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::{info, warn};

use super::SlowPath;
use crate::kernel::{Entry, Kernel, KernelError, LinkInfo, Names, Way};

impl SlowPath {
    /// Adds what is missing, and removes what is ours and not wanted, where something has changed.
    /// What is there with the key of a wanted entry and another's mark stays as it is, and is a
    /// problem.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub(super) async fn bring_entries(
        &mut self,
        kernel: &Kernel,
        devices: &BTreeSet<u32>,
        names: &Names,
    ) -> Result<(), KernelError> {
        if self.mirror.is_stale() {
            let found = kernel.entries(devices).await?;
            self.mirror.read(&found, &self.wanted);
        }
        let wanted = &self.wanted;
        self.refused
            .retain(|entry, _| wanted.get(&entry.key()) == Some(entry));
        let todo = self.mirror.take(&self.wanted);
        for key in todo.keys() {
            if let Some(wanted) = self.wanted.get(key) {
                self.refused.remove(wanted);
            }
        }
        let mut missing: Vec<_> = todo.values().filter_map(|it| it.add).collect();
        // What a later one needs comes first.
        missing.sort_unstable();
        for (entry, in_place) in missing {
            self.bring_entry(kernel, &entry, in_place, names).await;
        }
        let mut surplus: Vec<_> = todo.values().flat_map(|it| &it.remove).collect();
        surplus.sort_unstable();
        for entry in surplus.into_iter().rev() {
            match kernel.remove(entry, names).await {
                Ok(()) => {
                    info!(what = %names.of(entry), "removed: no pod and no route needs it");
                    self.mirror.drop(entry);
                }
                Err(error) => warn!(%error, "will try again"),
            }
        }
        for key in todo.into_keys() {
            self.mirror.look_again(key, &self.wanted);
        }
        Ok(())
    }

    /// Adds an entry, unless somebody else's has its place.
    async fn bring_entry(
        &mut self,
        kernel: &Kernel,
        entry: &Entry,
        in_place: Option<(Entry, bool)>,
        names: &Names,
    ) {
        if let Some((foreign, false)) = in_place {
            self.refused.insert(
                *entry,
                format!(
                    "cannot add {}: there is {}, which Viaduct did not make; remove it if nobody needs it",
                    names.of(entry),
                    names.of(&foreign)
                ),
            );
            return;
        }
        match kernel.add(entry, in_place.is_some(), names).await {
            Ok(()) => {
                if let Some((replaced, _)) = in_place {
                    self.mirror.drop(&replaced);
                }
                self.mirror.put(*entry, true);
                self.repaired(&names.of(entry).to_string());
            }
            Err(error) => self.refuse(kernel, entry, &error).await,
        }
    }

    /// What somebody else made in our place may do as well: a route to a pod by a CNI plugin.
    async fn refuse(&mut self, kernel: &Kernel, entry: &Entry, error: &KernelError) {
        if error.exists() {
            match *entry {
                Entry::Address { .. } => return,
                Entry::Route {
                    destination,
                    way: Way::Interface { interface, .. },
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
}

/// Removes all entries and devices of Viaduct's; how many.
pub(super) async fn remove_entries(kernel: &Kernel) -> Result<usize, KernelError> {
    let (links, devices) = kernel.links().await?;
    let names = interface_names(&links);
    let found = kernel.entries(&BTreeSet::new()).await?;
    let mut removed = 0;
    for (entry, _) in found.iter().rev().filter(|(_, ours)| **ours) {
        kernel.remove(entry, &names).await?;
        removed += 1;
    }
    for device in devices.iter().filter(|device| device.is_ours()) {
        kernel.remove_link(&device.link).await?;
        removed += 1;
    }
    Ok(removed)
}

pub(super) fn interface_names(links: &[LinkInfo]) -> Names {
    Names::new(links.iter().map(|link| (link.index, link.name.clone())))
}
