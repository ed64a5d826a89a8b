//! What the kernel says over netlink, in namespaces of the tests' own.

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::{Namespace, eventually};
use viaduct_control::kernel::{
    Events, Kernel, KernelError, KernelEvent, LinkInfo, NeighbourState, RouteTo, UdpFlow,
};
use viaduct_encap::MacAddr;

const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

/// Two namespaces with `a0`, 192.0.2.1, in the first and `b0`, 192.0.2.2, in the second.
fn pair() -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new("a"), Namespace::new("b"));
    a.connect("a0", &b, "b0");
    a.ip(&format!("link set a0 address {MAC_A} mtu 1400"));
    b.ip(&format!("link set b0 address {MAC_B}"));
    a.ip("address add 192.0.2.1/24 dev a0");
    b.ip("address add 192.0.2.2/24 dev b0");
    (a, b)
}

#[test]
fn a_veth_and_its_peer_in_another_namespace() {
    let (a, _b) = pair();
    a.ip("link add c0 numrxqueues 3 numtxqueues 4 type veth peer name c1");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let link = kernel.link_by_name("a0").await.unwrap();
        assert_eq!(link.name, "a0");
        assert_eq!(link.mac, Some(MAC_A));
        assert_eq!(link.mtu, 1400);
        assert!(link.up);
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.xdp, None);
        assert!(link.peer.unwrap().netns_id.is_some());
        assert_eq!(peer_mac(&kernel, &link).await, Some(MAC_B));

        let near = kernel.link_by_name("c0").await.unwrap();
        let far = kernel.link_by_name("c1").await.unwrap();
        assert!(!near.up);
        assert_eq!((near.num_rx_queues, near.num_tx_queues), (3, 4));
        assert_eq!(near.peer.unwrap().netns_id, None);
        assert_eq!(peer_mac(&kernel, &near).await, far.mac);

        let lo = kernel.link_by_name("lo").await.unwrap();
        assert_eq!((lo.mac, lo.kind.clone()), (None, None));
        assert_eq!(peer_mac(&kernel, &lo).await, None);
    });
}

#[test]
fn a_missing_interface_is_an_error_of_its_own() {
    Namespace::new("a").run(|| async {
        let kernel = Kernel::open().unwrap();
        for name in [
            "nosuch0",
            "",
            "a-name-that-is-far-too-long-for-an-interface",
        ] {
            let error = kernel.link_by_name(name).await.unwrap_err();
            assert!(
                matches!(error, KernelError::NoSuchInterface { .. }),
                "{error}"
            );
        }
    });
}

#[test]
fn a_peer_that_went_away_has_no_mac() {
    let (a, b) = pair();
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let link = kernel.link_by_name("a0").await.unwrap();
        b.ip("link del b0");
        assert_eq!(peer_mac(&kernel, &link).await, None);
    });
}

#[test]
fn addresses_of_one_interface_and_of_all() {
    let (a, _b) = pair();
    a.ip("address add 2001:db8::1/64 dev a0 nodad");
    a.ip("address add 198.51.100.1 peer 198.51.100.9/32 dev lo");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let index = kernel.link_by_name("a0").await.unwrap().index;
        let addresses = kernel.addresses(index).await.unwrap();
        for expected in ["192.0.2.1/24", "2001:db8::1/64"] {
            let expected = expected.parse().unwrap();
            assert!(
                addresses.iter().any(|entry| entry.address == expected),
                "{addresses:?}"
            );
        }
        let all = kernel.all_addresses().await.unwrap();
        let ours: IpAddr = "198.51.100.1".parse().unwrap();
        assert!(
            all.iter().any(|entry| entry.address.addr() == ours),
            "{all:?}"
        );
        assert!(all.len() > addresses.len());
    });
}

#[test]
fn a_probe_resolves_a_neighbour_and_leaves_nothing_permanent() {
    let (a, _b) = pair();
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let index = kernel.link_by_name("a0").await.unwrap().index;
        assert_eq!(kernel.neighbour(index, B).await.unwrap(), None);
        kernel.probe(index, B).await.unwrap();
        let known = eventually("the neighbour answers", async || {
            let known = kernel.neighbour(index, B).await.unwrap()?;
            known.usable_mac().map(|_| known)
        })
        .await;
        assert_eq!(known.mac, Some(MAC_B));
        assert_eq!(known.state, NeighbourState::Valid);
        kernel.probe(index, B).await.unwrap();
        let known = kernel.neighbour(index, B).await.unwrap().unwrap();
        assert_eq!(known.state, NeighbourState::Valid);
    });
}

#[test]
fn a_probe_leaves_a_permanent_neighbour_as_it_is() {
    let (a, _b) = pair();
    a.ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:77 dev a0 nud permanent");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let index = kernel.link_by_name("a0").await.unwrap().index;
        for _ in 0..3 {
            kernel.probe(index, B).await.unwrap();
            let known = kernel.neighbour(index, B).await.unwrap().unwrap();
            assert_eq!(known.state, NeighbourState::Fixed);
            assert_eq!(known.usable_mac(), Some(MacAddr([2, 0, 0, 0, 0, 0x77])));
        }
    });
}

#[test]
fn routes_with_and_without_a_gateway_and_none() {
    let (a, _b) = pair();
    a.ip("route add 203.0.113.0/24 via 192.0.2.2");
    a.ip("route add unreachable 198.51.100.0/25");
    a.ip("route add blackhole 198.51.100.128/26");
    a.ip("route add prohibit 198.51.100.192/26");
    a.ip("address add 2001:db8::1/64 dev a0 nodad");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let interface = kernel.link_by_name("a0").await.unwrap().index;
        let route = async |destination: &str| {
            let destination = destination.parse().unwrap();
            kernel.routes_to(destination).await.unwrap()
        };
        let expected = |gateway| RouteTo {
            interface,
            gateway,
            weight: 1,
        };
        assert_eq!(route("192.0.2.2").await, [expected(None)]);
        assert_eq!(route("203.0.113.9").await, [expected(Some(B))]);
        for refused in [
            "198.51.100.1",
            "198.51.100.129",
            "198.51.100.193",
            "10.9.9.9",
        ] {
            assert_eq!(route(refused).await, [], "{refused}");
        }
        assert_eq!(route("2001:db8::2").await[0].interface, interface);
        assert_eq!(route("2001:db8:1::2").await, []);
    });
}

#[test]
fn routes_with_several_gateways() {
    let (a, _b) = pair();
    a.ip("address add 2001:db8::1/64 dev a0 nodad");
    let v4 = "nexthop via 192.0.2.2 weight 3 nexthop via 192.0.2.3";
    a.ip(&format!("route add 203.0.113.0/24 {v4}"));
    let v6 = "nexthop via 2001:db8::2 weight 3 nexthop via 2001:db8::3";
    a.ip(&format!("route add 2001:db8:1::/64 {v6}"));
    // The same by next hop objects.
    a.ip("nexthop add id 1 via 192.0.2.2 dev a0");
    a.ip("nexthop add id 2 via 192.0.2.3 dev a0");
    a.ip("nexthop add id 3 group 1,3/2");
    a.ip("route add 198.51.100.0/24 nhid 3");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let ways = async |destination: &str| {
            let ways = kernel.routes_to(destination.parse().unwrap()).await;
            let ways = ways.unwrap().into_iter();
            ways.map(|way| format!("{} {}", way.gateway.unwrap(), way.weight))
                .collect::<Vec<_>>()
        };
        for destination in ["203.0.113.9", "198.51.100.9"] {
            assert_eq!(ways(destination).await, ["192.0.2.2 3", "192.0.2.3 1"]);
        }
        let v6 = ways("2001:db8:1::9").await;
        assert_eq!(v6, ["2001:db8::2 3", "2001:db8::3 1"]);
    });
}

#[test]
fn an_ipv4_route_by_an_ipv6_gateway() {
    let (a, _b) = pair();
    a.ip("route add 203.0.113.0/24 via inet6 fe80::2 dev a0");
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let route = kernel
            .routes_to("203.0.113.9".parse().unwrap())
            .await
            .unwrap();
        assert_eq!(route[0].gateway, "fe80::2".parse().ok());
    });
}

#[test]
fn rules_choose_by_source_protocol_and_port() {
    let (a, _b) = pair();
    a.ip("address add 192.0.2.77/24 dev a0");
    a.ip("route add 203.0.113.0/24 via 192.0.2.2");
    for (table, rule) in [
        (100, "from 192.0.2.77"),
        (101, "ipproto udp dport 4789"),
        (102, "ipproto tcp"),
    ] {
        a.ip(&format!(
            "route add 203.0.113.0/24 via 192.0.2.{table} table {table} mtu 1{table}"
        ));
        a.ip(&format!("rule add {rule} lookup {table} pref {table}"));
    }
    a.run(|| async {
        let kernel = Kernel::open().unwrap();
        let ask = async |source: &str, port| {
            let flow = UdpFlow {
                source: Some(source.parse().unwrap()),
                destination: "203.0.113.9".parse().unwrap(),
                port,
            };
            let routes = kernel.routes_of(&flow).await.unwrap();
            let gateway = routes.ways.first().and_then(|way| way.gateway);
            (
                gateway.unwrap().to_string(),
                routes.mtu.map(|mtu| mtu.bytes),
            )
        };
        assert_eq!(ask("192.0.2.1", 8472).await, ("192.0.2.2".into(), None));
        let by_source = ("192.0.2.100".into(), Some(1100));
        assert_eq!(ask("192.0.2.77", 8472).await, by_source);
        let by_port = ("192.0.2.101".into(), Some(1101));
        assert_eq!(ask("192.0.2.1", 4789).await, by_port);
    });
}

async fn wait_for(events: &mut Events, what: &str, wanted: impl Fn(&KernelEvent) -> bool) {
    let search = async { while !wanted(&events.next().await.expect("the socket failed").event) {} };
    let found = tokio::time::timeout(Duration::from_secs(5), search).await;
    assert!(found.is_ok(), "no event: {what}");
}

#[test]
fn changes_come_as_events() {
    let (a, b) = pair();
    a.run(|| async {
        let mut events = Events::subscribe().unwrap();
        let kernel = Kernel::open().unwrap();
        let index = kernel.link_by_name("a0").await.unwrap().index;

        kernel.probe(index, B).await.unwrap();
        let neighbour = KernelEvent::NeighbourChanged {
            interface: index,
            address: B,
        };
        wait_for(&mut events, "neighbour", |event| *event == neighbour).await;

        a.ip("link set a0 mtu 1300");
        let new_mtu = |event: &KernelEvent| match event {
            KernelEvent::LinkChanged(link) => link.index == index && link.mtu == 1300,
            _ => false,
        };
        wait_for(&mut events, "MTU", new_mtu).await;

        a.ip("route add 203.0.113.0/24 via 192.0.2.2");
        let route = KernelEvent::RouteChanged {
            destination: "203.0.113.0/24".parse().unwrap(),
            ours: false,
        };
        wait_for(&mut events, "route", |event| *event == route).await;

        a.ip("rule add from 192.0.2.1 lookup 100");
        let rule = |event: &KernelEvent| *event == KernelEvent::RuleChanged;
        wait_for(&mut events, "rule", rule).await;

        a.ip("address add 192.0.2.99/24 dev a0");
        let address = KernelEvent::AddressChanged { interface: index };
        wait_for(&mut events, "address", |event| *event == address).await;

        b.ip("link del b0");
        let removed = KernelEvent::LinkRemoved {
            index,
            name: "a0".into(),
        };
        wait_for(&mut events, "removal", |event| *event == removed).await;
        let error = kernel.link_by_name("a0").await.unwrap_err();
        assert!(matches!(error, KernelError::NoSuchInterface { .. }));
    });
}

#[test]
fn lost_events_are_told_of() {
    let (a, _b) = pair();
    a.run(|| async {
        let mut events = Events::subscribe().unwrap();
        let lines = (0..40_000).map(|n| {
            let (high, low) = (n / 256, n % 256);
            format!("route add 10.{}.{}.{low}/32 dev a0", high / 256, high % 256)
        });
        // Nothing is read meanwhile: this thread is the runtime's only one.
        a.ip_batch(&lines.collect::<Vec<_>>().join("\n"));
        let resync = |event: &KernelEvent| *event == KernelEvent::Resync;
        wait_for(&mut events, "resync", resync).await;
        // And the stream goes on after it.
        a.ip("address add 192.0.2.99/24 dev a0");
        let address = |event: &KernelEvent| matches!(event, KernelEvent::AddressChanged { .. });
        wait_for(&mut events, "address", address).await;
    });
}

async fn peer_mac(kernel: &Kernel, link: &LinkInfo) -> Option<MacAddr> {
    kernel.peer(link).await.unwrap()?.mac
}
