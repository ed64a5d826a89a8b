//! Fields and tables for people, from JSON. What they print fits [`WIDTH`] columns where names and
//! addresses leave room, and holds no control characters: some of it comes from other nodes.

use std::fmt::Write;

use serde_json::Value;

/// Columns of a line.
pub(super) const WIDTH: usize = 100;
/// The last column of a table is not made narrower than this.
const NARROWEST: usize = 24;
/// Between two columns.
const GAP: usize = 2;

/// A field for people: text without quotes, `-` for none. Fields of fields are named with dots.
pub(super) fn field(of: &Value, name: &str) -> String {
    items(of, name).join(" ")
}

/// The same, with each item of a list by itself.
fn items(of: &Value, name: &str) -> Vec<String> {
    let plain = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => visible(text),
        other => other.to_string(),
    };
    match of.pointer(&format!("/{}", name.replace('.', "/"))) {
        Some(Value::Array(items)) if !items.is_empty() => items.iter().map(plain).collect(),
        None | Some(Value::Array(_)) => vec!["-".into()],
        Some(other) => vec![plain(other)],
    }
}

/// A text whose control characters are written out.
fn visible(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let escaped = text.chars().map(|c| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    });
    escaped.collect()
}

/// A time in seconds, in the two units that tell most.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, ..) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Breaks a text at spaces. A word that is longer than a line has one to itself.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one line at least");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            let _ = write!(line, " {word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A title and a text beside it.
pub(super) fn titled(out: &mut String, title: &str, text: &str) {
    const TITLE: usize = 10;
    let mut title = title;
    for line in wrapped(&visible(text), WIDTH - TITLE - 1) {
        let _ = writeln!(out, "{}", format!("{title:TITLE$} {line}").trim_end());
        title = "";
    }
}

/// A line for each row, more where a field is a list or the last column's text is long. Columns in
/// which no row has anything are left out; those of numbers are aligned to the right.
pub(super) fn table(rows: &Value, columns: &[(&str, &str)]) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    let mut columns: Vec<Column> = columns
        .iter()
        .map(|(title, name)| Column::new(title, rows.iter().map(|row| items(row, name)).collect()))
        .filter(|column| rows.is_empty() || !column.is_empty())
        .collect();
    let before: usize = columns.iter().rev().skip(1).map(|c| c.width() + GAP).sum();
    if let Some(last) = columns.last_mut() {
        last.wrap(WIDTH.saturating_sub(before).max(NARROWEST));
    }
    let mut out = String::new();
    for row in 0..=rows.len() {
        let height = columns.iter().map(|c| c.cells[row].len()).max();
        for line in 0..height.unwrap_or(0) {
            let cells: Vec<_> = columns.iter().map(|c| c.line(row, line)).collect();
            let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        }
    }
    out
}

struct Column {
    /// The title and each row's, as lines.
    cells: Vec<Vec<String>>,
    numbers: bool,
}

impl Column {
    fn new(title: &str, rows: Vec<Vec<String>>) -> Self {
        let number = |cell: &String| cell.bytes().all(|b| b.is_ascii_digit()) || cell == "-";
        let numbers = rows.iter().flatten().all(number);
        let mut cells = vec![vec![title.to_owned()]];
        cells.extend(rows);
        Self { cells, numbers }
    }

    fn is_empty(&self) -> bool {
        self.cells.iter().skip(1).flatten().all(|cell| cell == "-")
    }

    fn width(&self) -> usize {
        let lines = self.cells.iter().flatten();
        lines.map(|line| line.chars().count()).max().unwrap_or(0)
    }

    fn wrap(&mut self, width: usize) {
        for cell in &mut self.cells {
            *cell = cell.iter().flat_map(|line| wrapped(line, width)).collect();
        }
    }

    fn line(&self, row: usize, line: usize) -> String {
        let text = self.cells[row].get(line).map_or("", String::as_str);
        let width = self.width();
        if self.numbers {
            format!("{text:>width$}")
        } else {
            format!("{text:width$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_are_aligned_and_leave_empty_columns_out() {
        let rows = json!([
            { "name": "a", "count": 5, "addresses": ["10.0.0.1", "fd00::1"], "none": null },
            { "name": "long-name", "count": 1234, "addresses": [] },
        ]);
        let columns = [
            ("NAME", "name"),
            ("COUNT", "count"),
            ("NONE", "none"),
            ("ADDRESSES", "addresses"),
        ];
        let lines = [
            "NAME       COUNT  ADDRESSES",
            "a              5  10.0.0.1",
            "                  fd00::1",
            "long-name   1234  -",
        ];
        assert_eq!(table(&rows, &columns), lines.join("\n") + "\n");
        assert_eq!(table(&json!([]), &columns[..2]), "NAME  COUNT\n");
    }

    #[test]
    fn long_texts_are_broken_and_lines_fit() {
        let text = "word ".repeat(60) + &"x".repeat(120);
        let rows = json!([{ "reason": "some-reason", "text": text }]);
        let table = table(&rows, &[("REASON", "reason"), ("TEXT", "text")]);
        let long: Vec<_> = table
            .lines()
            .filter(|l| l.chars().count() > WIDTH)
            .collect();
        assert_eq!(long.len(), 1, "only the word without spaces: {table}");
        assert_eq!(table.matches("word").count(), 60);
        let mut out = String::new();
        titled(&mut out, "title", &"word ".repeat(60));
        assert!(out.lines().all(|line| line.len() <= WIDTH), "{out}");
        assert!(
            out.starts_with("title      word") && out.contains("\n           word"),
            "{out}"
        );
    }

    #[test]
    fn what_others_say_cannot_steer_the_terminal() {
        let rows = json!([{ "node": "a\u{1b}[2Jb\n" }]);
        assert_eq!(table(&rows, &[("NODE", "node")]), "NODE\na\\u{1b}[2Jb\\n\n");
    }

    #[test]
    fn ages_are_short() {
        let ages = [
            (0, "0s"),
            (59, "59s"),
            (61, "1m01s"),
            (7_260, "2h01m"),
            (90_000, "1d01h"),
        ];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
    }
}
