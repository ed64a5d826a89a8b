//! What the kernel is to have, decided from options and interfaces alone: flannel's state, and
//! what pods need of their node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use viaduct_encap::ecn::Dscp;

use crate::kernel::{Entry, LinkState, VxlanDevice, VxlanSettings, Way};
use crate::next_hop::overlay_mtu;
use crate::options::{AgentOptions, NetworkOptions, PortOptions};

/// The gateway that pods with /32 addresses have, on every pod's interface.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The underlay as the VXLAN device is to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lower {
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
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Devices {
    pub(super) v4: Option<u32>,
    pub(super) v6: Option<u32>,
}

impl Devices {
    fn like(self, vtep: IpAddr) -> Option<u32> {
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
    lower: Lower,
) -> (VxlanSettings, LinkState) {
    let six = own.is_ipv6();
    let settings = VxlanSettings {
        vni: network.vni,
        port: network.udp_port,
        local: Some(own),
        lower: Some(lower.index),
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
        mac: network.vtep_mac,
        mtu: overlay_mtu(lower.mtu, own, network.vni).into(),
    };
    (settings, state)
}

/// What keeps a device that somebody else made from being ours; nothing if it fits.
pub(super) fn misfits(
    found: &VxlanDevice,
    wanted: &VxlanSettings,
    state: LinkState,
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
    if let Some(lower) = found.settings.lower
        && Some(lower) != wanted.lower
    {
        misfits.push(format!("its underlay is interface number {lower}"));
    }
    if found.link.mac != Some(state.mac) {
        let has = found
            .link
            .mac
            .map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        misfits.push(format!(
            "its MAC is {has}, not this node's vtep_mac {} (set vtep_mac to it)",
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

/// All entries for the network, with its VXLAN devices and the pods that are there.
pub(super) fn entries(
    options: &AgentOptions,
    network: &NetworkOptions,
    devices: Devices,
    pods: &[PodLink<'_>],
) -> BTreeSet<Entry> {
    let mut entries = BTreeSet::new();
    if let Some(interface) = devices.iter().next() {
        entries.extend(own_addresses(network).map(|address| Entry::Address {
            interface,
            address: IpNet::from(address),
        }));
    }
    let mut routed = BTreeSet::new();
    for route in options.routes.iter().filter(|route| route.network == 0) {
        let Some(device) = devices.like(route.vtep) else {
            continue;
        };
        entries.insert(Entry::Forward {
            interface: device,
            mac: route.vtep_mac,
            to: route.vtep,
        });
        for &prefix in &route.prefixes {
            routed.insert(prefix);
            let via = prefix.network();
            entries.insert(Entry::Neighbour {
                interface: device,
                address: via,
                mac: route.vtep_mac,
            });
            entries.insert(Entry::Route {
                destination: prefix,
                way: Way::Interface {
                    interface: device,
                    via: Some(via),
                    source: own_address(network, via),
                },
            });
        }
    }
    for &destination in &network.cluster_prefixes {
        // A route for all of the cluster is some operator's way to say "everything goes there".
        if !routed.contains(&destination) {
            let way = Way::Unreachable;
            entries.insert(Entry::Route { destination, way });
        }
    }
    for pod in pods {
        if pod.pod.network == 0 {
            pod_entries(network, pod, pods, &mut entries);
        } else {
            // Somebody has to answer for the gateway.
            entries.extend(gateways(pod.index));
        }
    }
    entries
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
fn pod_entries(
    network: &NetworkOptions,
    this: &PodLink<'_>,
    pods: &[PodLink<'_>],
    entries: &mut BTreeSet<Entry>,
) {
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
                source: own_address(network, address),
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
    use super::*;
    use crate::testing;

    fn planned() -> BTreeSet<Entry> {
        let options = testing::options();
        let pods: Vec<_> = options
            .ports
            .iter()
            .zip(5..)
            .map(|(pod, index)| PodLink { index, pod })
            .collect();
        let devices = Devices {
            v4: Some(9),
            v6: None,
        };
        entries(&options, &options.networks[0], devices, &pods)
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
        let lower = Lower {
            index: 2,
            mtu: 1500,
        };
        let own = options.underlay.addresses.iter().next().unwrap();
        let (settings, state) = device(&options.networks[0], own, lower);
        let mut found = VxlanDevice {
            link: testing::link(9, "flannel.1"),
            settings,
            ours: false,
        };
        found.link.mac = Some(state.mac);
        found.link.mtu = 1450;
        assert!(misfits(&found, &settings, state).is_empty());
        found.settings.lower = None;
        found.settings.local = None;
        assert!(misfits(&found, &settings, state).is_empty());
        found.settings.learning = true;
        found.link.mtu = 1500;
        found.link.mac = Some(testing::mac(1));
        found.settings.local = Some("192.0.2.7".parse().unwrap());
        assert_eq!(misfits(&found, &settings, state).len(), 4);
    }
}
