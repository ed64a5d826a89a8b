//! All entries that the kernel is to have, kept: a change of routes changes the entries of the
//! nodes that it is about, and says which these are.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::plan::{self, Devices, PodLink};
use crate::difference::{Difference, difference};
use crate::kernel::{Entry, Key};
use crate::options::{NetworkOptions, PortOptions, RouteOptions};

/// What the entries depend on.
pub(super) struct Inputs<'a> {
    pub(super) network: &'a NetworkOptions,
    pub(super) routes: &'a [RouteOptions],
    pub(super) devices: Devices,
    pub(super) pods: &'a [PodLink<'a>],
    /// Whether the host has IPv6.
    pub(super) v6: bool,
    /// Whether the VXLAN devices can have it.
    pub(super) device_v6: bool,
    /// The cluster's prefixes that have no unreachable route.
    pub(super) spared: &'a BTreeSet<IpNet>,
}

/// The same, without the routes to other nodes, to compare.
#[derive(Debug, PartialEq)]
struct Basis {
    network: NetworkOptions,
    devices: Devices,
    v6: bool,
    device_v6: bool,
    pods: Vec<(u32, PortOptions)>,
    spared: BTreeSet<IpNet>,
    /// The cluster's prefixes that are some node's.
    routed: BTreeSet<IpNet>,
}

impl Inputs<'_> {
    /// Whether the kernel has IPv6 between nodes.
    pub(super) fn between_nodes_v6(&self) -> bool {
        self.v6 && self.device_v6
    }
}

impl Basis {
    fn new(inputs: &Inputs<'_>) -> Self {
        let pods = inputs.pods.iter();
        Self {
            network: inputs.network.clone(),
            devices: inputs.devices,
            v6: inputs.v6,
            device_v6: inputs.device_v6,
            pods: pods.map(|it| (it.index, it.pod.clone())).collect(),
            spared: inputs.spared.clone(),
            routed: plan::routed(inputs.network, inputs.routes),
        }
    }
}

/// What the kernel's tables are to have, one entry a key.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    basis: Option<Basis>,
    /// Entries for this node and its pods.
    own: BTreeMap<Key, Entry>,
    /// Entries for other nodes, which come before.
    nodes: NodeEntries,
}

impl Wanted {
    /// The entry of this key.
    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        let node = self.nodes.entries.get(key).map(|(entry, _)| entry);
        node.or_else(|| self.own.get(key))
    }

    /// All keys; some may come twice.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.nodes.entries.keys().chain(self.own.keys())
    }

    /// What contradicts itself, in sentences.
    pub(super) fn conflicts(&self) -> &[String] {
        &self.nodes.conflicts
    }

    /// Takes over what there is to be now; the keys whose entries may be others than before.
    pub(super) fn update(&mut self, inputs: &Inputs<'_>) -> BTreeSet<Key> {
        let basis = Basis::new(inputs);
        let before = self.basis.as_ref();
        let same = before.is_some_and(|before| {
            let v6 = |it: &Basis| (it.v6, it.device_v6);
            (&before.network, before.devices, v6(before))
                == (&basis.network, basis.devices, v6(&basis))
        });
        let mut changed = BTreeSet::new();
        if !same || !self.nodes.change(inputs, &mut changed) {
            changed.extend(self.nodes.rebuild(inputs));
        }
        if before != Some(&basis) {
            let own = plan::own_entries(inputs, &basis.routed);
            let old = std::mem::replace(&mut self.own, own);
            changed.extend(differing(&old, &self.own));
            self.basis = Some(basis);
        }
        changed
    }
}

/// The keys with other values in one map than in the other.
fn differing<V: PartialEq>(old: &BTreeMap<Key, V>, new: &BTreeMap<Key, V>) -> BTreeSet<Key> {
    let other = |(key, value): &(&Key, &V)| old.get(*key) != Some(*value);
    let mut keys: BTreeSet<Key> = new.iter().filter(other).map(|(key, _)| *key).collect();
    keys.extend(old.keys().filter(|key| !new.contains_key(*key)));
    keys
}

/// The ways to other nodes, and by how many routes and prefixes each entry is wanted.
#[derive(Debug, Default)]
struct NodeEntries {
    routes: Vec<RouteOptions>,
    entries: BTreeMap<Key, (Entry, u32)>,
    conflicts: Vec<String>,
    /// Whether a key was wanted for two entries: then the order of all routes decides.
    contested: bool,
}

impl NodeEntries {
    /// Makes the entries those of these routes by what has changed, and notes the keys; false if
    /// that takes a look at all of them.
    fn change(&mut self, inputs: &Inputs<'_>, changed: &mut BTreeSet<Key>) -> bool {
        if self.contested {
            return false;
        }
        let old = std::mem::take(&mut self.routes);
        let Difference {
            front,
            back,
            removed,
            added,
        } = difference(&old, inputs.routes);
        for route in removed {
            for entry in node_entries(inputs, route) {
                self.drop_one(&entry.key());
                changed.insert(entry.key());
            }
        }
        for route in added {
            self.add(inputs, route);
            changed.extend(node_entries(inputs, route).map(|entry| entry.key()));
        }
        let (end, new_end) = (old.len() - back, inputs.routes.len() - back);
        self.routes = old;
        let new = inputs.routes[front..new_end].iter().cloned();
        drop(self.routes.splice(front..end, new));
        !self.contested
    }

    /// Makes the entries those of these routes.
    fn rebuild(&mut self, inputs: &Inputs<'_>) -> BTreeSet<Key> {
        let old = std::mem::take(self);
        for route in inputs.routes {
            self.add(inputs, route);
        }
        self.routes = inputs.routes.to_vec();
        let entries = |all: &BTreeMap<Key, (Entry, u32)>| -> BTreeMap<Key, Entry> {
            all.iter().map(|(key, (entry, _))| (*key, *entry)).collect()
        };
        differing(&entries(&old.entries), &entries(&self.entries))
    }

    /// The way to another node. Its VTEP MAC leads to one address: where two nodes have one MAC, the
    /// kernel would send the one's packets to the other.
    fn add(&mut self, inputs: &Inputs<'_>, route: &RouteOptions) {
        let Some(interface) = device(inputs, route) else {
            return;
        };
        let (mac, to) = (route.vtep_mac, route.vtep);
        if let Err(Entry::Forward { to: other, .. }) = self.take(plan::forward(route, interface)) {
            self.conflicts.push(format!(
                "nodes {other} and {to} have one VTEP MAC, {mac}: the kernel sends nothing to {to}; give \
                 each its own vtep_mac"
            ));
            return;
        }
        for &prefix in &route.prefixes {
            let way = plan::way(inputs.network, prefix, mac, interface);
            if way
                .iter()
                .any(|entry| !inputs.between_nodes_v6() && !entry.is_v4())
            {
                continue;
            }
            let [neighbour, to_prefix] = way;
            // Two prefixes may begin with one address (10.1.0.0/16 and 10.1.0.0/24).
            if self.take(neighbour).is_err() {
                self.conflicts.push(format!(
                    "{prefix} and a prefix of another node begin with one address: the kernel has no \
                     way to {prefix}; split one of them"
                ));
                continue;
            }
            // The first of two has it.
            let _ = self.take(to_prefix);
        }
    }

    /// Wants an entry once more; else the one that has its key.
    fn take(&mut self, entry: Entry) -> Result<(), Entry> {
        match self.entries.entry(entry.key()) {
            Slot::Vacant(slot) => {
                slot.insert((entry, 1));
            }
            Slot::Occupied(mut slot) if slot.get().0 == entry => slot.get_mut().1 += 1,
            Slot::Occupied(slot) => {
                self.contested = true;
                return Err(slot.get().0);
            }
        }
        Ok(())
    }

    /// Wants an entry once less.
    fn drop_one(&mut self, key: &Key) {
        if let Some((_, count)) = self.entries.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.entries.remove(key);
            }
        }
    }
}

/// The device by which a route's node is reached; none for other networks.
fn device(inputs: &Inputs<'_>, route: &RouteOptions) -> Option<u32> {
    let device = inputs.devices.like(route.vtep);
    device.filter(|_| route.network == 0)
}

/// All that a route wants, whatever others want.
fn node_entries(inputs: &Inputs<'_>, route: &RouteOptions) -> impl Iterator<Item = Entry> {
    let of = device(inputs, route).into_iter().flat_map(move |device| {
        let prefixes = route.prefixes.iter();
        let ways = prefixes
            .flat_map(move |&prefix| plan::way(inputs.network, prefix, route.vtep_mac, device));
        [plan::forward(route, device)].into_iter().chain(ways)
    });
    of.filter(|entry| inputs.between_nodes_v6() || entry.is_v4())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn all(wanted: &Wanted) -> BTreeMap<Key, Entry> {
        let entry = |key: &Key| Some((*key, *wanted.get(key)?));
        wanted.keys().filter_map(entry).collect()
    }

    proptest::proptest! {
        #[test]
        fn changes_lead_where_a_new_beginning_leads(
            lists in proptest::collection::vec(testing::route_lists(), 1..6),
            v6: bool,
        ) {
            let options = testing::options();
            let mut wanted = Wanted::default();
            for routes in lists {
                let devices = Devices { v4: Some(9), v6: Some(10) };
                let inputs = Inputs {
                    network: &options.networks[0],
                    routes: &routes,
                    devices,
                    pods: &[],
                    v6,
                    device_v6: true,
                    spared: &BTreeSet::new(),
                };
                let before = all(&wanted);
                let changed = wanted.update(&inputs);
                let mut anew = Wanted::default();
                anew.update(&inputs);
                proptest::prop_assert_eq!(all(&wanted), all(&anew));
                proptest::prop_assert_eq!(wanted.conflicts(), anew.conflicts());
                let others = differing(&before, &all(&wanted));
                proptest::prop_assert!(others.is_subset(&changed));
            }
        }
    }

    #[test]
    fn one_route_changes_its_own_entries_only() {
        let options = testing::options();
        let mut routes: Vec<RouteOptions> = (2..200).map(testing::route).collect();
        let mut wanted = Wanted::default();
        let mut changed = |routes: &[RouteOptions]| {
            let devices = Devices {
                v4: Some(9),
                v6: None,
            };
            let changed = wanted.update(&Inputs {
                network: &options.networks[0],
                routes,
                devices,
                pods: &[],
                v6: true,
                device_v6: true,
                spared: &BTreeSet::new(),
            });
            changed.len()
        };
        assert!(changed(&routes) > 3 * 198);
        assert_eq!(changed(&routes), 0);
        routes.remove(100);
        assert_eq!(changed(&routes), 3);
        routes[50].vtep = "192.0.2.250".parse().unwrap();
        assert_eq!(changed(&routes), 3);
    }
}
