//! Very short comparisons: the report's shape, what is not installed, what stays behind. No figure is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The router of this build, which `cargo test --workspace` has made.
fn viaduct() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_viaduct-compare")).parent();
    let program = folder.expect("a folder").join("viaduct");
    if !program.exists() {
        let built = Command::new(env!("CARGO"))
            .args([
                "build",
                "--locked",
                "--package",
                "viaduct",
                "--bin",
                "viaduct",
            ])
            .status();
        assert!(
            built.expect("cargo runs").success(),
            "no viaduct to compare"
        );
    }
    program
}

fn compare(folder: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct-compare"));
    command
        .args(words.split_whitespace())
        .arg("--viaduct")
        .arg(viaduct())
        .arg("--output")
        .arg(folder)
        .stdin(Stdio::null());
    command
}

fn report(folder: &Path, output: &Output) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    let file = fs::read_to_string(folder.join("report.json")).expect("a report");
    serde_json::from_str(&file).expect("JSON")
}

/// Every row has all it should; what is null has a reason.
fn check_row(row: &Value) {
    for name in ["case", "system", "source"] {
        assert!(row[name].is_string(), "{name}: {row}");
    }
    for name in ["flows", "routes", "pods", "repeats"] {
        assert!(row[name].is_u64(), "{name}: {row}");
    }
    let names = row.as_object().expect("a row");
    for name in ["size", "workers", "spread", "generator_limited"] {
        assert!(names.contains_key(name), "{name}: {row}");
    }
    for name in [
        "packets_per_s",
        "ndr_packets_per_s",
        "cpu_ns_per_packet",
        "rtt_us",
        "rtt_half_us",
    ] {
        assert!(names.contains_key(name), "{name}: {row}");
        if row[name].is_null() {
            assert!(row["reasons"][name].is_string(), "{name}: {row}");
        }
    }
}

#[test]
fn all_systems_deliver_what_they_should() {
    let folder = TempDir::new().expect("a folder");
    // A wrong header of any of them would leave its rows empty: what each sends on is looked at before it is measured.
    let words = "--short --systems kernel,bare,xdp,viaduct --repeats 2 --rounds 1 --seconds 0.1";
    let output = compare(folder.path(), words).output().expect("it runs");
    let report = report(folder.path(), &output);
    let rows = report["rows"].as_array().expect("rows");
    let mut seen = BTreeSet::new();
    for row in rows {
        check_row(row);
        assert!(
            row["packets_per_s"].as_f64().is_some_and(|rate| rate > 0.0),
            "{row}"
        );
        seen.insert(["case", "source", "system"].map(|name| row[name].to_string()));
    }
    assert_eq!(
        (rows.len(), seen.len()),
        (16, 16),
        "2 ways, 2 sources, 4 systems"
    );
    let encap = |row: &&Value| row["case"] == "encap" && row["source"] == "skb";
    for row in rows.iter().filter(encap) {
        assert!(
            row["rtt_us"]["p50"].as_f64().is_some_and(|us| us > 0.0),
            "{row}"
        );
    }
    assert_eq!(report["complete"], true);
    assert!(report["machine"]["kernel"].is_string());
    let ratios = report["ratios"].as_array().expect("ratios");
    assert_eq!(ratios.len(), 4);
    assert!(
        ratios.iter().all(|r| r["viaduct_to"]["kernel"].is_f64()),
        "{ratios:?}"
    );
    let page = fs::read_to_string(folder.path().join("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("Side by side"));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("viaduct's rate relative to others'"),
        "{table}"
    );
}

/// Many pods, flows and routes, and what a packet of each is made of.
#[test]
fn many_of_everything() {
    let folder = TempDir::new().expect("a folder");
    let words = "--vary routes,pods --routes 50 --flows 20 --pods 3 --systems kernel,bare,xdp,viaduct --sources skb \
                 --repeats 2 --rounds 1 --seconds 0.1 --no-search";
    let output = compare(folder.path(), words).output().expect("it runs");
    let report = report(folder.path(), &output);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 16, "2 ways, 2 points, 4 systems");
    for row in rows {
        check_row(row);
        assert!(row["packets_per_s"].is_f64(), "{row}");
    }
}

/// A PATH with all programs but Open vSwitch's.
fn without_open_vswitch(folder: &Path) {
    let path = std::env::var("PATH").expect("a PATH");
    let programs = std::env::split_paths(&path)
        .flat_map(fs::read_dir)
        .flatten();
    for program in programs.flatten() {
        if !program.file_name().to_string_lossy().starts_with("ovs") {
            // The first of a name counts, as in a PATH.
            let _ = symlink(program.path(), folder.join(program.file_name()));
        }
    }
}

#[test]
fn what_is_not_installed_is_said_and_the_rest_is_measured() {
    let [folder, path] = [(); 2].map(|()| TempDir::new().expect("a folder"));
    without_open_vswitch(path.path());
    let words = "--short --systems ovs,xdp --cases encap --sources skb --repeats 2 --rounds 1 --seconds 0.1";
    let output = compare(folder.path(), words)
        .env("PATH", path.path())
        .output()
        .expect("it runs");
    let report = report(folder.path(), &output);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for row in rows {
        check_row(row);
    }
    let reason = rows[0]["reasons"]["packets_per_s"]
        .as_str()
        .expect("a reason");
    assert!(
        reason.contains("cannot run ovs") && reason.contains("installed"),
        "{reason}"
    );
    assert!(rows[0]["packets_per_s"].is_null() && rows[1]["packets_per_s"].is_f64());
}

fn left_by(child: &Child) -> Vec<String> {
    let prefix = format!("vdc{}-", child.id());
    let entries = ["/run/netns", "/sys/fs/bpf"]
        .iter()
        .flat_map(fs::read_dir)
        .flatten();
    let names = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !ready() {
        assert!(Instant::now() < until, "timed out: {what}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn nothing_stays_behind() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let folder = TempDir::new().expect("a folder");
        let mut child = compare(
            folder.path(),
            "--short --systems kernel,viaduct --seconds 1",
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
        wait_for("a router's pins", || left_by(&child).len() > 9);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, signal).expect("sent");
        wait_for("the end", || child.try_wait().expect("a child").is_some());
        assert!(!child.wait().expect("a child").success());
        wait_for(&format!("all to be gone after {signal}"), || {
            left_by(&child).is_empty()
        });
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = TempDir::new().expect("a folder");
    for (words, expected) in [
        ("--seconds 0", "0.05 to 60"),
        ("--repeats 0", "at least one repeat"),
        ("--systems nix", "possible values"),
    ] {
        let output = compare(folder.path(), words).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(expected),
            "{words}: {text}"
        );
    }
}
