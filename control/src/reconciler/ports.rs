//! Pods: their ports in the table, their interfaces and pinholes at the data plane.
//!
//! Order of change: a pod is in the table before its packets can reach a worker, and its packets
//! no longer reach one before it leaves the table.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{debug, error, info, warn};
use viaduct_encap::MacAddr;
use viaduct_fib::{Limits, MAX_PORTS, NetworkId, PortId, Update};

use super::Reconciler;
use super::backoff::Backoff;
use super::followed::Followed;
use super::port::{DownReason, Port, State, can_carry, can_come_up, is_the_pods};
use crate::data_plane::{DataPlane, PodSide};
use crate::kernel::LinkInfo;
use crate::observe::ObservedPort;
use crate::options::{AgentOptions, NetworkOptions, PortOptions};

/// How far a pod has come at the data plane.
#[derive(Default)]
struct Progress {
    attached: bool,
    /// How many of its addresses have a pinhole, counted from the first.
    admitted: usize,
}

/// Ports for all pods, none of them up. The options have been checked.
pub(super) fn plan(options: &AgentOptions) -> BTreeMap<PortId, Port> {
    let numbered = (1..).map(PortId).zip(&options.ports);
    numbered
        .filter_map(|(id, options)| Some((id, Port::new(options.clone())?)))
        .collect()
}

impl<D: DataPlane> Reconciler<D> {
    /// Follows what is seen of a pod's interface.
    pub(crate) fn observe_port(&mut self, id: PortId, observed: &ObservedPort, now: Instant) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        if let Some(link) = &observed.link {
            if let Err(reason) = is_the_pods(&port.options, link) {
                self.keep_down(id, reason, now);
                return;
            }
            port.options.binding.follow(link);
            self.status_stale |= port.link.follow(link, &port.options.interface);
        }
        let seen = observed.link.as_ref().map(|link| link.index);
        let attached = port.attached();
        if attached.is_some() && attached == seen {
            if let Some(Err(reason)) = observed
                .link
                .as_ref()
                .map(|link| can_carry(link, self.options.longest(port.options.sockets)))
            {
                self.bring_down(id, reason, now);
                return;
            }
            self.update(id, observed, now);
            return;
        }
        if attached.is_some() {
            self.bring_down(id, DownReason::NoInterface, now);
        }
        self.try_bring_up(id, observed, now);
    }

    /// Notes that an interface went away, even if one of its name and number has come back since:
    /// its sockets are gone.
    pub(crate) fn link_removed(&mut self, index: u32, now: Instant) {
        self.underlay_removed(index, now);
        let Some(id) = self.port_on(index) else {
            return;
        };
        if let Some(port) = self.ports.get_mut(&id) {
            port.link.lost(index);
            port.options.binding.lost(index);
            if port.attached() == Some(index) {
                self.bring_down(id, DownReason::NoInterface, now);
            }
        }
    }

    /// The pods whose interface should be looked at again because a wait is over.
    pub(crate) fn due_ports(&self, now: Instant) -> impl Iterator<Item = PortId> {
        let due = move |port: &Port| port.retry_at().is_some_and(|at| at <= now);
        let ports = self.ports.iter();
        ports.filter_map(move |(&id, port)| due(port).then_some(id))
    }

    /// The pod whose interface had this number when it was looked at last.
    pub(crate) fn port_on(&self, interface: u32) -> Option<PortId> {
        let mut ports = self.ports.iter();
        ports.find_map(|(&id, port)| (port.link.index() == interface).then_some(id))
    }

    /// The pod whose interface is to have this name.
    pub(crate) fn port_named(&self, interface: &str) -> Option<PortId> {
        let mut ports = self.ports.iter();
        ports.find_map(|(&id, port)| (port.options.interface == interface).then_some(id))
    }

    /// The MACs of pods that are up, by interface.
    pub(crate) fn pod_macs(&self) -> BTreeMap<String, MacAddr> {
        let up = self.ports.values().filter_map(|port| match port.state {
            State::Up { port: up, .. } => Some((port.interface().to_owned(), up.mac)),
            State::Down(_) => None,
        });
        up.collect()
    }

    /// All pods' ports.
    pub(crate) fn port_ids(&self) -> impl Iterator<Item = PortId> {
        self.ports.keys().copied()
    }

    /// What is wanted of a pod; none if it is not wanted any more.
    pub(crate) fn port_options(&self, id: PortId) -> Option<&PortOptions> {
        self.ports.get(&id).map(|port| &port.options)
    }

    /// The number of the interface that is followed as a pod's; 0: none.
    pub(crate) fn port_followed(&self, id: PortId) -> u32 {
        self.ports.get(&id).map_or(0, |port| port.link.index())
    }

    /// Makes these the pods that are wanted. One that differs in anything goes and comes anew;
    /// who is new is down until its interface has been looked at: its number is returned.
    pub(super) fn want_ports(&mut self, wanted: &[PortOptions], now: Instant) -> Vec<PortId> {
        let unwanted: Vec<PortId> = self
            .ports
            .iter()
            .filter(|(_, port)| !wanted.iter().any(|it| it.is_same_pod(&port.options)))
            .map(|(&id, _)| id)
            .collect();
        for id in unwanted {
            if self
                .ports
                .get(&id)
                .is_some_and(|port| port.attached().is_some())
            {
                self.bring_down(id, DownReason::Unwanted, now);
            }
            self.ports.remove(&id);
            self.data_plane.forget_port(id);
        }
        let mut new = Vec::new();
        for options in wanted {
            let mut ports = self.ports.values_mut();
            match ports.find(|port| port.options.is_same_pod(options)) {
                Some(port) => port.bind(&options.binding),
                None => new.extend(Port::new(options.clone())),
            }
        }
        let mut ids = Vec::with_capacity(new.len());
        for port in new {
            let Some(id) = (1..MAX_PORTS)
                .map(PortId)
                .find(|id| !self.ports.contains_key(id))
            else {
                break;
            };
            self.ports.insert(id, port);
            ids.push(id);
        }
        ids
    }

    /// Gives all pods back to the kernel.
    pub(super) fn release_ports(&mut self) {
        let attached = self.ports.iter().rev();
        let attached = attached.filter(|(_, port)| port.attached().is_some());
        let up: Vec<PortId> = attached.map(|(&id, _)| id).collect();
        for &id in &up {
            self.expel(id, usize::MAX);
        }
        self.data_plane.quiesce();
        for &id in &up {
            self.detach(id);
            self.set_state(id, State::Down(DownReason::Stopping));
        }
    }

    fn try_bring_up(&mut self, id: PortId, observed: &ObservedPort, now: Instant) {
        let index = observed.link.as_ref().map_or(0, |link| link.index);
        let Some(port) = self.ports.get(&id) else {
            return;
        };
        let longest = self.options.longest(port.options.sockets);
        let announced =
            can_come_up(observed, longest).is_err_and(|reason| reason.ends_with_an_event());
        if observed.link.is_some() && !announced && !port.backoff.permits(index, now) {
            return;
        }
        let Err(reason) = self.bring_up(id, observed, now) else {
            return;
        };
        self.log_down(id, &reason);
        self.set_state(id, State::Down(reason));
        if let Some(port) = self.ports.get_mut(&id) {
            if announced {
                port.backoff = Backoff::default();
            } else {
                port.backoff.wait(index, now);
            }
        }
    }

    /// Takes a pod away from an interface that is not its own.
    fn keep_down(&mut self, id: PortId, reason: DownReason, now: Instant) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        port.link = Followed::default();
        port.backoff = Backoff::default();
        if port.attached().is_some() {
            self.bring_down(id, reason, now);
        } else {
            self.log_down(id, &reason);
            self.set_state(id, State::Down(reason));
        }
    }

    /// Brings a pod up that is down: first in the table, then at the data plane.
    fn bring_up(
        &mut self,
        id: PortId,
        observed: &ObservedPort,
        now: Instant,
    ) -> Result<(), DownReason> {
        let wanted = self.ports.get(&id).ok_or(DownReason::New)?;
        let longest = self.options.longest(wanted.options.sockets);
        let (link, gateway_mac, mac) = can_come_up(observed, longest)?;
        let limits = wanted.options.limits;
        let port = in_table(wanted.network, limits, mac, gateway_mac, link);
        let mut progress = Progress::default();
        if let Err(reason) = self.advance(id, link, port, &mut progress) {
            self.retreat(id, &progress, now);
            return Err(reason);
        }
        info!(pod = self.pod_name(id), interface = %link.name, %mac, "the pod is up");
        let index = link.index;
        self.set_state(id, State::Up { index, port });
        if let Some(port) = self.ports.get_mut(&id) {
            // Whoever makes the pod may not be done: its end may get another MAC, without an event.
            port.backoff = Backoff::default();
            port.backoff.wait(index, now);
            port.own_xdp = false;
        }
        self.follow_own_xdp(id, observed.own_xdp);
        Ok(())
    }

    /// Has the data plane deliver where XDP of the pod's own sees it.
    fn follow_own_xdp(&mut self, id: PortId, has: bool) {
        let Some(port) = self.ports.get_mut(&id).filter(|port| port.own_xdp != has) else {
            return;
        };
        port.own_xdp = has;
        let pod = &port.options.name;
        info!(pod, has, "the pod has XDP of its own, or no longer has");
        if let Err(error) = self.data_plane.set_own_xdp(id, has) {
            warn!(%error, "the pod's own XDP program may not see its packets");
        }
    }

    fn bring_down(&mut self, id: PortId, reason: DownReason, now: Instant) {
        info!(pod = self.pod_name(id), %reason, "the pod goes down");
        let all = Progress {
            attached: true,
            admitted: usize::MAX,
        };
        self.retreat(id, &all, now);
        self.set_state(id, State::Down(reason));
        if let Some(port) = self.ports.get_mut(&id) {
            port.backoff = Backoff::default();
        }
    }

    fn advance(
        &mut self,
        id: PortId,
        link: &LinkInfo,
        port: viaduct_fib::Port,
        progress: &mut Progress,
    ) -> Result<(), DownReason> {
        let Some((network, options)) = self.pod(id) else {
            return Ok(());
        };
        let vni = network.vni;
        let carried = options.network == 0;
        let addresses = options.addresses.clone();
        let sockets = options.sockets;
        self.stage(Update::PutPort { id, port })?;
        for &address in &addresses {
            self.stage(Update::PutLocal {
                network: port.network,
                address,
                port: id,
            })?;
        }
        self.publish()?;
        let pod = PodSide {
            vni,
            mac: port.mac,
            addresses: &addresses,
            carried,
            sockets,
        };
        self.data_plane.attach_port(id, pod, link)?;
        progress.attached = true;
        for &address in &addresses {
            self.data_plane.admit_pod(vni, address)?;
            progress.admitted += 1;
        }
        Ok(())
    }

    /// Undoes [`advance`](Self::advance), in reverse.
    fn retreat(&mut self, id: PortId, progress: &Progress, now: Instant) {
        self.expel(id, progress.admitted);
        if progress.attached {
            self.detach(id);
        }
        self.remove_from_table(id);
        // If a stuck worker prevents it, going on harms nobody: the number is never another pod's.
        self.publish_or_retry(now);
    }

    /// Closes the pinholes of the first `count` addresses.
    fn expel(&mut self, id: PortId, count: usize) {
        let Some((network, options)) = self.pod(id) else {
            return;
        };
        let vni = network.vni;
        let admitted: Vec<_> = options.addresses.iter().take(count).copied().collect();
        for &address in admitted.iter().rev() {
            if let Err(error) = self.data_plane.expel_pod(vni, address) {
                warn!(pod = self.pod_name(id), %address, %error, "a pinhole may be left open");
            }
        }
    }

    fn detach(&mut self, id: PortId) {
        if let Err(error) = self.data_plane.detach_port(id) {
            warn!(pod = self.pod_name(id), %error, "something of the port may be left behind");
        }
    }

    /// Removes what the table has of a pod; it may be only a part.
    fn remove_from_table(&mut self, id: PortId) {
        let Some((_, options)) = self.pod(id) else {
            return;
        };
        let fib = self.publisher.fib();
        let Some(network) = fib.port(id).map(|port| port.network) else {
            return;
        };
        let here = options.addresses.iter().copied();
        let mut updates: Vec<_> = here
            .filter(|&address| fib.local(network, address) == Some(id))
            .map(|address| Update::RemoveLocal { network, address })
            .collect();
        updates.push(Update::RemovePort { id });
        for update in updates {
            if let Err(error) = self.stage(update) {
                error!(pod = self.pod_name(id), %error, "the table contradicts the pod's state");
            }
        }
    }

    /// Brings the table up to date with an interface that is attached.
    fn update(&mut self, id: PortId, observed: &ObservedPort, now: Instant) {
        self.follow_own_xdp(id, observed.own_xdp);
        let Some(Port {
            options,
            state,
            backoff,
            ..
        }) = self.ports.get_mut(&id)
        else {
            return;
        };
        let (State::Up { port, .. }, Some(link)) = (state, &observed.link) else {
            return;
        };
        backoff.fade(link.index, now);
        // What cannot be seen for the moment stays as it was.
        let mac = observed.mac.unwrap_or(port.mac);
        let gateway_mac = link.mac.unwrap_or(port.gateway_mac);
        let seen = in_table(port.network, port.limits, mac, gateway_mac, link);
        if seen == *port {
            return;
        }
        let other_mac = mac != port.mac;
        *port = seen;
        let update = Update::PutPort { id, port: seen };
        let pod = options.name.as_str();
        info!(pod, interface = %link.name, %mac, mtu = seen.mtu, "the pod's interface changed");
        match self.stage(update) {
            Ok(()) => self.publish_soon(now),
            Err(error) => error!(%error, "the table refuses the change"),
        }
        if other_mac && let Err(error) = self.data_plane.set_port_mac(id, mac) {
            warn!(%error, "the kernel may not get the pod's packets");
        }
    }

    /// Warns of a reason once, not at each attempt.
    fn log_down(&self, id: PortId, reason: &DownReason) {
        let pod = self.pod_name(id);
        let before = self.ports.get(&id).map(|port| &port.state);
        let known = match before {
            Some(State::Down(before)) => before.to_string() == reason.to_string(),
            _ => false,
        };
        if known {
            debug!(pod, %reason, "the pod is still down");
        } else {
            warn!(pod, %reason, "the pod is down");
        }
    }

    fn set_state(&mut self, id: PortId, state: State) {
        if let Some(port) = self.ports.get_mut(&id) {
            port.state = state;
            self.status_stale = true;
        }
    }

    fn pod(&self, id: PortId) -> Option<(&NetworkOptions, &PortOptions)> {
        let options = self.port_options(id)?;
        let network = self.options.networks.get(options.network)?;
        Some((network, options))
    }

    fn pod_name(&self, id: PortId) -> &str {
        self.port_options(id).map_or("", |port| &port.name)
    }
}

fn in_table(
    network: NetworkId,
    limits: Limits,
    mac: MacAddr,
    gateway_mac: MacAddr,
    link: &LinkInfo,
) -> viaduct_fib::Port {
    viaduct_fib::Port {
        network,
        mac,
        gateway_mac,
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        identity: 0,
        limits,
    }
}
