//! A worker: one pinned thread, its frames, and its queues of every link.
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use viaduct_fib::{PortId, Reader};

use crate::bpf::Beat;
use crate::counters::WorkerCounters;
use crate::forward::{Tick, Verdict, WorkerState, forward};
use crate::reason::DropReason;
use crate::sys::{self, Sleeper};
use crate::xsk::{Area, FrameId, Packet, Xsk};

/// Packets taken from one queue before the next has its turn.
const BATCH: usize = 64;
/// Turns without a packet before an adaptive worker sleeps.
const IDLE_TURNS: u32 = 256;
/// Turns between two reports of frames: it looks at every ring.
const REPORT_TURNS: u32 = 1024;
/// Frames kept back from fill rings for packets on their way out.
pub(crate) const RESERVE: usize = 2048;
/// The least fill ring a queue is given.
pub(crate) const MIN_QUOTA: usize = 64;
/// Fewer missing frames than this are not worth a shared line.
const TOP_UP: u32 = 32;
/// The most.
const MAX_QUOTA: usize = 1024;

const FREE: u16 = u16::MAX;

/// A worker's queues of one device.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) port: PortId,
    pub(crate) queues: Vec<Xsk>,
}

/// What the control side asks of a worker. The inbox is also the door through
/// which other workers will hand over frames.
#[derive(Debug)]
pub(crate) enum Message {
    Add(Box<Link>),
    Remove(PortId),
    /// The removed link's sockets are closed: its frames are ours again.
    Reclaim(PortId),
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
    pub(crate) inbox: ArrayQueue<Message>,
    pub(crate) outbox: ArrayQueue<Reply>,
    pub(crate) counters: WorkerCounters,
    pub(crate) sleeper: Sleeper,
    pub(crate) stop: AtomicBool,
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

    fn tag(&mut self, frame: &FrameId, owner: u16) {
        if let Some(tag) = self.owners.get_mut(frame.index()) {
            *tag = owner;
        }
    }
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    reader: Reader,
    area: Area,
    pool: Pool,
    links: Vec<Box<Link>>,
    /// By port: the link's place in `links`, for ports that have one.
    places: Vec<Option<usize>>,
    quota: u32,
    state: WorkerState,
    beat: Beat,
    adaptive: bool,
    sleep: Duration,
}

pub(crate) struct WorkerParts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reader: Reader,
    pub(crate) area: Area,
    pub(crate) frames: Vec<FrameId>,
    pub(crate) ports: usize,
    pub(crate) beat: Beat,
    pub(crate) adaptive: bool,
    pub(crate) heartbeat_timeout: Duration,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts) -> Self {
        let frames = parts.frames.len();
        Self {
            shared: parts.shared,
            reader: parts.reader,
            area: parts.area,
            pool: Pool {
                free: parts.frames,
                owners: vec![FREE; frames],
            },
            links: Vec::with_capacity(parts.ports),
            places: vec![None; parts.ports],
            quota: 0,
            state: WorkerState::default(),
            beat: parts.beat,
            adaptive: parts.adaptive,
            // Four beats in each time-out.
            sleep: parts.heartbeat_timeout / 4,
        }
    }
}

impl Worker {
    /// Runs until [`Shared::stop`] is set; then lets go of all its sockets.
    pub(crate) fn run(mut self) {
        let mut idle = 0u32;
        let mut turns = 0u32;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let worked = self.turn();
            idle = if worked { 0 } else { idle.saturating_add(1) };
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(REPORT_TURNS) || idle > IDLE_TURNS {
                self.report();
            }
            if self.adaptive && idle > IDLE_TURNS {
                self.shared.counters.waits.add(1);
                let ms = i32::try_from(self.sleep.as_millis()).unwrap_or(i32::MAX);
                self.shared.sleeper.wait(ms);
            }
        }
    }

    /// One round over all queues. True when there was anything to do.
    fn turn(&mut self) -> bool {
        let tick = sys::now();
        self.beat.at(tick);
        self.shared.counters.turns.add(1);
        let mut worked = self.obey();
        for link in 0..self.links.len() {
            let queues = self.links.get(link).map_or(0, |l| l.queues.len());
            for queue in 0..queues {
                worked |= self.serve(link, queue, tick);
            }
        }
        for link in &mut self.links {
            for xsk in &mut link.queues {
                if xsk.unsent() {
                    worked |= xsk.flush();
                }
            }
        }
        worked
    }

    /// Receives a batch from one queue, forwards it, and refills the queue.
    fn serve(&mut self, link: usize, queue: usize, tick: Tick) -> bool {
        self.collect(link, queue);
        let mut received = 0usize;
        // One table for the whole batch; the guard allocates nothing.
        let snapshot = self.reader.load();
        while received < BATCH {
            let Some((port, xsk)) = queue_of(&mut self.links, link, queue) else {
                break;
            };
            let Some(mut packet) = xsk.receive(&self.area) else {
                break;
            };
            received = received.saturating_add(1);
            let place = usize::from(port.0);
            let counters = self.shared.counters.ports.get(place);
            if let Some(c) = counters {
                c.rx_packets.add(1);
                c.rx_bytes.add(u64::from(packet.len));
            }
            let verdict = match self.area.frame(&mut packet) {
                Some(mut frame) => {
                    let before = frame.start();
                    let verdict = forward(&snapshot, &mut self.state, &mut frame, port, tick);
                    let (start, len) = (frame.start(), frame.len());
                    packet.moved(before, start, len);
                    verdict
                }
                None => Verdict::Drop(DropReason::Malformed),
            };
            let result = match verdict {
                Verdict::Drop(reason) => Err((reason, packet)),
                Verdict::Send(to) => {
                    let out = self.places.get(usize::from(to.0)).copied().flatten();
                    let out = out.and_then(|at| self.links.get_mut(at));
                    send(out, &mut self.pool, &self.shared.counters, queue, packet)
                }
            };
            if let Err((reason, packet)) = result {
                if let Some(drop) = counters.and_then(|c| c.drops.get(reason as usize)) {
                    drop.add(1);
                }
                self.pool.give(packet.frame);
            }
        }
        drop(snapshot);
        if let Some((port, xsk)) = queue_of(&mut self.links, link, queue) {
            if received > 0 {
                xsk.receive_done();
            }
            refill(xsk, &mut self.pool, &self.area, port.0, self.quota);
        }
        received > 0
    }

    /// Takes back the frames whose packets have left.
    fn collect(&mut self, link: usize, queue: usize) {
        let Some((_, xsk)) = queue_of(&mut self.links, link, queue) else {
            return;
        };
        while let Some(frame) = xsk.complete(&self.area) {
            self.pool.give(frame);
        }
    }

    /// Carries out what the control side asked for.
    fn obey(&mut self) -> bool {
        let mut worked = false;
        while let Some(message) = self.shared.inbox.pop() {
            worked = true;
            let reply = match message {
                Message::Add(link) => {
                    let place = self.links.len();
                    if let Some(p) = self.places.get_mut(usize::from(link.port.0)) {
                        *p = Some(place);
                    }
                    // Within the capacity: one link a port, and ports are counted.
                    self.links.push(link);
                    self.share_out();
                    Reply::Added
                }
                Message::Remove(port) => Reply::Removed(self.remove(port)),
                Message::Reclaim(port) => {
                    self.reclaim(port);
                    Reply::Reclaimed
                }
            };
            // The control side asks one thing at a time: there is always room.
            let _ = self.shared.outbox.push(reply);
        }
        worked
    }

    fn remove(&mut self, port: PortId) -> Option<Box<Link>> {
        let place = self.places.get_mut(usize::from(port.0))?.take()?;
        let link = self.links.swap_remove(place);
        if let Some(moved) = self.links.get(place).map(|l| l.port)
            && let Some(p) = self.places.get_mut(usize::from(moved.0))
        {
            *p = Some(place);
        }
        self.share_out();
        Some(link)
    }

    /// The rings of a closed socket do not say which frames they held; the tags
    /// do.
    fn reclaim(&mut self, port: PortId) {
        for (index, tag) in self.pool.owners.iter_mut().enumerate() {
            if *tag == port.0 {
                *tag = FREE;
                self.pool.free.push(self.area.reclaimed(index));
            }
        }
        self.report();
    }

    /// How many frames each receiving queue may hold, now that the number of
    /// queues has changed.
    fn share_out(&mut self) {
        let queues: usize = self.links.iter().map(|l| l.queues.len()).sum();
        let frames = self.pool.owners.len().saturating_sub(RESERVE);
        let quota = frames
            .checked_div(queues)
            .unwrap_or(0)
            .clamp(MIN_QUOTA, MAX_QUOTA);
        self.quota = u32::try_from(quota).unwrap_or(0);
    }

    fn report(&mut self) {
        let queues = self.links.iter_mut().flat_map(|l| &mut l.queues);
        let held: u64 = queues.map(|xsk| u64::from(xsk.held())).sum();
        let counters = &self.shared.counters;
        counters.ring_frames.set(held);
        counters.free_frames.set(self.pool.free.len() as u64);
        counters
            .checksums_finished
            .set(self.state.checksums_finished);
    }
}

fn queue_of(links: &mut [Box<Link>], link: usize, queue: usize) -> Option<(PortId, &mut Xsk)> {
    let link = links.get_mut(link)?;
    Some((link.port, link.queues.get_mut(queue)?))
}

/// Queues a packet on one of the link's queues: the one that corresponds to
/// the queue it came from.
fn send(
    link: Option<&mut Box<Link>>,
    pool: &mut Pool,
    counters: &WorkerCounters,
    queue: usize,
    packet: Packet,
) -> Result<(), (DropReason, Packet)> {
    let Some(link) = link else {
        return Err((DropReason::UnknownPort, packet));
    };
    let queue = queue.checked_rem(link.queues.len()).unwrap_or(0);
    let Some(xsk) = link.queues.get_mut(queue) else {
        return Err((DropReason::UnknownPort, packet));
    };
    let len = packet.len;
    pool.tag(&packet.frame, link.port.0);
    xsk.transmit(packet)
        .map_err(|packet| (DropReason::TxRingFull, packet))?;
    if let Some(c) = counters.ports.get(usize::from(link.port.0)) {
        c.tx_packets.add(1);
        c.tx_bytes.add(u64::from(len));
    }
    Ok(())
}

/// Tops the fill ring up to the quota.
fn refill(xsk: &mut Xsk, pool: &mut Pool, area: &Area, owner: u16, quota: u32) {
    let missing = quota.saturating_sub(xsk.filled());
    if missing < TOP_UP {
        return;
    }
    for _ in 0..missing {
        let Some(frame) = pool.free.pop() else { break };
        pool.tag(&frame, owner);
        xsk.fill(area, frame);
    }
    xsk.fill_done();
}
