//! A worker's frames and queues: who has which frame, and how packets leave.

mod links;
mod pool;
mod receive;
mod send;

use std::sync::Arc;

use viaduct_fib::{Fib, PortId, Rate};

use self::pool::{FREE, Pool};
use super::Shared;
use super::handoff::Handoff;
use crate::counters::PortCounters;
use crate::limit::{Direction, Limiter};
use crate::tick::Tick;
use crate::xsk::{Area, Depth, FrameId, Loans, Packet, Xsk};

/// A worker's queues of one device: none, when the device has fewer than there are workers.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) port: PortId,
    pub(crate) queues: Vec<Xsk>,
    /// Their frames for receiving.
    pub(crate) depths: Vec<Depth>,
    /// How many of them, from the first, can send.
    pub(crate) senders: usize,
    /// The worker that sends for this one, if none of them can.
    pub(crate) via: usize,
    /// It has no queues: its packets come and go over the worker's trunk.
    pub(crate) over_trunk: bool,
}

impl Link {
    /// Of a device whose hook is in tc.
    pub(crate) const fn over_trunk(port: PortId) -> Self {
        Self {
            port,
            queues: Vec::new(),
            depths: Vec::new(),
            senders: 0,
            via: 0,
            over_trunk: true,
        }
    }
}

/// What was taken of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) any: bool,
    /// No packet was left.
    pub(super) all: bool,
    /// The pod may send at a rate only.
    pub(super) limited: bool,
}

/// A received packet, and where it came from.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) packet: Packet,
    pub(super) ingress: PortId,
    /// The queue's place among the worker's queues of that port.
    pub(super) queue: usize,
}

/// Frames, links and counters of one worker.
pub(super) struct Io {
    pub(super) shared: Arc<Shared>,
    area: Area,
    pool: Pool,
    links: Vec<Box<Link>>,
    /// By port: the link's place in `links`, for ports that have one.
    places: Vec<Option<usize>>,
    /// The trunk's number, beyond those of ports.
    trunk: PortId,
    /// Up to where the trunk's packets are of rounds that have begun, modulo 2^32.
    round_end: u32,
    loans: Loans,
    handoff: Handoff,
    /// The set of workers that send for this one.
    helpers: u64,
    limiter: Limiter,
    /// By port: how much a pod may receive, as the table had it at the turn's beginning.
    rates: Vec<Option<Rate>>,
    /// When the turn began.
    now: Tick,
    /// Whether all sockets wake who sleeps.
    watching: bool,
    /// Queues that had no packets to send before this batch: each costs a system call.
    destinations: usize,
}

impl Io {
    pub(super) fn new(
        shared: Arc<Shared>,
        area: Area,
        free: Vec<FrameId>,
        ports: usize,
        trunk: PortId,
        handoff: Handoff,
        limiter: Limiter,
    ) -> Self {
        let owners = vec![FREE; free.len()];
        Self {
            shared,
            area,
            pool: Pool { free, owners },
            links: Vec::with_capacity(ports),
            places: vec![None; ports],
            trunk,
            round_end: 0,
            loans: Loans::new(),
            handoff,
            helpers: 0,
            limiter,
            rates: vec![None; ports],
            now: Tick(0),
            watching: false,
            destinations: 0,
        }
    }

    /// A turn begins: the time, and what pods may receive.
    pub(super) fn begin(&mut self, now: Tick) {
        self.now = now;
    }

    /// Takes over from a table what the pods of its links may receive.
    pub(super) fn set_rates(&mut self, table: &Fib) {
        for link in &self.links {
            if let Some(rate) = self.rates.get_mut(usize::from(link.port.0)) {
                *rate = table.port(link.port).and_then(|port| port.limits.to_pod);
            }
        }
    }

    /// While a port goes, everything that waits may go, whatever the rates: also in forwarding, which has the same
    /// limiter.
    pub(super) fn lift_limits(&self, lifted: bool) {
        self.limiter.lift(lifted);
    }

    /// When the turn began.
    pub(super) fn now(&self) -> Tick {
        self.now
    }

    /// How many packets have ever been received, modulo 2^32, by the queues that there are.
    pub(super) fn taken(&self) -> u32 {
        let queues = self.links.iter().flat_map(|link| &link.queues);
        queues.fold(0, |sum, xsk| sum.wrapping_add(xsk.taken()))
    }

    /// The port of a link, by its place.
    pub(super) fn port(&self, link: usize) -> Option<PortId> {
        self.links.get(link).map(|l| l.port)
    }

    /// Whether a pod has used up what it may send for now.
    #[inline]
    pub(super) fn spent(&self, port: PortId, rate: &Rate) -> bool {
        !self.limiter.ready(port, Direction::FromPod, rate, self.now)
    }

    pub(super) fn links(&self) -> usize {
        self.links.len()
    }

    /// Whether a link is the worker's trunk.
    pub(super) fn is_trunk(&self, link: usize) -> bool {
        self.port(link) == Some(self.trunk)
    }

    /// The link that a port's packets come and go by, by its place.
    #[inline]
    pub(super) fn way(&self, port: PortId) -> Option<usize> {
        let place = self.place(port)?;
        if self.links.get(place).is_some_and(|link| link.over_trunk) {
            return self.place(self.trunk);
        }
        Some(place)
    }

    /// A port's link, by its place.
    pub(super) fn place(&self, port: PortId) -> Option<usize> {
        self.places.get(usize::from(port.0)).copied().flatten()
    }

    pub(super) fn queues(&self, link: usize) -> usize {
        self.links.get(link).map_or(0, |l| l.queues.len())
    }

    pub(super) fn counters(&self, port: PortId) -> Option<&PortCounters> {
        self.shared.counters.ports.get(usize::from(port.0))
    }
}
