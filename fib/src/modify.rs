//! Checking and applying updates.
//!
//! An update is checked once, against a table that has all updates before it, and then applied
//! to each copy. Applying is a function of the table and the update alone, so copies that began
//! equal stay equal.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fib::{NetworkEntry, NextHopEntry, PortEntry};
use crate::{
    Fib, MAX_NETWORKS, MAX_PORTS, MAX_TUNNELS, Network, NetworkId, NextHop, Port, PortId, TunnelId,
    Update, UpdateError,
};

impl Fib {
    /// Whether this update may be applied to this table.
    pub(crate) fn check(&self, update: &Update) -> Result<(), UpdateError> {
        match *update {
            Update::PutNetwork { id, ref network } => self.check_put_network(id, network),
            Update::RemoveNetwork { id } => self.check_remove_network(id),
            Update::PutPort { id, ref port } => self.check_put_port(id, port),
            Update::RemovePort { id } => match self.require_port(id)?.locals {
                0 => Ok(()),
                locals => Err(UpdateError::PortInUse { port: id, locals }),
            },
            Update::PutLocal {
                network,
                address,
                port,
            } => self.check_put_local(network, address, port),
            Update::RemoveLocal { network, address } => {
                self.require_network(network)?;
                match self.local(network, address) {
                    Some(_) => Ok(()),
                    None => Err(UpdateError::UnknownLocal { network, address }),
                }
            }
            Update::PutRemote {
                network,
                prefix,
                tunnel,
            } => {
                self.require_network(network)?;
                self.require_next_hop(tunnel)?;
                check_prefix(prefix)
            }
            Update::RemoveRemote { network, prefix } => {
                check_prefix(prefix)?;
                match self.require_network(network)?.remote_exact(prefix) {
                    Some(_) => Ok(()),
                    None => Err(UpdateError::UnknownRemote { network, prefix }),
                }
            }
            Update::PutNextHop { tunnel, .. } if tunnel.0 >= MAX_TUNNELS => {
                Err(UpdateError::TunnelOutOfRange(tunnel))
            }
            Update::PutNextHop { .. } => Ok(()),
            Update::RemoveNextHop { tunnel } => match self.require_next_hop(tunnel)?.prefixes {
                0 => Ok(()),
                prefixes => Err(UpdateError::NextHopInUse { tunnel, prefixes }),
            },
        }
    }

    /// Applies an update that was checked against an equal table.
    pub(crate) fn apply(&mut self, update: &Update) {
        match *update {
            Update::PutNetwork { id, network } => self.put_network(id, network),
            Update::RemoveNetwork { id } => self.remove_network(id),
            Update::PutPort { id, port } => self.put_port(id, port),
            Update::RemovePort { id } => self.remove_port(id),
            Update::PutLocal {
                network,
                address,
                port,
            } => self.put_local(network, address, port),
            Update::RemoveLocal { network, address } => self.remove_local(network, address),
            Update::PutRemote {
                network,
                prefix,
                tunnel,
            } => self.put_remote(network, prefix, tunnel),
            Update::RemoveRemote { network, prefix } => self.remove_remote(network, prefix),
            Update::PutNextHop {
                tunnel,
                ref next_hop,
            } => self.put_next_hop(tunnel, next_hop.clone()),
            Update::RemoveNextHop { tunnel } => {
                if let Some(slot) = slot(&mut self.next_hops, tunnel.0) {
                    *slot = None;
                }
            }
        }
    }

    /// The update that undoes this one, which has been checked and not been applied yet.
    pub(crate) fn inverse(&self, update: &Update) -> Update {
        match *update {
            Update::PutNetwork { id, .. } | Update::RemoveNetwork { id } => {
                let put = |&network: &Network| Update::PutNetwork { id, network };
                let old = self.network(id);
                old.map_or(Update::RemoveNetwork { id }, put)
            }
            Update::PutPort { id, .. } | Update::RemovePort { id } => {
                let put = |&port: &Port| Update::PutPort { id, port };
                self.port(id).map_or(Update::RemovePort { id }, put)
            }
            Update::PutLocal {
                network, address, ..
            }
            | Update::RemoveLocal { network, address } => {
                let put = |port| Update::PutLocal {
                    network,
                    address,
                    port,
                };
                let old = self.local(network, address);
                old.map_or(Update::RemoveLocal { network, address }, put)
            }
            Update::PutRemote {
                network, prefix, ..
            }
            | Update::RemoveRemote { network, prefix } => {
                let put = |tunnel| Update::PutRemote {
                    network,
                    prefix,
                    tunnel,
                };
                let entry = self.network_entry(network);
                let old = entry.and_then(|entry| entry.remote_exact(prefix));
                old.map_or(Update::RemoveRemote { network, prefix }, put)
            }
            Update::PutNextHop { tunnel, .. } | Update::RemoveNextHop { tunnel } => {
                let put = |next_hop: &NextHop| Update::PutNextHop {
                    tunnel,
                    next_hop: next_hop.clone(),
                };
                let old = self.next_hop(tunnel);
                old.map_or(Update::RemoveNextHop { tunnel }, put)
            }
        }
    }

    fn check_put_network(&self, id: NetworkId, network: &Network) -> Result<(), UpdateError> {
        if id.0 >= MAX_NETWORKS {
            return Err(UpdateError::NetworkOutOfRange(id));
        }
        match self.network_by_vni(network.vni) {
            Some(by) if by != id => Err(UpdateError::VniTaken {
                vni: network.vni,
                wanted: id,
                by,
            }),
            _ => Ok(()),
        }
    }

    fn check_remove_network(&self, id: NetworkId) -> Result<(), UpdateError> {
        let entry = self.require_network(id)?;
        // An address is always a port's, so there are none where there are no ports.
        match (entry.ports, entry.remotes()) {
            (0, 0) => Ok(()),
            (ports, remotes) => Err(UpdateError::NetworkInUse {
                network: id,
                ports,
                remotes,
            }),
        }
    }

    fn check_put_port(&self, id: PortId, port: &Port) -> Result<(), UpdateError> {
        if id == PortId::UNDERLAY {
            return Err(UpdateError::UnderlayPort);
        }
        if id.0 >= MAX_PORTS {
            return Err(UpdateError::PortOutOfRange(id));
        }
        self.require_network(port.network)?;
        match self.port_entry(id) {
            Some(old) if old.locals > 0 && old.port.network != port.network => {
                Err(UpdateError::PortInUse {
                    port: id,
                    locals: old.locals,
                })
            }
            _ => Ok(()),
        }
    }

    fn check_put_local(
        &self,
        network: NetworkId,
        address: IpAddr,
        port: PortId,
    ) -> Result<(), UpdateError> {
        self.require_network(network)?;
        let port_network = self.require_port(port)?.port.network;
        if port_network != network {
            return Err(UpdateError::OtherNetwork {
                network,
                address,
                port,
                port_network,
            });
        }
        match self.local(network, address) {
            Some(by) if by != port => Err(UpdateError::AddressTaken {
                network,
                address,
                wanted: port,
                by,
            }),
            _ => Ok(()),
        }
    }

    fn require_network(&self, id: NetworkId) -> Result<&NetworkEntry, UpdateError> {
        self.network_entry(id)
            .ok_or(UpdateError::UnknownNetwork(id))
    }

    fn require_port(&self, id: PortId) -> Result<&PortEntry, UpdateError> {
        self.port_entry(id).ok_or(UpdateError::UnknownPort(id))
    }

    fn require_next_hop(&self, id: TunnelId) -> Result<&NextHopEntry, UpdateError> {
        self.next_hop_entry(id)
            .ok_or(UpdateError::UnknownTunnel(id))
    }

    fn put_network(&mut self, id: NetworkId, network: Network) {
        self.forget_vni(id);
        match self.vni_position(network.vni) {
            Ok(_) => return,
            Err(at) => self.vnis.insert(at, (network.vni.get(), id)),
        }
        match grown_slot(&mut self.networks, id.0) {
            Some(Some(entry)) => entry.network = network,
            Some(slot) => *slot = Some(NetworkEntry::new(network)),
            None => {}
        }
    }

    fn remove_network(&mut self, id: NetworkId) {
        self.forget_vni(id);
        if let Some(slot) = slot(&mut self.networks, id.0) {
            *slot = None;
        }
    }

    fn forget_vni(&mut self, id: NetworkId) {
        let Some(entry) = self.network_entry(id) else {
            return;
        };
        if let Ok(at) = self.vni_position(entry.network.vni) {
            self.vnis.remove(at);
        }
    }

    fn put_port(&mut self, id: PortId, port: Port) {
        self.release_network(id);
        if let Some(entry) = entry(&mut self.networks, port.network.0) {
            entry.ports += 1;
        }
        match grown_slot(&mut self.ports, id.0) {
            Some(Some(entry)) => entry.port = port,
            Some(slot) => *slot = Some(PortEntry { port, locals: 0 }),
            None => {}
        }
    }

    fn remove_port(&mut self, id: PortId) {
        self.release_network(id);
        if let Some(slot) = slot(&mut self.ports, id.0) {
            *slot = None;
        }
    }

    /// Ends the use that a port makes of its network.
    fn release_network(&mut self, id: PortId) {
        let Some(network) = self.port(id).map(|port| port.network) else {
            return;
        };
        if let Some(entry) = entry(&mut self.networks, network.0) {
            entry.ports = entry.ports.saturating_sub(1);
        }
    }

    fn put_local(&mut self, network: NetworkId, address: IpAddr, port: PortId) {
        let Some(networks) = entry(&mut self.networks, network.0) else {
            return;
        };
        let old = match address {
            IpAddr::V4(address) => networks.local_v4.insert(address.into(), port),
            IpAddr::V6(address) => networks.local_v6.insert(address.into(), port),
        };
        self.release_port(old);
        if let Some(entry) = entry(&mut self.ports, port.0) {
            entry.locals += 1;
        }
    }

    fn remove_local(&mut self, network: NetworkId, address: IpAddr) {
        let Some(networks) = entry(&mut self.networks, network.0) else {
            return;
        };
        let old = match address {
            IpAddr::V4(address) => networks.local_v4.remove(&address.into()),
            IpAddr::V6(address) => networks.local_v6.remove(&address.into()),
        };
        self.release_port(old);
    }

    /// Ends the use that an address made of its port.
    fn release_port(&mut self, id: Option<PortId>) {
        if let Some(entry) = id.and_then(|id| entry(&mut self.ports, id.0)) {
            entry.locals = entry.locals.saturating_sub(1);
        }
    }

    fn put_remote(&mut self, network: NetworkId, prefix: IpNet, tunnel: TunnelId) {
        let Some(networks) = entry(&mut self.networks, network.0) else {
            return;
        };
        let length = prefix.prefix_len();
        let old = match prefix.addr() {
            IpAddr::V4(address) => networks.remote_v4.insert(address.into(), length, tunnel),
            IpAddr::V6(address) => networks.remote_v6.insert(address.into(), length, tunnel),
        };
        self.release_next_hop(old);
        if let Some(entry) = entry(&mut self.next_hops, tunnel.0) {
            entry.prefixes += 1;
        }
    }

    fn remove_remote(&mut self, network: NetworkId, prefix: IpNet) {
        let Some(networks) = entry(&mut self.networks, network.0) else {
            return;
        };
        let length = prefix.prefix_len();
        let old = match prefix.addr() {
            IpAddr::V4(address) => networks.remote_v4.remove(address.into(), length),
            IpAddr::V6(address) => networks.remote_v6.remove(address.into(), length),
        };
        self.release_next_hop(old);
    }

    /// Ends the use that a prefix made of its next hop.
    fn release_next_hop(&mut self, id: Option<TunnelId>) {
        if let Some(entry) = id.and_then(|id| entry(&mut self.next_hops, id.0)) {
            entry.prefixes = entry.prefixes.saturating_sub(1);
        }
    }

    fn put_next_hop(&mut self, tunnel: TunnelId, next_hop: NextHop) {
        match grown_slot(&mut self.next_hops, tunnel.0) {
            Some(Some(entry)) => entry.next_hop = next_hop,
            Some(slot) => {
                *slot = Some(NextHopEntry {
                    next_hop,
                    prefixes: 0,
                });
            }
            None => {}
        }
    }
}

impl NetworkEntry {
    fn remote_exact(&self, prefix: IpNet) -> Option<TunnelId> {
        let length = prefix.prefix_len();
        match prefix.addr() {
            IpAddr::V4(address) => self.remote_v4.get(address.into(), length),
            IpAddr::V6(address) => self.remote_v6.get(address.into(), length),
        }
    }
}

fn check_prefix(prefix: IpNet) -> Result<(), UpdateError> {
    let canonical = prefix.trunc();
    if prefix == canonical {
        Ok(())
    } else {
        Err(UpdateError::HostBits { prefix, canonical })
    }
}

/// The place of number `id`, if the table reaches that far.
fn slot<T>(table: &mut [Option<T>], id: impl TryInto<usize>) -> Option<&mut Option<T>> {
    table.get_mut(id.try_into().ok()?)
}

/// The entry that has number `id`.
fn entry<T>(table: &mut [Option<T>], id: impl TryInto<usize>) -> Option<&mut T> {
    slot(table, id)?.as_mut()
}

/// The place of number `id`, in a table made long enough.
fn grown_slot<T>(table: &mut Vec<Option<T>>, id: impl TryInto<usize>) -> Option<&mut Option<T>> {
    let id = id.try_into().ok()?;
    if table.len() <= id {
        table.resize_with(id.checked_add(1)?, || None);
    }
    table.get_mut(id)
}
