//! A pod or a route that is given by command: the keys of `[[pods]]` or `[[routes]]`, under the rules
//! of the file.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::model::Config;
use crate::raw::{self, List, Number, Text};
use crate::source::{Problems, Source};
use crate::validate;

/// A pod, as `[[pods]]` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "the keys of the file, which docs/configuration has"
)]
pub struct PodEntry {
    pub name: Option<String>,
    pub interface: Option<String>,
    pub network: Option<String>,
    pub addresses: Option<Vec<String>>,
    pub mac: Option<String>,
    pub moved: bool,
    pub egress_rate: Option<i64>,
    pub egress_burst: Option<i64>,
    pub ingress_rate: Option<i64>,
    pub ingress_burst: Option<i64>,
    pub attach: Option<String>,
}

/// A route, as `[[routes]]` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "the keys of the file, which docs/configuration has"
)]
pub struct RouteEntry {
    pub network: Option<String>,
    pub prefixes: Option<Vec<String>>,
    pub addresses: Option<Vec<String>>,
    pub vtep: Option<String>,
    pub udp_checksum6: Option<String>,
    pub vtep_mac: Option<String>,
    pub node: Option<String>,
}

/// What a command adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// A pod of this node.
    Port(PodEntry),
    /// A way to another node.
    Route(RouteEntry),
}

/// Why an entry cannot be had beside the rest, at least one reason. Displays one on each line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct EntryError(Vec<String>);

impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Entry {
    /// By which a command removes it: the pod's name, or the route's first prefix.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Port(pod) => pod.name.as_deref().or(pod.interface.as_deref()),
            Self::Route(route) => route.prefixes.as_ref()?.first().map(String::as_str),
        }
    }
}

fn text(value: Option<&String>) -> Option<Text> {
    value.map(|value| Spanned::new(0..0, value.clone()))
}

fn number(value: Option<i64>) -> Option<Number> {
    value.map(|value| Spanned::new(0..0, value))
}

fn list(values: Option<&Vec<String>>) -> Option<List<String>> {
    let values = values?.iter();
    let values = values.map(|value| Spanned::new(0..0, value.clone()));
    Some(Spanned::new(0..0, values.collect()))
}

impl PodEntry {
    fn raw(&self) -> raw::Pod {
        raw::Pod {
            name: text(self.name.as_ref()),
            interface: text(self.interface.as_ref()),
            network: text(self.network.as_ref()),
            addresses: list(self.addresses.as_ref()),
            mac: text(self.mac.as_ref()),
            moved: self.moved,
            egress_rate: number(self.egress_rate),
            egress_burst: number(self.egress_burst),
            ingress_rate: number(self.ingress_rate),
            ingress_burst: number(self.ingress_burst),
            attach: text(self.attach.as_ref()),
        }
    }
}

impl RouteEntry {
    fn raw(&self) -> raw::Route {
        raw::Route {
            network: text(self.network.as_ref()),
            prefixes: list(self.prefixes.as_ref()),
            addresses: list(self.addresses.as_ref()),
            vtep: text(self.vtep.as_ref()),
            udp_checksum6: text(self.udp_checksum6.as_ref()),
            vtep_mac: text(self.vtep_mac.as_ref()),
            node: text(self.node.as_ref()),
        }
    }
}

impl Config {
    /// Adds an entry behind the others, by the rules that hold for the file.
    ///
    /// # Errors
    /// All that is wrong with it beside the others; nothing has changed then.
    pub fn add(&mut self, entry: &Entry) -> Result<(), EntryError> {
        let source = Source::new(Path::new(""), b"");
        let mut problems = Problems::of_command(&source, &self.file);
        match entry {
            Entry::Port(pod) => {
                let raw = Spanned::new(0..0, pod.raw());
                let pod = validate::one_pod(&raw, self, &mut problems);
                problems.into_messages().map_err(EntryError)?;
                self.pods.push(pod);
            }
            Entry::Route(route) => {
                let raw = Spanned::new(0..0, route.raw());
                let route = validate::one_route(&raw, self, &mut problems);
                problems.into_messages().map_err(EntryError)?;
                self.routes.push(route);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = "[node]\nname = 'node-a'\n[underlay]\ninterface = 'eth0'\n[workers]\nmax_ports = 3\n\
            [[networks]]\nname = 'default'\nvni = 1\npod_prefixes = ['10.244.1.0/24']\n\
            cluster_prefixes = ['10.244.0.0/16']\n\
            [[pods]]\ninterface = 'veth-web'\naddresses = ['10.244.1.2']\n\
            [[routes]]\nprefixes = ['10.244.2.0/24']\nvtep = '192.0.2.2'\nnode = 'node-b'\n";
        Config::parse(text, "/etc/node.toml").expect("sound")
    }

    fn pod(interface: &str, address: &str) -> Entry {
        Entry::Port(PodEntry {
            interface: Some(interface.to_owned()),
            addresses: Some(vec![address.to_owned()]),
            ..PodEntry::default()
        })
    }

    fn route(prefix: &str, vtep: &str, mac: &str) -> Entry {
        Entry::Route(RouteEntry {
            prefixes: Some(vec![prefix.to_owned()]),
            vtep: Some(vtep.to_owned()),
            vtep_mac: Some(mac.to_owned()),
            ..RouteEntry::default()
        })
    }

    #[test]
    fn an_error_speaks_of_the_command() {
        let mut config = config();
        config.add(&pod("veth-api", "10.244.1.3")).expect("sound");
        config
            .add(&route("10.244.7.0/24", "192.0.2.7", "02:00:00:00:00:07"))
            .expect("sound");
        let before = config.clone();
        for (entry, why) in [
            (
                pod("veth-x", "10.244.1.2"),
                "10.244.1.2 is already used in line 13 of /etc/node.toml; give each pod its own address",
            ),
            (
                pod("veth-x", "10.244.1.3"),
                "10.244.1.3 is already used by a command; give each pod its own address",
            ),
            (
                pod("veth-api", "10.244.1.4"),
                "interface \"veth-api\" is already used by a command; change or remove one of the two",
            ),
            (
                Entry::Port(PodEntry::default()),
                "`interface` is missing here; add it, like interface = \"veth-web\"\n\
                 `addresses` is missing here; add it, like addresses = [\"10.244.1.2\"]",
            ),
            (
                route("10.244.7.0/24", "192.0.2.7", "02:00:00:00:00:07"),
                "10.244.7.0/24 is already used by a command; change or remove one of the two",
            ),
            (
                route("10.244.8.0/24", "192.0.2.7", "02:00:00:00:00:08"),
                "VTEP 192.0.2.7 has MAC 02:00:00:00:00:08 here and 02:00:00:00:00:07 by a command; a VTEP has one in a network: correct one",
            ),
            (
                route("10.244.8.0/24", "192.0.2.8", "02:00:00:00:00:07"),
                "MAC 02:00:00:00:00:07 is that of VTEP 192.0.2.7 by a command; in a network a MAC belongs to one VTEP: correct one",
            ),
            (
                route("10.244.1.0/25", "192.0.2.8", "02:00:00:00:00:08"),
                "10.244.1.0/25 overlaps this node's pod prefix 10.244.1.0/24; route only what lives on other nodes",
            ),
        ] {
            let error = config.add(&entry).expect_err(why);
            assert_eq!(error.to_string(), why);
            assert_eq!(config, before);
        }
        config.add(&pod("veth-y", "10.244.1.5")).expect("sound");
        let error = config.add(&pod("veth-z", "10.244.1.6")).expect_err("full");
        assert!(error.to_string().contains("max_ports"), "{error}");
    }
}
