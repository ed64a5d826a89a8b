//! A BPF map as it is to be, and as it is.
//!
//! A write that fails is not lost: what is wanted stays noted, and is written when there is room, or the kernel has
//! memory again. What somebody else has removed or changed is found by reading back, a part of the map at a time, and
//! repaired; what nobody here has put there is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Bound;

/// A map of the kernel's, by key.
pub(crate) trait Table<K, V> {
    /// Whether there is this entry.
    ///
    /// # Errors
    /// The kernel's.
    fn holds(&mut self, key: &K, value: &V) -> io::Result<bool>;

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// The kernel's: E2BIG or ENOSPC when it is full.
    fn put(&mut self, key: &K, value: &V) -> io::Result<()>;

    /// Removes an entry.
    ///
    /// # Errors
    /// The kernel's: ENOENT when there is none.
    fn delete(&mut self, key: &K) -> io::Result<()>;

    /// The key behind this one, in the map's own order; the first, if there is no such key.
    ///
    /// # Errors
    /// The kernel's.
    fn next(&self, after: Option<&K>) -> io::Result<Option<K>>;
}

/// How a map stands to what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It has what is wanted.
    InStep,
    /// It has no room for so many entries.
    Full(usize),
    /// So many changes could not be made; the kernel's reason for the last.
    Behind(usize, String),
}

/// What a map is to hold, and what of that it holds as far as is known.
#[derive(Debug)]
pub(crate) struct Mirror<K, V> {
    wanted: BTreeMap<K, V>,
    /// Keys whose entries are not there, or not as wanted; keys that are not wanted and may still be there.
    behind: BTreeSet<K>,
    full: bool,
    cause: String,
    /// Up to where the wanted entries have been read back.
    checked: Option<K>,
    /// Up to where the map has been searched for entries that nobody wants.
    searched: Option<K>,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Mirror<K, V> {
    pub(crate) const fn new() -> Self {
        Self {
            wanted: BTreeMap::new(),
            behind: BTreeSet::new(),
            full: false,
            cause: String::new(),
            checked: None,
            searched: None,
        }
    }

    #[cfg(test)]
    pub(crate) const fn wanted(&self) -> &BTreeMap<K, V> {
        &self.wanted
    }

    /// Wants an entry, and writes it.
    ///
    /// # Errors
    /// When it could not be written. It stays wanted, and [`repair`](Self::repair) tries again.
    pub(crate) fn set(&mut self, table: &mut impl Table<K, V>, key: K, value: V) -> io::Result<()> {
        let there = self.wanted.get(&key) == Some(&value) && !self.behind.contains(&key);
        if there {
            return Ok(());
        }
        self.wanted.insert(key.clone(), value);
        self.bring(table, key)
    }

    /// Wants no entry with this key, and removes it.
    ///
    /// # Errors
    /// When it could not be removed. [`repair`](Self::repair) tries again.
    pub(crate) fn unset(&mut self, table: &mut impl Table<K, V>, key: &K) -> io::Result<()> {
        if self.wanted.remove(key).is_none() && !self.behind.contains(key) {
            return Ok(());
        }
        self.bring(table, key.clone())
    }

    /// Wants these entries and no others. One that cannot be written does not keep the others from being written.
    ///
    /// # Errors
    /// The first error. What could not be done is tried again by [`repair`](Self::repair).
    pub(crate) fn replace(
        &mut self,
        table: &mut impl Table<K, V>,
        wanted: BTreeMap<K, V>,
    ) -> io::Result<()> {
        let gone = self.wanted.keys().filter(|key| !wanted.contains_key(key));
        let gone: Vec<K> = gone.cloned().collect();
        let mut result = Ok(());
        // First what makes room.
        for key in gone {
            result = result.and(self.unset(table, &key));
        }
        for (key, value) in wanted {
            result = result.and(self.set(table, key, value));
        }
        result
    }

    /// Has the map hold what is wanted for a key.
    fn bring(&mut self, table: &mut impl Table<K, V>, key: K) -> io::Result<()> {
        let done = match self.wanted.get(&key) {
            Some(value) => table.put(&key, value),
            None => match table.delete(&key) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                done => done,
            },
        };
        match &done {
            Ok(()) => {
                self.behind.remove(&key);
            }
            Err(e) => {
                self.full = matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC));
                self.cause = e.to_string();
                self.behind.insert(key);
            }
        }
        done
    }

    /// Tries again what could not be done, then reads back so many entries, and as many that may be there without being
    /// wanted; the next call goes on behind them. Returns how many entries somebody else had removed, changed or added.
    pub(crate) fn repair(&mut self, table: &mut impl Table<K, V>, most: usize) -> usize {
        let behind: Vec<K> = self.behind.iter().cloned().collect();
        let (gone, missing): (Vec<K>, Vec<K>) = behind
            .into_iter()
            .partition(|key| !self.wanted.contains_key(key));
        for key in gone.into_iter().chain(missing) {
            let removal = !self.wanted.contains_key(&key);
            if self.bring(table, key).is_err() && self.full && !removal {
                // There is no room for the others either.
                break;
            }
        }
        self.check(table, most) + self.search(table, most)
    }

    /// Reads back wanted entries.
    fn check(&mut self, table: &mut impl Table<K, V>, most: usize) -> usize {
        let from = match &self.checked {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Unbounded,
        };
        let part: Vec<(K, V)> = self
            .wanted
            .range((from, Bound::Unbounded))
            .take(most)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        self.checked = match part.last() {
            Some((key, _)) if part.len() == most => Some(key.clone()),
            _ => None,
        };
        let mut lost = 0;
        for (key, value) in part {
            if self.behind.contains(&key) {
                continue;
            }
            // What cannot be read for the moment is read the next time.
            if table.holds(&key, &value).is_ok_and(|held| !held) {
                lost += 1;
                let _ = self.bring(table, key);
            }
        }
        lost
    }

    /// Looks for entries that nobody wants.
    fn search(&mut self, table: &mut impl Table<K, V>, most: usize) -> usize {
        let mut at = self.searched.take();
        let mut foreign = Vec::new();
        for _ in 0..most {
            at = table.next(at.as_ref()).unwrap_or_default();
            let Some(key) = &at else {
                break;
            };
            if !self.wanted.contains_key(key) && !self.behind.contains(key) {
                foreign.push(key.clone());
            }
        }
        self.searched = at;
        let count = foreign.len();
        for key in foreign {
            let _ = self.bring(table, key);
        }
        count
    }

    /// How the map stands.
    pub(crate) fn state(&self) -> State {
        match (self.behind.len(), self.full) {
            (0, _) => State::InStep,
            (count, true) => State::Full(count),
            (count, false) => State::Behind(count, self.cause.clone()),
        }
    }
}

impl State {
    /// What an operator is told of a map that is not in step; none of one that is.
    pub(crate) fn problem(&self, map: impl fmt::Display) -> Option<String> {
        match self {
            Self::InStep => None,
            Self::Full(count) => Some(format!(
                "the BPF map {map} is full: {count} entries wait for room, and what they are for does not work; have fewer \
                 of them on this node"
            )),
            Self::Behind(count, cause) => Some(format!(
                "{count} changes of the BPF map {map} could not be made ({cause}); they are tried again each second"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A map with room for a few, whose calls fail now and then.
    #[derive(Default)]
    struct Fake {
        entries: BTreeMap<u8, u8>,
        room: usize,
        /// Calls until one fails, and how often that goes on; 0: never.
        fails_each: u32,
        calls: std::cell::Cell<u32>,
    }

    impl Fake {
        fn with_room(room: usize) -> Self {
            Self {
                room,
                ..Self::default()
            }
        }

        fn call(&self) -> io::Result<()> {
            self.calls.set(self.calls.get() + 1);
            if self.fails_each > 0 && self.calls.get().is_multiple_of(self.fails_each) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            Ok(())
        }
    }

    impl Table<u8, u8> for Fake {
        fn holds(&mut self, key: &u8, value: &u8) -> io::Result<bool> {
            self.call()?;
            Ok(self.entries.get(key) == Some(value))
        }

        fn put(&mut self, key: &u8, value: &u8) -> io::Result<()> {
            self.call()?;
            if self.entries.len() >= self.room && !self.entries.contains_key(key) {
                return Err(io::Error::from_raw_os_error(libc::E2BIG));
            }
            self.entries.insert(*key, *value);
            Ok(())
        }

        fn delete(&mut self, key: &u8) -> io::Result<()> {
            self.call()?;
            match self.entries.remove(key) {
                Some(_) => Ok(()),
                None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            }
        }

        fn next(&self, after: Option<&u8>) -> io::Result<Option<u8>> {
            self.call()?;
            let from = after
                .filter(|key| self.entries.contains_key(key))
                .map_or(Bound::Unbounded, |key| Bound::Excluded(*key));
            Ok(self
                .entries
                .range((from, Bound::Unbounded))
                .next()
                .map(|(key, _)| *key))
        }
    }

    #[test]
    fn what_fails_is_done_later_and_keeps_nothing_else_from_being_done() {
        let (mut mirror, mut map) = (Mirror::new(), Fake::with_room(100));
        map.fails_each = 3;
        let all: BTreeMap<u8, u8> = (0..10).map(|n| (n, n)).collect();
        assert!(mirror.replace(&mut map, all.clone()).is_err());
        assert_eq!(map.entries.len(), 7);
        assert!(matches!(mirror.state(), State::Behind(3, _)));
        map.fails_each = 0;
        mirror.repair(&mut map, 100);
        assert_eq!((&map.entries, mirror.state()), (&all, State::InStep));
        // A removal that fails, and one of what has gone by itself.
        map.fails_each = 1;
        assert!(mirror.unset(&mut map, &1).is_err());
        map.fails_each = 0;
        map.entries.remove(&2);
        assert!(mirror.unset(&mut map, &2).is_ok());
        mirror.repair(&mut map, 100);
        assert_eq!(
            (&map.entries, mirror.state()),
            (mirror.wanted(), State::InStep)
        );
    }

    #[test]
    fn a_full_map_is_said_to_be_full_and_filled_when_there_is_room() {
        let (mut mirror, mut map) = (Mirror::new(), Fake::with_room(3));
        let all = (0..5).map(|n| (n, 1)).collect();
        assert!(mirror.replace(&mut map, all).is_err());
        assert_eq!(mirror.state(), State::Full(2));
        let said = mirror.state().problem("pods").unwrap_or_default();
        assert!(said.contains("map pods is full: 2 entries"), "{said}");
        mirror.repair(&mut map, 100);
        assert_eq!(mirror.state(), State::Full(2));
        // Others make room.
        mirror.unset(&mut map, &0).expect("it was there");
        mirror.repair(&mut map, 100);
        assert_eq!(mirror.state(), State::Full(1));
        map.room = 10;
        mirror.repair(&mut map, 100);
        assert_eq!(
            (&map.entries, mirror.state()),
            (mirror.wanted(), State::InStep)
        );
    }

    #[test]
    fn a_large_map_is_read_back_in_parts() {
        let (mut mirror, mut map) = (Mirror::new(), Fake::with_room(1000));
        let all = (0..200).map(|n| (n, 0)).collect();
        mirror.replace(&mut map, all).expect("there is room");
        for key in [0, 99, 199] {
            map.entries.remove(&key);
        }
        map.entries.insert(7, 9);
        map.entries.insert(250, 9);
        let mut found = 0;
        for _ in 0..21 {
            map.calls.set(0);
            found += mirror.repair(&mut map, 10);
            assert!(map.calls.get() <= 24, "{} calls", map.calls.get());
        }
        assert_eq!((found, &map.entries), (5, mirror.wanted()));
    }

    proptest! {
        #[test]
        fn whatever_fails_and_vanishes_the_map_comes_to_be_as_wanted(
            steps in prop::collection::vec((0..5u8, 0..20u8, 0..4u8, 0..6u32), 1..100),
        ) {
            let (mut mirror, mut map) = (Mirror::new(), Fake::with_room(12));
            for (what, key, value, fails_each) in steps {
                map.fails_each = fails_each;
                match what {
                    0 | 1 => { let _ = mirror.set(&mut map, key, value); }
                    2 => { let _ = mirror.unset(&mut map, &key); }
                    3 => { map.entries.remove(&key); }
                    _ => { map.entries.insert(key, value); }
                }
                mirror.repair(&mut map, 3);
            }
            map.fails_each = 0;
            map.room = 100;
            for _ in 0..60 {
                mirror.repair(&mut map, 3);
            }
            prop_assert_eq!(mirror.state(), State::InStep);
            prop_assert_eq!(&map.entries, mirror.wanted());
        }
    }
}
