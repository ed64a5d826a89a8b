//! Each mistake an operator can make gives one error, at its line, with the words that help.

mod gossip;
mod host;
mod overlay;
mod several;

use std::fmt::Write as _;

use viaduct_config::{Config, ConfigErrors};

/// A sound configuration, which each case spoils in one place.
const SOUND: &str = r#"[node]
name = "node-a"
[underlay]
interface = "eth0"
address = "192.0.2.1"
[workers]
count = 2
cpus = [0, 1]
max_ports = 3
[runtime]
directory = "/run/viaduct"
[[networks]]
name = "default"
vni = 1
pod_prefixes = ["10.244.1.0/24", "fd00:1:1::/64", "10.244.9.8/31"]
cluster_prefixes = ["10.244.0.0/16", "fd00:1::/32"]
[[networks]]
name = "blue"
vni = 2
port = 4789
vtep_mac = "02:00:00:00:00:01"
pod_prefixes = ["10.244.2.4/32", "10.244.1.0/24"]
cluster_prefixes = ["10.244.0.0/16"]
[[pods]]
name = "web"
interface = "veth-web"
network = "default"
addresses = ["10.244.1.2", "fd00:1:1::2", "10.244.9.8"]
mac = "0a:00:00:00:00:01"
[[pods]]
interface = "veth-blue"
network = "blue"
addresses = ["10.244.1.2"]
[[routes]]
network = "default"
prefixes = ["10.244.2.0/24", "10.244.2.9/32"]
vtep = "192.0.2.2"
node = "node-b"
[[routes]]
network = "blue"
prefixes = ["10.244.2.0/30"]
vtep = "192.0.2.2"
vtep_mac = "02:00:00:00:00:02"
[[routes]]
network = "default"
prefixes = ["10.244.3.0/24"]
vtep = "192.0.2.2"
node = "node-b"
"#;

/// In this line, this text becomes that, and an error with these words is expected in the same line.
struct Case<'a>(usize, &'a str, &'a str, &'a [&'a str]);

fn spoil(line: usize, from: &str, to: &str) -> String {
    let mut lines: Vec<String> = SOUND.lines().map(str::to_owned).collect();
    let target = &mut lines[line - 1];
    assert!(
        target.contains(from),
        "line {line} is {target:?}, without {from:?}"
    );
    *target = target.replacen(from, to, 1);
    lines.join("\n")
}

fn errors(text: &str) -> ConfigErrors {
    Config::parse(text, "test.toml").expect_err("a configuration with a mistake was accepted")
}

fn check(cases: &[Case<'_>]) {
    let mut failures = String::new();
    for Case(line, from, to, words) in cases {
        let spoiled = spoil(*line, from, to);
        match Config::parse(&spoiled, "test.toml") {
            Ok(_) => writeln!(failures, "accepted: line {line}, {to:?}").unwrap(),
            Err(errors) => {
                let all = errors.to_string();
                let place = format!("test.toml:{line}:");
                let good = errors.iter().len() == 1
                    && all.starts_with(&place)
                    && words.iter().all(|word| all.contains(word));
                if !good {
                    writeln!(
                        failures,
                        "line {line}, {to:?}, wanted {words:?}, got:\n{all}"
                    )
                    .unwrap();
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn the_sound_one_is_sound() {
    if let Err(errors) = Config::parse(SOUND, "test.toml") {
        panic!("{errors}");
    }
}
