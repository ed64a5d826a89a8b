//! What gossip knows of the cluster's nodes, and what is wrong between them.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use viaduct_control::gossip::{
    Content, GossipStatus, Node, PeerStatus, RefusedStatus, StoreError, TrustError,
};

use super::problems::Problem;
use crate::merged::Merged;

/// How long a peer may take to answer before that is a problem.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every node that is known, and what is not used of what they say.
pub(crate) fn peers(status: &GossipStatus, merged: &Merged) -> Value {
    let now = Instant::now();
    let node = |known: &Node| {
        let record = &known.record;
        let (address, prefixes) = match &record.content {
            Content::Here {
                gossip, networks, ..
            } => {
                let prefixes = networks.iter().flat_map(|part| {
                    let claimed = part.prefixes.iter().map(|claim| &claim.prefix);
                    claimed.chain(&part.moved)
                });
                (
                    Some(gossip.to_string()),
                    prefixes.map(ToString::to_string).collect(),
                )
            }
            Content::More { .. } | Content::Gone | Content::Forgotten => (None, Vec::new()),
        };
        let state = if record.content == Content::Gone {
            "gone"
        } else if record.content == Content::Forgotten {
            "forgotten"
        } else if record.name == status.me.name {
            "this node"
        } else if key_changed(status, &record.name) {
            "key changed"
        } else if known.answers {
            "answers"
        } else {
            "silent"
        };
        let used = merged.uses(&record.name);
        json!({
            "node": record.name, "state": state, "address": address, "prefixes": prefixes,
            "incarnation": record.version.incarnation, "change": record.version.change,
            "known_for_s": now.saturating_duration_since(known.since).as_secs(), "used": used,
        })
    };
    let mut peers: Vec<Value> = status.nodes.values().map(|known| node(known)).collect();
    peers.sort_by_key(|peer| peer["node"].to_string());
    let Refused {
        datagrams,
        records,
        meanings,
    } = refused_by_reason(status);
    json!({
        "peers": peers, "problems": problems(status),
        "configured": configured(status), "unused": merged.refused, "refused": datagrams,
        "records_refused": records, "meanings": meanings,
        "yielded_to": status.yielded.as_ref().map(|member| member.address.to_string()),
    })
}

/// Counts by a reason's label, and one sentence for each label.
struct Refused {
    datagrams: Map<String, Value>,
    records: Map<String, Value>,
    meanings: Map<String, Value>,
}

fn refused_by_reason(status: &GossipStatus) -> Refused {
    let datagrams = status.refused.iter();
    let datagrams = datagrams.map(|(why, n)| (why.label(), why.to_string(), *n));
    let records = status.records_refused.iter();
    let records = records.map(|(why, n)| (why.label(), why.to_string(), *n));
    let mut meanings = Map::new();
    let mut counts = |rows: &mut dyn Iterator<Item = (&str, String, u64)>| {
        let mut counts = Map::new();
        for (label, why, count) in rows {
            counts.insert(label.to_owned(), count.into());
            meanings.insert(label.to_owned(), sentence(&why).into());
        }
        counts
    };
    Refused {
        datagrams: counts(&mut { datagrams }),
        records: counts(&mut { records }),
        meanings,
    }
}

/// A reason as errors say it, with a capital letter and a full stop.
fn sentence(why: &str) -> String {
    let mut letters = why.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).chain(['.']).collect()
}

/// The peers of the configuration, and whether they have ever answered.
fn configured(status: &GossipStatus) -> Vec<Value> {
    let now = Instant::now();
    let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
    let peer = |peer: &PeerStatus| {
        json!({
            "peer": spoken(peer), "addresses": peer.addresses,
            "heard_s": peer.heard.map(ago), "asked_for_s": ago(peer.since), "error": peer.error,
        })
    };
    status.configured.iter().map(peer).collect()
}

fn spoken(peer: &PeerStatus) -> String {
    if peer.host.contains(':') {
        format!("[{}]:{}", peer.host, peer.port)
    } else {
        format!("{}:{}", peer.host, peer.port)
    }
}

/// Whether a node of this name answers that has another key than the one that is known.
fn key_changed(status: &GossipStatus, name: &str) -> bool {
    let other_key = StoreError::Trust(TrustError::NotTheFirst);
    let mut refused = status.refused_records.iter();
    let known = status.nodes.get(name);
    known.is_some_and(|known| !known.answers)
        && refused.any(|refused| refused.node == name && refused.why == other_key)
}

/// What is wrong between this node and others.
pub(super) fn problems(status: &GossipStatus) -> Vec<Problem> {
    let port = status.problem.iter();
    let mut all: Vec<_> = port
        .map(|why| Problem::serious("gossip", why.clone(), None))
        .collect();
    all.extend(own_record(status));
    let silent = status.configured.iter();
    all.extend(silent.filter_map(|peer| never_answered(status, peer)));
    for way in &status.one_way {
        let text = format!(
            "{} is heard from {} and does not hear this node",
            way.node, way.from
        );
        let mend = format!(
            "open UDP port {} of {} for {}, in both directions",
            way.from.port(),
            way.node,
            status.me.address.ip()
        );
        all.push(Problem::minor("gossip", text, Some(mend)));
    }
    for (node, _) in &status.unrecorded {
        let text = format!("{node} answers, and its record does not come");
        let mend = "look for a firewall between the nodes that drops long datagrams";
        all.push(Problem::minor("gossip", text, Some(mend.to_owned())));
    }
    let me = &status.me.name;
    let others = status.refused_records.iter();
    let others = others.filter(|refused| refused.node != *me);
    all.extend(others.map(refused));
    all
}

/// Others do not take what this node says of itself.
fn own_record(status: &GossipStatus) -> Option<Problem> {
    let me = &status.me.name;
    let other_key = StoreError::Trust(TrustError::NotTheFirst);
    let held = status
        .refused_records
        .iter()
        .any(|r| r.node == *me && r.why == other_key);
    let (who, why) = match status.refused_by.first() {
        Some((who, why)) => (who.ip().to_string(), *why),
        None if held => ("others".to_owned(), other_key),
        None => return None,
    };
    let named = status
        .nodes
        .values()
        .find(|node| match node.record.content {
            Content::Here { gossip, .. } => gossip.ip().to_string() == who,
            _ => false,
        });
    let who = named.map_or(who, |node| node.record.name.clone());
    if why == other_key {
        let text =
            format!("this node's record is refused by {who}: it has another key for the name {me}");
        let mend = format!(
            "if this node was installed anew, run `viaduct forget {me}` on {who}, or on any other node"
        );
        return Some(Problem::serious("gossip", text, Some(mend)));
    }
    let text = format!("this node's record is refused by {who}: {why}");
    Some(Problem::serious("gossip", text, mend_of_own(why)))
}

/// What the operator of a node does whose record is refused for this reason.
fn mend_of_own(why: StoreError) -> Option<String> {
    let StoreError::Trust(why) = why else {
        return None;
    };
    Some(match why {
        TrustError::NoCertificate | TrustError::BadCertificate | TrustError::OldCertificate => {
            "run `viaduct authority sign` for what `viaduct identity` prints on this node, replace the certificate's \
             file, and send the router SIGHUP"
                .to_owned()
        }
        TrustError::UnknownNode | TrustError::OtherKey => {
            "run `viaduct identity` on this node, enter the name and key in [[gossip.nodes]] on the others, and restart them"
                .to_owned()
        }
        TrustError::NotTheFirst => return None,
    })
}

fn never_answered(status: &GossipStatus, peer: &PeerStatus) -> Option<Problem> {
    let asked = peer.since.elapsed();
    let answers = status
        .members
        .iter()
        .any(|m| peer.addresses.contains(&m.address));
    let own = peer.addresses.contains(&status.me.address);
    if peer.heard.is_some() || answers || own || asked < PATIENCE {
        return None;
    }
    let error = peer.error.as_ref().map(|error| format!(" ({error})"));
    let text = format!(
        "the configured peer {} has not answered for {} s{}",
        spoken(peer),
        asked.as_secs(),
        error.unwrap_or_default()
    );
    let mend = format!(
        "check that a node of this cluster listens there, and that UDP port {} is open in both directions; or change `peers`",
        peer.port
    );
    Some(Problem::minor("gossip", text, Some(mend)))
}

/// Another node's record.
fn refused(refused: &RefusedStatus) -> Problem {
    let RefusedStatus {
        node, from, why, ..
    } = refused;
    let text = format!("the record of {node} that {from} sends is not taken: {why}");
    let forget =
        || format!("if that node was installed anew, run `viaduct forget {node}` on any node");
    let mend = (*why == StoreError::Trust(TrustError::NotTheFirst)).then(forget);
    Problem::minor("gossip", text, mend)
}
