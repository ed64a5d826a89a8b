//! Rows of what applications see: TCP, UDP and round trips between sockets of pods on two nodes.
//!
//! As in the other part, all systems exist at the same time, take turns, and are stopped while they wait.

mod cold;
mod exchange;
mod hosts;
mod iperf;
mod measure;
mod pair;
mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use crate::measure::Astray;
use crate::session::look_around;
use crate::systems::Kind;

pub(crate) use measure::Measure;
pub(crate) use report::{Row, table, to_json};

use pair::Pair;

/// What is measured of which systems.
pub(crate) struct Plan<'a> {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) measures: &'a [Measure],
    pub(crate) repeats: u32,
    /// How long one measurement takes; TCP's throughput at least a second.
    pub(crate) time: Duration,
    /// The router's program.
    pub(crate) viaduct: &'a Path,
}

/// Measures, and adds the rows of each measure that is done. A system that does not run has rows that say why.
///
/// # Errors
/// When a signal has ended it, or the machine cannot be watched.
pub(crate) fn run(plan: &Plan<'_>, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut pairs = Vec::new();
    for &kind in &plan.kinds {
        stop_if_interrupted()?;
        let pair = Pair::start(kind, plan.repeats, plan.viaduct).map_err(|e| {
            let reason = format!("not measured: {e:#}");
            eprintln!("  {}: {reason}", kind.name());
            reason
        });
        pairs.push((kind, pair));
    }
    let busy = look_around()?;
    for (n, &measure) in (1..).zip(plan.measures) {
        eprintln!("pods, {n} of {}: {}", plan.measures.len(), measure.title());
        let mut these: Vec<_> = pairs
            .iter()
            .map(|(kind, _)| Row::new(measure, *kind, busy))
            .collect();
        for round in 0..plan.repeats {
            for ((_, pair), row) in pairs.iter_mut().zip(&mut these) {
                match pair {
                    Ok(pair) => once(row, pair, round, plan.time)?,
                    Err(reason) => row.fails(measure.value(), reason),
                }
            }
        }
        rows.extend(these);
    }
    Ok(())
}

/// One measurement of one system. A failure is noted.
fn once(row: &mut Row, pair: &mut Pair, round: u32, time: Duration) -> anyhow::Result<()> {
    if let Some(reason) = row.measure.is_not_for(pair.has_underlay()) {
        row.fails(row.measure.value(), reason);
        return Ok(());
    }
    let measured = pair.measured(row.measure, round, time);
    stop_if_interrupted()?;
    match measured {
        Ok(reading) => row.add(reading),
        Err(e) => {
            row.astray |= e.is::<Astray>();
            row.fails(row.measure.value(), &format!("{e:#}"));
        }
    }
    Ok(())
}

fn stop_if_interrupted() -> anyhow::Result<()> {
    if viaduct_pktgen::is_interrupted() {
        bail!("interrupted");
    }
    Ok(())
}
