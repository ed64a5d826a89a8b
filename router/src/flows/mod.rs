//! What was decided for a flow, kept for its next packets.
//!
//! All stages of [`forward`](crate::forward) decide for a plain packet (IPv4 without options or
//! fragments, TCP or UDP) by fields that make up its [`Key`]. So their whole outcome, where to
//! and behind which header, is kept for the key, and one look-up answers for all of them. What is
//! of the packet and not of the flow (lengths, checksums, hop limit) is checked each time; a packet
//! that fails there, and every other one, goes through the stages, which say why.
//!
//! What was decided by one table is not used with the next.
#![allow(
    clippy::inline_always,
    reason = "a call copies what was read, at a third of a packet's time (./dev bench)"
)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod entry;
mod key;

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;

use viaduct_fib::PortId;

use self::entry::Entry;
pub(crate) use self::key::Key;
use crate::frame::Frame;

/// Which side frames come from: all of them of a batch from the same, so what is done to them
/// is compiled for each side by itself.
pub trait Side {
    /// In the tunnel of another node, not from a pod.
    const UNDERLAY: bool;
}

/// From a pod of this node.
#[derive(Clone, Copy, Debug)]
pub struct FromPod;

/// In the tunnel of another node.
#[derive(Clone, Copy, Debug)]
pub struct FromUnderlay;

impl Side for FromPod {
    const UNDERLAY: bool = false;
}

impl Side for FromUnderlay {
    const UNDERLAY: bool = true;
}

/// Flows of one set: a flow is in any place of its set.
const WAYS: usize = 8;

/// No entry has this place.
const NOWHERE: u32 = u32::MAX;

/// What was found for a packet by the hash of its flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked {
    /// With 8 bytes in all, the prefetched of a batch are addressed without a multiplication.
    hash: u32,
    /// Where the flow is kept, in all probability; or [`NOWHERE`].
    place: u32,
}

impl Default for Looked {
    fn default() -> Self {
        Self {
            hash: 0,
            place: NOWHERE,
        }
    }
}

/// What is looked at before any entry.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(16))]
struct Set {
    /// Eight bits of each flow's hash, so that others' entries are seldom touched.
    tags: [u8; WAYS],
    /// The table that decided for those in it.
    generation: u32,
    /// Ways that are in use.
    used: u32,
}

/// What the stages have decided for a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    /// Where it goes.
    pub(crate) egress: PortId,
    /// Bytes of IP packet that this way takes.
    pub(crate) room: u16,
    /// Whether it holds for the flow: nothing but the key and the table has decided.
    pub(crate) cacheable: bool,
}

/// The flows of one worker, or none.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    sets: Box<[Set]>,
    /// [`WAYS`] for each set.
    entries: Box<[Entry]>,
    /// Secret, so that nobody can choose flows that fall into one set.
    seeds: [u64; 2],
    /// The table that decided.
    epoch: u64,
    /// One more with each table. Entries of others are free.
    generation: u32,
    /// Which way of a full set is next given up.
    next: usize,
    /// One less than the number of sets.
    mask: u32,
}

impl Flows {
    /// Room for so many flows, rounded up to a power of two; for none, if 0.
    pub(crate) fn new(flows: usize) -> Self {
        if flows == 0 {
            return Self::default();
        }
        let sets = flows.div_ceil(WAYS).next_power_of_two();
        let random = RandomState::new();
        Self {
            sets: vec![Set::default(); sets].into(),
            entries: vec![Entry::default(); sets.saturating_mul(WAYS)].into(),
            seeds: [0, 1].map(|n: u64| random.hash_one(n)),
            epoch: u64::MAX,
            generation: 0,
            next: 0,
            mask: u32::try_from(sets.wrapping_sub(1)).unwrap_or(0),
        }
    }

    /// From now on the table of this epoch decides.
    #[inline(always)]
    pub(crate) fn follow(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.renew(epoch);
        }
    }

    #[cold]
    fn renew(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            // Once in 2^32 tables: entries must not be taken for those of long ago.
            self.entries.fill(Entry::default());
            self.sets.fill(Set::default());
            self.generation = 1;
        }
    }

    /// Looks a packet's flow up and begins to fetch what is kept for it, so that a batch waits
    /// for memory once and not with each packet.
    #[inline(always)]
    pub(crate) fn look_up<S: Side>(&self, packet: &[u8]) -> Looked {
        // A packet that is too short has no flow: it will not be found anywhere.
        let hash = key::hash_of::<S>(packet, self.seeds).unwrap_or(0);
        let set = set(hash) & self.mask;
        let tags = self.sets.get(set as usize).map(|set| set.tags);
        let Some(way) = tags.and_then(|tags| find(tags, tag(hash))) else {
            let place = NOWHERE;
            return Looked { hash, place };
        };
        let place = set.wrapping_mul(8).wrapping_add(way);
        if let Some(entry) = self.entries.get(place as usize) {
            // Read and not used: the processor goes on while it is fetched.
            black_box(entry.ends());
        }
        Looked { hash, place }
    }

    /// Does to a packet what was decided for its flow. `None`, and the packet is as it was, when
    /// nothing is known or the packet has to go through the stages.
    #[inline(always)]
    pub(crate) fn answer<S: Side>(
        &self,
        looked: Looked,
        frame: &mut Frame<'_>,
        ingress: PortId,
        finished: &mut u64,
    ) -> Option<PortId> {
        let key = Key::read::<S>(frame.packet(), ingress)?;
        let entry = self.entries.get(looked.place as usize)?;
        if !self.is_of(entry, &key) {
            return None;
        }
        entry.apply::<S>(frame, finished)
    }

    /// As [`answer`](Self::answer), for the second of two flows of a set that have the same tag.
    pub(crate) fn answer_other<S: Side>(
        &self,
        looked: Looked,
        key: &Key,
        frame: &mut Frame<'_>,
        finished: &mut u64,
    ) -> Option<PortId> {
        // Without the first there is no second.
        self.entries.get(looked.place as usize)?;
        let (set, tag) = self.place_of(looked);
        let way = self.way_of(set, tag, key)?;
        let entry = self.entries.get(set.wrapping_mul(WAYS).wrapping_add(way))?;
        entry.apply::<S>(frame, finished)
    }

    #[inline(always)]
    fn is_of(&self, entry: &Entry, key: &Key) -> bool {
        entry.generation == self.generation && entry.key.is(key)
    }

    /// The key of a packet's flow, to [`learn`](Self::learn) what is decided for it. `None` for a
    /// packet that can have no plain flow.
    pub(crate) fn key<S: Side>(&self, packet: &[u8], ingress: PortId) -> Option<Key> {
        if self.entries.is_empty() {
            return None;
        }
        Key::read::<S>(packet, ingress)
    }

    /// Keeps what was decided for a packet that is now `packet`, its new header in front.
    pub(crate) fn learn<S: Side>(
        &mut self,
        looked: Looked,
        key: Key,
        decision: Decision,
        packet: &[u8],
    ) {
        let Some(entry) = Entry::new::<S>(key, self.generation, decision, packet) else {
            return;
        };
        let (at, tag) = self.place_of(looked);
        // Its own, if it has one that a packet could not use.
        let own = self.way_of(at, tag, &key);
        let Some(set) = self.sets.get_mut(at) else {
            return;
        };
        if set.generation != self.generation {
            (set.generation, set.used) = (self.generation, 0);
        }
        let way = own.unwrap_or_else(|| {
            let used = set.used as usize;
            if used < WAYS {
                set.used = set.used.wrapping_add(1);
                return used;
            }
            self.next = self.next.wrapping_add(1);
            self.next & (WAYS - 1)
        });
        if let Some(to) = set.tags.get_mut(way) {
            *to = tag;
        }
        let place = at.wrapping_mul(WAYS).wrapping_add(way);
        if let Some(to) = self.entries.get_mut(place) {
            *to = entry;
        }
    }

    /// A flow's set, and its tag there.
    fn place_of(&self, looked: Looked) -> (usize, u8) {
        ((set(looked.hash) & self.mask) as usize, tag(looked.hash))
    }

    /// A flow's way in its set, if it is kept.
    fn way_of(&self, at: usize, tag: u8, key: &Key) -> Option<usize> {
        let first = at.wrapping_mul(WAYS);
        let mut same = same(self.sets.get(at)?.tags, tag);
        while same != 0 {
            let way = (same.trailing_zeros() / 8) as usize;
            let entry = self.entries.get(first.wrapping_add(way));
            if entry.is_some_and(|entry| self.is_of(entry, key)) {
                return Some(way);
            }
            same &= same.wrapping_sub(1);
        }
        None
    }
}

/// A part of a flow's hash: its set, when as many bits are taken of it as sets need.
#[inline(always)]
fn set(hash: u32) -> u32 {
    hash
}

/// Another part, as long as there are at most 2^24 sets: 16 GiB of flows.
#[inline(always)]
fn tag(hash: u32) -> u8 {
    (hash >> 24) as u8
}

/// The first way that has this tag.
#[inline(always)]
fn find(tags: [u8; WAYS], tag: u8) -> Option<u32> {
    let same = same(tags, tag);
    (same != 0).then(|| same.trailing_zeros() / 8)
}

/// The ways that have this tag, each as the highest bit of its lane: all compared at once, as lanes
/// of one word. A lane is zero where the tag is the same; taking one from it borrows from its
/// highest bit. Lanes above a zero one may be taken for zero, too: only the first is certain.
#[inline(always)]
fn same(tags: [u8; WAYS], tag: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let differences = u64::from_le_bytes(tags) ^ u64::from(tag).wrapping_mul(ONES);
    differences.wrapping_sub(ONES) & !differences & ONES << 7
}
