//! Next hops, neighbours and the underlay.

use super::*;

#[test]
fn next_hops_follow_the_neighbour() {
    let mut node = start();
    let epoch = node.settle();
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb3)));
    assert_eq!(node.settle(), epoch + 1);
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xb3));
    node.see_vtep(&vtep(NeighbourState::Failed, mac(0xb3)));
    node.settle();
    assert_eq!(node.next_hop(), NextHopState::Unresolved);
    let RouteState::Unresolved { reason } = node.route_state() else {
        panic!("{:?}", node.route_state());
    };
    assert!(reason.contains("failed"), "{reason}");
}

#[test]
fn neighbours_are_asked_for_each_second_and_checked_each_fifteen() {
    let probe = Probe {
        interface: UNDERLAY,
        address: VTEP.into(),
    };
    let mut node = start();
    assert_eq!(node.reconciler.due_probes(node.now), []);
    node.now += 15_000 * MS;
    assert_eq!(node.reconciler.due_probes(node.now), [probe]);
    assert_eq!(node.reconciler.due_probes(node.now), []);
    // One that is lost is asked for at once, then each second.
    node.see_vtep(&vtep(NeighbourState::Incomplete, mac(0xb2)));
    assert_eq!(node.reconciler.due_probes(node.now), [probe]);
    node.now += 999 * MS;
    assert_eq!(node.reconciler.due_probes(node.now), []);
    node.now += MS;
    assert_eq!(node.reconciler.due_probes(node.now), [probe]);
    // There is nobody to ask where no route leads.
    node.see_vtep(&ObservedVtep::default());
    node.now += 1_000 * MS;
    assert_eq!(node.reconciler.due_probes(node.now), []);
}

#[test]
fn nodes_behind_one_router_are_one_neighbour() {
    let router: IpAddr = [192, 0, 2, 254].into();
    let seen = ObservedVtep {
        paths: vec![path(Some(router), NeighbourState::Incomplete, mac(0xb2))],
        ..vtep(NeighbourState::Incomplete, mac(0xb2))
    };
    let mut options = options();
    let mut other = options.routes[0].clone();
    other.vtep = [198, 51, 100, 3].into();
    other.prefixes = vec!["10.42.3.0/24".parse().unwrap()];
    options.routes.push(other);
    let mut observed = observed();
    observed.vteps = options
        .routes
        .iter()
        .map(|r| (r.vtep, seen.clone()))
        .collect();
    let mut node = start_of(options, &observed);
    let probe = Probe {
        interface: UNDERLAY,
        address: router,
    };
    assert_eq!(node.reconciler.due_probes(node.now), [probe]);
    assert_eq!(node.reconciler.vteps_behind(router).count(), 2);
    assert_eq!(node.reconciler.vteps_behind(VTEP.into()).count(), 0);
}

#[test]
fn flows_are_spread_over_ways_of_equal_cost_that_answer() {
    let routers: [IpAddr; 2] = [[192, 0, 2, 253].into(), [192, 0, 2, 254].into()];
    let ways = |second| ObservedVtep {
        paths: vec![
            path(Some(routers[0]), NeighbourState::Valid, mac(0xc1)),
            path(Some(routers[1]), second, mac(0xc2)),
        ],
        ..vtep(second, mac(0xc2))
    };
    let mut node = start();
    node.see_vtep(&ways(NeighbourState::Valid));
    node.settle();
    let NextHopState::Multipath(slots) = node.next_hop() else {
        panic!("{:?}", node.next_hop());
    };
    let of = |last| match tunnel(0xe0, last) {
        NextHopState::Resolved(tunnel) => tunnel,
        other => panic!("{other:?}"),
    };
    assert_eq!(slots[..], [of(0xc1), of(0xc2)]);
    let RouteState::Resolved { next_hops, .. } = node.route_state() else {
        panic!("unresolved");
    };
    assert_eq!(next_hops.len(), 2);
    assert_eq!(node.reconciler.vteps_behind(routers[1]).count(), 1);

    // One fails: the other has all, and the failed one is asked for each second.
    node.see_vtep(&ways(NeighbourState::Failed));
    node.settle();
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xc1));
    node.now += 1_000 * MS;
    assert_eq!(node.reconciler.due_probes(node.now).len(), 2);
    node.now += 1_000 * MS;
    assert_eq!(node.reconciler.due_probes(node.now).len(), 2);
    node.see_vtep(&ways(NeighbourState::Valid));
    node.settle();
    assert!(matches!(node.next_hop(), NextHopState::Multipath(_)));
    node.now += 1_000 * MS;
    assert_eq!(node.reconciler.due_probes(node.now), []);
}

#[test]
fn tunnels_and_mtu_follow_the_underlay() {
    let mut node = start();
    let mut changed = underlay();
    let mut interface = link(UNDERLAY, "eth1");
    interface.mac = Some(mac(0xe5));
    interface.mtu = 9000;
    changed.link = Some(interface);
    node.reconciler.observe_underlay(&changed, node.now);
    node.settle();
    assert_eq!(node.next_hop(), tunnel_of(0xe5, 0xb2, 9000));

    changed.addresses.clear();
    node.reconciler.observe_underlay(&changed, node.now);
    node.settle();
    assert_eq!(node.next_hop(), NextHopState::Unresolved);
    changed.addresses = underlay().addresses;
    node.reconciler.observe_underlay(&changed, node.now);
    node.settle();
    assert_eq!(node.next_hop(), tunnel_of(0xe5, 0xb2, 9000));
}

#[test]
fn a_route_that_comes_is_used_when_its_neighbour_answers_and_not_a_second_later() {
    let probe = Probe {
        interface: UNDERLAY,
        address: VTEP.into(),
    };
    let mut node = start();
    node.see_vtep(&ObservedVtep::default());
    node.reconciler.due_probes(node.now);
    node.now += 10 * MS;
    node.see_vtep(&vtep(NeighbourState::Incomplete, mac(0xb2)));
    assert_eq!(node.reconciler.due_probes(node.now), [probe], "at once");
    // Another gateway is somebody else to ask.
    let router: IpAddr = [192, 0, 2, 254].into();
    let seen = ObservedVtep {
        paths: vec![path(Some(router), NeighbourState::Incomplete, mac(0xb2))],
        ..vtep(NeighbourState::Incomplete, mac(0xb2))
    };
    node.see_vtep(&seen);
    let asked = node.reconciler.due_probes(node.now);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].address, router);
}

#[test]
fn only_nodes_that_a_change_concerns_are_asked_for() {
    let mut options = options();
    for n in [3, 4] {
        let mut other = options.routes[0].clone();
        other.vtep = [198, 51, 100, n].into();
        other.prefixes = vec![format!("10.42.{n}.0/24").parse().unwrap()];
        options.routes.push(other);
    }
    let mut observed = observed();
    let known = vtep(NeighbourState::Valid, mac(0xb2));
    let mut elsewhere = known.clone();
    elsewhere.interfaces = vec![7];
    let last: IpAddr = [198, 51, 100, 4].into();
    observed.vteps.insert([198, 51, 100, 3].into(), known);
    observed.vteps.insert(last, elsewhere);
    let mut node = start_of(options, &observed);
    let inside = |node: &Node, prefix: &str| {
        let prefix = prefix.parse().unwrap();
        node.reconciler.vteps_in(prefix).count()
    };
    assert_eq!(inside(&node, "0.0.0.0/0"), 3);
    assert_eq!(inside(&node, "198.51.100.0/24"), 2);
    assert_eq!(inside(&node, "192.0.2.2/32"), 1);
    assert_eq!(inside(&node, "192.0.2.0/31"), 0);
    assert_eq!(inside(&node, "::/0"), 0);
    let by = |node: &Node, interface| node.reconciler.vteps_by(interface).collect::<Vec<_>>();
    assert_eq!(by(&node, 7), [last]);
    assert_eq!(by(&node, 8), [] as [IpAddr; 0]);
    // Without any route each interface may bring one.
    let now = node.now;
    node.reconciler
        .observe_vtep(last, &ObservedVtep::default(), now);
    assert_eq!(by(&node, 8), [last]);
}

#[test]
fn an_underlay_that_was_replaced_is_taken_anew() {
    let mut node = start();
    node.reconciler.link_removed(UNDERLAY, node.now);
    node.settle();
    assert_eq!(node.next_hop(), NextHopState::Unresolved);
    assert_eq!(node.log.take(), ["no underlay"]);
    let other = ObservedUnderlay {
        link: Some(link(UNDERLAY + 1, "eth1")),
        ..underlay()
    };
    // It is busy at first.
    node.log.fail(Some("underlay 3"));
    node.reconciler.observe_underlay(&other, node.now);
    node.reconciler.observe_underlay(&other, node.now);
    assert_eq!(node.log.take(), ["underlay 3"], "tried once");
    let problem = node.reconciler.underlay.clone().unwrap_err().to_string();
    assert_eq!(problem, "told to fail");
    node.log.fail(None);
    assert!(!node.reconciler.underlay_due(node.now));
    node.now += 16 * MS;
    assert!(node.reconciler.underlay_due(node.now));
    node.reconciler.observe_underlay(&other, node.now);
    assert_eq!(node.log.take(), ["underlay 3"]);
    let mut seen = vtep(NeighbourState::Valid, mac(0xb2));
    seen.paths[0].route.interface = UNDERLAY + 1;
    node.see_vtep(&seen);
    node.settle();
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xb2));
}

#[test]
fn an_underlay_with_other_queues_is_taken_anew() {
    let mut node = start();
    node.log.other_queues();
    let epoch = node.settle();
    node.reconciler.observe_underlay(&underlay(), node.now);
    assert_eq!(node.log.take(), ["no underlay", "underlay 2"]);
    assert_eq!(node.settle(), epoch, "the table is as it was");
}

#[test]
fn the_kernel_carries_what_is_too_long_for_frames() {
    let mut node = start();
    let mut long = underlay();
    long.link.as_mut().unwrap().mtu = 9001;
    node.reconciler.observe_underlay(&long, node.now);
    assert_eq!(node.log.take(), ["no underlay"]);
    node.reconciler.observe_underlay(&underlay(), node.now);
    assert_eq!(node.log.take(), ["underlay 2"]);
}

#[test]
fn the_nodes_address_is_followed_unless_it_is_fixed() {
    let mut node = start();
    let mut moved = underlay();
    let other: IpAddr = [192, 0, 2, 77].into();
    moved.addresses = on_underlay(&["192.0.2.77/24", "192.0.2.1/24"]);
    node.reconciler.observe_underlay(&moved, node.now);
    assert!(node.log.take().is_empty(), "kept while it is there");
    moved.addresses = on_underlay(&["192.0.2.77/24"]);
    node.reconciler.observe_underlay(&moved, node.now);
    assert_eq!(node.log.take(), ["own 192.0.2.77"]);
    let status = |node: &mut Node| {
        node.settle();
        node.reconciler.status().get()
    };
    assert_eq!(status(&mut node).underlay_addresses, [other]);

    let mut options = options();
    options.underlay.fixed = options.underlay.addresses;
    let mut node = start_of(options, &observed());
    node.log.take();
    node.reconciler.observe_underlay(&moved, node.now);
    assert!(node.log.take().is_empty());
    let problem = status(&mut node).underlay_problem.clone().unwrap();
    assert!(problem.contains("192.0.2.1"), "{problem}");
}

#[test]
fn a_stuck_worker_delays_a_change_and_does_not_lose_it() {
    let mut node = start();
    let reader = node.readers.reader();
    let held = reader.load();
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb3)));
    node.settle();
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb4)));
    node.settle();
    let again = node.reconciler.next_due().unwrap();
    assert_eq!(again, node.now + Duration::from_secs(1));
    drop(held);
    node.now = again;
    node.settle();
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xb4));
}
