//! The engine on a socket and a clock: a task of the control thread.

mod handle;
mod listener;
mod log;
mod peers;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use self::handle::Request;
pub use self::handle::{GossipHandle, GossipStatus, OneWayStatus, RefusedStatus};
use self::listener::Listener;
use self::log::Log;
pub use self::peers::PeerStatus;
use self::peers::Peers;

use crate::engine::{Announcement, Detection, Engine, Event, Known, Options};
use crate::identity::{Identity, IdentityError, claimed_younger, random, replace, seconds};
use crate::kept;
use crate::keys::{KeyChange, KeyError, KeyFile, KeyUse};
use crate::node::{Node, Nodes};
use crate::record::RecordError;
use crate::refusal::Refusal;
use crate::seal::MAX_DATAGRAM;
use crate::store::StoreError;
use crate::trust::{Certificate, Trust};
use crate::wire::Member;

/// How often the peers' names are looked up.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// The same by a node that knows of nobody, when some had no address.
const RESOLVE_ALONE: Duration = Duration::from_secs(5);
/// How long after a change what others say is written down.
const KEEP_AFTER: Duration = Duration::from_secs(2);
/// How often it is written down when nothing changes, so that it does not look old.
const KEEP_AGAIN: Duration = Duration::from_secs(3600);
/// Datagrams taken in one turn, so that time does its part when they flood in.
const BATCH: usize = 64;

/// What this node is started with.
#[derive(Clone, Debug)]
pub struct GossipOptions {
    /// Its name.
    pub node: String,
    /// Its UDP port.
    pub port: u16,
    /// The cluster's name.
    pub cluster: String,
    /// Holds the cluster's key.
    pub key_file: PathBuf,
    /// Holds what this node keeps between starts.
    pub state: PathBuf,
    /// Hosts (names or addresses) and ports where others may be found.
    pub peers: Vec<(String, u16)>,
    /// How soon a node that does not answer is missed.
    pub detection: Detection,
    /// How other nodes' keys are believed.
    pub trust: Trust,
    /// What the cluster's authority says of this node, where there is one.
    pub certificate: Option<Certificate>,
    /// What this node says of itself; none, while its underlay has no address.
    pub announcement: Option<Announcement>,
}

/// Why gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// Keys or state.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The content.
    #[error("cannot announce this node: {0}")]
    Record(#[from] RecordError),
}

/// Gossip on a UDP socket.
pub struct Gossip {
    engine: Engine,
    cluster: String,
    key_file: KeyFile,
    listener: Listener,
    /// The engine's time zero.
    start: Instant,
    peers: Peers,
    /// Has what others said last, for the next start.
    kept: PathBuf,
    state: PathBuf,
    /// When that is written down next.
    keep_at: Instant,
    keeping: Option<JoinHandle<()>>,
    /// When the peers' names are looked up next.
    look_up_at: Instant,
    requests: mpsc::Receiver<Request>,
    handle: GossipHandle,
    nodes: watch::Sender<Nodes>,
    log: Log,
    refused: BTreeMap<Refusal, u64>,
    records_refused: BTreeMap<StoreError, u64>,
    yielded: Option<Member>,
}

impl Gossip {
    /// Says what the options have of this node, from its address there. A port that is taken, and an
    /// address that is missing, are tried again. The peers are looked up when it [runs](Self::run).
    ///
    /// # Errors
    /// When keys or state cannot be had, or nobody would take the content.
    pub fn start(options: GossipOptions) -> Result<Self, GossipError> {
        let key_file = KeyFile::read(&options.key_file)?;
        let cluster = options.cluster;
        let kept = options.state.join(format!("{}.records", options.node));
        let Identity { key, incarnation } = Identity::next(&options.state, &options.node)?;
        let engine = Options {
            keys: key_file.ring(&cluster),
            cluster: cluster.clone(),
            member: Member {
                name: options.node,
                // Until it has one.
                address: (Ipv4Addr::UNSPECIFIED, options.port).into(),
                incarnation,
                instance: u64::from_be_bytes(random()?),
                renewal: 0,
            },
            detection: options.detection,
            trust: options.trust,
            certificate: options.certificate,
            verified: None,
            seed: random()?,
        };
        let mut engine = Engine::new(engine, key, Duration::ZERO);
        engine.set_clock(seconds());
        restore(&mut engine, &kept);
        if let Some(announcement) = options.announcement {
            engine.announce(announcement, Duration::ZERO)?;
        }
        let (send_request, requests) = mpsc::channel(16);
        let (nodes, watched) = watch::channel(Nodes::new());
        Ok(Self {
            engine,
            cluster,
            key_file,
            listener: Listener::new(),
            start: Instant::now(),
            peers: Peers::new(options.peers),
            kept,
            state: options.state,
            keep_at: Instant::now() + KEEP_AGAIN,
            keeping: None,
            look_up_at: Instant::now(),
            requests,
            handle: GossipHandle {
                requests: send_request,
                nodes: watched,
            },
            nodes,
            log: Log::default(),
            refused: BTreeMap::new(),
            records_refused: BTreeMap::new(),
            yielded: None,
        })
    }

    /// To ask it while it runs.
    pub fn handle(&self) -> GossipHandle {
        self.handle.clone()
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        self.engine.set_seeds(self.peers.addresses());
        self.settle();
        loop {
            let wake = self.next_at();
            tokio::select! {
                received = self.listener.recv_from(&mut buffer) => {
                    self.receive(received, &mut buffer);
                    for _ in 0..BATCH {
                        let Ok(next) = self.listener.try_recv_from(&mut buffer) else { break };
                        self.receive(Ok(next), &mut buffer);
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
                () = self.peers.found() => {
                    if self.peers.some_missing() && self.engine.members_count() == 0 {
                        self.look_up_at = self.look_up_at.min(Instant::now() + RESOLVE_ALONE);
                    }
                    self.engine.set_seeds(self.peers.addresses());
                }
                Some(request) = self.requests.recv() => self.answer(request),
            }
            self.do_what_is_due();
            self.settle();
        }
    }

    /// When something is to be done that nobody asks for.
    fn next_at(&self) -> Instant {
        let engine = self.engine.next_at().map(|at| self.start + at);
        let all = [engine, self.listener.retry_at()];
        let first = self.look_up_at.min(self.keep_at);
        all.into_iter().flatten().fold(first, Instant::min)
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if now >= self.look_up_at {
            self.look_up_at = now + RESOLVE_INTERVAL;
            self.peers.look_up();
        }
        if now >= self.keep_at {
            self.keep();
        }
        self.listener.retry(now);
        let now = self.now();
        self.engine.set_clock(seconds());
        self.engine.wake(now);
    }

    /// Writes down what others say, on a thread that may wait for the disk.
    fn keep(&mut self) {
        if self
            .keeping
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            self.keep_at = Instant::now() + KEEP_AFTER;
            return;
        }
        self.keep_at = Instant::now() + KEEP_AGAIN;
        let Some(bytes) = kept::file(&self.engine.to_keep(), seconds()) else {
            warn!("other nodes say too much to be kept for the next start");
            return;
        };
        let path = self.kept.clone();
        self.keeping = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = replace(&path, &bytes) {
                warn!("what other nodes say is not kept for the next start: {error}");
            }
        }));
    }

    fn receive(&mut self, received: io::Result<(usize, SocketAddr)>, buffer: &mut [u8]) {
        let now = self.now();
        match received {
            Ok((len, from)) => self.engine.datagram(from, &mut buffer[..len], now),
            // An ICMP error about what was sent: SWIM finds out.
            Err(error) => debug!(%error, "gossip"),
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Request::Forget(name, reply) => {
                let now = self.now();
                let _ = reply.send(self.engine.forget(&name, now));
            }
            Request::Peers(peers, reply) => {
                // What is being looked up is of the old list.
                self.peers.set(peers);
                self.engine.set_seeds(self.peers.addresses());
                self.look_up_at = Instant::now();
                let _ = reply.send(());
            }
            Request::Keys(change, reply) => {
                let _ = reply.send(self.change_keys(&change));
            }
            Request::Announce(announcement, reply) => {
                let now = self.now();
                let _ = reply.send(self.engine.announce(announcement, now));
            }
            Request::Certificate(certificate, reply) => {
                let now = self.now();
                let _ = reply.send(self.engine.set_certificate(certificate, now));
            }
            Request::Leave(reply) => {
                let now = self.now();
                self.engine.leave(now);
                self.settle();
                let _ = reply.send(());
            }
        }
    }

    fn change_keys(&mut self, change: &KeyChange) -> Result<Vec<KeyUse>, KeyError> {
        let changed = self.key_file.changed(change, &self.cluster)?;
        if changed != self.key_file {
            self.engine.set_keys(changed.ring(&self.cluster));
            self.key_file = changed;
            info!(
                keys = self.engine.keys().count(),
                "the cluster's keys were changed"
            );
        }
        let now = self.now();
        let keys = self.engine.keys().enumerate();
        let keys = keys.map(|(place, (id, heard))| KeyUse {
            id,
            used: place == 0,
            heard_s: heard.map(|at| now.saturating_sub(at).as_secs()),
        });
        Ok(keys.collect())
    }

    fn status(&self) -> GossipStatus {
        let now = self.now();
        let at = |at: Duration| self.start + at;
        let one_way = self.engine.one_way(now).into_iter();
        let records = self.engine.records_refused(now).into_iter();
        GossipStatus {
            problem: self.listener.problem().map(str::to_owned),
            configured: (self.peers).status(|seed| self.engine.seed_heard(seed).map(at)),
            refused_records: records
                .map(|record| RefusedStatus {
                    node: record.node,
                    from: record.from,
                    why: record.why,
                    count: record.count,
                })
                .collect(),
            refused_by: self.engine.refusers(now),
            one_way: one_way
                .map(|way| OneWayStatus {
                    node: way.member.name,
                    from: way.from,
                    since: at(way.since),
                })
                .collect(),
            unrecorded: (self.engine.unrecorded(now).into_iter())
                .map(|(node, since)| (node, at(since)))
                .collect(),
            me: self.engine.member().clone(),
            members: self.engine.members().cloned().collect(),
            nodes: self.nodes.borrow().clone(),
            refused: self.refused.clone(),
            records_refused: self.records_refused.clone(),
            yielded: self.yielded.clone(),
        }
    }

    /// Sends what is to be sent, and tells what has happened.
    fn settle(&mut self) {
        let at = self.engine.member().address;
        if !at.ip().is_unspecified() {
            self.listener.listen(at);
        }
        for (to, datagram) in self.engine.take_datagrams() {
            // What the socket does not take now is lost, as on the way.
            let sent = self.listener.send(&datagram, to);
            self.peers.sent(to, &sent);
        }
        let mut changed = false;
        for event in self.engine.take_events() {
            changed |= matches!(event, Event::Record(_));
            self.tell(event);
        }
        self.publish();
        if changed {
            self.keep_at = self.keep_at.min(Instant::now() + KEEP_AFTER);
        }
    }

    /// Tells of the nodes that have changed, at the cost of these.
    fn publish(&mut self) {
        let now = self.now();
        let changed = self.engine.take_changed(now);
        if changed.is_empty() {
            return;
        }
        let known = |name: &String| Some(self.seen(self.engine.node(name, now)?));
        let changed: Vec<_> = changed
            .into_iter()
            .map(|name| (known(&name), name))
            .collect();
        let mut overdue_changed = false;
        self.nodes.send_if_modified(|nodes| {
            let mut modified = false;
            for (node, name) in changed {
                let overdue = |node: Option<&Node>| node.is_some_and(|node| node.overdue);
                let before = nodes.get(&name).map(|node| &**node);
                overdue_changed |= overdue(before) != overdue(node.as_ref());
                modified |= match node {
                    Some(node) if nodes.get(&name).is_some_and(|old| **old == node) => false,
                    Some(node) => {
                        nodes.insert(name, Arc::new(node));
                        true
                    }
                    None => nodes.remove(&name).is_some(),
                };
            }
            modified
        });
        // The next start has to know who had lost what it claims.
        if overdue_changed {
            self.keep_at = self.keep_at.min(Instant::now() + KEEP_AFTER);
        }
    }

    /// What the engine knows of a node, in this process's time.
    fn seen(&self, known: Known) -> Node {
        Node {
            ages: Arc::new(known.ages),
            since: self.start + known.since,
            answers: known.answers,
            silent_since: known.silent_since.map(|at| self.start + at),
            overdue: known.overdue,
            heard_from: known.heard_from,
            first_held: known.first_held,
            record: known.record,
        }
    }

    fn tell(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Up(member) => {
                info!(node = member.name, address = %member.address, "a node answers");
            }
            Event::Down(member) => {
                warn!(node = member.name, address = %member.address, "a node does not answer; its routes stay");
            }
            Event::Record(_) => {}
            Event::Refused { from, why } => {
                *self.refused.entry(why).or_default() += 1;
                if self.log.may(from.ip(), now) {
                    warn!(%from, "a gossip datagram was dropped: {why}");
                }
            }
            Event::RecordRefused { node, from, why } => {
                *self.records_refused.entry(why).or_default() += 1;
                if self.log.may(from.ip(), now) {
                    warn!(node, %from, "a node's record was not taken: {why}");
                }
            }
            Event::Yielded { to } => {
                tracing::error!(address = %to.address, "another node has this one's name; this one announces nothing until it is restarted under another");
                self.yielded = Some(to);
            }
            Event::Younger(claims) => {
                for ((_, prefix), since) in &claims {
                    warn!(%prefix, since, "another node has claimed what overlaps this prefix before: this node's claim counts as younger");
                }
                let (state, node) = (self.state.clone(), self.engine.member().name.clone());
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = claimed_younger(&state, &node, &claims) {
                        warn!("the claims' age is not kept for the next start: {error}");
                    }
                });
            }
            Event::Unannounced(error) => {
                tracing::error!("cannot announce this node: {error}");
            }
        }
    }
}

/// Takes what was kept at an earlier start. It is not needed, so nothing fails without it.
fn restore(engine: &mut Engine, path: &Path) {
    match kept::read(path, seconds()) {
        Ok(kept) if kept.records.is_empty() => {}
        Ok(kept) => {
            let of = kept.records.len();
            let taken = engine.restore(kept, Duration::ZERO);
            info!(taken, of, "took what other nodes said before this start");
        }
        Err(error) => {
            warn!(file = %path.display(), "what other nodes said before this start is not used: {error}");
        }
    }
}
