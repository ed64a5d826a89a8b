//! Next hops, neighbours and the underlay.

use super::*;
use crate::options::OwnAddresses;

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
    let status = node.reconciler.status().get();
    let RouteState::Unresolved { reason } = &status.routes[0].state else {
        panic!("{status:?}");
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
    let mut seen = vtep(NeighbourState::Incomplete, mac(0xb2));
    seen.route = Some(RouteTo {
        interface: UNDERLAY,
        gateway: Some(router),
        source: None,
    });
    let mut options = options();
    let mut other = options.routes[0].clone();
    other.vtep = [198, 51, 100, 3].into();
    other.prefixes = vec!["10.42.3.0/24".parse().unwrap()];
    options.routes.push(other);
    let mut observed = observed();
    observed.vteps = options.routes.iter().map(|r| (r.vtep, seen)).collect();
    let mut node = try_start(options, &observed, Log::default()).unwrap();
    let probe = Probe {
        interface: UNDERLAY,
        address: router,
    };
    assert_eq!(node.reconciler.due_probes(node.now), [probe]);
    assert_eq!(node.reconciler.vteps_behind(router).count(), 2);
    assert_eq!(node.reconciler.vteps_behind(VTEP.into()).count(), 0);
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
    assert_eq!(node.next_hop(), tunnel(0xe5, 0xb2));
    let mtu = |node: &Node| {
        node.readers
            .reader()
            .load()
            .network(NetworkId(0))
            .unwrap()
            .underlay_mtu
    };
    assert_eq!(mtu(&node), 9000);

    changed.addresses = OwnAddresses::default();
    node.reconciler.observe_underlay(&changed, node.now);
    node.settle();
    assert_eq!(node.next_hop(), NextHopState::Unresolved);
    changed.addresses = options().underlay.addresses;
    node.reconciler.observe_underlay(&changed, node.now);
    node.settle();
    assert_eq!(node.next_hop(), tunnel(0xe5, 0xb2));
}

#[test]
fn an_underlay_that_was_replaced_is_not_used() {
    let mut node = start();
    node.reconciler.underlay_removed(node.now);
    node.reconciler.observe_underlay(&underlay(), node.now);
    node.settle();
    assert_eq!(node.next_hop(), NextHopState::Unresolved);
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
