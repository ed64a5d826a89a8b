//! A worker's frames and queues: who has which frame, and how packets leave.

use std::sync::Arc;

use viaduct_fib::{Fib, PortId, Rate};

use super::Shared;
use super::handoff::{self, Handed, Handoff};
use crate::counters::PortCounters;
use crate::frame::Frame;
use crate::limit::{Direction, Limiter};
use crate::reason::DropReason;
use crate::tick::Tick;
use crate::xsk::{Area, Depth, FrameId, Loans, Packet, RESERVE, Visit, Xsk};

/// Packets to one queue that are worth waiting for.
const PER_CALL: usize = 8;
/// Owner of a frame that is in no ring.
const FREE: u16 = u16::MAX;
/// Packets that are taken over before they are sent: half a pod's transmit ring.
const TAKE: usize = 256;

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
}

/// Free frames, and who has the others.
struct Pool {
    free: Vec<FrameId>,
    /// By frame: [`FREE`], or the port in one of whose rings it is.
    owners: Vec<u16>,
}

impl Pool {
    fn give(&mut self, frame: FrameId) {
        self.tag(&frame, FREE);
        // Never grows: there are as many places as frames.
        self.free.push(frame);
    }

    /// Takes back the frames whose packets have left.
    fn collect(&mut self, from: &mut Xsk, area: &Area) {
        while let Some(frame) = from.complete(area) {
            self.give(frame);
        }
    }

    fn tag(&mut self, frame: &FrameId, owner: u16) {
        if let Some(tag) = self.owners.get_mut(frame.index()) {
            *tag = owner;
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

/// Has the kernel send what waits in a queue, as much of it as a rate allows. True when there was any, and the device was
/// not busy.
fn send_waiting(
    xsk: &mut Xsk,
    port: PortId,
    rate: Option<&Rate>,
    limiter: &Limiter,
    now: Tick,
) -> bool {
    match rate {
        None => xsk.flush(),
        Some(rate) => {
            xsk.flush_some(|bytes| limiter.admit(port, Direction::ToPod, Some(rate), bytes, now))
        }
    }
}

/// Frames, links and counters of one worker.
pub(super) struct Io {
    pub(super) shared: Arc<Shared>,
    area: Area,
    pool: Pool,
    links: Vec<Box<Link>>,
    /// By port: the link's place in `links`, for ports that have one.
    places: Vec<Option<usize>>,
    loans: Loans,
    handoff: Handoff,
    /// The set of workers that send for this one.
    helpers: u64,
    limiter: Limiter,
    /// By port: how much a pod may receive, as the table had it at the turn's beginning.
    rates: Vec<Option<Rate>>,
    /// When the turn began.
    now: Tick,
    /// Whether limits do not hold for now.
    lifted: bool,
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
            loans: Loans::new(),
            handoff,
            helpers: 0,
            limiter,
            rates: vec![None; ports],
            now: Tick(0),
            lifted: false,
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

    /// While a port goes, everything that waits may go, whatever the rates.
    pub(super) fn lift_limits(&mut self, lifted: bool) {
        self.lifted = lifted;
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
        !self.lifted && !self.limiter.ready(port, Direction::FromPod, rate, self.now)
    }

    pub(super) fn links(&self) -> usize {
        self.links.len()
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

    /// Takes back the frames whose packets have left.
    pub(super) fn collect(&mut self, link: usize, queue: usize) {
        let link = self.links.get_mut(link);
        if let Some(xsk) = link.and_then(|l| l.queues.get_mut(queue)) {
            self.pool.collect(xsk, &self.area);
        }
    }

    /// A batch begins.
    #[inline]
    pub(super) fn begin_batch(&mut self) {
        self.destinations = 0;
    }

    /// How many packets this batch has to be for a few to go to each queue that had none to send before it.
    #[inline]
    pub(super) fn worthwhile(&self) -> usize {
        self.destinations.saturating_mul(PER_CALL)
    }

    /// Whether a queue has a packet to receive.
    #[inline]
    pub(super) fn has_received(&mut self, link: usize, queue: usize) -> bool {
        let link = self.links.get_mut(link);
        let xsk = link.and_then(|link| link.queues.get_mut(queue));
        xsk.is_some_and(Xsk::has_received)
    }

    /// Begins to fetch the next packets of a queue, so many at most.
    #[inline]
    pub(super) fn prefetch(&self, link: usize, queue: usize, count: usize) {
        if let Some(link) = self.links.get(link)
            && let Some(xsk) = link.queues.get(queue)
        {
            let count = u32::try_from(count).unwrap_or(0);
            xsk.prefetch(&self.area, count, link.port == PortId::UNDERLAY);
        }
    }

    /// The next packet of a queue, counted.
    #[inline]
    pub(super) fn receive(&mut self, link: usize, queue: usize) -> Option<Received> {
        let at = self.links.get_mut(link)?;
        let packet = at.queues.get_mut(queue)?.receive(&self.area)?;
        let ingress = at.port;
        if let Some(c) = self.counters(ingress) {
            c.rx_packets.add(1);
            c.rx_bytes.add(u64::from(packet.len));
        }
        Some(Received {
            packet,
            ingress,
            queue,
        })
    }

    /// Ends a queue's batch: received slots go back to the kernel, and the fill ring is topped up.
    pub(super) fn refill(&mut self, link: usize, queue: usize, batch: Taken) {
        let Some(link) = self.links.get_mut(link) else {
            return;
        };
        let (Some(xsk), Some(depth)) = (link.queues.get_mut(queue), link.depths.get_mut(queue))
        else {
            return;
        };
        if batch.any {
            xsk.receive_done();
        }
        let visit = Visit {
            now: self.now.0,
            drained: batch.all,
            limited: batch.limited,
            filled: xsk.filled(),
            receiving: xsk.receiving(),
        };
        let missing = depth.missing(&visit, &mut self.loans);
        if missing == 0 {
            return;
        }
        for _ in 0..missing {
            // What others are lent must not be missing for packets on their way, or for a queue's own.
            if xsk.receiving() >= depth.own() && self.pool.free.len() <= RESERVE {
                break;
            }
            let Some(frame) = self.pool.free.pop() else {
                self.shared.counters.short_fills.add(1);
                break;
            };
            self.pool.tag(&frame, link.port.0);
            xsk.fill(&self.area, frame);
        }
        depth.topped_up(xsk.filled(), xsk.receiving(), &mut self.loans);
        xsk.fill_done();
    }

    /// Works on a packet in its frame. `None` when it does not lie inside one,
    /// which the kernel never says.
    #[inline]
    pub(super) fn edit<R>(
        &self,
        packet: &mut Packet,
        work: impl FnOnce(&mut Frame<'_>) -> R,
    ) -> Option<R> {
        self.area.edit(packet, work)
    }

    /// A free frame, as an empty packet behind the room for headers.
    pub(super) fn empty_packet(&mut self) -> Option<Packet> {
        let frame = self.pool.free.pop()?;
        Some(self.area.empty(frame))
    }

    /// Sends a packet to a port, or has another worker send it. Where that is not possible, it is
    /// dropped.
    #[inline]
    pub(super) fn send(&mut self, to: PortId, received: Received) {
        if let Err(received) = self.transmit(to, received) {
            self.hand_over(to, received);
        }
    }

    /// Puts a packet into the transmit ring of a port: of its queue that
    /// corresponds to the one it came from. Full, it is dropped.
    ///
    /// # Errors
    /// The packet comes back when none of the port's queues here can send.
    #[inline]
    fn transmit(&mut self, to: PortId, received: Received) -> Result<(), Received> {
        let queue = received.queue;
        let place = self.places.get(usize::from(to.0)).copied().flatten();
        let link = place.and_then(|at| self.links.get_mut(at));
        let xsk = link.and_then(|l| {
            let queue = queue.checked_rem(l.senders)?;
            l.queues.get_mut(queue)
        });
        let Some(xsk) = xsk else {
            return Err(received);
        };
        let Received {
            packet, ingress, ..
        } = received;
        let len = packet.len;
        self.pool.tag(&packet.frame, to.0);
        let first = !xsk.holds();
        let mut reason = DropReason::TxRingFull;
        if !xsk.has_room() {
            // Those that wait can go now instead of at the turn's end.
            self.pool.collect(xsk, &self.area);
            let rate = self.rates.get(usize::from(to.0)).copied().flatten();
            let rate = rate.filter(|_| !self.lifted);
            if !xsk.stuck() {
                send_waiting(xsk, to, rate.as_ref(), &self.limiter, self.now);
            }
            if rate.is_some() && xsk.holds() {
                reason = DropReason::RateToPod;
            }
        }
        if let Err(packet) = xsk.transmit(packet) {
            self.drop_packet(ingress, reason, packet);
            return Ok(());
        }
        self.destinations = self.destinations.saturating_add(usize::from(first));
        if let Some(c) = self.counters(to) {
            c.tx_packets.add(1);
            c.tx_bytes.add(u64::from(len));
        }
        Ok(())
    }

    /// Gives a packet to the worker that sends on this port for this one.
    fn hand_over(&mut self, to: PortId, received: Received) {
        let Received {
            mut packet,
            ingress,
            ..
        } = received;
        let link = self.place(to).and_then(|at| self.links.get(at));
        let Some(via) = link.map(|l| l.via) else {
            return self.drop_packet(ingress, DropReason::UnknownPort, packet);
        };
        let frame = self.area.frame(&mut packet);
        if !frame.is_some_and(|mut f| self.handoff.give(via, f.packet(), ingress, to)) {
            return self.drop_packet(ingress, DropReason::HandoffFull, packet);
        }
        self.shared.counters.handed_over.add(1);
        self.release(packet);
    }

    /// Sends what other workers have handed over until now. True when there was anything.
    pub(super) fn take_over(&mut self) -> bool {
        let arrived = self.handoff.arrived();
        for n in 1..=arrived {
            let Some(handed) = self.handoff.take() else {
                break;
            };
            self.accept(&handed);
            self.handoff.give_back(handed);
            if n.is_multiple_of(TAKE) {
                self.flush();
            }
        }
        arrived > 0
    }

    /// Sends a packet of another worker from a frame of this one's.
    fn accept(&mut self, handed: &Handed) {
        self.shared.counters.taken_over.add(1);
        let ingress = handed.ingress;
        let Some(mut packet) = self.empty_packet() else {
            if let Some(c) = self.counters(ingress) {
                c.drop(DropReason::NoFrame);
            }
            return;
        };
        // At the frame's beginning: there is nothing left to be put in front.
        let copied = self.edit(&mut packet, |frame| {
            let from = handed.packet();
            frame.place(0, from.len())?;
            frame.packet().copy_from_slice(from);
            Some(())
        });
        // The queue's number is of no matter: who sends for others has one.
        let received = Received {
            packet,
            ingress,
            queue: 0,
        };
        let sent = match copied.flatten() {
            Some(()) => self.transmit(handed.egress, received),
            None => Err(received),
        };
        if let Err(Received { packet, .. }) = sent {
            self.drop_packet(ingress, DropReason::UnknownPort, packet);
        }
    }

    /// The workers that send for this one.
    pub(super) fn helpers(&self) -> impl Iterator<Item = usize> {
        handoff::workers(self.helpers)
    }

    fn find_helpers(&mut self) {
        let without = self.links.iter().filter(|l| l.senders == 0);
        self.helpers = without.fold(0, |set, l| set | handoff::bit(l.via));
    }

    /// Sleeps until there may be something to do, or the time is over.
    pub(super) fn sleep(&mut self, timeout_ms: i32) {
        // Without a socket that wakes it, it looks by itself.
        let timeout_ms = if self.watch() { timeout_ms } else { 1 };
        if self.handoff.rest() {
            self.shared.counters.waits.add(1);
            self.shared.sleeper.wait(timeout_ms);
            self.handoff.rise();
        }
    }

    /// Has sockets wake who sleeps. True when all do.
    fn watch(&mut self) -> bool {
        if !self.watching {
            let mut queues = self.links.iter().flat_map(|link| &link.queues);
            let sleeper = &self.shared.sleeper;
            self.watching = queues.all(|xsk| sleeper.watch(xsk.fd()).is_ok());
        }
        self.watching
    }

    /// Has sockets wake nobody: trying to costs the kernel more than 100 ns for each packet that
    /// is sent, whether somebody sleeps or not.
    pub(super) fn unwatch(&mut self) {
        if std::mem::take(&mut self.watching) {
            for xsk in self.links.iter().flat_map(|link| &link.queues) {
                // It was watched, and is open.
                let _ = self.shared.sleeper.unwatch(xsk.fd());
            }
        }
    }

    /// Counts a drop and takes the frame back.
    #[inline]
    pub(super) fn drop_packet(&mut self, ingress: PortId, reason: DropReason, packet: Packet) {
        if let Some(c) = self.counters(ingress) {
            c.drop(reason);
        }
        self.release(packet);
    }

    /// Takes the frame of a packet back that was counted elsewhere.
    pub(super) fn release(&mut self, packet: Packet) {
        self.pool.give(packet.frame);
    }

    /// Wakes workers that were given packets, and has the kernel send what waits in transmit
    /// rings. True when it took any.
    pub(super) fn flush(&mut self) -> bool {
        self.handoff.wake();
        let mut sent = false;
        for link in &mut self.links {
            let rate = self.rates.get(usize::from(link.port.0));
            let rate = rate.and_then(Option::as_ref).filter(|_| !self.lifted);
            for xsk in link
                .queues
                .iter_mut()
                .filter_map(|x| x.unsent().then_some(x))
            {
                if xsk.crowded() {
                    self.pool.collect(xsk, &self.area);
                }
                sent |= send_waiting(xsk, link.port, rate, &self.limiter, self.now);
            }
        }
        sent
    }

    /// Whether packets wait: for pods that may not receive them yet, or for busy devices.
    pub(super) fn holds(&mut self) -> bool {
        let mut queues = self.links.iter_mut().flat_map(|link| &mut link.queues);
        queues.any(|xsk| xsk.holds() || xsk.unsent())
    }

    pub(super) fn add(&mut self, link: Box<Link>) {
        // With the others, when it sleeps next.
        self.unwatch();
        let place = self.links.len();
        if let Some(p) = self.places.get_mut(usize::from(link.port.0)) {
            *p = Some(place);
        }
        // Within the capacity: one link a port, and ports are counted.
        self.links.push(link);
        self.find_helpers();
    }

    pub(super) fn remove(&mut self, port: PortId) -> Option<Box<Link>> {
        let place = self.places.get_mut(usize::from(port.0))?.take()?;
        let link = self.links.swap_remove(place);
        if let Some(moved) = self.links.get(place).map(|l| l.port)
            && let Some(p) = self.places.get_mut(usize::from(moved.0))
        {
            *p = Some(place);
        }
        self.find_helpers();
        Some(link)
    }

    /// The rings of a closed socket do not say which frames they held; the tags
    /// do.
    pub(super) fn reclaim(&mut self, port: PortId) {
        // It is there again, when the control side was slow to ask: the next time then.
        if self.place(port).is_some() {
            return;
        }
        if let Some(counters) = self.counters(port) {
            counters.receive_frames.set(0);
        }
        let depths = self.links.iter().flat_map(|link| &link.depths);
        self.loans = Loans::new().without(depths);
        for (index, tag) in self.pool.owners.iter_mut().enumerate() {
            if *tag == port.0 {
                *tag = FREE;
                self.pool.free.push(self.area.reclaimed(index));
            }
        }
    }

    /// Frames in rings and free ones, for whoever wants to see them whole.
    pub(super) fn report(&mut self) {
        let queues = self.links.iter_mut().flat_map(|l| &mut l.queues);
        let held: u64 = queues.map(|xsk| u64::from(xsk.held())).sum();
        let counters = &self.shared.counters;
        for link in &self.links {
            if let Some(port) = counters.ports.get(usize::from(link.port.0)) {
                let frames = link.queues.iter().map(|xsk| u64::from(xsk.receiving()));
                port.receive_frames.set(frames.sum());
            }
        }
        counters.ring_frames.set(held);
        counters.free_frames.set(self.pool.free.len() as u64);
    }
}
