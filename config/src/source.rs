//! Places: from byte offsets, which the parser gives, to lines and columns, which people read.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{ConfigError, Position};

/// A text, its name and where its lines begin.
pub(crate) struct Source<'a> {
    file: PathBuf,
    bytes: &'a [u8],
    line_starts: Vec<usize>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &Path, bytes: &'a [u8]) -> Self {
        let after_newline = bytes
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(index, _)| index + 1);
        Self {
            file: file.to_owned(),
            bytes,
            line_starts: std::iter::once(0).chain(after_newline).collect(),
        }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// The line of byte `offset`, from 1.
    fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// One mistake at byte `offset`; offsets past the end are the end.
    pub(crate) fn error(&self, offset: usize, message: String) -> ConfigError {
        let position = self.position(offset, None);
        ConfigError {
            file: self.file.clone(),
            position: Some(position),
            message,
        }
    }

    /// Mistakes by offset, in the order of their places.
    fn errors(&self, mut mistakes: Vec<(usize, String)>) -> Vec<ConfigError> {
        mistakes.sort_by_key(|(offset, _)| *offset);
        let mut previous = None;
        let place = |(offset, message)| {
            let position = self.position(offset, previous);
            previous = Some((offset, position));
            ConfigError {
                file: self.file.clone(),
                position: Some(position),
                message,
            }
        };
        mistakes.into_iter().map(place).collect()
    }

    /// The position of byte `offset`, counted on from an earlier one where that is in the same line: many mistakes in
    /// one long line would else cost the square of its length.
    fn position(&self, offset: usize, earlier: Option<(usize, Position)>) -> Position {
        let line = self.line(offset);
        let (from, column) = earlier
            .filter(|(_, position)| position.line == line)
            .map_or_else(
                || {
                    let start = self
                        .line_starts
                        .get(line.saturating_sub(1))
                        .copied()
                        .unwrap_or(0);
                    (start, 1)
                },
                |(offset, position)| (offset, position.column),
            );
        let end = offset.min(self.bytes.len());
        let between = self.bytes.get(from..end).unwrap_or_default();
        // Characters begin where a byte is no continuation byte (RFC 3629 section 3). A byte order mark takes no column.
        let characters = between.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        let mark = usize::from(from == 0 && between.starts_with(b"\xef\xbb\xbf"));
        Position {
            line,
            column: column + characters - mark,
        }
    }
}

/// Where something was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this line of the file, from 1.
    Line(usize),
    /// By a command.
    Command,
}

impl Place {
    /// Of an entry of the configuration, whose line is 0 when a command gave it.
    pub(crate) fn of_line(line: usize) -> Self {
        if line == 0 {
            Self::Command
        } else {
            Self::Line(line)
        }
    }
}

/// Collects what is wrong while validation goes on.
pub(crate) struct Problems<'a> {
    source: &'a Source<'a>,
    /// The file beside which a command's entry is checked; none: it is the file that is checked.
    beside: Option<&'a Path>,
    mistakes: Vec<(usize, String)>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(source: &'a Source<'a>) -> Self {
        Self {
            source,
            beside: None,
            mistakes: Vec::new(),
        }
    }

    /// For an entry that a command gives beside a file.
    pub(crate) fn of_command(source: &'a Source<'a>, beside: &'a Path) -> Self {
        Self {
            beside: Some(beside),
            ..Self::new(source)
        }
    }

    /// Where `at` is.
    pub(crate) fn place(&self, at: &Range<usize>) -> Place {
        Place::of_line(self.line(at))
    }

    /// A place as a message speaks of it.
    pub(crate) fn spoken(&self, place: Place) -> String {
        match (place, self.beside) {
            (Place::Line(line), None) => format!("in line {line}"),
            (Place::Line(line), Some(file)) => format!("in line {line} of {}", file.display()),
            (Place::Command, _) => "by a command".to_owned(),
        }
    }

    /// What was noted of a command's entry, in the order in which it was found.
    ///
    /// # Errors
    /// If there is anything.
    pub(crate) fn into_messages(self) -> Result<(), Vec<String>> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        Err(self
            .mistakes
            .into_iter()
            .map(|(_, message)| message)
            .collect())
    }

    /// Notes one mistake at the bytes `at`.
    pub(crate) fn report(&mut self, at: &Range<usize>, message: String) {
        self.mistakes.push((at.start, message));
    }

    /// The line of `at`, from 1; 0 in a command.
    pub(crate) fn line(&self, at: &Range<usize>) -> usize {
        if self.beside.is_some() {
            return 0;
        }
        self.source.line(at.start)
    }

    /// All that was noted, in the order of places.
    pub(crate) fn into_errors(self) -> Vec<ConfigError> {
        self.source.errors(self.mistakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_and_characters() {
        let source = Source::new(Path::new("x"), "ab\né1\n".as_bytes());
        let expected = [
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 1),
            (2, 2),
            (2, 2),
            (2, 3),
            (3, 1),
            (3, 1),
        ];
        let place = |error: ConfigError| {
            error
                .position
                .map(|position| (position.line, position.column))
        };
        let together = source.errors((0..9).rev().map(|offset| (offset, String::new())).collect());
        for ((offset, error), expected) in together.into_iter().enumerate().zip(expected) {
            assert_eq!(place(error), Some(expected), "offset {offset}, counted on");
            assert_eq!(
                place(source.error(offset, String::new())),
                Some(expected),
                "offset {offset}"
            );
        }
        assert_eq!(
            place(Source::new(Path::new("x"), b"").error(7, String::new())),
            Some((1, 1))
        );
        assert_eq!(
            place(Source::new(Path::new("x"), "\u{feff}a".as_bytes()).error(3, String::new())),
            Some((1, 1))
        );
    }
}
