//! A worker: one pinned thread, its frames, and its queues of every link.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod exceptions;
mod handoff;
mod io;
mod pace;
mod pair;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use viaduct_fib::{Fib, PortId, Reader};

use self::exceptions::{Exceptions, Work};
use self::handoff::Handoff;
pub(crate) use self::handoff::{Mailbox, mailboxes};
pub(crate) use self::io::Link;
use self::io::{Io, Received, Taken};
use self::pace::{Pace, Rest};
pub use self::pair::HandoffPair;
use crate::bpf::Beat;
use crate::counters::WorkerCounters;
use crate::flows::Side;
use crate::forward::{Pipeline, Prefetched, Verdict, WorkerState, pod_pipeline, underlay_pipeline};
use crate::limit::Limiter;
use crate::reason::DropReason;
use crate::sys::{self, Sleeper};
use crate::tick::Tick;
use crate::tun::Tun;
use crate::xsk::{Area, FrameId};

/// Packets taken from one queue before the next has its turn.
const BATCH: usize = 64;
/// The same from the underlay, as long as they go to many queues: forwarding costs little beside the system call for
/// each of these.
const SPREAD_BATCH: usize = 512;
/// Packets whose flows are looked up before the first of them is forwarded: about as many cache
/// lines as a processor core fetches at a time.
const AHEAD: usize = 16;
/// Exceptions that one queue may have in a turn, of [`BATCH`] for all.
const MAX_EXCEPTIONS: usize = 16;
/// Batches that are worked off at most when a port goes: a full ring is fewer.
const MAX_DRAIN: usize = 64;
/// Turns between two reports of frames: it looks at every ring.
const REPORT_TURNS: u32 = 1024;

/// What the control side asks of a worker. Other workers have a door of their own ([`Mailbox`]):
/// packets are many, and nobody waits for an answer to them.
#[derive(Debug)]
pub(crate) enum Message {
    Add(Box<Link>),
    Remove(PortId),
    /// The removed link's sockets are closed: its frames are ours again.
    Reclaim(PortId),
    /// A test wants to see it panic.
    #[cfg(debug_assertions)]
    Panic,
}

/// What a worker answers, in the order of the messages.
#[derive(Debug)]
pub(crate) enum Reply {
    Added,
    Removed(Option<Box<Link>>),
    Reclaimed,
}

/// What the control side and the worker's thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Messages have numbers; an answer has that of its message.
    pub(crate) inbox: ArrayQueue<(u64, Message)>,
    pub(crate) outbox: ArrayQueue<(u64, Reply)>,
    pub(crate) counters: WorkerCounters,
    pub(crate) sleeper: Arc<Sleeper>,
    pub(crate) stop: AtomicBool,
    /// What it said when it panicked.
    pub(crate) panic: OnceLock<String>,
}

pub(crate) struct Worker {
    io: Io,
    reader: Reader,
    exceptions: Exceptions,
    state: WorkerState,
    /// Packets whose flows are looked up; empty between batches.
    ahead: Vec<(Received, Prefetched)>,
    /// Of all workers, and which is this one's.
    beats: Vec<Beat>,
    index: usize,
    heartbeat_timeout: Duration,
    pace: Pace,
    /// Which link begins the turn.
    first: usize,
    /// Of the table that pods' rates are from.
    epoch: u64,
    /// The number of the trunk's round.
    round: u32,
}

/// The number that trunks have among so many of ports: the last.
pub(crate) fn trunk_number(ports: usize) -> PortId {
    PortId(u16::try_from(ports.saturating_sub(1)).unwrap_or(u16::MAX))
}

pub(crate) struct WorkerParts {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    /// Of all workers.
    pub(crate) mailboxes: Arc<[Mailbox]>,
    pub(crate) reader: Reader,
    pub(crate) area: Area,
    pub(crate) frames: Vec<FrameId>,
    /// Numbers of ports, and the trunk's behind them.
    pub(crate) ports: usize,
    /// How many flows it remembers.
    pub(crate) flows: usize,
    /// Of all workers.
    pub(crate) limiter: Limiter,
    pub(crate) tun: Arc<Tun>,
    /// Of all workers.
    pub(crate) beats: Vec<Beat>,
    pub(crate) adaptive: bool,
    /// Of an adaptive worker: for how long packets may gather.
    pub(crate) gather: Duration,
    pub(crate) heartbeat_timeout: Duration,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts) -> Self {
        let handoff = Handoff::new(parts.mailboxes, parts.index);
        Self {
            io: Io::new(
                parts.shared,
                parts.area,
                parts.frames,
                parts.ports,
                trunk_number(parts.ports),
                handoff,
                parts.limiter.clone(),
            ),
            epoch: u64::MAX,
            round: 0,
            reader: parts.reader,
            exceptions: Exceptions::new(parts.ports, parts.tun, parts.index),
            state: WorkerState::with_limiter(parts.flows, parts.limiter),
            ahead: Vec::with_capacity(AHEAD),
            beats: parts.beats,
            index: parts.index,
            heartbeat_timeout: parts.heartbeat_timeout,
            pace: Pace::new(parts.adaptive, parts.gather),
            first: 0,
        }
    }

    /// Runs until [`Shared::stop`] is set; then lets go of all its sockets.
    pub(crate) fn run(mut self) {
        let mut turns = 0u32;
        // Four beats in each time-out.
        let sleep = self.heartbeat_timeout.checked_div(4).unwrap_or_default();
        let sleep = i32::try_from(sleep.as_millis()).unwrap_or(i32::MAX);
        sys::sleep_exactly();
        while !self.io.shared.stop.load(Ordering::Relaxed) {
            let worked = self.turn();
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(REPORT_TURNS) {
                self.report();
            }
            match self.pace.rest(worked, self.io.now(), || self.io.taken()) {
                Rest::Poll => {}
                Rest::Nap(time) => sys::nap(time),
                Rest::Sleep => {
                    self.report();
                    // What waits for a limited pod or a busy device has to go on soon.
                    let sleep = if self.io.holds() { 1 } else { sleep };
                    self.io.sleep(sleep);
                }
            }
            if self.pace.is_busy() {
                self.io.unwatch();
            }
        }
    }

    /// Tells XDP that this worker lives: if those do who send for it. Otherwise packets that it
    /// can only hand over would be lost, while the kernel could carry them; so it is taken for
    /// dead, too. A worker sends for higher ones only, so that no two wait for each other.
    fn show_life(&self, tick: Tick) {
        let late = |last: Tick| {
            u128::from(tick.0.saturating_sub(last.0)) > self.heartbeat_timeout.as_nanos()
        };
        let helped = self
            .io
            .helpers()
            .all(|helper| self.beats.get(helper).is_some_and(|b| !late(b.last())));
        if let Some(beat) = self.beats.get(self.index) {
            beat.at(if helped { tick } else { Tick(0) });
        }
    }

    /// One round over all queues. True when there was anything to do.
    fn turn(&mut self) -> bool {
        let tick = sys::now();
        self.show_life(tick);
        self.io.begin(tick);
        self.io.shared.counters.turns.add(1);
        let mut worked = self.handle_messages(tick);
        self.follow_rates();
        worked |= self.io.take_over();
        let links = self.io.links();
        // Another port begins each turn: what there is little of (frames, room for exceptions) is
        // not always gone before the last has its turn.
        self.first = self.first.wrapping_add(1);
        for n in 0..links {
            let link = self.first.wrapping_add(n).checked_rem(links).unwrap_or(0);
            for queue in 0..self.io.queues(link) {
                worked |= self.serve(link, queue, tick);
            }
        }
        self.work_off(tick);
        worked | self.io.flush()
    }

    /// Works off what was set apart.
    fn work_off(&mut self, tick: Tick) {
        if self.exceptions.any() {
            let table = self.reader.load();
            self.exceptions
                .work_off(&mut self.io, &table, &mut self.state, tick);
        }
    }

    /// Notes what pods may receive, when the table is another.
    fn follow_rates(&mut self) {
        let table = self.reader.load();
        if table.epoch() != self.epoch {
            self.epoch = table.epoch();
            self.io.set_rates(&table);
        }
    }

    /// Tells hooks when all has been taken that was on the trunk at the round's beginning.
    #[inline]
    fn follow_rounds(&mut self, link: usize) {
        if self.io.is_round_over(link)
            && let Some(beat) = self.beats.get(self.index)
        {
            self.round = self.round.wrapping_add(1);
            beat.begin_round(self.round);
        }
    }

    /// Receives a batch from one queue, forwards it, and refills the queue.
    fn serve(&mut self, link: usize, queue: usize, tick: Tick) -> bool {
        self.io.collect(link, queue);
        self.follow_rounds(link);
        if !self.io.has_received(link, queue) {
            // With many pods that is most queues of a turn: none of them needs a table.
            let none = Taken {
                any: false,
                all: true,
                limited: false,
            };
            self.io.refill(link, queue, none);
            return false;
        }
        self.io.begin_batch();
        self.io.prefetch(link, queue, AHEAD);
        // One table for the whole batch; the guard allocates nothing.
        let table = self.reader.load();
        let mut received = 0usize;
        let mut exceptions = 0usize;
        let mut drained = false;
        let limit = self
            .io
            .port(link)
            .and_then(|id| Some((id, table.port(id)?.limits.from_pod?)));
        // A queue of nothing but exceptions waits for them: others have some, too.
        let underlay = self.io.port(link) == Some(PortId::UNDERLAY);
        let mut batch_size = BATCH;
        while received < batch_size && exceptions < MAX_EXCEPTIONS {
            // What a limited pod sends waits where it is; the kernel drops what finds no room there.
            let most = match limit {
                Some((port, rate)) if self.io.spent(port, &rate) => break,
                Some(_) => 1,
                None => AHEAD
                    .min(batch_size.saturating_sub(received))
                    .min(MAX_EXCEPTIONS.saturating_sub(exceptions)),
            };
            let mut batch = Batch {
                io: &mut self.io,
                exceptions: &mut self.exceptions,
                state: &mut self.state,
                ahead: &mut self.ahead,
                table: &table,
                tick,
            };
            let (more, set_apart) = batch.forward(link, queue, most);
            received = received.saturating_add(more);
            exceptions = exceptions.saturating_add(set_apart);
            if more < most {
                drained = true;
                break;
            }
            if received == batch_size && underlay {
                batch_size = self.io.worthwhile().clamp(BATCH, SPREAD_BATCH);
            }
        }
        drop(table);
        let taken = Taken {
            any: received > 0,
            all: drained,
            limited: limit.is_some(),
        };
        self.io.refill(link, queue, taken);
        received > 0
    }

    /// Carries out what the control side asked for.
    fn handle_messages(&mut self, tick: Tick) -> bool {
        let mut worked = false;
        while let Some((number, message)) = self.io.shared.inbox.pop() {
            worked = true;
            let reply = match message {
                Message::Add(link) => {
                    self.io.add(link);
                    self.epoch = u64::MAX;
                    Reply::Added
                }
                Message::Remove(port) => {
                    // Those whose packets this worker sends have let go of the port already.
                    self.io.take_over();
                    self.drain(port, tick);
                    Reply::Removed(self.io.remove(port))
                }
                Message::Reclaim(port) => {
                    self.io.reclaim(port);
                    self.report();
                    Reply::Reclaimed
                }
                #[cfg(debug_assertions)]
                Message::Panic => provoked(),
            };
            // There is room for the answers to all messages that fit the inbox, and it is emptied before more are sent.
            let _ = self.io.shared.outbox.push((number, reply));
        }
        worked
    }

    /// Forwards what a port has received, and sends what waits for it: no more comes, as the XDP
    /// programs leave its packets to the kernel by now. When the underlay goes, so they do with the
    /// pods' packets, many of which are for it.
    fn drain(&mut self, port: PortId, tick: Tick) {
        self.io.lift_limits(true);
        for link in 0..self.io.links() {
            if port == PortId::UNDERLAY || self.io.way(port) == Some(link) {
                self.drain_link(link, tick);
            }
        }
        // Their frames are the port's as yet.
        self.work_off(tick);
        self.io.flush();
        self.io.lift_limits(false);
    }

    fn drain_link(&mut self, link: usize, tick: Tick) {
        for queue in 0..self.io.queues(link) {
            for _ in 0..MAX_DRAIN {
                if !self.serve(link, queue, tick) {
                    break;
                }
                self.io.flush();
            }
        }
    }

    fn report(&mut self) {
        self.io.report();
        let counters = &self.io.shared.counters;
        counters
            .checksums_finished
            .set(self.state.checksums_finished);
        counters.staged.set(self.state.staged);
    }
}

#[cfg(debug_assertions)]
#[expect(clippy::panic, reason = "a test wants to see it")]
fn provoked() -> ! {
    panic!("provoked by a test")
}

/// Some packets of one queue on their way, and what they need.
struct Batch<'a> {
    io: &'a mut Io,
    exceptions: &'a mut Exceptions,
    state: &'a mut WorkerState,
    ahead: &'a mut Vec<(Received, Prefetched)>,
    table: &'a Fib,
    tick: Tick,
}

impl Batch<'_> {
    /// Receives so many packets at most and forwards them; how many came, and how many of these
    /// are exceptions.
    #[inline]
    fn forward(&mut self, link: usize, queue: usize, most: usize) -> (usize, usize) {
        let Some(ingress) = self.io.port(link) else {
            return (0, 0);
        };
        let (io, ahead) = (&mut *self.io, &mut *self.ahead);
        for _ in 0..most {
            let Some(next) = io.receive(link, queue, self.table) else {
                break;
            };
            ahead.push((next, Prefetched::default()));
        }
        // Those of the next round, while these are worked on.
        io.prefetch(link, queue, AHEAD);
        if !io.is_trunk(link) {
            let all = ahead.len();
            return self.forward_from(ingress, all);
        }
        // Packets of one port after another.
        let mut done = (0usize, 0usize);
        while let Some(ingress) = self.ahead.first().map(|(first, _)| first.ingress) {
            let same = |it: &&(Received, Prefetched)| it.0.ingress == ingress;
            let run = self.ahead.iter().take_while(same).count();
            let (received, exceptions) = self.forward_from(ingress, run);
            done.0 = done.0.saturating_add(received);
            done.1 = done.1.saturating_add(exceptions);
        }
        done
    }

    /// Forwards the first so many of those received, all from one port.
    #[inline]
    fn forward_from(&mut self, ingress: PortId, count: usize) -> (usize, usize) {
        let (io, ahead, exceptions) = (&mut *self.io, &mut *self.ahead, &mut *self.exceptions);
        if ingress == PortId::UNDERLAY {
            let pipeline = underlay_pipeline(self.table, self.state, self.tick);
            forward_all(pipeline, io, ahead, count, exceptions)
        } else {
            let pipeline = pod_pipeline(self.table, self.state, ingress, self.tick);
            forward_all(pipeline, io, ahead, count, exceptions)
        }
    }
}

/// Forwards the first `count` of what was received; how much that was, and how many exceptions among it.
#[inline(never)]
fn forward_all<S: Side>(
    mut pipeline: Pipeline<'_, S>,
    io: &mut Io,
    ahead: &mut Vec<(Received, Prefetched)>,
    count: usize,
    set_apart: &mut Exceptions,
) -> (usize, usize) {
    for (next, prefetched) in ahead.iter_mut().take(count) {
        let looked = io.edit(&mut next.packet, |frame| pipeline.prefetch(frame));
        *prefetched = looked.unwrap_or_default();
    }
    let (received, mut exceptions) = (count.min(ahead.len()), 0usize);
    for (mut next, prefetched) in ahead.drain(..received) {
        let verdict = io.edit(&mut next.packet, |frame| {
            pipeline.forward(frame, prefetched)
        });
        let work = match verdict.unwrap_or(Verdict::Drop(DropReason::Malformed)) {
            Verdict::Send(to) => {
                io.send(to, next);
                continue;
            }
            Verdict::Drop(reason) => {
                io.drop_packet(next.ingress, reason, next.packet);
                continue;
            }
            Verdict::Punt(reason) => Work::Punt(reason),
            Verdict::Exception(exception) => Work::Exception(exception),
        };
        exceptions = exceptions.saturating_add(1);
        set_apart.push(io, next, work);
    }
    (received, exceptions)
}
