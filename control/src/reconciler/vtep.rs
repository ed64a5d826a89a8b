//! Another node, as the underlay leads to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use viaduct_fib::TunnelId;

use crate::next_hop::{self, FirstHop, Limits, Unresolved};
use crate::observe::ObservedVtep;
use crate::status::{MtuBy, RouteState};

/// How often the kernel is asked to resolve a neighbour that it has not resolved.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the kernel is asked to check a neighbour that it has resolved. The kernel does not
/// see the workers' packets, so without this it would forget the neighbour.
const REVALIDATE_INTERVAL: Duration = Duration::from_secs(15);
/// How long after a path MTU has expired the kernel is asked what holds now.
const EXPIRED: Duration = Duration::from_millis(50);

/// What is known of another node.
pub(super) struct Vtep {
    observed: ObservedVtep,
    pub(super) hops: Result<Vec<FirstHop>, Unresolved>,
    /// When to ask the kernel to resolve or check its neighbours.
    pub(super) probe_at: Instant,
    /// When to ask the kernel for its route again, because what it has learned expires.
    pub(super) ask_at: Option<Instant>,
    told: Option<Told>,
    /// What a router has just said; the kernel is asked first whether it has learned it.
    heard: Option<Told>,
    /// The neighbours on the underlay that its packets go to first.
    pub(super) neighbours: Vec<IpAddr>,
    /// Its tunnels: one for each network, usually.
    pub(super) tunnels: BTreeSet<TunnelId>,
    /// What the status says of it.
    pub(super) state: Arc<RouteState>,
}

/// What was known of another node.
pub(super) struct Before {
    pub(super) hops: Result<Vec<FirstHop>, Unresolved>,
    pub(super) limits: Limits,
}

/// A path MTU that a router has said, and the kernel may not have learned.
#[derive(Clone, Copy)]
struct Told {
    bytes: u32,
    until: Instant,
}

impl Vtep {
    /// One that has not been looked at.
    pub(super) fn new(now: Instant) -> Self {
        let reason = Unresolved::NoRoute;
        Self {
            observed: ObservedVtep::default(),
            state: Arc::new(RouteState::Unresolved {
                reason: reason.to_string(),
            }),
            hops: Err(reason),
            probe_at: now,
            ask_at: None,
            told: None,
            heard: None,
            neighbours: Vec::new(),
            tunnels: BTreeSet::new(),
        }
    }

    /// Whether a change of this interface, which is not the underlay, may give it another way: its
    /// route names it, or it has none.
    pub(super) fn may_leave_by(&self, interface: u32) -> bool {
        let named = &self.observed.interfaces;
        named.is_empty() || named.contains(&interface)
    }

    /// What limits its packets beside the underlay interface.
    pub(super) fn limits(&self) -> Limits {
        let kernel = self.observed.mtu.map(|mtu| {
            let learned = mtu.expires.is_some();
            let by = if learned { MtuBy::Path } else { MtuBy::Route };
            (mtu.bytes, by)
        });
        Limits {
            kernel,
            told: self.told.map(|told| told.bytes),
        }
    }

    /// Takes over what is seen of it; what was before is returned.
    pub(super) fn observe(
        &mut self,
        underlay: u32,
        vtep: IpAddr,
        observed: &ObservedVtep,
        now: Instant,
    ) -> Before {
        let limits = self.limits();
        let hops = next_hop::first_hops(underlay, vtep, observed);
        self.neighbours = next_hop::neighbours_towards(underlay, vtep, observed).collect();
        self.observed = observed.clone();
        let before = std::mem::replace(&mut self.hops, hops);
        let addresses = |hops: &Result<Vec<FirstHop>, Unresolved>| {
            let hops = hops.as_ref().ok()?;
            Some(hops.iter().map(|hop| hop.address).collect::<Vec<_>>())
        };
        let other_way = addresses(&before)
            .zip(addresses(&self.hops))
            .is_some_and(|(before, now)| before != now);
        let learned = observed.mtu.filter(|mtu| mtu.expires.is_some());
        // What the kernel has learned is its affair, also how long it holds; what was said of
        // another way says nothing of this one.
        self.told = self.heard.take().or(self.told).filter(|told| {
            let known = learned.is_some_and(|mtu| mtu.bytes <= told.bytes);
            told.until > now && !known && !other_way
        });
        let expires = learned.and_then(|mtu| mtu.expires);
        let expires = expires.map(|after| now + after);
        let told = self.told.map(|told| told.until);
        let next = expires.into_iter().chain(told).min();
        self.ask_at = next.map(|at| at + EXPIRED);
        if before != self.hops {
            self.plan_probe(&before, now);
        }
        Before {
            hops: before,
            limits,
        }
    }

    /// What has just been lost, or has just got a route, is worth asking for at once; what failed
    /// has just been asked for.
    fn plan_probe(&mut self, before: &Result<Vec<FirstHop>, Unresolved>, now: Instant) {
        let asked = match before {
            Err(Unresolved::NeighbourPending(asked) | Unresolved::NeighbourFailed(asked)) => {
                Some(asked)
            }
            _ => None,
        };
        self.probe_at = match &self.hops {
            Err(Unresolved::NeighbourPending(missing)) if asked != Some(missing) => now,
            Err(Unresolved::NeighbourPending(_)) => self.probe_at.min(now + RESOLVE_INTERVAL),
            _ => now + self.probe_interval(),
        };
    }

    /// Notes that a router says that packets of so many bytes fit the way. It counts from the next
    /// observation on.
    pub(super) fn tell(&mut self, bytes: u32, until: Instant) {
        self.heard = Some(Told { bytes, until });
    }

    /// How soon to ask for its neighbours again: often while one is missing.
    pub(super) fn probe_interval(&self) -> Duration {
        match &self.hops {
            Ok(hops) if hops.len() == self.neighbours.len() => REVALIDATE_INTERVAL,
            _ => RESOLVE_INTERVAL,
        }
    }
}
