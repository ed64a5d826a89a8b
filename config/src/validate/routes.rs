//! `[[routes]]`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use ipnet::IpNet;
use toml::Spanned;

use super::networks::{Checked, PodPrefix, resolve};
use super::prefix;
use super::values::{
    Once, mac, node_name, required, required_list, udp_checksum6, underlay_address,
};
use crate::mac::{Mac, derive_vtep_mac};
use crate::model::{Config, RouteConfig, UnderlayConfig};
use crate::raw::{Route, Text};
use crate::source::{Place, Problems};

/// What earlier routes said.
#[derive(Default)]
struct Seen {
    prefixes: Once<(usize, IpNet)>,
    /// Network and VTEP to its MAC and the place of that.
    vteps: HashMap<(usize, IpAddr), (Mac, Place)>,
    /// Network, whether the underlay is IPv4, and MAC to its VTEP and the place of that.
    macs: HashMap<(usize, bool, Mac), (IpAddr, Place)>,
}

/// A route that a command gives, beside those of a configuration.
pub(super) fn one(
    raw: &Spanned<Route>,
    config: &Config,
    networks: &[Checked],
    problems: &mut Problems<'_>,
) -> RouteConfig {
    let mut seen = Seen::default();
    for route in &config.routes {
        let place = Place::of_line(route.line);
        for prefix in &route.prefixes {
            seen.prefixes.known((route.network, *prefix), place);
        }
        let (vtep, mac) = (route.vtep, route.vtep_mac);
        seen.vteps.insert((route.network, vtep), (mac, place));
        let key = (route.network, vtep.is_ipv4(), mac);
        seen.macs.insert(key, (vtep, place));
    }
    let (node, underlay) = (&config.node.name, &config.underlay);
    route(raw, networks, node, underlay, &mut seen, problems)
}

/// A network with its index.
type Resolved<'a> = Option<(usize, &'a Checked)>;

pub(super) fn routes(
    raw: &[Spanned<Route>],
    networks: &[Checked],
    own_node: &str,
    own: &UnderlayConfig,
    problems: &mut Problems<'_>,
) -> Vec<RouteConfig> {
    let mut seen = Seen::default();
    let routes = raw.iter();
    routes
        .map(|entry| route(entry, networks, own_node, own, &mut seen, problems))
        .collect()
}

fn route(
    entry: &Spanned<Route>,
    networks: &[Checked],
    own_node: &str,
    own: &UnderlayConfig,
    seen: &mut Seen,
    problems: &mut Problems<'_>,
) -> RouteConfig {
    let at = entry.span();
    let raw = entry.get_ref();
    let network = resolve(raw.network.as_ref(), networks, &at, problems);
    let prefixes = prefixes(raw, &at, network, seen, problems);
    let vtep_text = required(raw.vtep.as_ref(), &at, "vtep = \"192.0.2.2\"", problems);
    let vtep = vtep_text
        .as_ref()
        .and_then(|(text, at)| vtep(text, at, networks, own, problems));
    let vtep_mac = vtep_mac(raw, &at, network, own_node, problems);
    if let (Some((index, checked)), Some((mac, at))) = (network, vtep_mac.as_ref()) {
        let key = vtep.map(|vtep| (index, vtep));
        let own = match vtep {
            Some(IpAddr::V6(_)) => checked.network.vtep_mac6,
            _ => checked.network.vtep_mac,
        };
        consistent(key, *mac, at, own, seen, problems);
    }
    RouteConfig {
        network: network.map_or(0, |(index, _)| index),
        prefixes,
        addresses: addresses(raw, network, problems),
        udp_checksum6: udp_checksum6(raw.udp_checksum6.as_ref(), problems)
            .unwrap_or(network.is_some_and(|(_, checked)| checked.network.udp_checksum6)),
        vtep: vtep.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        vtep_mac: vtep_mac.map_or(Mac([0; 6]), |(mac, _)| mac),
        node: raw.node.as_ref().map(|text| text.get_ref().clone()),
        line: problems.line(&vtep_text.map_or(at, |(_, at)| at)),
    }
}

fn prefixes(
    raw: &Route,
    at: &Range<usize>,
    network: Resolved<'_>,
    seen: &mut Seen,
    problems: &mut Problems<'_>,
) -> Vec<IpNet> {
    let mut prefixes = Vec::new();
    for (text, at) in required_list(
        raw.prefixes.as_ref(),
        at,
        "prefixes = [\"10.244.2.0/24\"]",
        problems,
    ) {
        let Some(net) = prefix::parse(text, &at, problems) else {
            continue;
        };
        prefixes.push(net);
        let Some((index, checked)) = network else {
            continue;
        };
        seen.prefixes.note((index, net), &net, &at, problems);
        if checked
            .cluster_prefixes
            .as_ref()
            .is_some_and(|cluster| cluster.covering(net).is_none())
        {
            let message = format!(
                "{net} is outside the network's cluster_prefixes; add it there, or correct it"
            );
            problems.report(&at, message);
        }
        let own = checked
            .pod_prefixes
            .as_ref()
            .and_then(|own| own.overlapping(net).next());
        if let Some((own, PodPrefix { line, .. })) = own {
            let of = match line {
                0 => String::new(),
                line => format!(" of line {line}"),
            };
            let message = format!(
                "{net} overlaps this node's pod prefix {own}{of}; route only what lives on other nodes"
            );
            problems.report(&at, message);
        }
    }
    prefixes
}

/// The node's own addresses; optional.
fn addresses(raw: &Route, network: Resolved<'_>, problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let list = raw.addresses.iter().flat_map(Spanned::get_ref);
    let mut addresses = Vec::new();
    for entry in list {
        let (text, at) = (entry.get_ref(), entry.span());
        let Ok(address) = text.parse::<IpAddr>() else {
            let message = format!("{text:?} is not an IP address; write it like 192.0.2.2");
            problems.report(&at, message);
            continue;
        };
        let net = IpNet::from(address);
        if let Some(kind) = prefix::special_use(net) {
            problems.report(&at, format!("{address} is {kind}; give a unicast address"));
        }
        let clusters = network.and_then(|(_, checked)| checked.cluster_prefixes.as_ref());
        if clusters.is_some_and(|clusters| clusters.covering(net).is_some()) {
            let message = format!(
                "{address} is inside the network's cluster_prefixes; give it in `prefixes`, or leave it out"
            );
            problems.report(&at, message);
        }
        addresses.push(address);
    }
    addresses
}

fn vtep(
    text: &str,
    at: &Range<usize>,
    networks: &[Checked],
    own: &UnderlayConfig,
    problems: &mut Problems<'_>,
) -> Option<IpAddr> {
    let vtep = underlay_address(text, at, problems)?;
    if own.own_addresses().any(|own| own == vtep) {
        problems.report(
            at,
            format!("{vtep} is this node's own underlay address; give the other node's"),
        );
        return None;
    }
    let address = IpNet::from(vtep);
    let covering =
        |checked: &Checked| Some(checked.cluster_prefixes.as_ref()?.covering(address)?.0);
    if let Some(net) = networks.iter().find_map(covering) {
        let message = format!(
            "{vtep} is inside the cluster prefix {net}, so the way to it would lead through the overlay; give the \
             node's underlay address"
        );
        problems.report(at, message);
        return None;
    }
    Some(vtep)
}

/// The VTEP's MAC with its place: given, or worked out from the node's name.
fn vtep_mac(
    raw: &Route,
    at: &Range<usize>,
    network: Resolved<'_>,
    own_node: &str,
    problems: &mut Problems<'_>,
) -> Option<(Mac, Range<usize>)> {
    match (&raw.node, &raw.vtep_mac) {
        (None, Some(text)) => Some((mac(Some(text), problems)?, text.span())),
        (Some(text), None) => Some((node_mac(text, network, own_node, problems)?, text.span())),
        (Some(_), Some(text)) => {
            let message = "`node` and `vtep_mac` are two ways to say one thing; remove one of them";
            problems.report(&text.span(), message.into());
            None
        }
        (None, None) => {
            let message = "the VTEP's MAC is missing here; add node = \"node-b\" for a node that runs Viaduct, else \
                           vtep_mac = \"02:...\"";
            problems.report(at, message.into());
            None
        }
    }
}

fn node_mac(
    text: &Text,
    network: Resolved<'_>,
    own_node: &str,
    problems: &mut Problems<'_>,
) -> Option<Mac> {
    let name = text.get_ref();
    if !node_name(name, &text.span(), problems) {
        return None;
    }
    if name == own_node {
        problems.report(
            &text.span(),
            format!("{name:?} is this node; give the other node's name"),
        );
        return None;
    }
    Some(derive_vtep_mac(name, network?.1.network.vni))
}

/// A VTEP has one MAC in a network, a MAC one VTEP, and it is not `own_mac`. `key` is none when the VTEP itself was wrong.
fn consistent(
    key: Option<(usize, IpAddr)>,
    mac: Mac,
    at: &Range<usize>,
    own_mac: Mac,
    seen: &mut Seen,
    problems: &mut Problems<'_>,
) {
    if mac == own_mac {
        problems.report(
            at,
            format!("{mac} is this node's own VTEP MAC; give the other node's"),
        );
    }
    let Some(key) = key else { return };
    let place = problems.place(at);
    let (network, vtep) = key;
    let (known, before) = *seen.vteps.entry(key).or_insert((mac, place));
    if known != mac {
        let before = problems.spoken(before);
        let message = format!(
            "VTEP {vtep} has MAC {mac} here and {known} {before}; a VTEP has one in a network: correct one"
        );
        problems.report(at, message);
        return;
    }
    // The kernel has a device for each family of the underlay, and looks up MACs in it.
    let key = (network, vtep.is_ipv4(), mac);
    let (other, before) = *seen.macs.entry(key).or_insert((vtep, place));
    if other != vtep {
        let before = problems.spoken(before);
        let message = format!(
            "MAC {mac} is that of VTEP {other} {before}; in a network a MAC belongs to one VTEP: correct one"
        );
        problems.report(at, message);
    }
}
