//! The report as a page: bars, with what they stand for beside them. No library, no script, no network.

use std::fmt::Write as _;

use serde_json::Value;

use crate::plan::Case;
use crate::report::{Row, table, trip};
use crate::sockets;
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
pub(crate) fn page(rows: &[Row], pods: &[sockets::Row], machine: &Value) -> String {
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Side by side</title>\n\
         <style>body{{font-family:sans-serif;max-width:800px;margin:2em auto}}pre{{overflow-x:auto;font-size:11px}}</style>\n\
         <h1>Side by side</h1>\n<pre>{}</pre>\n",
        escaped(&format!("{machine:#}"))
    );
    for case in Case::ALL {
        for measure in &CHARTS {
            let rows = rows.iter().filter(|row| row.point.case == case);
            let bars: Vec<_> = rows
                .filter_map(|row| {
                    Some(Bar {
                        group: row.point.to_string(),
                        kind: row.kind,
                        value: (measure.value)(row)?,
                    })
                })
                .collect();
            let title = format!("{}: {} ({})", case.name(), measure.title, measure.unit);
            text += &chart(&title, &bars);
        }
    }
    for measure in sockets::Measure::ALL {
        let rows = pods.iter().filter(|row| row.measure == measure);
        let bars: Vec<_> = rows
            .filter_map(|row| {
                Some(Bar {
                    group: "between sockets of pods".to_owned(),
                    kind: row.kind,
                    value: row.value()?,
                })
            })
            .collect();
        let title = format!("{} ({})", measure.title(), measure.unit().0);
        text += &chart(&title, &bars);
    }
    let _ = write!(
        text,
        "<h2>All figures</h2>\n<pre>{}</pre>\n",
        escaped(&(table(rows) + &sockets::table(pods)))
    );
    for row in rows.iter().filter(|row| !row.reasons.is_empty()) {
        for (what, reason) in &row.reasons {
            let line = format!("{} {}: {what}: {reason}", row.point, row.kind.name());
            let _ = writeln!(text, "<p><small>{}</small></p>", escaped(&line));
        }
    }
    for row in pods {
        if let Some(reason) = row.reason() {
            let line = format!("{} {}: {reason}", row.measure.name(), row.kind.name());
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

struct Bar {
    /// What it is about, said above the first of some.
    group: String,
    kind: Kind,
    value: f64,
}

/// Bars of one measure; nothing where nothing was measured.
fn chart(title: &str, bars: &[Bar]) -> String {
    let Some(most) = bars.iter().map(|bar| bar.value).reduce(f64::max) else {
        return String::new();
    };
    let (mut text, mut y, mut last) = (String::new(), TOP, None);
    for bar in bars {
        if last != Some(&bar.group) {
            y += GAP;
            last = Some(&bar.group);
            let label = escaped(&bar.group);
            let _ = writeln!(
                text,
                "<text x=\"4\" y=\"{:.0}\">{label}</text>",
                y + BAR - 2.0
            );
        }
        let width = (bar.value / most.max(f64::MIN_POSITIVE)).max(0.0) * (WIDTH - LEFT - 150.0);
        let mut kinds = Kind::ALL.iter();
        let place = kinds.position(|kind| *kind == bar.kind).unwrap_or(0);
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.0}\">{} {}</text>",
            BAR - 2.0,
            COLOURS[place % COLOURS.len()],
            LEFT + width + 4.0,
            y + BAR - 3.0,
            number(bar.value),
            bar.kind.name(),
        );
        y += BAR;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <text x=\"4\" y=\"20\" font-size=\"14\">{}</text>\n{text}</svg>\n",
        y + GAP,
        escaped(title)
    )
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
        let page = page(&[good, bad], &[], &Value::Null);
        assert!(page.contains("<rect") && page.contains("0.500 kernel"));
        assert!(page.contains("&lt;gone&gt;") && !page.contains("<gone>"));
        // Only what was measured has a chart.
        assert_eq!(page.matches("<svg").count(), 1);
    }
}
