//! What the counts were, on what they depend, and whether they still are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How much more, or less, than before is worth a word.
pub(crate) const TOLERANCE: f64 = 0.05;

/// What counts depend on beside the code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    pub(crate) rustc: String,
    pub(crate) target: String,
    /// Instruction sets that the program is compiled for, beyond the least.
    pub(crate) compiled_for: String,
    /// Those that functions chosen at run time may use, as valgrind shows the processor.
    pub(crate) processor: String,
    /// It chooses how memory is copied.
    pub(crate) libc: String,
    pub(crate) valgrind: String,
}

/// A file of counts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) build: Build,
    /// By case: instructions a packet.
    pub(crate) instructions: BTreeMap<String, f64>,
}

/// How a case has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    /// Not in the baseline.
    New,
    Same(f64),
    Worse(f64),
    Better(f64),
}

/// Compares instructions a packet.
pub(crate) fn change(now: f64, before: Option<f64>) -> Change {
    let Some(before) = before.filter(|b| *b > 0.0) else {
        return Change::New;
    };
    let change = now / before - 1.0;
    if change > TOLERANCE {
        Change::Worse(change)
    } else if change < -TOLERANCE {
        Change::Better(change)
    } else {
        Change::Same(change)
    }
}

impl Build {
    /// One line for each thing that differs.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let pairs = [
            ("rustc", &self.rustc, &other.rustc),
            ("target", &self.target, &other.target),
            ("compiled for", &self.compiled_for, &other.compiled_for),
            ("processor", &self.processor, &other.processor),
            ("libc", &self.libc, &other.libc),
            ("valgrind", &self.valgrind, &other.valgrind),
        ];
        pairs
            .into_iter()
            .filter(|(_, now, before)| now != before)
            .map(|(what, now, before)| format!("{what}: {now}, in the baseline {before}"))
            .collect()
    }
}

/// What the comparison says.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) text: String,
    pub(crate) failed: bool,
}

impl Counts {
    /// Reads a file; errors name it.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Writes a file, one case a line; errors name it.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n")
            .map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    /// Compares with a baseline, of which `all` cases were counted or only some.
    pub(crate) fn judge(&self, baseline: &Self, all: bool) -> Judgement {
        let (mut worse, mut better) = (Vec::new(), 0);
        for (name, now) in &self.instructions {
            let before = baseline.instructions.get(name).copied();
            match change(*now, before) {
                Change::Worse(by) => worse.push(format!(
                    "  {name}: {now:.1} instructions a packet, in the baseline {:.1}: {:+.1} %",
                    before.unwrap_or_default(),
                    by * 100.0
                )),
                Change::New => worse.push(format!("  {name}: {now:.1}, not in the baseline")),
                Change::Better(_) => better += 1,
                Change::Same(_) => {}
            }
        }
        if all {
            let gone = baseline.instructions.keys();
            let gone = gone.filter(|name| !self.instructions.contains_key(*name));
            worse.extend(gone.map(|name| format!("  {name}: only in the baseline")));
        }
        let differences = self.build.differences(&baseline.build);
        let text = sentences(&worse, better, &differences);
        Judgement {
            text,
            failed: !worse.is_empty() && differences.is_empty(),
        }
    }
}

fn sentences(worse: &[String], better: usize, differences: &[String]) -> String {
    let mut text = String::new();
    if !worse.is_empty() {
        let _ = writeln!(
            text,
            "Instruction counts are over the baseline by more than {:.0} %, or not of the same cases:\n{}\n\
             Make it as cheap as it was. If it is worth its price, accept it and commit the file that changes: \
             ./dev bench counts --accept",
            TOLERANCE * 100.0,
            worse.join("\n")
        );
    }
    if better > 0 {
        let _ = writeln!(
            text,
            "Cases that take over {:.0} % less than the baseline says: {better}. Renew it, so that this is kept: \
             ./dev bench counts --accept",
            TOLERANCE * 100.0
        );
    }
    if !differences.is_empty() {
        let _ = writeln!(
            text,
            "The baseline was counted elsewhere, so nothing fails here:\n  {}",
            differences.join("\n  ")
        );
    }
    if worse.is_empty() && better == 0 {
        let _ = writeln!(
            text,
            "All within {:.0} % of the baseline.",
            TOLERANCE * 100.0
        );
    }
    text
}
