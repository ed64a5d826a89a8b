//! What nodes may announce, and pods that have moved.

use super::*;

#[test]
fn a_node_announces_what_is_allowed_to_it() {
    let mut ruled = ruled();
    ruled.announced = vec![
        node(
            "a",
            &["192.0.2.1"],
            &["10.244.1.128/25", "10.244.4.0/24", "10.244.0.0/23"],
        ),
        node(
            "c",
            &["192.0.2.3"],
            &[
                "10.244.1.0/25",
                "10.244.5.0/24",
                "10.244.16.0/24",
                "10.244.14.0/23",
            ],
        ),
        certified(
            node("d", &["192.0.2.4"], &["10.244.6.0/24", "10.244.99.0/24"]),
            &["10.244.99.0/24"],
        ),
        certified(node("node-b", &["192.0.2.2"], &["10.244.2.0/24"]), &[]),
    ];
    let all = merged_of(&ruled);
    assert_eq!(
        why(&all),
        [
            "a 10.244.0.0/23: part of it lies outside what is allowed to a; the rest of it is used",
            "a 10.244.4.0/24: it lies outside what is allowed to a",
            "c 10.244.1.0/25: 10.244.1.0/24 is allowed to a only",
            "c 10.244.16.0/24: it lies outside allowed_prefixes",
            "d 10.244.6.0/24: it lies outside what is allowed to d",
            "node-b 10.244.2.0/24: it lies outside what is allowed to node-b: other nodes with this rule do not send to it",
        ]
    );
    assert_eq!(
        learned(&all),
        [
            "a 10.244.1.0/24",
            "c 10.244.5.0/24 10.244.14.0/23",
            "d 10.244.99.0/24"
        ]
    );
    // An older claim of a node without a list loses what is granted, and no more.
    ruled.announced = vec![since(node("c", &["192.0.2.3"], &["10.244.0.0/23"]), 1)];
    assert_eq!(learned(&merged_of(&ruled)), ["c 10.244.0.0/24"]);
}

#[test]
fn a_moved_pod_is_where_the_owner_of_its_prefix_says() {
    let mut owner = node("a", &["192.0.2.1"], &["10.244.1.0/24", "10.244.5.5/32"]);
    let delegation = |prefix: &str, to: &str| Delegation {
        prefix: net(prefix),
        to: to.to_owned(),
    };
    part(&mut owner).delegated = vec![
        delegation("10.244.1.7/32", "c"),
        delegation("10.244.1.0/32", "c"),
        delegation("10.244.5.5/32", "c"),
        delegation("10.244.1.32/28", "c"),
        delegation("10.244.1.40/32", "d"),
    ];
    let mut c = node("c", &["192.0.2.3"], &[]);
    part(&mut c).moved = nets(&[
        "10.244.1.0/32",
        "10.244.1.7/32",
        "10.244.1.8/32",
        "10.244.2.9/32",
        "10.244.5.5/32",
        "10.244.8.8/32",
        "10.99.0.1/32",
        "10.244.1.32/28",
        "10.244.9.1/32",
    ]);
    // What was delegated to it, it cannot delegate.
    part(&mut c).delegated = vec![delegation("10.244.1.7/32", "d")];
    let mut d = node("d", &["192.0.2.4"], &["10.244.4.0/24"]);
    part(&mut d).moved = nets(&["10.244.1.7/32", "10.244.1.40/32", "10.244.0.0/21"]);
    let all = merged(&[owner, c, d]);
    assert_eq!(
        why(&all),
        [
            "c 10.244.1.0/32: it begins as 10.244.1.0/24 of a does, whose first address is the node's own",
            "c 10.244.1.8/32: 10.244.1.0/24 is of a, which has not delegated it",
            "c 10.244.2.9/32: 10.244.2.0/24 is of this node, which has not delegated it",
            "c 10.244.5.5/32: it begins as 10.244.5.5/32 of a does, whose first address is the node's own",
            "c 10.244.8.8/32: it lies in no node's prefix",
            "c 10.244.9.1/32: the configuration has another way to it",
            "c 10.99.0.1/32: it lies outside the cluster's prefixes",
            "d 10.244.0.0/21: 10.244.1.7/32 is of c, which has not delegated it",
            "d 10.244.1.40/32: 10.244.1.32/28 is of c, which has not delegated it",
            "d 10.244.1.7/32: 10.244.1.7/32 is of c, which has not delegated it",
        ]
    );
    assert_eq!(
        learned(&all),
        [
            "a 10.244.5.5/32 10.244.1.0/24",
            "c 10.244.1.7/32 10.244.1.32/28",
            "d 10.244.4.0/24"
        ]
    );
}

/// The authority's narrower word goes before the wider one; of two that say the same, the claim.
#[test]
fn a_moved_pod_needs_a_narrower_list_than_the_claim() {
    let mut ruled = ruled();
    let list = |list: &[&str]| Grant {
        prefixes: Some(nets(list)),
        addresses: None,
    };
    ruled
        .rules
        .nodes
        .insert("c".to_owned(), list(&["10.244.1.7/32", "10.244.1.0/24"]));
    ruled
        .rules
        .nodes
        .insert("d".to_owned(), list(&["10.244.1.7/32"]));
    let a = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    let moved = |name: &str, vtep: &str, prefix: &str| {
        let mut node = node(name, &[vtep], &[]);
        part(&mut node).moved = nets(&[prefix]);
        node
    };
    ruled.announced = vec![a.clone(), moved("c", "192.0.2.3", "10.244.1.7/32")];
    let all = merged_of(&ruled);
    assert_eq!(learned(&all), ["a 10.244.1.0/24", "c 10.244.1.7/32"]);
    ruled.announced = vec![a, moved("c", "192.0.2.3", "10.244.1.0/24")];
    let all = merged_of(&ruled);
    assert_eq!(learned(&all), ["a 10.244.1.0/24"]);
    assert_eq!(why(&all).len(), 1);
    // A claim that both lists allow.
    ruled.announced = vec![
        node("d", &["192.0.2.4"], &["10.244.1.7/32"]),
        moved("c", "192.0.2.3", "10.244.1.7/32"),
    ];
    assert_eq!(learned(&merged_of(&ruled)), ["d 10.244.1.7/32"]);
}
