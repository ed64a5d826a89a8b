//! Syntax, keys, types, and what concerns the node itself.

use super::{Case, check, errors};

#[test]
fn syntax_keys_and_types() {
    check(&[
        Case(1, "[node]", "[node", &["not valid TOML", "unclosed table"]),
        Case(
            2,
            "\"node-a\"",
            "\"node-a",
            &["not valid TOML", "correct it"],
        ),
        Case(
            3,
            "[underlay]",
            "[underlya]",
            &["unknown key `underlya`", "did you mean `underlay`?"],
        ),
        Case(
            4,
            "interface",
            "Interfaces",
            &["unknown key `Interfaces`", "did you mean `interface`?"],
        ),
        Case(9, "max_ports", "max-ports", &["did you mean `max_ports`?"]),
        Case(
            9,
            "max_ports",
            "colour",
            &["unknown key `colour`", "known here", "heartbeat_timeout_ms"],
        ),
        Case(3, "[underlay]", "[node]", &["duplicate key"]),
        Case(5, "address", "interface", &["duplicate key"]),
        Case(
            2,
            "\"node-a\"",
            "7",
            &["found integer `7`", "text in double quotes"],
        ),
        Case(
            7,
            "2",
            "\"2\"",
            &["found string \"2\"", "whole number", "without quotes"],
        ),
        Case(7, "2", "2.5", &["floating point `2.5`", "whole number"]),
        Case(7, "2", "99999999999999999999", &["whole number below 2^63"]),
        Case(
            16,
            "[\"10.244.0.0/16\", \"fd00:1::/32\"]",
            "\"10.0.0.0/8\"",
            &["a list in square brackets"],
        ),
    ]);
    let single_brackets = errors("[pods]\ninterface = 'x'").to_string();
    assert!(
        single_brackets.contains("test.toml:1:1: ") && single_brackets.contains("[[pods]]"),
        "{single_brackets}"
    );
    let not_a_table = errors("node = 'a'").to_string();
    assert!(
        not_a_table.contains("test.toml:1:8: ") && not_a_table.contains("a table is needed"),
        "{not_a_table}"
    );
}

#[test]
fn node_and_underlay() {
    let long = format!("\"{}\"", "a".repeat(64));
    check(&[
        Case(
            2,
            "node-a",
            "Node_A",
            &["no node name", "lower-case", "RFC 1123"],
        ),
        Case(2, "node-a", "", &["no node name"]),
        Case(2, "node-a", "a..b", &["no node name"]),
        Case(2, "node-a", "-a", &["no node name"]),
        Case(2, "node-a", "a-", &["no node name"]),
        Case(2, "\"node-a\"", &long, &["1 to 63"]),
        Case(4, "eth0", "", &["no interface name", "1 to 15 bytes"]),
        Case(4, "eth0", "sixteen-bytes-ab", &["no interface name"]),
        Case(4, "eth0", "a/b", &["no interface name"]),
        Case(4, "eth0", "a b", &["no interface name"]),
        Case(4, "eth0", "..", &["no interface name"]),
        Case(5, "192.0.2.1", "192.0.2", &["not an IP address"]),
        Case(
            5,
            "192.0.2.1",
            "2001:db8::1",
            &["as `address6`", "IPv4 address"],
        ),
        Case(5, "192.0.2.1", "0.0.0.0", &["unspecified"]),
        Case(5, "192.0.2.1", "127.0.0.1", &["loopback"]),
        Case(5, "192.0.2.1", "239.0.0.1", &["multicast"]),
        Case(5, "192.0.2.1", "255.255.255.255", &["broadcast"]),
        Case(
            5,
            "address = \"192.0.2.1\"",
            "xdp = \"nativ\"",
            &["native, generic", "did you mean `native`?"],
        ),
        Case(
            5,
            "address = \"192.0.2.1\"",
            "queues = 0",
            &["`queues` cannot be 0", "1 to 1024"],
        ),
        Case(
            5,
            "address = \"192.0.2.1\"",
            "hook = \"tcx\"",
            &["`hook` cannot be \"tcx\"", "tc, xdp"],
        ),
        Case(
            5,
            "address = \"192.0.2.1\"",
            "queues = 4\nhook = \"tc\"",
            &["`queues` is about XDP", "hook is in tc"],
        ),
    ]);
}

#[test]
fn workers_and_runtime() {
    let deep = format!("/{}", "d".repeat(100));
    check(&[
        Case(7, "2", "0", &["`count` cannot be 0", "1 to 64"]),
        Case(7, "2", "65", &["1 to 64"]),
        Case(7, "2", "-1", &["`count` cannot be -1"]),
        Case(
            8,
            "[0, 1]",
            "[0]",
            &["1 CPUs for 2 workers", "one for each"],
        ),
        Case(8, "[0, 1]", "[1, 1]", &["CPU 1 is already used in line 8"]),
        Case(
            8,
            "[0, 1]",
            "[0, -1]",
            &["`cpus` cannot be -1", "0 to 1023"],
        ),
        Case(
            8,
            "cpus = [0, 1]",
            "polling = \"lazy\"",
            &["`polling`", "adaptive, busy"],
        ),
        Case(
            8,
            "cpus = [0, 1]",
            "gather_us = 1001",
            &["`gather_us`", "0 to 1000"],
        ),
        Case(9, "3", "1025", &["`max_ports`", "1 to 1024"]),
        Case(
            9,
            "max_ports = 3",
            "flow_cache = -1",
            &["`flow_cache`", "0 to 4194304"],
        ),
        Case(
            9,
            "max_ports = 3",
            "heartbeat_timeout_ms = 99",
            &["100 to 60000"],
        ),
        Case(
            11,
            "/run/viaduct",
            "run",
            &["\"run\" is not an absolute path", "slash"],
        ),
        Case(
            11,
            "directory = \"/run/viaduct\"",
            "bpffs = \"\"",
            &["not an absolute path"],
        ),
        Case(
            11,
            "/run/viaduct",
            &deep,
            &["control socket", "113 bytes", "at most 107", "shorter"],
        ),
    ]);
}
