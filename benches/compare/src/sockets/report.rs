//! Rows of sockets, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::measure::{Beside, COST, Measure, Reading, Sum};
use crate::report::{ends, median, spread};
use crate::session::BUSY;
use crate::systems::Kind;

/// One measure of one system. Lists have an entry for each round.
pub(crate) struct Row {
    pub(crate) measure: Measure,
    pub(crate) kind: Kind,
    busy_before: f64,
    values: Vec<f64>,
    beside: BTreeMap<&'static str, Vec<f64>>,
    /// Why something was not measured, or not as often as it should.
    reasons: BTreeMap<&'static str, String>,
    /// Something else carried its packets.
    pub(crate) astray: bool,
}

impl Row {
    /// `busy_before`: processors that others used while all systems were stopped.
    pub(crate) fn new(measure: Measure, kind: Kind, busy_before: f64) -> Self {
        let mut row = Self {
            measure,
            kind,
            busy_before,
            values: Vec::new(),
            beside: BTreeMap::new(),
            reasons: BTreeMap::new(),
            astray: false,
        };
        if row.costs() && busy_before > BUSY {
            let reason =
                format!("something else uses {busy_before:.1} processors, which would be counted");
            row.fails(COST.name, &reason);
        }
        row
    }

    fn costs(&self) -> bool {
        let mut beside = self.measure.beside().iter();
        beside.any(|beside| beside.name == COST.name)
    }

    /// Notes why something is not measured; the first reason stays.
    pub(crate) fn fails(&mut self, what: &'static str, reason: &str) {
        self.reasons
            .entry(what)
            .or_insert_with(|| reason.to_owned());
    }

    pub(crate) fn add(&mut self, reading: Reading) {
        self.values.push(reading.value);
        for (name, value) in reading.beside {
            self.beside.entry(name).or_default().push(value);
        }
    }

    pub(crate) fn value(&self) -> Option<f64> {
        median(&self.values)
    }

    fn beside(&self, beside: &Beside) -> Option<f64> {
        if self.reasons.contains_key(beside.name) {
            return None;
        }
        let values = self.beside.get(beside.name)?;
        match beside.sum {
            Sum::Median => median(values),
            Sum::Total => Some(values.iter().sum()),
        }
    }

    /// Why its value is not known.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reasons.get(self.measure.value()).map(String::as_str)
    }

    fn to_json(&self, rows: &[Self]) -> Value {
        let mut row = json!({
            "measure": self.measure.name(),
            "what": self.measure.title(),
            "system": self.kind.name(),
            "repeats": self.values.len(),
            "spread": spread(&self.values),
            "relative_to": self.relative(rows),
            "processors_busy_before": self.busy_before,
            "reasons": self.reasons,
        });
        row[self.measure.value()] = self.value().into();
        for beside in self.measure.beside() {
            row[beside.name] = self.beside(beside).into();
        }
        row
    }

    /// Its value by that of each other system.
    fn relative(&self, rows: &[Self]) -> BTreeMap<&'static str, f64> {
        let others = rows.iter();
        let others = others.filter(|o| o.measure == self.measure && o.kind != self.kind);
        others
            .filter_map(|other| Some((other.kind.name(), self.value()? / other.value()?)))
            .collect()
    }
}

/// For the report.
pub(crate) fn to_json(rows: &[Row]) -> Value {
    rows.iter().map(|row| row.to_json(rows)).collect()
}

/// For people: a block for each measure.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut last = None;
    for row in rows {
        let (unit, _) = row.measure.unit();
        if last != Some(row.measure) {
            last = Some(row.measure);
            let _ = write!(
                text,
                "\npods: {}\n  {unit:<13} {:>9} {:>19} {:>8} {:>9}",
                row.measure.title(),
                "median",
                "spread",
                "to none",
                "to kernel"
            );
            for beside in row.measure.beside() {
                let _ = write!(text, " {:>10}", beside.head);
            }
            text.push('\n');
        }
        let _ = writeln!(text, "  {}", line(row, rows));
    }
    text
}

fn line(row: &Row, rows: &[Row]) -> String {
    let (_, decimals) = row.measure.unit();
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let relative = row.relative(rows);
    let to = |kind: Kind| number(relative.get(kind.name()).copied(), 2);
    let spread = ends(&row.values).map_or("-".to_owned(), |(least, most)| {
        format!("{least:.decimals$} to {most:.decimals$}")
    });
    let mut line = format!(
        "{:<13} {:>9} {spread:>19} {:>8} {:>9}",
        row.kind.name(),
        number(row.value(), decimals),
        to(Kind::None),
        to(Kind::Kernel)
    );
    for beside in row.measure.beside() {
        let _ = write!(line, " {:>10}", number(row.beside(beside), beside.decimals));
    }
    if let Some(reason) = row.reason() {
        let _ = write!(line, "  {reason}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::measure::{P99, SENT_AGAIN};
    use super::*;

    fn row(kind: Kind, busy: f64, readings: &[(f64, f64, f64)]) -> Row {
        let mut row = Row::new(Measure::Tcp1, kind, busy);
        for &(value, cost, again) in readings {
            let beside = vec![(COST.name, cost), (SENT_AGAIN.name, again)];
            row.add(Reading { value, beside });
        }
        row
    }

    #[test]
    fn medians_totals_and_ratios() {
        let rows = [
            row(Kind::None, 0.0, &[(20.0, 0.5, 0.0)]),
            row(
                Kind::Kernel,
                0.0,
                &[(9.0, 1.0, 2.0), (10.0, 1.2, 3.0), (12.0, 1.1, 0.0)],
            ),
        ];
        let json = to_json(&rows);
        let kernel = &json[1];
        assert_eq!(kernel["gbit_per_s"], 10.0);
        assert_eq!(kernel["spread"], json!({"least": 9.0, "most": 12.0}));
        assert_eq!(kernel["cpu_ns_per_byte"], 1.1);
        assert_eq!(kernel["segments_sent_again"], 5.0);
        assert_eq!(kernel["relative_to"], json!({"none": 0.5}));
        let table = table(&rows);
        assert!(
            table.contains("TCP, 1 flow, underlay with tso and gso\n  Gbit/s "),
            "{table}"
        );
        assert!(
            table.contains("10.00       9.00 to 12.00     0.50         -      1.100          5"),
            "{table}"
        );
    }

    #[test]
    fn processor_time_of_a_busy_machine_is_not_told() {
        let json = to_json(&[row(Kind::Kernel, 1.5, &[(9.0, 1.0, 0.0)])]);
        assert_eq!(json[0]["gbit_per_s"], 9.0);
        assert!(json[0]["cpu_ns_per_byte"].is_null());
        let reason = json[0]["reasons"]["cpu_ns_per_byte"].as_str();
        assert!(reason.is_some_and(|reason| reason.contains("1.5 processors")));
    }

    #[test]
    fn what_was_not_measured_has_a_reason() {
        let mut row = Row::new(Measure::Requests, Kind::Kernel, 0.0);
        row.fails(Measure::Requests.value(), "no route");
        row.fails(Measure::Requests.value(), "a later reason");
        assert!(table(&[]).is_empty());
        let rows = [row];
        assert!(table(&rows).contains("no route"));
        let json = to_json(&rows);
        assert!(json[0]["us_p50"].is_null() && json[0][P99.name].is_null());
        assert_eq!(json[0]["reasons"]["us_p50"], "no route");
    }
}
