//! Gossip as the configuration wants it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use viaduct_config::{Config, GossipConfig, NetworkConfig, Trust as TrustConfig};
use viaduct_control::OwnAddresses;
use viaduct_control::gossip::{
    Announcement, Certificate, Claim, Delegation, Detection, Gossip, GossipOptions, NetworkPart,
    Trust, first_claimed, in_hexadecimal, own_key, public,
};

/// Starts gossip, if the configuration has it, for a node with these underlay addresses.
pub(crate) fn start(config: &Config, own: OwnAddresses) -> anyhow::Result<Option<Gossip>> {
    let Some(gossip) = &config.gossip else {
        return Ok(None);
    };
    let announcement = announcement(config, gossip, own, None)?;
    let started = Gossip::start(GossipOptions {
        node: config.node.name.clone(),
        port: gossip.port,
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
/// it is heard already. None, while there is no address.
pub(crate) fn announcement(
    config: &Config,
    gossip: &GossipConfig,
    own: OwnAddresses,
    heard: Option<IpAddr>,
) -> anyhow::Result<Option<Announcement>> {
    let vteps: Vec<_> = own.iter().collect();
    let first = match heard {
        Some(heard) => own.like(heard).unwrap_or(heard),
        None => match vteps.first() {
            Some(first) => *first,
            None => return Ok(None),
        },
    };
    let networks = config.networks.iter();
    let wanted: Vec<_> = networks
        .flat_map(|network| network.pod_prefixes.iter().map(|p| (network.vni, *p)))
        .collect();
    let since = first_claimed(&gossip.state, &config.node.name, &wanted)?;
    Ok(Some(Announcement {
        gossip: SocketAddr::new(first, gossip.port),
        networks: networks_of(config, &since),
        vteps,
    }))
}

fn networks_of(config: &Config, since: &BTreeMap<(u32, IpNet), u64>) -> Vec<NetworkPart> {
    let part = |(place, network): (usize, &NetworkConfig)| {
        // Also what was claimed before, and lies inside what is claimed now.
        let own = since.iter().filter(|((vni, _), _)| *vni == network.vni);
        let claim = |((_, prefix), since): (&(u32, IpNet), &u64)| Claim {
            prefix: *prefix,
            since: *since,
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
            mac6: network.vtep_mac6.0,
            prefixes: own.map(claim).collect(),
            moved: pods
                .flat_map(|p| &p.addresses)
                .map(|a| IpNet::from(*a))
                .collect(),
            delegated: delegated.collect(),
        }
    };
    config.networks.iter().enumerate().map(part).collect()
}
