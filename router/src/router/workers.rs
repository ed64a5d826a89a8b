//! The workers as the control side knows them: how they are asked, whether they live, and what they have not given back.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use viaduct_fib::PortId;

use crate::bpf::Beat;
use crate::error::RouterError;
use crate::sys;
use crate::worker::{Message, Reply, Shared, Worker, WorkerParts};
use crate::xsk::{Umem, Xsk};

/// How long a worker may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Messages that may wait for a worker, and answers for the control side.
pub(super) const MESSAGES: usize = 16;

/// Whether a worker does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Its heartbeat is fresh.
    Alive,
    /// Its heartbeat is older than the time-out, or it waits for another worker whose is: the kernel has its packets.
    Silent,
    /// Its thread has ended: it has panicked.
    Ended,
}

/// How a worker fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerHealth {
    /// Whether it does its work.
    pub state: Liveness,
    /// Since its last heartbeat; none when it has had none, or plays dead since a worker that sends for it is silent.
    pub heartbeat_age: Option<Duration>,
    /// What it said when it panicked.
    pub panic: Option<String>,
}

/// A link that a worker was asked to give back, and has not.
#[derive(Debug)]
struct Owed {
    ifindex: u32,
    interface: String,
    /// The number of the message; none when there was no room for it.
    asked: Option<u64>,
    since: Instant,
}

/// One worker.
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) umem: Umem,
    /// Keeps the UMEM shareable.
    pub(super) _anchor: Xsk,
    index: usize,
    thread: JoinHandle<()>,
    beat: Beat,
    /// Number of the message that was sent last.
    asked: u64,
    /// By port: what it has not given back.
    owed: BTreeMap<PortId, Owed>,
    /// Ports whose sockets are closed and whose frames it has not been told to take back.
    unclaimed: BTreeSet<PortId>,
}

impl Handle {
    /// Starts a worker's thread.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn start(
        parts: WorkerParts,
        umem: Umem,
        anchor: Xsk,
        cpu: Option<usize>,
    ) -> std::io::Result<Self> {
        let (index, shared) = (parts.index, Arc::clone(&parts.shared));
        let beat = parts.beats.get(index).cloned();
        let beat = beat.ok_or(std::io::ErrorKind::InvalidInput)?;
        let panicked = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Some(id) = cpu {
                    core_affinity::set_for_current(core_affinity::CoreId { id });
                }
                // Its sockets are closed on the way: the kernel has the packets at once.
                let run = catch_unwind(AssertUnwindSafe(|| Worker::new(parts).run()));
                if let Err(payload) = run {
                    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
                    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
                    let _ = panicked.panic.set(text.unwrap_or_default());
                }
            })?;
        Ok(Self {
            shared,
            umem,
            _anchor: anchor,
            index,
            thread,
            beat,
            asked: 0,
            owed: BTreeMap::new(),
            unclaimed: BTreeSet::new(),
        })
    }

    /// Waits until it shows life, or has had its time.
    pub(super) fn wait_for_life(&self) {
        let patience = Instant::now() + PATIENCE;
        while self.heartbeat_age().is_none()
            && !self.thread.is_finished()
            && Instant::now() < patience
        {
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn heartbeat_age(&self) -> Option<Duration> {
        let last = self.beat.last().0;
        (last != 0).then(|| Duration::from_nanos(sys::now().0.saturating_sub(last)))
    }

    /// How it fares, by this time-out.
    pub(super) fn health(&self, timeout: Duration) -> WorkerHealth {
        let heartbeat_age = self.heartbeat_age();
        let state = if self.thread.is_finished() {
            Liveness::Ended
        } else if heartbeat_age.is_some_and(|age| age <= timeout) {
            Liveness::Alive
        } else {
            Liveness::Silent
        };
        WorkerHealth {
            state,
            heartbeat_age,
            panic: self.shared.panic.get().cloned(),
        }
    }

    /// Whether there is a point in waiting for it: not when it has been silent for longer than anybody waits.
    pub(super) fn may_answer(&self) -> bool {
        // One that plays dead for another does answer.
        !self.thread.is_finished() && self.heartbeat_age().is_none_or(|age| age < PATIENCE)
    }

    fn unreachable(&self, why: &str) -> RouterError {
        let doing = format!("cannot reach worker {}", self.index);
        RouterError::new(doing, why)
    }

    /// Sends a message; its number. It comes back when there is no room.
    fn send(&mut self, message: Message) -> Result<u64, Message> {
        self.asked += 1;
        let pushed = self.shared.inbox.push((self.asked, message));
        pushed.map_err(|(_, message)| message)?;
        self.shared.sleeper.wake();
        Ok(self.asked)
    }

    /// Gives it a link.
    ///
    /// # Errors
    /// When it does not answer. The link may be its own already: [`take_back`](Self::take_back) it.
    pub(super) fn give(&mut self, link: Box<crate::worker::Link>) -> Result<(), RouterError> {
        if !self.may_answer() {
            return Err(self.unreachable("it shows no life; its packets are the kernel's"));
        }
        let number = self.send(Message::Add(link));
        let number = number.map_err(|_| self.unreachable("too many messages wait for it"))?;
        if self.wait_for(number) {
            return Ok(());
        }
        Err(self.unreachable(&format!("no answer in {PATIENCE:?}")))
    }

    /// Asks for a port's link, closes its sockets and has its frames taken back. What the worker does not do now it is
    /// asked for by [`settle`](Self::settle).
    pub(super) fn take_back(&mut self, port: PortId, interface: &str, ifindex: u32) {
        let owed = Owed {
            ifindex,
            interface: interface.to_owned(),
            asked: None,
            since: Instant::now(),
        };
        self.owed.insert(port, owed);
        self.settle();
        let asked = self.owed.get(&port).and_then(|owed| owed.asked);
        if let Some(number) = asked
            && self.may_answer()
        {
            self.wait_for(number);
        }
    }

    /// Waits for the answer to a message; false when it does not come in time.
    fn wait_for(&mut self, number: u64) -> bool {
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience && !self.thread.is_finished() {
            if self.collect(Some(number)) {
                return true;
            }
            thread::sleep(Duration::from_micros(50));
        }
        self.collect(Some(number))
    }

    /// Takes its answers: links that were given back are closed, and the worker is told to take back their frames. True
    /// when the one with this number has come.
    fn collect(&mut self, number: Option<u64>) -> bool {
        let mut answered = false;
        while let Some((of, reply)) = self.shared.outbox.pop() {
            answered |= Some(of) == number;
            match reply {
                Reply::Removed(Some(link)) => {
                    let port = link.port;
                    drop(link);
                    self.owed.remove(&port);
                    self.unclaimed.insert(port);
                }
                // It never had one.
                Reply::Removed(None) => self.owed.retain(|_, owed| owed.asked != Some(of)),
                Reply::Added | Reply::Reclaimed => {}
            }
        }
        self.reclaim();
        answered
    }

    fn reclaim(&mut self) {
        while let Some(port) = self.unclaimed.pop_first() {
            if self.send(Message::Reclaim(port)).is_err() {
                self.unclaimed.insert(port);
                return;
            }
        }
    }

    /// Takes answers that came late, and asks again for what it was never told.
    pub(super) fn settle(&mut self) {
        self.collect(None);
        let untold = self.owed.iter().filter(|(_, owed)| owed.asked.is_none());
        // The answers to so many have room.
        let untold: Vec<PortId> = untold.map(|(port, _)| *port).take(MESSAGES).collect();
        for port in untold {
            let Ok(number) = self.send(Message::Remove(port)) else {
                return;
            };
            if let Some(owed) = self.owed.get_mut(&port) {
                owed.asked = Some(number);
            }
        }
    }

    /// Why a port, or a device, is not free as far as this worker goes; none when it is.
    pub(super) fn holds(&self, port: PortId, ifindex: u32) -> Option<String> {
        let mut owed = self.owed.iter();
        let (_, owed) = owed.find(|(owed, it)| **owed == port || it.ifindex == ifindex)?;
        let (worker, seconds) = (self.index, owed.since.elapsed().as_secs());
        Some(format!(
            "worker {worker} has not given back its sockets on {} for {seconds} s, since it does not answer; it is tried \
             again when it does",
            owed.interface
        ))
    }

    #[cfg(debug_assertions)]
    pub(super) fn provoke(&mut self) {
        let _ = self.send(Message::Panic);
    }

    /// Has it end. A thread that is stuck ends with the process.
    pub(super) fn join(self) {
        let patience = Instant::now() + PATIENCE;
        while !self.thread.is_finished() && Instant::now() < patience {
            thread::sleep(Duration::from_micros(200));
        }
        if self.thread.is_finished() {
            let _ = self.thread.join();
        }
    }
}
