//! Rules as `nft -j` and `iptables-save` show them, and what is said of them.

use super::*;
use crate::testing;

fn probes() -> Probes {
    let mut options = testing::options();
    options.gossip_port = Some(7946);
    options.peers = vec![[192, 0, 2, 2].into()];
    Probes::new(&options, &options.networks[0], &["viaduct.1"])
}

fn nft(chain: &str, rules: &[&str]) -> HostFirewall {
    let rules = rules.iter().map(|rule| {
        let (chain, expr) = rule.split_once('|').unwrap_or(("c", rule));
        format!(
            r#", {{"rule": {{"family": "inet", "table": "fw", "chain": "{chain}", "expr": [{expr}]}}}}"#
        )
    });
    let rules: Vec<String> = rules.collect();
    let rules = rules.concat();
    let text = format!(
        r#"{{"nftables": [{{"metainfo": {{}}}},
            {{"chain": {{"family": "inet", "table": "fw", "name": "c", {chain}}}}},
            {{"chain": {{"family": "inet", "table": "fw", "name": "sub"}}}}{rules}]}}"#
    );
    let listings = Listings {
        nft: Some(text),
        ..Listings::default()
    };
    judge(&listings, &probes())
}

const INPUT_DROP: &str = r#""hook": "input", "policy": "drop""#;
const INPUT: &str = r#""hook": "input", "policy": "accept""#;
const FORWARD: &str = r#""hook": "forward", "policy": "accept""#;
const ACCEPT_GOSSIP: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 7946}}, {"accept": null}"#;

fn dport(port: &str, verdict: &str) -> String {
    format!(
        r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "udp", "field": "dport"}}}}, "right": {port}}}}}, {{"{verdict}": null}}"#
    )
}

#[test]
fn a_policy_of_drop_is_named_for_what_it_does_not_accept() {
    let found = nft(INPUT_DROP, &[ACCEPT_GOSSIP]);
    assert_eq!(found.problems.len(), 1, "{found:?}");
    for part in [
        "inet fw c drops other nodes' tunnel packets",
        "accept UDP port 8472",
    ] {
        assert!(found.problems[0].contains(part), "{part}: {found:?}");
    }
    let ports = dport(r#"{"set": [7946, {"range": [8000, 9000]}]}"#, "accept");
    assert_eq!(nft(INPUT_DROP, &[&ports]), HostFirewall::default());
    // In other words.
    for rule in [
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth*"}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": ["udp", "tcp"]}}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "192.0.2.0", "len": 24}}}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"range": ["192.0.2.1", "192.0.2.9"]}}}, {"accept": null}"#,
        r#"{"match": {"op": "!=", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 53}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}, {"accept": null}"#,
        r#"{"vmap": {"key": {"payload": {"protocol": "udp", "field": "dport"}}, "data": {"set": [[8472, {"accept": null}], [7946, {"jump": {"target": "sub"}}]]}}}"#,
    ] {
        let found = nft(
            INPUT_DROP,
            &[rule, r#"sub|{"accept": null}"#, ACCEPT_GOSSIP],
        );
        assert_eq!(found, HostFirewall::default(), "{rule}");
    }
}

#[test]
fn a_rule_that_drops_is_named_and_one_for_others_is_not() {
    let found = nft(INPUT, &[&dport("8472", "drop")]);
    assert!(
        found.problems[0].contains("drops other nodes' tunnel"),
        "{found:?}"
    );
    let found = nft(INPUT, &[&dport("7946", "reject")]);
    assert!(
        found.problems[0].contains("drops other nodes' gossip"),
        "{found:?}"
    );
    let found = nft(
        INPUT,
        &[
            r#"{"jump": {"target": "sub"}}"#,
            r#"sub|{"counter": {}}, {"drop": null}"#,
        ],
    );
    assert_eq!(found.problems.len(), 2, "{found:?}");
    let output = r#""hook": "output", "policy": "accept""#;
    let found = nft(output, &[&dport("8472", "drop")]);
    assert!(
        found.problems[0].contains("drops this node's tunnel"),
        "{found:?}"
    );
    for rule in [
        dport("53", "drop"),
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 8472}}, {"drop": null}"#.into(),
        r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "saddr"}}, "right": "fd00::1"}}, {"drop": null}"#.into(),
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": "docker0"}}, {"drop": null}"#.into(),
        r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}, {"drop": null}"#.into(),
        r#"{"return": null}"#.into(),
    ] {
        assert_eq!(nft(INPUT, &[&rule]), HostFirewall::default(), "{rule}");
    }
}

#[test]
fn what_depends_on_what_is_not_seen_is_a_note() {
    let unseen = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@nodes"}}"#;
    let accepts = format!(r#"{unseen}, {{"accept": null}}"#);
    let found = nft(INPUT_DROP, &[&accepts, ACCEPT_GOSSIP]);
    assert_eq!(
        (found.problems.len(), found.notes.len()),
        (0, 1),
        "{found:?}"
    );
    let drops = format!(r#"{unseen}, {{"drop": null}}"#);
    for rule in [
        drops.as_str(),
        r#"{"xt": {"type": "match", "name": "conntrack"}}, {"drop": null}"#,
        r#"{"limit": {"rate": 1}}, {"drop": null}"#,
        r#"{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 5}}, {"drop": null}"#,
        r#"{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@zones"}}"#,
        r#"{"something": "new"}, {"drop": null}"#,
    ] {
        let found = nft(INPUT, &[rule]);
        assert!(
            found.problems.is_empty() && !found.notes.is_empty(),
            "{rule}: {found:?}"
        );
    }
    assert_eq!(
        nft(INPUT, &[r#"{"xt": {"type": "target", "name": "LOG"}}"#]),
        HostFirewall::default()
    );
    let found = nft(INPUT, &[r#"{"xt": {"type": "target", "name": "REJECT"}}"#]);
    assert_eq!(found.problems.len(), 2, "{found:?}");
}

#[test]
fn the_hosts_own_rules_between_pods_are_said_to_be_the_kernels() {
    let pair = |key: &str, address: &str| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "{key}"}}}}, "right": "{address}"}}}}"#
        )
    };
    let rule = |from: &str, to: &str| {
        format!(
            r#"{}, {}, {{"drop": null}}"#,
            pair("saddr", from),
            pair("daddr", to)
        )
    };
    let found = nft(FORWARD, &[&rule("10.42.1.10", "10.42.2.2")]);
    assert_eq!(
        (found.problems.len(), found.notes.len()),
        (0, 1),
        "{found:?}"
    );
    assert!(found.notes[0].contains("workers pass them"), "{found:?}");
    let found = nft(FORWARD, &[&rule("10.99.0.1", "10.42.2.2")]);
    assert_eq!(found, HostFirewall::default());
    let found = nft(r#""hook": "forward", "policy": "drop""#, &[]);
    assert!(
        found.problems[0].contains("drops packets between pods"),
        "{found:?}"
    );
}

#[test]
fn rules_of_iptables_are_read() {
    let of = |rules: &str| {
        let text = format!(
            "# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:F - [0:0]\n\
             -A FORWARD -s 10.42.0.0/16 -j ACCEPT\n-A FORWARD -d 10.42.0.0/16 -m comment --comment \"to \\\"pods\\\" -j DROP\" -j ACCEPT\n\
             {rules}\nCOMMIT\n"
        );
        let listings = Listings {
            legacy: [Some(text), None],
            ..Listings::default()
        };
        judge(&listings, &probes())
    };
    assert_eq!(of(""), HostFirewall::default());
    for rule in [
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
        "-A INPUT -i eth+ -p udp -m multiport --dports 53,8000:9000 -j REJECT --reject-with icmp-port-unreachable",
        "-A INPUT ! -i lo -p udp -j F\n-A F -m state --state NEW,UNTRACKED -j DROP",
        "-A INPUT -p 17 ! -s 10.0.0.0/8 -m udp --dport 8472 -g F\n-A F -j DROP",
    ] {
        let found = of(rule);
        let tunnel = found.problems.iter().filter(|said| said.contains("tunnel"));
        assert_eq!(tunnel.count(), 1, "{rule}: {found:?}");
        assert!(
            found.problems[0].contains("ip filter (iptables-legacy) INPUT"),
            "{found:?}"
        );
    }
    for rule in [
        "-A INPUT -p udp -m udp --dport 53 -j DROP",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -j LOG --log-prefix \"x \"",
        "-A INPUT -i docker0 -j DROP",
        "-A INPUT -p udp --dport 8472 -j ACCEPT\n-A INPUT -p udp --dport 7946 -j ACCEPT\n-A INPUT -j DROP",
    ] {
        assert_eq!(of(rule), HostFirewall::default(), "{rule}");
    }
    let found = of("-A INPUT -m recent --update --seconds 60 -j DROP");
    assert!(
        found.problems.is_empty() && !found.notes.is_empty(),
        "{found:?}"
    );
}

#[test]
fn nonsense_is_no_reason_to_fall_over() {
    for text in [
        "",
        "{",
        "[]",
        r#"{"nftables": {}}"#,
        r#"{"nftables": [{"chain": {}}]}"#,
    ] {
        let listings = Listings {
            nft: Some(text.into()),
            ..Listings::default()
        };
        assert_eq!(judge(&listings, &probes()).notes.len(), 1, "{text}");
    }
    let listings = Listings {
        legacy: [
            Some("-A\n*\n:\n-A X\n-A INPUT !\n-A INPUT -j".into()),
            Some(":A B\n*x\n-A".into()),
        ],
        ..Listings::default()
    };
    judge(&listings, &probes());
    // Chains that call each other end.
    let found = nft(
        INPUT,
        &[
            r#"{"jump": {"target": "sub"}}"#,
            r#"sub|{"jump": {"target": "sub"}}"#,
        ],
    );
    assert_eq!(found, HostFirewall::default());
}
