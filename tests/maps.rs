//! Somebody else changes the XDP programs' maps: the router finds it, and repairs it.

mod common;

use std::process::Command;

use common::{Pair, Setup, must, wait_for};
use serde_json::Value;

fn bpftool(words: &[&str]) -> Value {
    let mut command = Command::new("bpftool");
    command.arg("-j").args(words);
    let said = must(&mut command);
    serde_json::from_str(&said).unwrap_or(Value::Null)
}

/// The number of a map of the first node's router, which has the programs in its pins.
fn map(pair: &Pair, name: &str) -> String {
    let pins = pair.bed.pins().join(&pair.routers[0].name);
    for pin in std::fs::read_dir(pins).expect("pins").flatten() {
        let path = pin.path();
        let link = bpftool(&["link", "show", "pinned", path.to_str().expect("a path")]);
        let program = bpftool(&["prog", "show", "id", &link["prog_id"].to_string()]);
        for id in program["map_ids"].as_array().expect("maps") {
            if bpftool(&["map", "show", "id", &id.to_string()])["name"] == name {
                return id.to_string();
            }
        }
    }
    panic!("no map {name}");
}

/// Keys of all entries, as bpftool takes them.
fn keys(map: &str) -> Vec<Vec<String>> {
    let dump = bpftool(&["map", "dump", "id", map]);
    let key = |entry: &Value| {
        let bytes = entry["key"].as_array().expect("bytes").iter();
        bytes
            .map(|byte| byte.as_str().expect("hexadecimal").to_owned())
            .collect()
    };
    let mut keys: Vec<_> = dump.as_array().expect("entries").iter().map(key).collect();
    keys.sort();
    keys
}

fn change(map: &str, words: &[&str], key: &[String], value: &[&str]) {
    let mut command = Command::new("bpftool");
    command.args(["map", words[0], "id", map, "key"]);
    command.args(key);
    if !value.is_empty() {
        command.arg("value").args(value);
    }
    must(&mut command);
}

#[test]
fn entries_that_somebody_removes_or_adds_are_repaired() {
    let pair = Pair::new(&Setup::default());
    let streams = pair.streams();
    for name in [
        "pods", "cluster", "origins", "nodes", "vteps", "sources", "networks", "devices",
    ] {
        let map = map(&pair, name);
        let before = keys(&map);
        assert!(!before.is_empty(), "{name}");
        for key in &before {
            change(&map, &["delete"], key, &[]);
        }
        wait_for(&format!("{name} to be as it was"), || keys(&map) == before);
    }
    // A pod that is not there.
    let map = map(&pair, "pods");
    let before = keys(&map);
    let mut foreign = before[0].clone();
    *foreign.last_mut().expect("bytes") = "0x77".into();
    change(&map, &["update"], &foreign, &["1", "0", "0", "0"]);
    wait_for("the foreign pod to be gone", || keys(&map) == before);
    assert!(
        pair.routers[0]
            .log()
            .contains("somebody else had changed BPF maps")
    );
    // A socket's slot: what comes meanwhile is the kernel's.
    let slots = self::map(&pair, "xsks");
    change(
        &slots,
        &["delete"],
        &["0", "0", "0", "0"].map(String::from),
        &[],
    );
    pair.goes_on_by_worker(&streams);
}
