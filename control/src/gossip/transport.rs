//! The engine on a socket and a clock: a task of the control thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::net::{UdpSocket, lookup_host};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::engine::{Announcement, Detection, Engine, Event, ForgetError, Options};
use super::identity::{Identity, IdentityError, random, replace, seconds};
use super::kept;
use super::keys::{KeyChange, KeyError, KeyFile, KeyUse};
use super::record::{Record, RecordError};
use super::refusal::Refusal;
use super::seal::MAX_DATAGRAM;
use super::trust::{Certificate, Trust};
use super::wire::Member;

/// How often the peers' names are looked up.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// The same by a node that knows of nobody, when some had no address.
const RESOLVE_ALONE: Duration = Duration::from_secs(5);
/// How long after a change what others say is written down.
const KEEP_AFTER: Duration = Duration::from_secs(2);
/// How often it is written down when nothing changes, so that it does not look old.
const KEEP_AGAIN: Duration = Duration::from_secs(3600);
/// How often a refusal from one source is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Sources of which it is remembered when they were last logged.
const MAX_LOGGED: usize = 1024;
/// Datagrams taken in one turn, so that time does its part when they flood in.
const BATCH: usize = 64;

/// What this node is started with.
#[derive(Clone, Debug)]
pub struct GossipOptions {
    /// Its name.
    pub node: String,
    /// Where others reach it.
    pub address: SocketAddr,
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
    /// What this node says of itself.
    pub announcement: Announcement,
}

/// Why gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// Keys or state.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The UDP port.
    #[error("cannot listen for gossip on UDP port {port}: {error}")]
    Port {
        /// Which.
        port: u16,
        /// Why not.
        error: io::Error,
    },
    /// The content.
    #[error("cannot announce this node: {0}")]
    Record(#[from] RecordError),
}

/// What a node has said, and how long it is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it said last.
    pub record: Record,
    /// When that came here.
    pub since: Instant,
}

/// What gossip is doing.
#[derive(Clone, Debug)]
pub struct GossipStatus {
    /// This node.
    pub me: Member,
    /// Who answers, without this node.
    pub members: Vec<Member>,
    /// What every node has said, this one among them.
    pub records: Vec<Known>,
    /// Datagrams that were not taken, by reason.
    pub refused: Vec<(Refusal, u64)>,
    /// Records that were not taken.
    pub records_refused: u64,
    /// The node that has this one's name, if this one has given way to it.
    pub yielded: Option<Member>,
}

#[derive(Debug)]
enum Request {
    Status(oneshot::Sender<GossipStatus>),
    Leave(oneshot::Sender<()>),
    Announce(Announcement, oneshot::Sender<Result<(), RecordError>>),
    Keys(KeyChange, oneshot::Sender<Result<Vec<KeyUse>, KeyError>>),
    Peers(Vec<(String, u16)>, oneshot::Sender<()>),
    Forget(String, oneshot::Sender<Result<(), ForgetError>>),
}

/// Asks a running gossip.
#[derive(Clone, Debug)]
pub struct GossipHandle {
    requests: mpsc::Sender<Request>,
    records: watch::Receiver<Vec<Record>>,
}

impl GossipHandle {
    /// What all nodes have said; changes whenever one says something else.
    pub fn records(&self) -> watch::Receiver<Vec<Record>> {
        self.records.clone()
    }

    /// What it is doing; none when it has ended.
    pub async fn status(&self) -> Option<GossipStatus> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Status(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Has all nodes forget another one; none when gossip has ended.
    ///
    /// # Errors
    /// When that node answers, or is unknown.
    pub async fn forget(&self, name: &str) -> Option<Result<(), ForgetError>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Forget(name.to_owned(), reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Changes the cluster's keys on this node, in their file too, and says which there are; none
    /// when gossip has ended.
    ///
    /// # Errors
    /// When they cannot be changed so.
    pub async fn keys(&self, change: KeyChange) -> Option<Result<Vec<KeyUse>, KeyError>> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Keys(change, reply))
            .await
            .ok()?;
        answer.await.ok()
    }

    /// Says this of the node from now on; none when gossip has ended.
    ///
    /// # Errors
    /// When nobody would take it: what was said before stands.
    pub async fn announce(&self, announcement: Announcement) -> Option<Result<(), RecordError>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Announce(announcement, reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Looks for others at these hosts and ports from now on; none when gossip has ended.
    pub async fn set_peers(&self, peers: Vec<(String, u16)>) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Peers(peers, reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Says that this node and its pods have gone.
    pub async fn leave(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Leave(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}

type Resolving = Pin<Box<dyn Future<Output = Resolved> + Send>>;

/// Peers' addresses, and whether some names have none.
struct Resolved {
    seeds: Vec<SocketAddr>,
    missing: bool,
}

/// Gossip on a UDP socket.
pub struct Gossip {
    engine: Engine,
    cluster: String,
    key_file: KeyFile,
    socket: UdpSocket,
    /// The engine's time zero.
    start: Instant,
    peers: Vec<(String, u16)>,
    /// Has what others said last, for the next start.
    kept: PathBuf,
    /// When that is written down next.
    keep_at: Instant,
    keeping: Option<JoinHandle<()>>,
    /// Whether these are others than were looked up last.
    peers_changed: bool,
    requests: mpsc::Receiver<Request>,
    handle: GossipHandle,
    records: watch::Sender<Vec<Record>>,
    log: Log,
    refused: HashMap<Refusal, u64>,
    records_refused: u64,
    yielded: Option<Member>,
}

/// When something was last logged of whom.
#[derive(Default)]
struct Log(HashMap<IpAddr, Instant>);

impl Log {
    fn may(&mut self, of: IpAddr, now: Instant) -> bool {
        if self.0.len() >= MAX_LOGGED {
            self.0
                .retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        }
        match self.0.get(&of) {
            Some(at) if now.duration_since(*at) < LOG_INTERVAL => false,
            // Of so many that some would be forgotten, nothing more is said for now.
            None if self.0.len() >= MAX_LOGGED => false,
            _ => {
                self.0.insert(of, now);
                true
            }
        }
    }
}

impl Gossip {
    /// Listens at the port of this node's address, and says `content` of it. The peers are looked
    /// up when it [runs](Self::run).
    ///
    /// # Errors
    /// When keys or state cannot be had, the port is taken, or nobody would take the content.
    pub fn start(options: GossipOptions) -> Result<Self, GossipError> {
        let key_file = KeyFile::read(&options.key_file)?;
        let cluster = options.cluster;
        let address = options.address;
        // Of any address, since the node's own may change.
        let any: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let bind = || {
            let socket = std::net::UdpSocket::bind((any, address.port()))?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        let port = address.port();
        let socket = bind().map_err(|error| GossipError::Port { port, error })?;
        let kept = options.state.join(format!("{}.records", options.node));
        let Identity { key, incarnation } = Identity::next(&options.state, &options.node)?;
        let engine = Options {
            keys: key_file.ring(&cluster),
            cluster: cluster.clone(),
            member: Member {
                name: options.node,
                address,
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
        restore(&mut engine, &kept);
        engine.announce(options.announcement, Duration::ZERO)?;
        let (send_request, requests) = mpsc::channel(16);
        let (records, watched) = watch::channel(Vec::new());
        Ok(Self {
            engine,
            cluster,
            key_file,
            socket,
            start: Instant::now(),
            peers: options.peers,
            kept,
            keep_at: Instant::now() + KEEP_AGAIN,
            keeping: None,
            peers_changed: false,
            requests,
            handle: GossipHandle {
                requests: send_request,
                records: watched,
            },
            records,
            log: Log::default(),
            refused: HashMap::new(),
            records_refused: 0,
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
        let mut resolving: Option<Resolving> = Some(resolve(self.peers.clone()));
        let mut resolve_at = Instant::now() + RESOLVE_INTERVAL;
        self.settle();
        loop {
            let wake = self
                .engine
                .next_at()
                .map_or(resolve_at, |at| self.start + at);
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    self.receive(received, &mut buffer);
                    for _ in 0..BATCH {
                        let Ok(next) = self.socket.try_recv_from(&mut buffer) else { break };
                        self.receive(Ok(next), &mut buffer);
                    }
                }
                () = tokio::time::sleep_until(wake.min(resolve_at).min(self.keep_at).into()) => {
                    if Instant::now() >= resolve_at {
                        resolve_at = Instant::now() + RESOLVE_INTERVAL;
                        resolving = resolving.or_else(|| Some(resolve(self.peers.clone())));
                    }
                }
                resolved = done(&mut resolving) => {
                    resolving = None;
                    if resolved.missing && self.engine.members_count() == 0 {
                        resolve_at = resolve_at.min(Instant::now() + RESOLVE_ALONE);
                    }
                    self.engine.set_seeds(resolved.seeds);
                }
                Some(request) = self.requests.recv() => self.answer(request),
            }
            if std::mem::take(&mut self.peers_changed) {
                // What was being looked up is of the old list.
                resolving = Some(resolve(self.peers.clone()));
                resolve_at = Instant::now() + RESOLVE_INTERVAL;
            }
            if Instant::now() >= self.keep_at {
                self.keep();
            }
            let now = self.now();
            self.engine.wake(now);
            self.settle();
        }
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
        let Some(bytes) = kept::file(self.engine.to_keep(), seconds()) else {
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
                (self.peers, self.peers_changed) = (peers, true);
                let _ = reply.send(());
            }
            Request::Keys(change, reply) => {
                let _ = reply.send(self.change_keys(&change));
            }
            Request::Announce(announcement, reply) => {
                let now = self.now();
                let _ = reply.send(self.engine.announce(announcement, now));
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
        let mut refused: Vec<_> = self.refused.iter().map(|(r, n)| (*r, *n)).collect();
        refused.sort_unstable();
        let records = self.engine.store().nodes().map(|(record, since)| Known {
            record,
            since: self.start + since,
        });
        GossipStatus {
            me: self.engine.member().clone(),
            members: self.engine.members().cloned().collect(),
            records: records.collect(),
            refused,
            records_refused: self.records_refused,
            yielded: self.yielded.clone(),
        }
    }

    /// Sends what is to be sent, and tells what has happened.
    fn settle(&mut self) {
        for (to, datagram) in self.engine.take_datagrams() {
            // What the socket does not take now is lost, as on the way.
            let _ = self.socket.try_send_to(&datagram, to);
        }
        let mut changed = false;
        for event in self.engine.take_events() {
            changed |= matches!(event, Event::Record(_));
            self.tell(event);
        }
        if changed {
            let records = self.engine.store().nodes().map(|(record, _)| record);
            self.records.send_replace(records.collect());
            self.keep_at = self.keep_at.min(Instant::now() + KEEP_AFTER);
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
            Event::RecordRefused { from, why } => {
                self.records_refused += 1;
                if self.log.may(from.ip(), now) {
                    warn!(%from, "a node's record was not taken: {why}");
                }
            }
            Event::Yielded { to } => {
                tracing::error!(address = %to.address, "another node has this one's name; this one announces nothing until it is restarted under another");
                self.yielded = Some(to);
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
        Ok(records) if records.is_empty() => {}
        Ok(records) => {
            let taken = engine.restore(&records, Duration::ZERO);
            info!(
                taken,
                of = records.len(),
                "took what other nodes said before this start"
            );
        }
        Err(error) => {
            warn!(file = %path.display(), "what other nodes said before this start is not used: {error}");
        }
    }
}

/// Looks all peers up; those that have no address now are left out.
fn resolve(peers: Vec<(String, u16)>) -> Resolving {
    Box::pin(async move {
        let (mut seeds, mut missing) = (Vec::new(), false);
        for (host, port) in peers {
            match lookup_host((&host[..], port)).await {
                Ok(found) => seeds.extend(found),
                Err(error) => {
                    missing = true;
                    debug!(host, %error, "a gossip peer has no address");
                }
            }
        }
        Resolved { seeds, missing }
    })
}

/// Never, when nothing is looked up.
async fn done(resolving: &mut Option<Resolving>) -> Resolved {
    match resolving {
        Some(resolving) => resolving.await,
        None => std::future::pending().await,
    }
}
