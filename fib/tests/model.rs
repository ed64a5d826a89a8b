//! Random updates, against a model too simple to be wrong.

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::{network, next_hop, port};
use ipnet::IpNet;
use proptest::prelude::*;
use viaduct_fib::{Fib, Network, NetworkId, NextHop, Port, PortId, Publisher, TunnelId, Update};

#[derive(Clone, Default)]
struct Model {
    networks: BTreeMap<NetworkId, Network>,
    ports: BTreeMap<PortId, Port>,
    next_hops: BTreeMap<TunnelId, NextHop>,
    locals: BTreeMap<(NetworkId, IpAddr), PortId>,
    remotes: BTreeMap<(NetworkId, IpNet), TunnelId>,
}

impl Model {
    /// The rules of `Update`'s documentation, as plain as can be.
    fn allows(&self, update: &Update) -> bool {
        match update {
            Update::PutNetwork { id, network } => {
                id.0 < 1024
                    && self
                        .networks
                        .iter()
                        .all(|(other, n)| other == id || n.vni != network.vni)
            }
            Update::RemoveNetwork { id } => {
                self.networks.contains_key(id)
                    && self.ports.values().all(|port| port.network != *id)
                    && self.remotes.keys().all(|(network, _)| network != id)
            }
            Update::PutPort { id, port } => {
                let same = self
                    .ports
                    .get(id)
                    .is_some_and(|old| old.network == port.network);
                let unused = self.locals.values().all(|owner| owner != id);
                (1..4096).contains(&id.0)
                    && self.networks.contains_key(&port.network)
                    && (same || unused)
            }
            Update::RemovePort { id } => {
                self.ports.contains_key(id) && self.locals.values().all(|port| port != id)
            }
            Update::PutLocal {
                network,
                address,
                port,
            } => {
                let owner = self.locals.get(&(*network, *address));
                self.ports
                    .get(port)
                    .is_some_and(|port| port.network == *network)
                    && owner.is_none_or(|owner| owner == port)
            }
            Update::RemoveLocal { network, address } => {
                self.locals.contains_key(&(*network, *address))
            }
            Update::PutRemote {
                network,
                prefix,
                tunnel,
            } => {
                self.networks.contains_key(network)
                    && self.next_hops.contains_key(tunnel)
                    && prefix.network() == prefix.addr()
            }
            Update::RemoveRemote { network, prefix } => {
                self.remotes.contains_key(&(*network, *prefix))
            }
            Update::PutNextHop { tunnel, .. } => tunnel.0 < 65_536,
            Update::RemoveNextHop { tunnel } => {
                self.next_hops.contains_key(tunnel)
                    && self.remotes.values().all(|user| user != tunnel)
            }
        }
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::PutNetwork { id, network } => _ = self.networks.insert(id, network),
            Update::RemoveNetwork { id } => _ = self.networks.remove(&id),
            Update::PutPort { id, port } => _ = self.ports.insert(id, port),
            Update::RemovePort { id } => _ = self.ports.remove(&id),
            Update::PutLocal {
                network,
                address,
                port,
            } => _ = self.locals.insert((network, address), port),
            Update::RemoveLocal { network, address } => _ = self.locals.remove(&(network, address)),
            Update::PutRemote {
                network,
                prefix,
                tunnel,
            } => _ = self.remotes.insert((network, prefix), tunnel),
            Update::RemoveRemote { network, prefix } => _ = self.remotes.remove(&(network, prefix)),
            Update::PutNextHop { tunnel, next_hop } => _ = self.next_hops.insert(tunnel, next_hop),
            Update::RemoveNextHop { tunnel } => _ = self.next_hops.remove(&tunnel),
        }
    }

    fn remote(&self, network: NetworkId, address: IpAddr) -> Option<TunnelId> {
        self.remotes
            .iter()
            .filter(|((n, prefix), _)| *n == network && prefix.contains(&address))
            .max_by_key(|((_, prefix), _)| prefix.prefix_len())
            .map(|(_, tunnel)| *tunnel)
    }

    fn assert_same(&self, fib: &Fib) {
        assert!(
            fib.networks()
                .eq(self.networks.iter().map(|(id, n)| (*id, n)))
        );
        assert!(fib.ports().eq(self.ports.iter().map(|(id, p)| (*id, p))));
        assert!(
            fib.next_hops()
                .eq(self.next_hops.iter().map(|(id, n)| (*id, n)))
        );
        let locals: BTreeMap<_, _> = fib.locals().map(|(n, a, p)| ((n, a), p)).collect();
        assert_eq!(locals, self.locals);
        let remotes: BTreeMap<_, _> = fib.remotes().map(|(n, p, t)| ((n, p), t)).collect();
        assert_eq!(remotes, self.remotes);
        let counts = fib.counts();
        assert_eq!(counts.networks, self.networks.len());
        assert_eq!(counts.ports, self.ports.len());
        assert_eq!(counts.locals, locals.len());
        assert_eq!(counts.remotes, remotes.len());
        assert_eq!(counts.next_hops, self.next_hops.len());
        for (id, network) in &self.networks {
            assert_eq!(fib.network(*id), Some(network));
            assert_eq!(fib.network_by_vni(network.vni), Some(*id));
        }
        let prefixes = remotes.keys().map(|(_, prefix)| *prefix);
        let probes = prefixes.flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
        for address in probes.chain(locals.keys().map(|(_, address)| *address)) {
            for id in (0..4).map(NetworkId) {
                assert_eq!(
                    fib.local(id, address),
                    self.locals.get(&(id, address)).copied()
                );
                assert_eq!(
                    fib.remote(id, address),
                    self.remote(id, address),
                    "{id} {address}"
                );
            }
        }
    }
}

/// Few numbers, so that updates meet, and now and then one that is out of range.
fn number(limit: u32) -> impl Strategy<Value = u32> {
    prop_oneof![30 => 0..4_u32, 1 => limit - 1..=limit]
}

fn network_id() -> impl Strategy<Value = NetworkId> {
    number(1024).prop_map(|id| NetworkId(id.try_into().expect("small")))
}

fn port_id() -> impl Strategy<Value = PortId> {
    number(4096).prop_map(|id| PortId(id.try_into().expect("small")))
}

fn tunnel_id() -> impl Strategy<Value = TunnelId> {
    number(65_536).prop_map(TunnelId)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4_u8, 0..4_u8).prop_map(|(a, b)| Ipv4Addr::new(10, a, 0, b).into()),
        (0..4_u16, 0..4_u16).prop_map(|(a, b)| Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, b).into()),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let lengths = prop_oneof![
        Just((0, 0)),
        Just((14, 30)),
        Just((16, 32)),
        Just((24, 64)),
        Just((32, 128))
    ];
    (address(), lengths, prop::bool::weighted(0.9)).prop_map(|(address, (v4, v6), canonical)| {
        let length = if address.is_ipv4() { v4 } else { v6 };
        let prefix = IpNet::new(address, length).expect("a length of the family");
        if canonical { prefix.trunc() } else { prefix }
    })
}

fn update() -> impl Strategy<Value = Update> {
    let put_network = (network_id(), 0..4_u32).prop_map(|(id, vni)| Update::PutNetwork {
        id,
        network: network(vni),
    });
    let put_port = (port_id(), network_id(), any::<u32>()).prop_map(|(id, network, identity)| {
        Update::PutPort {
            id,
            port: port(network.0, identity),
        }
    });
    let put_local = (network_id(), address(), port_id()).prop_map(|(network, address, port)| {
        Update::PutLocal {
            network,
            address,
            port,
        }
    });
    let put_remote = (network_id(), prefix(), tunnel_id()).prop_map(|(network, prefix, tunnel)| {
        Update::PutRemote {
            network,
            prefix,
            tunnel,
        }
    });
    let put_next_hop = (tunnel_id(), any::<u8>()).prop_map(|(tunnel, node)| Update::PutNextHop {
        tunnel,
        next_hop: next_hop(node),
    });
    prop_oneof![
        4 => put_network,
        1 => network_id().prop_map(|id| Update::RemoveNetwork { id }),
        4 => put_port,
        1 => port_id().prop_map(|id| Update::RemovePort { id }),
        8 => put_local,
        4 => (network_id(), address()).prop_map(|(network, address)| Update::RemoveLocal { network, address }),
        8 => put_remote,
        4 => (network_id(), prefix()).prop_map(|(network, prefix)| Update::RemoveRemote { network, prefix }),
        4 => put_next_hop,
        1 => tunnel_id().prop_map(|tunnel| Update::RemoveNextHop { tunnel }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn agrees_with_the_model(batches in prop::collection::vec(prop::collection::vec(update(), 0..40), 1..10)) {
        let (mut publisher, factory) = Publisher::new();
        let reader = factory.reader();
        let mut model = Model::default();
        for batch in batches {
            for update in batch {
                let allowed = model.allows(&update);
                prop_assert_eq!(publisher.apply(update.clone()).is_ok(), allowed, "{:?}", update);
                if allowed {
                    model.apply(update);
                }
            }
            let epoch = publisher.publish().expect("no reader is in the way");
            model.assert_same(&reader.load());
            prop_assert!(*reader.load() == *publisher.fib());
            // Swaps the copies, so that the other one is seen.
            prop_assert!(publisher.quiesced(epoch));
            prop_assert!(*reader.load() == *publisher.fib());
        }
    }

    #[test]
    fn a_list_of_updates_is_applied_whole_or_not_at_all(
        lists in prop::collection::vec(prop::collection::vec(update(), 0..6), 1..40),
    ) {
        let (mut publisher, factory) = Publisher::new();
        let reader = factory.reader();
        let mut model = Model::default();
        for list in lists {
            let mut next = model.clone();
            let mut allowed = true;
            for update in &list {
                allowed = allowed && next.allows(update);
                if allowed {
                    next.apply(update.clone());
                }
            }
            prop_assert_eq!(publisher.apply_all(list.clone()).is_ok(), allowed, "{:?}", list);
            if allowed {
                model = next;
            }
            model.assert_same(publisher.fib());
            let epoch = publisher.publish().expect("no reader is in the way");
            model.assert_same(&reader.load());
            prop_assert!(publisher.quiesced(epoch));
            model.assert_same(&reader.load());
        }
    }
}
