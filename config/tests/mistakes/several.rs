//! Mistakes that show elsewhere than they are made, and several at once.

use super::{errors, spoil};

/// Mistakes that show in another line than they are made in.
#[test]
fn mistakes_of_several_lines() {
    let cases = [
        (
            spoil(38, "node = \"node-b\"", ""),
            34,
            "the VTEP's MAC is missing",
        ),
        (
            spoil(43, "vtep_mac", "node = \"b\"\nvtep_mac"),
            44,
            "remove one of them",
        ),
        (
            spoil(25, "web", "veth-blue"),
            31,
            "pod \"veth-blue\" is already used in line 25",
        ),
        (
            spoil(27, "network", "#"),
            24,
            "`network` is missing here; with several, add it: one of \"default\", \"blue\"",
        ),
        (
            spoil(9, "3", "1"),
            30,
            "2 pods where workers.max_ports allows 1",
        ),
        (spoil(7, "2", "3"), 8, "2 CPUs for 3 workers"),
        (spoil(4, "eth0", "veth-web"), 26, "the underlay's interface"),
    ];
    for (text, line, words) in cases {
        let errors = errors(&text);
        let all = errors.to_string();
        let good =
            errors.iter().len() == 1 && all.contains(&format!(":{line}:")) && all.contains(words);
        assert!(good, "wanted line {line}, {words:?}, got:\n{all}");
    }
}

/// A mistake is reported once, not again by every rule that depends on it.
#[test]
fn a_mistake_causes_no_others() {
    for text in [
        spoil(15, "10.244.1.0/24", "10.244.1.0/33"),
        spoil(16, "10.244.0.0/16", "10.244.0.0/160"),
        spoil(14, "1", "0"),
        spoil(2, "node-a", "A"),
    ] {
        let errors = errors(&text);
        assert_eq!(errors.iter().len(), 1, "{errors}");
    }
}

#[test]
fn missing_tables_and_keys_are_all_reported() {
    let all = errors("").to_string();
    for words in [
        "no [node] table",
        "no [underlay] table",
        "no [[networks]] table",
    ] {
        assert!(all.contains(words), "{all}");
    }
    assert_eq!(errors("").iter().len(), 3);

    let text = "[node]\n[underlay]\n[[networks]]\n[[pods]]\n[[routes]]\n";
    let wanted = [
        (1, "`name` is missing"),
        (2, "`interface` is missing"),
        (3, "`name` is missing"),
        (3, "`vni` is missing"),
        (3, "`cluster_prefixes` is missing"),
        (3, "`pod_prefixes` is missing"),
        (4, "`interface` is missing"),
        (4, "`addresses` is missing"),
        (5, "`prefixes` is missing"),
        (5, "`vtep` is missing"),
        (5, "VTEP's MAC is missing"),
    ];
    let errors = errors(text);
    let got: Vec<_> = errors
        .iter()
        .map(|error| (error.position.unwrap().line, error.message.as_str()))
        .collect();
    assert_eq!(got.len(), wanted.len(), "{errors}");
    for ((line, message), (wanted_line, words)) in got.iter().zip(wanted) {
        assert!(
            *line == wanted_line && message.contains(words),
            "wanted {wanted_line}: {words}, got:\n{errors}"
        );
    }
}
