//! Rows, and what is made of them: JSON, and a table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use viaduct_pktgen::{Latency, Size};

use crate::plan::Point;
use crate::sockets;
use crate::systems::Kind;

/// What a row has that may not be measured.
pub(crate) const MEASURES: [&str; 5] = [
    "packets_per_s",
    "ndr_packets_per_s",
    "cpu_ns_per_packet",
    "rtt_us",
    "rtt_half_us",
];

/// One system at one point. Lists have an entry for each repeat.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) point: Point,
    /// Processors that others used before, while all systems were stopped.
    pub(crate) busy_before: Option<f64>,
    /// Packets a second that came through, flat out.
    pub(crate) rates: Vec<f64>,
    /// Packets a second that were sent for that.
    pub(crate) sent: Vec<f64>,
    /// What the generator delivers with nothing in its way.
    pub(crate) generator_rate: Option<f64>,
    pub(crate) generator_limited: Option<bool>,
    pub(crate) ndrs: Vec<f64>,
    pub(crate) ndr_generator_limited: bool,
    /// Nanoseconds a packet, without the generator's.
    pub(crate) costs: Vec<f64>,
    /// The rates that came through meanwhile.
    pub(crate) cost_rates: Vec<f64>,
    pub(crate) generator_cost: Option<f64>,
    pub(crate) trips: Vec<Latency>,
    pub(crate) half_trips: Vec<Latency>,
    /// Why something was not measured, or not as often as it should.
    pub(crate) reasons: BTreeMap<&'static str, String>,
    /// Something else carried its packets.
    pub(crate) astray: bool,
}

impl Row {
    pub(crate) fn new(kind: Kind, point: &Point) -> Self {
        Self {
            kind,
            point: *point,
            busy_before: None,
            rates: Vec::new(),
            sent: Vec::new(),
            generator_rate: None,
            generator_limited: None,
            ndrs: Vec::new(),
            ndr_generator_limited: false,
            costs: Vec::new(),
            cost_rates: Vec::new(),
            generator_cost: None,
            trips: Vec::new(),
            half_trips: Vec::new(),
            reasons: BTreeMap::new(),
            astray: false,
        }
    }

    /// Notes why something is not measured; the first reason stays.
    pub(crate) fn fails(&mut self, what: &'static str, reason: &str) {
        self.reasons
            .entry(what)
            .or_insert_with(|| reason.to_owned());
    }

    /// Nothing is measured.
    pub(crate) fn fails_all(&mut self, reason: &str) {
        for what in MEASURES {
            self.fails(what, reason);
        }
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        median(&self.rates)
    }

    pub(crate) fn ndr(&self) -> Option<f64> {
        median(&self.ndrs)
    }

    pub(crate) fn cost(&self) -> Option<f64> {
        median(&self.costs)
    }

    pub(crate) fn to_json(&self) -> Value {
        let size = match self.point.size {
            Size::Fixed(bytes) => bytes.into(),
            Size::Imix => Value::from("imix"),
        };
        let mut row = point(&self.point);
        row.extend([
            ("system".to_owned(), self.kind.name().into()),
            ("size".to_owned(), size),
            ("workers".to_owned(), self.kind.workers().into()),
            ("packets_per_s".to_owned(), self.rate().into()),
            (
                "offered_packets_per_s".to_owned(),
                median(&self.sent).into(),
            ),
            ("repeats".to_owned(), self.rates.len().into()),
            ("spread".to_owned(), spread(&self.rates)),
            (
                "generator_packets_per_s".to_owned(),
                self.generator_rate.into(),
            ),
            (
                "generator_limited".to_owned(),
                self.generator_limited.into(),
            ),
            ("ndr_packets_per_s".to_owned(), self.ndr().into()),
            ("ndr_spread".to_owned(), spread(&self.ndrs)),
            (
                "ndr_generator_limited".to_owned(),
                self.ndr_generator_limited.into(),
            ),
            ("cpu_ns_per_packet".to_owned(), self.cost().into()),
            ("cpu_spread".to_owned(), spread(&self.costs)),
            (
                "cpu_at_packets_per_s".to_owned(),
                median(&self.cost_rates).into(),
            ),
            (
                "generator_cpu_ns_per_packet".to_owned(),
                self.generator_cost.into(),
            ),
            ("rtt_us".to_owned(), percentiles(&self.trips)),
            ("rtt_half_us".to_owned(), percentiles(&self.half_trips)),
            ("processors_busy_before".to_owned(), self.busy_before.into()),
            ("reasons".to_owned(), json!(self.reasons)),
        ]);
        row.into()
    }
}

fn point(point: &Point) -> Map<String, Value> {
    let value = json!({
        "case": point.case.name(), "source": point.source.name(), "size": point.size.to_string(),
        "flows": point.flows, "routes": point.shape.routes, "pods": point.shape.pods,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Of some values, the one in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

pub(crate) fn ends(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().reduce(f64::max)?))
}

pub(crate) fn spread(values: &[f64]) -> Value {
    ends(values).map_or(
        Value::Null,
        |(least, most)| json!({"least": least, "most": most}),
    )
}

/// The median of each percentile.
pub(crate) fn trip(trips: &[Latency], which: fn(&Latency) -> f64) -> Option<f64> {
    median(&trips.iter().map(which).collect::<Vec<_>>())
}

fn percentiles(trips: &[Latency]) -> Value {
    if trips.is_empty() {
        return Value::Null;
    }
    json!({"p50": trip(trips, |t| t.p50), "p99": trip(trips, |t| t.p99), "p999": trip(trips, |t| t.p999)})
}

/// The whole report.
pub(crate) fn to_json(
    rows: &[Row],
    pods: &[sockets::Row],
    machine: &Value,
    complete: bool,
) -> Value {
    let ratios: Vec<_> = ratios(rows, Kind::Viaduct)
        .into_iter()
        .map(|(at, ratios)| {
            let mut value = point(&at);
            value.insert("viaduct_to".to_owned(), json!(ratios));
            Value::from(value)
        })
        .collect();
    json!({
        "machine": machine,
        "complete": complete,
        "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
        "ratios": ratios,
        "pods": sockets::to_json(pods),
    })
}

/// For people: a line for each system at each point, and ratios.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut last = None;
    for row in rows {
        if last != Some(row.point) {
            last = Some(row.point);
            let _ = writeln!(
                text,
                "\n{}\n  {:<13} {:>9} {:>17} {:>9} {:>8} {:>24} {:>24}",
                row.point,
                "M packets/s",
                "median",
                "spread",
                "NDR",
                "CPU ns",
                "rtt us 50/99/99.9 %",
                "at half of NDR"
            );
        }
        let _ = writeln!(text, "  {}", line(row));
    }
    let ratios = ratios(rows, Kind::Viaduct);
    if !ratios.is_empty() {
        text.push_str("\nviaduct's rate relative to others'\n");
    }
    for (point, ratios) in ratios {
        let all: Vec<_> = ratios
            .iter()
            .map(|(name, ratio)| format!("{name} {ratio:.2}"))
            .collect();
        let _ = writeln!(text, "  {:<58} {}", point.to_string(), all.join("  "));
    }
    text
}

fn line(row: &Row) -> String {
    let mega = |rate: Option<f64>| rate.map_or("-".to_owned(), |r| format!("{:.3}", r * 1e-6));
    let spread = ends(&row.rates).map_or("-".to_owned(), |(least, most)| {
        format!("{:.3} to {:.3}", least * 1e-6, most * 1e-6)
    });
    let trips = |trips: &[Latency]| {
        let one = |which| trip(trips, which).map_or("-".to_owned(), |us| format!("{us:.1}"));
        format!(
            "{} / {} / {}",
            one(|t| t.p50),
            one(|t| t.p99),
            one(|t| t.p999)
        )
    };
    let mut line = format!(
        "{:<13} {:>9} {:>17} {:>9} {:>8} {:>24} {:>24}",
        row.kind.name(),
        mega(row.rate()),
        spread,
        mega(row.ndr()),
        row.cost().map_or("-".to_owned(), |ns| format!("{ns:.0}")),
        trips(&row.trips),
        trips(&row.half_trips),
    );
    if row.generator_limited == Some(true) {
        line += "  (all that the generator delivers)";
    }
    if let (None, Some(reason)) = (row.rate(), row.reasons.get("packets_per_s")) {
        let _ = write!(line, "  {reason}");
    }
    line
}

/// Rates of each system relative to another's, at the same point.
fn ratios(rows: &[Row], of: Kind) -> Vec<(Point, BTreeMap<&'static str, f64>)> {
    let ours = rows.iter().filter(|row| row.kind == of);
    ours.filter_map(|row| {
        let rate = row.rate()?;
        let others = rows
            .iter()
            .filter(|other| other.point == row.point && other.kind != of);
        let ratios = others.filter_map(|other| Some((other.kind.name(), rate / other.rate()?)));
        Some((row.point, ratios.collect()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Case, Source};

    #[test]
    fn what_was_not_measured_has_a_reason() {
        let point = Point::base(Case::Encap, Source::Skb);
        let mut row = Row::new(Kind::Ovs, &point);
        row.fails_all("cannot run ovsdb-tool");
        let value = row.to_json();
        for what in MEASURES {
            assert!(value[what].is_null(), "{what}");
            assert_eq!(value["reasons"][what], "cannot run ovsdb-tool");
        }
        assert!(table(&[row]).contains("cannot run ovsdb-tool"));
    }

    #[test]
    fn medians_spreads_and_ratios() {
        let point = Point::base(Case::Decap, Source::Skb);
        let row = |kind, rates: &[f64]| {
            let mut row = Row::new(kind, &point);
            row.rates = rates.to_vec();
            row
        };
        let rows = [
            row(Kind::Kernel, &[3e5, 5e5, 4e5]),
            row(Kind::Viaduct, &[6e5]),
        ];
        let report = to_json(&rows, &[], &Value::Null, true);
        assert_eq!(report["rows"][0]["packets_per_s"], 4e5);
        assert_eq!(
            report["rows"][0]["spread"],
            json!({"least": 3e5, "most": 5e5})
        );
        assert_eq!(report["ratios"][0]["viaduct_to"], json!({"kernel": 1.5}));
        assert_eq!(median(&[]), None);
    }
}
