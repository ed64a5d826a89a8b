//! `[gossip]`.

use super::errors;

/// What is said of a file with this `[gossip]` table, which is its only one.
fn said(table: &str) -> String {
    errors(&format!("[gossip]\n{table}")).to_string()
}

#[test]
fn what_is_missing_or_wrong() {
    let all = said(
        "peers = ['10.0.0.2', '10.0.0.2:x', '10.0.0.2:0', ':7950', 'a b:1', '[10.0.0.2]:1', '2001:db8::2', '[2001:db8::2]:7', 'node-c.example:7950', '']\nport = 0\nstate = 'here'",
    );
    for part in [
        "`cluster` is missing",
        "`key_file` is missing",
        "\"10.0.0.2:x\" is no peer",
        "\"10.0.0.2:0\" is no peer",
        "\":7950\" is no peer",
        "\"a b:1\" is no peer",
        "\"[10.0.0.2]:1\" is no peer",
        "\"\" is no peer",
        "`port` cannot be 0",
        "\"here\" is not an absolute path",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    for sound in ["\"10.0.0.2\" is no", "db8", "node-c"] {
        assert!(!all.contains(&format!("{sound} is no peer")), "{all}");
    }
    assert!(said("probe_timeout_ms = 600").contains("more than half of its interval of 1000 ms"));
    assert!(said("probe_interval_ms = 49").contains("give 50 to 60000"));
    assert!(said("suspicion_ms = 600001").contains("give 50 to 600000"));
    let sound = said("probe_interval_ms = 200\nprobe_timeout_ms = 100\nsuspicion_ms = 400");
    assert!(!sound.contains("_ms"), "{sound}");
    let sound = said("probe_interval_ms = 200");
    assert!(!sound.contains("_ms"), "{sound}");
    assert!(said("cluster = 'Mine'").contains("Mine"));
    assert!(said("colour = 1").contains("unknown key `colour`"));
}

#[test]
fn trust_is_said() {
    assert!(said("port = 1").contains("`trust` is missing"));
    assert!(said("trust = 'all'").contains("all"));
    let missing = said("trust = 'authority'");
    assert!(missing.contains("`authority` is missing"), "{missing}");
    let needless = said("trust = 'configured'\nauthority = '00'");
    assert!(
        needless.contains("is for trust = \"authority\" only"),
        "{needless}"
    );
    let key = said("trust = 'authority'\nauthority = '00'");
    assert!(key.contains("\"00\" is no public key"), "{key}");
    let nodes = said(
        "trust = 'configured'\n[[gossip.nodes]]\nname = 'a'\n[[gossip.nodes]]\nname = 'a'\nallowed_prefixes = ['10.0.0.1/8']",
    );
    for part in [
        "`key` is missing",
        "node \"a\"",
        "10.0.0.1/8 has host bits set",
    ] {
        assert!(nodes.contains(part), "{part}: {nodes}");
    }
}

#[test]
fn only_a_part_of_an_own_prefix_is_delegated() {
    let said = |table: &str, gossip: &str| {
        let network = "[[networks]]\nname = 'n'\nvni = 1\npod_prefixes = ['10.244.1.0/24']\ncluster_prefixes = ['10.244.0.0/16']\n";
        errors(&format!("{gossip}{network}[[delegations]]\n{table}")).to_string()
    };
    let gossip = "[gossip]\n";
    for (table, why) in [
        (
            "prefix = '10.244.1.0/24'\nnode = 'b'",
            "is no part of one of this node's pod_prefixes",
        ),
        (
            "prefix = '10.244.2.7/32'\nnode = 'b'",
            "is no part of one of this node's pod_prefixes",
        ),
        ("node = 'b'", "`prefix` is missing"),
        ("prefix = '10.244.1.7/32'", "`node` is missing"),
        ("prefix = '10.244.1.7/32'\nnode = 'B'", "\"B\""),
    ] {
        let all = said(table, gossip);
        assert!(all.contains(why), "{why}: {all}");
    }
    let alone = said("prefix = '10.244.1.7/32'\nnode = 'b'", "");
    assert!(alone.contains("a delegation is told by gossip"), "{alone}");
}
