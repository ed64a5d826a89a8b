//! Firewall chains and rules, as far as they are understood, and what they do to a packet of which
//! only some is known. Three answers: it passes, it is dropped, or it depends on what is not known.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// How deep chains may call each other; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tri {
    Yes,
    No,
    Maybe,
}

impl Tri {
    pub(super) fn of(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    pub(super) fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }
}

/// Where the kernel asks a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// Packets of one kind: what is known of all of them.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// In words, for sentences.
    pub(super) what: String,
    /// What to do about a chain that drops them, its name in place of `CHAIN`.
    pub(super) mend: String,
    pub(super) hooks: Vec<Hook>,
    /// The interfaces by which they may come; empty: by none.
    pub(super) iif: Vec<String>,
    /// Those by which they may leave.
    pub(super) oif: Vec<String>,
    /// Where their addresses lie.
    pub(super) source: Vec<IpNet>,
    pub(super) destination: Vec<IpNet>,
    /// The protocol's number, where it is one.
    pub(super) protocol: Option<u8>,
    /// The UDP port that they go to.
    pub(super) port: Option<u16>,
    /// Connection states that they may have.
    pub(super) states: Vec<&'static str>,
    /// Whether they are for this host.
    pub(super) local: bool,
}

impl Probe {
    pub(super) fn is_v4(&self) -> bool {
        self.source.iter().all(|net| net.addr().is_ipv4())
    }
}

/// A part of a packet that rules look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Iif,
    Oif,
    Source,
    Destination,
    /// Of the IP packet: 4 or 6.
    Family,
    Protocol,
    SourcePort,
    DestinationPort,
    State,
    /// The kind of the destination address.
    DestinationType,
}

/// A value that a field may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Word(String),
    Numbers(u64, u64),
    Net(IpNet),
    /// From one address to another.
    Addresses(std::net::IpAddr, std::net::IpAddr),
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The field has one of these, or, negated, none of them.
    Is {
        field: Field,
        values: Vec<Value>,
        negated: bool,
    },
    /// Something that is not looked into.
    Unknown,
}

/// What becomes of a packet that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Something that may end the packet.
    Unknown,
    Continue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// The hook of a base chain, and whether what it does not accept is dropped.
    pub(super) hook: Option<(Hook, bool)>,
    /// For a chain of one device.
    pub(super) device: Option<String>,
    pub(super) rules: Vec<Rule>,
}

/// A table: chains by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// As messages name it: `inet filter`.
    pub(super) name: String,
    /// Whether it has IPv4 packets, IPv6 ones.
    pub(super) families: [bool; 2],
    pub(super) chains: BTreeMap<String, Chain>,
}

/// What a base chain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    Dropped,
    MayBeDropped,
}

/// How a walk through a chain ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    /// At the end of its rules.
    Through,
}

/// What has happened on the way.
struct Walk<'a> {
    table: &'a Table,
    probe: &'a Probe,
    /// Whether some of the packets may have been dropped, or accepted, by rules that may be about
    /// them.
    dropped: bool,
    accepted: bool,
}

impl Table {
    /// What its base chains do to such packets, by the chains' names.
    pub(super) fn fates(&self, probe: &Probe) -> Vec<(&str, Fate)> {
        if !self.families[usize::from(!probe.is_v4())] {
            return Vec::new();
        }
        let bases = self.chains.iter().filter_map(|(name, chain)| {
            let (hook, drops) = chain.hook?;
            let device = chain.device.as_ref();
            let here = device.is_none_or(|device| probe.iif.contains(device));
            (probe.hooks.contains(&hook) && here).then_some((name, drops))
        });
        let fates = bases.map(|(name, drops)| (name.as_str(), self.fate(probe, name, drops)));
        fates.collect()
    }

    fn fate(&self, probe: &Probe, base: &str, drops: bool) -> Fate {
        let mut walk = Walk {
            table: self,
            probe,
            dropped: false,
            accepted: false,
        };
        let end = walk.chain(base, 0);
        let dropped = end == End::Dropped || (end == End::Through && drops);
        match (dropped, walk.accepted, walk.dropped) {
            (true, false, _) => Fate::Dropped,
            (true, true, _) | (false, _, true) => Fate::MayBeDropped,
            (false, _, false) => Fate::Passes,
        }
    }
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> End {
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < DEPTH) else {
            return End::Through;
        };
        for rule in &chain.rules {
            let all = rule.matches.iter().map(|it| self.probe.meets(it));
            let about = all.fold(Tri::Yes, Tri::and);
            if about == Tri::No {
                continue;
            }
            let certain = about == Tri::Yes;
            let end = match &rule.action {
                Action::Unknown => {
                    self.dropped = true;
                    continue;
                }
                Action::Accept => End::Accepted,
                Action::Drop => End::Dropped,
                Action::Return if certain => return End::Through,
                // Of what may return, the rest goes on.
                Action::Return | Action::Continue => continue,
                Action::Jump(target) => match self.chain(target, depth + 1) {
                    End::Through => continue,
                    end => end,
                },
                Action::Goto(target) => match self.chain(target, depth + 1) {
                    End::Through if certain => return End::Through,
                    End::Through => continue,
                    end => end,
                },
            };
            if certain {
                return end;
            }
            self.dropped |= end == End::Dropped;
            self.accepted |= end == End::Accepted;
        }
        End::Through
    }
}

impl Probe {
    fn meets(&self, rule: &Match) -> Tri {
        let Match::Is {
            field,
            values,
            negated,
        } = rule
        else {
            return Tri::Maybe;
        };
        let is = match field {
            Field::Iif => names(&self.iif, values),
            Field::Oif => names(&self.oif, values),
            Field::Source => addresses(&self.source, values),
            Field::Destination => addresses(&self.destination, values),
            Field::Family => number(Some(if self.is_v4() { 4 } else { 6 }), values),
            Field::Protocol => number(self.protocol.map(u64::from), values),
            Field::SourcePort => self.udp().and(Tri::Maybe),
            Field::DestinationPort => match self.port {
                Some(port) => number(Some(port.into()), values),
                None => Tri::Maybe,
            },
            Field::State => {
                let of = |state: &&'static str| Value::Word((*state).to_owned());
                any_all(
                    self.states
                        .iter()
                        .map(|state| Tri::of(values.contains(&of(state)))),
                )
            }
            Field::DestinationType => {
                Tri::of(self.local == values.contains(&Value::Word("local".into())))
            }
        };
        if *negated { is.not() } else { is }
    }

    fn udp(&self) -> Tri {
        self.protocol.map_or(Tri::Maybe, |it| Tri::of(it == 17))
    }
}

/// Of all that packets may have: all, none, or some.
fn any_all(all: impl Iterator<Item = Tri>) -> Tri {
    let all: Vec<Tri> = all.collect();
    if all.iter().all(|it| *it == Tri::No) {
        Tri::No
    } else if all.iter().all(|it| *it == Tri::Yes) {
        Tri::Yes
    } else {
        Tri::Maybe
    }
}

/// A name may end in `*`, or `+` with iptables, which is turned into it.
fn names(of: &[String], values: &[Value]) -> Tri {
    any_all(of.iter().map(|name| {
        Tri::of(values.iter().any(|value| match value {
            Value::Word(word) => match word.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => name == word,
            },
            _ => false,
        }))
    }))
}

fn number(of: Option<u64>, values: &[Value]) -> Tri {
    let Some(of) = of else {
        return Tri::Maybe;
    };
    let within = |value: &Value| match value {
        Value::Numbers(low, high) => Tri::of((*low..=*high).contains(&of)),
        // A name that is not known as a number.
        _ => Tri::Maybe,
    };
    values.iter().map(within).fold(Tri::No, Tri::or)
}

fn addresses(of: &[IpNet], values: &[Value]) -> Tri {
    any_all(of.iter().map(|net| {
        let covered = |value: &Value| match value {
            Value::Net(other) if other.contains(net) => Tri::Yes,
            Value::Net(other) if net.contains(other) => Tri::Maybe,
            Value::Net(_) => Tri::No,
            Value::Addresses(low, high) => {
                let (first, last) = (net.network(), net.broadcast());
                if first.is_ipv4() != low.is_ipv4() || last < *low || *high < first {
                    Tri::No
                } else {
                    Tri::of(*low <= first && last <= *high).or(Tri::Maybe)
                }
            }
            _ => Tri::Maybe,
        };
        values.iter().map(covered).fold(Tri::No, Tri::or)
    }))
}

/// The number of a protocol, by its name or its digits.
pub(super) fn protocol_number(word: &str) -> Option<u64> {
    Some(match word {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "ipv6-icmp" | "icmpv6" => 58,
        "sctp" => 132,
        "udplite" => 136,
        "dccp" => 33,
        "esp" => 50,
        "ah" => 51,
        "gre" => 47,
        _ => return word.parse().ok(),
    })
}

/// All states that a rule may name.
pub(super) fn states(words: &BTreeSet<String>) -> Vec<Value> {
    words
        .iter()
        .map(|word| Value::Word(word.to_lowercase()))
        .collect()
}
