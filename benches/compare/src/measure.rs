//! One system on its bed, and what is measured of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use viaduct_pktgen::{Found, Latency, Limits, Outcome, Pktgen, Trial, search};

use crate::bed::Bed;
use crate::check::check;
use crate::cpu;
use crate::plan::Point;
use crate::systems::{self, Kind, Reflector, Setup, System};
use crate::traffic::{End, generator};

/// What is sent before a measurement, for caches and for whoever has slept.
const WARM_UP: Duration = Duration::from_millis(150);
/// Delivered packets that a system need not have counted: those on their way while it was asked, in 1,000.
const TOLERANCE: u64 = 10;
/// Of 1,000 packets, those that may be lost while processor time is measured.
const LOST: f64 = 0.01;
/// How much of the rate a generator that sleeps has to reach; what is counted is what it did reach.
const REACHED: f64 = 0.5;
/// A generator that is asked for all that it has counts as the limit when so much of its best comes through.
const LIMITED: f64 = 0.95;

/// Packets took another path than that of the system that is measured. Fails the run.
#[derive(Debug)]
pub(crate) struct Astray(pub(crate) String);

impl fmt::Display for Astray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Astray {}

/// Packets a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) sent: f64,
    pub(crate) received: f64,
}

/// Processor time at a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Processors that were busy.
    pub(crate) processors: f64,
    /// Packets a second that came through meanwhile.
    pub(crate) rate: f64,
}

impl Cost {
    /// Nanoseconds of processor time a packet.
    pub(crate) fn per_packet(self) -> f64 {
        self.processors / self.rate * 1e9
    }
}

/// How much a generator of this point delivers when nothing is in its way, so that nobody takes its limit for a system's.
pub(crate) fn is_limit(delivered: f64, generator: f64) -> bool {
    delivered >= generator * LIMITED
}

/// What a subject's packets are sent through.
enum Way {
    System(Box<dyn System>),
    /// Nothing: they are counted at the other end of the generator's own interface.
    Nothing,
}

/// A system that is ready to be measured, or the generator alone. It uses no processor until it is.
pub(crate) struct Subject {
    // In the order in which they end.
    pktgen: Option<(End, bool, Pktgen)>,
    reflector: Option<Reflector>,
    way: Way,
    bed: Bed,
    point: Point,
    cpu: usize,
    checked: bool,
}

impl Subject {
    /// Starts a system, and looks at what it makes of packets.
    pub(crate) fn start(kind: Kind, point: &Point, setup: &Setup) -> anyhow::Result<Self> {
        let bed = Bed::new(point.shape)?;
        let system = systems::start(kind, &bed, setup)?;
        check(&bed, point, setup.generator_cpu)?;
        system.pause(true)?;
        Ok(Self::with(Way::System(system), bed, point, setup))
    }

    /// The generator alone.
    pub(crate) fn nothing(point: &Point, setup: &Setup) -> anyhow::Result<Self> {
        let bed = Bed::new(point.shape)?;
        Ok(Self::with(Way::Nothing, bed, point, setup))
    }

    fn with(way: Way, bed: Bed, point: &Point, setup: &Setup) -> Self {
        Self {
            pktgen: None,
            reflector: None,
            way,
            bed,
            point: *point,
            cpu: setup.generator_cpu,
            checked: false,
        }
    }

    /// Packets a second that come through when as many as possible are sent.
    pub(crate) fn rate(&mut self, duration: Duration) -> anyhow::Result<Rate> {
        self.awake(|subject| {
            let before = subject.counted()?;
            let warm = subject.send(None, WARM_UP)?;
            let outcome = subject.send(None, duration)?;
            let received = outcome.counted.received;
            ensure!(received > 0, "nothing came through");
            subject.check_carrier(before, warm.counted.received + received)?;
            Ok(Rate {
                sent: outcome.counted.sent_rate(),
                received: outcome.counted.received_rate(),
            })
        })
    }

    /// The highest rate without loss, below `most`; a trial that counts lasts `trial`.
    pub(crate) fn ndr(&mut self, most: f64, trial: Duration) -> anyhow::Result<Found> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate"
        )]
        let most = most as u64;
        let limits = Limits {
            loss: 0.0,
            least: (most / 30).max(1),
            most,
            precision: 0.02,
            trial,
        };
        self.awake(|subject| {
            subject.send(Some(limits.least), WARM_UP)?;
            search(&limits, |rate, time| {
                let outcome = subject.send(Some(rate), time)?;
                Ok(Trial {
                    sent_rate: outcome.counted.sent_rate(),
                    loss: outcome.loss(),
                    fell_short: outcome.fell_short(),
                })
            })
        })
    }

    /// Processor time of the whole machine at a rate, the generator's included.
    pub(crate) fn cost(&mut self, rate: u64, duration: Duration) -> anyhow::Result<Cost> {
        self.awake(|subject| {
            // Sleeps when nothing is due, unlike otherwise.
            subject.prepare(End::Counted, true)?;
            let whole = duration + cpu::MARGIN * 2;
            let (processors, outcome) = cpu::watched(duration, || subject.run(Some(rate), whole))?;
            ensure!(
                outcome.loss() <= LOST,
                "at {rate} packets/s it lost {:.1} %",
                outcome.loss() * 100.0
            );
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let reached = outcome.counted.sent_rate() / rate as f64;
            ensure!(
                reached > REACHED,
                "the generator reached {reached:.2} of {rate} packets/s"
            );
            Ok(Cost {
                processors,
                rate: outcome.counted.received_rate(),
            })
        })
    }

    /// How long packets take to the far end, which sends them back, and back to their pod.
    pub(crate) fn round_trip(&mut self, rate: u64, duration: Duration) -> anyhow::Result<Latency> {
        self.awake(|subject| {
            subject.prepare(End::Returned, false)?;
            subject.run(Some(rate), WARM_UP)?;
            let outcome = subject.run(Some(rate), duration)?;
            ensure!(
                outcome.loss() <= LOST,
                "at {rate} packets/s {:.1} % did not come back",
                outcome.loss() * 100.0
            );
            outcome.latency.context("nothing came back")
        })
    }

    fn awake<R>(&mut self, work: impl FnOnce(&mut Self) -> anyhow::Result<R>) -> anyhow::Result<R> {
        self.pause(false)?;
        let result = work(self);
        self.pause(true)?;
        result
    }

    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        match &self.way {
            Way::System(system) => system.pause(pause),
            Way::Nothing => Ok(()),
        }
    }

    fn send(&mut self, rate: Option<u64>, duration: Duration) -> anyhow::Result<Outcome> {
        self.prepare(End::Counted, false)?;
        self.run(rate, duration)
    }

    /// Has a generator of this kind.
    fn prepare(&mut self, end: End, sleepy: bool) -> anyhow::Result<()> {
        let (at, how) = match &self.pktgen {
            Some((at, how, _)) => (Some(*at), *how),
            None => (None, sleepy),
        };
        if at == Some(end) && how == sleepy {
            return Ok(());
        }
        self.pktgen = None;
        self.reflector = None;
        if end == End::Returned {
            self.reflector = Some(Reflector::start(&self.bed)?);
        }
        let end = match self.way {
            Way::Nothing => End::Next,
            Way::System(_) => end,
        };
        let pktgen = generator(&self.bed, &self.point, end, self.cpu, sleepy)?;
        self.pktgen = Some((end, sleepy, pktgen));
        Ok(())
    }

    fn run(&mut self, rate: Option<u64>, duration: Duration) -> anyhow::Result<Outcome> {
        let Some((_, _, pktgen)) = &mut self.pktgen else {
            bail!("no generator")
        };
        let outcome = pktgen.run(rate, duration, |_| {})?;
        if outcome.interrupted {
            bail!("interrupted");
        }
        Ok(outcome)
    }

    /// What the system has counted; nothing where it would take long and has been looked at before.
    fn counted(&mut self) -> anyhow::Result<Option<u64>> {
        match &mut self.way {
            Way::System(system) if !(self.checked && system.counts_slowly()) => {
                system.others()?;
                system.carried(self.point.case)
            }
            _ => Ok(None),
        }
    }

    /// Delivered packets must be the system's work, not somebody else's.
    fn check_carrier(&mut self, before: Option<u64>, received: u64) -> anyhow::Result<()> {
        let (Some(before), Way::System(system)) = (before, &mut self.way) else {
            return Ok(());
        };
        let after = system.carried(self.point.case)?.unwrap_or(0);
        let carried = after.saturating_sub(before);
        let others = system.others()?;
        let tolerated = received * TOLERANCE / 1000 + 64;
        if carried + tolerated < received || others > tolerated {
            bail!(Astray(format!(
                "the kernel carried {} of {received} packets: the system has counted {carried}",
                received.saturating_sub(carried).max(others)
            )));
        }
        self.checked = true;
        Ok(())
    }
}
