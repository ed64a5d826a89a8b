//! Rows, and what is made of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::plan::Point;
use crate::systems::Kind;

/// One system at one point.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) point: Point,
    /// Packets a second, by repeat.
    pub(crate) rates: Vec<f64>,
    /// Why something was not measured, by its name in the report.
    pub(crate) reasons: BTreeMap<&'static str, String>,
}

impl Row {
    pub(crate) fn new(kind: Kind, point: &Point) -> Self {
        Self {
            kind,
            point: *point,
            rates: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }

    pub(crate) fn fails(&mut self, what: &'static str, reason: &str) {
        self.reasons
            .entry(what)
            .or_insert_with(|| reason.to_owned());
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        median(&self.rates)
    }
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let _ = write!(
            text,
            "{:<60} {:<10}",
            row.point.to_string(),
            row.kind.name()
        );
        match row.rate() {
            Some(rate) => {
                let least = row.rates.iter().copied().fold(f64::MAX, f64::min);
                let most = row.rates.iter().copied().fold(0.0, f64::max);
                let _ = writeln!(
                    text,
                    " {:.3} M/s ({:.3} to {:.3})",
                    rate * 1e-6,
                    least * 1e-6,
                    most * 1e-6
                );
            }
            None => {
                let _ = writeln!(text, " - {:?}", row.reasons);
            }
        }
    }
    text
}
