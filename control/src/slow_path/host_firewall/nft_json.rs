//! Tables from `nft -j -t list ruleset` (libnftables-json(5)): what is understood of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value as Json;

use super::model::{Action, Chain, Field, Hook, Match, Rule, Table, Value, protocol_number};

#[derive(Deserialize)]
struct Ruleset {
    nftables: Vec<Item>,
}

/// One of these; what else there is (tables, sets, counters) is left out.
#[derive(Deserialize)]
struct Item {
    chain: Option<ChainItem>,
    rule: Option<RuleItem>,
}

#[derive(Deserialize)]
struct ChainItem {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
    dev: Option<Json>,
}

#[derive(Deserialize)]
struct RuleItem {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    expr: Vec<Json>,
}

/// All tables but the one of this name.
pub(super) fn tables(text: &str, own: &str) -> Result<Vec<Table>, serde_json::Error> {
    let ruleset: Ruleset = serde_json::from_str(text)?;
    let mut tables: BTreeMap<(String, String), Table> = BTreeMap::new();
    for item in ruleset.nftables {
        if let Some(chain) = item.chain.filter(|chain| chain.table != own) {
            let key = (chain.family.clone(), chain.table.clone());
            let table = tables.entry(key).or_insert_with(|| Table {
                name: format!("{} {}", chain.family, chain.table),
                families: families(&chain.family),
                chains: BTreeMap::new(),
            });
            let hook = chain.hook.as_deref().and_then(hook);
            let drops = chain.policy.as_deref() == Some("drop");
            let made = Chain {
                hook: hook.map(|hook| (hook, drops)),
                device: chain.dev.as_ref().and_then(Json::as_str).map(Into::into),
                rules: Vec::new(),
            };
            table.chains.insert(chain.name, made);
        }
        if let Some(of) = item.rule.filter(|rule| rule.table != own) {
            let table = tables.get_mut(&(of.family, of.table));
            if let Some(chain) = table.and_then(|table| table.chains.get_mut(&of.chain)) {
                rules(&mut chain.rules, &of.expr);
            }
        }
    }
    Ok(tables.into_values().collect())
}

fn families(family: &str) -> [bool; 2] {
    match family {
        "ip" => [true, false],
        "ip6" => [false, true],
        "inet" | "netdev" => [true, true],
        // Bridges and ARP are not on the way.
        _ => [false, false],
    }
}

fn hook(name: &str) -> Option<Hook> {
    Some(match name {
        "ingress" => Hook::Ingress,
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        _ => return None,
    })
}

/// A rule, or one for each element of a verdict map.
fn rules(all: &mut Vec<Rule>, parts: &[Json]) {
    let mut matches = Vec::new();
    let mut rest = parts.iter().peekable();
    while let Some(part) = rest.next() {
        let Some((name, about)) = part.as_object().and_then(|part| part.iter().next()) else {
            continue;
        };
        match name.as_str() {
            "match" => matches.extend(matched(about)),
            "vmap" => return verdict_map(all, &matches, about),
            "counter" | "log" | "notrack" | "mangle" | "meter" | "comment" => {}
            // iptables' own: a match, unless it is the last.
            "xt" if rest.peek().is_none() => {
                return all.push(Rule {
                    matches,
                    action: target(about),
                });
            }
            _ => match action(name, about) {
                Some(action) => return all.push(Rule { matches, action }),
                None => matches.push(Match::Unknown),
            },
        }
    }
}

fn target(about: &Json) -> Action {
    match about["name"].as_str() {
        Some("REJECT" | "DROP") => Action::Drop,
        Some("NFQUEUE" | "QUEUE") | None => Action::Unknown,
        // Marks, logs, translations.
        Some(_) => Action::Continue,
    }
}

fn action(name: &str, about: &Json) -> Option<Action> {
    let target = || about["target"].as_str().unwrap_or_default().to_owned();
    Some(match name {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Drop,
        "return" => Action::Return,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        "queue" => Action::Unknown,
        "continue" | "masquerade" | "snat" | "dnat" | "redirect" | "flow" | "ct helper" => {
            Action::Continue
        }
        _ => return None,
    })
}

fn verdict_map(all: &mut Vec<Rule>, before: &[Match], about: &Json) {
    let with = |more: Match, verdict: &Json| {
        let verdict = verdict.as_object().and_then(|it| it.iter().next());
        let action = verdict.and_then(|(name, about)| action(name, about));
        let mut matches = before.to_vec();
        matches.push(more);
        Rule {
            matches,
            action: action.unwrap_or(Action::Unknown),
        }
    };
    let Some(elements) = about["data"]["set"].as_array() else {
        // A named map, whose elements are not listed.
        return all.push(Rule {
            matches: before.iter().cloned().chain([Match::Unknown]).collect(),
            action: Action::Unknown,
        });
    };
    let asks = asks(&about["key"]);
    for element in elements {
        let matched = match &asks {
            Some((field, implied)) => {
                let mut all = implied.clone();
                all.push(Match::Is {
                    field: *field,
                    values: values(*field, &element[0]),
                    negated: false,
                });
                all
            }
            None => vec![Match::Unknown],
        };
        let mut rule = with(Match::Unknown, &element[1]);
        rule.matches.pop();
        rule.matches.extend(matched);
        all.push(rule);
    }
}

/// What a `match` asks, with what it implies.
fn matched(about: &Json) -> Vec<Match> {
    let negated = about["op"] == "!=";
    let simple = matches!(about["op"].as_str(), Some("==" | "!=" | "in"));
    let Some((field, mut all)) = asks(&about["left"]).filter(|_| simple) else {
        return vec![Match::Unknown];
    };
    let right = &about["right"];
    if right.as_str().is_some_and(|name| name.starts_with('@')) {
        all.push(Match::Unknown);
        return all;
    }
    all.push(Match::Is {
        field,
        values: values(field, right),
        negated,
    });
    all
}

/// The field that an expression reads, and what the packet must be to have it.
fn asks(left: &Json) -> Option<(Field, Vec<Match>)> {
    let number = |field, number| Match::Is {
        field,
        values: vec![Value::Numbers(number, number)],
        negated: false,
    };
    if let Some(key) = left["meta"]["key"].as_str() {
        let field = match key {
            "iif" | "iifname" => Field::Iif,
            "oif" | "oifname" => Field::Oif,
            "l4proto" => Field::Protocol,
            "nfproto" | "protocol" => Field::Family,
            _ => return None,
        };
        return Some((field, Vec::new()));
    }
    if left["ct"]["key"] == "state" {
        return Some((Field::State, Vec::new()));
    }
    let fib = &left["fib"];
    if fib["result"] == "type" && fib["flags"].as_array().is_some_and(|it| *it == ["daddr"]) {
        return Some((Field::DestinationType, Vec::new()));
    }
    let payload = &left["payload"];
    let (protocol, field) = (payload["protocol"].as_str()?, payload["field"].as_str()?);
    let family = match protocol {
        "ip" => Some(number(Field::Family, 4)),
        "ip6" => Some(number(Field::Family, 6)),
        _ => None,
    };
    match (family, field) {
        (Some(family), "saddr") => return Some((Field::Source, vec![family])),
        (Some(family), "daddr") => return Some((Field::Destination, vec![family])),
        (Some(family), "protocol" | "nexthdr") => return Some((Field::Protocol, vec![family])),
        (Some(_), _) => return None,
        (None, _) => {}
    }
    let implied = match protocol {
        "th" => Vec::new(),
        name => vec![number(Field::Protocol, protocol_number(name)?)],
    };
    match field {
        "sport" => Some((Field::SourcePort, implied)),
        "dport" => Some((Field::DestinationPort, implied)),
        _ => None,
    }
}

/// The values on the right of a comparison; what is not understood fits nothing and everything.
fn values(field: Field, right: &Json) -> Vec<Value> {
    if let Some(all) = right["set"].as_array().or(right.as_array()) {
        return all.iter().flat_map(|one| values(field, one)).collect();
    }
    if let Some(range) = right["range"].as_array() {
        let ends = [range.first(), range.get(1)];
        if let [Some(low), Some(high)] = ends.map(|it| it.and_then(Json::as_u64)) {
            return vec![Value::Numbers(low, high)];
        }
        let ends = ends.map(|it| it.and_then(Json::as_str)?.parse::<IpAddr>().ok());
        if let [Some(low), Some(high)] = ends {
            return vec![Value::Addresses(low, high)];
        }
        return vec![Value::Word(String::new())];
    }
    if let Some(address) = right["prefix"]["addr"].as_str() {
        let length = right["prefix"]["len"].as_u64();
        let length = length.and_then(|length| u8::try_from(length).ok());
        let net = address.parse().ok().zip(length);
        let net = net.and_then(|(address, length)| IpNet::new(address, length).ok());
        return vec![net.map_or(Value::Word(String::new()), Value::Net)];
    }
    if let Some(number) = right.as_u64() {
        return vec![Value::Numbers(number, number)];
    }
    let word = right.as_str().unwrap_or_default();
    let value = match field {
        Field::Source | Field::Destination => {
            word.parse::<IpAddr>().ok().map(|it| Value::Net(it.into()))
        }
        Field::Protocol => protocol_number(word).map(|it| Value::Numbers(it, it)),
        Field::Family => match word {
            "ipv4" | "ip" => Some(Value::Numbers(4, 4)),
            "ipv6" | "ip6" => Some(Value::Numbers(6, 6)),
            _ => None,
        },
        _ => None,
    };
    vec![value.unwrap_or_else(|| Value::Word(word.to_owned()))]
}
