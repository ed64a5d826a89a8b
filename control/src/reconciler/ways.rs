//! The wanted ways to other nodes, indexed so that a change costs what it changes.
//!
//! A change is planned first and made afterwards. A plan changes nothing: it is the list of
//! updates of the forwarding table, which takes all of them or none, and what is to be known
//! afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::{NetworkId, NextHop, NextHopState, TunnelId, Update};

use super::network_id;
use super::vtep::{Before, Vtep};
use crate::next_hop::TunnelEnds;
use crate::observe::ObservedVtep;
use crate::options::{NetworkOptions, OptionsError, RouteOptions};

/// A tunnel is one for all routes that agree in this: network (its place in the options), VTEP,
/// VTEP MAC, and whether outer checksums over IPv6 are computed.
type Key = (usize, IpAddr, MacAddr, bool);

/// A way to one other node within one network.
pub(super) struct Tunnel {
    pub(super) vtep: IpAddr,
    pub(super) ends: TunnelEnds,
    /// How many routes use it.
    routes: usize,
}

/// A wish for a prefix. Of several the least has it: a route's own prefix goes before a node's own
/// address, which follows from the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    implied: bool,
    key: Key,
}

type Prefix = (NetworkId, IpNet);

/// All ways.
#[derive(Default)]
pub(super) struct Ways {
    tunnels: BTreeMap<TunnelId, Tunnel>,
    ids: BTreeMap<Key, TunnelId>,
    /// The numbers below `next_id` that are free.
    free: BTreeSet<TunnelId>,
    next_id: u32,
    claims: BTreeMap<Prefix, Vec<Claim>>,
    pub(super) vteps: BTreeMap<IpAddr, Vtep>,
    /// The nodes whose packets go to a neighbour on the underlay first.
    behind: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    /// The nodes whose route names another interface than the underlay, or that have none.
    elsewhere: BTreeSet<IpAddr>,
    /// Where tunnels end, and how many routes say so.
    nodes: BTreeMap<IpAddr, usize>,
}

/// A change that has been thought through.
#[derive(Default)]
pub(super) struct Plan {
    /// What changes in the forwarding table.
    pub(super) updates: Vec<Update>,
    /// The prefixes that get another node, or none.
    pub(super) origins: Vec<(NetworkId, IpNet, Option<IpAddr>)>,
    claims: BTreeMap<Prefix, Vec<Claim>>,
    new: BTreeMap<Key, (TunnelId, TunnelEnds)>,
    gone: Vec<(Key, TunnelId)>,
    /// How many routes more, or fewer, use a tunnel.
    users: BTreeMap<Key, isize>,
    nodes: BTreeMap<IpAddr, isize>,
}

impl Plan {
    /// The tunnels that are new.
    pub(super) fn new_tunnels(&self) -> Vec<TunnelId> {
        self.new.values().map(|&(id, _)| id).collect()
    }
}

/// What a change has brought.
#[derive(Default)]
pub(super) struct Changed {
    /// The nodes that were not known before.
    pub(super) new: Vec<IpAddr>,
    /// Whether there are others of the addresses where tunnels end.
    pub(super) nodes: bool,
}

fn key(route: &RouteOptions) -> Key {
    (
        route.network,
        route.vtep,
        route.vtep_mac,
        route.udp_checksum6,
    )
}

/// What a route claims. In the default network a node also sends from its own addresses: answers
/// of the host itself, and of services that it translated. The source check is to know them.
fn claims(route: &RouteOptions) -> impl Iterator<Item = (Prefix, Claim)> {
    let key = key(route);
    let network = network_id(route.network);
    let of = move |implied| move |prefix| Some(((network?, prefix), Claim { implied, key }));
    let own = route.addresses.iter().copied().chain([route.vtep]);
    let own = own.filter(move |_| network == Some(NetworkId(0)));
    let named = route.prefixes.iter().copied().filter_map(of(false));
    named.chain(own.map(IpNet::from).filter_map(of(true)))
}

impl Ways {
    /// The tunnel that a route's packets take.
    pub(super) fn tunnel_of(&self, route: &RouteOptions) -> Option<TunnelId> {
        self.ids.get(&key(route)).copied()
    }

    pub(super) fn tunnel(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(&id)
    }

    /// Takes over what is seen of a node; what was before is returned.
    pub(super) fn observe(
        &mut self,
        underlay: u32,
        vtep: IpAddr,
        observed: &ObservedVtep,
        now: Instant,
    ) -> Option<Before> {
        let state = self.vteps.get_mut(&vtep)?;
        let neighbours = state.neighbours.clone();
        let before = state.observe(underlay, vtep, observed, now);
        if observed.interfaces == [underlay] {
            self.elsewhere.remove(&vtep);
        } else {
            self.elsewhere.insert(vtep);
        }
        if neighbours != state.neighbours {
            let now = state.neighbours.clone();
            self.leave(vtep, &neighbours);
            for neighbour in now {
                self.behind.entry(neighbour).or_default().insert(vtep);
            }
        }
        Some(before)
    }

    fn leave(&mut self, vtep: IpAddr, neighbours: &[IpAddr]) {
        for neighbour in neighbours {
            if let Some(behind) = self.behind.get_mut(neighbour) {
                behind.remove(&vtep);
                if behind.is_empty() {
                    self.behind.remove(neighbour);
                }
            }
        }
    }

    /// The nodes whose first hop is, on some way, this neighbour on the underlay.
    pub(super) fn behind(&self, neighbour: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.behind.get(&neighbour).into_iter().flatten().copied()
    }

    /// The nodes that may get another way when this interface changes, which is not the underlay.
    pub(super) fn may_leave_by(&self, interface: u32) -> impl Iterator<Item = IpAddr> {
        let elsewhere = self.elsewhere.iter().copied();
        elsewhere.filter(move |vtep| {
            let state = self.vteps.get(vtep);
            state.is_some_and(|state| state.may_leave_by(interface))
        })
    }

    /// The nodes whose packets a route to this prefix may carry.
    pub(super) fn inside(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
        let addresses = prefix.network()..=prefix.broadcast();
        self.vteps.range(addresses).map(|(&vtep, _)| vtep)
    }

    /// Whether one of a node's tunnels sends to this UDP port, in this network if that is known.
    pub(super) fn sends(&self, vtep: IpAddr, port: u16, vni: Option<Vni>) -> bool {
        let state = self.vteps.get(&vtep);
        let tunnels = state.into_iter().flat_map(|state| &state.tunnels);
        let mut ends = tunnels.filter_map(|id| Some(&self.tunnels.get(id)?.ends));
        ends.any(|ends| ends.udp_port == port && vni.is_none_or(|vni| vni == ends.vni))
    }

    /// Where tunnels end, elsewhere.
    pub(super) fn nodes(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.keys().copied()
    }

    /// What has to be done so that some routes go and others come, each of which is sound by
    /// itself.
    ///
    /// # Errors
    ///
    /// [`OptionsError::PrefixTwice`] if two routes would have one prefix.
    pub(super) fn plan(
        &self,
        networks: &[NetworkOptions],
        removed: &[&RouteOptions],
        added: &[&RouteOptions],
    ) -> Result<Plan, OptionsError> {
        let mut plan = Plan::default();
        for (routes, sign) in [(removed, -1), (added, 1)] {
            for route in routes {
                *plan.users.entry(key(route)).or_default() += sign;
                for node in route.addresses.iter().copied().chain([route.vtep]) {
                    *plan.nodes.entry(node).or_default() += sign;
                }
                for (prefix, claim) in claims(route) {
                    self.claim(&mut plan, prefix, claim, sign > 0);
                }
            }
        }
        for (&(_, prefix), claims) in &plan.claims {
            if let [first, second, ..] = claims[..]
                && !first.implied
                && !second.implied
            {
                let (_, vtep, ..) = second.key;
                return Err(OptionsError::PrefixTwice { prefix, vtep });
            }
        }
        self.plan_tunnels(&mut plan, networks);
        self.plan_prefixes(&mut plan);
        let gone = plan.gone.iter();
        let gone = gone.map(|&(_, tunnel)| Update::RemoveNextHop { tunnel });
        plan.updates.extend(gone);
        Ok(plan)
    }

    /// Notes in the plan that a claim comes or goes.
    fn claim(&self, plan: &mut Plan, prefix: Prefix, claim: Claim, comes: bool) {
        let now = || self.claims.get(&prefix).cloned().unwrap_or_default();
        let claims = plan.claims.entry(prefix).or_insert_with(now);
        match claims.binary_search(&claim) {
            Ok(at) | Err(at) if comes => claims.insert(at, claim),
            Ok(at) => drop(claims.remove(at)),
            Err(_) => {}
        }
    }

    fn plan_tunnels(&self, plan: &mut Plan, networks: &[NetworkOptions]) {
        let mut ids = self.free.iter().copied();
        let mut beyond = (self.next_id..).map(TunnelId);
        for (&key, &change) in &plan.users {
            let known = self.ids.get(&key);
            let tunnel = known.and_then(|id| self.tunnels.get(id));
            let before = tunnel.map_or(0, |tunnel| tunnel.routes);
            match (known, before.saturating_add_signed(change)) {
                (Some(&id), 0) => plan.gone.push((key, id)),
                (None, 1..) => {
                    // Beyond the table's limit any number does: the table refuses it.
                    let id = ids.next().or_else(|| beyond.next());
                    let ends = networks.get(key.0).map(|network| ends(network, key));
                    plan.new.extend(id.zip(ends).map(|new| (key, new)));
                }
                _ => {}
            }
        }
        for (&(_, vtep, ..), &(tunnel, _)) in &plan.new {
            let next_hop = NextHop {
                vtep,
                state: NextHopState::Unresolved,
            };
            plan.updates.push(Update::PutNextHop { tunnel, next_hop });
        }
    }

    fn plan_prefixes(&self, plan: &mut Plan) {
        for (&(network, prefix), claims) in &plan.claims {
            let before = self.claims.get(&(network, prefix));
            let before = before.and_then(|all| all.first()).map(|claim| claim.key);
            let after = claims.first().map(|claim| claim.key);
            if before == after {
                continue;
            }
            let id = |key: Key| {
                let new = plan.new.get(&key).map(|&(id, _)| id);
                new.or_else(|| self.ids.get(&key).copied())
            };
            plan.updates.push(match after.and_then(id) {
                Some(tunnel) => Update::PutRemote {
                    network,
                    prefix,
                    tunnel,
                },
                None => Update::RemoveRemote { network, prefix },
            });
            let vtep = after.map(|(_, vtep, ..)| vtep);
            plan.origins.push((network, prefix, vtep));
        }
    }

    /// Makes the planned change, which the table has taken. Nodes that are new have to be looked
    /// at.
    pub(super) fn commit(&mut self, plan: Plan, now: Instant) -> Changed {
        let mut changed = Changed::default();
        for (key, id) in plan.gone {
            self.ids.remove(&key);
            self.tunnels.remove(&id);
            self.free.insert(id);
            let (_, vtep, ..) = key;
            if let Some(state) = self.vteps.get_mut(&vtep) {
                state.tunnels.remove(&id);
            }
        }
        for (&(_, vtep, ..), &(id, _)) in &plan.new {
            let state = self.vteps.entry(vtep).or_insert_with(|| {
                changed.new.push(vtep);
                self.elsewhere.insert(vtep);
                Vtep::new(now)
            });
            state.tunnels.insert(id);
        }
        for (key, (id, ends)) in plan.new {
            if !self.free.remove(&id) {
                self.next_id = self.next_id.max(id.0.saturating_add(1));
            }
            self.ids.insert(key, id);
            let (_, vtep, ..) = key;
            let tunnel = Tunnel {
                vtep,
                ends,
                routes: 0,
            };
            self.tunnels.insert(id, tunnel);
        }
        for (key, change) in plan.users {
            let tunnel = self.ids.get(&key).and_then(|id| self.tunnels.get_mut(id));
            if let Some(tunnel) = tunnel {
                tunnel.routes = tunnel.routes.saturating_add_signed(change);
            }
            let (_, vtep, ..) = key;
            let unused = |state: &Vtep| state.tunnels.is_empty();
            if self.vteps.get(&vtep).is_some_and(unused)
                && let Some(state) = self.vteps.remove(&vtep)
            {
                self.elsewhere.remove(&vtep);
                self.leave(vtep, &state.neighbours);
            }
        }
        for (prefix, claims) in plan.claims {
            if claims.is_empty() {
                self.claims.remove(&prefix);
            } else {
                self.claims.insert(prefix, claims);
            }
        }
        changed.nodes = self.count_nodes(plan.nodes);
        changed
    }

    /// True if there are other nodes than before.
    fn count_nodes(&mut self, changes: BTreeMap<IpAddr, isize>) -> bool {
        let mut others = false;
        for (node, change) in changes {
            let count = self.nodes.entry(node).or_default();
            let before = *count;
            *count = before.saturating_add_signed(change);
            others |= (before == 0) != (*count == 0);
            if *count == 0 {
                self.nodes.remove(&node);
            }
        }
        others
    }
}

fn ends(network: &NetworkOptions, key: Key) -> TunnelEnds {
    let (_, vtep, remote_mac, udp_checksum6) = key;
    TunnelEnds {
        vni: network.vni,
        udp_port: network.udp_port,
        udp_checksum6,
        dscp: network.dscp,
        local_mac: network.vtep_macs.over(vtep),
        remote_mac,
    }
}
