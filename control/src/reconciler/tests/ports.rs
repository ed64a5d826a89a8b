//! Pods that come, go and change.

use super::*;
use crate::binding::{Binding, InterfaceId};
use crate::options::OwnAddresses;

#[test]
fn a_start_brings_everything_about() {
    let node = start();
    let reader = node.readers.reader();
    let fib = reader.load();
    let network = fib.network(NetworkId(0)).unwrap();
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
        mtu: 1500,
        mtu_by: MtuBy::Interface,
        pod_mtu: 1450,
        warning: None,
    };
    assert_eq!(status.routes.iter().last().unwrap().state, resolved);
}

fn reason(status: &AgentStatus, pod: usize) -> String {
    match &status.ports[pod].state {
        PortState::Down { reason } => reason.clone(),
        PortState::Up => "up".into(),
    }
}

#[test]
fn a_pod_that_fails_at_the_start_keeps_no_other_from_it() {
    let log = Log::default();
    log.fail(Some("admit fd00:42:1::10"));
    let mut node = start_with(options(), &observed(), &[pod(11), pod(12)], log.clone());
    let calls = log.take();
    assert_eq!(
        calls[UP.len() - 2..],
        [
            "expel 10.42.1.10",
            "detach 1",
            "attach 2 12",
            "admit 10.42.1.11"
        ]
    );
    assert!(reason(&node.status(), 0).contains("told to fail"));
    assert_eq!(reason(&node.status(), 1), "up");
    log.fail(None);
    node.now = node.reconciler.next_due().unwrap();
    node.see_port(&pod(11));
    assert_eq!(reason(&node.status(), 0), "up");
}

#[test]
fn a_start_names_what_is_missing_and_follows_it() {
    let log = Log::default();
    let mut early = pod(12);
    early.mac = None;
    let mut node = start_with(options(), &observed(), &[no_pod(), early], log);
    let status = node.status();
    assert!(reason(&status, 0).contains("does not exist"));
    assert!(reason(&status, 1).contains("MAC is not known"));
    node.see_port(&pod(11));
    assert_eq!(reason(&node.status(), 0), "up");

    let mut missing = observed();
    missing.underlay.link = None;
    let mut node = start_of(options(), &missing);
    let problem = node.status().underlay_problem.clone().unwrap();
    assert!(problem.contains("no such interface"), "{problem}");
    assert_eq!(reason(&node.status(), 0), "up", "pods do without");
    node.reconciler.observe_underlay(&underlay(), node.now);
    assert_eq!(node.status().underlay_problem, None);

    let mut missing = observed();
    missing.underlay.addresses.clear();
    let mut options = options();
    options.underlay.addresses = OwnAddresses::default();
    let mut node = start_of(options, &missing);
    let problem = node.status().underlay_problem.clone().unwrap();
    assert!(problem.contains("no address"), "{problem}");
    node.reconciler.observe_underlay(&underlay(), node.now);
    assert_eq!(node.status().underlay_problem, None);
    assert_eq!(node.next_hop(), tunnel(0xe0, 0xb2));
}

/// A pod that a command added stays with its interface: another one of its name is another pod's.
#[test]
fn a_bound_pod_is_not_given_to_another_interface_of_its_name() {
    let of = |index, last| {
        let mut pod = pod(index);
        pod.link.as_mut().unwrap().mac = Some(mac(last));
        pod
    };
    let known = |index, last| {
        Binding::Interface(Some(InterfaceId {
            index,
            mac: Some(mac(last)),
        }))
    };
    let with = |binding| {
        let mut options = options();
        options.ports[0].binding = binding;
        options
    };
    let refused = |node: &mut Node, seen: &ObservedPort| {
        node.see_port(seen);
        let why = reason(&node.status(), 0);
        assert!(why.contains("another interface is called pod-a"), "{why}");
        assert!(why.contains("viaduct port del a"), "{why}");
        assert_eq!(node.reconciler.port_followed(PortId(1)), 0);
        assert_eq!(node.local("10.42.1.10"), None);
        assert!(node.reconciler.due_ports(node.now).next().is_none());
    };
    // Known from before, or seen for the first time now.
    for binding in [known(11, 1), known(0, 1), Binding::Interface(None)] {
        let mut node = start_with(
            with(binding),
            &observed(),
            &[of(11, 1), pod(12)],
            Log::default(),
        );
        assert_eq!(reason(&node.status(), 0), "up");
        node.see_port(&of(11, 2));
        assert_eq!(reason(&node.status(), 0), "up", "it may change its MAC");
        node.log.take();
        node.reconciler.link_removed(11, node.now);
        assert_eq!(node.log.take(), A_DOWN);
        refused(&mut node, &of(11, 1));
        refused(&mut node, &of(21, 3));
        // The same wish again changes nothing about it.
        let options = with(known(11, 1));
        let (ports, routes) = (options.ports, options.routes);
        node.reconciler
            .reconfigure(ports, routes, node.now)
            .unwrap();
        refused(&mut node, &of(21, 3));
        let bound = node.reconciler.current_options().ports[0].binding.clone();
        assert_eq!(bound, known(0, 2), "for the kernel's path");
        assert_eq!(node.log.take(), [""; 0]);
        node.see_port(&of(21, 2));
        assert_eq!(reason(&node.status(), 0), "up", "made anew with its MAC");
        assert_eq!(node.log.take(), A_UP);
    }
    // One of the file goes by its name, and a start finds another interface as a run does.
    let mut node = start_with(
        with(known(11, 1)),
        &observed(),
        &[of(21, 2), pod(12)],
        Log::default(),
    );
    refused(&mut node, &of(21, 2));
    let options = with(Binding::Name);
    let (ports, routes) = (options.ports, options.routes);
    node.reconciler
        .reconfigure(ports, routes, node.now)
        .unwrap();
    node.see_port(&of(21, 2));
    assert_eq!(reason(&node.status(), 0), "up");
}

/// Who renames an interface has not taken it away.
#[test]
fn a_renamed_interface_is_followed_by_its_number() {
    let mut node = start();
    let mut renamed = pod(11);
    renamed.link.as_mut().unwrap().name = "ens-a".into();
    assert_eq!(node.reconciler.port_followed(PortId(1)), 11);
    node.see_port(&renamed);
    let mut underlay = underlay();
    underlay.link.as_mut().unwrap().name = "ens1".into();
    node.reconciler.observe_underlay(&underlay, node.now);
    assert_eq!(node.log.take(), [""; 0]);
    let status = node.status();
    assert_eq!(status.underlay_problem, None);
    assert_eq!(status.underlay_interface, "ens1");
    assert_eq!(status.ports[0].interface, "ens-a");
    assert_eq!(status.ports[0].renamed_from.as_deref(), Some("pod-a"));
    let now = node.reconciler.current_options();
    assert_eq!(now.underlay.name, "ens1");
    assert_eq!(now.ports[0].interface, "ens-a");
    drop(now);
    assert!(node.reconciler.pod_macs().contains_key("ens-a"));

    // Once it has gone, the configured name counts again.
    node.reconciler.link_removed(11, node.now);
    node.reconciler.link_removed(UNDERLAY, node.now);
    assert_eq!(node.reconciler.port_followed(PortId(1)), 0);
    assert_eq!(node.reconciler.underlay_link().index(), 0);
    assert_eq!(node.status().ports[0].interface, "pod-a");
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

#[test]
fn a_link_that_was_down_is_used_when_it_is_up() {
    let mut node = start();
    let mut down = pod(11);
    down.link.as_mut().unwrap().up = false;
    node.see_port(&down);
    assert_eq!(node.log.take(), A_DOWN);
    // However often it is seen down, nothing is waited for afterwards.
    for _ in 0..10 {
        node.now += MS;
        node.see_port(&down);
    }
    assert_eq!(node.reconciler.due_ports(node.now + 2_000 * MS).count(), 0);
    node.see_port(&pod(11));
    let up = ["attach 1 11", "admit 10.42.1.10", "admit fd00:42:1::10"];
    assert_eq!(node.log.take(), up);

    // Also if something else was waited for when it went down.
    node.see_port(&down);
    node.log.fail(Some("attach 1 11"));
    node.see_port(&pod(11));
    node.log.take();
    node.see_port(&down);
    node.log.fail(None);
    node.see_port(&pod(11));
    assert_eq!(node.log.take(), up);
}
