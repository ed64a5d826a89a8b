//! What the kernel has of entries, as far as is known: read once, then kept by what is written and by
//! what the kernel announces. So a change costs what it changes. All of it is read again only where
//! the kernel takes something away without a word, and now and then.

use std::collections::{BTreeMap, BTreeSet};

use super::wanted::Wanted;
use crate::kernel::{Entries, Entry, EntryChange, Key};

/// The entries that there are, and where they may not be as wanted.
#[derive(Debug)]
pub(super) struct Mirror {
    /// By key, each with whether Viaduct made it.
    held: BTreeMap<Key, Vec<(Entry, bool)>>,
    /// Keys whose entries have to be looked at.
    todo: BTreeSet<Key>,
    /// Whether all has to be read again.
    stale: bool,
    /// Interfaces that went down or lost an address: the kernel takes their IPv4 routes without
    /// announcing it.
    silent: BTreeSet<u32>,
}

/// What has to be done for one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ToDo {
    /// What is to be added, and what has its place.
    pub(super) add: Option<(Entry, Option<(Entry, bool)>)>,
    pub(super) remove: Vec<Entry>,
}

impl Mirror {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            todo: BTreeSet::new(),
            stale: true,
            silent: BTreeSet::new(),
        }
    }

    /// Whether all has to be read again.
    pub(super) fn is_stale(&self) -> bool {
        self.stale || !self.silent.is_empty()
    }

    /// Has all read again.
    pub(super) fn distrust(&mut self) {
        self.stale = true;
    }

    /// Takes over what was read.
    pub(super) fn read(&mut self, entries: &Entries, wanted: &Wanted) {
        self.held.clear();
        for (entry, ours) in entries {
            let held = self.held.entry(entry.key()).or_default();
            held.push((*entry, *ours));
        }
        self.stale = false;
        self.silent.clear();
        self.todo = wanted.keys().chain(self.held.keys()).copied().collect();
        let mut todo = std::mem::take(&mut self.todo);
        todo.retain(|key| !self.fits(key, wanted));
        self.todo = todo;
    }

    /// Has these looked at: something else is wanted.
    pub(super) fn look_at(&mut self, keys: BTreeSet<Key>) {
        self.todo.extend(keys);
    }

    /// Takes over what the kernel announces; true if something is not as wanted now. `interfaces`
    /// are those that wanted entries are on.
    pub(super) fn note(
        &mut self,
        change: &EntryChange,
        wanted: &Wanted,
        interfaces: &BTreeSet<u32>,
    ) -> bool {
        let key = match *change {
            EntryChange::Is(entry, ours) => {
                // Other control planes have forwarding entries, too.
                if matches!(entry, Entry::Forward { interface, .. } if !interfaces.contains(&interface))
                    || self.has(&entry, ours)
                {
                    return false;
                }
                self.put(entry, ours);
                entry.key()
            }
            EntryChange::Gone(key, entry) => {
                let held = self.held.get(&key).into_iter().flatten();
                let is = |held: &Entry| entry.is_none_or(|entry| entry == *held);
                if !held.clone().any(|(held, _)| is(held)) {
                    // Announced late: what is missing is looked at soon.
                    return self.todo.contains(&key);
                }
                let left: Vec<_> = held.filter(|(held, _)| !is(held)).copied().collect();
                self.held.insert(key, left);
                // Routes go with the address that is their source, and with an interface's last one.
                if let Key::Address(interface, _) = key
                    && interfaces.contains(&interface)
                {
                    self.silent.insert(interface);
                }
                key
            }
        };
        let news = !self.fits(&key, wanted);
        if news {
            self.todo.insert(key);
        }
        news || self.is_stale()
    }

    /// Notes that an interface went down.
    pub(super) fn went_down(&mut self, interface: u32) {
        self.silent.insert(interface);
    }

    /// Notes that an interface is gone, and all entries of it.
    pub(super) fn removed(&mut self, interface: u32) {
        self.silent.remove(&interface);
        for (key, held) in &mut self.held {
            let before = held.len();
            held.retain(|(entry, _)| !entry.is_of(interface));
            if held.len() < before {
                self.todo.insert(*key);
            }
        }
        self.held.retain(|_, held| !held.is_empty());
    }

    /// Notes an entry that is there. Of most kinds the kernel has one of a key.
    pub(super) fn put(&mut self, entry: Entry, ours: bool) {
        let held = self.held.entry(entry.key()).or_default();
        held.retain(|(other, _)| entry.may_stand_beside() && *other != entry);
        held.push((entry, ours));
    }

    /// Notes that an entry of ours is gone.
    pub(super) fn drop(&mut self, entry: &Entry) {
        let key = entry.key();
        if let Some(held) = self.held.get_mut(&key) {
            held.retain(|(other, _)| other != entry);
            if held.is_empty() {
                self.held.remove(&key);
            }
        }
    }

    /// Takes the keys that have to be looked at, with what is to be done for them. Those that
    /// [do not fit](Self::look_again) afterwards are to be given back.
    pub(super) fn take(&mut self, wanted: &Wanted) -> BTreeMap<Key, ToDo> {
        let todo = std::mem::take(&mut self.todo);
        let of = |key| (key, self.to_do(&key, wanted));
        todo.into_iter().map(of).collect()
    }

    /// Has a key looked at next time, unless all is as wanted.
    pub(super) fn look_again(&mut self, key: Key, wanted: &Wanted) {
        if !self.fits(&key, wanted) {
            self.todo.insert(key);
        }
    }

    fn to_do(&self, key: &Key, wanted: &Wanted) -> ToDo {
        let held = self.held.get(key).map_or(&[][..], Vec::as_slice);
        let wanted = wanted.get(key);
        let mut to_do = ToDo::default();
        if let Some(wanted) = wanted
            && !held.iter().any(|(entry, _)| entry == wanted)
        {
            // One of ours hides somebody else's.
            let in_place = held.iter().max_by_key(|(_, ours)| *ours);
            to_do.add = Some((*wanted, in_place.copied()));
        }
        let ours = held
            .iter()
            .filter(|(_, ours)| *ours)
            .map(|(entry, _)| entry);
        // What is replaced is gone by that; of several forwarding entries of one key each goes by
        // itself.
        let surplus = |entry: &&Entry| match wanted {
            Some(wanted) => *entry != wanted && entry.may_stand_beside(),
            None => true,
        };
        to_do.remove = ours.filter(surplus).copied().collect();
        to_do
    }

    fn fits(&self, key: &Key, wanted: &Wanted) -> bool {
        self.to_do(key, wanted) == ToDo::default()
    }

    fn has(&self, entry: &Entry, ours: bool) -> bool {
        let held = self.held.get(&entry.key());
        held.is_some_and(|held| held.contains(&(*entry, ours)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Devices;
    use super::super::wanted::Inputs;
    use super::*;
    use crate::testing;

    const DEVICE: u32 = 9;

    /// A kernel that has all of it, and the key and entry of a route to another node.
    fn settled() -> (Mirror, Wanted, Key, Entry) {
        let options = testing::options();
        let mut wanted = Wanted::default();
        let devices = Devices {
            v4: Some(DEVICE),
            v6: None,
        };
        wanted.update(&Inputs {
            network: &options.networks[0],
            routes: &options.routes,
            devices,
            pods: &[],
            v6: true,
            device_v6: true,
            spared: &BTreeSet::new(),
        });
        let entry = |key: &Key| Some((*wanted.get(key)?, true));
        let there: Entries = wanted.keys().filter_map(entry).collect();
        let mut mirror = Mirror::new();
        mirror.read(&there, &wanted);
        assert!(mirror.take(&wanted).is_empty() && !mirror.is_stale());
        let key = Key::Route("10.42.2.0/24".parse().unwrap(), false);
        let entry = *wanted.get(&key).unwrap();
        (mirror, wanted, key, entry)
    }

    fn note(mirror: &mut Mirror, wanted: &Wanted, change: EntryChange) -> bool {
        mirror.note(&change, wanted, &BTreeSet::from([DEVICE]))
    }

    #[test]
    fn own_writes_come_back_as_no_news() {
        let (mut mirror, wanted, key, entry) = settled();
        assert!(!note(&mut mirror, &wanted, EntryChange::Is(entry, true)));
        mirror.drop(&entry);
        let gone = EntryChange::Gone(key, Some(entry));
        assert!(!note(&mut mirror, &wanted, gone));
        assert!(mirror.take(&wanted).is_empty() && !mirror.is_stale());
    }

    #[test]
    fn what_goes_is_wanted_again_and_nothing_else_is_looked_at() {
        let (mut mirror, wanted, key, entry) = settled();
        assert!(note(
            &mut mirror,
            &wanted,
            EntryChange::Gone(key, Some(entry))
        ));
        let todo = mirror.take(&wanted);
        assert_eq!(todo.keys().collect::<Vec<_>>(), [&key]);
        assert_eq!(todo[&key].add, Some((entry, None)));
        assert!(!mirror.is_stale());
        // It was refused: it is looked at again, until it is there, and soon where the kernel says
        // that whatever had its place is gone.
        mirror.look_again(key, &wanted);
        assert!(note(
            &mut mirror,
            &wanted,
            EntryChange::Gone(key, Some(entry))
        ));
        assert_eq!(mirror.take(&wanted).len(), 1);
        mirror.put(entry, true);
        mirror.look_again(key, &wanted);
        assert!(mirror.take(&wanted).is_empty());
    }

    #[test]
    fn what_somebody_puts_in_its_place_is_seen() {
        let (mut mirror, wanted, ..) = settled();
        let mac = testing::mac(0xa2);
        let key = Key::Forward(DEVICE, mac);
        let other = Entry::Forward {
            interface: DEVICE,
            mac,
            to: "192.0.2.66".parse().unwrap(),
        };
        assert!(note(&mut mirror, &wanted, EntryChange::Is(other, true)));
        assert_eq!(mirror.take(&wanted)[&key].remove, [other]);
        let elsewhere = Entry::Forward {
            interface: DEVICE + 1,
            mac,
            to: "192.0.2.66".parse().unwrap(),
        };
        assert!(!note(
            &mut mirror,
            &wanted,
            EntryChange::Is(elsewhere, true)
        ));
    }

    #[test]
    fn what_the_kernel_does_not_announce_is_read() {
        let (mut mirror, wanted, ..) = settled();
        let address = Key::Address(DEVICE, "10.42.1.0/32".parse().unwrap());
        assert!(note(&mut mirror, &wanted, EntryChange::Gone(address, None)));
        assert!(mirror.is_stale());
        let (mut mirror, wanted, ..) = settled();
        mirror.went_down(DEVICE);
        assert!(mirror.is_stale());
        mirror.removed(DEVICE);
        assert!(!mirror.is_stale(), "what it had is known to be gone");
        let missing = mirror.take(&wanted);
        assert!(missing.values().all(|it| it.add.is_some()) && missing.len() > 5);
    }
}
