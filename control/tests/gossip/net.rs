//! A network of many nodes in one process, on a clock of its own: loss, delay, duplication,
//! partitions, restarts. What it does depends on its seed alone.
#![allow(unreachable_pub, reason = "a part of the test beside it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ring::signature::Ed25519KeyPair;
use viaduct_control::gossip::{
    Announcement, Claim, Content, Detection, Engine, KeyRing, MAX_DATAGRAM, Member, NameHash,
    NetworkPart, Options, Trust, Verified,
};

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
    /// So often it has had another address.
    moves: u8,
    /// Its clock is so much ahead.
    ahead: Duration,
}

pub struct Net {
    pub now: Duration,
    pub faults: Faults,
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
    SocketAddr::from(([10, a, b, c], 7946))
}

/// Node `n` at an address, with its `change`th prefix.
fn content(node: usize, at: SocketAddr, change: u8) -> Announcement {
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
            prefixes: vec![
                claim(format!("172.{change}.{b}.0/24")),
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
                moves: 0,
                ahead: Duration::ZERO,
            })
            .collect();
        Self {
            now: Duration::ZERO,
            faults,
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
        SocketAddr::from(([a, self.nodes[node].moves, b, c], 7946))
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
        // One key for each name, as a node has one.
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&NameHash::of(&it.name).0.to_be_bytes());
        let key = Ed25519KeyPair::from_seed_unchecked(&secret).expect("32 bytes");
        let mut engine = Engine::new(options, key, self.now);
        engine.set_seeds(vec![seed]);
        engine
            .announce(content(node, own, it.changes), self.now)
            .expect("short");
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
            engine.restore(&all, now);
            engine.assume_members(now);
            self.after(node);
        }
    }

    pub fn kill(&mut self, node: usize) {
        self.nodes[node].engine = None;
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

    fn announce(&mut self, node: usize) {
        let (now, at) = (self.clock(node), self.address_of(node));
        let content = content(node, at, self.nodes[node].changes);
        self.engine(node).announce(content, now).expect("short");
        self.after(node);
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

    fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].ahead
    }

    pub fn engine(&mut self, node: usize) -> &mut Engine {
        self.nodes[node].engine.as_mut().expect("it runs")
    }

    fn live(&self) -> impl Iterator<Item = (usize, &Engine)> {
        let engines = self.nodes.iter().enumerate();
        engines.filter_map(|(n, node)| Some((n, node.engine.as_ref()?)))
    }

    /// Sends what a node wants to send, and notes when it wakes.
    fn after(&mut self, node: usize) {
        let Some(engine) = &mut self.nodes[node].engine else {
            return;
        };
        let _ = engine.take_events();
        let (sent, next) = (engine.take_datagrams(), engine.next_at());
        for (to, bytes) in sent {
            self.bytes += bytes.len() as u64 + 28;
            self.longest = self.longest.max(bytes.len());
            let lost = self.rng.random_range(0..1000) < self.faults.loss;
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
                if let Some(engine) = &mut self.nodes[node].engine {
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
