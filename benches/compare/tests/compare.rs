//! Very short comparisons: the report's shape, what is not installed, what stays behind. No figure is looked at.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
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
    compare_with(&viaduct(), folder, words)
}

fn compare_with(viaduct: &Path, folder: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viaduct-compare"));
    command
        .args(words.split_whitespace())
        .arg("--viaduct")
        .arg(viaduct)
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
    let words = "--short --parts frames --systems kernel,bare,xdp,tcx,viaduct --repeats 2 --rounds 1 --seconds 0.1";
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
        (20, 20),
        "2 ways, 2 sources, 5 systems"
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

/// By measure: the name of its value in a row.
const MEASURES: [(&str, &str); 8] = [
    ("cold", "ms"),
    ("tcp-1", "gbit_per_s"),
    ("tcp-8", "gbit_per_s"),
    ("tcp-1-plain", "gbit_per_s"),
    ("tcp-8-plain", "gbit_per_s"),
    ("requests", "us_p50"),
    ("connections", "connections_per_s"),
    ("datagrams", "delivered_per_s"),
];

#[test]
fn sockets_of_pods_are_joined_by_each_system() {
    let folder = TempDir::new().expect("a folder");
    let words = "--parts sockets --systems none,kernel,tcx,viaduct,xdp --repeats 2 --seconds 0.1";
    let output = compare(folder.path(), words)
        .args(["--variant", "two=workers.count = 2"])
        .output()
        .expect("it runs");
    let report = report(folder.path(), &output);
    let rows = report["pods"].as_array().expect("rows");
    // XDP as the ceiling of frames joins no sockets.
    assert_eq!(rows.len(), MEASURES.len() * 5);
    for (rows, (measure, value)) in rows.chunks(5).zip(MEASURES) {
        for (row, system) in rows.iter().zip(["none", "kernel", "tcx", "viaduct", "two"]) {
            assert_eq!(row["measure"], measure, "{row}");
            assert_eq!(row["system"], system, "{row}");
            if system == "none" && measure.ends_with("plain") {
                let reason = row["reasons"][value].as_str();
                assert!(reason.is_some_and(|r| r.contains("no underlay")), "{row}");
                assert!(row[value].is_null(), "{row}");
                continue;
            }
            assert!(row[value].as_f64().is_some_and(|v| v > 0.0), "{row}");
            assert_eq!(row["repeats"], 2, "{row}");
            assert!(row["relative_to"]["kernel"].is_f64() || system == "kernel");
            if measure.starts_with("tcp") {
                assert!(row["segments_sent_again"].is_f64(), "{row}");
                let cost = &row["cpu_ns_per_byte"];
                let reason = &row["reasons"]["cpu_ns_per_byte"];
                assert_ne!(cost.is_null(), reason.is_null(), "{row}");
            }
        }
    }
    assert!(report["rows"].as_array().is_some_and(Vec::is_empty));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("pods: new TCP connections"), "{table}");
}

/// A router that does not count what comes through stands for one that something else carries packets for.
#[test]
fn packets_that_took_another_path_fail_the_run() {
    let [folder, programs] = [(); 2].map(|()| TempDir::new().expect("a folder"));
    let program = programs.path().join("viaduct");
    let real = viaduct();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = ports ] || exec {real} \"$@\"\n\
         {real} \"$@\" | sed -E 's/\"tx_(packets|bytes)\": ?[0-9]+/\"tx_\\1\":0/g'\n",
        real = real.display()
    );
    fs::write(&program, script).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    for words in [
        "--parts sockets --systems viaduct --measures requests --repeats 1 --seconds 0.1",
        "--short --parts frames --systems viaduct --cases encap --sources skb --repeats 1 --seconds 0.1",
    ] {
        let output = compare_with(&program, folder.path(), words)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{words}: {text}");
        assert!(
            text.contains("did not take the path that is measured"),
            "{words}: {text}"
        );
    }
}

/// Many pods, flows and routes, and what a packet of each is made of.
#[test]
fn many_of_everything() {
    let folder = TempDir::new().expect("a folder");
    let words = "--parts frames --vary routes,pods --routes 50 --flows 20 --pods 3 --systems kernel,bare,xdp,tcx,viaduct --sources skb \
                 --repeats 2 --rounds 1 --seconds 0.1 --no-search";
    let output = compare(folder.path(), words).output().expect("it runs");
    let report = report(folder.path(), &output);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 20, "2 ways, 2 points, 5 systems");
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
    let words = "--short --parts frames --systems ovs,xdp --cases encap --sources skb --repeats 2 --rounds 1 --seconds 0.1";
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

const NAMESPACES: &str = "/run/netns";
const PINS: &str = "/sys/fs/bpf";

/// What there is of a run's in a folder.
fn left_in(folder: &str, child: &Child) -> Vec<String> {
    let prefix = format!("vdc{}-", child.id());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
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
    for (signal, part) in [
        (Signal::SIGINT, "frames"),
        (Signal::SIGKILL, "frames"),
        (Signal::SIGINT, "sockets"),
        (Signal::SIGKILL, "sockets"),
    ] {
        let folder = TempDir::new().expect("a folder");
        let words = format!("--short --parts {part} --systems kernel,viaduct --seconds 1");
        let mut child = compare(folder.path(), &words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        wait_for("a router's pins", || !left_in(PINS, &child).is_empty());
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        kill(pid, signal).expect("sent");
        wait_for("the end", || child.try_wait().expect("a child").is_some());
        assert!(!child.wait().expect("a child").success());
        wait_for(&format!("all to be gone after {signal}, {part}"), || {
            [NAMESPACES, PINS]
                .iter()
                .all(|folder| left_in(folder, &child).is_empty())
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
        ("--variant =", "is no name"),
        ("--variant kernel=a=1", "two systems are called kernel"),
    ] {
        let output = compare(folder.path(), words).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(expected),
            "{words}: {text}"
        );
    }
}
