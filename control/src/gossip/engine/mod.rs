//! One node of the gossip: what it does with datagrams and time.
//!
//! Three things go on. foca's SWIM finds out who lives. News (records that have changed) are pushed
//! to some members every [`PUSH_INTERVAL`], so many times that with all likelihood everybody has
//! them. And now and then a digest goes to one member, which answers with what it has where both
//! differ: whatever the pushes have missed is found then, after a partition too.

mod own;
mod parts;
mod spread;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Notification, PostcardCodec, Runtime, Timer};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use ring::signature::Ed25519KeyPair;

pub use self::own::ForgetError;
use self::own::{CONTEST_AFTER, Claim, Own};
pub use self::parts::Announcement;
use self::spread::{News, PUSH_INTERVAL};
use super::record::{Content, NameHash, Record, RecordError, Signed};
use super::refusal::Refusal;
use super::seal::{KeyId, KeyRing, MAX_MESSAGE, Seal};
use super::store::{Offer, Store, StoreError};
use super::trust::{Certificate, Trust};
use super::verified::Verified;
use super::wire::{BUCKETS, Member, Message, ROOM};

/// How often a digest goes to some member, on average.
const PULL_INTERVAL: Duration = Duration::from_secs(5);
/// How often peers are looked for by a node that knows of nobody.
const SEEK_ALONE: Duration = Duration::from_secs(1);
/// How often peers of the list that are no members are looked for.
const SEEK_OTHERS: Duration = Duration::from_secs(30);
/// What a node is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's name; nodes of another do not hear each other.
    pub cluster: String,
    /// Who this node is.
    pub member: Member,
    /// How soon a node that does not answer is missed.
    pub detection: Detection,
    /// How other nodes' keys are believed.
    pub trust: Trust,
    /// What the cluster's authority says of this node, where there is one.
    pub certificate: Option<Certificate>,
    /// The cluster's keys.
    pub keys: KeyRing,
    /// What other nodes of this process have verified; a node by itself has none.
    pub verified: Option<Verified>,
    /// Seeds all that is random, the session of the seal among it.
    pub seed: [u8; 32],
}

/// SWIM's times; none: memberlist's for a local network, by the number of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// How often a node asks another whether it lives.
    pub probe_interval: Option<Duration>,
    /// How long it waits for the answer before it has others ask; shorter than the interval.
    pub probe_timeout: Option<Duration>,
    /// How long a node is suspected before it is missed.
    pub suspicion: Option<Duration>,
}

/// What happens, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node lives.
    Up(Member),
    /// A node does not answer.
    Down(Member),
    /// A node's record has changed.
    Record(NameHash),
    /// A datagram was not taken.
    Refused {
        /// Where it came from.
        from: SocketAddr,
        /// Why.
        why: Refusal,
    },
    /// A record was not taken.
    RecordRefused {
        /// Who brought it, not who wrote it.
        from: SocketAddr,
        /// Why.
        why: StoreError,
    },
    /// Another node that lives has this node's name and key. This one says nothing any more.
    Yielded {
        /// The other one.
        to: Member,
    },
    /// This node's record could not be made.
    Unannounced(RecordError),
}

/// What is to be done at some time.
#[derive(Clone, Debug)]
enum Due {
    Swim(Timer<Member>),
    Push,
    Pull,
    /// Once more, since an answer did not hold all.
    PullOn,
    Seek,
    Contest,
}

/// A node.
pub struct Engine {
    cluster: String,
    key: Ed25519KeyPair,
    foca: Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
    detection: Detection,
    certificate: Option<Certificate>,
    /// How many others its times are for.
    sized_for: usize,
    seal: Seal,
    /// When a datagram came that was sealed with a key, last.
    heard: HashMap<KeyId, Duration>,
    store: Store,
    rng: StdRng,
    /// Where those are who live, without this node; of foca's list, copied where it is drawn from.
    members: Vec<SocketAddr>,
    /// Whether foca's list may have changed since.
    members_stale: bool,
    pulls_on: bool,
    seeds: Vec<SocketAddr>,
    /// What this node says.
    own: Option<Own>,
    /// When peers of the list that are no members were looked for last.
    sought: Option<Duration>,
    claim: Claim,
    news: Vec<News>,
    due: BTreeMap<(Duration, u64), Due>,
    /// Of things to do; what is due at one time has an order.
    number: u64,
    out: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<Event>,
}

/// What foca wants to be done.
#[derive(Default)]
struct Wanted {
    send: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Member>)>,
    events: Vec<Event>,
    members_changed: bool,
}

impl Runtime<Member> for Wanted {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        self.members_changed = true;
        match notification {
            Notification::MemberUp(member) => self.events.push(Event::Up(member.clone())),
            Notification::MemberDown(member) => self.events.push(Event::Down(member.clone())),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.send.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.push((after, event));
    }
}

impl Engine {
    /// A node that knows nobody. `key` is the node's own; it says who wrote its record.
    pub fn new(options: Options, key: Ed25519KeyPair, now: Duration) -> Self {
        let mut rng = StdRng::from_seed(options.seed);
        let swim = sized(options.detection, 0);
        let swim_rng = StdRng::from_rng(&mut rng);
        let mut store = Store::new(&options.cluster, options.trust);
        if let Some(verified) = options.verified {
            store.share(verified);
        }
        let mut engine = Self {
            seal: Seal::new(options.keys, rng.random()),
            heard: HashMap::new(),
            store,
            foca: Foca::new(options.member, swim, swim_rng, PostcardCodec),
            detection: options.detection,
            certificate: options.certificate,
            sized_for: 0,
            cluster: options.cluster,
            key,
            rng,
            members: Vec::new(),
            members_stale: false,
            pulls_on: false,
            seeds: Vec::new(),
            own: None,
            sought: None,
            claim: Claim::Held,
            news: Vec::new(),
            due: BTreeMap::new(),
            number: 0,
            out: Vec::new(),
            events: Vec::new(),
        };
        engine.at(now, Due::Seek);
        engine.at(now + PULL_INTERVAL, Due::Pull);
        engine
    }

    /// Who this node is.
    pub fn member(&self) -> &Member {
        self.foca.identity()
    }

    /// Who lives, without this node.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.foca.iter_members().map(foca::Member::id)
    }

    /// How many live, without this node.
    pub fn members_count(&self) -> usize {
        self.foca.num_members()
    }

    /// What is known of all nodes, this one among them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Seals and opens with other keys from now on.
    pub fn set_keys(&mut self, keys: KeyRing) {
        self.heard
            .retain(|id, _| keys.ids().any(|known| known == *id));
        self.seal.set_ring(keys);
    }

    /// The keys, the first of which seals, and when each was last heard of.
    pub fn keys(&self) -> impl Iterator<Item = (KeyId, Option<Duration>)> {
        let ids = self.seal.ring().ids();
        ids.map(|id| (id, self.heard.get(&id).copied()))
    }

    /// Datagrams to send, since the last call.
    pub fn take_datagrams(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        mem::take(&mut self.out)
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// When [`wake`](Self::wake) has something to do.
    pub fn next_at(&self) -> Option<Duration> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Where other nodes may be found; replaces the earlier list.
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>) {
        let same = self.seeds == seeds;
        self.seeds = seeds;
        if self.foca.num_members() == 0 || !same {
            self.seek();
        }
    }

    /// Does what is due.
    pub fn wake(&mut self, now: Duration) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Due::Swim(timer) => self.swim(now, |foca, wanted| foca.handle_timer(timer, wanted)),
                Due::Push => {
                    self.push();
                    if !self.news.is_empty() {
                        self.at(now + PUSH_INTERVAL, Due::Push);
                    }
                }
                Due::Contest => self.contest(now),
                Due::PullOn => {
                    self.pulls_on = false;
                    self.pull();
                }
                Due::Pull => {
                    self.store.expire(now);
                    self.pull();
                    self.seek_silent();
                    // Not all at once, when all were started at once.
                    let wait = PULL_INTERVAL.mul_f64(self.rng.random_range(0.5..1.5));
                    self.at(now + wait, Due::Pull);
                }
                Due::Seek => {
                    let over = |at: Duration| now >= at + SEEK_OTHERS;
                    if self.foca.num_members() == 0 || self.sought.is_none_or(over) {
                        self.sought = Some(now);
                        self.seek();
                    }
                    self.at(now + SEEK_ALONE, Due::Seek);
                }
            }
        }
    }

    /// Takes a datagram, which is opened where it lies.
    pub fn datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Duration) {
        let opened = self.seal.open(datagram).map(|(key, bytes)| {
            self.heard.insert(key, now);
            bytes
        });
        let message = opened.and_then(|bytes| Message::from_bytes(bytes));
        let taken = message.and_then(|message| self.message(from, message, now));
        if let Err(why) = taken {
            self.events.push(Event::Refused { from, why });
        }
    }

    fn message(
        &mut self,
        from: SocketAddr,
        message: Message,
        now: Duration,
    ) -> Result<(), Refusal> {
        match message {
            Message::Hello(_) => {
                let me = self.foca.identity().clone();
                self.send(from, &Message::Welcome(me));
            }
            Message::Welcome(member) => {
                let to = member.address;
                self.swim(now, |foca, wanted| foca.announce(member, wanted));
                self.send_digest(to);
            }
            Message::Swim(bytes) => {
                self.swim(now, |foca, wanted| foca.handle_data(&bytes, wanted));
            }
            Message::Records(records) => {
                for signed in &records {
                    self.take(from, signed, now);
                }
            }
            Message::Digest(digest) => {
                if digest.len() != BUCKETS {
                    return Err(Refusal::Malformed);
                }
                self.send_ranges(from, &digest);
            }
            Message::Ranges(ranges) => self.compare(from, &ranges, now),
            Message::Request(names) => {
                let held = names.iter().filter_map(|name| self.store.get(*name));
                let records: Vec<_> = held.map(|held| held.signed.clone()).collect();
                self.send_records(from, &records);
            }
        }
        Ok(())
    }

    /// Runs something of foca's and carries out what it wants.
    fn swim(
        &mut self,
        now: Duration,
        work: impl FnOnce(
            &mut Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
            &mut Wanted,
        ) -> Result<(), foca::Error>,
    ) {
        let mut wanted = Wanted::default();
        let alone = self.foca.num_members() == 0;
        // Its errors speak of packets that are late, or of members that have gone meanwhile.
        let _ = work(&mut self.foca, &mut wanted);
        for (to, data) in wanted.send {
            self.send(to, &Message::Swim(data));
        }
        for (after, timer) in wanted.timers {
            self.at(now + after, Due::Swim(timer));
        }
        self.events.append(&mut wanted.events);
        self.members_stale |= wanted.members_changed;
        if alone && self.foca.num_members() > 0 {
            self.pull();
        }
    }

    fn refresh_members(&mut self) {
        if mem::take(&mut self.members_stale) {
            self.members.clear();
            let members = self.foca.iter_members().map(|member| member.id().address);
            self.members.extend(members);
            let count = self.members.len();
            // Others have to have the time to contradict, which grows with their number's logarithm.
            if count.max(1).ilog2() != self.sized_for.max(1).ilog2() {
                // Fails for times that cannot change, which do not depend on it.
                let _ = self.foca.set_config(sized(self.detection, count));
                self.sized_for = count;
            }
        }
    }

    fn at(&mut self, when: Duration, what: Due) {
        self.number += 1;
        self.due.insert((when, self.number), what);
    }

    fn send(&mut self, to: SocketAddr, message: &Message) {
        self.send_bytes(to, &message.to_bytes());
    }

    fn send_bytes(&mut self, to: SocketAddr, message: &[u8]) {
        debug_assert!(message.len() <= MAX_MESSAGE, "{message:?}");
        self.out.push((to, self.seal.seal(message)));
    }

    /// Takes a record that somebody sent.
    fn take(&mut self, from: SocketAddr, signed: &Signed, now: Duration) {
        let foca = &self.foca;
        let lives = |record: &Record| foca.iter_members().any(|m| m.id().name == record.name);
        match self.store.offer(signed, lives, now) {
            Offer::Known => {}
            Offer::Refused(why) => self.events.push(Event::RecordRefused { from, why }),
            Offer::Taken { name, replaced } => {
                self.is_news(name, replaced, now);
                let Some(held) = self.store.get(name) else {
                    return;
                };
                let (record, me) = (&held.record, self.foca.identity());
                if record.part > 0 {
                    return;
                }
                if record.name != me.name || record.instance != me.instance {
                    let (ours, member) = (record.name == me.name, member_of(record));
                    self.meet(member, now);
                    if ours && self.claim == Claim::Held {
                        self.claim = Claim::Contested;
                        self.at(now + CONTEST_AFTER, Due::Contest);
                    }
                }
            }
        }
    }

    /// Whoever has a record may live: SWIM will see. Without this a node of many would hear of the
    /// last of them after minutes.
    fn meet(&mut self, members: impl IntoIterator<Item = Member>, now: Duration) {
        let members = members.into_iter().map(foca::Member::alive);
        self.swim(now, |foca, wanted| foca.apply_many(members, false, wanted));
    }

    /// Takes all whose records it holds for members, until SWIM finds that they are none. A real node
    /// asks instead; a simulation of thousands begins so, as joining costs each of them N² steps.
    pub fn assume_members(&mut self, now: Duration) {
        let records = self.store.iter().map(|held| &held.record);
        let others = records.filter(|record| record.name != self.member().name);
        let members: Vec<_> = others.filter_map(member_of).collect();
        self.meet(members, now);
    }

    /// Looks for a node that was known to live, so that two parts of a cluster find each other again
    /// however they were parted.
    fn seek_silent(&mut self) {
        self.refresh_members();
        if self.store.here() <= self.members.len() + 1 {
            return;
        }
        let me = self.foca.identity().clone();
        let live = self.foca.iter_members().map(|m| &m.id().name[..]);
        let live: HashSet<&str> = live.collect();
        let silent = self
            .store
            .iter()
            .filter_map(|held| match held.record.content {
                Content::Here { gossip, .. } if !live.contains(&held.record.name[..]) => {
                    Some(gossip)
                }
                _ => None,
            });
        let silent = silent.filter(|address| *address != me.address);
        if let Some(to) = silent.choose(&mut self.rng) {
            self.send(to, &Message::Hello(me));
        }
    }

    fn seek(&mut self) {
        self.refresh_members();
        let me = self.foca.identity().clone();
        let known = |seed: &SocketAddr| *seed == me.address || self.members.contains(seed);
        let unknown: Vec<_> = self.seeds.iter().copied().filter(|s| !known(s)).collect();
        for seed in unknown {
            self.send(seed, &Message::Hello(me.clone()));
        }
    }
}

/// For this node and so many others.
fn sized(detection: Detection, others: usize) -> foca::Config {
    let size = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
    let mut swim = foca::Config::new_lan(NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN));
    if let Some(interval) = detection.probe_interval {
        // Suspicion is so many intervals.
        let times = swim.suspect_to_down_after.as_secs_f64() / swim.probe_period.as_secs_f64();
        swim.suspect_to_down_after = interval.mul_f64(times);
        swim.probe_period = interval;
        swim.probe_rtt = swim.probe_rtt.min(interval / 2);
    }
    swim.probe_rtt = detection.probe_timeout.unwrap_or(swim.probe_rtt);
    swim.suspect_to_down_after = detection.suspicion.unwrap_or(swim.suspect_to_down_after);
    swim.max_packet_size = NonZeroUsize::new(ROOM).unwrap_or(NonZeroUsize::MIN);
    swim
}

/// A node as its record has it.
fn member_of(record: &Record) -> Option<Member> {
    let Content::Here { gossip, .. } = record.content else {
        return None;
    };
    Some(Member {
        name: record.name.clone(),
        address: gossip,
        incarnation: record.started,
        instance: record.instance,
        renewal: 0,
    })
}
