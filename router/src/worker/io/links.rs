//! Links that come and go, and sleeping until one of their sockets has packets.

use viaduct_fib::PortId;

use super::pool::FREE;
use super::{Io, Link};
use crate::worker::handoff;
use crate::xsk::Loans;

impl Io {
    pub(in crate::worker) fn add(&mut self, link: Box<Link>) {
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

    pub(in crate::worker) fn remove(&mut self, port: PortId) -> Option<Box<Link>> {
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
    pub(in crate::worker) fn reclaim(&mut self, port: PortId) {
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

    /// The workers that send for this one.
    pub(in crate::worker) fn helpers(&self) -> impl Iterator<Item = usize> {
        handoff::workers(self.helpers)
    }

    fn find_helpers(&mut self) {
        let without = self.links.iter();
        let without = without.filter(|l| l.senders == 0 && !l.over_trunk);
        self.helpers = without.fold(0, |set, l| set | handoff::bit(l.via));
    }

    /// Sleeps until there may be something to do, or the time is over.
    pub(in crate::worker) fn sleep(&mut self, timeout_ms: i32) {
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
    pub(in crate::worker) fn unwatch(&mut self) {
        if std::mem::take(&mut self.watching) {
            for xsk in self.links.iter().flat_map(|link| &link.queues) {
                // It was watched, and is open.
                let _ = self.shared.sleeper.unwatch(xsk.fd());
            }
        }
    }

    /// Frames in rings and free ones, for whoever wants to see them whole.
    pub(in crate::worker) fn report(&mut self) {
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
