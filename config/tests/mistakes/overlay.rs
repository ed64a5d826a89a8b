//! Networks, pods and routes.

use super::{Case, check};

#[test]
fn networks() {
    check(&[
        Case(13, "default", "a b", &["no name"]),
        Case(
            18,
            "blue",
            "default",
            &["network \"default\" is already used in line 13"],
        ),
        Case(19, "2", "1", &["VNI 1 is already used in line 14"]),
        Case(19, "2", "0", &["`vni` cannot be 0", "1 to 16777215"]),
        Case(19, "2", "16777216", &["1 to 16777215"]),
        Case(20, "4789", "65536", &["`port`", "1 to 65535"]),
        Case(
            21,
            "vtep_mac = \"02:00:00:00:00:01\"",
            "dscp = \"64\"",
            &["`dscp` cannot be \"64\"", "copy, clear", "63"],
        ),
        Case(
            21,
            "02:00:00:00:00:01",
            "03:00:00:00:00:01",
            &["no unicast MAC", "even"],
        ),
        Case(
            21,
            "02:00:00:00:00:01",
            "00:00:00:00:00:00",
            &["no unicast MAC", "not zero"],
        ),
        Case(
            21,
            "02:00:00:00:00:01",
            "02:00",
            &["not a MAC address", "six pairs"],
        ),
        Case(
            21,
            "vtep_mac = \"02:00:00:00:00:01\"",
            "vtep_mac6 = \"03:00:00:00:00:01\"",
            &["no unicast MAC", "even"],
        ),
        Case(
            22,
            "10.244.1.0/24",
            "10.244.1.7/24",
            &["host bits", "write 10.244.1.0/24"],
        ),
        Case(
            22,
            "10.244.1.0/24",
            "10.244.1.7",
            &["no prefix length", "write 10.244.1.7/32"],
        ),
        Case(22, "10.244.1.0/24", "ten", &["\"ten\" is not a prefix"]),
        Case(
            22,
            "10.244.1.0/24",
            "10.245.1.0/24",
            &["outside the network's cluster_prefixes"],
        ),
        Case(
            22,
            "\"10.244.1.0/24\"",
            "\"10.244.1.0/24\", \"10.244.1.9/32\"",
            &["overlaps 10.244.1.0/24 of line 22"],
        ),
        Case(
            22,
            "\"10.244.2.4/32\"",
            "\"10.244.1.9/32\"",
            &["10.244.1.0/24 overlaps 10.244.1.9/32 of line 22"],
        ),
        Case(
            22,
            "[\"10.244.2.4/32\", \"10.244.1.0/24\"]",
            "[]",
            &["list is empty"],
        ),
        Case(
            23,
            "\"10.244.0.0/16\"",
            "\"10.244.0.0/16\", \"10.244.0.0/16\"",
            &["already used in line 23"],
        ),
        Case(
            23,
            "\"10.244.0.0/16\"",
            "\"10.244.0.0/16\", \"192.0.0.0/16\"",
            &["underlay address 192.0.2.1"],
        ),
        Case(
            23,
            "10.244.0.0/16",
            "0.0.0.0/0",
            &["contains unspecified addresses", "narrower"],
        ),
        Case(23, "10.244.0.0/16", "fe80::/16", &["link-local"]),
    ]);
}

#[test]
fn pods() {
    check(&[
        Case(25, "web", "", &["no name"]),
        Case(
            26,
            "veth-web",
            "eth0",
            &["the underlay's interface", "veth"],
        ),
        Case(
            27,
            "default",
            "defualt",
            &["no network \"defualt\"", "did you mean `default`?"],
        ),
        Case(28, "10.244.1.2", "ten", &["not an IP address"]),
        Case(
            28,
            "10.244.1.2",
            "10.244.5.2",
            &["outside the network's pod_prefixes"],
        ),
        Case(
            28,
            "10.244.1.2",
            "10.244.1.0",
            &["first address of 10.244.1.0/24", "node's own"],
        ),
        Case(
            28,
            "10.244.1.2",
            "10.244.1.255",
            &["broadcast address of 10.244.1.0/24"],
        ),
        Case(
            28,
            "fd00:1:1::2",
            "fd00:1:1::",
            &["first address of fd00:1:1::/64"],
        ),
        Case(28, "10.244.1.2", "224.0.0.1", &["multicast"]),
        Case(28, "10.244.1.2", "127.0.0.1", &["loopback"]),
        Case(28, "10.244.1.2", "169.254.1.1", &["link-local"]),
        Case(28, "fd00:1:1::2", "fe80::1", &["link-local"]),
        Case(28, "fd00:1:1::2", "::", &["unspecified"]),
        Case(28, "fd00:1:1::2", "::ffff:10.244.1.3", &["IPv4-mapped"]),
        Case(
            28,
            "fd00:1:1::2",
            "10.244.1.2",
            &["10.244.1.2 is already used in line 28"],
        ),
        Case(29, "0a", "0b", &["no unicast MAC"]),
        Case(
            29,
            "mac = \"0a:00:00:00:00:01\"",
            "attach = \"xdp\"",
            &["`attach` cannot be \"xdp\"", "tc, xsk"],
        ),
        Case(
            29,
            "mac = \"0a:00:00:00:00:01\"",
            "attach = \"tc\"\ningress_rate = 1000000",
            &["a pod with a rate has sockets"],
        ),
        Case(
            31,
            "veth-blue",
            "veth-web",
            &["interface \"veth-web\" is already used in line 26"],
        ),
        Case(33, "10.244.1.2", "10.244.2.4", &["node's own"]),
        Case(33, "\"10.244.1.2\"", "", &["list is empty", "10.244.1.2"]),
    ]);
}

#[test]
fn routes() {
    check(&[
        Case(
            35,
            "default",
            "green",
            &["no network \"green\"", "add it to [[networks]]"],
        ),
        Case(
            36,
            "10.244.2.0/24",
            "10.244.2.1/24",
            &["host bits", "write 10.244.2.0/24"],
        ),
        Case(
            36,
            "10.244.2.0/24",
            "10.245.0.0/24",
            &["outside the network's cluster_prefixes"],
        ),
        Case(
            36,
            "10.244.2.0/24",
            "10.244.0.0/23",
            &["overlaps this node's pod prefix 10.244.1.0/24 of line 15"],
        ),
        Case(
            36,
            "10.244.2.9/32",
            "10.244.1.9/32",
            &["overlaps this node's pod prefix 10.244.1.0/24 of line 15"],
        ),
        Case(
            36,
            "10.244.2.9/32",
            "10.244.2.0/24",
            &["10.244.2.0/24 is already used in line 36"],
        ),
        Case(
            37,
            "192.0.2.2",
            "192.0.2.1",
            &["this node's own underlay address"],
        ),
        Case(37, "192.0.2.2", "::1", &["loopback"]),
        Case(37, "192.0.2.2", "224.0.0.1", &["multicast"]),
        Case(
            37,
            "192.0.2.2",
            "10.244.7.7",
            &["inside the cluster prefix 10.244.0.0/16"],
        ),
        Case(38, "node-b", "node-a", &["\"node-a\" is this node"]),
        Case(38, "node-b", "b!", &["no node name"]),
        Case(
            43,
            "02:00:00:00:00:02",
            "02:00:00:00:00:01",
            &["this node's own VTEP MAC"],
        ),
        Case(
            43,
            "02:00:00:00:00:02",
            "ff:ff:ff:ff:ff:ff",
            &["no unicast MAC"],
        ),
        Case(
            46,
            "10.244.3.0/24",
            "10.244.2.9/32",
            &["10.244.2.9/32 is already used in line 36"],
        ),
        Case(
            48,
            "node-b",
            "node-c",
            &["VTEP 192.0.2.2 has MAC", "in line 38", "correct one"],
        ),
    ]);
}

/// A pod's hook can be in tc only where workers have veth pairs for such hooks.
#[test]
fn a_hook_in_tc_where_there_are_none() {
    let hooks = "hook = \"xdp\"\n[hooks]\npods = \"xsk\"\n[workers]";
    let text = super::SOUND.replacen("[workers]", hooks, 1);
    let text = text.replacen("mac = \"0a:00:00:00:00:01\"", "attach = \"tc\"", 1);
    let errors = super::errors(&text).to_string();
    assert!(
        errors.contains("neither hooks.pods nor underlay.hook"),
        "{errors}"
    );
    assert!(errors.contains("test.toml:32:"), "{errors}");
}
