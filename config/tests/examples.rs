//! The files in `examples/` are sound, agree with each other, and state the defaults that the program has.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use viaduct_config::{Config, derive_vtep_mac};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn load(path: &Path) -> Config {
    Config::load(path).unwrap_or_else(|errors| panic!("{errors}"))
}

fn toml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(toml_files(&path));
        } else if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
    }
    files
}

#[test]
fn every_example_is_sound() {
    let files = toml_files(&examples());
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        load(&file);
    }
}

#[test]
fn three_nodes_know_each_other() {
    let directory = examples().join("three-nodes");
    let nodes: Vec<Config> = ["a", "b", "c"]
        .iter()
        .map(|node| load(&directory.join(format!("node-{node}.toml"))))
        .collect();
    for (index, config) in nodes.iter().enumerate() {
        assert_eq!(config.node.name, format!("demo-{}", ["a", "b", "c"][index]));
        assert_eq!(config.pods.len(), 2);
        assert_eq!(config.routes.len(), 0, "they are learned");
        let gossip = config.gossip.as_ref().expect("gossip");
        let first = nodes[0].gossip.as_ref().expect("gossip");
        assert_eq!(
            (&gossip.cluster, &gossip.key_file),
            (&first.cluster, &first.key_file)
        );
        let [(host, 7950)] = &gossip.peers[..] else {
            panic!("{:?}", gossip.peers);
        };
        let peer: IpAddr = host.parse().expect("an address");
        assert_ne!(
            peer,
            IpAddr::from([192, 0, 2, 1 + u8::try_from(index).unwrap()])
        );
        assert_eq!(
            config.networks[0].cluster_prefixes,
            nodes[0].networks[0].cluster_prefixes
        );
    }
}

/// Every `#key = value` of the reference that states a default gives the configuration that leaving it out gives.
#[test]
fn the_reference_states_the_defaults() {
    let path = examples().join("single-node.toml");
    let as_it_is = load(&path);
    let text = fs::read_to_string(&path).unwrap();
    // These keys have no default: their line is an example.
    let examples_only = [
        "#address",
        "#hook",
        "#xdp",
        "#pods",
        "#attach",
        "#udp_checksum6 = \"zero\"",
        "#queues",
        "#cpus",
        "#mac",
        "#egress_",
        "#ingress_",
        "#prefixes",
        "#addresses",
        "#vtep ",
        "#node",
        "#vtep_mac = \"02:00",
        // Of [gossip], which is not there by default.
        "#cluster =",
        "#key_file",
        "#peers",
        "#port = 7950",
        "#state",
        "#probe_",
        "#suspicion_ms",
        "#trust",
        "#key = ",
        "#name = \"node-b\"",
        "#prefix ",
        "#authority",
        "#certificate",
        "#allowed_prefixes",
    ];
    let mut stated = 0;
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest)
                if rest.starts_with(|first: char| first.is_ascii_lowercase())
                    && !examples_only.iter().any(|key| line.starts_with(key))
                    && !line.contains("network = \"default\"") =>
            {
                stated += 1;
                rest
            }
            _ => line,
        })
        .collect();
    let spelled_out = Config::parse(&uncommented.join("\n"), path.to_str().unwrap());
    assert_eq!(spelled_out, Ok(as_it_is.clone()));
    assert_eq!(
        stated, 21,
        "a default was added or removed: adapt the reference and this test"
    );
    assert_eq!(as_it_is.networks[0].vtep_mac, derive_vtep_mac("node-a", 1));
}

/// With every line uncommented, the reference is sound but for the two keys of which it says to give one.
#[test]
fn the_reference_knows_every_key() {
    let text = fs::read_to_string(examples().join("single-node.toml")).unwrap();
    let everything: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        .filter(|line| !line.starts_with("vtep_mac = \"02:00"))
        .collect();
    let config = Config::parse(&everything.join("\n"), "reference")
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.workers.cpus, Some(vec![1]));
    assert_eq!(config.routes[0].prefixes.len(), 2);
    assert_eq!(config.pods[0].mac.unwrap().to_string(), "0a:58:0a:f4:01:02");
}
