//! Side-by-side measurements: Viaduct, the kernel's VXLAN device, Open vSwitch, and two ceilings.
#![forbid(unsafe_code)]

mod bed;
mod measure;
mod plan;
mod report;
mod systems;
mod traffic;
mod watchdog;

use std::path::PathBuf;
use std::time::Duration;

use measure::Subject;
use plan::{Case, Point, Source};
use report::Row;
use systems::{Kind, Setup};

/// Measures data planes side by side, in network namespaces of this machine.
#[derive(clap::Parser, Debug)]
pub struct Options {
    /// The systems to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    systems: Vec<Kind>,
    /// Which ways through the node
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// What arrives at the node
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Source::ALL)]
    sources: Vec<Source>,
    /// The base points only, three repeats, no search for NDR
    #[arg(long)]
    short: bool,
    /// How often each is measured; the median counts
    #[arg(long)]
    repeats: Option<u32>,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The router's program
    #[arg(long, default_value = "target/release/viaduct")]
    viaduct: PathBuf,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

/// Measures, prints a table and writes the report.
///
/// # Errors
/// When no bed can be made, or the report cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let repeats = options.repeats.unwrap_or(if options.short { 3 } else { 7 });
    for &case in &options.cases {
        let points = if options.short {
            Point::bases(case)
        } else {
            Point::all(case)
        };
        let points = points
            .into_iter()
            .filter(|p| options.sources.contains(&p.source));
        for point in points {
            eprintln!("measuring: {point}");
            rows.extend(side_by_side(options, &point, repeats));
        }
    }
    print!("{}", report::table(&rows));
    Ok(())
}

/// All systems at one point, taking turns.
fn side_by_side(options: &Options, point: &Point, repeats: u32) -> Vec<Row> {
    let setup = Setup {
        viaduct: options.viaduct.clone(),
        cpu: 0,
        source: point.source,
    };
    let start = |&kind: &Kind| {
        let mut row = Row::new(kind, point);
        match Subject::start(kind, point, &setup, 1) {
            Ok(subject) => (row, Some(subject)),
            Err(e) => {
                row.fails("packets_per_s", &format!("it does not start: {e:#}"));
                (row, None)
            }
        }
    };
    let mut subjects: Vec<_> = options.systems.iter().map(start).collect();
    let duration = Duration::from_secs_f64(options.seconds);
    for _ in 0..repeats {
        for (row, subject) in &mut subjects {
            let Some(subject) = subject else { continue };
            match subject.rate(duration) {
                Ok(rate) => row.rates.push(rate),
                Err(e) => row.fails("packets_per_s", &format!("{e:#}")),
            }
        }
    }
    subjects.into_iter().map(|(row, _)| row).collect()
}
