//! Gossip as the configuration wants it, and what it says for people and programs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};
use viaduct_config::{Config, GossipConfig, NetworkConfig, Trust as TrustConfig};
use viaduct_control::OwnAddresses;
use viaduct_control::gossip::{
    Announcement, Certificate, Claim, Content, Delegation, Detection, Gossip, GossipOptions,
    GossipStatus, Known, NetworkPart, Trust, first_claimed, in_hexadecimal, own_key, public,
};

use crate::learned::Learned;

/// Starts gossip, if the configuration has it, for a node with these underlay addresses.
pub(crate) fn start(config: &Config, own: OwnAddresses) -> anyhow::Result<Option<Gossip>> {
    let Some(gossip) = &config.gossip else {
        return Ok(None);
    };
    let announcement = announcement(config, gossip, own, None)?;
    let started = Gossip::start(GossipOptions {
        node: config.node.name.clone(),
        address: announcement.gossip,
        cluster: gossip.cluster.clone(),
        key_file: gossip.key_file.clone(),
        state: gossip.state.clone(),
        peers: gossip.peers.clone(),
        detection: Detection {
            probe_interval: gossip.detection.probe_interval,
            probe_timeout: gossip.detection.probe_timeout,
            suspicion: gossip.detection.suspicion,
        },
        certificate: certificate(config, gossip)?,
        trust: trust(gossip),
        announcement,
    });
    Ok(Some(started?))
}

fn trust(gossip: &GossipConfig) -> Trust {
    match &gossip.trust {
        TrustConfig::FirstSight => Trust::FirstSight,
        TrustConfig::Configured => {
            let keys = gossip.nodes.iter();
            Trust::Configured(
                keys.filter_map(|n| Some((n.name.clone(), n.key?)))
                    .collect(),
            )
        }
        TrustConfig::Authority { key, .. } => Trust::Authority(*key),
    }
}

/// What the authority says of this node; what is wrong with it would be said by all others, later.
///
/// # Errors
/// When there has to be one and it is missing, or is not for this node.
pub(crate) fn certificate(
    config: &Config,
    gossip: &GossipConfig,
) -> anyhow::Result<Option<Certificate>> {
    let name = &config.node.name;
    let key = || Ok::<_, anyhow::Error>(public(&own_key(&gossip.state, name)?));
    match &gossip.trust {
        TrustConfig::FirstSight => Ok(None),
        TrustConfig::Configured => {
            let mut nodes = gossip.nodes.iter();
            let known = nodes.find(|node| node.name == *name).and_then(|n| n.key);
            let key = key()?;
            ensure!(
                known == Some(key),
                "[[gossip.nodes]] has to have this node: name = {name:?}, key = \"{}\"",
                in_hexadecimal(&key)
            );
            Ok(None)
        }
        TrustConfig::Authority {
            key: authority,
            certificate,
        } => {
            let file = certificate.display();
            let help = "make one from what `viaduct identity` says with `viaduct authority sign`";
            let text = fs::read_to_string(certificate);
            let text = text.with_context(|| format!("cannot read {file}; {help}"))?;
            let found = Certificate::from_text(&text).with_context(|| file.to_string())?;
            ensure!(
                found.claim.name == *name && found.claim.key == key()?,
                "{file} is for another node or key than this one's; {help}"
            );
            ensure!(
                found.is_of(authority, &gossip.cluster),
                "{file} was not signed by the authority that is configured, or for another cluster; {help}"
            );
            Ok(Some(found))
        }
    }
}

/// What this node, with these underlay addresses, says of itself. Gossip stays in the family in which
/// it is heard already.
pub(crate) fn announcement(
    config: &Config,
    gossip: &GossipConfig,
    own: OwnAddresses,
    heard: Option<IpAddr>,
) -> anyhow::Result<Announcement> {
    let vteps: Vec<_> = own.iter().collect();
    let first = match heard {
        Some(heard) => own.like(heard).unwrap_or(heard),
        None => *vteps.first().context("the underlay has no address")?,
    };
    let networks = config.networks.iter();
    let wanted: Vec<_> = networks
        .flat_map(|network| network.pod_prefixes.iter().map(|p| (network.vni, *p)))
        .collect();
    let since = first_claimed(&gossip.state, &config.node.name, &wanted)?;
    Ok(Announcement {
        gossip: SocketAddr::new(first, gossip.port),
        networks: networks_of(config, &since),
        vteps,
    })
}

fn networks_of(config: &Config, since: &BTreeMap<(u32, IpNet), u64>) -> Vec<NetworkPart> {
    let part = |(place, network): (usize, &NetworkConfig)| {
        let claim = |prefix: &IpNet| Claim {
            prefix: *prefix,
            since: since.get(&(network.vni, *prefix)).copied().unwrap_or(0),
        };
        let pods = config.pods.iter().filter(|p| p.moved && p.network == place);
        let delegated = config.delegations.iter().filter(|d| d.network == place);
        let delegated = delegated.map(|d| Delegation {
            prefix: d.prefix,
            to: d.node.clone(),
        });
        NetworkPart {
            vni: network.vni,
            port: network.port,
            mac: network.vtep_mac.0,
            prefixes: network.pod_prefixes.iter().map(claim).collect(),
            moved: pods
                .flat_map(|p| &p.addresses)
                .map(|a| IpNet::from(*a))
                .collect(),
            delegated: delegated.collect(),
        }
    };
    config.networks.iter().enumerate().map(part).collect()
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
