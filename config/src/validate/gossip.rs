//! `[gossip]`.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::host::path;
use super::values::{node_name, number, required};
use crate::model::{DEFAULT_GOSSIP_PORT, DetectionConfig, GossipConfig};
use crate::raw::{Gossip, Number};
use crate::source::Problems;

/// Where nothing else is said; memberlist's for a local network.
const USUAL_PROBE_INTERVAL: Duration = Duration::from_secs(1);
const USUAL_PROBE_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) fn gossip(
    raw: Option<&Spanned<Gossip>>,
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
    Some(GossipConfig {
        cluster: cluster.map_or_else(String::new, |(name, _)| name.to_owned()),
        key_file: path(raw.key_file.as_ref(), PathBuf::from("/"), problems),
        peers: found,
        port: port.unwrap_or(DEFAULT_GOSSIP_PORT),
        state: path(raw.state.as_ref(), "/var/lib/viaduct".into(), problems),
        detection: detection(raw, problems),
    })
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
        "{text:?} is no peer; write it like \"10.0.0.2:7946\", \"[2001:db8::2]:7946\" or \"node-b.example:7946\""
    );
    problems.report(at, message);
    None
}
