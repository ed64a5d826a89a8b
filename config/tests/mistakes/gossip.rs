//! `[gossip]`.

use super::errors;

/// What is said of a file with this `[gossip]` table, which is its only one.
fn said(table: &str) -> String {
    errors(&format!("[gossip]\n{table}")).to_string()
}

#[test]
fn what_is_missing_or_wrong() {
    let all = said(
        "peers = ['10.0.0.2', '10.0.0.2:x', '10.0.0.2:0', ':7946', 'a b:1', '[10.0.0.2]:1', '2001:db8::2', '[2001:db8::2]:7', 'node-c.example:7946', '']\nport = 0\nstate = 'here'",
    );
    for part in [
        "`cluster` is missing",
        "`key_file` is missing",
        "\"10.0.0.2:x\" is no peer",
        "\"10.0.0.2:0\" is no peer",
        "\":7946\" is no peer",
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
