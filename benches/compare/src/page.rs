//! The report as a page: bars, with what they stand for beside them. No library, no script, no network.

use std::fmt::Write as _;

use serde_json::Value;

use crate::plan::Case;
use crate::report::{Row, table, trip};
use crate::systems::Kind;

const COLOURS: [&str; 6] = [
    "#444444", "#4d7a1f", "#7b3f98", "#8a6d00", "#c4431d", "#e08a5a",
];
const WIDTH: f64 = 760.0;
const LEFT: f64 = 270.0;
const BAR: f64 = 13.0;
const GAP: f64 = 10.0;
const TOP: f64 = 34.0;

/// What a chart shows of a row.
struct Measure {
    title: &'static str,
    unit: &'static str,
    value: fn(&Row) -> Option<f64>,
}

const CHARTS: [Measure; 5] = [
    Measure {
        title: "Packets a second",
        unit: "M/s",
        value: |row| row.rate().map(|r| r * 1e-6),
    },
    Measure {
        title: "Without loss (NDR)",
        unit: "M/s",
        value: |row| row.ndr().map(|r| r * 1e-6),
    },
    Measure {
        title: "Processor time a packet, all cores, without the generator's",
        unit: "ns",
        value: Row::cost,
    },
    Measure {
        title: "Round trip at no load, median",
        unit: "us",
        value: |row| trip(&row.trips, |t| t.p50),
    },
    Measure {
        title: "Round trip at half of NDR, 99 %",
        unit: "us",
        value: |row| trip(&row.half_trips, |t| t.p99),
    },
];

/// The page.
pub(crate) fn page(rows: &[Row], machine: &Value) -> String {
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Side by side</title>\n\
         <style>body{{font-family:sans-serif;max-width:800px;margin:2em auto}}pre{{overflow-x:auto;font-size:11px}}</style>\n\
         <h1>Side by side</h1>\n<pre>{}</pre>\n",
        escaped(&format!("{machine:#}"))
    );
    for case in Case::ALL {
        for measure in &CHARTS {
            if let Some(chart) = chart(rows, case, measure) {
                text += &chart;
            }
        }
    }
    let _ = write!(
        text,
        "<h2>All figures</h2>\n<pre>{}</pre>\n",
        escaped(&table(rows))
    );
    for row in rows.iter().filter(|row| !row.reasons.is_empty()) {
        for (what, reason) in &row.reasons {
            let line = format!("{} {}: {what}: {reason}", row.point, row.kind.name());
            let _ = writeln!(text, "<p><small>{}</small></p>", escaped(&line));
        }
    }
    text + "</html>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Bars of one measure, a group for each point; none where nothing was measured.
fn chart(rows: &[Row], case: Case, measure: &Measure) -> Option<String> {
    let shown: Vec<_> = rows
        .iter()
        .filter(|row| row.point.case == case)
        .filter_map(|row| Some((row, (measure.value)(row)?)))
        .collect();
    let most = shown.iter().map(|(_, value)| *value).reduce(f64::max)?;
    let mut bars = String::new();
    let mut y = TOP;
    let mut last = None;
    for (row, value) in &shown {
        if last != Some(row.point) {
            y += GAP;
            last = Some(row.point);
            let label = escaped(&row.point.to_string());
            let _ = writeln!(
                bars,
                "<text x=\"4\" y=\"{:.0}\">{label}</text>",
                y + BAR - 2.0
            );
        }
        let width = (value / most.max(f64::MIN_POSITIVE)).max(0.0) * (WIDTH - LEFT - 150.0);
        let place = Kind::ALL.iter().position(|k| *k == row.kind).unwrap_or(0);
        let _ = writeln!(
            bars,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{} {}</text>",
            BAR - 2.0,
            COLOURS[place % COLOURS.len()],
            LEFT + width + 4.0,
            y + BAR - 3.0,
            number(*value),
            row.kind.name(),
        );
        y += BAR;
    }
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <text x=\"4\" y=\"20\" font-size=\"14\">{}: {} ({})</text>\n{bars}</svg>\n",
        y + GAP,
        case.name(),
        measure.title,
        measure.unit
    ))
}

fn number(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Point, Source};

    #[test]
    fn a_page_has_bars_and_reasons() {
        let point = Point::base(Case::Encap, Source::Skb);
        let mut good = Row::new(Kind::Kernel, &point);
        good.rates = vec![5e5];
        let mut bad = Row::new(Kind::Ovs, &point);
        bad.fails_all("<gone>");
        let page = page(&[good, bad], &Value::Null);
        assert!(page.contains("<rect") && page.contains("0.500 kernel"));
        assert!(page.contains("&lt;gone&gt;") && !page.contains("<gone>"));
        // Only what was measured has a chart.
        assert_eq!(page.matches("<svg").count(), 1);
    }
}
