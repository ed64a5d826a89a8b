//! Pods: their ports in the table, their interfaces and pinholes at the data plane.
//!
//! Order of change: a pod is in the table before its packets can reach a worker, and its packets
//! no longer reach one before it leaves the table.

use std::time::Instant;

use tracing::{debug, error, info, warn};
use viaduct_encap::MacAddr;
use viaduct_fib::{NetworkId, PortId, Update};

use super::backoff::Backoff;
use super::port::{DownReason, Port, State};
use super::{Reconciler, network_id};
use crate::data_plane::DataPlane;
use crate::error::AgentError;
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
pub(super) fn plan(options: &AgentOptions) -> Vec<Port> {
    let numbered = (1..).map(PortId).zip(&options.ports);
    let ports = numbered.filter_map(|(id, port)| {
        Some(Port {
            id,
            network: network_id(port.network)?,
            state: State::Down(DownReason::New),
            backoff: Backoff::default(),
        })
    });
    ports.collect()
}

impl<D: DataPlane> Reconciler<D> {
    /// Brings all pods up, or none.
    pub(super) fn add_ports(
        &mut self,
        observed: &[ObservedPort],
        now: Instant,
    ) -> Result<(), AgentError> {
        for (place, observed) in observed.iter().enumerate() {
            if let Err(reason) = self.bring_up(place, observed, now) {
                let error = self.pod_error(place, &reason);
                for place in (0..place).rev() {
                    self.bring_down(place, DownReason::Stopping, now);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Follows what is seen of a pod's interface.
    pub(crate) fn observe_port(&mut self, place: usize, observed: &ObservedPort, now: Instant) {
        let Some(port) = self.ports.get(place) else {
            return;
        };
        let seen = observed.link.as_ref().map(|link| link.index);
        let attached = port.attached();
        if attached.is_some() && attached == seen {
            if let Some(Err(reason)) = observed.link.as_ref().map(|link| self.check_link(link)) {
                self.bring_down(place, reason, now);
                return;
            }
            self.update(place, observed, now);
            return;
        }
        if attached.is_some() {
            self.bring_down(place, DownReason::NoInterface, now);
        }
        self.try_bring_up(place, observed, now);
    }

    /// Notes that an interface went away, even if one of its name and number has come back since:
    /// its sockets are gone.
    pub(crate) fn link_removed(&mut self, index: u32, now: Instant) {
        let attached = |port: &Port| port.attached() == Some(index);
        if let Some(place) = self.ports.iter().position(attached) {
            self.bring_down(place, DownReason::NoInterface, now);
        }
    }

    /// The pods whose interface should be looked at again because a wait is over.
    pub(crate) fn due_ports(&self, now: Instant) -> impl Iterator<Item = usize> {
        let due = move |port: &Port| port.retry_at().is_some_and(|at| at <= now);
        let places = self.ports.iter().enumerate();
        places.filter_map(move |(place, port)| due(port).then_some(place))
    }

    /// The pod whose interface has this number, if it is attached.
    pub(crate) fn port_on(&self, interface: u32) -> Option<usize> {
        let attached = |port: &Port| port.attached() == Some(interface);
        self.ports.iter().position(attached)
    }

    /// Gives all pods back to the kernel.
    pub(super) fn release_ports(&mut self) {
        let up: Vec<usize> = (0..self.ports.len())
            .rev()
            .filter(|&place| {
                self.ports
                    .get(place)
                    .is_some_and(|p| p.attached().is_some())
            })
            .collect();
        for &place in &up {
            self.expel(place, usize::MAX);
        }
        self.data_plane.quiesce();
        for &place in &up {
            self.detach(place);
            self.set_state(place, State::Down(DownReason::Stopping));
        }
    }

    /// Whether workers can carry a pod's packets on such an interface; where not, the kernel has
    /// them.
    fn check_link(&self, link: &LinkInfo) -> Result<(), DownReason> {
        if !link.up {
            return Err(DownReason::LinkDown);
        }
        let most = self.options.max_mtu;
        if link.mtu > most {
            let mtu = link.mtu;
            return Err(DownReason::TooLong { mtu, most });
        }
        Ok(())
    }

    fn try_bring_up(&mut self, place: usize, observed: &ObservedPort, now: Instant) {
        let index = observed.link.as_ref().map_or(0, |link| link.index);
        let Some(port) = self.ports.get(place) else {
            return;
        };
        if observed.link.is_some() && !port.backoff.permits(index, now) {
            return;
        }
        let Err(reason) = self.bring_up(place, observed, now) else {
            return;
        };
        self.log_down(place, &reason);
        let gone = matches!(reason, DownReason::NoInterface);
        self.set_state(place, State::Down(reason));
        if let Some(port) = self.ports.get_mut(place) {
            if gone {
                port.backoff = Backoff::default();
            } else {
                port.backoff.wait(index, now);
            }
        }
    }

    /// Brings a pod up that is down: first in the table, then at the data plane.
    fn bring_up(
        &mut self,
        place: usize,
        observed: &ObservedPort,
        now: Instant,
    ) -> Result<(), DownReason> {
        let link = observed.link.as_ref().ok_or(DownReason::NoInterface)?;
        self.check_link(link)?;
        let gateway_mac = link.mac.ok_or(DownReason::NoGatewayMac)?;
        let mac = observed.mac.ok_or(DownReason::NoMac)?;
        let network = self.ports.get(place).map(|port| port.network);
        let port = in_table(network.ok_or(DownReason::New)?, mac, gateway_mac, link);
        let mut progress = Progress::default();
        if let Err(reason) = self.advance(place, link, port, &mut progress) {
            self.retreat(place, &progress, now);
            return Err(reason);
        }
        info!(pod = self.pod_name(place), interface = %link.name, %mac, "the pod is up");
        let index = link.index;
        self.set_state(place, State::Up { index, port });
        if let Some(port) = self.ports.get_mut(place) {
            // Whoever makes the pod may not be done: its end may get another MAC, without an event.
            port.backoff = Backoff::default();
            port.backoff.wait(index, now);
        }
        Ok(())
    }

    fn bring_down(&mut self, place: usize, reason: DownReason, now: Instant) {
        info!(pod = self.pod_name(place), %reason, "the pod goes down");
        let all = Progress {
            attached: true,
            admitted: usize::MAX,
        };
        self.retreat(place, &all, now);
        self.set_state(place, State::Down(reason));
        if let Some(port) = self.ports.get_mut(place) {
            port.backoff = Backoff::default();
        }
    }

    fn advance(
        &mut self,
        place: usize,
        link: &LinkInfo,
        port: viaduct_fib::Port,
        progress: &mut Progress,
    ) -> Result<(), DownReason> {
        let Some((id, network, options)) = self.pod(place) else {
            return Ok(());
        };
        let vni = network.vni;
        let addresses = options.addresses.clone();
        self.publisher.apply(Update::PutPort { id, port })?;
        for &address in &addresses {
            self.publisher.apply(Update::PutLocal {
                network: port.network,
                address,
                port: id,
            })?;
        }
        self.publish()?;
        self.data_plane.attach_port(id, link)?;
        progress.attached = true;
        for &address in &addresses {
            self.data_plane.admit_pod(vni, address)?;
            progress.admitted += 1;
        }
        Ok(())
    }

    /// Undoes [`advance`](Self::advance), in reverse.
    fn retreat(&mut self, place: usize, progress: &Progress, now: Instant) {
        self.expel(place, progress.admitted);
        if progress.attached {
            self.detach(place);
        }
        self.remove_from_table(place);
        // If a stuck worker prevents it, going on harms nobody: the number is never another pod's.
        self.publish_or_retry(now);
    }

    /// Closes the pinholes of the first `count` addresses.
    fn expel(&mut self, place: usize, count: usize) {
        let Some((_, network, options)) = self.pod(place) else {
            return;
        };
        let vni = network.vni;
        let admitted: Vec<_> = options.addresses.iter().take(count).copied().collect();
        for &address in admitted.iter().rev() {
            if let Err(error) = self.data_plane.expel_pod(vni, address) {
                warn!(pod = self.pod_name(place), %address, %error, "a pinhole may be left open");
            }
        }
    }

    fn detach(&mut self, place: usize) {
        let Some(id) = self.ports.get(place).map(|port| port.id) else {
            return;
        };
        if let Err(error) = self.data_plane.detach_port(id) {
            warn!(pod = self.pod_name(place), %error, "something of the port may be left behind");
        }
    }

    /// Removes what the table has of a pod; it may be only a part.
    fn remove_from_table(&mut self, place: usize) {
        let Some((id, _, options)) = self.pod(place) else {
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
            if let Err(error) = self.publisher.apply(update) {
                error!(pod = self.pod_name(place), %error, "the table contradicts the pod's state");
            }
        }
    }

    /// Brings the table up to date with an interface that is attached.
    fn update(&mut self, place: usize, observed: &ObservedPort, now: Instant) {
        let Some(Port {
            id, state, backoff, ..
        }) = self.ports.get_mut(place)
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
        let seen = in_table(port.network, mac, gateway_mac, link);
        if seen == *port {
            return;
        }
        *port = seen;
        let update = Update::PutPort {
            id: *id,
            port: seen,
        };
        info!(pod = self.pod_name(place), %mac, mtu = seen.mtu, "the pod's interface changed");
        match self.publisher.apply(update) {
            Ok(()) => self.publish_soon(now),
            Err(error) => error!(%error, "the table refuses the change"),
        }
    }

    /// Warns of a reason once, not at each attempt.
    fn log_down(&self, place: usize, reason: &DownReason) {
        let pod = self.pod_name(place);
        let before = self.ports.get(place).map(|port| &port.state);
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

    fn set_state(&mut self, place: usize, state: State) {
        if let Some(port) = self.ports.get_mut(place) {
            port.state = state;
            self.status_stale = true;
        }
    }

    fn pod(&self, place: usize) -> Option<(PortId, &NetworkOptions, &PortOptions)> {
        let id = self.ports.get(place)?.id;
        let options = self.options.ports.get(place)?;
        let network = self.options.networks.get(options.network)?;
        Some((id, network, options))
    }

    fn pod_name(&self, place: usize) -> &str {
        self.options.ports.get(place).map_or("", |port| &port.name)
    }

    fn pod_error(&self, place: usize, reason: &DownReason) -> AgentError {
        let options = self.options.ports.get(place);
        AgentError::Pod {
            pod: self.pod_name(place).into(),
            interface: options.map_or_else(String::new, |port| port.interface.clone()),
            reason: reason.to_string(),
        }
    }
}

fn in_table(
    network: NetworkId,
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
    }
}
