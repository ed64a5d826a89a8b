//! Two workers' ends of the hand-off on one thread, for benches.

use std::io;
use std::sync::Arc;

use viaduct_fib::PortId;

use super::handoff::{Handoff, mailboxes};

/// A worker that gives packets and one that takes them, without threads, links or sockets.
pub struct HandoffPair {
    giver: Handoff,
    taker: Handoff,
}

impl HandoffPair {
    /// For packets of up to `bytes`.
    ///
    /// # Errors
    /// When the kernel has no descriptors for sleeping workers.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let all = mailboxes(2, bytes)?;
        Ok(Self {
            giver: Handoff::new(Arc::clone(&all), 0),
            taker: Handoff::new(all, 1),
        })
    }

    /// Has packets cross as in two workers' turns: each is copied into a buffer and given, the other
    /// worker is woken for all, each is taken and copied into a frame, and its buffer is brought back.
    /// Returns how many came over: those for which there was a buffer, room, and a frame long enough.
    pub fn pass<'a>(
        &mut self,
        packets: impl Iterator<Item = &'a [u8]>,
        mut frames: impl Iterator<Item = &'a mut [u8]>,
    ) -> usize {
        for packet in packets {
            self.giver.give(1, packet, PortId(1), PortId::UNDERLAY);
        }
        self.giver.wake();
        let mut passed = 0usize;
        for _ in 0..self.taker.arrived() {
            let Some(handed) = self.taker.take() else {
                break;
            };
            let from = handed.packet();
            if let Some(room) = frames.next().and_then(|f| f.get_mut(..from.len())) {
                room.copy_from_slice(from);
                passed = passed.saturating_add(1);
            }
            self.taker.give_back(handed);
        }
        passed
    }
}
