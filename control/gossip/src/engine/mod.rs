//! One node of the gossip: what it does with datagrams and time.
//!
//! Three things go on. foca's SWIM finds out who lives. News (records that have changed) are pushed
//! to some members every [`PUSH_INTERVAL`], so many times that with all likelihood everybody has
//! them. And now and then a digest goes to one member, which answers with what it has where both
//! differ: whatever the pushes have missed is found then, after a partition too.

mod api;
mod claiming;
mod liveness;
mod own;
mod parts;
mod silence;
mod small;
mod spread;
mod swim;
mod taking;
mod trouble;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, PostcardCodec, Timer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ring::signature::Ed25519KeyPair;

pub use self::api::{Detection, Event, Known, Options};
use self::claiming::Claiming;
use self::liveness::Liveness;
pub use self::own::ForgetError;
use self::own::{Claim, Own, Rival};
pub use self::parts::Announcement;
use self::small::Small;
use self::spread::{News, PUSH_INTERVAL};
use self::swim::sized;
use self::trouble::Trouble;
pub use self::trouble::{OneWay, RefusedRecord};
use crate::claims::{Moment, Seen};
use crate::record::NameHash;
use crate::refusal::Refusal;
use crate::seal::{KeyId, KeyRing, MAX_MESSAGE, Seal};
use crate::store::{Held, Store};
use crate::trust::Certificate;
use crate::wire::{BUCKETS, Member, Message};

/// How often a digest goes to some member, on average.
const PULL_INTERVAL: Duration = Duration::from_secs(5);
/// How often peers are looked for by a node that knows of nobody.
const SEEK_ALONE: Duration = Duration::from_secs(1);
/// How often peers of the list that are no members are looked for.
const SEEK_OTHERS: Duration = Duration::from_secs(30);
/// How long what comes counts as older than this node, from when it came to others.
const JOINING: Duration = Duration::from_secs(5);

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
    /// What was asked for may not have come.
    AskAgain,
    CompareClaims {
        last: bool,
    },
    /// A node's claims do not go behind others' any more for being new.
    Settled(String),
    /// A node that has been silent since then is asked again, or others may take over what it claims.
    Silence(String, Duration),
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
    liveness: Liveness,
    small: Small,
    trouble: Trouble,
    /// When others' claims were seen first.
    seen: Seen,
    /// This node's own.
    claiming: Claiming,
    /// Whether records were kept from before this start.
    restored: bool,
    /// When this node came to others, as far as it was away.
    joined: Duration,
    /// When something came from the addresses of [`set_seeds`](Self::set_seeds) last.
    seeds_heard: HashMap<SocketAddr, Duration>,
    /// Whether foca's list may have changed since.
    members_stale: bool,
    pulls_on: bool,
    seeds: Vec<SocketAddr>,
    /// What this node says.
    own: Option<Own>,
    /// When peers of the list that are no members were looked for last.
    sought: Option<Duration>,
    claim: Claim,
    /// Who has spoken in this node's name last, while that is not answered yet.
    rival: Option<Rival>,
    /// The time of day, in seconds since 1970.
    clock: u64,
    news: Vec<News>,
    due: BTreeMap<(Duration, u64), Due>,
    /// Of things to do; what is due at one time has an order.
    number: u64,
    out: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<Event>,
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
            liveness: Liveness::default(),
            small: Small::default(),
            trouble: Trouble::default(),
            seen: Seen::default(),
            claiming: Claiming::default(),
            restored: false,
            joined: now,
            seeds_heard: HashMap::new(),
            members_stale: false,
            pulls_on: false,
            seeds: Vec::new(),
            own: None,
            sought: None,
            claim: Claim::Held,
            rival: None,
            clock: 0,
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

    /// What is known of all nodes, this one among them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn moment(&self, now: Duration) -> Moment {
        Moment {
            clock: self.clock,
            now,
            young: !self.restored && now.saturating_sub(self.joined) < JOINING,
        }
    }

    fn head(&self, name: &str) -> Option<&Held> {
        self.store.get(NameHash::of(name))
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

    /// Does what is due.
    pub fn wake(&mut self, now: Duration) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Due::Swim(timer) => self.swim(now, |foca, wanted| foca.handle_timer(timer, wanted)),
                Due::AskAgain => self.ask_again(now),
                Due::CompareClaims { last } => self.compare_claims(last, now),
                Due::Push => {
                    self.push(now);
                    if !self.news.is_empty() {
                        self.at(now + PUSH_INTERVAL, Due::Push);
                    }
                }
                Due::Contest => self.contest(now),
                Due::Settled(name) => self.liveness.note(&name),
                Due::Silence(name, since) => self.look_at_silence(name, since, now),
                Due::PullOn => {
                    self.pulls_on = false;
                    self.pull();
                }
                Due::Pull => {
                    for name in self.store.expire(now) {
                        self.liveness.note(&name);
                    }
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
        if opened.is_ok() && self.seeds.contains(&from) {
            self.seeds_heard.insert(from, now);
        }
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
            Message::Hello(member) => {
                self.heard_from(&member, from, now);
                if member.name != self.foca.identity().name {
                    self.trouble.hello(member, from, now);
                }
                let me = self.foca.identity().clone();
                self.send(from, &Message::Welcome(me));
            }
            Message::Welcome(member) => {
                self.heard_from(&member, from, now);
                self.answered(&member, from, now);
                let to = member.address;
                self.swim(now, |foca, wanted| foca.announce(member, wanted));
                self.send_digest(to);
            }
            Message::Swim(bytes) => {
                // foca's header begins with who sends it.
                if let Ok((member, _)) = postcard::take_from_bytes::<Member>(&bytes) {
                    self.heard_from(&member, from, now);
                }
                self.swim(now, |foca, wanted| foca.handle_data(&bytes, wanted));
            }
            Message::Records(records) => {
                for signed in &records {
                    self.take(from, signed, now);
                }
            }
            Message::Digest { first, hashes } => {
                let first = usize::from(first);
                if first + hashes.len() > BUCKETS {
                    return Err(Refusal::Malformed);
                }
                self.send_ranges(from, first, &hashes);
            }
            Message::Ranges(ranges) => self.compare(from, &ranges, now),
            Message::Piece {
                record,
                number,
                of,
                bytes,
            } => self.piece(from, record, (number, of), bytes, now),
            Message::NotTaken { node, why } => {
                if node == self.foca.identity().name {
                    self.trouble.refused_by(from, why, now);
                }
            }
            Message::RequestPieces(names) => {
                self.wants_pieces(from, now);
                return self.message(from, Message::Request(names), now);
            }
            Message::Request(names) => {
                let held = names.iter().filter_map(|name| self.store.get(*name));
                let records: Vec<_> = held.map(|held| held.signed.clone()).collect();
                self.send_records(from, &records, now);
            }
        }
        Ok(())
    }

    fn at(&mut self, when: Duration, what: Due) {
        self.number += 1;
        self.due.insert((when, self.number), what);
    }

    fn send(&mut self, to: SocketAddr, message: &Message) {
        self.send_bytes(to, &message.to_bytes());
    }

    fn send_bytes(&mut self, to: SocketAddr, message: &[u8]) {
        if self.foca.identity().address.ip().is_unspecified() {
            return;
        }
        debug_assert!(message.len() <= MAX_MESSAGE, "{message:?}");
        self.out.push((to, self.seal.seal(message)));
    }

    /// The time of day, in seconds since 1970: it may jump, and be wrong.
    pub fn set_clock(&mut self, seconds: u64) {
        self.clock = seconds;
    }
}
