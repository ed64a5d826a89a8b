//! Whose an address or a VTEP MAC is.

use super::*;

/// Nobody has another's address: not a pod's, not a node's, not this node's, not an operator's.
#[test]
fn an_address_has_one_node() {
    let me = node("node-b", &["192.0.2.2"], &["10.244.2.0/24"]);
    let a = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    let liar = node(
        "liar",
        &[
            "192.0.2.6",
            "10.244.3.7",
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.9",
            "203.0.113.9",
        ],
        &["10.244.6.0/24"],
    );
    let all = merged(&[me, a.clone(), liar]);
    assert_eq!(
        why(&all),
        [
            "liar 10.244.3.7: it is inside the cluster prefix 10.244.0.0/16: no VTEP is",
            "liar 192.0.2.1: nothing shows that it is the node's: gossip reaches the node elsewhere",
            "liar 192.0.2.2: it is this node's own address",
            "liar 192.0.2.9: a route of the configuration has this address for another node",
            "liar 203.0.113.9: nothing shows that it is the node's: gossip reaches the node elsewhere",
        ]
    );
    assert_eq!(learned(&all), ["a 10.244.1.0/24", "liar 10.244.6.0/24"]);
    assert!(all.0.routes.iter().all(|route| route.addresses.is_empty()));

    // It says that it gossips at another's address: the one that is heard there has it.
    let mut liar = since(node("liar", &["192.0.2.1"], &["10.244.6.0/24"]), 1);
    liar.heard = Some(ip("192.0.2.6"));
    part(&mut liar).mac = [2, 0, 0, 0, 0, 6];
    let all = merged(&[a.clone(), liar.clone()]);
    assert_eq!(learned(&all), ["a 10.244.1.0/24"]);
    assert_eq!(why(&all), ["liar 192.0.2.1: it is a's address"]);
    // Nobody hears either: the first.
    let mut silent = since(a.clone(), 1);
    (silent.answers, silent.overdue) = (false, true);
    silent.heard = None;
    liar = since(liar, 2);
    assert_eq!(
        learned(&merged(&[silent.clone(), liar.clone()])),
        ["a 10.244.1.0/24"]
    );
    // A node with a new name on the machine of a dead one.
    liar.heard = Some(ip("192.0.2.1"));
    let all = merged(&[silent.clone(), liar.clone()]);
    assert_eq!(learned(&all), ["liar 10.244.6.0/24"]);
    assert_eq!(all.1[0].mend, None);
    // But not if the address is allowed to the other.
    let mut ruled = sources();
    let grant = Grant {
        prefixes: None,
        addresses: Some(nets(&["192.0.2.1/32"])),
    };
    ruled.rules.nodes.insert("a".to_owned(), grant);
    ruled.announced = vec![silent, liar];
    let all = merged_of(&ruled);
    assert_eq!(learned(&all), ["a 10.244.1.0/24"]);
    assert_eq!(why(&all), ["liar 192.0.2.1: it is allowed to a only"]);
}

#[test]
fn a_further_address_is_allowed_by_lists() {
    let a = || {
        let mut a = node("a", &["192.0.2.1", "2001:db8::1"], &["10.244.1.0/24"]);
        let record = Arc::make_mut(&mut a.record);
        record.certificate = Some(certificate("a", None, &["2001:db8::1/128"]));
        a
    };
    let mut rules = sources();
    rules.announced = vec![a()];
    let further = |sources: &Sources| {
        let all = merged_of(sources);
        let route = all.0.routes.iter().find(|r| r.vtep == ip("192.0.2.1"));
        let notices = all.1.iter().filter(|refused| refused.notice).count();
        assert_eq!(notices, all.1.len());
        route.expect("a route").addresses.len()
    };
    assert_eq!(further(&rules), 0, "no authority is configured");
    rules.rules.certified = true;
    assert_eq!(further(&rules), 1);
    rules.rules.certified = false;
    rules.rules.addresses = nets(&["2001:db8::/64"]);
    assert_eq!(further(&rules), 1);
    // The one whose address it is by gossip goes before.
    let mut other = since(node("c", &["2001:db8::1"], &["10.244.3.0/24"]), 9);
    part(&mut other).mac = [2, 0, 0, 0, 0, 3];
    rules.own.v6 = Some("2001:db8::2".parse().expect("one"));
    rules.announced.push(other);
    let all = merged_of(&rules);
    assert_eq!(learned(&all), ["a 10.244.1.0/24", "c 10.244.3.0/24"]);
    assert!(why(&all).contains(&"a 2001:db8::1: it is c's address".to_owned()));
}

#[test]
fn a_mac_has_one_vtep() {
    let a = node("a", &["192.0.2.1"], &["10.244.1.0/24"]);
    let mut c = since(node("c", &["192.0.2.3"], &["10.244.3.0/24"]), 9);
    part(&mut c).mac = [2, 0, 0, 0, 0, 1];
    let mut d = node("d", &["192.0.2.4"], &["10.244.4.0/24"]);
    part(&mut d).mac = testing::options().networks[0].vtep_macs.v4.0;
    let mut e = node("e", &["192.0.2.5"], &["10.244.5.0/24"]);
    part(&mut e).mac = [2, 0, 0, 0, 9, 9];
    let all = merged(&[a, c, d, e]);
    assert_eq!(learned(&all), ["a 10.244.1.0/24"]);
    assert_eq!(
        why(&all),
        [
            "c VTEP MAC 02:00:00:00:00:01: a has it in network default: a MAC belongs to one VTEP",
            "d VTEP MAC 02:00:00:00:00:a1: it is this node's own in network default",
            "e VTEP MAC 02:00:00:00:09:09: an operator's route of network default has it for VTEP 192.0.2.9",
        ]
    );
}

#[test]
fn an_operator_says_where_a_nodes_tunnels_end() {
    // The route has 192.0.2.8 as a further address of node-c, which says that its tunnels end there.
    let mut sources = sources();
    let mut route = fixed("10.244.8.0/24", "192.0.2.7", 7, Some("node-c"));
    route.route.addresses = vec![ip("192.0.2.8")];
    sources.file.routes.push(route);
    sources.announced = vec![node("node-c", &["192.0.2.8"], &["10.244.3.0/24"])];
    let all = merged_of(&sources);
    assert_eq!(learned(&all), [""; 0]);
    let text = "an operator's route has 192.0.2.8 for the node whose VTEP is 192.0.2.7";
    assert_eq!(why(&all), [format!("node-c its VTEP: {text}")]);

    // With its VTEP among its addresses it is the same node, and the route's address stays the route's.
    sources.rules.addresses = nets(&["192.0.2.0/28"]);
    let said = node("node-c", &["192.0.2.8", "192.0.2.7"], &["10.244.3.0/24"]);
    sources.announced = vec![said];
    let mac = MacAddr([2, 0, 0, 0, 9, 7]);
    part(&mut sources.announced[0]).mac = mac.0;
    let (wanted, refused) = merged_of(&sources);
    assert_eq!(refused, []);
    let route = wanted.routes.last().expect("a route");
    assert_eq!((route.vtep, route.vtep_mac), (ip("192.0.2.7"), mac));
    assert_eq!(route.addresses, [ip("192.0.2.8")]);
}

#[test]
fn a_node_has_a_mac_for_each_family() {
    let mut sources = sources();
    sources.own.v6 = Some("fd99::2".parse().expect("an address"));
    let own = testing::mac(0xa6);
    sources.networks[0].vtep_macs.v6 = own;
    let four = node("c", &["192.0.2.3"], &["10.244.3.0/24"]);
    let six = node("d", &["fd99::4"], &["10.244.4.0/24"]);
    // Over IPv4 this node's MAC over IPv6 is anybody's; over IPv6 it is its own.
    let mut both = [four, six];
    part(&mut both[0]).mac = own.0;
    part(&mut both[1]).mac = sources.networks[0].vtep_macs.v4.0;
    sources.announced = both.to_vec();
    let all = merged_of(&sources);
    let macs = all.0.routes[1..].iter().map(|route| route.vtep_mac);
    let expected = [own, MacAddr([2, 0, 0, 0, 6, 4])];
    assert_eq!(macs.collect::<Vec<_>>(), expected);
    assert_eq!(all.1, []);

    part(&mut sources.announced[1]).mac6 = own.0;
    let all = merged_of(&sources);
    assert_eq!(learned(&all), ["c 10.244.3.0/24"]);
    let text = format!("d VTEP MAC {own}: it is this node's own in network default");
    assert_eq!(why(&all), [text]);
}
