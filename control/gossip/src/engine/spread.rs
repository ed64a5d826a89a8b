//! How records come to everybody: news are pushed, and what the pushes missed is found by digests.

use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};

use super::{Due, Engine, Event};
use crate::kept::Kept;
use crate::record::{NameHash, Signed};
use crate::store::Offer;
use crate::wire::{BUCKETS_A_MESSAGE, Message, ROOM, Range, SMALL_ROOM};

/// How often news are pushed, while there are any.
pub(super) const PUSH_INTERVAL: Duration = Duration::from_millis(200);
/// To how many members at a time.
const FANOUT: usize = 4;
/// Messages with news for a member at a time.
const PUSH_MESSAGES: usize = 4;
/// How soon the next digest goes when one answer did not hold all.
const PULL_ON: Duration = Duration::from_millis(100);
/// Messages that answer one message at most.
const MAX_ANSWERS: usize = 16;
/// Records that one message makes a node ask for at most.
const MAX_ASKED: usize = 100;
/// Records of which those for one push are taken.
const PUSHED: usize = 64;

/// A record that not everybody has yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    name: NameHash,
    /// How many times more this node sends it.
    left: usize,
}

impl Engine {
    /// Takes what was known before this node started; nobody has to answer for it. Others that know
    /// more say so. How many were taken.
    pub fn restore(&mut self, kept: Kept, now: Duration) -> usize {
        let Kept {
            records,
            nodes,
            overdue,
        } = kept;
        self.seen.restore(nodes);
        self.liveness.restore(overdue);
        let me = NameHash::of(&self.foca.identity().name);
        let mut taken = 0;
        for signed in &records {
            // What this node was is its own affair.
            let name = signed.peek().map(|(name, ..)| NameHash::of(name));
            if name == Some(me) {
                continue;
            }
            if let Offer::Taken { name, .. } = self.store.offer(signed, |_| false, self.clock, now)
            {
                self.has_changed(name, now);
                taken += 1;
            }
        }
        self.restored = taken > 0;
        taken
    }

    /// What others said last, as they signed it, heads before parts, and since when that is known.
    pub fn to_keep(&self) -> Kept {
        let records = self.records_to_keep().cloned().collect();
        Kept {
            records,
            nodes: self.seen.to_keep(),
            overdue: self.liveness.overdue().cloned().collect(),
        }
    }

    fn records_to_keep(&self) -> impl Iterator<Item = &Signed> {
        let me = &self.foca.identity().name;
        let others = || {
            self.store
                .iter()
                .filter(move |held| held.record.name != *me)
        };
        let heads = others().filter(|held| held.record.part == 0);
        let parts = others().filter(|held| held.record.part > 0);
        heads.chain(parts).map(|held| &held.signed)
    }

    /// A record is another one now.
    fn has_changed(&mut self, name: NameHash, now: Duration) {
        let node = self.store.get(name).map(|held| held.record.name.clone());
        if let Some(head) = node.as_deref().and_then(|node| self.head(node)) {
            let whole = self.store.whole(head);
            self.liveness.note(&whole.name);
            if whole.name != self.foca.identity().name
                && let Some(at) = self.seen.note(&whole, self.moment(now))
            {
                self.at(at, Due::Settled(whole.name.clone()));
            }
        }
        self.events.push(Event::Record(name));
    }

    /// Others are to have this; an earlier one may be news still if it `replaced` one.
    pub(super) fn is_news(&mut self, name: NameHash, replaced: bool, now: Duration) {
        self.has_changed(name, now);
        if self.news.is_empty() {
            self.at(now, Due::Push);
        }
        if replaced {
            self.news.retain(|news| news.name != name);
        }
        // As memberlist does it: four times the digits of the number of nodes.
        let digits = (self.foca.num_members() + 1).ilog10() + 1;
        let left = 4 * usize::try_from(digits).unwrap_or(1);
        self.news.push(News { name, left });
    }

    /// Sends what was sent least so far.
    pub(super) fn push(&mut self, now: Duration) {
        self.refresh_members();
        if self.members.is_empty() {
            // Whoever comes asks for all.
            self.news.clear();
            return;
        }
        self.news.sort_by_key(|news| usize::MAX - news.left);
        let targets: Vec<_> = (self.members.sample(&mut self.rng, FANOUT))
            .copied()
            .collect();
        let store = &self.store;
        let records = self.news.iter().filter_map(|news| store.get(news.name));
        let records: Vec<_> = records
            .map(|held| held.signed.clone())
            .take(PUSHED)
            .collect();
        let (messages, packed) = pack(records.iter(), PUSH_MESSAGES);
        if packed == 0 {
            // Of parts that went with their head.
            self.news.clear();
        }
        let messages: Vec<_> = messages.iter().map(Message::to_bytes).collect();
        for target in &targets {
            if self.send_in_pieces(*target, &records[..packed.min(records.len())], now) {
                continue;
            }
            for message in &messages {
                self.send_bytes(*target, message);
            }
        }
        for news in self.news.iter_mut().take(packed) {
            news.left = news.left.saturating_sub(targets.len());
        }
        self.news.retain(|news| news.left > 0);
    }

    pub(super) fn pull(&mut self) {
        self.refresh_members();
        if let Some(to) = self.members.choose(&mut self.rng) {
            self.send_digest(*to);
        }
    }

    pub(super) fn send_digest(&mut self, to: SocketAddr) {
        let digest = self.store.short_digest();
        for (number, hashes) in digest.chunks(BUCKETS_A_MESSAGE).enumerate() {
            let first = u8::try_from(number * BUCKETS_A_MESSAGE).unwrap_or(u8::MAX);
            let hashes = hashes.to_vec();
            self.send(to, &Message::Digest { first, hashes });
        }
    }

    pub(super) fn send_ranges(&mut self, to: SocketAddr, first: usize, digest: &[u32]) {
        let mut ranges = self.store.differing(first, digest);
        // Other ones each time, when they are more than an answer holds.
        ranges.shuffle(&mut self.rng);
        let (mut message, mut len, mut sent) = (Vec::new(), 0, 0);
        for range in ranges {
            let bytes = postcard::to_stdvec(&range).map_or(0, |bytes| bytes.len());
            if len + bytes > SMALL_ROOM {
                self.send(to, &Message::Ranges(mem::take(&mut message)));
                (len, sent) = (0, sent + 1);
                if sent == MAX_ANSWERS {
                    return;
                }
            }
            message.push(range);
            len += bytes;
        }
        if !message.is_empty() {
            self.send(to, &Message::Ranges(message));
        }
    }

    pub(super) fn compare(&mut self, from: SocketAddr, ranges: &[Range], now: Duration) {
        let (mut wanted, mut lacked) = (Vec::new(), Vec::new());
        for range in ranges {
            let (names, records) = self.store.compare(range);
            wanted.extend(names);
            lacked.extend(records.into_iter().cloned());
        }
        let all = wanted.len() < MAX_ASKED && lacked.is_empty();
        wanted.truncate(MAX_ASKED);
        if !wanted.is_empty() {
            self.ask(from, &wanted, now);
        }
        self.send_records(from, &lacked, now);
        if !all && !mem::replace(&mut self.pulls_on, true) {
            self.at(now + PULL_ON, Due::PullOn);
        }
    }

    pub(super) fn send_records(&mut self, to: SocketAddr, records: &[Signed], now: Duration) {
        if self.send_in_pieces(to, records, now) {
            return;
        }
        let (messages, _) = pack(records.iter(), MAX_ANSWERS);
        for message in &messages {
            self.send(to, message);
        }
    }
}

/// Puts records into at most so many messages; how many of them are in.
fn pack<'a>(records: impl Iterator<Item = &'a Signed>, max: usize) -> (Vec<Message>, usize) {
    let (mut messages, mut message, mut len, mut packed) = (Vec::new(), Vec::new(), 0, 0);
    for signed in records {
        if len + signed.len() > ROOM {
            messages.push(Message::Records(mem::take(&mut message)));
            len = 0;
            if messages.len() == max {
                return (messages, packed);
            }
        }
        len += signed.len();
        packed += 1;
        message.push(signed.clone());
    }
    if !message.is_empty() {
        messages.push(Message::Records(message));
    }
    (messages, packed)
}
