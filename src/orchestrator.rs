//! The one owner of what is wanted: the file's and the commands' pods and routes, and what other
//! nodes say. It makes one change at a time; whoever only reads has a copy and does not wait.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use viaduct_config::Config;
use viaduct_control::gossip::{GossipHandle, KeyChange, Nodes};
use viaduct_control::{AgentHandle, OwnAddresses, StatusHandle};

use crate::announcer::{Announcer, ENDED};
use crate::desired::{Change, Desired, Kind};
use crate::merged::Merged;
use crate::peers;

/// How long news of other nodes are gathered before they are taken.
const GATHER: Duration = Duration::from_millis(20);
/// How often the agent's status is looked at: the underlay's addresses, which others were told, and
/// pods' interfaces.
const FOLLOW: Duration = Duration::from_secs(1);
/// Changes that wait for the one being made.
const WAITING: usize = 64;

/// What is wanted now.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) desired: Arc<Desired>,
    pub(crate) merged: Arc<Merged>,
    /// Why what other nodes say now is not used, if it is not.
    pub(crate) problem: Option<Arc<str>>,
    /// Why what commands added is not written down, if it is not.
    pub(crate) unsaved: Option<Arc<str>>,
}

/// A change of this node's pods or routes.
pub(crate) enum Wish {
    /// One more; the object has the keys of `[[pods]]` or `[[routes]]`.
    Add(Kind, Value),
    /// One that was added is no longer wanted.
    Remove(Kind, String),
}

type Request = (Wish, oneshot::Sender<anyhow::Result<()>>);

/// Asks the orchestrator.
#[derive(Clone)]
pub(crate) struct OrchestratorHandle {
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<State>,
}

impl OrchestratorHandle {
    /// What is wanted now; a change that is being made is not in it yet.
    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Makes a change, after those that were asked for before.
    ///
    /// # Errors
    /// When it is refused: then nothing has changed.
    pub(crate) async fn change(&self, wish: Wish) -> anyhow::Result<()> {
        let stopping = "the router is stopping";
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send((wish, reply)).await;
        sent.ok().context(stopping)?;
        answer.await.context(stopping)?
    }
}

pub(crate) struct Orchestrator {
    state: State,
    published: watch::Sender<State>,
    requests: mpsc::Receiver<Request>,
    agent: AgentHandle,
    status: StatusHandle,
    announcer: Announcer,
    /// What other nodes say of themselves, if this one gossips.
    gossip: Option<(GossipHandle, watch::Receiver<Nodes>)>,
    hang_up: Signal,
}

impl Orchestrator {
    /// The agent was started with this wanted, with gossip, these underlay addresses, and what
    /// came of them. `hang_up` has been caught since the start began: a file that changed meanwhile is
    /// read again.
    pub(crate) fn new(
        desired: Desired,
        (status, agent): (StatusHandle, AgentHandle),
        gossip: Option<GossipHandle>,
        own: OwnAddresses,
        merged: Merged,
        hang_up: Signal,
    ) -> (Self, OrchestratorHandle) {
        let state = State {
            desired: Arc::new(desired),
            merged: Arc::new(merged),
            problem: None,
            unsaved: None,
        };
        let (published, reader) = watch::channel(state.clone());
        let (sender, requests) = mpsc::channel(WAITING);
        let orchestrator = Self {
            state,
            published,
            requests,
            agent,
            status,
            announcer: Announcer::new(gossip.clone(), own),
            gossip: gossip.map(|handle| {
                let nodes = handle.nodes();
                (handle, nodes)
            }),
            hang_up,
        };
        let handle = OrchestratorHandle {
            requests: sender,
            state: reader,
        };
        (orchestrator, handle)
    }

    /// Makes changes as they are asked for.
    pub(crate) async fn run(&mut self) -> Infallible {
        let mut status = tokio::time::interval(FOLLOW);
        loop {
            tokio::select! {
                Some((wish, reply)) = self.requests.recv() => {
                    let done = self.grant(wish).await;
                    // A client that has gone does not undo its change.
                    let _ = reply.send(done);
                }
                () = news(&mut self.gossip) => {
                    // A cluster that starts has many.
                    tokio::time::sleep(GATHER).await;
                    self.learn().await;
                }
                _ = status.tick() => self.follow_status().await,
                _ = self.hang_up.recv() => self.reload().await,
            }
        }
    }

    async fn grant(&mut self, wish: Wish) -> anyhow::Result<()> {
        let change = match wish {
            Wish::Add(kind, entry) => self.state.desired.with(kind, &entry).await?,
            Wish::Remove(kind, key) => self.state.desired.without(kind, &key)?,
        };
        // What commands added may not be had beside what is wanted already.
        let merged = self.merged_with(change.desired());
        if let Some(refused) = merged.newly_refused(&self.state.merged) {
            anyhow::bail!("{}: {}", refused.what, refused.why);
        }
        self.carry_out(change).await?;
        self.save();
        Ok(())
    }

    /// Writes down what commands added. What cannot be written is tried again, and is a problem
    /// until then: the change itself is made.
    fn save(&mut self) {
        let failed = self.state.desired.save().err();
        let unsaved = failed.map(|error| Arc::from(format!("{error:#}")));
        if unsaved == self.state.unsaved {
            return;
        }
        if let Some(why) = &unsaved {
            tracing::error!("what commands added ends with this daemon: {why}");
        } else {
            tracing::info!("what commands added is written down again");
        }
        self.state.unsaved = unsaved;
        self.published.send_replace(self.state.clone());
    }

    /// Reads the file again, and the cluster's keys.
    async fn reload(&mut self) {
        let done = match self.state.desired.reloaded() {
            Ok(change) => self.carry_out(change).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(error) => tracing::error!("the configuration was not read again: {error:#}"),
        }
        if let Err(error) = self.renew_certificate().await {
            tracing::error!("the node's certificate was not read again: {error:#}");
        }
        if let Some((gossip, _)) = &self.gossip {
            let keys = match gossip.keys(KeyChange::Reload).await {
                Some(keys) => keys.map_err(anyhow::Error::from),
                None => Err(anyhow::anyhow!(ENDED)),
            };
            if let Err(error) = keys {
                tracing::error!("the cluster's keys were not read again: {error:#}");
            }
        }
    }

    /// Shows the other nodes the certificate that the file holds now, if it is good for this node.
    async fn renew_certificate(&self) -> anyhow::Result<()> {
        let config = self.state.desired.config();
        let (Some((handle, _)), Some(gossip)) = (&self.gossip, &config.gossip) else {
            return Ok(());
        };
        let certificate = peers::certificate(config, gossip)?;
        let told = handle.set_certificate(certificate).await.context(ENDED)?;
        told.context("the certificate that the node had before stays in use")
    }

    async fn carry_out(&mut self, change: Change) -> anyhow::Result<()> {
        // First, what may be too much for others to take: then nothing has changed here.
        self.announcer.announce(change.config()).await?;
        let merged = self.merged_with(change.desired());
        if let Err(error) = self.reconfigure(&merged).await {
            self.announcer
                .announce_again(self.state.desired.config())
                .await;
            return Err(error);
        }
        let peers = |config: &Config| config.gossip.as_ref().map(|gossip| gossip.peers.clone());
        let (before, after) = (peers(self.state.desired.config()), peers(change.config()));
        self.state.desired = Arc::new(change.into_desired());
        self.take(merged);
        if let Some((gossip, _)) = &self.gossip
            && before != after
            && let Some(peers) = after
        {
            gossip.set_peers(peers).await.context(ENDED)?;
        }
        Ok(())
    }

    async fn follow_status(&mut self) {
        if self.state.unsaved.is_some() {
            self.save();
        }
        let status = self.status.get();
        if let Some(desired) = self.state.desired.with_interfaces(&status.ports).await {
            self.state.desired = Arc::new(desired);
            self.save();
            self.learn().await;
        }
        if self.announcer.follow(&status.underlay_addresses) {
            self.announcer
                .announce_again(self.state.desired.config())
                .await;
            self.learn().await;
        } else if self.state.problem.is_some() {
            self.learn().await;
        }
    }

    /// What the sources come to, were this what is wanted here.
    fn merged_with(&self, desired: &Desired) -> Merged {
        let nodes = self.gossip.as_ref().map(|(_, nodes)| nodes.borrow());
        let own = self.announcer.own();
        Merged::of(desired, own, nodes.as_deref())
    }

    async fn reconfigure(&self, merged: &Merged) -> anyhow::Result<()> {
        let wanted = merged.wanted.clone();
        Ok(self.agent.reconfigure(wanted.ports, wanted.routes).await?)
    }

    /// Takes what other nodes say now.
    async fn learn(&mut self) {
        let merged = self.merged_with(&self.state.desired);
        let again = self.state.problem.is_some();
        if merged == *self.state.merged && !again {
            return;
        }
        let same = merged.wanted == self.state.merged.wanted && !again;
        let done = if same {
            Ok(())
        } else {
            self.reconfigure(&merged).await
        };
        match done {
            Ok(()) => self.take(merged),
            Err(error) => self.not_learned(&format!("{error:#}")),
        }
    }

    /// What was learned before stays; it is tried again.
    fn not_learned(&mut self, why: &str) {
        if self.state.problem.as_deref() != Some(why) {
            tracing::error!("what other nodes say is not used: {why}");
            self.state.problem = Some(why.into());
            self.published.send_replace(self.state.clone());
        }
    }

    /// This is what has come about.
    fn take(&mut self, merged: Merged) {
        merged.log_news(&self.state.merged);
        self.state.merged = Arc::new(merged);
        self.state.problem = None;
        self.published.send_replace(self.state.clone());
    }
}

/// Waits until some node says something else; for ever, when nobody is asked.
async fn news(gossip: &mut Option<(GossipHandle, watch::Receiver<Nodes>)>) {
    let changed = match gossip {
        Some((_, nodes)) => nodes.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}
