//! What is wrong with this node, and what to do about it. The node is ready when nothing here says
//! that it is not.

use serde::Serialize;
use viaduct_control::gossip::GossipStatus;
use viaduct_control::sources::Source;
use viaduct_control::{PortState, RouteState};

use super::{View, health};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// What it is about: underlay, worker, prefix, entry, gossip, pod, route or kernel.
    pub(crate) subject: &'static str,
    /// What is wrong, as a sentence.
    pub(crate) text: String,
    /// What mends it: a command, or what to change.
    pub(crate) mend: Option<String>,
    /// Whether the node is not ready because of it.
    pub(crate) not_ready: bool,
}

impl Problem {
    /// One that keeps the node from being ready.
    pub(crate) fn serious(subject: &'static str, text: String, mend: Option<String>) -> Self {
        Self {
            subject,
            text,
            mend,
            not_ready: true,
        }
    }

    /// One beside which the node does its work.
    pub(crate) fn minor(subject: &'static str, text: String, mend: Option<String>) -> Self {
        Self {
            not_ready: false,
            ..Self::serious(subject, text, mend)
        }
    }
}

/// How many pods or routes are named; the rest is counted.
const NAMED: usize = 5;

/// All that is wrong, first what keeps the node from being ready.
pub(crate) fn problems(view: &View<'_>) -> Vec<Problem> {
    let mut all = health::problems(view);
    all.extend(underlay(view));
    all.extend(taken(view));
    all.extend(view.gossip.as_ref().and_then(yielded));
    all.extend(view.gossip.iter().flat_map(super::gossip::problems));
    all.extend(pods(view));
    all.extend(routes(view));
    all.extend(warned(view));
    let kernel = view.agent.slow_path.iter().flat_map(|path| &path.problems);
    all.extend(kernel.map(|text| Problem::minor("kernel", text.clone(), None)));
    all.sort_by_key(|problem| !problem.not_ready);
    all
}

fn underlay(view: &View<'_>) -> Vec<Problem> {
    let name = &view.config().underlay.interface;
    let why = view.agent.underlay_problem.iter();
    let text = |why: &String| format!("the underlay {name} cannot be used: {why}");
    why.map(|why| Problem::serious("underlay", text(why), None))
        .collect()
}

/// This node's own prefixes that others do not send here, and what was not learned.
fn taken(view: &View<'_>) -> Vec<Problem> {
    let state = view.state;
    let me = &view.config().node.name;
    let own = state.merged.refused.iter();
    let own = own.filter(|refused| refused.node == *me && !refused.notice);
    let mut all: Vec<_> = own
        .map(|refused| {
            let (what, why) = (&refused.what, &refused.why);
            let mend = refused.mend.clone();
            match refused.source {
                Source::Gossip => Problem::serious("prefix", format!("{what}: {why}"), mend),
                source => {
                    let text = format!("{what}, which {source} wants, is not used: {why}");
                    Problem::minor("entry", text, mend)
                }
            }
        })
        .collect();
    all.extend(state.unsaved.iter().map(|why| {
        let text =
            format!("what commands added ends with this daemon, and is not written down: {why}");
        let mend = "make room and the folder writable: it is tried again each second";
        Problem::minor("entry", text, Some(mend.to_owned()))
    }));
    all.extend(state.problem.iter().map(|why| {
        let text = format!("what other nodes say now is not used: {why}");
        Problem::serious("gossip", text, None)
    }));
    all
}

/// Another node has this one's name.
fn yielded(gossip: &GossipStatus) -> Option<Problem> {
    let other = gossip.yielded.as_ref()?;
    let text = format!(
        "the node at {} has this node's name: this one says nothing to the others",
        other.address
    );
    let mend = "give one of them another name ([node] name) and start it again";
    Some(Problem::serious("gossip", text, Some(mend.to_owned())))
}

fn pods(view: &View<'_>) -> Option<Problem> {
    let ports = &view.agent.ports;
    let down = ports.iter().filter_map(|pod| match &pod.state {
        PortState::Up => None,
        PortState::Down { reason } => Some(format!("{} ({}): {reason}", pod.name, pod.interface)),
    });
    summed("pod", "pods have no port at the workers", ports.len(), down)
}

fn routes(view: &View<'_>) -> Option<Problem> {
    let routes = &view.agent.routes;
    let down = routes.iter().filter_map(|route| match &route.state {
        RouteState::Resolved { .. } => None,
        RouteState::Unresolved { reason } => {
            Some(format!("{} by {}: {reason}", route.prefix, route.vtep))
        }
    });
    summed("route", "routes cannot be used", routes.len(), down)
}

/// Routes that are used, and of which something is wrong all the same.
fn warned(view: &View<'_>) -> Option<Problem> {
    let routes = &view.agent.routes;
    let warnings = routes.iter().filter_map(|route| match &route.state {
        RouteState::Resolved { warning, .. } => {
            let warning = warning.as_ref()?;
            Some(format!("{} by {}: {warning}", route.prefix, route.vtep))
        }
        RouteState::Unresolved { .. } => None,
    });
    summed("route", "routes have a fault", routes.len(), warnings)
}

/// Several of a kind, as one problem.
fn summed(
    subject: &'static str,
    what: &str,
    all: usize,
    down: impl Iterator<Item = String>,
) -> Option<Problem> {
    let down: Vec<_> = down.collect();
    if down.is_empty() {
        return None;
    }
    let more = if down.len() > NAMED { "; ..." } else { "" };
    let named = down.iter().take(NAMED).cloned().collect::<Vec<_>>();
    let text = format!("{} of {all} {what}: {}{more}", down.len(), named.join("; "));
    Some(Problem::minor(subject, text, None))
}
