//! What does not fit the hot loop, worked off after it: punts to the kernel,
//! ICMP errors, fragments. At most one batch of them a turn.

use std::mem;
use std::sync::Arc;

use viaduct_encap::icmp::IcmpError;
use viaduct_fib::{Fib, NetworkId};

use super::BATCH;
use super::io::{Io, Received};
use crate::forward::{
    Exception, Verdict, WorkerState, answer, complete, originate, prepare_fragments,
};
use crate::reason::DropReason;
use crate::tick::Tick;
use crate::tun::Tun;

/// Nanoseconds for each ICMP error that a port may cause: a hundred a second.
const ERROR_INTERVAL: u64 = 10_000_000;
/// ICMP errors that a port may cause at once.
const ERROR_BURST: u64 = 50;

/// A packet that waits, and for what.
struct Waiting {
    received: Received,
    work: Work,
}

pub(super) enum Work {
    Punt(DropReason),
    Exception(Exception),
}

pub(super) struct Exceptions {
    waiting: Vec<Waiting>,
    /// By port: how many ICMP errors its packets may still cause.
    errors: Vec<Bucket>,
    tun: Arc<Tun>,
    /// This worker's number.
    worker: usize,
}

impl Exceptions {
    pub(super) fn new(ports: usize, tun: Arc<Tun>, worker: usize) -> Self {
        Self {
            waiting: Vec::with_capacity(BATCH),
            errors: (0..ports).map(|_| Bucket::default()).collect(),
            tun,
            worker,
        }
    }

    pub(super) fn any(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Keeps a packet for later in this turn, or drops it when there are many.
    #[cold]
    pub(super) fn push(&mut self, io: &mut Io, received: Received, work: Work) {
        if self.waiting.len() < BATCH {
            self.waiting.push(Waiting { received, work });
        } else {
            io.drop_packet(
                received.ingress,
                DropReason::ExceptionOverload,
                received.packet,
            );
        }
    }

    pub(super) fn work_off(
        &mut self,
        io: &mut Io,
        table: &Fib,
        state: &mut WorkerState,
        tick: Tick,
    ) {
        // Taken out and put back, with its memory.
        let mut waiting = mem::take(&mut self.waiting);
        for Waiting { received, work } in waiting.drain(..) {
            match work {
                Work::Punt(reason) => self.punt(io, state, received, reason),
                Work::Exception(Exception::IcmpError {
                    network,
                    error,
                    reason,
                }) => {
                    if let Some(c) = io.counters(received.ingress) {
                        c.drop(reason);
                    }
                    self.icmp_error(io, table, state, tick, received, network, error);
                }
                Work::Exception(Exception::Fragment { network, mtu }) => {
                    self.fragment(io, table, state, tick, received, network, mtu);
                }
            }
        }
        self.waiting = waiting;
    }

    /// Gives the packet to the kernel, as if it had arrived there.
    fn punt(&self, io: &mut Io, state: &mut WorkerState, mut received: Received, why: DropReason) {
        let taken = io.edit(&mut received.packet, |frame| {
            complete(state, frame);
            self.tun.write(self.worker, frame.packet())
        });
        let Received {
            packet, ingress, ..
        } = received;
        if taken != Some(true) {
            return io.drop_packet(ingress, DropReason::PuntFailed, packet);
        }
        if let Some(c) = io.counters(ingress) {
            c.punt(why);
        }
        io.release(packet);
    }

    /// Tells the sender of a packet, which is counted already, what became of it.
    #[expect(
        clippy::too_many_arguments,
        reason = "a worker's parts, borrowed apart"
    )]
    fn icmp_error(
        &mut self,
        io: &mut Io,
        table: &Fib,
        state: &mut WorkerState,
        tick: Tick,
        mut received: Received,
        network: NetworkId,
        error: IcmpError,
    ) {
        let bucket = self.errors.get_mut(usize::from(received.ingress.0));
        let verdict = if bucket.is_some_and(|b| b.take(tick)) {
            let made = io.edit(&mut received.packet, |frame| {
                answer(table, frame, network, error)
            });
            made.flatten()
        } else {
            None
        };
        let Some(verdict) = verdict else {
            io.shared.counters.icmp_errors_withheld.add(1);
            return io.release(received.packet);
        };
        io.shared.counters.icmp_errors.add(1);
        if let Some(c) = io.counters(received.ingress) {
            c.originated.add(1);
        }
        self.settle(io, state, received, verdict);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a worker's parts, borrowed apart"
    )]
    fn fragment(
        &mut self,
        io: &mut Io,
        table: &Fib,
        state: &mut WorkerState,
        tick: Tick,
        mut received: Received,
        network: NetworkId,
        mtu: u16,
    ) {
        let prepared = io.edit(&mut received.packet, |frame| {
            prepare_fragments(state, frame, network, mtu)
        });
        let fragments = match prepared {
            Some(Ok(fragments)) => fragments,
            Some(Err(Verdict::Exception(Exception::IcmpError { error, reason, .. }))) => {
                if let Some(c) = io.counters(received.ingress) {
                    c.drop(reason);
                }
                return self.icmp_error(io, table, state, tick, received, network, error);
            }
            _ => return io.drop_packet(received.ingress, DropReason::TooBig, received.packet),
        };
        let Received {
            mut packet,
            ingress,
            queue,
        } = received;
        for index in 0..fragments.count() {
            // The packet itself is counted once; its first fragment stands for it.
            if index > 0
                && let Some(c) = io.counters(ingress)
            {
                c.originated.add(1);
            }
            let Some(mut piece) = io.empty_packet() else {
                if let Some(c) = io.counters(ingress) {
                    c.drop(DropReason::NoFrame);
                }
                continue;
            };
            let verdict = io.edit(&mut packet, |whole| {
                io.edit(&mut piece, |frame| {
                    let len = fragments.write(index, whole.packet(), frame.room())?;
                    frame.place(frame.start(), len)?;
                    Some(originate(table, frame, network))
                })
            });
            let verdict = verdict.flatten().flatten();
            let made = Received {
                packet: piece,
                ingress,
                queue,
            };
            let verdict = verdict.unwrap_or(Verdict::Drop(DropReason::TooBig));
            self.settle(io, state, made, verdict);
        }
        io.release(packet);
    }

    /// Carries out the verdict on a packet that was made here.
    fn settle(&self, io: &mut Io, state: &mut WorkerState, made: Received, verdict: Verdict) {
        match verdict {
            Verdict::Send(to) => io.send(to, made),
            Verdict::Drop(reason) => io.drop_packet(made.ingress, reason, made.packet),
            Verdict::Punt(reason) => self.punt(io, state, made, reason),
            // What this node makes fits its way.
            Verdict::Exception(_) => {
                io.drop_packet(made.ingress, DropReason::TooBig, made.packet);
            }
        }
    }
}

/// A token bucket. Full when new.
#[derive(Debug)]
struct Bucket {
    tokens: u64,
    /// When the last token was added.
    at: Tick,
}

impl Default for Bucket {
    fn default() -> Self {
        Self {
            tokens: ERROR_BURST,
            at: Tick(0),
        }
    }
}

impl Bucket {
    fn take(&mut self, now: Tick) -> bool {
        let earned = now.0.saturating_sub(self.at.0) / ERROR_INTERVAL;
        self.tokens = self.tokens.saturating_add(earned).min(ERROR_BURST);
        self.at.0 = self
            .at
            .0
            .saturating_add(earned.saturating_mul(ERROR_INTERVAL));
        let some = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_then_one_an_interval() {
        let mut bucket = Bucket::default();
        let now = Tick(5_000_000_000);
        let given = (0..200).filter(|_| bucket.take(now)).count();
        assert_eq!(given as u64, ERROR_BURST);
        assert!(!bucket.take(Tick(now.0 + ERROR_INTERVAL - 1)));
        assert!(bucket.take(Tick(now.0 + ERROR_INTERVAL)));
        assert!(!bucket.take(Tick(now.0 + ERROR_INTERVAL)));
    }
}
