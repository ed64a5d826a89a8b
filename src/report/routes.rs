//! The ways to other nodes.

use std::fmt::Write;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::View;
use super::peers::not_used_text;
use super::table::{age, field, table};

pub(crate) fn routes(view: &View<'_>) -> Value {
    json!({ "routes": view.agent.routes })
}

pub(crate) fn routes_text(reply: &Value) -> String {
    let mut routes = reply.get("routes").cloned().unwrap_or_default();
    for route in routes.as_array_mut().into_iter().flatten() {
        let hops = route["next_hops"].as_array().map_or(&[][..], Vec::as_slice);
        let several = hops.len() > 1;
        let hop = |hop: &Value| {
            let weight = format!(" x{}", field(hop, "weight"));
            field(hop, "address") + if several { &weight } else { "" }
        };
        route["next_hop"] = hops.iter().map(hop).collect();
        if route["reason"].is_null() {
            route["reason"] = route["warning"].clone();
        }
        if route["reason"].is_null() {
            route["reason"] = route["warning"].take();
        }
        route["age"] = route["known_for_s"].as_u64().map(age).into();
    }
    if reply["own"].is_null()
        && let Some(all) = routes.as_array_mut()
    {
        let prefix = |route: &Value| route["prefix"].as_str()?.parse::<IpNet>().ok();
        all.sort_by_cached_key(|route| (field(route, "network"), prefix(route)));
    }
    let mut text = String::new();
    for own in reply["own"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "{} of network {} is this node's own.",
            field(own, "prefix"),
            field(own, "network")
        );
    }
    let mut columns = vec![
        ("NETWORK", "network"),
        ("PREFIX", "prefix"),
        ("VTEP", "vtep"),
        ("STATE", "state"),
        ("MTU", "mtu"),
        ("SOURCE", "source"),
        ("NODE", "node"),
        ("AGE", "age"),
        ("NEXT HOP", "next_hop"),
        ("REASON", "reason"),
    ];
    if one_network(&routes) {
        columns.remove(0);
    }
    text += &table(&routes, &columns);
    let unused = reply["not_used"].as_array().map_or(0, Vec::len);
    if unused > 0 {
        text += "\nNot used:\n";
        text += &not_used_text(&reply["not_used"]);
    }
    text
}

/// Where there is one network, its name says nothing.
fn one_network(routes: &Value) -> bool {
    let mut names: Vec<_> = routes
        .as_array()
        .into_iter()
        .flatten()
        .map(|route| field(route, "network"))
        .collect();
    names.dedup();
    names.len() <= 1
}
