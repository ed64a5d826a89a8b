//! Rules for single values.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use ipnet::IpNet;

use super::prefix::special_use;
use crate::Mac;
use crate::hint::did_you_mean;
use crate::raw::{List, Number, Text};
use crate::source::{Place, Problems};

/// A text that must be there, with its place. `at` is its table, `example` what an operator could add.
pub(super) fn required<'a>(
    value: Option<&'a Text>,
    at: &Range<usize>,
    example: &str,
    problems: &mut Problems<'_>,
) -> Option<(&'a str, Range<usize>)> {
    if value.is_none() {
        missing(at, example, problems);
    }
    value.map(|text| (text.get_ref().as_str(), text.span()))
}

/// The texts of a list that must be there and not be empty, with their places.
pub(super) fn required_list<'a>(
    list: Option<&'a List<String>>,
    at: &Range<usize>,
    example: &str,
    problems: &mut Problems<'_>,
) -> Vec<(&'a str, Range<usize>)> {
    let Some(list) = list else {
        missing(at, example, problems);
        return Vec::new();
    };
    if list.get_ref().is_empty() {
        problems.report(
            &list.span(),
            format!("this list is empty; give at least one, like {example}"),
        );
    }
    list.get_ref()
        .iter()
        .map(|text| (text.get_ref().as_str(), text.span()))
        .collect()
}

/// Reports that a key is not there.
pub(super) fn missing(at: &Range<usize>, example: &str, problems: &mut Problems<'_>) {
    let key = example.split(' ').next().unwrap_or(example);
    problems.report(
        at,
        format!("`{key}` is missing here; add it, like {example}"),
    );
}

/// A number within `range`.
pub(super) fn number<T>(
    value: Option<&Number>,
    key: &str,
    range: &RangeInclusive<T>,
    problems: &mut Problems<'_>,
) -> Option<T>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let value = value?;
    let given = *value.get_ref();
    let fitting = T::try_from(given)
        .ok()
        .filter(|number| range.contains(number));
    if fitting.is_none() {
        let message = format!(
            "`{key}` cannot be {given}; give {} to {}",
            range.start(),
            range.end()
        );
        problems.report(&value.span(), message);
    }
    fitting
}

/// One of a few words.
pub(super) fn choice<T: Copy + Default>(
    value: Option<&Text>,
    key: &str,
    words: &[(&str, T)],
    problems: &mut Problems<'_>,
) -> T {
    let Some(value) = value else {
        return T::default();
    };
    let given = value.get_ref();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| word == given) {
        return *meaning;
    }
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let hint = did_you_mean(given, names.iter().copied());
    problems.report(
        &value.span(),
        format!(
            "`{key}` cannot be {given:?}; give one of {}{hint}",
            names.join(", ")
        ),
    );
    T::default()
}

/// A unicast MAC.
pub(super) fn mac(value: Option<&Text>, problems: &mut Problems<'_>) -> Option<Mac> {
    let value = value?;
    let given = value.get_ref();
    match given.parse::<Mac>() {
        Ok(mac) if mac.is_unicast() => return Some(mac),
        Ok(mac) => problems.report(
            &value.span(),
            format!("{mac} is no unicast MAC; give one that is not zero and whose first octet is even, like 02:..."),
        ),
        Err(error) => problems.report(&value.span(), format!("{given:?} is {error}")),
    }
    None
}

/// An underlay address: unicast.
pub(super) fn underlay_address(
    text: &str,
    at: &Range<usize>,
    problems: &mut Problems<'_>,
) -> Option<IpAddr> {
    let message = match text.parse::<IpAddr>() {
        // IPv4's link-local addresses are odd between nodes, but they work. IPv6's need to be told
        // the interface with each use.
        Ok(address) => match special_use(IpNet::from(address)) {
            None => return Some(address),
            Some("link-local") if address.is_ipv4() => return Some(address),
            Some(kind) => format!(
                "{address} is {kind}; give the unicast address of a node's underlay interface"
            ),
        },
        Err(_) => format!("{text:?} is not an IP address; write it like 192.0.2.1"),
    };
    problems.report(at, message);
    None
}

/// Whether outer UDP checksums over IPv6 are computed; none when it is not said.
pub(super) fn udp_checksum6(value: Option<&Text>, problems: &mut Problems<'_>) -> Option<bool> {
    let choices = [("zero", false), ("compute", true)];
    value.map(|value| choice(Some(value), "udp_checksum6", &choices, problems))
}

/// The DSCP of outer packets; none: copied.
pub(super) fn dscp(value: Option<&Text>, problems: &mut Problems<'_>) -> Option<u8> {
    let Some(value) = value else {
        return Some(0);
    };
    let given = value.get_ref();
    match given.as_str() {
        "copy" => return None,
        "clear" => return Some(0),
        _ => {}
    }
    match given.parse::<u8>() {
        Ok(dscp) if dscp < 64 => Some(dscp),
        _ => {
            let message = format!(
                "`dscp` cannot be {given:?}; give one of copy, clear, or a number from \"0\" to \"63\""
            );
            problems.report(&value.span(), message);
            Some(0)
        }
    }
}

/// An interface's name, by the rules of the kernel (`dev_valid_name` in net/core/dev.c; `IFNAMSIZ` is 16 with the
/// closing zero). Control characters are refused, too: no tool shows them.
pub(super) fn interface(name: &str, at: &Range<usize>, problems: &mut Problems<'_>) {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        let message = format!(
            "{name:?} is no interface name: 1 to 15 bytes without `/`, `:` and white space; `ip link` lists yours"
        );
        problems.report(at, message);
    }
}

/// The name of a network or a pod: something that can stand in a table and a label. Whether it is one.
pub(super) fn label(name: &str, at: &Range<usize>, problems: &mut Problems<'_>) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    let sound = !name.is_empty() && name.len() <= 253 && !name.contains(bad);
    if !sound {
        problems.report(
            at,
            format!("{name:?} is no name: give 1 to 253 bytes without white space"),
        );
    }
    sound
}

/// Whether a text is a node's name: RFC 1123 section 2.1 labels, lower case as in Kubernetes, 63 bytes at most, so that
/// it can be part of a path.
pub fn is_node_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        label.bytes().all(|byte| plain(byte) || byte == b'-')
            && label.bytes().next().is_some_and(plain)
            && label.bytes().last().is_some_and(plain)
    };
    name.len() <= 63 && name.split('.').all(label)
}

/// [`is_node_name`], said where it is not.
pub(super) fn node_name(name: &str, at: &Range<usize>, problems: &mut Problems<'_>) -> bool {
    let sound = is_node_name(name);
    if !sound {
        let message = format!(
            "{name:?} is no node name: 1 to 63 lower-case letters, digits and hyphens, in labels joined by dots that \
             begin and end with a letter or digit (RFC 1123); rename it, like node-a"
        );
        problems.report(at, message);
    }
    sound
}

/// Things that may occur only once, with the place of each.
#[derive(Default)]
pub(super) struct Once<K>(HashMap<K, Place>);

impl<K: Eq + std::hash::Hash> Once<K> {
    /// Notes what an entry has that was checked before.
    pub(super) fn known(&mut self, key: K, place: Place) {
        self.0.insert(key, place);
    }

    /// Notes `key` at `at`, and reports it as `what` when it was there before. Whether it is new.
    pub(super) fn note(
        &mut self,
        key: K,
        what: &dyn Display,
        at: &Range<usize>,
        problems: &mut Problems<'_>,
    ) -> bool {
        let place = problems.place(at);
        match self.0.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(place);
                true
            }
            Entry::Occupied(entry) => {
                let before = problems.spoken(*entry.get());
                let message =
                    format!("{what} is already used {before}; change or remove one of the two");
                problems.report(at, message);
                false
            }
        }
    }
}
