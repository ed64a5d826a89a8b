//! Where each route has come from, and which others were not taken for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Context;
use ipnet::IpNet;
use serde_json::{Value, json};
use viaduct_config::Config;
use viaduct_control::gossip::GossipStatus;

use crate::merged::Merged;

/// A prefix, or an address as the longest one.
pub(crate) fn asked(text: &str) -> anyhow::Result<IpNet> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(IpNet::from);
    let prefix = text.parse::<IpNet>().ok().or_else(|| address(text));
    let prefix = prefix.with_context(|| {
        format!("{text:?} is neither a prefix nor an address, like 10.244.2.0/24 or 10.244.2.7")
    })?;
    Ok(prefix.trunc())
}

/// Writes to each route who said it, and since when that is known here.
pub(crate) fn annotate(
    routes: &mut Value,
    config: &Config,
    merged: &Merged,
    status: Option<&GossipStatus>,
) {
    let now = Instant::now();
    let known: HashMap<&str, u64> = (status.into_iter())
        .flat_map(|status| status.nodes.values())
        .map(|known| {
            let age = now.saturating_duration_since(known.since).as_secs();
            (&known.record.name[..], age)
        })
        .collect();
    let mut said = HashMap::new();
    for (route, origin) in merged.wanted.routes.iter().zip(&merged.wanted.origins) {
        let Some(network) = config.networks.get(route.network) else {
            continue;
        };
        for prefix in &route.prefixes {
            said.insert((&network.name[..], prefix.to_string()), origin);
        }
    }
    for route in routes["routes"].as_array_mut().into_iter().flatten() {
        let text = |name: &str| route[name].as_str().unwrap_or_default().to_owned();
        let (network, prefix) = (text("network"), text("prefix"));
        let origin = said.get(&(&network[..], prefix)).copied();
        let node = origin.and_then(|origin| origin.node.as_deref());
        route["source"] = json!(origin.map(|origin| origin.source));
        route["node"] = node.into();
        route["known_for_s"] = node.and_then(|node| known.get(node)).copied().into();
    }
}

/// Only what has to do with `asked`: the routes that meet it, the most specific first, what nodes
/// say of it that is not used and why, and whether it is this node's own.
pub(crate) fn select(routes: &mut Value, asked: IpNet, config: &Config, merged: &Merged) {
    let meets = |prefix: &IpNet| prefix.contains(&asked) || asked.contains(prefix);
    let prefix_of = |route: &Value| route["prefix"].as_str()?.parse::<IpNet>().ok();
    if let Some(all) = routes["routes"].as_array_mut() {
        all.retain(|route| prefix_of(route).as_ref().is_some_and(meets));
        all.sort_by_key(|route| prefix_of(route).map(|p| u8::MAX - p.prefix_len()));
    }
    let unused = merged.refused.iter().filter(|refused| {
        let prefix = self::asked(&refused.what).ok();
        prefix.as_ref().is_some_and(meets)
    });
    routes["not_used"] = json!(unused.collect::<Vec<_>>());
    let own = config.networks.iter().flat_map(|network| {
        let prefixes = network.pod_prefixes.iter().filter(|prefix| meets(prefix));
        prefixes.map(|prefix| json!({ "network": network.name, "prefix": prefix.to_string() }))
    });
    routes["own"] = own.collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_control::sources::{Refused, Source};

    #[test]
    fn addresses_and_prefixes_may_be_asked_for() {
        for (text, prefix) in [
            ("10.244.2.7", "10.244.2.7/32"),
            ("10.244.2.7/24", "10.244.2.0/24"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(asked(text).expect("one").to_string(), prefix);
        }
        for bad in ["", "x", "10.244.2", "10.244.2.0/33"] {
            assert!(asked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_meets_it_is_shown_the_most_specific_first() {
        let text = "[node]\nname = 'node-b'\n[underlay]\ninterface = 'eth0'\n\
            [[networks]]\nname = 'default'\nvni = 1\npod_prefixes = ['10.244.2.0/24']\n\
            cluster_prefixes = ['10.244.0.0/16']\n";
        let config = Config::parse(text, "test").expect("sound");
        let merged = Merged {
            refused: vec![Refused {
                node: "c".into(),
                what: "10.244.1.0/25".into(),
                why: "x".into(),
                source: Source::Gossip,
                mend: None,
                notice: false,
            }],
            ..Merged::default()
        };
        let all = ["10.244.1.0/24", "10.244.1.7/32", "10.244.3.0/24"];
        let ask = |what: &str| {
            let routes: Vec<_> = all.iter().map(|p| json!({ "prefix": p })).collect();
            let mut reply = json!({ "routes": routes });
            select(&mut reply, asked(what).expect("one"), &config, &merged);
            let prefixes = reply["routes"].as_array().expect("routes").iter();
            let prefixes: Vec<_> = prefixes.map(|r| r["prefix"].to_string()).collect();
            let count = |name: &str| reply[name].as_array().expect("a list").len();
            (prefixes.join(" "), count("not_used"), count("own"))
        };
        let both = "\"10.244.1.7/32\" \"10.244.1.0/24\"".to_owned();
        assert_eq!(ask("10.244.1.7"), (both, 1, 0));
        assert_eq!(ask("10.244.1.200"), ("\"10.244.1.0/24\"".to_owned(), 0, 0));
        assert_eq!(ask("10.244.2.7"), (String::new(), 0, 1));
        assert_eq!(ask("10.244.0.0/16").1, 1);
    }
}
