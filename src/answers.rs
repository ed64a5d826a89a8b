//! What a request on the control socket means, and its answer. Reading waits for no change.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use viaduct_control::gossip::{self, GossipHandle, GossipStatus, KeyChange, KeyUse};
use viaduct_control::{PortState, StatusHandle};

use crate::announcer::ENDED;
use crate::desired::Kind;
use crate::orchestrator::{OrchestratorHandle, State, Wish};
use crate::origins;
use crate::plane::SharedRouter;
use crate::report::{self, View};

/// Answers clients; each has a copy.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) router: SharedRouter,
    pub(crate) agent: StatusHandle,
    pub(crate) orchestrator: OrchestratorHandle,
    /// None when the configuration has no `[gossip]`.
    pub(crate) gossip: Option<GossipHandle>,
    pub(crate) started: Instant,
}

/// How long a node that has just started is not ready for want of routes. Later it may be that there are no other nodes.
const LEARN: Duration = Duration::from_secs(10);

impl Answers {
    /// The answer to a request: an object, with `error` when it was refused.
    pub(crate) async fn answer(self, request: String) -> Value {
        let answer = self.answer_to(&request).await;
        answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }))
    }

    async fn answer_to(&self, request: &str) -> anyhow::Result<Value> {
        let state = self.orchestrator.state();
        match request {
            "status" => {
                let mut view = self.view(&state);
                view.gossip = self.gossip_status().await;
                return Ok(report::status(&view));
            }
            "ports" => return Ok(report::ports(&self.view(&state))),
            "routes" => return Ok(self.routes(&state).await),
            "drops" => return Ok(report::drops(&self.view(&state))),
            "peers" => return self.peers(&state).await,
            "leave" => {
                self.gossip()?.leave().await;
                return Ok(done());
            }
            "key list" => return self.keys(KeyChange::List).await,
            _ => {}
        }
        if let Some(prefix) = request.strip_prefix("routes ") {
            let asked = origins::asked(prefix)?;
            let mut routes = self.routes(&state).await;
            origins::select(&mut routes, asked, state.desired.config(), &state.merged);
            return Ok(routes);
        }
        if let Some(change) = request.strip_prefix("key ") {
            return self.keys(key_change(change)?).await;
        }
        if let Some(name) = request.strip_prefix("forget ") {
            let forgotten = self.gossip()?.forget(name).await.context(ENDED)?;
            forgotten.with_context(|| format!("{name} is not forgotten"))?;
            return Ok(done());
        }
        let wish = wish(request)?;
        let pod = added_pod(&wish);
        self.orchestrator.change(wish).await?;
        let mut reply = done();
        reply["problem"] = pod.and_then(|pod| self.problem_of(&pod)).into();
        Ok(reply)
    }

    /// Why the workers do not carry a pod, if they do not.
    fn problem_of(&self, pod: &str) -> Option<String> {
        let status = self.agent.get();
        let port = status.ports.iter().find(|port| port.name == pod)?;
        match &port.state {
            PortState::Up => None,
            PortState::Down { reason } => Some(format!(
                "the workers do not carry {} ({}) yet: {reason}",
                port.name, port.interface
            )),
        }
    }

    fn view<'a>(&'a self, state: &'a State) -> View<'a> {
        View {
            state,
            router: &self.router,
            agent: self.agent.get(),
            gossip: None,
            learning: self.learning(state),
        }
    }

    /// Whether this node has just started and has not heard of any route that it could hear of.
    fn learning(&self, state: &State) -> bool {
        let gossip = state.desired.config().gossip.as_ref();
        gossip.is_some_and(|gossip| !gossip.peers.is_empty())
            && state
                .merged
                .wanted
                .origins
                .iter()
                .all(|it| it.node.is_none())
            && self.started.elapsed() < LEARN
    }

    fn gossip(&self) -> anyhow::Result<&GossipHandle> {
        let gossip = self.gossip.as_ref();
        gossip.context("this node does not gossip: its configuration has no [gossip]")
    }

    async fn gossip_status(&self) -> Option<GossipStatus> {
        match &self.gossip {
            Some(gossip) => gossip.status().await,
            None => None,
        }
    }

    async fn peers(&self, state: &State) -> anyhow::Result<Value> {
        let status = self.gossip()?.status().await;
        Ok(report::peers(&status.context(ENDED)?, &state.merged))
    }

    async fn routes(&self, state: &State) -> Value {
        let mut routes = report::routes(&self.view(state));
        let status = self.gossip_status().await;
        origins::annotate(
            &mut routes,
            state.desired.config(),
            &state.merged,
            status.as_ref(),
        );
        routes
    }

    async fn keys(&self, change: KeyChange) -> anyhow::Result<Value> {
        let keys = self.gossip()?.keys(change).await.context(ENDED)??;
        let key = |key: &KeyUse| json!({ "id": gossip::spoken(key.id), "used": key.used, "heard_s": key.heard_s });
        Ok(json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }))
    }
}

fn done() -> Value {
    json!({ "done": true })
}

/// The name of the pod that a change adds.
fn added_pod(wish: &Wish) -> Option<String> {
    let Wish::Add(Kind::Port, entry) = wish else {
        return None;
    };
    let name = entry["name"].as_str().or(entry["interface"].as_str());
    name.map(str::to_owned)
}

/// `add KEY`, `use ID` or `remove ID`.
fn key_change(words: &str) -> anyhow::Result<KeyChange> {
    let (what, which) = words.split_once(' ').unwrap_or((words, ""));
    let id = || {
        let id = gossip::key_id(which);
        id.with_context(|| format!("{which:?} is no key's id: 8 hexadecimal digits"))
    };
    Ok(match what {
        "add" => KeyChange::Add(
            gossip::hexadecimal(which).context("it is no key: 64 hexadecimal digits")?,
        ),
        "use" => KeyChange::Use(id()?),
        "remove" => KeyChange::Remove(id()?),
        _ => anyhow::bail!("unknown request"),
    })
}

/// A change, asked for as an object: `{"add": "port", "entry": {...}}` or
/// `{"del": "port", "key": "..."}`; "route" likewise.
fn wish(request: &str) -> anyhow::Result<Wish> {
    let unknown = || format!("unknown request {request:?}");
    let request: Value = serde_json::from_str(request).with_context(unknown)?;
    let kind = |of: &str| match request[of].as_str() {
        Some("port") => Some(Kind::Port),
        Some("route") => Some(Kind::Route),
        _ => None,
    };
    match (kind("add"), kind("del"), request["key"].as_str()) {
        (Some(kind), None, _) => Ok(Wish::Add(kind, request["entry"].clone())),
        (None, Some(kind), Some(key)) => Ok(Wish::Remove(kind, key.to_owned())),
        _ => anyhow::bail!(unknown()),
    }
}
