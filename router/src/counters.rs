//! Counters: written by one worker each, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::reason::DropReason;

/// A counter with one writer; readers may be a moment late.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction: only the owning worker writes.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One port at one worker. What becomes of a packet belongs to the port that it
/// came from, also when another worker sends it: received + originated = sent +
/// punted + dropped, over all ports and workers.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct PortCounters {
    pub(crate) rx_packets: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) tx_packets: Counter,
    pub(crate) tx_bytes: Counter,
    /// Packets made here because of this port's: ICMP errors, and fragments
    /// beyond the first.
    pub(crate) originated: Counter,
    /// Frames that its queues have for receiving, as of late.
    pub(crate) receive_frames: Counter,
    punts: [Counter; DropReason::COUNT],
    drops: [Counter; DropReason::COUNT],
}

impl PortCounters {
    #[inline]
    pub(crate) fn drop(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(1);
        }
    }

    pub(crate) fn punt(&self, reason: DropReason) {
        if let Some(counter) = self.punts.get(reason as usize) {
            counter.add(1);
        }
    }
}

/// One worker.
#[derive(Debug)]
pub(crate) struct WorkerCounters {
    pub(crate) ports: Vec<PortCounters>,
    pub(crate) turns: Counter,
    pub(crate) waits: Counter,
    pub(crate) free_frames: Counter,
    pub(crate) ring_frames: Counter,
    pub(crate) frames: u64,
    pub(crate) checksums_finished: Counter,
    pub(crate) staged: Counter,
    pub(crate) short_fills: Counter,
    pub(crate) handed_over: Counter,
    pub(crate) taken_over: Counter,
    pub(crate) icmp_errors: Counter,
    pub(crate) icmp_errors_withheld: Counter,
}

impl WorkerCounters {
    pub(crate) fn new(ports: usize, frames: u64) -> Self {
        let port = || PortCounters {
            rx_packets: Counter::default(),
            rx_bytes: Counter::default(),
            tx_packets: Counter::default(),
            tx_bytes: Counter::default(),
            originated: Counter::default(),
            receive_frames: Counter::default(),
            punts: std::array::from_fn(|_| Counter::default()),
            drops: std::array::from_fn(|_| Counter::default()),
        };
        Self {
            ports: (0..ports).map(|_| port()).collect(),
            turns: Counter::default(),
            waits: Counter::default(),
            free_frames: Counter::default(),
            ring_frames: Counter::default(),
            frames,
            checksums_finished: Counter::default(),
            staged: Counter::default(),
            short_fills: Counter::default(),
            handed_over: Counter::default(),
            taken_over: Counter::default(),
            icmp_errors: Counter::default(),
            icmp_errors_withheld: Counter::default(),
        }
    }
}

/// What a port has carried, all workers together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortTotals {
    /// Packets received from the port.
    pub rx_packets: u64,
    /// Bytes received from the port.
    pub rx_bytes: u64,
    /// Packets given to the port's transmit ring.
    pub tx_packets: u64,
    /// Bytes given to the port's transmit ring.
    pub tx_bytes: u64,
    /// Packets made here because of the port's: ICMP errors, and fragments
    /// beyond the first.
    pub originated: u64,
    /// Frames that its queues have for receiving now: their own, and what they are lent.
    pub receive_frames: u64,
    /// Packets from the port that were left to the kernel, and why.
    pub punts: Vec<(DropReason, u64)>,
    /// Packets from the port that were dropped, by reason.
    pub drops: Vec<(DropReason, u64)>,
}

/// What the kernel counted at a port's sockets since they were bound: packets
/// that no worker ever saw (`struct xdp_statistics`, `include/uapi/linux/if_xdp.h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketTotals {
    /// Not received for want of a frame in the fill ring, or of room in it.
    pub rx_dropped: u64,
    /// Not received because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times that the kernel looked for a frame and the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors of ours that the kernel refused. Never, unless there is a bug.
    pub invalid_descriptors: u64,
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Turns over all its queues.
    pub turns: u64,
    /// Times that it slept for want of work.
    pub waits: u64,
    /// Packets received, from all ports.
    pub rx_packets: u64,
    /// Packets sent, on all ports.
    pub tx_packets: u64,
    /// Packets given to other workers to send.
    pub handed_over: u64,
    /// Packets taken from other workers, sent or dropped here.
    pub taken_over: u64,
    /// Frames of its UMEM.
    pub frames: u64,
    /// Frames that are in no ring.
    pub free_frames: u64,
    /// Frames that wait to be filled or are being sent. When nothing is on its
    /// way, these and the free ones are all.
    pub ring_frames: u64,
    /// Transport checksums finished.
    pub checksums_finished: u64,
    /// Packets that went through all stages of forwarding, as nothing was known of their flows;
    /// the others were answered by the flow cache.
    pub staged: u64,
    /// Times that a fill ring got fewer frames than it should because none were
    /// free.
    pub short_fills: u64,
    /// ICMP errors made.
    pub icmp_errors: u64,
    /// ICMP errors that were due and not made: too many, or about a packet that
    /// may not be answered.
    pub icmp_errors_withheld: u64,
}

impl PortTotals {
    /// What has come since `base` was read.
    pub(crate) fn since(mut self, base: &Self) -> Self {
        self.rx_packets -= base.rx_packets;
        self.rx_bytes -= base.rx_bytes;
        self.tx_packets -= base.tx_packets;
        self.tx_bytes -= base.tx_bytes;
        self.originated -= base.originated;
        subtract(&mut self.punts, &base.punts);
        subtract(&mut self.drops, &base.drops);
        self
    }

    /// Adds another port's.
    pub(crate) fn plus(&mut self, other: &Self) {
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
        self.originated += other.originated;
        for (mine, others) in [
            (&mut self.punts, &other.punts),
            (&mut self.drops, &other.drops),
        ] {
            for &(reason, n) in others {
                match mine.iter_mut().find(|(r, _)| *r == reason) {
                    Some((_, sum)) => *sum += n,
                    None => mine.push((reason, n)),
                }
            }
        }
    }
}

/// Counts only ever grow.
fn subtract(from: &mut Vec<(DropReason, u64)>, base: &[(DropReason, u64)]) {
    for (reason, n) in from.iter_mut() {
        let before = base.iter().find(|(r, _)| r == reason);
        *n -= before.map_or(0, |(_, n)| *n);
    }
    from.retain(|&(_, n)| n > 0);
}

pub(crate) fn port_totals<'a>(
    workers: impl Iterator<Item = &'a WorkerCounters>,
    port: usize,
) -> PortTotals {
    let mut totals = PortTotals::default();
    let mut punts = [0u64; DropReason::COUNT];
    let mut drops = [0u64; DropReason::COUNT];
    for counters in workers.filter_map(|w| w.ports.get(port)) {
        totals.rx_packets += counters.rx_packets.get();
        totals.rx_bytes += counters.rx_bytes.get();
        totals.tx_packets += counters.tx_packets.get();
        totals.tx_bytes += counters.tx_bytes.get();
        totals.originated += counters.originated.get();
        totals.receive_frames += counters.receive_frames.get();
        add(&mut punts, &counters.punts);
        add(&mut drops, &counters.drops);
    }
    totals.punts = by_reason(punts);
    totals.drops = by_reason(drops);
    totals
}

fn add(sums: &mut [u64], counters: &[Counter]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.get();
    }
}

fn by_reason(counts: [u64; DropReason::COUNT]) -> Vec<(DropReason, u64)> {
    let named = DropReason::ALL.iter().copied().zip(counts);
    named.filter(|&(_, n)| n > 0).collect()
}

pub(crate) fn worker_totals(w: &WorkerCounters) -> WorkerTotals {
    WorkerTotals {
        turns: w.turns.get(),
        waits: w.waits.get(),
        rx_packets: w.ports.iter().map(|p| p.rx_packets.get()).sum(),
        tx_packets: w.ports.iter().map(|p| p.tx_packets.get()).sum(),
        handed_over: w.handed_over.get(),
        taken_over: w.taken_over.get(),
        frames: w.frames,
        free_frames: w.free_frames.get(),
        ring_frames: w.ring_frames.get(),
        checksums_finished: w.checksums_finished.get(),
        staged: w.staged.get(),
        short_fills: w.short_fills.get(),
        icmp_errors: w.icmp_errors.get(),
        icmp_errors_withheld: w.icmp_errors_withheld.get(),
    }
}
