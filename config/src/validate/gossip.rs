//! `[gossip]`.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use ipnet::IpNet;
use toml::Spanned;

use super::host::path;
use super::prefix;
use super::values::{Once, choice, missing, node_name, number, required};
use crate::model::{DEFAULT_GOSSIP_PORT, DetectionConfig, GossipConfig, GossipNode, Trust};
use crate::raw::{Gossip, List, Number, Text};
use crate::source::Problems;

/// Where nothing else is said; memberlist's for a local network.
const USUAL_PROBE_INTERVAL: Duration = Duration::from_secs(1);
const USUAL_PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// The words for [`Trust`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum TrustWord {
    #[default]
    FirstSight,
    Configured,
    Authority,
}

pub(super) fn gossip(
    raw: Option<&Spanned<Gossip>>,
    node: &str,
    problems: &mut Problems<'_>,
) -> Option<GossipConfig> {
    let raw = raw?;
    let (at, raw) = (raw.span(), raw.get_ref());
    let cluster = required(
        raw.cluster.as_ref(),
        &at,
        "cluster = \"production\"",
        problems,
    );
    let cluster = cluster.filter(|(name, at)| node_name(name, at, problems));
    required(
        raw.key_file.as_ref(),
        &at,
        "key_file = \"/etc/viaduct/gossip.key\"",
        problems,
    );
    let peers = raw.peers.iter().flat_map(Spanned::get_ref);
    let port = number(raw.port.as_ref(), "port", &(1..=u16::MAX), problems);
    let mut found = Vec::new();
    for text in peers {
        found.extend(peer(text.get_ref(), &text.span(), problems));
    }
    let state = path(raw.state.as_ref(), "/var/lib/viaduct".into(), problems);
    let trust = trust(raw, &at, (node, &state), problems);
    Some(GossipConfig {
        nodes: nodes(&raw.nodes, trust == Trust::Configured, problems),
        trust,
        allowed_prefixes: prefixes(raw.allowed_prefixes.as_ref(), problems),
        allowed_addresses: addresses(raw.allowed_addresses.as_ref(), problems).unwrap_or_default(),
        detection: detection(raw, problems),
        cluster: cluster.map_or_else(String::new, |(name, _)| name.to_owned()),
        key_file: path(raw.key_file.as_ref(), PathBuf::from("/"), problems),
        peers: found,
        port: port.unwrap_or(DEFAULT_GOSSIP_PORT),
        state,
    })
}

fn trust(
    raw: &Gossip,
    at: &Range<usize>,
    (node, state): (&str, &Path),
    problems: &mut Problems<'_>,
) -> Trust {
    let words = [
        ("authority", TrustWord::Authority),
        ("configured", TrustWord::Configured),
        ("first-sight", TrustWord::FirstSight),
    ];
    if raw.trust.is_none() {
        // Whoever takes the weaker way has to say so.
        let example = "trust = \"authority\" (or \"configured\"; or \"first-sight\", which believes whoever comes first with a name)";
        missing(at, example, problems);
    }
    let word = choice(raw.trust.as_ref(), "trust", &words, problems);
    if word != TrustWord::Authority {
        let needless = [&raw.authority, &raw.certificate];
        for text in needless.into_iter().flatten() {
            let message = "this is for trust = \"authority\" only; remove it, or change `trust`";
            problems.report(&text.span(), message.to_owned());
        }
    }
    match word {
        TrustWord::FirstSight => Trust::FirstSight,
        TrustWord::Configured => Trust::Configured,
        TrustWord::Authority => {
            if raw.authority.is_none() {
                missing(at, "authority = \"<64 hexadecimal digits>\"", problems);
            }
            let usual = state.join(format!("{node}.cert"));
            Trust::Authority {
                key: key(raw.authority.as_ref(), problems).unwrap_or_default(),
                certificate: path(raw.certificate.as_ref(), usual, problems),
            }
        }
    }
}

/// An Ed25519 public key.
fn key(text: Option<&Text>, problems: &mut Problems<'_>) -> Option<[u8; 32]> {
    let text = text?;
    let bytes = HEXLOWER_PERMISSIVE.decode(text.get_ref().as_bytes());
    let key = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    if key.is_none() {
        let message = format!(
            "{:?} is no public key: 64 hexadecimal digits, as `viaduct identity` and `viaduct authority new` say them",
            text.get_ref()
        );
        problems.report(&text.span(), message);
    }
    key
}

fn prefixes(list: Option<&List<String>>, problems: &mut Problems<'_>) -> Option<Vec<IpNet>> {
    let texts = list?.get_ref().iter();
    let found = texts.filter_map(|text| prefix::parse(text.get_ref(), &text.span(), problems));
    Some(found.collect())
}

/// Addresses, or prefixes of them.
fn addresses(list: Option<&List<String>>, problems: &mut Problems<'_>) -> Option<Vec<IpNet>> {
    let texts = list?.get_ref().iter();
    let found = texts.filter_map(|text| match text.get_ref().parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => prefix::parse(text.get_ref(), &text.span(), problems),
    });
    Some(found.collect())
}

fn nodes(
    raw: &[Spanned<crate::raw::GossipNode>],
    with_keys: bool,
    problems: &mut Problems<'_>,
) -> Vec<GossipNode> {
    let mut names = Once::default();
    let mut nodes = Vec::with_capacity(raw.len());
    for entry in raw {
        let (at, raw) = (entry.span(), entry.get_ref());
        let name = required(raw.name.as_ref(), &at, "name = \"node-b\"", problems);
        if let Some((name, at)) = &name
            && node_name(name, at, problems)
        {
            names.note(*name, &format_args!("node {name:?}"), at, problems);
        }
        if with_keys && raw.key.is_none() {
            missing(&at, "key = \"<64 hexadecimal digits>\"", problems);
        }
        nodes.push(GossipNode {
            name: name.map_or("", |(name, _)| name).to_owned(),
            key: key(raw.key.as_ref(), problems),
            allowed_prefixes: prefixes(raw.allowed_prefixes.as_ref(), problems),
            allowed_addresses: addresses(raw.allowed_addresses.as_ref(), problems),
        });
    }
    nodes
}

fn detection(raw: &Gossip, problems: &mut Problems<'_>) -> DetectionConfig {
    let mut time = |value: Option<&Number>, name: &str, most: u64| {
        let millis = number(value, name, &(50..=most), problems);
        millis.map(Duration::from_millis)
    };
    let detection = DetectionConfig {
        probe_interval: time(raw.probe_interval_ms.as_ref(), "probe_interval_ms", 60_000),
        probe_timeout: time(raw.probe_timeout_ms.as_ref(), "probe_timeout_ms", 30_000),
        suspicion: time(raw.suspicion_ms.as_ref(), "suspicion_ms", 600_000),
    };
    // Others are asked in what is left of the interval.
    let interval = detection.probe_interval.unwrap_or(USUAL_PROBE_INTERVAL);
    let usual = USUAL_PROBE_TIMEOUT.min(interval / 2);
    let timeout = detection.probe_timeout.unwrap_or(usual);
    if timeout > interval / 2
        && let Some(value) = &raw.probe_timeout_ms
    {
        let message = format!(
            "a probe cannot time out after {} ms, more than half of its interval of {} ms; change one",
            timeout.as_millis(),
            interval.as_millis()
        );
        problems.report(&value.span(), message);
    }
    detection
}

/// `host:port`, `address:port` or `[address]:port`; without a port, the usual one.
fn peer(text: &str, at: &Range<usize>, problems: &mut Problems<'_>) -> Option<(String, u16)> {
    let bare_v6 = text.parse::<Ipv6Addr>().is_ok();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !bare_v6 => (host, port.parse::<u16>().ok()),
        _ => (text, Some(DEFAULT_GOSSIP_PORT)),
    };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = bracketed.unwrap_or(host);
    let sign = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let named = !host.is_empty() && host.len() <= 253 && host.bytes().all(sign);
    let sound = if bracketed.is_some() {
        host.parse::<Ipv6Addr>().is_ok()
    } else {
        named || host.parse::<IpAddr>().is_ok()
    };
    let port = port.filter(|port| *port != 0);
    if let (true, Some(port)) = (sound, port) {
        return Some((host.to_owned(), port));
    }
    let message = format!(
        "{text:?} is no peer; write it like \"10.0.0.2:7950\", \"[2001:db8::2]:7950\" or \"node-b.example:7950\""
    );
    problems.report(at, message);
    None
}
