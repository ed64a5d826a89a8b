//! `[[networks]]`.

use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;

use super::prefix::{self, PrefixTable};
use super::values::{
    Once, dscp, label, mac, missing, number, required, required_list, udp_checksum6,
};
use crate::hint::did_you_mean;
use crate::mac::derive_vtep_mac;
use crate::model::{DEFAULT_UDP_PORT, NetworkConfig, UnderlayConfig};
use crate::raw::{List, Network, Text};
use crate::source::Problems;

/// A network, and its prefixes in a form that pods and routes are compared with.
pub(super) struct Checked {
    pub(super) network: NetworkConfig,
    /// Whether pods and routes can name it; a name that was reported may be the one that others mean.
    resolvable: bool,
    /// None when some pod prefix was reported: what is outside the others may be inside the one that was meant.
    pub(super) pod_prefixes: Option<PrefixTable<PodPrefix>>,
    /// None when some cluster prefix was reported.
    pub(super) cluster_prefixes: Option<PrefixTable<()>>,
}

/// What is known of one of this node's pod prefixes.
pub(super) struct PodPrefix {
    /// From 1; 0 when it is not known any more.
    pub(super) line: usize,
    /// The first of its family: its first address is the node's own in the overlay.
    pub(super) first: bool,
}

impl Checked {
    /// A network of a configuration that was checked before.
    pub(super) fn again(network: &NetworkConfig) -> Self {
        let mut pod_prefixes = PrefixTable::default();
        let mut families = Vec::new();
        for prefix in &network.pod_prefixes {
            let v4 = prefix.addr().is_ipv4();
            let first = !families.contains(&v4);
            families.push(v4);
            pod_prefixes.insert(*prefix, PodPrefix { line: 0, first });
        }
        let mut cluster_prefixes = PrefixTable::default();
        for prefix in &network.cluster_prefixes {
            cluster_prefixes.insert(*prefix, ());
        }
        Self {
            network: network.clone(),
            resolvable: true,
            pod_prefixes: Some(pod_prefixes),
            cluster_prefixes: Some(cluster_prefixes),
        }
    }
}

pub(super) fn networks(
    raw: &[Spanned<Network>],
    node: &str,
    underlay: &UnderlayConfig,
    problems: &mut Problems<'_>,
) -> Vec<Checked> {
    if raw.is_empty() {
        let message = "there is no [[networks]] table; add one with name, vni, pod_prefixes and cluster_prefixes";
        problems.report(&(0..0), message.into());
    }
    let mut names = Once::default();
    let mut vnis = Once::default();
    let mut checked = Vec::with_capacity(raw.len());
    for entry in raw {
        let at = entry.span();
        let raw = entry.get_ref();
        let name = required(raw.name.as_ref(), &at, "name = \"default\"", problems);
        let resolvable = name.as_ref().is_some_and(|(name, at)| {
            label(name, at, problems)
                && names.note(*name, &format_args!("network {name:?}"), at, problems)
        });
        // 24 bits (RFC 7348 section 5); 0 is what Linux keeps for devices without a VNI of their own (`external`).
        let vni = number(raw.vni.as_ref(), "vni", &(1..=0x00ff_ffff), problems);
        match (vni, &raw.vni) {
            (Some(vni), Some(text)) => {
                vnis.note(vni, &format_args!("VNI {vni}"), &text.span(), problems);
            }
            (_, None) => missing(&at, "vni = 1", problems),
            (None, Some(_)) => {}
        }
        let vni = vni.unwrap_or(0);
        let vtep_mac =
            mac(raw.vtep_mac.as_ref(), problems).unwrap_or_else(|| derive_vtep_mac(node, vni));
        let network = NetworkConfig {
            name: name.as_ref().map_or("", |(name, _)| name).to_owned(),
            vni,
            port: number(raw.port.as_ref(), "port", &(1..=u16::MAX), problems)
                .unwrap_or(DEFAULT_UDP_PORT),
            vtep_mac,
            vtep_mac6: mac(raw.vtep_mac6.as_ref(), problems).unwrap_or(vtep_mac),
            udp_checksum6: udp_checksum6(raw.udp_checksum6.as_ref(), problems).unwrap_or(true),
            dscp: dscp(raw.dscp.as_ref(), problems),
            pod_prefixes: Vec::new(),
            cluster_prefixes: Vec::new(),
            line: problems.line(&name.map_or(at.clone(), |(_, at)| at)),
        };
        checked.push(Checked {
            resolvable,
            ..with_prefixes(network, raw, &at, underlay, problems)
        });
    }
    checked
}

fn with_prefixes(
    mut network: NetworkConfig,
    raw: &Network,
    at: &Range<usize>,
    underlay: &UnderlayConfig,
    problems: &mut Problems<'_>,
) -> Checked {
    let cluster = prefixes(
        raw.cluster_prefixes.as_ref(),
        at,
        "cluster_prefixes = [\"10.244.0.0/16\"]",
        problems,
    );
    let pods = prefixes(
        raw.pod_prefixes.as_ref(),
        at,
        "pod_prefixes = [\"10.244.1.0/24\"]",
        problems,
    );

    let mut sound = cluster.is_some();
    let mut once = Once::default();
    let mut cluster_prefixes = PrefixTable::default();
    for (net, at) in cluster.iter().flatten() {
        once.note(*net, net, at, problems);
        let mut own = underlay.own_addresses();
        if let Some(address) = own.find(|address| net.contains(address)) {
            let message = format!(
                "{net} contains the underlay address {address}, so nodes could not reach each other beside the \
                 overlay; give prefixes that only pods have"
            );
            problems.report(at, message);
            sound = false;
        }
        cluster_prefixes.insert(*net, ());
        network.cluster_prefixes.push(*net);
    }
    let cluster_prefixes = sound.then_some(cluster_prefixes);

    let mut sound = pods.is_some();
    let mut pod_prefixes = PrefixTable::<PodPrefix>::default();
    for (net, at) in pods.iter().flatten() {
        if cluster_prefixes
            .as_ref()
            .is_some_and(|cluster| cluster.covering(*net).is_none())
        {
            let message = format!(
                "{net} is outside the network's cluster_prefixes; add it there, or correct it"
            );
            problems.report(at, message);
            sound = false;
        }
        if let Some((other, PodPrefix { line, .. })) = pod_prefixes.overlapping(*net).next() {
            problems.report(
                at,
                format!("{net} overlaps {other} of line {line}; remove or narrow one of the two"),
            );
        }
        let first = !network
            .pod_prefixes
            .iter()
            .any(|other| other.addr().is_ipv4() == net.addr().is_ipv4());
        pod_prefixes.insert(
            *net,
            PodPrefix {
                line: problems.line(at),
                first,
            },
        );
        network.pod_prefixes.push(*net);
    }
    Checked {
        network,
        resolvable: false,
        pod_prefixes: sound.then_some(pod_prefixes),
        cluster_prefixes,
    }
}

/// The prefixes of a list with their places, or none when any is wrong.
fn prefixes(
    list: Option<&List<String>>,
    at: &Range<usize>,
    example: &str,
    problems: &mut Problems<'_>,
) -> Option<Vec<(IpNet, Range<usize>)>> {
    let texts = required_list(list, at, example, problems);
    let wanted = texts.len();
    let nets: Vec<_> = texts
        .into_iter()
        .filter_map(|(text, at)| Some((prefix::parse(text, &at, problems)?, at)))
        .collect();
    (wanted > 0 && nets.len() == wanted).then_some(nets)
}

/// The network that a pod or a route at `at` belongs to, with its index; none when that was reported.
pub(super) fn resolve<'a>(
    given: Option<&Text>,
    networks: &'a [Checked],
    at: &Range<usize>,
    problems: &mut Problems<'_>,
) -> Option<(usize, &'a Checked)> {
    let names = || networks.iter().map(|checked| checked.network.name.as_str());
    match (given, networks) {
        (Some(text), _) => {
            let name = text.get_ref();
            let found = networks
                .iter()
                .enumerate()
                .find(|(_, checked)| checked.network.name == *name);
            if found.is_none()
                && !networks.is_empty()
                && networks.iter().all(|checked| checked.resolvable)
            {
                let hint = did_you_mean(name, names());
                problems.report(
                    &text.span(),
                    format!("there is no network {name:?}; add it to [[networks]]{hint}"),
                );
            }
            found
        }
        (None, [only]) => Some((0, only)),
        (None, []) => None,
        (None, _) => {
            let names: Vec<_> = names().map(|name| format!("{name:?}")).collect();
            let message = format!(
                "`network` is missing here; with several, add it: one of {}",
                names.join(", ")
            );
            problems.report(at, message);
            None
        }
    }
}
