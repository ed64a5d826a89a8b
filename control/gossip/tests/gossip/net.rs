//! A network of many nodes in one process, on a clock of its own: loss, delay, duplication,
//! partitions, restarts. What it does depends on its seed alone.
#![allow(unreachable_pub, reason = "a part of the test beside it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ring::signature::Ed25519KeyPair;
use viaduct_gossip::{
    Announcement, Claim, Content, Detection, Engine, Event, Kept, KeyRing, Known, MAX_DATAGRAM,
    Member, Message, NameHash, NetworkPart, Options, Seal, Trust, Verified,
};

/// When simulations begin, in seconds since 1970.
const DAY_ZERO: u64 = 1_800_000_000;

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Of a thousand, so many are lost.
    pub loss: u32,
    /// Of a thousand, so many come twice.
    pub twice: u32,
}

/// A node, and whether it runs.
struct Node {
    name: String,
    incarnation: u64,
    engine: Option<Engine>,
    /// What it has announced so often.
    changes: u8,
    /// So many more prefixes it has.
    more: u16,
    /// So often it has had another address.
    moves: u8,
    /// What it claims beside that, and since when: as its file of claims has it.
    claims: BTreeMap<(u32, IpNet), u64>,
    /// What was kept at its last end.
    kept: Option<Kept>,
    /// Its time of day at zero, in seconds since 1970.
    day_zero: u64,
    /// Its clock is so much ahead.
    ahead: Duration,
    /// Of which nodes it said that something has changed.
    told: BTreeSet<String>,
}

pub struct Net {
    pub now: Duration,
    pub faults: Faults,
    /// Longer datagrams come nowhere, and nobody is told.
    pub path: usize,
    pub detection: Detection,
    /// Nodes on different sides do not reach each other.
    pub sides: Vec<u8>,
    nodes: Vec<Node>,
    wakes: BTreeSet<(Duration, usize)>,
    wake_of: Vec<Option<Duration>>,
    flying: BTreeMap<(Duration, u64), (usize, usize, Vec<u8>)>,
    number: u64,
    rng: StdRng,
    /// Bytes sent, UDP and IPv4 headers included.
    pub bytes: u64,
    pub longest: usize,
    /// Signatures that were right once are right for all.
    verified: Verified,
}

pub fn address(node: usize) -> SocketAddr {
    let [_, a, b, c] = u32::try_from(node + 1).expect("few").to_be_bytes();
    SocketAddr::from(([10, a, b, c], 7950))
}

/// Node `n` at an address, with its `change`th prefix.
pub fn content(node: usize, at: SocketAddr, change: u8) -> Announcement {
    let [_, _, b, c] = u32::try_from(node).expect("few").to_be_bytes();
    let claim = |prefix: String| Claim {
        prefix: prefix.parse().expect("a prefix"),
        since: 1,
    };
    Announcement {
        gossip: at,
        vteps: vec![at.ip()],
        networks: vec![NetworkPart {
            vni: 1,
            port: 8472,
            mac: [2, 0, 0, 0, b, c],
            mac6: [2, 0, 0, 0, b, c],
            prefixes: vec![
                claim(format!("172.{b}.{c}.{change}/32")),
                claim(format!("fd00:{b:x}:{c:x}:{change:x}::/64")),
            ],
            moved: Vec::new(),
            delegated: Vec::new(),
        }],
    }
}

impl Net {
    /// Nodes that do not run yet.
    pub fn new(count: usize, seed: u64, faults: Faults) -> Self {
        let nodes = (0..count)
            .map(|n| Node {
                name: format!("node-{n}"),
                incarnation: 0,
                engine: None,
                changes: 0,
                more: 0,
                claims: BTreeMap::new(),
                kept: None,
                day_zero: DAY_ZERO,
                moves: 0,
                ahead: Duration::ZERO,
                told: BTreeSet::new(),
            })
            .collect();
        Self {
            now: Duration::ZERO,
            faults,
            path: usize::MAX,
            detection: Detection::default(),
            sides: vec![0; count],
            nodes,
            wakes: BTreeSet::new(),
            wake_of: vec![None; count],
            flying: BTreeMap::new(),
            number: 0,
            rng: StdRng::seed_from_u64(seed),
            bytes: 0,
            longest: 0,
            verified: Verified::default(),
        }
    }

    pub fn name(&mut self, node: usize, name: &str) {
        name.clone_into(&mut self.nodes[node].name);
    }

    /// Where a node is now.
    fn address_of(&self, node: usize) -> SocketAddr {
        let std::net::IpAddr::V4(ip) = address(node).ip() else {
            panic!("IPv4")
        };
        let [a, _, b, c] = ip.octets();
        SocketAddr::from(([a, self.nodes[node].moves, b, c], 7950))
    }

    /// Which node is there now.
    fn node_at(&self, address: SocketAddr) -> Option<usize> {
        let std::net::IpAddr::V4(ip) = address.ip() else {
            panic!("{address}")
        };
        let node = usize::try_from(u32::from(ip) & 0xffff).expect("few") - 1;
        (node < self.nodes.len() && self.address_of(node) == address).then_some(node)
    }

    /// Starts a node, or starts it again, with one other's address.
    pub fn start(&mut self, node: usize, seed: usize) {
        let (own, seed) = (self.address_of(node), self.address_of(seed));
        let (key, clock) = (self.key(node), self.time_at(node));
        let said = self.said(node);
        let it = &mut self.nodes[node];
        it.incarnation += 1;
        it.ahead = Duration::ZERO;
        let options = Options {
            cluster: "simulated".to_owned(),
            member: Member {
                name: it.name.clone(),
                address: own,
                incarnation: it.incarnation,
                instance: self.rng.random(),
                renewal: 0,
            },
            detection: self.detection,
            trust: Trust::FirstSight,
            certificate: None,
            verified: Some(self.verified.clone()),
            keys: KeyRing::new("simulated", &[[1; 32]]),
            seed: self.rng.random(),
        };
        let mut engine = Engine::new(options, key, self.now);
        engine.set_clock(clock);
        if let Some(kept) = it.kept.take() {
            engine.restore(kept, self.now);
        }
        engine.set_seeds(vec![seed]);
        engine.announce(said, self.now).expect("short");
        it.engine = Some(engine);
        self.after(node);
    }

    /// Has every node know all others and their records.
    pub fn acquaint(&mut self) {
        let engines = || self.nodes.iter().filter_map(|node| node.engine.as_ref());
        let own = |engine: &Engine| {
            let own = engine.store().get(NameHash::of(&engine.member().name));
            own.expect("announced").signed.clone()
        };
        let all: Vec<_> = engines().map(own).collect();
        for node in 0..self.nodes.len() {
            let now = self.clock(node);
            let engine = self.engine(node);
            engine.restore(all.clone().into(), now);
            engine.assume_members(now);
            self.after(node);
        }
    }

    /// A node ends, and has kept what it knew.
    pub fn kill(&mut self, node: usize) {
        let engine = self.nodes[node].engine.take();
        self.nodes[node].kept = engine.map(|engine| engine.to_keep());
    }

    pub fn leave(&mut self, node: usize) {
        let now = self.clock(node);
        self.engine(node).leave(now);
        self.after(node);
    }

    /// A node has other prefixes.
    pub fn change(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.changes = it.changes.wrapping_add(1);
        self.announce(node);
    }

    fn said(&self, node: usize) -> Announcement {
        let it = &self.nodes[node];
        let mut said = content(node, self.address_of(node), it.changes);
        let more = (0..it.more).map(|n| Claim {
            prefix: format!("fd01:{node:x}:{n:x}::/64")
                .parse()
                .expect("a prefix"),
            since: 1,
        });
        said.networks[0].prefixes.extend(more);
        let claims = it.claims.iter().map(|((_, prefix), since)| Claim {
            prefix: *prefix,
            since: *since,
        });
        said.networks[0].prefixes.extend(claims);
        said
    }

    /// A node claims this, too, from now on by its clock.
    pub fn claim(&mut self, node: usize, prefix: &str) {
        let key = (1, prefix.parse().expect("a prefix"));
        let now = self.time_at(node);
        self.nodes[node].claims.insert(key, now);
        if self.nodes[node].engine.is_some() {
            self.announce(node);
        }
    }

    /// Which of these nodes has a prefix, as another one sees it: the one that is not overdue and has
    /// claimed it the longest.
    pub fn owner(&self, by: usize, of: &[(usize, &str)]) -> Option<usize> {
        let engine = self.nodes[by].engine.as_ref().expect("it runs");
        let rank = |(node, prefix): &(usize, &str)| {
            let name = &self.nodes[*node].name;
            let known = engine.node(name, self.clock(by))?;
            let age = known.ages.get(&(1, prefix.parse().expect("a prefix")))?;
            Some((known.overdue, *age, name.clone(), *node))
        };
        of.iter().filter_map(rank).min().map(|(.., node)| node)
    }

    fn announce(&mut self, node: usize) {
        let (now, content) = (self.clock(node), self.said(node));
        self.engine(node).announce(content, now).expect("short");
        self.after(node);
    }

    /// A node has so many prefixes more than two.
    pub fn grow(&mut self, node: usize, by: u16) {
        self.nodes[node].more = by;
        self.announce(node);
    }

    /// A node has another address, and what goes to the old one is lost.
    pub fn move_away(&mut self, node: usize) {
        self.nodes[node].moves = self.nodes[node].moves.wrapping_add(1);
        self.announce(node);
    }

    /// A node's clock is further on at once, as after its machine stood still.
    pub fn jump(&mut self, node: usize, by: Duration) {
        self.nodes[node].ahead += by;
        let now = self.clock(node);
        self.engine(node).wake(now);
        self.after(node);
    }

    /// A node's records are lost.
    pub fn lose_records(&mut self, node: usize) {
        self.nodes[node].kept = None;
    }

    fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].ahead
    }

    /// Of which nodes a node has said since the last call that something has changed.
    pub fn told(&mut self, node: usize) -> BTreeSet<String> {
        std::mem::take(&mut self.nodes[node].told)
    }

    /// How many prefixes one node knows of another's.
    pub fn prefixes(&self, by: usize, of: usize) -> usize {
        let engine = self.nodes[by].engine.as_ref().expect("it runs");
        let known = engine.node(&self.nodes[of].name, self.clock(by));
        let networks = known.iter().flat_map(|known| known.record.networks());
        networks.map(|network| network.prefixes.len()).sum()
    }

    /// What one node knows of another.
    pub fn known(&self, by: usize, of: usize) -> Known {
        let engine = self.nodes[by].engine.as_ref().expect("it runs");
        let known = engine.node(&self.nodes[of].name, self.clock(by));
        known.expect("it has said something")
    }

    /// Somebody who has the cluster's key sends this to a node as if from another's address.
    pub fn inject(&mut self, from: usize, to: usize, message: &Message) {
        let keys = KeyRing::new("simulated", &[[1; 32]]);
        let datagram = Seal::new(keys, self.rng.random()).seal(&message.to_bytes());
        self.number += 1;
        let key = (self.now + Duration::from_millis(1), self.number);
        self.flying.insert(key, (from, to, datagram));
    }

    /// A node's own key.
    pub fn key(&self, node: usize) -> Ed25519KeyPair {
        // One for each name.
        let mut secret = [0; 32];
        let name = NameHash::of(&self.nodes[node].name);
        secret[..8].copy_from_slice(&name.0.to_be_bytes());
        Ed25519KeyPair::from_seed_unchecked(&secret).expect("32 bytes")
    }

    pub fn engine(&mut self, node: usize) -> &mut Engine {
        self.nodes[node].engine.as_mut().expect("it runs")
    }

    /// In seconds since 1970, by a node's clock.
    fn time_at(&self, node: usize) -> u64 {
        self.nodes[node].day_zero + self.now.as_secs()
    }

    /// A node's clock is wrong.
    pub fn set_day_zero(&mut self, node: usize, seconds: u64) {
        self.nodes[node].day_zero = seconds;
    }

    /// In seconds since 1970, by all nodes' clocks that are right.
    pub fn time_of_day(&self) -> u64 {
        DAY_ZERO + self.now.as_secs()
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Engine)> {
        let engines = self.nodes.iter().enumerate();
        engines.filter_map(|(n, node)| Some((n, node.engine.as_ref()?)))
    }

    /// Sends what a node wants to send, and notes when it wakes.
    fn after(&mut self, node: usize) {
        let now = self.clock(node);
        let Node {
            engine,
            told,
            claims,
            ..
        } = &mut self.nodes[node];
        let Some(engine) = engine else {
            return;
        };
        for event in engine.take_events() {
            if let Event::Younger(younger) = event {
                claims.extend(younger);
            }
        }
        told.extend(engine.take_changed(now));
        let (sent, next) = (engine.take_datagrams(), engine.next_at());
        for (to, bytes) in sent {
            self.bytes += bytes.len() as u64 + 28;
            self.longest = self.longest.max(bytes.len());
            let lost = self.rng.random_range(0..1000) < self.faults.loss;
            let lost = lost || bytes.len() > self.path;
            let Some(to) = self.node_at(to).filter(|_| !lost) else {
                continue;
            };
            let times = 1 + usize::from(self.rng.random_range(0..1000) < self.faults.twice);
            for _ in 0..times {
                // Between 0.2 and 5 ms, so they overtake each other.
                let wait = Duration::from_micros(self.rng.random_range(200..5000));
                self.number += 1;
                let key = (self.now + wait, self.number);
                self.flying.insert(key, (node, to, bytes.clone()));
            }
        }
        if let Some(old) = self.wake_of[node].take() {
            self.wakes.remove(&(old, node));
        }
        if let Some(next) = next {
            let next = next.saturating_sub(self.nodes[node].ahead).max(self.now);
            self.wakes.insert((next, node));
            self.wake_of[node] = Some(next);
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
        self.now = end;
    }

    /// Lets time pass until something holds; looks at it every 10 ms.
    pub fn run_until(&mut self, end: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let mut look = self.now;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let wake = self.wakes.first().map(|(at, _)| *at);
            let Some(next) = arrival.into_iter().chain(wake).min() else {
                return holds(self);
            };
            if next > end {
                return holds(self);
            }
            self.now = self.now.max(next);
            if self.now >= look {
                if holds(self) {
                    return true;
                }
                look = self.now + Duration::from_millis(10);
            }
            if wake.is_some_and(|wake| arrival.is_none_or(|arrival| wake <= arrival)) {
                let (_, node) = self.wakes.pop_first().expect("one");
                self.wake_of[node] = None;
                let now = self.clock(node);
                let clock = self.time_at(node);
                if let Some(engine) = &mut self.nodes[node].engine {
                    engine.set_clock(clock);
                    engine.wake(now);
                }
                self.after(node);
            } else {
                let (_, (from, to, mut bytes)) = self.flying.pop_first().expect("one");
                if self.sides[from] != self.sides[to] {
                    continue;
                }
                let (now, from) = (self.clock(to), self.address_of(from));
                if let Some(engine) = &mut self.nodes[to].engine {
                    engine.datagram(from, &mut bytes, now);
                }
                self.after(to);
            }
        }
    }

    /// Whether all that run have the same records.
    pub fn agree(&self) -> bool {
        let mut digests = self.live().map(|(_, engine)| engine.store().digest());
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
    }

    /// How many that run do not have the latest record of this one.
    pub fn who_lack(&self, node: usize) -> usize {
        let name = NameHash::of(&self.nodes[node].name);
        let version = |engine: &Engine| engine.store().get(name).map(|held| held.record.version);
        let said = version(self.nodes[node].engine.as_ref().expect("it runs"));
        let lacks = |engine: &Engine| version(engine) < said;
        self.live().filter(|(_, engine)| lacks(engine)).count()
    }

    pub fn show(&self) {
        for (n, engine) in self.live() {
            let all: Vec<_> = engine
                .store()
                .iter()
                .map(|h| (h.record.name.clone(), h.record.version, h.record.instance))
                .collect();
            println!(
                "{n}: me {:?} members {} {all:?}",
                engine.member(),
                engine.members().count()
            );
        }
    }

    /// How many of those that run know of so many others that live.
    pub fn members(&self) -> Vec<usize> {
        self.live()
            .map(|(_, engine)| engine.members_count())
            .collect()
    }

    /// What must always be true in the end.
    pub fn check(&self, what: &str) {
        assert!(
            self.longest <= MAX_DATAGRAM,
            "{what}: {} bytes",
            self.longest
        );
        let names: BTreeSet<_> = self.live().map(|(n, _)| &self.nodes[n].name).collect();
        if names.len() == self.live().count() {
            for (node, engine) in self.live() {
                assert!(
                    self.who_lack(node) == 0,
                    "{what}: not all know what node {node} said last"
                );
                let own = engine.store().get(NameHash::of(&self.nodes[node].name));
                let own = &own.expect("its own").record.content;
                let said = content(node, self.address_of(node), self.nodes[node].changes);
                let expected = Content::Here {
                    gossip: said.gossip,
                    vteps: said.vteps,
                    parts: 1,
                    networks: said.networks,
                };
                assert!(*own == expected || *own == Content::Gone, "{what}: {own:?}");
            }
        }
        assert!(self.agree(), "{what}: nodes hold different records");
    }
}
