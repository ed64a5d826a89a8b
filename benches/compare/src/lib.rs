//! Side-by-side measurements: Viaduct, the kernel's VXLAN device, Open vSwitch, and two ceilings.
//!
//! Each system has namespaces of its own of one shape, and the same generator; they take turns, and whoever does not
//! have its turn is stopped.
#![forbid(unsafe_code)]

mod bed;
mod check;
mod cpu;
mod machine;
mod measure;
mod page;
mod plan;
mod report;
mod session;
mod systems;
mod traffic;
mod watchdog;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use plan::{Case, Dimension, Others, Point, Source};
use report::Row;
use session::{Effort, Session};
use systems::{Kind, Setup};
use viaduct_pktgen::Size;

/// Measures data planes side by side, in network namespaces of this machine. Lists have commas in
/// between.
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
    /// In what points may differ from the base: 64 bytes, one flow, one route, one pod
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Dimension::ALL)]
    vary: Vec<Dimension>,
    /// Bytes of frames, or imix, beside the base's
    #[arg(long, value_delimiter = ',', default_values = ["imix", "1400"])]
    sizes: Vec<Size>,
    /// Flows, beside one
    #[arg(long, value_delimiter = ',', default_values_t = [1000])]
    flows: Vec<u32>,
    /// Prefixes of other nodes, beside one; with as many flows as there are at most
    #[arg(long, value_delimiter = ',', default_values_t = [10_000])]
    routes: Vec<u32>,
    /// Pods, beside one; each with a flow
    #[arg(long, value_delimiter = ',', default_values_t = [16, 110])]
    pods: Vec<u32>,
    /// No search for NDR, which takes most of the time
    #[arg(long)]
    no_search: bool,
    /// The base points only, three repeats, no search for NDR
    #[arg(long)]
    short: bool,
    /// How often the highest rate is measured: the median counts. [default: 7, in a short run 3]
    #[arg(long)]
    repeats: Option<u32>,
    /// How often the rest is measured, at the base points; at others once. [default: 3]
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds that one measurement of the highest rate takes; of others, twice as many
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// The processor where systems forward that may choose
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The processor that sends
    #[arg(long, default_value_t = 1)]
    generator_cpu: usize,
    /// The router's program
    #[arg(long, default_value = "target/release/viaduct")]
    viaduct: PathBuf,
    /// Where the report goes
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

impl Options {
    fn points(&self) -> Vec<Point> {
        let others = Others {
            sizes: &self.sizes,
            flows: &self.flows,
            routes: &self.routes,
            pods: &self.pods,
        };
        let vary = if self.short {
            &[Dimension::Base][..]
        } else {
            &self.vary
        };
        let points = self.cases.iter().flat_map(|&case| {
            let vary = vary.iter();
            vary.flat_map(|&dimension| Point::along(case, dimension, &others))
                .collect::<Vec<_>>()
        });
        points
            .filter(|p| self.sources.contains(&p.source))
            .collect()
    }

    fn effort(&self, point: &Point) -> Effort {
        let repeats = self.repeats.unwrap_or(if self.short { 3 } else { 7 });
        let rounds = if point.is_base() {
            self.rounds.unwrap_or(3)
        } else {
            1
        };
        Effort {
            repeats,
            rounds,
            search: !self.short && !self.no_search,
            time: Duration::from_secs_f64(self.seconds),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (0.05..=60.0).contains(&self.seconds),
            "{} seconds: 0.05 to 60 are possible",
            self.seconds
        );
        ensure!(
            self.repeats != Some(0) && self.rounds != Some(0),
            "at least one repeat is needed"
        );
        Ok(())
    }
}

/// Measures, prints a table and writes the report.
///
/// A system that does not run has rows that say why. A signal ends it early, with the report of what is done.
///
/// # Errors
/// When no bed can be made, or the report cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    options.check()?;
    viaduct_pktgen::catch_signals().context("signals")?;
    let machine = machine::describe(&options.viaduct);
    let mut rows = Vec::new();
    let mut complete = true;
    let points = options.points();
    for (n, point) in (1..).zip(&points) {
        eprintln!("{n} of {}: {point}", points.len());
        match side_by_side(options, point) {
            Ok(measured) => rows.extend(measured),
            Err(_) if viaduct_pktgen::is_interrupted() => {
                complete = false;
                break;
            }
            Err(e) => return Err(e.context(format!("cannot measure {point}"))),
        }
        write(options, &rows, &machine, n == points.len())?;
    }
    print!("{}", report::table(&rows));
    println!(
        "\nthe report: {}, {}",
        options.output.join("report.json").display(),
        options.output.join("report.html").display()
    );
    ensure!(complete, "interrupted: the report has what was done before");
    Ok(())
}

fn write(
    options: &Options,
    rows: &[Row],
    machine: &serde_json::Value,
    complete: bool,
) -> anyhow::Result<()> {
    let folder = &options.output;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let report = report::to_json(rows, machine, complete);
    let page = page::page(rows, machine);
    for (name, text) in [
        ("report.json", format!("{report:#}\n")),
        ("report.html", page),
    ] {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn side_by_side(options: &Options, point: &Point) -> anyhow::Result<Vec<Row>> {
    let setup = Setup {
        viaduct: options.viaduct.clone(),
        cpu: options.cpu,
        generator_cpu: options.generator_cpu,
        source: point.source,
    };
    let kinds = options.systems.iter().copied();
    let kinds: Vec<_> = kinds
        .filter(|kind| point.is_base() || !kind.is_variant())
        .collect();
    let effort = options.effort(point);
    Session::start(&kinds, point, &effort, &setup)?.run()
}
