//! `[[delegations]]`.

use ipnet::IpNet;
use toml::Spanned;

use super::networks::{Checked, resolve};
use super::prefix;
use super::values::{Once, node_name, required};
use crate::model::DelegationConfig;
use crate::raw::Delegation;
use crate::source::Problems;

pub(super) fn delegations(
    raw: &[Spanned<Delegation>],
    networks: &[Checked],
    own_node: &str,
    gossips: bool,
    problems: &mut Problems<'_>,
) -> Vec<DelegationConfig> {
    let mut seen = Once::default();
    let mut delegations = Vec::with_capacity(raw.len());
    for entry in raw {
        let at = entry.span();
        let raw = entry.get_ref();
        if !gossips {
            let message =
                "a delegation is told by gossip; add [gossip], or write a [[routes]] on each node";
            problems.report(&at, message.to_owned());
        }
        let network = resolve(raw.network.as_ref(), networks, &at, problems);
        let text = required(
            raw.prefix.as_ref(),
            &at,
            "prefix = \"10.244.1.7/32\"",
            problems,
        );
        let prefix = text.and_then(|(text, at)| Some((prefix::parse(text, &at, problems)?, at)));
        if let (Some((index, checked)), Some((net, at))) = (network, &prefix) {
            seen.note((index, *net), net, at, problems);
            let own = checked.pod_prefixes.as_ref();
            if own.is_some_and(|own| own.covering(*net).is_none_or(|(own, _)| own == *net)) {
                let message = format!(
                    "{net} is no part of one of this node's pod_prefixes; only such a part can be delegated"
                );
                problems.report(at, message);
            }
        }
        let node = required(raw.node.as_ref(), &at, "node = \"node-b\"", problems);
        let node = node.filter(|(name, at)| node_name(name, at, problems));
        if let Some((name, at)) = node.as_ref().filter(|(name, _)| *name == own_node) {
            let message = format!("{name:?} is this node; give the other node's name");
            problems.report(at, message);
        }
        delegations.push(DelegationConfig {
            network: network.map_or(0, |(index, _)| index),
            prefix: prefix.map_or_else(IpNet::default, |(net, _)| net),
            node: node.map_or("", |(name, _)| name).to_owned(),
        });
    }
    delegations
}
