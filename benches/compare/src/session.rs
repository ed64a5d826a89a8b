//! All systems at one point, taking turns.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::cpu;
use crate::measure::{Astray, Cost, Subject, is_limit};
use crate::plan::{Case, Point, Source};
use crate::report::{Row, median};
use crate::systems::{Kind, Setup};

/// Packets a second that are no load.
const FEW: u64 = 2_000;
/// How often a round trip's packet goes through the node.
const PASSES: f64 = 2.0;
/// A rate that every system carries, as a part of the slowest one's, where NDR is not searched.
const MODEST: f64 = 0.6;

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    /// Measurements of the highest rate.
    pub(crate) repeats: u32,
    /// Searches for NDR, and measurements of processor time and round trips.
    pub(crate) rounds: u32,
    /// Whether NDR is searched.
    pub(crate) search: bool,
    /// How long each measurement takes.
    pub(crate) time: Duration,
}

/// Processors that others may use without a word.
pub(crate) const BUSY: f64 = 0.1;

/// What others use of the machine while all systems are stopped: processors.
pub(crate) fn look_around() -> anyhow::Result<f64> {
    let time = Duration::from_millis(300);
    let (busy, ()) = cpu::watched(time, || Ok(()))?;
    if busy > BUSY {
        eprintln!("  something else uses {busy:.1} processors: these figures are worth little");
    }
    Ok(busy)
}

/// A system's row, and the system if it runs.
type Entrant = (Row, Option<Subject>);

pub(crate) struct Session<'a> {
    point: &'a Point,
    effort: &'a Effort,
    entrants: Vec<Entrant>,
    generator: Subject,
}

impl<'a> Session<'a> {
    /// Starts them all; who does not start has a row that says why.
    pub(crate) fn start(
        kinds: &[Kind],
        point: &'a Point,
        effort: &'a Effort,
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        let generator = Subject::nothing(point, setup)?;
        let mut entrants = Vec::new();
        for &kind in kinds {
            if viaduct_pktgen::is_interrupted() {
                bail!("interrupted");
            }
            let mut row = Row::new(kind, point);
            let subject = Subject::start(kind, point, setup).map_err(|e| {
                let reason = format!("not measured: {e:#}");
                eprintln!("  {}: {reason}", kind.name());
                row.fails_all(&reason);
            });
            entrants.push((row, subject.ok()));
        }
        Ok(Self {
            point,
            effort,
            entrants,
            generator,
        })
    }

    /// Measures; the rows.
    pub(crate) fn run(mut self) -> anyhow::Result<Vec<Row>> {
        self.look_around()?;
        self.rates()?;
        self.searches()?;
        self.costs()?;
        self.round_trips()?;
        Ok(self.entrants.into_iter().map(|(row, _)| row).collect())
    }

    /// Has every system measured once in each of some rounds. A failure is noted, and the others go on.
    fn rounds(
        &mut self,
        count: u32,
        what: &'static str,
        mut measure: impl FnMut(&mut Row, &mut Subject) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for _ in 0..count {
            for (row, subject) in &mut self.entrants {
                let Some(subject) = subject else { continue };
                let measured = measure(row, subject);
                if viaduct_pktgen::is_interrupted() {
                    bail!("interrupted");
                }
                if let Err(e) = measured {
                    row.astray |= e.is::<Astray>();
                    row.fails(what, &format!("{e:#}"));
                }
            }
        }
        Ok(())
    }

    /// Notes what others use of the machine.
    fn look_around(&mut self) -> anyhow::Result<()> {
        let busy = look_around()?;
        for (row, _) in &mut self.entrants {
            row.busy_before = Some(busy);
        }
        Ok(())
    }

    fn rates(&mut self) -> anyhow::Result<()> {
        let time = self.effort.time;
        self.rounds(self.effort.repeats, "packets_per_s", |row, subject| {
            let rate = subject.rate(time)?;
            row.rates.push(rate.received);
            row.sent.push(rate.sent);
            Ok(())
        })?;
        let alone = self.generator.rate(time);
        if viaduct_pktgen::is_interrupted() {
            bail!("interrupted");
        }
        let Ok(limit) = alone.map(|rate| rate.received) else {
            return Ok(());
        };
        for (row, _) in &mut self.entrants {
            row.generator_rate = Some(limit);
            row.generator_limited = row.rate().map(|rate| is_limit(rate, limit));
        }
        Ok(())
    }

    fn searches(&mut self) -> anyhow::Result<()> {
        if !self.effort.search {
            self.skip("ndr_packets_per_s", "not searched in a short run");
            return Ok(());
        }
        let trial = self.effort.time * 2;
        self.rounds(self.effort.rounds, "ndr_packets_per_s", |row, subject| {
            let most = row.rate().context("its highest rate is not known")? * 1.2;
            let found = subject.ndr(most, trial)?;
            row.ndrs
                .push(found.rate.context("packets are lost at any rate")?);
            row.ndr_generator_limited |= found.generator_limited;
            Ok(())
        })
    }

    /// The rate at which processor time is compared: the kernel's NDR, or a modest one.
    fn common_rate(&self) -> Option<f64> {
        let kernel = self
            .entrants
            .iter()
            .find(|(row, _)| row.kind == Kind::Kernel);
        if let Some(ndr) = kernel.and_then(|(row, _)| median(&row.ndrs)) {
            return Some(ndr);
        }
        let rates = self.entrants.iter().filter_map(|(row, _)| row.rate());
        rates.reduce(f64::min).map(|least| least * MODEST)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate"
    )]
    fn costs(&mut self) -> anyhow::Result<()> {
        const WHAT: &str = "cpu_ns_per_packet";
        if self.point.source == Source::Frames {
            self.skip(
                WHAT,
                "a generator of frames is always busy, so that its own time cannot be told from others'; see source skb",
            );
            return Ok(());
        }
        let Some(rate) = self
            .common_rate()
            .map(|rate| rate as u64)
            .filter(|r| *r > 0)
        else {
            self.skip(WHAT, "no rate that all systems carry is known");
            return Ok(());
        };
        let busy = self.entrants.iter().find_map(|(row, _)| row.busy_before);
        if let Some(busy) = busy.filter(|busy| *busy > BUSY) {
            let reason =
                format!("something else uses {busy:.1} processors, which would be counted");
            self.skip(WHAT, &reason);
            return Ok(());
        }
        let time = self.effort.time * 2;
        let mut own = Vec::new();
        for _ in 0..self.effort.rounds {
            let cost = self.generator.cost(rate, time);
            match cost {
                Ok(cost) => own.push(cost.per_packet()),
                Err(e) => {
                    self.skip(WHAT, &format!("the generator alone: {e:#}"));
                    return Ok(());
                }
            }
        }
        let own = median(&own).context("no round")?;
        self.rounds(self.effort.rounds, WHAT, |row, subject| {
            let cost: Cost = subject.cost(rate, time)?;
            row.costs.push(cost.per_packet() - own);
            row.cost_rates.push(cost.rate);
            row.generator_cost = Some(own);
            Ok(())
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate"
    )]
    fn round_trips(&mut self) -> anyhow::Result<()> {
        let elsewhere = match (self.point.case, self.point.source) {
            (Case::Decap, _) => Some("a round trip goes both ways: see encap"),
            (_, Source::Frames) => Some("round trips begin at a pod: see source skb"),
            (Case::Encap, Source::Skb) => None,
        };
        if let Some(reason) = elsewhere {
            self.skip("rtt_us", reason);
            self.skip("rtt_half_us", reason);
            return Ok(());
        }
        let time = self.effort.time * 2;
        self.rounds(self.effort.rounds, "rtt_us", |row, subject| {
            row.trips.push(subject.round_trip(FEW, time)?);
            Ok(())
        })?;
        if !self.effort.search {
            self.skip(
                "rtt_half_us",
                "needs NDR, which is not searched in a short run",
            );
            return Ok(());
        }
        self.rounds(self.effort.rounds, "rtt_half_us", |row, subject| {
            let ndr = median(&row.ndrs).context("its NDR is not known")?;
            row.half_trips
                .push(subject.round_trip((ndr / PASSES / 2.0) as u64, time)?);
            Ok(())
        })
    }

    fn skip(&mut self, what: &'static str, reason: &str) {
        for (row, subject) in &mut self.entrants {
            if subject.is_some() {
                row.fails(what, reason);
            }
        }
    }
}
