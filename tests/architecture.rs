//! The rules of the house, checked: which crates, and which of their modules, may depend on which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Each crate, and what it may depend on. Arrows point down only.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "viaduct",
        &[
            "viaduct-router",
            "viaduct-control",
            "viaduct-config",
            "viaduct-pktgen",
            "viaduct-fib",
            "viaduct-encap",
        ],
    ),
    ("viaduct-pktgen", &["viaduct-router", "viaduct-encap"]),
    (
        "viaduct-compare",
        &["viaduct-pktgen", "viaduct-router", "viaduct-encap"],
    ),
    ("viaduct-router", &["viaduct-fib", "viaduct-encap"]),
    (
        "viaduct-control",
        &["viaduct-gossip", "viaduct-fib", "viaduct-encap"],
    ),
    ("viaduct-gossip", &[]),
    ("viaduct-fib", &["viaduct-encap"]),
    ("viaduct-encap", &[]),
    ("viaduct-config", &[]),
    (
        "viaduct-fuzz",
        &[
            "viaduct-router",
            "viaduct-control",
            "viaduct-fib",
            "viaduct-encap",
        ],
    ),
];

/// What the planes must not know.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("viaduct-router", &["tokio", "tracing"]),
    ("viaduct-control", &["xsk-rs", "aya"]),
    ("viaduct-gossip", &["xsk-rs", "aya", "rtnetlink"]),
    ("viaduct-fib", &["tokio", "tracing"]),
    ("viaduct-encap", &["tokio", "tracing"]),
];

#[test]
fn arrows_point_down() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .output()
        .expect("cargo metadata runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(
        packages.len(),
        ALLOWED.len(),
        "a crate that this test does not know"
    );
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let dependencies: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .filter(|d| d["kind"].is_null())
            .filter_map(|d| d["name"].as_str())
            .collect();
        let rule = ALLOWED
            .iter()
            .find(|(n, _)| *n == name)
            .expect("a rule for each crate");
        for dependency in dependencies.iter().filter(|d| d.starts_with("viaduct")) {
            assert!(
                rule.1.contains(dependency),
                "{name} must not depend on {dependency}"
            );
        }
        let forbidden = FORBIDDEN
            .iter()
            .filter(|(n, _)| *n == name)
            .flat_map(|(_, f)| *f);
        for dependency in forbidden {
            assert!(
                !dependencies.contains(dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

/// The crates whose modules know each other in one direction only.
const WITHOUT_CIRCLES: &[&str] = &["src", "control/src", "config/src", "pktgen/src"];

/// For each module at the top of a crate, the others that its source names.
fn modules(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut files = vec![root.to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a readable folder");
            files.extend(entries.map(|entry| entry.expect("an entry").path()));
            continue;
        }
        let inside = path.strip_prefix(root).expect("it is below the root");
        let top = inside.iter().next().expect("a name").to_string_lossy();
        let module = top.trim_end_matches(".rs").to_owned();
        // Help for tests may know everybody, and the root does.
        if ["lib", "main", "testing"].contains(&module.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a readable file");
        let code = text.lines().filter(|line| !line.trim().starts_with("//"));
        let uses = known.entry(module.clone()).or_default();
        for rest in code.flat_map(|line| line.split("crate::").skip(1)) {
            // Also of a list, if it is on one line.
            let list = rest.strip_prefix('{').and_then(|it| it.split('}').next());
            for name in list.unwrap_or(rest).split(", ") {
                let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &name[..end.unwrap_or(name.len())];
                uses.insert(name.to_owned());
            }
        }
        uses.remove(&module);
    }
    let modules: BTreeSet<String> = known.keys().cloned().collect();
    for uses in known.values_mut() {
        uses.retain(|name| modules.contains(name));
    }
    known
}

#[test]
fn modules_are_in_no_circles() {
    for root in WITHOUT_CIRCLES {
        let mut left = modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root));
        assert!(!left.is_empty(), "no modules in {root}");
        // Who uses nobody that is left is in no circle.
        while let Some(module) = left
            .iter()
            .find_map(|(module, uses)| uses.is_empty().then(|| module.clone()))
        {
            left.remove(&module);
            for uses in left.values_mut() {
                uses.remove(&module);
            }
        }
        assert!(
            left.is_empty(),
            "circles in {root}, or above one: {left:#?}"
        );
    }
}
