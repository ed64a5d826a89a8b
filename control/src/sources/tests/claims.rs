//! Claims that overlap.

use super::*;

/// A prefix that overlaps in part loses that part only: also this node's own, of which nothing leads
/// away from it.
#[test]
fn a_prefix_that_overlaps_in_part_loses_that_part() {
    let all = merged(&[
        node("a", &["192.0.2.1"], &["10.244.1.0/24"]),
        since(
            node("c", &["192.0.2.3"], &["10.244.0.0/21", "fd00::/15"]),
            9,
        ),
    ]);
    assert_eq!(
        learned(&all),
        [
            "a 10.244.1.0/24",
            "c 10.244.0.0/24 10.244.3.0/24 10.244.4.0/22 fd00::/16",
        ]
    );
    assert_eq!(
        why(&all),
        [
            "c 10.244.0.0/21: 10.244.1.0/24 of a overlaps it, and goes before; the rest of it is used",
            "c 10.244.0.0/21: 10.244.2.0/24 of this node overlaps it, and goes before; the rest of it is used",
            "c fd00::/15: part of it lies outside the cluster's prefixes; the rest of it is used",
        ]
    );
}

/// While subnets are made larger, node by node, no node is without a route, and claims of one node
/// that overlap are one.
#[test]
fn subnets_grow_node_by_node() {
    let old_c = || since(node("c", &["192.0.2.3"], &["10.244.3.0/24"]), 5);
    let mut new_c = since(
        node("c", &["192.0.2.3"], &["10.244.0.0/21", "10.244.3.0/24"]),
        9,
    );
    let old_a = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    part(&mut new_c).prefixes[1].since = 5;
    let new_a = since(node("a", &["192.0.2.1"], &["10.244.16.0/21"]), 20);
    let mut apart = sources();
    apart.networks[0].pod_prefixes = nets(&["10.244.200.0/24"]);
    let step = |announced: &[Announced]| {
        let announced = announced.to_vec();
        learned(&merged_of(&Sources {
            announced,
            ..apart.clone()
        }))
    };
    assert_eq!(
        step(&[old_a.clone(), old_c()]),
        ["a 10.244.1.0/24", "c 10.244.3.0/24"]
    );
    assert_eq!(
        step(&[old_a, new_c.clone()]),
        [
            "a 10.244.1.0/24",
            "c 10.244.0.0/24 10.244.2.0/23 10.244.4.0/22"
        ]
    );
    assert_eq!(
        step(&[new_a, new_c]),
        ["a 10.244.16.0/21", "c 10.244.0.0/21"]
    );
}

#[test]
fn another_port_and_another_network_are_not_used() {
    let mut other = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    let mut port = node("c", &["192.0.2.3"], &["10.244.3.0/24"]);
    part(&mut other).vni = 7;
    part(&mut port).port = 4789;
    let all = merged(&[other, port]);
    assert_eq!(learned(&all), [""; 0]);
    assert_eq!(
        why(&all),
        ["c VNI 1: network default has UDP port 8472 here and 4789 there"]
    );
}

/// The same network with another MAC and other prefixes: nobody chooses between the two by the order of anything.
#[test]
fn a_network_that_is_listed_twice_counts_once() {
    let mut twice = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    if let Content::Here { networks, .. } = &mut Arc::make_mut(&mut twice.record).content {
        let mut again = networks[0].clone();
        (again.mac[5], again.prefixes[0].prefix) = (99, net("10.244.7.0/24"));
        networks.push(again);
    }
    let all = merged(&[twice, node("c", &["192.0.2.3"], &["10.244.3.0/24"])]);
    assert_eq!(learned(&all), ["a 10.244.1.0/24", "c 10.244.3.0/24"]);
    assert_eq!(why(&all), ["a VNI 1: it is listed twice; the first counts"]);
}

#[test]
fn the_first_claim_counts_and_a_living_one_before_a_silent_one() {
    let me = since(node("node-b", &["192.0.2.2"], &["10.244.2.0/24"]), 5);
    let a = since(node("a", &["192.0.2.1"], &["10.244.1.0/24"]), 3);
    let mut c = since(node("c", &["192.0.2.3"], &["10.244.1.0/24"]), 2);
    let d = since(node("d", &["192.0.2.4"], &["10.244.2.0/24"]), 4);
    let all = merged(&[me.clone(), a.clone(), c.clone(), d.clone()]);
    assert_eq!(learned(&all), ["c 10.244.1.0/24"]);
    assert_eq!(
        why(&all),
        [
            "a 10.244.1.0/24: 10.244.1.0/24 of c overlaps it, and goes before",
            "d 10.244.2.0/24: 10.244.2.0/24 of this node overlaps it, and goes before",
            "node-b 10.244.2.0/24: d claimed 10.244.2.0/24 first: other nodes send its packets there, not here",
        ]
    );
    c.answers = false;
    let all = merged(&[a.clone(), c.clone()]);
    assert_eq!(learned(&all), ["c 10.244.1.0/24"], "not yet");
    assert_eq!(all.1[0].mend.as_deref(), Some("viaduct forget c"));
    c.overdue = true;
    let all = merged(&[a.clone(), c.clone()]);
    assert_eq!(learned(&all), ["a 10.244.1.0/24"]);
    // Since when a claim counts, gossip says.
    let mut aged = a.clone();
    aged.ages = Arc::new([((1, net("10.244.1.0/24")), 9)].into());
    let later = since(node("e", &["192.0.2.5"], &["10.244.1.0/24"]), 8);
    assert_eq!(learned(&merged(&[aged, later])), ["e 10.244.1.0/24"]);
    // Of two silent ones the first, and what one alone claims stays its own.
    let mut silent = a;
    (silent.answers, silent.overdue) = (false, true);
    assert_eq!(learned(&merged(&[silent, c])), ["c 10.244.1.0/24"]);
    let mut silent = d;
    (silent.answers, silent.overdue) = (false, true);
    assert_eq!(merged(&[me, silent]).1.len(), 1, "not at home");
}
