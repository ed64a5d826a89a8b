//! What a router writes to stderr, for people and for machines.

mod common;

use std::process::Command;

use common::{Setup, Testbed};
use serde_json::Value;

/// All that a router logs from its start to its clean stop.
fn log(arguments: &[&str], rust_log: &str) -> String {
    let mut bed = Testbed::new();
    let node = bed.node(1, 1);
    let pod = bed.pod(&node, "web", 2);
    let setup = Setup {
        workers: "count = 1",
        arguments,
        environment: &[("RUST_LOG", rust_log)],
        ..Setup::default()
    };
    let mut router = bed.router_with(&node, &[&pod], &[], &setup);
    router.stop();
    router.log()
}

/// Level and message of a line, which has to be a JSON object.
fn parsed(line: &str) -> (String, String) {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let word = |v: &Value| v.as_str().unwrap_or_else(|| panic!("{line}")).to_owned();
    (word(&object["level"]), word(&object["fields"]["message"]))
}

#[test]
fn every_line_of_a_json_log_is_an_object_with_level_and_message() {
    let log = log(&["--log", "json"], "debug");
    let lines: Vec<_> = log.lines().map(parsed).collect();
    for message in ["underlay attached", "ready", "stopping"] {
        let wanted = ("INFO".to_owned(), message.to_owned());
        assert!(lines.contains(&wanted), "{message}: {log}");
    }
}

#[test]
fn a_refusal_is_a_line_of_the_json_log_too() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct"));
        command.args(["run", "--config", "/no/such/file"]);
        let output = command.args(arguments).output().expect("viaduct runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    let says = run(&["--log", "json"]);
    let lines: Vec<_> = says.lines().map(parsed).collect();
    let [(level, message)] = lines.as_slice() else {
        panic!("one line: {says}");
    };
    assert_eq!(level, "ERROR");
    assert_eq!(format!("viaduct: {message}\n"), run(&[]), "the same words");
}

#[test]
fn logs_are_plain_text_otherwise_and_rust_log_chooses_the_lines() {
    let text = log(&[], "info");
    for line in text.lines() {
        let plain = line.contains(" INFO ") && serde_json::from_str::<Value>(line).is_err();
        assert!(plain, "{line}");
    }
    assert!(
        text.contains("underlay attached interface=\"eth0\""),
        "{text}"
    );
    assert!(!text.contains('\x1b'), "colours in a file: {text:?}");
    assert_eq!(log(&[], "error"), "");
}
