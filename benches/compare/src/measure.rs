//! One system on its bed, and what is measured of it.

use std::time::Duration;

use anyhow::{bail, ensure};
use viaduct_pktgen::{Outcome, Pktgen};

use crate::bed::Bed;
use crate::plan::{Case, Point};
use crate::systems::{self, Kind, Setup, System};
use crate::traffic::{End, generator};

/// What is sent before a measurement, for caches and for whoever has slept.
const WARM_UP: Duration = Duration::from_millis(150);
/// Delivered packets that a system need not have counted: those on their way while it was asked, in 1,000.
const TOLERANCE: u64 = 10;

/// A system that is ready to be measured. It uses no processor until it is.
pub(crate) struct Subject {
    // In the order in which they end.
    pktgen: Option<Pktgen>,
    system: Box<dyn System>,
    bed: Bed,
    point: Point,
    cpu: usize,
}

impl Subject {
    pub(crate) fn start(
        kind: Kind,
        point: &Point,
        setup: &Setup,
        generator_cpu: usize,
    ) -> anyhow::Result<Self> {
        let bed = Bed::new(point.shape)?;
        let system = systems::start(kind, &bed, setup)?;
        let subject = Self {
            pktgen: None,
            system,
            bed,
            point: *point,
            cpu: generator_cpu,
        };
        subject.system.pause(true)?;
        Ok(subject)
    }

    /// Packets a second that come through when as many as possible are sent.
    pub(crate) fn rate(&mut self, duration: Duration) -> anyhow::Result<f64> {
        self.awake(|subject| {
            subject.send(None, WARM_UP)?;
            let before = subject.counts()?;
            let outcome = subject.send(None, duration)?;
            let received = outcome.counted.received;
            ensure!(received > 0, "nothing came through");
            subject.check_carrier(before, received)?;
            Ok(outcome.counted.received_rate())
        })
    }

    fn awake<R>(&mut self, work: impl FnOnce(&mut Self) -> anyhow::Result<R>) -> anyhow::Result<R> {
        self.system.pause(false)?;
        let result = work(self);
        self.system.pause(true)?;
        result
    }

    fn send(&mut self, rate: Option<u64>, duration: Duration) -> anyhow::Result<Outcome> {
        if self.pktgen.is_none() {
            let pktgen = generator(&self.bed, &self.point, End::Counted, self.cpu, false)?;
            self.pktgen = Some(pktgen);
        }
        let Some(pktgen) = &mut self.pktgen else {
            bail!("no generator")
        };
        let outcome = pktgen.run(rate, duration, |_| {})?;

        if outcome.interrupted {
            bail!("interrupted");
        }
        Ok(outcome)
    }

    fn counts(&mut self) -> anyhow::Result<Option<u64>> {
        self.system.others()?;
        self.system.carried(self.point.case)
    }

    /// Delivered packets must be the system's work, not somebody else's.
    fn check_carrier(&mut self, before: Option<u64>, received: u64) -> anyhow::Result<()> {
        let Some(before) = before else {
            return Ok(());
        };
        let after = self.system.carried(self.point.case)?.unwrap_or(0);
        let carried = after.saturating_sub(before);
        let others = self.system.others()?;
        let tolerated = received * TOLERANCE / 1000 + 64;
        ensure!(
            carried + tolerated >= received && others <= tolerated,
            "it carried {carried} of {received} packets that came through, and left {others} to the kernel"
        );
        Ok(())
    }

    pub(crate) const fn case(&self) -> Case {
        self.point.case
    }
}
