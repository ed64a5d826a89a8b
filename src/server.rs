//! The control socket: a line asks, JSON answers. Also SIGHUP, which asks for the same kind of
//! thing: one change at a time.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use viaduct_config::Config;
use viaduct_control::gossip::{self, Announcement, GossipHandle, KeyChange, KeyUse, Record};
use viaduct_control::{AgentHandle, OwnAddresses, StatusHandle};

use crate::desired::{Change, Desired, Kind};
use crate::learned::{self, Learned};
use crate::options::{port_options, route_options};
use crate::origins;
use crate::peers;
use crate::plane::SharedRouter;
use crate::report::{self, View};

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what other nodes say is gathered before it is taken.
const GATHER: Duration = Duration::from_millis(20);
/// How often it is looked whether the underlay has other addresses, which others are told then.
const FOLLOW: Duration = Duration::from_secs(1);
const ENDED: &str = "gossip has ended";
const MAX_REQUEST: u64 = 64 << 10;

pub(crate) struct Server {
    listener: UnixListener,
    router: SharedRouter,
    agent: StatusHandle,
    desired: Desired,
    handle: AgentHandle,
    hang_up: Signal,
    /// What other nodes say of themselves, if anybody is asked.
    gossip: Option<(GossipHandle, watch::Receiver<Vec<Record>>)>,
    own: OwnAddresses,
    /// Where gossip is heard.
    heard: Option<IpAddr>,
    learned: Learned,
    /// What this node has said of itself, if it was said again since the start.
    said: Option<Announcement>,
}

impl Server {
    /// Listens where the configuration says. A socket of a dead router is
    /// replaced: the caller holds the lock.
    pub(crate) fn bind(
        config: &Config,
        router: SharedRouter,
        (agent, handle): (StatusHandle, AgentHandle),
        gossip: Option<GossipHandle>,
        own: OwnAddresses,
    ) -> anyhow::Result<Self> {
        let path = config.runtime.socket(&config.node.name);
        let doing = || format!("cannot listen on {}", path.display());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(doing),
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(doing)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
        Ok(Self {
            listener,
            router,
            agent,
            desired: Desired::new(config)?,
            handle,
            hang_up: signal(SignalKind::hangup()).context("cannot catch SIGHUP")?,
            gossip: gossip.map(|handle| {
                let records = handle.records();
                (handle, records)
            }),
            heard: own.iter().next(),
            own,
            learned: Learned::default(),
            said: None,
        })
    }

    pub(crate) async fn serve(&mut self) -> Infallible {
        let mut underlay = tokio::time::interval(FOLLOW);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => self.attend(stream).await,
                    Err(e) => {
                        tracing::warn!("cannot accept on the control socket: {e}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = news(&mut self.gossip) => {
                    // A cluster that starts has many.
                    tokio::time::sleep(GATHER).await;
                    self.learn().await;
                }
                _ = underlay.tick(), if self.gossip.is_some() => self.follow_underlay().await,
                _ = self.hang_up.recv() => {
                    let change = self.desired.reloaded();
                    match self.carry_out(change).await {
                        Ok(()) => tracing::info!("the configuration was read again"),
                        Err(error) => tracing::error!("the configuration was not read again: {error:#}"),
                    }
                    if self.gossip.is_some() && let Err(error) = self.keys(KeyChange::Reload).await {
                        tracing::error!("the cluster's keys were not read again: {error:#}");
                    }
                }
            }
        }
    }

    /// Clients are served one by one: an answer takes microseconds, a change milliseconds.
    async fn attend(&mut self, mut stream: UnixStream) {
        let (from, mut to) = stream.split();
        let mut request = String::new();
        let mut from = BufReader::new(from.take(MAX_REQUEST));
        let asked = tokio::time::timeout(PATIENCE, from.read_line(&mut request)).await;
        if !matches!(asked, Ok(Ok(_))) {
            tracing::debug!("a client of the control socket went away");
            return;
        }
        let mut reply = self.answer(request.trim()).await.to_string();
        reply.push('\n');
        let told = tokio::time::timeout(PATIENCE, to.write_all(reply.as_bytes())).await;
        if !matches!(told, Ok(Ok(()))) {
            tracing::debug!("a client of the control socket did not wait for its answer");
        }
    }

    async fn answer(&mut self, request: &str) -> Value {
        match request {
            "status" => {
                let mut status = report::status(&self.view());
                status["not_used"] = self.learned.unused.len().into();
                return status;
            }
            "ports" => return report::ports(&self.view()),
            "routes" => return self.routes().await,
            "drops" => return report::drops(&self.view()),
            "peers" => return answered(self.peers().await),
            "leave" => return answered(self.leave().await),
            "key list" => return answered(self.keys(KeyChange::List).await),
            _ => {}
        }
        if let Some(prefix) = request.strip_prefix("routes ") {
            return answered(self.routes_about(prefix).await);
        }
        if let Some(change) = request.strip_prefix("key ") {
            return answered(self.change_keys(change).await);
        }
        let done = if let Some(name) = request.strip_prefix("forget ") {
            self.forget(name).await
        } else {
            let change = self.requested(request);
            self.carry_out(change).await
        };
        match done {
            Ok(()) => json!({ "done": true }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        }
    }

    fn gossip(&self) -> anyhow::Result<&GossipHandle> {
        let gossip = self.gossip.as_ref().map(|(handle, _)| handle);
        gossip.context("this node does not gossip: its configuration has no [gossip]")
    }

    async fn peers(&self) -> anyhow::Result<Value> {
        let status = self.gossip()?.status().await;
        Ok(peers::report(&status.context(ENDED)?, &self.learned))
    }

    async fn routes(&self) -> Value {
        let mut routes = report::routes(&self.view());
        let status = match &self.gossip {
            Some((handle, _)) => handle.status().await,
            None => None,
        };
        origins::annotate(&mut routes, &self.desired, &self.learned, status.as_ref());
        routes
    }

    async fn routes_about(&self, prefix: &str) -> anyhow::Result<Value> {
        let asked = origins::asked(prefix)?;
        let mut routes = self.routes().await;
        origins::select(&mut routes, asked, self.desired.config(), &self.learned);
        Ok(routes)
    }

    async fn leave(&self) -> anyhow::Result<Value> {
        self.gossip()?.leave().await;
        Ok(json!({ "done": true }))
    }

    async fn forget(&self, name: &str) -> anyhow::Result<()> {
        let forgotten = self.gossip()?.forget(name).await.context(ENDED)?;
        forgotten.with_context(|| format!("{name} is not forgotten"))
    }

    /// `add KEY`, `use ID` or `remove ID`.
    async fn change_keys(&self, words: &str) -> anyhow::Result<Value> {
        let (what, which) = words.split_once(' ').unwrap_or((words, ""));
        let id = || {
            let id = gossip::key_id(which);
            id.with_context(|| format!("{which:?} is no key's id: 8 hexadecimal digits"))
        };
        let change = match what {
            "add" => KeyChange::Add(
                gossip::hexadecimal(which).context("it is no key: 64 hexadecimal digits")?,
            ),
            "use" => KeyChange::Use(id()?),
            "remove" => KeyChange::Remove(id()?),
            _ => anyhow::bail!("unknown request"),
        };
        self.keys(change).await
    }

    async fn keys(&self, change: KeyChange) -> anyhow::Result<Value> {
        let keys = self.gossip()?.keys(change).await.context(ENDED)??;
        let key = |key: &KeyUse| json!({ "id": gossip::spoken(key.id), "used": key.used, "heard_s": key.heard_s });
        Ok(json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }))
    }

    fn view(&self) -> View<'_> {
        View {
            config: self.desired.config(),
            router: &self.router,
            agent: self.agent.get(),
        }
    }

    /// A change, asked for as an object: `{"add": "port", "entry": {...}}` or
    /// `{"del": "port", "key": "..."}`; "route" likewise.
    fn requested(&self, request: &str) -> anyhow::Result<Change> {
        let unknown = || format!("unknown request {request:?}");
        let request: Value = serde_json::from_str(request).with_context(unknown)?;
        let kind = |of: &str| match request[of].as_str() {
            Some("port") => Some(Kind::Port),
            Some("route") => Some(Kind::Route),
            _ => None,
        };
        match (kind("add"), kind("del"), request["key"].as_str()) {
            (Some(kind), None, _) => self.desired.with(kind, &request["entry"]),
            (None, Some(kind), Some(key)) => self.desired.without(kind, key),
            _ => anyhow::bail!(unknown()),
        }
    }

    async fn carry_out(&mut self, change: anyhow::Result<Change>) -> anyhow::Result<()> {
        let change = change?;
        // First, what may be too much for others to take: then nothing has changed here.
        self.announce(self.announcement(change.config())?).await?;
        let learned = self.learned_with(change.config());
        if let Err(error) = self.reconfigure(change.config(), &learned).await {
            self.announce_again().await;
            return Err(error);
        }
        let peers = |config: &Config| config.gossip.as_ref().map(|gossip| gossip.peers.clone());
        let (before, after) = (peers(self.desired.config()), peers(change.config()));
        self.desired.carry_out(change);
        self.warn_of_unused(&learned);
        self.learned = learned;
        if before != after
            && let Some(peers) = after
        {
            self.gossip()?.set_peers(peers).await.context(ENDED)?;
        }
        Ok(())
    }

    /// What a node of this configuration says to others, if it does.
    fn announcement(&self, config: &Config) -> anyhow::Result<Option<Announcement>> {
        let gossip = config.gossip.as_ref();
        let said = gossip.map(|gossip| peers::announcement(config, gossip, self.own, self.heard));
        said.transpose()
    }

    /// Says it, when it is not what was said last: pods may have moved here, or away.
    async fn announce(&mut self, said: Option<Announcement>) -> anyhow::Result<()> {
        let (Some((handle, _)), Some(said)) = (&self.gossip, said) else {
            return Ok(());
        };
        if self.said.as_ref() != Some(&said) {
            let announced = handle.announce(said.clone()).await.context(ENDED)?;
            announced.context("cannot announce this node")?;
            self.heard = Some(said.gossip.ip());
            self.said = Some(said);
        }
        Ok(())
    }

    /// Says what this node is by the configuration that it has, which others took before.
    async fn announce_again(&mut self) {
        let told = match self.announcement(self.desired.config()) {
            Ok(said) => self.announce(said).await,
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::error!("other nodes are not told what this one is now: {error:#}");
        }
    }

    async fn follow_underlay(&mut self) {
        let there = self.agent.get().underlay_addresses.clone();
        let own = OwnAddresses::choose(OwnAddresses::default(), self.own, &there);
        // One without any is down, and others need not know.
        if own == self.own || there.is_empty() {
            return;
        }
        self.own = own;
        tracing::info!(addresses = ?there, "the underlay's addresses have changed");
        self.announce_again().await;
        self.learn().await;
    }

    fn learned_with(&self, config: &Config) -> Learned {
        let records = self.gossip.as_ref().map(|(_, records)| records.borrow());
        records.map_or_else(Learned::default, |records| {
            learned::learn(config, self.own, &records)
        })
    }

    async fn reconfigure(&self, config: &Config, learned: &Learned) -> anyhow::Result<()> {
        let mut routes = route_options(config);
        routes.extend_from_slice(&learned.routes);
        Ok(self
            .handle
            .reconfigure(port_options(config), routes)
            .await?)
    }

    /// Says what is not used that was used so far, or was not said.
    fn warn_of_unused(&self, learned: &Learned) {
        for unused in &learned.unused {
            if !self.learned.unused.contains(unused) {
                let (node, what) = (&unused.node, &unused.what);
                tracing::warn!(node, what, "not used: {}", unused.why);
            }
        }
    }

    /// Takes what other nodes say now.
    async fn learn(&mut self) {
        let learned = self.learned_with(self.desired.config());
        if learned == self.learned {
            return;
        }
        self.warn_of_unused(&learned);
        match self.reconfigure(self.desired.config(), &learned).await {
            Ok(()) => self.learned = learned,
            Err(error) => tracing::error!("what other nodes say was not taken: {error:#}"),
        }
    }
}

fn answered(result: anyhow::Result<Value>) -> Value {
    result.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }))
}

/// Waits until some node says something else; for ever, when nobody is asked.
async fn news(gossip: &mut Option<(GossipHandle, watch::Receiver<Vec<Record>>)>) {
    let changed = match gossip {
        Some((_, records)) => records.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}
