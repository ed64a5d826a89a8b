//! Instructions a packet, below callgrind: the pipeline and the hand-off, against a committed baseline.
//!
//! `counts [--accept] [PART OF A NAME]`. Each case runs in a process of its own; only what is within one
//! function is counted. Hash tables are seeded at random, so that a key may lie one step further: a case that
//! seems dearer is counted again, and the least holds, as in the baseline.
#![allow(missing_docs, reason = "a program")]

mod baseline;
mod build;
mod callgrind;
mod cases;
#[path = "../lane/mod.rs"]
mod lane;
#[path = "../ring/mod.rs"]
mod ring;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use baseline::{Change, Counts, change};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts.json");
/// How often a case is counted at most, and each for a new baseline.
const TRIES: usize = 3;

/// What the words of the command line ask for.
#[derive(Default)]
struct Asked {
    accept: bool,
    part: String,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--case", name] => return ExitCode::from(u8::from(!cases::run(name))),
        ["--processor"] => {
            println!("{}", build::processor());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if cfg!(debug_assertions) {
        println!("counts are of the release profile: ./dev bench counts");
        return ExitCode::SUCCESS;
    }
    match asked(&words).and_then(|asked| counts(&asked)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::FAILURE
        }
    }
}

fn asked(words: &[String]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    for word in words {
        match word.as_str() {
            "--bench" => {}
            "--accept" => asked.accept = true,
            part if !part.starts_with('-') && asked.part.is_empty() => {
                part.clone_into(&mut asked.part);
            }
            other => {
                return Err(format!(
                    "what is {other}? counts [--accept] [PART OF A NAME]"
                ));
            }
        }
    }
    Ok(asked)
}

/// Counts, compares, says so. False when there is something to be done.
fn counts(asked: &Asked) -> Result<bool, String> {
    let mut names = cases::names();
    names.retain(|name| name.contains(&asked.part));
    if names.is_empty() {
        return Err(format!(
            "no case has {} in its name; there are:\n  {}",
            asked.part,
            cases::names().join("\n  ")
        ));
    }
    let path = Path::new(BASELINE);
    let before = if path.exists() || !asked.accept {
        Counts::read(path).map_err(|e| format!("{e}; ./dev bench counts --accept writes it"))?
    } else {
        Counts::default()
    };
    let build = build::here()?;
    let instructions = count_all(&names, |name, now| {
        asked.accept
            || matches!(
                change(now, before.instructions.get(name).copied()),
                Change::Worse(_)
            )
    })?;
    let now = Counts {
        build,
        instructions,
    };
    print(&names, &now, &before);
    if asked.accept {
        return accept(now, before, asked.part.is_empty(), path);
    }
    let judgement = now.judge(&before, asked.part.is_empty());
    print!("{}", judgement.text);
    Ok(!judgement.failed)
}

/// Instructions a packet of each, as many at once as there are processors. `again` says of which one more
/// try is wanted.
fn count_all(
    names: &[String],
    again: impl Fn(&str, f64) -> bool + Sync,
) -> Result<BTreeMap<String, f64>, String> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Ok(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((number, name)) = names
                    .iter()
                    .enumerate()
                    .nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let count = least(name, number, &again);
                    let mut found = found.lock().expect("no thread has panicked");
                    match (count, found.as_mut()) {
                        (Ok(count), Ok(all)) => {
                            all.insert(name.clone(), count);
                        }
                        (Err(error), Ok(_)) => *found = Err(error),
                        (_, Err(_)) => return,
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread has panicked")
}

/// The least of some tries.
fn least(name: &str, number: usize, again: impl Fn(&str, f64) -> bool) -> Result<f64, String> {
    let mut least = callgrind::count(name, number)?;
    for _ in 1..TRIES {
        if !again(name, least) {
            break;
        }
        least = least.min(callgrind::count(name, number)?);
    }
    // A tenth is precise enough, and reads well.
    Ok((least * 10.0).round() / 10.0)
}

fn print(names: &[String], now: &Counts, before: &Counts) {
    println!("instructions a packet{:>37}{:>10}", "now", "baseline");
    for name in names {
        let count = now.instructions.get(name).copied().unwrap_or_default();
        let before = before.instructions.get(name).copied();
        let by = match change(count, before) {
            Change::New => "new".to_owned(),
            Change::Same(by) | Change::Worse(by) | Change::Better(by) => {
                format!("{:+.1} %", by * 100.0)
            }
        };
        println!(
            "  {name:<46}{count:>10.1}{:>10.1}{by:>9}",
            before.unwrap_or_default()
        );
    }
}

/// Writes what was counted as the new baseline; what was not keeps its figure, if that is of the same build.
fn accept(now: Counts, before: Counts, all: bool, path: &Path) -> Result<bool, String> {
    let mut baseline = now;
    if !all {
        let differences = baseline.build.differences(&before.build);
        if !differences.is_empty() {
            return Err(format!(
                "the other cases' figures are of another build: accept all at once\n  {}",
                differences.join("\n  ")
            ));
        }
        let counted = std::mem::replace(&mut baseline.instructions, before.instructions);
        baseline.instructions.extend(counted);
    }
    baseline.write(path)?;
    println!("written: {}", path.display());
    Ok(true)
}
