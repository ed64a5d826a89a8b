//! The interface towards the other nodes: held for the data plane, and followed.

use std::time::Instant;

use tracing::{info, warn};
use viaduct_encap::MacAddr;
use viaduct_fib::PortId;

use super::Reconciler;
use super::backoff::Backoff;
use super::followed::Followed;
use crate::data_plane::DataPlane;
use crate::kernel::{InterfaceAddress, LinkInfo};
use crate::next_hop::{Underlay, Unresolved};
use crate::observe::ObservedUnderlay;
use crate::own_addresses::{OwnAddresses, unready_addresses};

impl<D: DataPlane> Reconciler<D> {
    /// Follows what is seen of the underlay interface.
    pub(crate) fn observe_underlay(&mut self, observed: &ObservedUnderlay, now: Instant) {
        if let Some(link) = &observed.link {
            self.underlay_link.follow(link, &self.options.underlay.name);
        }
        let underlay = self.judge_underlay(observed, now);
        self.set_underlay(underlay, now);
    }

    /// Notes that an interface went away, even if one of its name and number has come back since:
    /// the data plane's sockets are gone.
    pub(super) fn underlay_removed(&mut self, index: u32, now: Instant) {
        if !self.underlay_link.lost(index) {
            return;
        }
        self.let_underlay_go();
        self.set_underlay(Err(Unresolved::UnderlayGone), now);
    }

    /// The number of the underlay interface that the data plane has; 0 while it has none.
    pub(crate) fn underlay_index(&self) -> u32 {
        self.underlay_index
    }

    /// The interface that is followed as the underlay.
    pub(crate) fn underlay_link(&self) -> &Followed {
        &self.underlay_link
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
        self.refresh_vteps();
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
        let longest = self.options.longest(self.options.underlay.sockets);
        if let Err(reason) = is_fit(link, longest) {
            // As with pods: the kernel carries what can be carried there.
            self.let_underlay_go();
            return Err(reason);
        }
        self.hold_underlay(link, now)?;
        let mac = can_send(link)?;
        let addresses = self.choose_addresses(observed)?;
        Ok(Underlay {
            index: link.index,
            mac,
            addresses,
            mtu: link.mtu,
        })
    }

    /// Gives the interface to the data plane, unless it has it. One whose queues have changed is
    /// taken anew: meanwhile the kernel carries everything.
    fn hold_underlay(&mut self, link: &LinkInfo, now: Instant) -> Result<(), Unresolved> {
        if self.underlay_index == link.index {
            if self.data_plane.underlay_fits() {
                self.follow_underlay_mac(link);
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
        self.underlay_mac = link.mac;
        self.underlay_backoff = Backoff::default();
        Ok(())
    }

    /// Tells the data plane of another MAC; what it refuses is told again with the next event.
    fn follow_underlay_mac(&mut self, link: &LinkInfo) {
        let Some(mac) = link.mac.filter(|_| link.mac != self.underlay_mac) else {
            return;
        };
        match self.data_plane.set_port_mac(PortId::UNDERLAY, mac) {
            Ok(()) => self.underlay_mac = Some(mac),
            Err(error) => {
                warn!(interface = %link.name, %mac, %error, "the XDP program does not have the underlay's new MAC: the kernel carries what comes from other nodes");
            }
        }
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
            self.nodes_stale = true;
        }
        if let Err(error) = self.data_plane.set_own_addresses(all) {
            warn!(%error, "the workers may not get what comes for this node");
        }
        self.note_nodes();
        if chosen == OwnAddresses::default() {
            return Err(no_address(all, there));
        }
        Ok(chosen)
    }
}

/// Why none of an interface's addresses is this node's, which had, or is to have, `wanted`.
pub(crate) fn no_address(wanted: OwnAddresses, there: &[InterfaceAddress]) -> Unresolved {
    let mut reasons = unready_addresses(there);
    let lost: Vec<String> = wanted.iter().map(|own| own.to_string()).collect();
    if lost.is_empty() {
        let reasons = match reasons.as_slice() {
            [] => String::new(),
            reasons => format!(" ({})", reasons.join("; ")),
        };
        return Unresolved::NoAddress(reasons);
    }
    reasons.insert(0, lost.join(", "));
    Unresolved::AddressesGone(reasons.join("; "))
}

/// Whether an interface can be the underlay: it carries Ethernet frames, and none that is too long.
pub(crate) fn is_fit(link: &LinkInfo, longest: u32) -> Result<(), Unresolved> {
    mac_of(link)?;
    let mtu = link.mtu;
    if mtu > longest {
        return Err(Unresolved::UnderlayTooLong { mtu, most: longest });
    }
    Ok(())
}

fn mac_of(link: &LinkInfo) -> Result<MacAddr, Unresolved> {
    let kind = || link.kind.clone().unwrap_or_else(|| "such".to_owned());
    link.mac
        .ok_or_else(|| Unresolved::UnderlayWithoutMac(kind()))
}

/// Whether the underlay can send at all: its MAC.
pub(crate) fn can_send(link: &LinkInfo) -> Result<MacAddr, Unresolved> {
    if !link.up {
        return Err(Unresolved::UnderlayDown);
    }
    mac_of(link)
}
