//! What the firewall table has of other nodes: where they are, and what each may send. A change of
//! routes changes the elements of the nodes that it is about.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::table::Counted;
use crate::difference::{Difference, difference};
use crate::options::RouteOptions;

/// Where things are behind the outer UDP header's first bit: UDP 8 bytes, VXLAN 8, Ethernet 14, then
/// IP (RFC 7348, section 5).
const ETHER_TYPE_BIT: u32 = 224;
const V4_SOURCE_BIT: u32 = (8 + 8 + 14 + 12) * 8;
const V6_SOURCE_BIT: u32 = (8 + 8 + 14 + 8) * 8;

/// The other nodes, as the routes that were taken over last have them.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    routes: Vec<RouteOptions>,
    /// Where their tunnels may end, by family.
    pub(super) addresses: Counted,
    pub(super) addresses6: Counted,
    /// What each may send into the first network, by the set's name.
    pub(super) origins: BTreeMap<String, Origins>,
}

/// The inner sources of one length, and the nodes whose they are.
#[derive(Debug)]
pub(super) struct Origins {
    pub(super) declaration: String,
    /// The rule that looks them up.
    pub(super) rule: String,
    pub(super) sources: Counted,
}

/// The set that has a node's address.
pub(super) fn node_set(node: IpAddr) -> &'static str {
    if node.is_ipv4() {
        "nodes_ip"
    } else {
        "nodes_ip6"
    }
}

impl Nodes {
    #[cfg(test)]
    pub(super) fn of(routes: &[RouteOptions]) -> Self {
        let mut nodes = Self::default();
        nodes.update(routes);
        nodes
    }

    /// Takes over how the routes are now.
    pub(super) fn update(&mut self, routes: &[RouteOptions]) {
        let old = std::mem::take(&mut self.routes);
        let Difference {
            front,
            back,
            removed,
            added,
        } = difference(&old, routes);
        for route in added {
            self.add(route);
        }
        for route in removed {
            self.remove(route);
        }
        self.origins
            .retain(|_, set| !set.sources.elements().is_empty());
        let (end, new_end) = (old.len() - back, routes.len() - back);
        self.routes = old;
        let new = routes[front..new_end].iter().cloned();
        drop(self.routes.splice(front..end, new));
    }

    fn add(&mut self, route: &RouteOptions) {
        for &node in addresses(route) {
            self.of_family(node).add(&node.to_string());
        }
        for source in sources(route) {
            let Origin {
                set,
                declaration,
                rule,
                element,
            } = Origin::new(route.vtep, source);
            let origins = self.origins.entry(set).or_insert_with(|| Origins {
                declaration,
                rule,
                sources: Counted::default(),
            });
            origins.sources.add(&element);
        }
    }

    fn remove(&mut self, route: &RouteOptions) {
        for &node in addresses(route) {
            self.of_family(node).remove(&node.to_string());
        }
        for source in sources(route) {
            let Origin { set, element, .. } = Origin::new(route.vtep, source);
            if let Some(origins) = self.origins.get_mut(&set) {
                origins.sources.remove(&element);
            }
        }
    }

    fn of_family(&mut self, node: IpAddr) -> &mut Counted {
        if node.is_ipv4() {
            &mut self.addresses
        } else {
            &mut self.addresses6
        }
    }
}

fn addresses(route: &RouteOptions) -> impl Iterator<Item = &IpAddr> {
    route.addresses.iter().chain([&route.vtep])
}

/// What a node may send into the first network: its pods' addresses and its own.
fn sources(route: &RouteOptions) -> impl Iterator<Item = IpNet> {
    let own = addresses(route).map(|&address| IpNet::from(address));
    let all = route.prefixes.iter().copied().chain(own);
    all.filter(|_| route.network == 0)
}

/// An inner source of a node as an element of a set.
struct Origin {
    set: String,
    declaration: String,
    rule: String,
    element: String,
}

impl Origin {
    fn new(vtep: IpAddr, source: IpNet) -> Self {
        let family = |v4: bool| if v4 { 4 } else { 6 };
        let (outer, inner) = (family(vtep.is_ipv4()), family(source.addr().is_ipv4()));
        let set = format!("origins{outer}_{inner}_{}", source.prefix_len());
        let outer = if vtep.is_ipv4() { "ip" } else { "ip6" };
        let (key, value) = inner_source(source);
        let (declaration, element) = match (inner_field(source), value) {
            (Some(field), Some(value)) => (
                format!("typeof {outer} saddr . {field}"),
                format!("{vtep} . {value:#x}"),
            ),
            _ => (format!("typeof {outer} saddr"), vtep.to_string()),
        };
        let (ether_type, bits) = (ether_type(source), key.unwrap_or_default());
        let rule = format!(
            "    @th,{ETHER_TYPE_BIT},16 {ether_type:#06x} {outer} saddr{bits} @{set} accept\n"
        );
        Self {
            set,
            declaration,
            rule,
            element,
        }
    }
}

fn ether_type(source: IpNet) -> u16 {
    if source.addr().is_ipv4() {
        0x0800
    } else {
        0x86dd
    }
}

/// The inner source address as the packet has it; none where its length is 0: every one lies in
/// that prefix.
fn inner_field(source: IpNet) -> Option<String> {
    let field = match source {
        IpNet::V4(_) => format!("@th,{V4_SOURCE_BIT},32"),
        IpNet::V6(_) => format!("@th,{V6_SOURCE_BIT},128"),
    };
    (source.prefix_len() > 0).then_some(field)
}

/// How the inner source is looked up, behind the outer one, and the value that it is looked up by:
/// the network's address. The whole address is masked: a part that is no number of bytes would be
/// shifted, and not in every version of the kernel in the same way.
fn inner_source(source: IpNet) -> (Option<String>, Option<u128>) {
    let mask = match source.netmask() {
        IpAddr::V4(mask) => u128::from(mask.to_bits()),
        IpAddr::V6(mask) => mask.to_bits(),
    };
    let value = match source.network() {
        IpAddr::V4(network) => u128::from(network.to_bits()),
        IpAddr::V6(network) => network.to_bits(),
    };
    let Some(field) = inner_field(source) else {
        return (None, None);
    };
    let mask = if source.prefix_len() == source.max_prefix_len() {
        String::new()
    } else {
        format!(" & {mask:#x}")
    };
    (Some(format!(" . {field}{mask}")), Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// What is in all sets.
    fn shown(nodes: &Nodes) -> Vec<(String, Vec<String>)> {
        let text = |counted: &Counted| counted.elements().iter().map(ToString::to_string).collect();
        let origins = nodes.origins.iter();
        let mut all: Vec<_> = origins
            .map(|(name, set)| (name.clone(), text(&set.sources)))
            .collect();
        all.push(("nodes_ip".into(), text(&nodes.addresses)));
        all.push(("nodes_ip6".into(), text(&nodes.addresses6)));
        all
    }

    proptest::proptest! {
        #[test]
        fn changes_lead_where_a_new_beginning_leads(
            lists in proptest::collection::vec(testing::route_lists(), 1..6)
        ) {
            let mut nodes = Nodes::default();
            for routes in lists {
                nodes.update(&routes);
                proptest::prop_assert_eq!(shown(&nodes), shown(&Nodes::of(&routes)));
            }
        }
    }

    #[test]
    fn inner_sources_are_looked_up_by_their_network() {
        for (source, expected) in [
            (
                "10.244.2.0/24",
                Some((" . @th,336,32 & 0xffffff00", 0x0af4_0200)),
            ),
            (
                "10.244.8.0/21",
                Some((" . @th,336,32 & 0xfffff800", 0x0af4_0800)),
            ),
            ("192.0.2.2/32", Some((" . @th,336,32", 0xc000_0202))),
            (
                "fd00:10:244:2::/64",
                Some((
                    " . @th,304,128 & 0xffffffffffffffff0000000000000000",
                    0xfd00_0010_0244_0002 << 64,
                )),
            ),
            ("0.0.0.0/0", None),
            ("::/0", None),
        ] {
            let (key, value) = inner_source(source.parse().unwrap());
            assert_eq!(key.as_deref(), expected.map(|(key, _)| key));
            assert_eq!(value, expected.map(|(_, value)| value));
        }
    }
}
