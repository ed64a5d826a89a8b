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
    assert!(said("cluster = 'Mine'").contains("Mine"));
    assert!(said("colour = 1").contains("unknown key `colour`"));
}
