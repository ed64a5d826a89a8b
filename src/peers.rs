//! Gossip as the configuration wants it, and what it says for people and programs.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use viaduct_config::Config;
use viaduct_control::OwnAddresses;
use viaduct_control::gossip::{
    Content, Detection, Gossip, GossipOptions, GossipStatus, Known, NetworkPart,
};

use crate::learned::Learned;

/// Starts gossip, if the configuration has it, for a node with these underlay addresses.
pub(crate) fn start(config: &Config, own: OwnAddresses) -> anyhow::Result<Option<Gossip>> {
    let Some(gossip) = &config.gossip else {
        return Ok(None);
    };
    let vteps: Vec<_> = own.iter().collect();
    let first = vteps.first().context("the underlay has no address")?;
    let address = SocketAddr::new(*first, gossip.port);
    let networks = config.networks.iter().map(|network| NetworkPart {
        vni: network.vni,
        port: network.port,
        mac: network.vtep_mac.0,
        prefixes: network.pod_prefixes.clone(),
    });
    let content = Content::Here {
        gossip: address,
        networks: networks.collect(),
        vteps,
    };
    let started = Gossip::start(GossipOptions {
        node: config.node.name.clone(),
        address,
        cluster: gossip.cluster.clone(),
        key_file: gossip.key_file.clone(),
        state: gossip.state.clone(),
        peers: gossip.peers.clone(),
        detection: Detection {
            probe_interval: gossip.detection.probe_interval,
            probe_timeout: gossip.detection.probe_timeout,
            suspicion: gossip.detection.suspicion,
        },
        content,
    });
    Ok(Some(started?))
}

/// Every node that is known, and what is not used of what they say.
pub(crate) fn report(status: &GossipStatus, learned: &Learned) -> Value {
    let now = Instant::now();
    let node = |known: &Known| {
        let record = &known.record;
        let mut members = status.members.iter();
        let member = members.find(|m| m.name == record.name && m.instance == record.instance);
        let (address, prefixes) = match &record.content {
            Content::Here {
                gossip, networks, ..
            } => {
                let prefixes = networks.iter().flat_map(|part| &part.prefixes);
                (
                    Some(gossip.to_string()),
                    prefixes.map(ToString::to_string).collect(),
                )
            }
            Content::Gone | Content::Forgotten => (None, Vec::new()),
        };
        let state = if record.content == Content::Gone {
            "gone"
        } else if record.content == Content::Forgotten {
            "forgotten"
        } else if record.name == status.me.name {
            "this node"
        } else if member.is_some() {
            "answers"
        } else {
            "silent"
        };
        let used = learned.nodes.contains(&record.name);
        json!({
            "node": record.name, "state": state, "address": address, "prefixes": prefixes,
            "incarnation": record.version.incarnation, "change": record.version.change,
            "known_for_s": now.duration_since(known.since).as_secs(), "used": used,
        })
    };
    let mut peers: Vec<Value> = status.records.iter().map(node).collect();
    peers.sort_by_key(|peer| peer["node"].to_string());
    let refused: serde_json::Map<_, _> = (status.refused.iter())
        .map(|(why, count)| (why.label().to_owned(), (*count).into()))
        .collect();
    json!({
        "peers": peers, "unused": learned.unused, "refused": refused,
        "records_refused": status.records_refused,
        "yielded_to": status.yielded.as_ref().map(|member| member.address.to_string()),
    })
}
