//! Pods that come, go and change.

use super::*;

#[test]
fn a_start_brings_everything_about() {
    let node = start();
    let reader = node.readers.reader();
    let fib = reader.load();
    let network = fib.network(NetworkId(0)).unwrap();
    assert_eq!(network.underlay_mtu, 1500);
    assert_eq!(network.overlay_v4, Some([10, 42, 1, 0].into()));
    let port = fib.port(PortId(1)).unwrap();
    assert_eq!((port.mac, port.gateway_mac), (mac(0x10), mac(0xe0)));
    assert_eq!(node.local("fd00:42:1::10"), Some(PortId(1)));
    let remote: IpAddr = "fd00:42:2::5".parse().unwrap();
    assert_eq!(fib.remote(NetworkId(0), remote), Some(TunnelId(0)));
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xb2));

    let status = node.reconciler.status().get();
    assert_eq!(status.epoch, fib.epoch());
    assert_eq!(status.ports.len(), 2);
    assert_eq!(status.ports[0].attached_index, Some(11));
    assert_eq!(status.routes.len(), 2);
    let resolved = RouteState::Resolved {
        next_hops: vec![crate::status::NextHopStatus {
            address: VTEP.into(),
            mac: mac(0xb2),
            weight: 1,
        }],
    };
    assert_eq!(status.routes[1].state, resolved);
}

#[test]
fn a_failed_start_is_undone() {
    let log = Log::default();
    log.fail(Some("admit 10.42.1.11"));
    let error = start_error(&observed(), &log);
    assert!(
        error.contains("pod b") && error.contains("pod-b"),
        "{error}"
    );
    assert!(error.contains("told to fail"), "{error}");
    let calls = log.take();
    assert_eq!(calls[..UP.len()], UP);
    let undone: Vec<&str> = ["detach 2"]
        .into_iter()
        .chain(A_DOWN)
        .chain(["no underlay"])
        .collect();
    assert_eq!(calls[UP.len()..], undone);
}

#[test]
fn a_start_names_what_is_missing() {
    let log = Log::default();
    let mut missing = observed();
    missing.ports[0] = no_pod();
    let error = start_error(&missing, &log);
    assert!(
        error.contains("pod a") && error.contains("does not exist"),
        "{error}"
    );

    let mut missing = observed();
    missing.ports[1].mac = None;
    let error = start_error(&missing, &log);
    assert!(
        error.contains("pod b") && error.contains("MAC is not known"),
        "{error}"
    );

    let mut missing = observed();
    missing.underlay.link = None;
    let error = start_error(&missing, &log);
    assert!(error.contains("underlay eth1"), "{error}");

    let mut missing = observed();
    missing.underlay.addresses.clear();
    let error = start_error(&missing, &log);
    assert!(error.contains("192.0.2.1"), "{error}");
}

#[test]
fn the_same_again_changes_nothing() {
    let mut node = start();
    let epoch = node.settle();
    for _ in 0..3 {
        node.see_port(&pod(11));
        node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
        node.reconciler.observe_underlay(&underlay(), node.now);
        assert_eq!(node.settle(), epoch);
    }
    assert_eq!(node.log.take(), [""; 0]);
}

#[test]
fn a_pod_that_goes_is_withdrawn_and_one_that_comes_back_is_taken_up() {
    let mut node = start();
    node.see_port(&no_pod());
    node.settle();
    assert_eq!(node.log.take(), A_DOWN);
    assert_eq!(node.local("10.42.1.10"), None);
    assert_eq!(node.local("10.42.1.11"), Some(PortId(2)));
    assert!(matches!(node.port_state(), PortState::Down { .. }));

    node.see_port(&pod(21));
    node.settle();
    assert_eq!(node.log.take(), A_UP);
    assert_eq!(node.local("10.42.1.10"), Some(PortId(1)));
    assert_eq!(node.port_state(), PortState::Up);
}

#[test]
fn a_pod_that_was_replaced_unseen_is_taken_up_anew() {
    let mut node = start();
    node.see_port(&pod(21));
    let both: Vec<&str> = A_DOWN.into_iter().chain(A_UP).collect();
    assert_eq!(node.log.take(), both);
    // It goes to another namespace and comes back with the same number.
    node.reconciler.link_removed(21, node.now);
    assert_eq!(node.log.take(), A_DOWN);
    node.see_port(&pod(21));
    assert_eq!(node.log.take(), A_UP);
}

#[test]
fn what_fails_is_tried_again_later_and_later() {
    let mut node = start();
    node.see_port(&no_pod());
    node.log.take();
    node.log.fail(Some("attach 1 21"));
    node.see_port(&pod(21));
    assert_eq!(node.log.take(), ["attach 1 21"]);
    assert_eq!(node.local("10.42.1.10"), None);
    let mut waits = Vec::new();
    for _ in 0..3 {
        // A failed attempt causes events of its own: these must not cause the next attempt.
        node.see_port(&pod(21));
        assert_eq!(node.log.take(), [""; 0]);
        let due = node.reconciler.next_due().unwrap();
        waits.push((due - node.now).as_millis());
        node.now = due;
        assert_eq!(
            node.reconciler.due_ports(due).collect::<Vec<_>>(),
            [PortId(1)]
        );
        node.see_port(&pod(21));
        assert_eq!(node.log.take(), ["attach 1 21"]);
    }
    assert_eq!(waits, [16, 32, 64]);
    node.log.fail(None);
    node.now = node.reconciler.next_due().unwrap();
    node.see_port(&pod(21));
    assert_eq!(node.log.take(), A_UP);
}

#[test]
fn a_pod_whose_mac_comes_late_is_waited_for() {
    let mut node = start();
    node.see_port(&no_pod());
    node.log.take();
    let mut early = pod(21);
    early.mac = None;
    node.see_port(&early);
    assert_eq!(node.log.take(), [""; 0]);
    node.now += 16 * MS;
    node.see_port(&pod(21));
    assert_eq!(node.log.take(), A_UP);
}

#[test]
fn a_pods_new_mac_reaches_the_table_and_the_checks_in_front_of_it() {
    let mut node = start();
    let mut changed = pod(11);
    changed.mac = Some(mac(0x99));
    node.see_port(&changed);
    node.settle();
    let mac_now = |node: &Node| node.readers.reader().load().port(PortId(1)).unwrap().mac;
    assert_eq!(mac_now(&node), mac(0x99));
    // What cannot be seen for the moment stays.
    changed.mac = None;
    node.see_port(&changed);
    node.settle();
    assert_eq!(mac_now(&node), mac(0x99));
    assert_eq!(node.log.take(), ["mac 1 02:00:00:00:00:99"]);
}

#[test]
fn a_stop_gives_the_pods_to_the_kernel() {
    let node = start();
    let status = node.reconciler.status();
    node.reconciler.shut_down();
    let expected = [
        "expel 10.42.1.11",
        "expel fd00:42:1::10",
        "expel 10.42.1.10",
        "quiesce",
        "detach 2",
        "detach 1",
    ];
    assert_eq!(node.log.take(), expected);
    let down = |port: &crate::PortStatus| matches!(port.state, PortState::Down { .. });
    assert!(status.get().ports.iter().all(down));
}
