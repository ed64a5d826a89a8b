//! A batch of a queue: received, and its frames replaced.

use viaduct_fib::{Fib, PortId};

use super::{Io, Received, Taken};
use crate::trunk;
use crate::xsk::{MAX_DEPTH, RESERVE, Visit, Xsk};

/// Packets to one queue that are worth waiting for.
const PER_CALL: usize = 8;

impl Io {
    /// Takes back the frames whose packets have left.
    pub(in crate::worker) fn collect(&mut self, link: usize, queue: usize) {
        let link = self.links.get_mut(link);
        if let Some(xsk) = link.and_then(|l| l.queues.get_mut(queue)) {
            self.pool.collect(xsk, &self.area);
        }
    }

    /// A batch begins.
    #[inline]
    pub(in crate::worker) fn begin_batch(&mut self) {
        self.destinations = 0;
    }

    /// How many packets this batch has to be for a few to go to each queue that had none to send before it.
    #[inline]
    pub(in crate::worker) fn worthwhile(&self) -> usize {
        self.destinations.saturating_mul(PER_CALL)
    }

    /// Whether a queue has a packet to receive.
    #[inline]
    pub(in crate::worker) fn has_received(&mut self, link: usize, queue: usize) -> bool {
        let link = self.links.get_mut(link);
        let xsk = link.and_then(|link| link.queues.get_mut(queue));
        xsk.is_some_and(Xsk::has_received)
    }

    /// Whether a link is the trunk, and all of its packets are taken that were there at the round's beginning; then
    /// another begins (`router/bpf/trunk.h`).
    #[inline]
    pub(in crate::worker) fn is_round_over(&mut self, link: usize) -> bool {
        let Some(link) = self.links.get(link).filter(|link| link.port == self.trunk) else {
            return false;
        };
        let Some(xsk) = link.queues.first() else {
            return false;
        };
        let left = self.round_end.wrapping_sub(xsk.taken());
        if (1..=MAX_DEPTH).contains(&left) {
            return false;
        }
        self.round_end = xsk.come();
        true
    }

    /// Begins to fetch the next packets of a queue, so many at most.
    #[inline]
    pub(in crate::worker) fn prefetch(&self, link: usize, queue: usize, count: usize) {
        if let Some(link) = self.links.get(link)
            && let Some(xsk) = link.queues.get(queue)
        {
            let count = u32::try_from(count).unwrap_or(0);
            xsk.prefetch(&self.area, count, link.port == PortId::UNDERLAY);
        }
    }

    /// The next packet of a queue, counted.
    #[inline]
    pub(in crate::worker) fn receive(
        &mut self,
        link: usize,
        queue: usize,
        table: &Fib,
    ) -> Option<Received> {
        let at = self.links.get_mut(link)?;
        let mut packet = at.queues.get_mut(queue)?.receive(&self.area)?;
        let mut ingress = at.port;
        if ingress == self.trunk {
            let from = self.edit(&mut packet, |frame| trunk::arrive(frame.packet(), table));
            ingress = from.flatten().unwrap_or(ingress);
        }
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
    pub(in crate::worker) fn refill(&mut self, link: usize, queue: usize, batch: Taken) {
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
            limited: batch.any.then_some(batch.limited),
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
}
