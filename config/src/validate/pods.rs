//! `[[pods]]`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use ipnet::IpNet;
use toml::Spanned;

use super::host::ATTACH;
use super::networks::{Checked, PodPrefix, resolve};
use super::prefix::{PrefixTable, special_use};
use super::values::{Once, choice, interface, label, mac, number, required, required_list};
use crate::model::{Config, Hook, HooksConfig, PodConfig, RateConfig, UnderlayConfig};
use crate::raw::{Number, Pod};
use crate::source::{Place, Problems};

/// What of the node pods have to go with.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) underlay: &'a UnderlayConfig,
    pub(super) hooks: &'a HooksConfig,
}

/// Who has an address: network and address to the place.
type Owners = HashMap<(usize, IpAddr), Place>;

/// What earlier pods said.
#[derive(Default)]
struct Seen<'a> {
    names: Once<&'a str>,
    interfaces: Once<&'a str>,
    owners: Owners,
}

/// A pod that a command gives, beside those of a configuration.
pub(super) fn one(
    raw: &Spanned<Pod>,
    config: &Config,
    networks: &[Checked],
    problems: &mut Problems<'_>,
) -> PodConfig {
    let most = config.workers.max_ports;
    if config.pods.len() >= most {
        let message = format!(
            "there are {most} pods, as workers.max_ports allows; raise max_ports, or remove a pod"
        );
        problems.report(&raw.span(), message);
    }
    let mut seen = Seen::default();
    for pod in &config.pods {
        let place = Place::of_line(pod.line);
        seen.names.known(&pod.name, place);
        seen.interfaces.known(&pod.interface, place);
        let addresses = pod.addresses.iter().map(|a| ((pod.network, *a), place));
        seen.owners.extend(addresses);
    }
    let host = Host {
        underlay: &config.underlay,
        hooks: &config.hooks,
    };
    self::pod(raw, networks, host, &mut seen, problems)
}

pub(super) fn pods(
    raw: &[Spanned<Pod>],
    networks: &[Checked],
    host: Host<'_>,
    max_ports: usize,
    problems: &mut Problems<'_>,
) -> Vec<PodConfig> {
    if let Some(first_too_many) = raw.get(max_ports) {
        let message = format!(
            "{} pods where workers.max_ports allows {max_ports}; raise max_ports, or remove pods from here on",
            raw.len()
        );
        problems.report(&first_too_many.span(), message);
    }
    let mut seen = Seen::default();
    let pods = raw.iter();
    pods.map(|entry| pod(entry, networks, host, &mut seen, problems))
        .collect()
}

fn pod<'a>(
    entry: &'a Spanned<Pod>,
    networks: &[Checked],
    host: Host<'_>,
    seen: &mut Seen<'a>,
    problems: &mut Problems<'_>,
) -> PodConfig {
    let at = entry.span();
    let raw = entry.get_ref();
    let device = required(
        raw.interface.as_ref(),
        &at,
        "interface = \"veth-web\"",
        problems,
    );
    let mut new_interface = false;
    if let Some((device, at)) = &device {
        interface(device, at, problems);
        new_interface =
            seen.interfaces
                .note(*device, &format_args!("interface {device:?}"), at, problems);
        if *device == host.underlay.interface {
            let message = format!(
                "{device:?} is the underlay's interface; give the host's end of the pod's veth"
            );
            problems.report(at, message);
        }
    }
    let own_name = raw
        .name
        .as_ref()
        .map(|text| (text.get_ref().as_str(), text.span()));
    if let Some((name, at)) = &own_name {
        label(name, at, problems);
    }
    let name = own_name.clone().or_else(|| device.clone());
    // Two nameless pods on one interface are one mistake, not two.
    if let Some((name, at)) = name
        .as_ref()
        .filter(|_| own_name.is_some() || new_interface)
    {
        seen.names
            .note(*name, &format_args!("pod {name:?}"), at, problems);
    }
    let network = resolve(raw.network.as_ref(), networks, &at, problems);
    let addresses = addresses(raw, &at, network, &mut seen.owners, problems);
    let attach = attach(raw, host, problems);
    PodConfig {
        name: name.map_or("", |(name, _)| name).to_owned(),
        interface: device.as_ref().map_or("", |(device, _)| device).to_string(),
        network: network.map_or(0, |(index, _)| index),
        addresses,
        moved: raw.moved,
        mac: mac(raw.mac.as_ref(), problems),
        egress: rate(
            (raw.egress_rate.as_ref(), "egress_rate"),
            (raw.egress_burst.as_ref(), "egress_burst"),
            problems,
        ),
        ingress: rate(
            (raw.ingress_rate.as_ref(), "ingress_rate"),
            (raw.ingress_burst.as_ref(), "ingress_burst"),
            problems,
        ),
        attach,
        line: problems.line(&device.map_or(at, |(_, at)| at)),
    }
}

/// Where the pod's packets are looked at first, if it says so.
fn attach(raw: &Pod, host: Host<'_>, problems: &mut Problems<'_>) -> Option<Hook> {
    let said = choice(raw.attach.as_ref(), "attach", &ATTACH, problems);
    let (Some(Hook::Tc), Some(text)) = (said, &raw.attach) else {
        return said;
    };
    if raw.egress_rate.is_some() || raw.ingress_rate.is_some() {
        let message = "a pod with a rate has sockets of its own; leave `attach` out, or the rate";
        problems.report(&text.span(), message.into());
    }
    let xdp = Some(Hook::Xdp);
    if host.hooks.pods == xdp && host.underlay.hook == xdp {
        let message = "neither hooks.pods nor underlay.hook is \"tc\", so that workers have no veth pairs for hooks in tc; \
                       set hooks.pods = \"tc\", and attach = \"xsk\" for the other pods";
        problems.report(&text.span(), message.into());
    }
    said
}

/// A rate with its burst, each with its key.
fn rate(
    (rate, rate_key): (Option<&Number>, &str),
    (burst, burst_key): (Option<&Number>, &str),
    problems: &mut Problems<'_>,
) -> Option<RateConfig> {
    // A terabit a second; a burst of 16 Gbit, the most that 64 bits can time at 1 kbit/s.
    const RATES: RangeInclusive<u64> = 1_000..=1_000_000_000_000;
    const BURSTS: RangeInclusive<u64> = 12_112..=16_000_000_000;
    let burst_bits = number(burst, burst_key, &BURSTS, problems);
    if let (None, Some(burst)) = (rate, burst) {
        let message = format!("`{burst_key}` without `{rate_key}` limits nothing; give both");
        problems.report(&burst.span(), message);
    }
    let bits_per_second = number(rate, rate_key, &RATES, problems)?;
    let usual = (bits_per_second / 20).clamp(8 * *BURSTS.start(), *BURSTS.end());
    Some(RateConfig {
        bits_per_second,
        burst_bits: burst_bits.unwrap_or(usual),
    })
}

fn addresses(
    raw: &Pod,
    at: &Range<usize>,
    network: Option<(usize, &Checked)>,
    owners: &mut Owners,
    problems: &mut Problems<'_>,
) -> Vec<IpAddr> {
    let texts = required_list(
        raw.addresses.as_ref(),
        at,
        "addresses = [\"10.244.1.2\"]",
        problems,
    );
    let mut addresses = Vec::with_capacity(texts.len());
    for (text, at) in texts {
        let Ok(address) = text.parse::<IpAddr>() else {
            let message = format!(
                "{text:?} is not an IP address; write it like 10.244.1.2 or fd00:10:244:1::2"
            );
            problems.report(&at, message);
            continue;
        };
        addresses.push(address);
        if let Some(kind) = special_use(IpNet::from(address)) {
            problems.report(
                &at,
                format!("{address} is {kind}; give a unicast address inside the pod prefixes"),
            );
            continue;
        }
        let Some((index, checked)) = network else {
            continue;
        };
        let place = problems.place(&at);
        if let Some(before) = owners.insert((index, address), place) {
            let before = problems.spoken(before);
            let message =
                format!("{address} is already used {before}; give each pod its own address");
            problems.report(&at, message);
        }
        let own = checked.pod_prefixes.as_ref();
        let message = if raw.moved {
            let net = IpNet::from(address);
            let cluster = checked.cluster_prefixes.as_ref();
            let inside = own.is_some_and(|own| own.covering(net).is_some());
            let outside = cluster.is_some_and(|cluster| cluster.covering(net).is_none());
            (inside || outside).then(|| {
                format!("{address} of a pod that has moved here has to be inside cluster_prefixes and outside this node's pod_prefixes")
            })
        } else {
            own.and_then(|table| unassignable(address, table))
        };
        if let Some(message) = message {
            problems.report(&at, message);
        }
    }
    addresses
}

/// Why no pod can have `address` given this node's prefixes.
fn unassignable(address: IpAddr, table: &PrefixTable<PodPrefix>) -> Option<String> {
    let Some((net, prefix)) = table.covering(IpNet::from(address)) else {
        return Some(format!(
            "{address} is outside the network's pod_prefixes; take one inside, or add its prefix, or say `moved = true` of a pod that has come from another node"
        ));
    };
    // Prefixes of one or two addresses have neither a network nor a broadcast address (RFC 3021, RFC 6164), but the
    // first address of all is the node's own even there.
    let ordinary = net.max_prefix_len() - net.prefix_len() > 1;
    if address == net.network() && (ordinary || prefix.first) {
        Some(format!(
            "{address} is the first address of {net}, which is the node's own; take another"
        ))
    } else if address.is_ipv4() && ordinary && address == net.broadcast() {
        Some(format!(
            "{address} is the broadcast address of {net}; take another"
        ))
    } else {
        None
    }
}
