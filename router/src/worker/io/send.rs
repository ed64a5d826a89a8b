//! How packets leave: by this worker's rings, or by another worker.

use viaduct_fib::{PortId, Rate};

use super::{Io, Received};
use crate::frame::Frame;
use crate::limit::{Direction, Limiter};
use crate::reason::DropReason;
use crate::tick::Tick;
use crate::trunk;
use crate::worker::handoff::Handed;
use crate::xsk::{Packet, Xsk};

/// Packets that are taken over before they are sent: half a pod's transmit ring.
const TAKE: usize = 256;

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

impl Io {
    /// Works on a packet in its frame. `None` when it does not lie inside one,
    /// which the kernel never says.
    #[inline]
    pub(in crate::worker) fn edit<R>(
        &self,
        packet: &mut Packet,
        work: impl FnOnce(&mut Frame<'_>) -> R,
    ) -> Option<R> {
        self.area.edit(packet, work)
    }

    /// A free frame, as an empty packet behind the room for headers.
    pub(in crate::worker) fn empty_packet(&mut self) -> Option<Packet> {
        let frame = self.pool.free.pop()?;
        Some(self.area.empty(frame))
    }

    /// Sends a packet to a port, or has another worker send it. Where that is not possible, it is
    /// dropped.
    #[inline]
    pub(in crate::worker) fn send(&mut self, to: PortId, received: Received) {
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
        let place = self.way(to);
        let link = place.and_then(|at| self.links.get_mut(at));
        let owner = link.as_ref().map_or(to, |link| link.port);
        let xsk = link.and_then(|l| {
            let queue = queue.checked_rem(l.senders)?;
            l.queues.get_mut(queue)
        });
        let Some(xsk) = xsk else {
            return Err(received);
        };
        let Received {
            mut packet,
            ingress,
            ..
        } = received;
        let len = packet.len;
        self.pool.tag(&packet.frame, owner.0);
        if owner == self.trunk {
            let said = self
                .area
                .edit(&mut packet, |frame| trunk::leave(frame.packet(), to));
            debug_assert!(said.is_some(), "it has been edited before");
        }
        let first = !xsk.holds();
        let mut reason = DropReason::TxRingFull;
        if !xsk.has_room() {
            // Those that wait can go now instead of at the turn's end.
            self.pool.collect(xsk, &self.area);
            let rate = self.rates.get(usize::from(to.0)).copied().flatten();
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
    pub(in crate::worker) fn take_over(&mut self) -> bool {
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

    /// Wakes workers that were given packets, and has the kernel send what waits in transmit
    /// rings. True when it took any.
    pub(in crate::worker) fn flush(&mut self) -> bool {
        self.handoff.wake();
        let mut sent = false;
        for link in &mut self.links {
            let rate = self.rates.get(usize::from(link.port.0));
            let rate = rate.and_then(Option::as_ref);
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
    pub(in crate::worker) fn holds(&mut self) -> bool {
        let mut queues = self.links.iter_mut().flat_map(|link| &mut link.queues);
        queues.any(|xsk| xsk.holds() || xsk.unsent())
    }

    /// Counts a drop and takes the frame back.
    #[inline]
    pub(in crate::worker) fn drop_packet(
        &mut self,
        ingress: PortId,
        reason: DropReason,
        packet: Packet,
    ) {
        if let Some(c) = self.counters(ingress) {
            c.drop(reason);
        }
        self.release(packet);
    }

    /// Takes the frame of a packet back that was counted elsewhere.
    pub(in crate::worker) fn release(&mut self, packet: Packet) {
        self.pool.give(packet.frame);
    }
}
