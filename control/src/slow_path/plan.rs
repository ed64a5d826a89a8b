//! What the kernel is to have, decided from options and interfaces alone: flannel's state, and
//! what pods need of their node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use viaduct_encap::MacAddr;
use viaduct_encap::ecn::Dscp;

use super::wanted::Inputs;
use crate::kernel::{Entry, Key, LinkInfo, LinkState, VxlanDevice, VxlanSettings, Way};
use crate::next_hop::overlay_mtu;
use crate::options::{AgentOptions, NetworkOptions, PortOptions, RouteOptions};

/// The gateway that pods with /32 addresses have, on every pod's interface.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The underlay as the VXLAN device is to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Underlay {
    pub(super) index: u32,
    pub(super) mtu: u32,
}

/// The one network that the kernel carries too.
pub(super) fn network(options: &AgentOptions) -> Option<&NetworkOptions> {
    options.networks.first()
}

/// The node's underlay addresses that want a VXLAN device: one of the kernel's has one family.
pub(super) fn locals(options: &AgentOptions) -> impl Iterator<Item = IpAddr> {
    let addresses = options.underlay.addresses;
    let six = addresses.v4.is_none() || options.routes.iter().any(|route| route.vtep.is_ipv6());
    addresses.only(|own| own.is_ipv4() || six).iter()
}

/// Numbers of the VXLAN devices, by the family of their underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) v4: Option<u32>,
    pub(super) v6: Option<u32>,
}

impl Devices {
    pub(super) fn like(self, vtep: IpAddr) -> Option<u32> {
        if vtep.is_ipv4() { self.v4 } else { self.v6 }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u32> {
        self.v4.into_iter().chain(self.v6)
    }
}

/// The VXLAN device that the kernel is to have for an underlay address, and the state that it is
/// to be in.
pub(super) fn device(
    network: &NetworkOptions,
    own: IpAddr,
    underlay: Underlay,
) -> (VxlanSettings, LinkState) {
    let six = own.is_ipv6();
    let settings = VxlanSettings {
        vni: network.vni,
        port: network.udp_port,
        local: Some(own),
        underlay: Some(underlay.index),
        learning: false,
        zero_tx6: six && !network.udp_checksum6,
        zero_rx6: six,
        tos: match network.dscp {
            // What the kernel takes for "the inner packet's".
            Dscp::Copy => 1,
            Dscp::Fixed(dscp) => dscp << 2,
        },
    };
    let state = LinkState {
        mac: network.vtep_macs.over(own),
        mtu: overlay_mtu(underlay.mtu, own).into(),
    };
    (settings, state)
}

/// What keeps a device that somebody else made from being ours; nothing if it fits.
pub(super) fn misfits(
    found: &VxlanDevice,
    wanted: &VxlanSettings,
    state: LinkState,
    links: &[LinkInfo],
) -> Vec<String> {
    let mut misfits = Vec::new();
    if found.settings.learning {
        misfits.push("it learns addresses from packets (make it with `nolearning`)".to_owned());
    }
    if let Some(local) = found.settings.local
        && Some(local) != wanted.local
    {
        misfits.push(format!("its local address is {local}"));
    }
    if let Some(underlay) = found.settings.underlay
        && Some(underlay) != wanted.underlay
    {
        let named = |index| links.iter().find(|link| link.index == index);
        let name = |index| named(index).map(|link| link.name.as_str());
        let ours = wanted.underlay.and_then(name).unwrap_or("the underlay");
        misfits.push(match name(underlay) {
            Some(other) => format!("its underlay is {other}, not {ours}"),
            None => format!("its underlay is in another network namespace, not {ours}"),
        });
    }
    if found.link.mac != Some(state.mac) {
        let has = found
            .link
            .mac
            .map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        let six = wanted.local.is_some_and(|local| local.is_ipv6());
        let option = if six { "vtep_mac6" } else { "vtep_mac" };
        misfits.push(format!(
            "its MAC is {has}, not this node's {option} {} (set {option} to it)",
            state.mac
        ));
    }
    if found.link.mtu > state.mtu {
        misfits.push(format!(
            "its MTU is {}, more than the {} that the underlay leaves",
            found.link.mtu, state.mtu
        ));
    }
    misfits
}

/// A pod's interface, where there is one.
pub(super) struct PodLink<'a> {
    pub(super) index: u32,
    pub(super) pod: &'a PortOptions,
}

/// Entries, one a key: the first counts.
#[derive(Debug, Default)]
struct Plan(BTreeMap<Key, Entry>);

impl Plan {
    fn insert(&mut self, entry: Entry) {
        self.0.entry(entry.key()).or_insert(entry);
    }

    fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        entries.into_iter().for_each(|entry| self.insert(entry));
    }
}

/// The cluster's prefixes that are some node's: a route for all of the cluster is some operator's
/// way to say "everything goes there".
pub(super) fn routed(network: &NetworkOptions, routes: &[RouteOptions]) -> BTreeSet<IpNet> {
    let routes = routes.iter().filter(|route| route.network == 0);
    let prefixes = routes.flat_map(|route| &route.prefixes);
    let whole = prefixes.filter(|prefix| network.cluster_prefixes.contains(prefix));
    whole.copied().collect()
}

/// The entries for this node and the pods that are there; IPv6 only if the host has it.
pub(super) fn own_entries(inputs: &Inputs<'_>, routed: &BTreeSet<IpNet>) -> BTreeMap<Key, Entry> {
    let (network, pods) = (inputs.network, inputs.pods);
    let mut entries = Plan::default();
    if let Some(interface) = inputs.devices.iter().next() {
        let own = own_addresses(network).filter(|own| own.is_ipv4() || inputs.device_v6);
        entries.extend(own.map(|address| Entry::Address {
            interface,
            address: IpNet::from(address),
        }));
    }
    for &destination in &network.cluster_prefixes {
        if !routed.contains(&destination) && !inputs.spared.contains(&destination) {
            let way = Way::Unreachable;
            entries.insert(Entry::Route { destination, way });
        }
    }
    for pod in pods {
        if pod.pod.network == 0 {
            pod_entries(inputs, pod, &mut entries);
        } else {
            // Somebody has to answer for the gateway.
            entries.extend(gateways(pod.index));
        }
    }
    let mut entries = entries.0;
    entries.retain(|_, entry| inputs.v6 || entry.is_v4());
    entries
}

/// Where frames for another node's VTEP MAC go.
pub(super) fn forward(route: &RouteOptions, interface: u32) -> Entry {
    let (mac, to) = (route.vtep_mac, route.vtep);
    Entry::Forward { interface, mac, to }
}

/// The way to a prefix of the node with this VTEP MAC: a neighbour, and a route by it.
pub(super) fn way(
    network: &NetworkOptions,
    prefix: IpNet,
    mac: MacAddr,
    interface: u32,
) -> [Entry; 2] {
    let via = prefix.network();
    let neighbour = Entry::Neighbour {
        interface,
        address: via,
        mac,
    };
    let way = Way::Interface {
        interface,
        via: Some(via),
        source: own_address(network, via),
    };
    let destination = prefix;
    [neighbour, Entry::Route { destination, way }]
}

/// The link-local gateways on a pod's interface. With the prefix, the pod's own link-local address
/// is on this link.
fn gateways(interface: u32) -> impl Iterator<Item = Entry> {
    let v4 = IpNet::from(IpAddr::V4(GATEWAY_V4));
    let both = [Some(v4), IpNet::new(GATEWAY_V6.into(), 64).ok()];
    let both = both.into_iter().flatten();
    both.map(move |address| Entry::Address { interface, address })
}

/// A pod's routes, and its gateways: link-local ones for pods with single addresses, the first
/// address of the node's prefixes for pods with /24 and /64.
fn pod_entries(inputs: &Inputs<'_>, this: &PodLink<'_>, entries: &mut Plan) {
    let (network, pods) = (inputs.network, inputs.pods);
    let interface = this.index;
    entries.extend(gateways(interface));
    for address in classic_gateways(network, pods).map(IpNet::from) {
        entries.insert(Entry::Address { interface, address });
    }
    for &address in &this.pod.addresses {
        entries.insert(Entry::Route {
            destination: address.into(),
            way: Way::Interface {
                interface,
                via: None,
                // It has to be there.
                source: own_address(network, address)
                    .filter(|own| own.is_ipv4() || inputs.device_v6),
            },
        });
    }
    // To a pod with a /64 the others are neighbours. For IPv4 proxy_arp answers by routes; for
    // IPv6 the kernel wants each address.
    for other in pods.iter().filter(|pod| pod.pod.network == 0) {
        if other.index != interface {
            let v6 = other.pod.addresses.iter().filter(|a| a.is_ipv6());
            entries.extend(v6.map(|&address| Entry::Proxy { interface, address }));
        }
    }
}

/// The first host address of the node's first prefix of each family, unless a pod has it.
fn classic_gateways<'a>(
    network: &'a NetworkOptions,
    pods: &'a [PodLink<'_>],
) -> impl Iterator<Item = IpAddr> + 'a {
    let first = [
        network
            .overlay_v4()
            .map(|a| IpAddr::V4(Ipv4Addr::from_bits(a.to_bits().saturating_add(1)))),
        network
            .overlay_v6()
            .map(|a| IpAddr::V6(Ipv6Addr::from_bits(a.to_bits().saturating_add(1)))),
    ];
    let taken = |address: &IpAddr| {
        pods.iter()
            .any(|pod| pod.pod.network == 0 && pod.pod.addresses.contains(address))
    };
    let inside = |address: &IpAddr| network.pod_prefixes.iter().any(|p| p.contains(address));
    first
        .into_iter()
        .flatten()
        .filter(move |address| inside(address) && !taken(address))
}

/// The node's own addresses in the network.
pub(super) fn own_addresses(network: &NetworkOptions) -> impl Iterator<Item = IpAddr> {
    let v4 = network.overlay_v4().map(IpAddr::V4);
    v4.into_iter().chain(network.overlay_v6().map(IpAddr::V6))
}

/// The node's own address in the network, of the family of another.
fn own_address(network: &NetworkOptions, like: IpAddr) -> Option<IpAddr> {
    own_addresses(network).find(|address| address.is_ipv4() == like.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::super::wanted::Wanted;
    use super::*;
    use crate::testing;

    /// All that is wanted with these devices and pods, and what contradicts itself.
    fn whole(options: &AgentOptions, pods: &[PodLink<'_>], v6: bool) -> (Vec<Entry>, Vec<String>) {
        let mut wanted = Wanted::default();
        let devices = Devices {
            v4: Some(9),
            v6: None,
        };
        wanted.update(&Inputs {
            network: &options.networks[0],
            routes: &options.routes,
            devices,
            pods,
            v6,
            device_v6: true,
            spared: &BTreeSet::new(),
        });
        let entries = wanted.keys().filter_map(|key| wanted.get(key).copied());
        (entries.collect(), wanted.conflicts().to_vec())
    }

    fn planned() -> Vec<Entry> {
        let options = testing::options();
        let pods = options.ports.iter().zip(5..);
        let pods: Vec<_> = pods.map(|(pod, index)| PodLink { index, pod }).collect();
        let (entries, conflicts) = whole(&options, &pods, true);
        assert_eq!(conflicts, Vec::<String>::new());
        entries
    }

    /// With a second node, changed so: conflicts, and routes by a device.
    fn conflicts(change: impl Fn(&mut RouteOptions)) -> (Vec<String>, Vec<String>) {
        let mut options = testing::options();
        let mut second = testing::route(3);
        change(&mut second);
        options.routes.push(second);
        let (entries, conflicts) = whole(&options, &[], true);
        let routes = entries.iter().filter_map(|entry| match entry {
            Entry::Route {
                destination,
                way: Way::Interface { .. },
            } => Some(destination.to_string()),
            _ => None,
        });
        (conflicts, routes.collect())
    }

    #[test]
    fn entries_do_not_fight_for_a_key() {
        let (found, routes) = conflicts(|_| {});
        assert!(found.is_empty());
        assert!(routes.contains(&"10.42.3.0/24".to_owned()), "{routes:?}");

        let (found, routes) = conflicts(|second| second.vtep_mac = testing::mac(0xa2));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("192.0.2.2 and 192.0.2.3"));
        assert!(!routes.contains(&"10.42.3.0/24".to_owned()), "{routes:?}");
        assert!(routes.contains(&"10.42.2.0/24".to_owned()), "{routes:?}");

        let (found, routes) = conflicts(|second| {
            second.prefixes.push("10.42.2.0/25".parse().unwrap());
        });
        assert!(found[0].starts_with("10.42.2.0/25 and"));
        assert!(routes.contains(&"10.42.3.0/24".to_owned()), "{routes:?}");
        assert!(!routes.contains(&"10.42.2.0/25".to_owned()), "{routes:?}");

        // One node in two routes is no conflict.
        let (found, _) = conflicts(|second| {
            second.vtep = testing::VTEP.into();
            second.vtep_mac = testing::mac(0xa2);
        });
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn without_ipv6_nothing_of_it_is_wanted() {
        let options = testing::options();
        let pod = PodLink {
            index: 5,
            pod: &options.ports[0],
        };
        let (entries, _) = whole(&options, &[pod], false);
        assert!(entries.iter().all(Entry::is_v4));
        assert!(entries.len() > 5);
    }

    /// The kernel has no IPv6 on a device whose MTU is too small for it.
    #[test]
    fn a_device_without_ipv6_has_nothing_of_it() {
        let options = testing::options();
        let pod = PodLink {
            index: 5,
            pod: &options.ports[0],
        };
        let mut wanted = Wanted::default();
        let mut update = |device_v6| {
            wanted.update(&Inputs {
                network: &options.networks[0],
                routes: &options.routes,
                devices: Devices {
                    v4: Some(9),
                    v6: None,
                },
                pods: std::slice::from_ref(&pod),
                v6: true,
                device_v6,
                spared: &BTreeSet::new(),
            });
            let entries = wanted.keys().filter_map(|key| wanted.get(key).copied());
            entries.collect::<Vec<_>>()
        };
        let six_on = |entries: &[Entry], index| {
            let six = entries.iter().filter(|entry| !entry.is_v4());
            six.filter(|entry| match entry {
                Entry::Route {
                    way: Way::Interface { interface, .. },
                    ..
                } => *interface == index,
                entry => entry.interface() == Some(index),
            })
            .count()
        };
        let own: IpAddr = "fd00:42:1::".parse().unwrap();
        let from_own = |entries: &[Entry]| {
            entries.iter().any(|entry| {
                matches!(entry, Entry::Route { way: Way::Interface { source, .. }, .. } if *source == Some(own))
            })
        };
        let with = update(true);
        assert!(six_on(&with, 9) > 0 && from_own(&with));
        let without = update(false);
        assert_eq!(six_on(&without, 9), 0);
        assert_eq!(six_on(&without, 5), six_on(&with, 5), "pods here keep it");
        assert!(!from_own(&without), "an address that is not there");
    }

    #[test]
    fn a_node_is_reached_as_flannel_reaches_it() {
        let entries = planned();
        let via: IpAddr = "10.42.2.0".parse().unwrap();
        let mac = testing::mac(0xa2);
        assert!(entries.contains(&Entry::Forward {
            interface: 9,
            mac,
            to: "192.0.2.2".parse().unwrap()
        }));
        assert!(entries.contains(&Entry::Neighbour {
            interface: 9,
            address: via,
            mac
        }));
        assert!(entries.contains(&Entry::Route {
            destination: "10.42.2.0/24".parse().unwrap(),
            way: Way::Interface {
                interface: 9,
                via: Some(via),
                source: Some("10.42.1.0".parse().unwrap())
            }
        }));
    }

    #[test]
    fn what_nobody_has_is_unreachable() {
        let unreachable = Entry::Route {
            destination: "10.42.0.0/16".parse().unwrap(),
            way: Way::Unreachable,
        };
        assert!(planned().contains(&unreachable));
    }

    #[test]
    fn pods_have_gateways_and_are_proxied_for() {
        let entries = planned();
        for gateway in [
            "169.254.1.1/32",
            "fe80::1/64",
            "10.42.1.1/32",
            "fd00:42:1::1/128",
        ] {
            let address = gateway.parse().unwrap();
            let interface = 6;
            assert!(
                entries.contains(&Entry::Address { interface, address }),
                "{gateway}"
            );
        }
        let address = "fd00:42:1::10".parse().unwrap();
        let of = |interface| Entry::Proxy { interface, address };
        assert!(entries.contains(&of(6)), "the other pod's interface");
        assert!(!entries.contains(&of(5)), "not its own");
    }

    #[test]
    fn a_device_of_somebody_else_is_looked_at_closely() {
        let options = testing::options();
        let underlay = Underlay {
            index: 2,
            mtu: 1500,
        };
        let own = options.underlay.addresses.iter().next().unwrap();
        let (settings, state) = device(&options.networks[0], own, underlay);
        let mut found = VxlanDevice {
            link: testing::link(9, "flannel.1"),
            settings,
            owner: None,
        };
        found.link.mac = Some(state.mac);
        found.link.mtu = 1450;
        let links = [testing::link(2, "eth0"), testing::link(3, "eth1")];
        let misfits = |found: &_, settings: &_, state| misfits(found, settings, state, &links);
        assert!(misfits(&found, &settings, state).is_empty());
        for (other, said) in [(3, "is eth1, not eth0"), (7, "another network namespace")] {
            found.settings.underlay = Some(other);
            let named = misfits(&found, &settings, state).join(", ");
            assert!(named.contains(said), "{named}");
        }
        found.settings.underlay = None;
        found.settings.local = None;
        assert!(misfits(&found, &settings, state).is_empty());
        found.settings.learning = true;
        found.link.mtu = 1500;
        found.link.mac = Some(testing::mac(1));
        found.settings.local = Some("192.0.2.7".parse().unwrap());
        assert_eq!(misfits(&found, &settings, state).len(), 4);
        let own = IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, 1]);
        let (settings, state) = device(&options.networks[0], own, underlay);
        let named = misfits(&found, &settings, state).join(", ");
        assert!(named.contains("vtep_mac6"), "{named}");
    }
}
