//! Side-by-side measurements: Viaduct, the kernel's VXLAN device, Open vSwitch, and three ceilings: with frames of a
//! generator through one node, and between sockets of pods on two nodes.
//!
//! Each system has namespaces of its own of one shape, and the same generator; they take turns, and whoever does not
//! have its turn is stopped.
#![forbid(unsafe_code)]

mod bed;
mod check;
mod cpu;
mod host;
mod machine;
mod measure;
mod node;
mod page;
mod plan;
mod report;
mod session;
mod sockets;
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
use sockets::Measure;
use systems::{Kind, Setup, Variant};
use viaduct_pktgen::Size;

/// The parts of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Frames of a generator through one node
    Frames,
    /// Sockets of pods on two nodes
    Sockets,
}

impl Part {
    const ALL: [Self; 2] = [Self::Frames, Self::Sockets];
}

/// Measures data planes side by side, in network namespaces of this machine. Lists have commas in
/// between.
#[derive(clap::Parser, Debug)]
pub struct Options {
    /// The systems to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    systems: Vec<Kind>,
    /// This router again, with TOML that is put into its configuration, as hooks='pods.attach = "tc"': a table is put into
    /// each entry of a list. May be given several times
    #[arg(long = "variant", value_name = "NAME=TOML")]
    variants: Vec<Variant>,
    /// What is measured: frames through one node, sockets of pods on two nodes
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// What is measured between sockets [default: all; in a short run the most telling ones]
    #[arg(long, value_enum, value_delimiter = ',')]
    measures: Vec<Measure>,
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
    /// In four minutes: the base points only, three repeats, no search for NDR; the most telling measures of sockets
    #[arg(long)]
    short: bool,
    /// How often the highest rate, and each measure of sockets, is measured: the median counts. [default: 7, in a short run 3]
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
    /// The systems, with the variants behind them.
    fn kinds(&self) -> anyhow::Result<Vec<Kind>> {
        let mut kinds = self.systems.clone();
        for variant in &self.variants {
            // There are few of them, and they are needed until the end.
            let variant: &'static Variant = Box::leak(Box::new(variant.clone()));
            let name = Kind::Variant(variant).name();
            ensure!(
                kinds.iter().all(|kind| kind.name() != name),
                "two systems are called {name}"
            );
            kinds.push(Kind::Variant(variant));
        }
        Ok(kinds)
    }

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

    fn repeats(&self) -> u32 {
        self.repeats.unwrap_or(if self.short { 3 } else { 7 })
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// In the order of reports: cold transfers come first.
    fn measures(&self) -> Vec<Measure> {
        let wanted = match (&self.measures[..], self.short) {
            ([], true) => &Measure::SHORT[..],
            ([], false) => &Measure::ALL[..],
            (wanted, _) => wanted,
        };
        let all = Measure::ALL.iter().copied();
        all.filter(|measure| wanted.contains(measure)).collect()
    }

    fn effort(&self, point: &Point) -> Effort {
        let rounds = if point.is_base() {
            self.rounds.unwrap_or(3)
        } else {
            1
        };
        Effort {
            repeats: self.repeats(),
            rounds,
            search: !self.short && !self.no_search,
            time: self.time(),
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
    let kinds = options.kinds()?;
    let mut report = Report {
        machine: machine::describe(&options.viaduct),
        rows: Vec::new(),
        pods: Vec::new(),
    };
    let complete = match report.measure(options, &kinds) {
        Ok(()) => true,
        Err(_) if viaduct_pktgen::is_interrupted() => {
            report.write(options, false)?;
            false
        }
        Err(e) => return Err(e),
    };
    print!(
        "{}{}",
        report::table(&report.rows),
        sockets::table(&report.pods)
    );
    println!(
        "\nthe report: {}, {}",
        options.output.join("report.json").display(),
        options.output.join("report.html").display()
    );
    ensure!(complete, "interrupted: the report has what was done before");
    let astray = report.astray();
    ensure!(
        astray.is_empty(),
        "packets did not take the path that is measured: {}",
        astray.join("; ")
    );
    Ok(())
}

/// What is known so far.
struct Report {
    machine: serde_json::Value,
    rows: Vec<Row>,
    pods: Vec<sockets::Row>,
}

impl Report {
    fn measure(&mut self, options: &Options, kinds: &[Kind]) -> anyhow::Result<()> {
        if options.parts.contains(&Part::Frames) {
            self.measure_frames(options, kinds)?;
        }
        if options.parts.contains(&Part::Sockets) {
            let kinds = kinds.iter().copied();
            let plan = sockets::Plan {
                kinds: kinds.filter(|kind| kind.joins_sockets()).collect(),
                measures: &options.measures(),
                repeats: options.repeats(),
                time: options.time(),
                viaduct: &options.viaduct,
            };
            sockets::run(&plan, &mut self.pods).context("cannot measure sockets of pods")?;
        }
        self.write(options, true)
    }

    fn measure_frames(&mut self, options: &Options, kinds: &[Kind]) -> anyhow::Result<()> {
        let points = options.points();
        for (n, point) in (1..).zip(&points) {
            eprintln!("{n} of {}: {point}", points.len());
            let measured = side_by_side(options, kinds, point)
                .with_context(|| format!("cannot measure {point}"))?;
            self.rows.extend(measured);
            self.write(options, false)?;
        }
        Ok(())
    }

    /// What something else has carried.
    fn astray(&self) -> Vec<String> {
        let rows = self.rows.iter().filter(|row| row.astray);
        let rows = rows.map(|row| format!("{} {}", row.point, row.kind.name()));
        let pods = self.pods.iter().filter(|row| row.astray);
        let pods = pods.map(|row| format!("{} {}", row.measure.name(), row.kind.name()));
        rows.chain(pods).collect()
    }

    fn write(&self, options: &Options, complete: bool) -> anyhow::Result<()> {
        let folder = &options.output;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let report = report::to_json(&self.rows, &self.pods, &self.machine, complete);
        let page = page::page(&self.rows, &self.pods, &self.machine);
        for (name, text) in [
            ("report.json", format!("{report:#}\n")),
            ("report.html", page),
        ] {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

fn side_by_side(options: &Options, kinds: &[Kind], point: &Point) -> anyhow::Result<Vec<Row>> {
    let setup = Setup {
        viaduct: options.viaduct.clone(),
        cpu: options.cpu,
        generator_cpu: options.generator_cpu,
        source: point.source,
    };
    let kinds: Vec<_> = kinds
        .iter()
        .copied()
        .filter(|kind| kind.carries_frames() && (point.is_base() || !kind.is_variant()))
        .collect();
    let effort = options.effort(point);
    Session::start(&kinds, point, &effort, &setup)?.run()
}
