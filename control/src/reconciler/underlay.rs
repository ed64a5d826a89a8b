//! The interface towards the other nodes: held for the data plane, and followed.

use std::time::Instant;

use tracing::{info, warn};
use viaduct_fib::Update;

use super::Reconciler;
use super::backoff::Backoff;
use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::kernel::LinkInfo;
use crate::next_hop::{Underlay, Unresolved};
use crate::observe::ObservedUnderlay;
use crate::options::OwnAddresses;

impl<D: DataPlane> Reconciler<D> {
    /// Takes the underlay for the first time. It may be down; all else must be as it is wanted.
    pub(super) fn start_underlay(
        &mut self,
        observed: &ObservedUnderlay,
        now: Instant,
    ) -> Result<(), AgentError> {
        self.underlay = self.judge_underlay(observed, now);
        match &self.underlay {
            Ok(_) | Err(Unresolved::UnderlayDown) => Ok(()),
            Err(reason) => {
                let reason = reason.to_string();
                self.let_underlay_go();
                let name = self.options.underlay.name.clone();
                Err(AgentError::Underlay { name, reason })
            }
        }
    }

    /// Follows what is seen of the underlay interface.
    pub(crate) fn observe_underlay(&mut self, observed: &ObservedUnderlay, now: Instant) {
        let underlay = self.judge_underlay(observed, now);
        self.set_underlay(underlay, now);
    }

    /// Notes that the underlay interface went away, even if one of its name and number has come
    /// back since: the data plane's sockets are gone.
    pub(crate) fn underlay_removed(&mut self, now: Instant) {
        self.let_underlay_go();
        self.set_underlay(Err(Unresolved::UnderlayGone), now);
    }

    /// The number of the underlay interface that the data plane has; 0 while it has none.
    pub(crate) fn underlay_index(&self) -> u32 {
        self.underlay_index
    }

    /// Whether it is time to try again to have the data plane take it.
    pub(crate) fn underlay_due(&self, now: Instant) -> bool {
        self.underlay_backoff.retry_at().is_some_and(|at| at <= now)
    }

    fn set_underlay(&mut self, underlay: Result<Underlay, Unresolved>, now: Instant) {
        if underlay == self.underlay {
            return;
        }
        match &underlay {
            Ok(underlay) => info!(mac = %underlay.mac, mtu = underlay.mtu, "the underlay changed"),
            Err(reason) => warn!(%reason, "the underlay cannot be used"),
        }
        self.underlay = underlay;
        self.status_stale = true;
        for network in 0..self.options.networks.len() {
            self.refresh_network(network);
        }
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.refresh_tunnel(id);
        }
        self.publish_soon(now);
    }

    /// Brings about what can be, and says what the underlay is good for.
    fn judge_underlay(
        &mut self,
        observed: &ObservedUnderlay,
        now: Instant,
    ) -> Result<Underlay, Unresolved> {
        let Some(link) = &observed.link else {
            self.let_underlay_go();
            return Err(Unresolved::UnderlayGone);
        };
        let most = self.options.max_mtu;
        if link.mtu > most {
            // As with pods: the kernel carries what does not fit.
            self.let_underlay_go();
            let mtu = link.mtu;
            return Err(Unresolved::UnderlayTooLong { mtu, most });
        }
        self.underlay_mtu = link.mtu;
        self.hold_underlay(link, now)?;
        if !link.up {
            return Err(Unresolved::UnderlayDown);
        }
        let addresses = self.choose_addresses(observed)?;
        Ok(Underlay {
            index: link.index,
            mac: link.mac.ok_or(Unresolved::UnderlayWithoutMac)?,
            addresses,
            mtu: link.mtu,
        })
    }

    /// Gives the interface to the data plane, unless it has it. One whose queues have changed is
    /// taken anew: meanwhile the kernel carries everything.
    fn hold_underlay(&mut self, link: &LinkInfo, now: Instant) -> Result<(), Unresolved> {
        if self.underlay_index == link.index {
            if self.data_plane.underlay_fits() {
                return Ok(());
            }
            info!(interface = %link.name, "the underlay has another number of queues");
        }
        self.let_underlay_go();
        if !self.underlay_backoff.permits(link.index, now) {
            return match &self.underlay {
                Err(reason) => Err(reason.clone()),
                Ok(_) => Err(Unresolved::UnderlayGone),
            };
        }
        if let Err(error) = self.data_plane.attach_underlay(link) {
            self.underlay_backoff.wait(link.index, now);
            return Err(Unresolved::UnderlayRefused(error.to_string()));
        }
        self.underlay_index = link.index;
        self.underlay_backoff = Backoff::default();
        Ok(())
    }

    pub(super) fn let_underlay_go(&mut self) {
        if self.underlay_index == 0 {
            return;
        }
        self.underlay_index = 0;
        if let Err(error) = self.data_plane.detach_underlay() {
            warn!(%error, "something of the underlay may be left behind");
        }
    }

    /// The addresses that other nodes reach this one by. A family that has lost its own keeps it
    /// for when it comes back.
    fn choose_addresses(
        &mut self,
        observed: &ObservedUnderlay,
    ) -> Result<OwnAddresses, Unresolved> {
        let options = &mut self.options.underlay;
        let there = &observed.addresses;
        let chosen = OwnAddresses::choose(options.fixed, options.addresses, there);
        let all = chosen.or(options.addresses);
        if all != options.addresses {
            info!(from = ?options.addresses, to = ?all, "the node has other addresses");
            options.addresses = all;
        }
        if let Err(error) = self.data_plane.set_own_addresses(all) {
            warn!(%error, "the workers may not get what comes for this node");
        }
        self.note_nodes();
        if chosen == OwnAddresses::default() {
            let lost: Vec<String> = all.iter().map(|own| own.to_string()).collect();
            return Err(Unresolved::AddressesGone(lost.join(", ")));
        }
        Ok(chosen)
    }

    fn refresh_network(&mut self, network: usize) {
        let Some(update) = self.network_update(network) else {
            return;
        };
        if let Update::PutNetwork { id, network } = &update
            && self.publisher.fib().network(*id) == Some(network)
        {
            return;
        }
        self.apply(update);
    }
}
