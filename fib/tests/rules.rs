//! What a table answers, and which updates are refused with which words.

mod common;

use common::{
    ip, network, next_hop, port, put_local, put_network, put_next_hop, put_port, put_remote,
    remove_local, remove_remote, vni,
};
use viaduct_fib::{
    Counts, MAX_NETWORKS, MAX_PORTS, MAX_TUNNELS, NetworkId, PortId, Publisher, TunnelId, Update,
    UpdateError,
};

/// Two networks with the same addresses, two ports in the first, one next hop.
fn publisher() -> (Publisher, viaduct_fib::ReaderFactory) {
    let (mut publisher, factory) = Publisher::new();
    for update in [
        put_network(0, 1),
        put_network(1, 7),
        put_port(1, 0),
        put_port(2, 0),
        put_port(3, 1),
        put_local(0, "10.244.1.2", 1),
        put_local(0, "fd00::2", 1),
        put_local(1, "10.244.1.2", 3),
        put_next_hop(0, 9),
        put_next_hop(1, 8),
        put_remote(0, "10.244.2.0/24", 0),
        put_remote(0, "10.244.2.7/32", 1),
        put_remote(0, "fd00:2::/64", 0),
    ] {
        publisher.apply(update).expect("a consistent update");
    }
    (publisher, factory)
}

/// The words with which this update is refused, having changed nothing.
#[track_caller]
fn refusal(update: Update) -> String {
    let (mut publisher, _factory) = publisher();
    let before = publisher.fib().clone();
    let error = publisher.apply(update).expect_err("refused");
    assert_eq!(*publisher.fib(), before);
    error.to_string()
}

#[test]
fn answers() {
    let (mut publisher, factory) = publisher();
    let reader = factory.reader();
    assert_eq!(reader.load().epoch(), 0);
    assert_eq!(reader.load().counts(), Counts::default());
    assert_eq!(publisher.publish(), Ok(1));

    let fib = reader.load();
    assert_eq!(fib.epoch(), 1);
    assert_eq!(fib.network(NetworkId(1)), Some(&network(7)));
    assert_eq!(fib.network(NetworkId(2)), None);
    assert_eq!(fib.network_by_vni(vni(7)), Some(NetworkId(1)));
    assert_eq!(fib.network_by_vni(vni(2)), None);
    assert_eq!(fib.port(PortId(3)), Some(&port(1, 0)));
    assert_eq!(fib.port(PortId::UNDERLAY), None);
    assert_eq!(fib.port(PortId(u16::MAX)), None);
    assert_eq!(fib.local(NetworkId(0), ip("10.244.1.2")), Some(PortId(1)));
    assert_eq!(fib.local(NetworkId(1), ip("10.244.1.2")), Some(PortId(3)));
    assert_eq!(fib.local(NetworkId(0), ip("fd00::2")), Some(PortId(1)));
    assert_eq!(fib.local(NetworkId(1), ip("fd00::2")), None);
    let remote = |address| fib.remote(NetworkId(0), ip(address));
    assert_eq!(remote("10.244.2.6"), Some(TunnelId(0)));
    assert_eq!(remote("10.244.2.7"), Some(TunnelId(1)));
    assert_eq!(remote("10.244.3.1"), None);
    assert_eq!(remote("fd00:2::1"), Some(TunnelId(0)));
    assert_eq!(fib.remote(NetworkId(1), ip("10.244.2.6")), None);
    assert_eq!(fib.next_hop(TunnelId(0)), Some(&next_hop(9)));
    assert_eq!(fib.next_hop(TunnelId(u32::MAX)), None);

    let counts = Counts {
        networks: 2,
        ports: 3,
        locals: 3,
        remotes: 3,
        next_hops: 2,
    };
    assert_eq!(fib.counts(), counts);
    assert_eq!(fib.networks().count(), 2);
    assert_eq!(
        fib.ports().map(|(id, _)| id.0).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(fib.locals().count(), 3);
    assert_eq!(fib.remotes().count(), 3);
    assert_eq!(fib.next_hops().count(), 2);
}

#[test]
fn replacing() {
    let (mut publisher, factory) = publisher();
    for update in [
        put_network(1, 8),                 // another VNI
        put_network(0, 7),                 // the VNI that is free now
        put_next_hop(0, 10),               // the node has moved
        put_remote(0, "10.244.2.7/32", 0), // so has the pod
        put_local(0, "10.244.1.2", 1),     // as it was
        put_port(2, 1),                    // a port without addresses changes its network
    ] {
        publisher.apply(update).expect("a consistent update");
    }
    assert_eq!(publisher.publish(), Ok(1));
    let reader = factory.reader();
    let fib = reader.load();
    assert_eq!(fib.network_by_vni(vni(8)), Some(NetworkId(1)));
    assert_eq!(fib.network_by_vni(vni(7)), Some(NetworkId(0)));
    assert_eq!(fib.network_by_vni(vni(1)), None);
    assert_eq!(fib.next_hop(TunnelId(0)), Some(&next_hop(10)));
    let pod = ip("10.244.2.7");
    assert_eq!(fib.remote(NetworkId(0), pod), Some(TunnelId(0)));
    assert_eq!(fib.local(NetworkId(0), ip("10.244.1.2")), Some(PortId(1)));
    assert_eq!(fib.port(PortId(2)).map(|port| port.network.0), Some(1));
}

#[test]
fn everything_can_be_removed_again() {
    let (mut publisher, factory) = publisher();
    assert_eq!(publisher.publish(), Ok(1));
    let ports = [1, 2, 3].map(|id| Update::RemovePort { id: PortId(id) });
    let tunnels = [0, 1].map(|id| Update::RemoveNextHop {
        tunnel: TunnelId(id),
    });
    let networks = [0, 1].map(|id| Update::RemoveNetwork { id: NetworkId(id) });
    let entries = [
        remove_local(0, "10.244.1.2"),
        remove_local(0, "fd00::2"),
        remove_local(1, "10.244.1.2"),
        remove_remote(0, "10.244.2.7/32"),
        remove_remote(0, "10.244.2.0/24"),
        remove_remote(0, "fd00:2::/64"),
    ];
    for update in entries
        .into_iter()
        .chain(ports)
        .chain(tunnels)
        .chain(networks)
    {
        publisher.apply(update).expect("nothing uses it any more");
    }
    assert_eq!(publisher.publish(), Ok(2));
    assert_eq!(factory.reader().load().counts(), Counts::default());
}

#[test]
fn numbers_out_of_range() {
    assert_eq!(
        refusal(put_network(MAX_NETWORKS, 99)),
        "cannot add network 1024: at most 1024 networks are supported; use a lower number"
    );
    assert_eq!(
        refusal(put_port(MAX_PORTS, 0)),
        "cannot add port 4096: at most 4096 ports are supported; use a lower number"
    );
    assert_eq!(
        refusal(put_next_hop(MAX_TUNNELS, 1)),
        "cannot add tunnel 65536: at most 65536 tunnels are supported; use a lower number"
    );
    assert_eq!(
        refusal(put_port(0, 0)),
        "cannot add a pod as port 0: that is the underlay's; number pods from 1"
    );
}

#[test]
fn unknown_things() {
    let network = "network 5 is unknown: add it first";
    assert_eq!(refusal(put_port(4, 5)), network);
    assert_eq!(refusal(put_local(5, "10.0.0.1", 1)), network);
    assert_eq!(refusal(put_remote(5, "10.0.0.0/24", 0)), network);
    assert_eq!(refusal(remove_local(5, "10.0.0.1")), network);
    assert_eq!(refusal(remove_remote(5, "10.0.0.0/24")), network);
    assert_eq!(refusal(Update::RemoveNetwork { id: NetworkId(5) }), network);
    let port = "port 9 is unknown: add it first";
    assert_eq!(refusal(put_local(0, "10.0.0.1", 9)), port);
    assert_eq!(refusal(Update::RemovePort { id: PortId(9) }), port);
    let tunnel = "tunnel 9 is unknown: add its next hop first";
    assert_eq!(refusal(put_remote(0, "10.0.0.0/24", 9)), tunnel);
    assert_eq!(
        refusal(Update::RemoveNextHop {
            tunnel: TunnelId(9)
        }),
        tunnel
    );
    assert_eq!(
        refusal(remove_local(0, "10.244.1.3")),
        "cannot remove 10.244.1.3 from network 0: no local pod has it"
    );
    assert_eq!(
        refusal(remove_remote(0, "10.244.2.0/25")),
        "cannot remove 10.244.2.0/25 from network 0: it has no such route"
    );
}

#[test]
fn conflicts() {
    assert_eq!(
        refusal(put_network(2, 7)),
        "cannot give VNI 7 to network 2: network 1 has it; choose another or remove that network"
    );
    assert_eq!(
        refusal(put_local(0, "10.244.1.2", 2)),
        "cannot give 10.244.1.2 in network 0 to port 2: port 1 has it; remove it from there first"
    );
    assert_eq!(
        refusal(put_local(0, "10.244.1.9", 3)),
        "cannot give 10.244.1.9 in network 0 to port 3: that port is in network 1"
    );
    let meant = "10.244.3.1/24 is not a prefix: bits beyond its length are set; use 10.244.3.0/24";
    assert_eq!(refusal(put_remote(0, "10.244.3.1/24", 0)), meant);
    assert_eq!(refusal(remove_remote(0, "10.244.3.1/24")), meant);
}

#[test]
fn things_in_use() {
    assert_eq!(
        refusal(Update::RemoveNetwork { id: NetworkId(0) }),
        "cannot remove network 0: it still has 2 ports and 3 remote prefixes; remove these first"
    );
    let port = "cannot remove port 1 or change its network: it still has 2 addresses; \
                remove these first";
    assert_eq!(refusal(Update::RemovePort { id: PortId(1) }), port);
    assert_eq!(refusal(put_port(1, 1)), port);
    assert_eq!(
        refusal(Update::RemoveNextHop {
            tunnel: TunnelId(0)
        }),
        "cannot remove the next hop of tunnel 0: 2 prefixes use it; remove these first"
    );
}

#[test]
fn refused_update_leaves_what_was_staged() {
    let (mut publisher, factory) = publisher();
    let refused = publisher.apply(put_port(4, 5));
    assert_eq!(refused, Err(UpdateError::UnknownNetwork(NetworkId(5))));
    assert_eq!(publisher.publish(), Ok(1));
    assert_eq!(factory.reader().load().counts().ports, 3);
}
