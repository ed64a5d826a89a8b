//! The rules of the house, checked: who may depend on whom.

use std::collections::BTreeSet;
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
    ("viaduct-control", &["viaduct-fib", "viaduct-encap"]),
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
