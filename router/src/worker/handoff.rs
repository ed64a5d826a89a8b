//! Packets for a device of which this worker has no queue that can send: they go, finished, to a
//! worker that has one.
//!
//! A frame cannot cross, since each worker's sockets know only its own UMEM. So the packet is copied
//! into a buffer, which crosses, and from there into a frame of the other worker; the buffer goes
//! back to the worker whose it is. Frames thus never leave their worker, and buffers are made once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use viaduct_fib::PortId;

use crate::counters::WorkerCounters;
use crate::reason::DropReason;
use crate::sys::Sleeper;

/// Buffers of a worker, for packets on their way to others: an eighth or less of its UMEM.
const BUFFERS: usize = 1024;
/// Packets that may wait for a worker: those of so many others that use all their buffers.
const SENDERS: usize = 4;

/// A packet that another worker is to send.
#[derive(Debug)]
pub(crate) struct Handed {
    buffer: Box<[u8]>,
    len: usize,
    pub(super) ingress: PortId,
    pub(super) egress: PortId,
    /// The worker whose buffer it is.
    from: usize,
}

impl Handed {
    pub(super) fn packet(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

/// One worker's end of the hand-off.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// From all other workers: one ring to look into, however many there are.
    arrived: ArrayQueue<Handed>,
    /// The worker's own buffers, empty, brought back by whoever had them.
    buffers: ArrayQueue<Box<[u8]>>,
    /// The worker sleeps, or is about to.
    asleep: AtomicBool,
    sleeper: Arc<Sleeper>,
}

impl Mailbox {
    fn new(buffers: usize, room: usize, bytes: usize) -> io::Result<Self> {
        let mailbox = Self {
            // A queue has one place at least.
            arrived: ArrayQueue::new(room.max(1)),
            buffers: ArrayQueue::new(buffers.max(1)),
            asleep: AtomicBool::new(false),
            sleeper: Arc::new(Sleeper::new()?),
        };
        for _ in 0..buffers {
            mailbox.keep(vec![0; bytes].into_boxed_slice());
        }
        Ok(mailbox)
    }

    pub(crate) fn sleeper(&self) -> Arc<Sleeper> {
        Arc::clone(&self.sleeper)
    }

    /// Takes a buffer of this worker back. There is always room: as many places as buffers.
    fn keep(&self, buffer: Box<[u8]>) {
        let _ = self.buffers.push(buffer);
    }

    /// Wakes the worker if it sleeps. Of many callers one makes the system call.
    fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.sleeper.wake();
        }
    }

    /// Counts what nobody will send any more; for whoever has seen all workers end.
    pub(crate) fn abandon(&self, counters: &WorkerCounters) {
        while let Some(handed) = self.arrived.pop() {
            counters.taken_over.add(1);
            if let Some(port) = counters.ports.get(usize::from(handed.ingress.0)) {
                port.drop(DropReason::UnknownPort);
            }
        }
    }
}

/// Makes the mailboxes of so many workers, for packets of up to `bytes`.
pub(crate) fn mailboxes(workers: usize, bytes: usize) -> io::Result<Arc<[Mailbox]>> {
    let others = workers.saturating_sub(1);
    let buffers = if others == 0 { 0 } else { BUFFERS };
    let room = others.min(SENDERS).saturating_mul(BUFFERS);
    (0..workers)
        .map(|_| Mailbox::new(buffers, room, bytes))
        .collect()
}

/// A worker's way to the others' mailboxes, and to its own.
pub(super) struct Handoff {
    mailboxes: Arc<[Mailbox]>,
    own: usize,
    /// Bit i: worker i was given something and not yet woken for it. There are at most 64.
    given: u64,
}

impl Handoff {
    pub(super) fn new(mailboxes: Arc<[Mailbox]>, own: usize) -> Self {
        Self {
            mailboxes,
            own,
            given: 0,
        }
    }

    fn own(&self) -> Option<&Mailbox> {
        self.mailboxes.get(self.own)
    }

    /// Gives a copy of a packet to another worker, which looks for it after [`wake`](Self::wake).
    /// False when all buffers are under way, or too many packets wait there.
    pub(super) fn give(
        &mut self,
        to: usize,
        packet: &[u8],
        ingress: PortId,
        egress: PortId,
    ) -> bool {
        let (Some(own), Some(other)) = (self.own(), self.mailboxes.get(to)) else {
            return false;
        };
        let Some(mut buffer) = own.buffers.pop() else {
            return false;
        };
        let Some(room) = buffer.get_mut(..packet.len()) else {
            // A buffer is as long as a frame: never.
            own.keep(buffer);
            return false;
        };
        room.copy_from_slice(packet);
        let handed = Handed {
            buffer,
            len: packet.len(),
            ingress,
            egress,
            from: self.own,
        };
        if let Err(handed) = other.arrived.push(handed) {
            own.keep(handed.buffer);
            return false;
        }
        self.given |= bit(to);
        true
    }

    /// Wakes those who were given something, if they sleep.
    pub(super) fn wake(&mut self) {
        if self.given == 0 {
            return;
        }
        // Pairs with the fence in `rest`: either this sees the other asleep, or the other sees
        // what was pushed.
        fence(Ordering::SeqCst);
        for mailbox in workers(self.given).filter_map(|to| self.mailboxes.get(to)) {
            mailbox.wake();
        }
        self.given = 0;
    }

    /// How many packets have arrived.
    pub(super) fn arrived(&self) -> usize {
        self.own().map_or(0, |own| own.arrived.len())
    }

    /// The next packet that has arrived; [`give_back`](Self::give_back) it.
    pub(super) fn take(&self) -> Option<Handed> {
        self.own()?.arrived.pop()
    }

    /// Brings a packet's buffer back to where it came from.
    pub(super) fn give_back(&self, handed: Handed) {
        if let Some(mailbox) = self.mailboxes.get(handed.from) {
            mailbox.keep(handed.buffer);
        }
    }

    /// Says that this worker is going to sleep. False, and it must not, when something has
    /// arrived.
    pub(super) fn rest(&self) -> bool {
        let Some(own) = self.own() else {
            return true;
        };
        own.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        let empty = own.arrived.is_empty();
        if !empty {
            self.rise();
        }
        empty
    }

    /// Says that this worker is awake, so that nobody need wake it.
    pub(super) fn rise(&self) {
        if let Some(own) = self.own() {
            own.asleep.store(false, Ordering::Relaxed);
        }
    }
}

/// A set with one worker.
pub(super) fn bit(worker: usize) -> u64 {
    u32::try_from(worker)
        .ok()
        .and_then(|n| 1u64.checked_shl(n))
        .unwrap_or(0)
}

/// The workers of a set.
pub(super) fn workers(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = set.trailing_zeros();
        // Takes the lowest bit away; there is none when the set is empty.
        set &= set.checked_sub(1)?;
        usize::try_from(first).ok()
    })
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    reason = "a test may fail"
)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::counters::port_totals;

    const BYTES: usize = 128;
    const POD: PortId = PortId(3);

    fn pair(buffers: usize, room: usize) -> (Handoff, Handoff, Arc<[Mailbox]>) {
        let mailbox = || Mailbox::new(buffers, room, BYTES).expect("a mailbox");
        let all: Arc<[Mailbox]> = [mailbox(), mailbox()].into();
        let end = |own| Handoff::new(Arc::clone(&all), own);
        (end(0), end(1), all)
    }

    fn give(from: &mut Handoff, to: usize, packet: &[u8]) -> bool {
        from.give(to, packet, POD, PortId::UNDERLAY)
    }

    fn empty_buffers(all: &[Mailbox], worker: usize) -> usize {
        all[worker].buffers.len()
    }

    #[test]
    fn packets_arrive_in_order_and_buffers_come_back() {
        let (mut a, b, all) = pair(4, 4);
        for round in 0..10u8 {
            for n in 0..4u8 {
                assert!(give(&mut a, 1, &[round, n, 7]));
            }
            assert_eq!((b.arrived(), empty_buffers(&all, 0)), (4, 0));
            for n in 0..4u8 {
                let handed = b.take().expect("a packet");
                assert_eq!(handed.packet(), [round, n, 7]);
                assert_eq!((handed.ingress, handed.egress), (POD, PortId::UNDERLAY));
                b.give_back(handed);
            }
            assert!(b.take().is_none());
            assert_eq!((empty_buffers(&all, 0), empty_buffers(&all, 1)), (4, 4));
        }
    }

    #[test]
    fn without_a_buffer_or_room_or_receiver_nothing_is_given_and_nothing_lost() {
        let (mut a, b, all) = pair(2, 4);
        assert!(give(&mut a, 1, &[1]) && give(&mut a, 1, &[2]));
        assert!(!give(&mut a, 1, &[3]), "both buffers are under way");
        b.give_back(b.take().expect("a packet"));
        assert!(give(&mut a, 1, &[4]), "one came back");

        let (mut a, b, all_2) = pair(4, 1);
        assert!(give(&mut a, 1, &[1]));
        assert!(!give(&mut a, 1, &[2]), "no room there");
        assert!(!give(&mut a, 9, &[3]), "there is no such worker");
        assert!(!give(&mut a, 1, &[0; BYTES + 1]), "longer than a buffer");
        assert_eq!((empty_buffers(&all, 0), empty_buffers(&all_2, 0)), (0, 3));
        b.give_back(b.take().expect("a packet"));
        assert!(give(&mut a, 1, &[0; BYTES]), "as long as a buffer");
    }

    #[test]
    fn one_greedy_sender_leaves_the_others_their_buffers() {
        let all = mailboxes(3, BYTES).expect("mailboxes");
        let mut ends = (0..3).map(|own| Handoff::new(Arc::clone(&all), own));
        let (mut a, mut b) = (ends.next().expect("one"), ends.next().expect("two"));
        let mut given = 0;
        while give(&mut a, 2, &[1]) {
            given += 1;
        }
        assert_eq!(given, BUFFERS);
        assert!(give(&mut b, 2, &[2]));
    }

    #[test]
    fn only_a_sleeper_is_woken_and_none_sleeps_on_a_packet() {
        let (mut a, b, all) = pair(4, 4);
        assert!(b.rest(), "nothing has arrived");
        assert!(give(&mut a, 1, &[1]));
        a.wake();
        assert!(!all[1].asleep.load(Ordering::Relaxed), "it was woken");
        // The wake is remembered: this returns at once.
        let begin = Instant::now();
        all[1].sleeper.wait(10_000);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(!b.rest(), "a packet has arrived");
        assert!(give(&mut a, 1, &[2]));
        a.wake();
        let begin = Instant::now();
        all[1].sleeper.wait(50);
        assert!(
            begin.elapsed() >= Duration::from_millis(40),
            "a worker that is awake is not woken"
        );
    }

    /// A lost wake-up would last for a second each time.
    #[test]
    fn no_wakeup_is_lost_between_two_threads() {
        const PACKETS: u32 = 20_000;
        let (mut a, b, all) = pair(8, 8);
        let begin = Instant::now();
        let sleeper = all[1].sleeper();
        let receiver = thread::spawn(move || {
            let mut next = 0u32;
            while next < PACKETS {
                while let Some(handed) = b.take() {
                    assert_eq!(handed.packet(), next.to_ne_bytes());
                    b.give_back(handed);
                    next += 1;
                }
                if next < PACKETS && b.rest() {
                    sleeper.wait(1000);
                    b.rise();
                }
            }
        });
        for n in 0..PACKETS {
            while !give(&mut a, 1, &n.to_ne_bytes()) {
                thread::yield_now();
            }
            a.wake();
            if n % 7 == 0 {
                thread::yield_now();
            }
        }
        receiver.join().expect("the receiver ends");
        assert_eq!(empty_buffers(&all, 0), 8);
        assert!(begin.elapsed() < Duration::from_secs(10), "wake-ups lost");
    }

    #[test]
    fn what_is_left_at_the_end_is_dropped_at_the_port_that_it_came_from() {
        let (mut a, _b, all) = pair(4, 4);
        assert!(give(&mut a, 1, &[1]) && give(&mut a, 1, &[2]));
        let counters = WorkerCounters::new(4, 0);
        all[1].abandon(&counters);
        let pod = port_totals(std::iter::once(&counters), usize::from(POD.0));
        assert_eq!(pod.drops, [(DropReason::UnknownPort, 2)]);
    }

    #[test]
    fn a_set_of_workers_has_those_that_were_put_in() {
        let set = bit(0) | bit(5) | bit(63) | bit(64);
        assert_eq!(workers(set).collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(workers(0).count(), 0);
    }
}
