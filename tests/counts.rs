//! The check of instruction counts: when it fails, and what it says.

#[path = "../benches/counts/baseline.rs"]
mod baseline;

use baseline::{Build, Change, Counts, change};

fn counts(cases: &[(&str, f64)]) -> Counts {
    let build = Build {
        rustc: "1.95.0".to_owned(),
        ..Build::default()
    };
    let instructions = cases.iter().map(|(name, n)| ((*name).to_owned(), *n));
    Counts {
        build,
        instructions: instructions.collect(),
    }
}

#[test]
fn five_percent_are_the_limit() {
    assert!(matches!(change(104.9, Some(100.0)), Change::Same(_)));
    assert!(matches!(change(105.1, Some(100.0)), Change::Worse(_)));
    assert!(matches!(change(95.1, Some(100.0)), Change::Same(_)));
    assert!(matches!(change(94.9, Some(100.0)), Change::Better(_)));
    assert_eq!(change(1.0, None), Change::New);
}

#[test]
fn a_dearer_case_fails_with_both_figures() {
    let before = counts(&[("drop 64 b", 100.0), ("local 64 b", 100.0)]);
    let judged = counts(&[("drop 64 b", 110.0), ("local 64 b", 90.0)]).judge(&before, true);
    assert!(judged.failed);
    for wanted in [
        "drop 64 b: 110.0 instructions a packet, in the baseline 100.0: +10.0 %",
        "./dev bench counts --accept",
        "Cases that take over 5 % less than the baseline says: 1.",
    ] {
        assert!(judged.text.contains(wanted), "{}", judged.text);
    }
    let judged = counts(&[("drop 64 b", 50.0), ("local 64 b", 104.0)]).judge(&before, true);
    assert!(
        !judged.failed && judged.text.contains("Renew it"),
        "{}",
        judged.text
    );
}

#[test]
fn cases_that_come_or_go_fail_unless_only_some_were_wanted() {
    let before = counts(&[("drop 64 b", 100.0), ("local 64 b", 100.0)]);
    let some = counts(&[("drop 64 b", 100.0)]);
    assert!(!some.judge(&before, false).failed);
    let judged = some.judge(&before, true);
    assert!(judged.failed && judged.text.contains("local 64 b: only in the baseline"));
    let judged = before.judge(&some, true);
    assert!(judged.failed && judged.text.contains("not in the baseline"));
}

#[test]
fn another_compiler_is_said_and_does_not_fail() {
    let before = counts(&[("drop 64 b", 100.0)]);
    let mut now = counts(&[("drop 64 b", 200.0)]);
    now.build.rustc = "1.99.0".to_owned();
    let judged = now.judge(&before, true);
    assert!(!judged.failed);
    assert!(
        judged
            .text
            .contains("rustc: 1.99.0, in the baseline 1.95.0"),
        "{}",
        judged.text
    );
    assert!(judged.text.contains("+100.0 %"), "{}", judged.text);
}

#[test]
fn a_baseline_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("counts.json");
    let written = counts(&[("drop 64 b", 100.3)]);
    written.write(&path).expect("written");
    let read = Counts::read(&path).expect("read");
    assert_eq!(
        (read.build, read.instructions),
        (written.build, written.instructions)
    );
    std::fs::write(&path, "{}").expect("written");
    let error = Counts::read(&path).expect_err("not a baseline");
    assert!(error.contains("counts.json: missing field"), "{error}");
}
