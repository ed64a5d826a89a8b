//! Tables from `iptables-save` and `ip6tables-save` (iptables-extensions(8)): what is understood of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{
    Action, Chain, Field, Hook, Match, Rule, Table, Value, protocol_number, states,
};

/// All tables of one family.
pub(super) fn tables(text: &str, v4: bool) -> Vec<Table> {
    let mut tables = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let family = if v4 { "ip" } else { "ip6" };
            tables.push(Table {
                name: format!("{family} {name} (iptables-legacy)"),
                families: [v4, !v4],
                chains: BTreeMap::new(),
            });
        }
        let Some(table) = tables.last_mut() else {
            continue;
        };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            let (Some(name), policy) = (words.next(), words.next()) else {
                continue;
            };
            let chain = Chain {
                hook: hook(name).map(|hook| (hook, policy == Some("DROP"))),
                ..Chain::default()
            };
            table.chains.insert(name.to_owned(), chain);
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let words = words(rest);
            let mut words = words.iter().map(String::as_str);
            let chain = words.next().unwrap_or_default();
            if let Some(chain) = table.chains.get_mut(chain) {
                chain.rules.push(rule(words));
            }
        }
    }
    tables
}

fn hook(chain: &str) -> Option<Hook> {
    Some(match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    })
}

/// Words, of which those in quotation marks may have spaces.
fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let (mut word, mut quoted, mut escaped) = (String::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => all.push(std::mem::take(&mut word)),
            _ => word.push(c),
        }
    }
    all.push(word);
    all.retain(|word| !word.is_empty());
    all
}

fn rule<'a>(words: impl Iterator<Item = &'a str>) -> Rule {
    let mut rule = Rule {
        matches: Vec::new(),
        action: Action::Continue,
    };
    let mut negated = false;
    let mut words = words.peekable();
    while let Some(option) = words.next() {
        let mut argument = || words.next().unwrap_or_default();
        let (field, values) = match option {
            "!" => {
                negated = true;
                continue;
            }
            "-j" | "-g" => {
                rule.action = action(argument(), option == "-g");
                // What follows is the target's.
                break;
            }
            // A module's own options follow.
            "-m" | "--comment" => {
                argument();
                continue;
            }
            "-s" => (Field::Source, nets(argument())),
            "-d" => (Field::Destination, nets(argument())),
            "-i" => (Field::Iif, vec![interface(argument())]),
            "-o" => (Field::Oif, vec![interface(argument())]),
            "-p" => (Field::Protocol, vec![protocol(argument())]),
            "--dport" | "--dports" => (Field::DestinationPort, ports(argument())),
            "--sport" | "--sports" => (Field::SourcePort, ports(argument())),
            "--state" | "--ctstate" => {
                let words: BTreeSet<String> = argument().split(',').map(Into::into).collect();
                (Field::State, states(&words))
            }
            _ => {
                while words
                    .peek()
                    .is_some_and(|next| !next.starts_with('-') && *next != "!")
                {
                    words.next();
                }
                rule.matches.push(Match::Unknown);
                negated = false;
                continue;
            }
        };
        rule.matches.push(Match::Is {
            field,
            values,
            negated,
        });
        negated = false;
    }
    rule
}

fn action(target: &str, goto: bool) -> Action {
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "NFQUEUE" | "QUEUE" => Action::Unknown,
        // A chain that is none is a target that goes on: a mark, a log, a translation.
        chain if goto => Action::Goto(chain.to_owned()),
        chain => Action::Jump(chain.to_owned()),
    }
}

fn nets(text: &str) -> Vec<Value> {
    let one = |text: &str| {
        let net = text.parse().ok();
        let net = net.or_else(|| text.parse::<std::net::IpAddr>().ok().map(Into::into));
        net.map_or_else(|| Value::Word(text.to_owned()), Value::Net)
    };
    text.split(',').map(one).collect()
}

fn interface(text: &str) -> Value {
    Value::Word(
        text.strip_suffix('+')
            .map_or_else(|| text.to_owned(), |it| format!("{it}*")),
    )
}

fn protocol(text: &str) -> Value {
    let number = protocol_number(text);
    number.map_or_else(|| Value::Word(text.to_owned()), |it| Value::Numbers(it, it))
}

fn ports(text: &str) -> Vec<Value> {
    let one = |text: &str| {
        let (low, high) = text.split_once(':').unwrap_or((text, text));
        let ends = low.parse().ok().zip(high.parse().ok());
        ends.map_or_else(
            || Value::Word(text.to_owned()),
            |(low, high)| Value::Numbers(low, high),
        )
    };
    text.split(',').map(one).collect()
}
