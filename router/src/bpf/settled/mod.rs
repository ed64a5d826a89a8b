//! The first tier: the settled entries that hooks read.
//!
//! The entries mirror the forwarding table, kind for kind: a change of the table is a change of
//! the entries, and costs as much. What is wrong for a moment is only slower: hooks hand over what
//! they find no entry for. So an entry is removed from here before it is removed from the table, and
//! added after it.

mod keys;

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};
use viaduct_encap::MacAddr;
use viaduct_fib::{NetworkId, NextHop, Port, PortId, TunnelId, Update};

use self::keys::{Generation, Hop, Network, Place, Prefix, Slot, Traffic, Way, ways};
use super::maps::{Celled, Cells, Entries, Mapped, Mirrored, Repair};
use super::{chain, failed};
use crate::error::RouterError;
use crate::sys::now;

/// Kinds of counts of each port, as `enum fate` of `router/bpf/settled.h` has them.
const FATES: u32 = 3;

/// What hooks have carried of a port's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Packets that came from the port.
    pub rx_packets: u64,
    /// Bytes of IP that came from the port.
    pub rx_bytes: u64,
    /// Packets that were sent to it.
    pub tx_packets: u64,
    /// Bytes of IP that were sent to it.
    pub tx_bytes: u64,
    /// Packets from the port that were dropped in front of the workers: it had its share of the trunk's places.
    pub refused: u64,
}

impl Carried {
    /// What has come since `base` was read: counts only grow.
    pub(crate) const fn since(self, base: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_sub(base.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(base.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(base.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(base.tx_bytes),
            refused: self.refused.saturating_sub(base.refused),
        }
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            refused: self.refused + other.refused,
        }
    }
}

/// The settled entries.
pub struct Settled {
    maps: Maps,
    carried: PerCpuArray<MapData, Traffic>,
    /// What processors know of addresses counts for one generation of the entries: this one.
    generation: Array<MapData, Generation>,
    now: u64,
    /// The kernel has refused the last one.
    generation_is_behind: bool,
    vnis: BTreeMap<NetworkId, u32>,
    links: BTreeMap<PortId, u32>,
    /// Ports whose frames go over their veth.
    by_veth: BTreeSet<PortId>,
    ports: BTreeMap<PortId, Port>,
    hops: BTreeMap<TunnelId, Hop>,
}

struct Maps {
    links: Mapped<u32, u32>,
    ports: Celled<keys::Port>,
    vnis: Mapped<u32, Network>,
    locals: Mapped<Place, u32>,
    remotes: Mapped<Prefix, u32>,
    next_hops: Celled<Hop>,
    ways: Mapped<Slot, Way>,
}

impl Maps {
    fn of(ebpf: &mut Ebpf) -> Result<Self, RouterError> {
        Ok(Self {
            links: Mirrored::new("links", Entries::of(ebpf, "links")?),
            ports: Mirrored::new("ports", Cells::of(ebpf, "ports")?),
            vnis: Mirrored::new("vnis", Entries::of(ebpf, "vnis")?),
            locals: Mirrored::new("locals", Entries::of(ebpf, "locals")?),
            remotes: Mirrored::new("remotes", Entries::of(ebpf, "remotes")?),
            next_hops: Mirrored::new("next_hops", Cells::of(ebpf, "next_hops")?),
            ways: Mirrored::new("ways", Entries::of(ebpf, "ways")?),
        })
    }

    fn all(&mut self) -> [&mut dyn Repair; 7] {
        [
            &mut self.links,
            &mut self.ports,
            &mut self.vnis,
            &mut self.locals,
            &mut self.remotes,
            &mut self.next_hops,
            &mut self.ways,
        ]
    }
}

impl Settled {
    /// Of programs that are loaded; nothing is settled.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, RouterError> {
        let doing = "cannot use the BPF maps of hooks";
        let carried = ebpf.take_map("carried");
        let carried = carried.ok_or_else(|| RouterError::new(doing, "it is missing"))?;
        let carried = PerCpuArray::try_from(carried).map_err(|e| failed(doing)(chain(&e)))?;
        let generation = ebpf.take_map("generation");
        let generation = generation.ok_or_else(|| RouterError::new(doing, "it is missing"))?;
        let generation = Array::try_from(generation).map_err(|e| failed(doing)(chain(&e)))?;
        let mut settled = Self {
            maps: Maps::of(ebpf)?,
            generation,
            now: 0,
            generation_is_behind: false,
            carried,
            vnis: BTreeMap::new(),
            links: BTreeMap::new(),
            by_veth: BTreeSet::new(),
            ports: BTreeMap::new(),
            hops: BTreeMap::new(),
        };
        settled.begin_generation()?;
        Ok(settled)
    }

    /// Has no processor go by what it knew of addresses: entries have changed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn begin_generation(&mut self) -> Result<(), RouterError> {
        self.now += 1;
        let generation = Generation {
            number: self.now,
            since: now().0,
        };
        let set = self.generation.set(0, generation, 0);
        self.generation_is_behind = set.is_err();
        set.map_err(|e| failed("cannot have hooks look addresses up again")(chain(&e)))
    }

    /// Says which interface is a port's, before or after the port is put.
    ///
    /// # Errors
    /// When an entry cannot be written; [`repair`](Self::repair) tries again.
    pub fn set_link(&mut self, id: PortId, ifindex: u32) -> Result<(), RouterError> {
        self.links.insert(id, ifindex);
        let port = self.ports.get(&id).copied();
        let put = port.map_or(Ok(()), |port| self.put_port(id, &port));
        let doing = "cannot note a port's interface for hooks";
        put.and(self.maps.links.set(ifindex, id.0.into(), doing))
    }

    /// Says whether frames go to a port over its veth, where XDP of the pod's own sees them, or straight into its other end.
    ///
    /// # Errors
    /// As [`set_link`](Self::set_link).
    pub fn set_by_veth(&mut self, id: PortId, by_veth: bool) -> Result<(), RouterError> {
        let changed = if by_veth {
            self.by_veth.insert(id)
        } else {
            self.by_veth.remove(&id)
        };
        let port = self.ports.get(&id).copied().filter(|_| changed);
        port.map_or(Ok(()), |port| self.put_port(id, &port))
    }

    /// Says which interface is the underlay, and what its MAC is.
    ///
    /// # Errors
    /// As [`set_link`](Self::set_link).
    pub fn set_underlay(&mut self, ifindex: u32, mac: MacAddr) -> Result<(), RouterError> {
        let port = keys::Port {
            ifindex,
            vni: 0,
            network: 0,
            mtu: 0,
            mac: [0; 6],
            gateway_mac: mac.0,
            from: 0,
            to: 0,
            by_veth: 0,
            zero: 0,
        };
        let doing = "cannot note the underlay's interface for hooks";
        self.maps.ports.set(0, port, doing)
    }

    /// Says that a port, or the underlay, has no interface any more: nothing is carried from or to it.
    ///
    /// # Errors
    /// As [`set_link`](Self::set_link).
    pub fn unset_link(&mut self, id: PortId) -> Result<(), RouterError> {
        let doing = "cannot forget a port's interface for hooks";
        if id == PortId::UNDERLAY {
            return self.maps.ports.unset(&0, doing);
        }
        self.by_veth.remove(&id);
        let ifindex = self.links.remove(&id);
        let unlinked = ifindex.map_or(Ok(()), |ifindex| self.maps.links.unset(&ifindex, doing));
        let port = self.ports.get(&id).copied();
        unlinked.and(port.map_or(Ok(()), |port| self.put_port(id, &port)))
    }

    /// Hands over what a change of the forwarding table is about, before the table takes it: packets go
    /// by the table alone until [`apply`](Self::apply) says what has come of it.
    ///
    /// # Errors
    /// As [`set_link`](Self::set_link).
    pub fn withdraw(&mut self, update: &Update) -> Result<(), RouterError> {
        let done = self.remove(update);
        done.and(self.begin_generation())
    }

    fn remove(&mut self, update: &Update) -> Result<(), RouterError> {
        let doing = "cannot withdraw a settled entry";
        let maps = &mut self.maps;
        match update {
            Update::PutNetwork { id, .. } | Update::RemoveNetwork { id } => {
                match self.vnis.get(id) {
                    Some(vni) => maps.vnis.unset(vni, doing),
                    None => Ok(()),
                }
            }
            // Its interface still has to be known to what workers send there.
            Update::PutPort { id, .. } | Update::RemovePort { id } => match self.ports.get(id) {
                Some(port) => {
                    let port = *port;
                    self.write_port(*id, &port, false)
                }
                None => Ok(()),
            },
            Update::PutLocal {
                network, address, ..
            }
            | Update::RemoveLocal { network, address } => {
                maps.locals.unset(&Place::of(*network, *address), doing)
            }
            Update::PutRemote {
                network, prefix, ..
            }
            | Update::RemoveRemote { network, prefix } => {
                maps.remotes.unset(&Prefix::of(*network, *prefix), doing)
            }
            Update::PutNextHop { tunnel, .. } | Update::RemoveNextHop { tunnel } => {
                let had = self.hops.remove(tunnel).map_or(0, |hop| hop.ways());
                let done = maps.next_hops.unset(&tunnel.0, doing);
                done.and(self.remove_ways(*tunnel, 0, had))
            }
        }
    }

    /// Follows a change that the forwarding table has taken.
    ///
    /// # Errors
    /// When an entry cannot be written; [`repair`](Self::repair) tries again.
    pub fn apply(&mut self, update: &Update) -> Result<(), RouterError> {
        let done = self.put(update);
        done.and(self.begin_generation())
    }

    fn put(&mut self, update: &Update) -> Result<(), RouterError> {
        let doing = "cannot change a settled entry";
        let maps = &mut self.maps;
        match update {
            Update::PutNetwork { id, network } => self.put_network(*id, network),
            Update::PutPort { id, port } => self.put_port(*id, port),
            Update::RemovePort { id } => {
                self.ports.remove(id);
                maps.ports.unset(&id.0.into(), doing)
            }
            Update::PutLocal {
                network,
                address,
                port,
            } => {
                let place = Place::of(*network, *address);
                maps.locals.set(place, port.0.into(), doing)
            }
            Update::PutRemote {
                network,
                prefix,
                tunnel,
            } => {
                let prefix = Prefix::of(*network, *prefix);
                maps.remotes.set(prefix, tunnel.0, doing)
            }
            Update::PutNextHop { tunnel, next_hop } => self.put_next_hop(*tunnel, next_hop),
            // They were withdrawn before the table forgot them.
            Update::RemoveNetwork { .. }
            | Update::RemoveLocal { .. }
            | Update::RemoveRemote { .. }
            | Update::RemoveNextHop { .. } => self.remove(update),
        }
    }

    fn put_network(
        &mut self,
        id: NetworkId,
        network: &viaduct_fib::Network,
    ) -> Result<(), RouterError> {
        let doing = "cannot note a network for hooks";
        let vni = network.vni.get();
        if let Some(before) = self.vnis.insert(id, vni).filter(|before| *before != vni) {
            self.maps.vnis.unset(&before, doing)?;
        }
        let value = Network {
            id: id.0,
            udp_port: network.udp_port.to_be_bytes(),
            vtep_mac: network.vtep_macs.v4.0,
            vtep_mac6: network.vtep_macs.v6.0,
        };
        self.maps.vnis.set(vni, value, doing)
    }

    fn put_port(&mut self, id: PortId, port: &Port) -> Result<(), RouterError> {
        self.ports.insert(id, *port);
        self.write_port(id, port, true)
    }

    fn write_port(&mut self, id: PortId, port: &Port, carries: bool) -> Result<(), RouterError> {
        let linked = self.links.contains_key(&id);
        let value = keys::Port {
            // Without an interface nothing comes from it, and nothing can be sent there.
            ifindex: self.links.get(&id).copied().unwrap_or(0),
            vni: self.vnis.get(&port.network).copied().unwrap_or(0),
            network: port.network.0,
            mtu: port.mtu,
            mac: port.mac.0,
            gateway_mac: port.gateway_mac.0,
            // Rates are measured by workers.
            from: u8::from(carries && linked && port.limits.from_pod.is_none()),
            to: u8::from(carries && linked && port.limits.to_pod.is_none()),
            by_veth: u8::from(self.by_veth.contains(&id)),
            zero: 0,
        };
        let doing = "cannot note a port for hooks";
        self.maps.ports.set(id.0.into(), value, doing)
    }

    /// Ways that are new are there before the next hop says so; what it had more of goes afterwards.
    fn put_next_hop(&mut self, id: TunnelId, next_hop: &NextHop) -> Result<(), RouterError> {
        let doing = "cannot settle a next hop";
        let hop = Hop::of(next_hop);
        let had = self.hops.insert(id, hop).map_or(0, |hop| hop.ways());
        let mut done = Ok(());
        for (number, tunnel) in (0..).zip(ways(next_hop)) {
            let slot = Slot::of(id, number);
            done = done.and(self.maps.ways.set(slot, Way::of(tunnel), doing));
        }
        done = done.and(self.maps.next_hops.set(id.0, hop, doing));
        done.and(self.remove_ways(id, hop.ways(), had))
    }

    fn remove_ways(&mut self, id: TunnelId, from: u32, to: u32) -> Result<(), RouterError> {
        let doing = "cannot remove a way from hooks";
        (from..to)
            .map(|number| self.maps.ways.unset(&Slot::of(id, number), doing))
            .fold(Ok(()), Result::and)
    }

    /// Does what could not be done so far in the entries, and repairs what somebody else has changed
    /// there: how many.
    pub fn repair(&mut self) -> usize {
        // What could not be written before may be now.
        let behind = self.generation_is_behind || !self.problems().is_empty();
        let repaired = self.maps.all().into_iter().map(Repair::repair).sum();
        if (behind || repaired > 0) && self.begin_generation().is_err() {
            return repaired + 1;
        }
        repaired
    }

    /// What is wrong with the entries, in sentences.
    pub fn problems(&self) -> Vec<String> {
        let maps = &self.maps;
        let all: [&dyn Repair; 7] = [
            &maps.links,
            &maps.ports,
            &maps.vnis,
            &maps.locals,
            &maps.remotes,
            &maps.next_hops,
            &maps.ways,
        ];
        all.iter().filter_map(|map| map.problem()).collect()
    }

    /// What hooks have carried from and to a port.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn carried(&self, port: PortId) -> Result<Carried, RouterError> {
        let doing = "cannot read what hooks have carried";
        let sum = |fate: u32| {
            let counts = self.carried.get(&(FATES * u32::from(port.0) + fate), 0);
            let counts = counts.map_err(|e| failed(doing)(chain(&e)))?;
            let packets: u64 = counts.iter().map(|traffic| traffic.packets).sum();
            Ok((packets, counts.iter().map(|traffic| traffic.bytes).sum()))
        };
        let ((rx_packets, rx_bytes), (tx_packets, tx_bytes)) = (sum(0)?, sum(1)?);
        let (refused, _) = sum(2)?;
        Ok(Carried {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            refused,
        })
    }

    /// The ports that there are, the underlay among them.
    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> {
        std::iter::once(PortId::UNDERLAY).chain(self.ports.keys().copied())
    }
}
