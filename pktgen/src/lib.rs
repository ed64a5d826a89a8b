//! A packet generator and receiver for veth pairs and NICs.
//!
//! Two ways to send: XDP live frames (what arrives at a veth's other end is a frame, as from a NIC) and AF_XDP
//! (what arrives is an skb, as from a pod). What receives counts, measures and drops: an XDP program, or one
//! in a tc hook.
#![deny(unsafe_code)]

mod namespace;
mod outcome;
mod programs;
mod search;
mod sockets;
mod sys;
mod traffic;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

pub use namespace::Namespace;
pub use outcome::{Latency, Outcome, Progress};
pub use programs::MOST_INTERFACES;
use programs::Programs;
pub use search::{Found, Limits, Trial, search};
use sockets::{Sent, Sockets};
pub use traffic::{MOST_FLOWS, Outer, SHORTEST, Size, Traffic};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// For how long nothing must arrive before what has not is called lost.
const QUIET: Duration = Duration::from_millis(200);
/// The longest that is waited for that.
const LATEST: Duration = Duration::from_secs(3);

/// How packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// XDP live frames (Linux 5.18).
    Frames,
    /// An AF_XDP socket on the first queue of each interface.
    AfXdp,
}

/// Where packets are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// In XDP, before the kernel makes packets of its own kind of frames. Does not see what `bpf_redirect_peer` brings.
    Xdp,
    /// In tc, which sees everything (tcx, Linux 6.6; XDP on an older kernel).
    Tc,
}

/// What to send, and where it comes out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// They take turns, flow by flow.
    pub interfaces: Vec<String>,
    /// Where they are.
    pub namespace: Namespace,
    /// Where packets are counted, and in which namespace.
    pub receivers: Vec<(String, Namespace)>,
    /// At which hook.
    pub hook: Hook,
    /// The way to send.
    pub engine: Engine,
    /// What to send.
    pub traffic: Traffic,
    /// Processor of the sending thread.
    pub cpu: Option<usize>,
    /// Sleep while nothing is due, for at most as long as a batch takes. Only AF_XDP can: what sends frames
    /// is always busy.
    pub sleepy: bool,
}

/// A generator that is ready to run.
pub struct Pktgen {
    plan: Plan,
    programs: Programs,
    sockets: Option<Sockets>,
    sent: Sent,
}

impl Pktgen {
    /// Loads the programs, attaches the receiver, binds the sockets. All of it is given back when this is dropped.
    ///
    /// # Errors
    /// What is missing, busy or too small.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        let count = plan.interfaces.len();
        ensure!(
            (1..=MOST_INTERFACES).contains(&count),
            "{count} interfaces to send on: 1 to {MOST_INTERFACES} are possible"
        );
        sys::catch_signals().context("signals")?;
        let run = std::process::id() ^ u32::try_from(sockets::now() >> 20 & 0xffff_ffff)?;
        let origins = plan.namespace.with(|| {
            let origins = plan.interfaces.iter();
            origins
                .map(|name| namespace::interface(name))
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        plan.traffic.check(&origins)?;
        let mut programs = Programs::load(run, &plan.traffic, &origins)?;
        for (name, namespace) in &plan.receivers {
            programs.attach(name, namespace, plan.hook)?;
        }
        let sockets = plan.namespace.with(|| match plan.engine {
            Engine::Frames => programs.set_interfaces(&origins).map(|()| None),
            Engine::AfXdp => Sockets::bind(run, &plan.traffic, &origins).map(Some),
        })?;
        Ok(Self {
            plan,
            programs,
            sockets,
            sent: Sent::default(),
        })
    }

    /// Sends for a time, `rate` packets a second or as many as possible, and waits for what is under way.
    /// A signal ends it early.
    ///
    /// # Errors
    /// When the kernel does not send, or the rate is 0.
    pub fn run(
        &mut self,
        rate: Option<u64>,
        duration: Duration,
        mut progress: impl FnMut(&Progress),
    ) -> anyhow::Result<Outcome> {
        let interval = match rate {
            None => 0,
            Some(rate) => (256_000_000_000u64
                .checked_div(rate)
                .context("a rate of 0")?)
            .max(1),
        };
        self.programs.set_interval(interval)?;
        let before = self.snapshot()?;
        let latencies = self.programs.latencies()?;
        let stop = AtomicBool::new(false);
        let (namespace, cpu) = (self.plan.namespace.clone(), self.plan.cpu);
        let (programs, sent) = (&self.programs, &self.sent);
        let sockets = self.sockets.as_mut();
        let (engine, sleepy) = (self.plan.engine, self.plan.sleepy);
        let counts = || snapshot(engine, programs, sent);
        let ready = std::sync::OnceLock::new();
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| -> anyhow::Result<()> {
                namespace.enter()?;
                if let Some(cpu) = cpu {
                    pin(cpu)?;
                }
                let _ = ready.set(sys::Thread::current());
                match sockets {
                    Some(sockets) => sockets.generate(interval, sleepy, &stop, sent),
                    None => programs.generate()?,
                }
                Ok(())
            });
            let begin = Instant::now();
            let (mut told, mut last) = (begin, before);
            while begin.elapsed() < duration && !sender.is_finished() && !sys::is_interrupted() {
                let left = duration.saturating_sub(begin.elapsed());
                std::thread::sleep(left.min(Duration::from_millis(20)));
                if told.elapsed() >= PROGRESS {
                    let now = counts()?;
                    progress(&now.since(&last, told.elapsed()));
                    (told, last) = (Instant::now(), now);
                }
            }
            stop.store(true, Ordering::Relaxed);
            while !sender.is_finished() {
                if let Some(thread) = ready.get() {
                    thread.interrupt();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            sender
                .join()
                .map_err(|_| anyhow!("the sender has panicked"))?
        })?;
        let after = self.settle()?;
        let counted = after.since(&before, self.sending()?);
        let later = self.programs.latencies()?;
        let latencies = later.iter().zip(&latencies).map(|(a, b)| a - b);
        Ok(Outcome::new(
            rate,
            counted,
            !self.plan.receivers.is_empty(),
            &latencies.collect::<Vec<_>>(),
            sys::is_interrupted(),
        ))
    }

    /// From the first packet of the last run to its last.
    fn sending(&self) -> anyhow::Result<Duration> {
        let [first, last] = match self.plan.engine {
            Engine::Frames => {
                let generator = self.programs.generator()?;
                [generator.first, generator.last]
            }
            Engine::AfXdp => [&self.sent.first, &self.sent.last].map(|t| t.load(Ordering::Relaxed)),
        };
        Ok(Duration::from_nanos(last.saturating_sub(first)))
    }

    fn snapshot(&self) -> anyhow::Result<Progress> {
        snapshot(self.plan.engine, &self.programs, &self.sent)
    }

    /// What has been counted when nothing more arrives.
    fn settle(&self) -> anyhow::Result<Progress> {
        let begin = Instant::now();
        let mut last = (begin, self.snapshot()?);
        while last.0.elapsed() < QUIET && begin.elapsed() < LATEST && last.1.lost() > 0 {
            std::thread::sleep(Duration::from_millis(10));
            let now = self.snapshot()?;
            if now.received != last.1.received {
                last = (Instant::now(), now);
            }
        }
        self.snapshot()
    }
}

/// From now on SIGINT and SIGTERM end runs, not the program. Making a generator does the same.
///
/// # Errors
/// The kernel's.
pub fn catch_signals() -> std::io::Result<()> {
    sys::catch_signals()
}

/// Whether SIGINT or SIGTERM has asked for the end, since signals are caught.
pub fn is_interrupted() -> bool {
    sys::is_interrupted()
}

/// Keeps the thread on a processor.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let core = core_affinity::CoreId { id: cpu };
    // Numbers that do not exist are not for the library, which panics at large ones.
    let known = core_affinity::get_core_ids().is_some_and(|cores| cores.contains(&core));
    ensure!(
        known && core_affinity::set_for_current(core),
        "there is no processor {cpu} to send from"
    );
    Ok(())
}

fn snapshot(engine: Engine, programs: &Programs, sent: &Sent) -> anyhow::Result<Progress> {
    let arrivals = programs.arrivals()?;
    let (packets, bytes) = match engine {
        Engine::Frames => {
            let generator = programs.generator()?;
            (generator.sent, generator.bytes)
        }
        Engine::AfXdp => (
            sent.packets.load(Ordering::Relaxed),
            sent.bytes.load(Ordering::Relaxed),
        ),
    };
    Ok(Progress {
        sent: packets,
        sent_bytes: bytes,
        received: arrivals.packets,
        received_bytes: arrivals.bytes,
        reordered: arrivals.reordered,
        foreign: arrivals.foreign,
        seconds: 0.0,
    })
}
