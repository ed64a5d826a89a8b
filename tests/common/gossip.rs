//! Nodes that learn of each other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Daemon, Node, Pod, Setup, Testbed, wait_for};

/// What nodes of a test share.
pub const CLUSTER: (&str, &str) = ("test", "1f");

impl Testbed {
    /// The `[gossip]` table of a node with one peer, in a cluster of this name and key.
    pub fn gossip(&self, peer: u8, (cluster, key): (&str, &str)) -> String {
        // Each node has a file of its own.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.path();
        let key_file = directory.join(format!("{key}-{number}.gossip"));
        write_key(&key_file, &key.repeat(32));
        format!(
            "[gossip]\ntrust = \"first-sight\"\ncluster = \"{cluster}\"\nkey_file = \"{}\"\nstate = \"{}\"\n\
             peers = [\"192.0.2.{peer}:7950\"]\n",
            key_file.display(),
            directory.join("state").display(),
        )
    }

    /// A router that is told of one peer and of no route.
    pub fn gossiping_router(&self, node: &Node, pods: &[&Pod], peer: u8) -> Daemon {
        let setup = Setup {
            more: &self.gossip(peer, CLUSTER),
            ..Setup::default()
        };
        self.router_with(node, pods, &[], &setup)
    }
}

pub fn write_key(path: &Path, text: &str) {
    fs::write(path, text).expect("the key is written");
    let owner = fs::Permissions::from_mode(0o600);
    fs::set_permissions(path, owner).expect("the key is its owner's");
}

impl Daemon {
    /// The prefixes with a resolved route.
    pub fn ways(&self) -> Vec<String> {
        let routes = self.ask("routes");
        let routes = routes["routes"].as_array().expect("routes").iter();
        let resolved = routes.filter(|route| route["state"] == "resolved");
        let prefix = resolved.map(|route| route["prefix"].as_str().expect("a prefix").to_owned());
        prefix.collect()
    }

    /// Waits until there is a way to the pods of exactly these nodes.
    pub fn knows(&self, nodes: &[u8]) {
        let mut expected: Vec<_> = (nodes.iter())
            .flat_map(|n| [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")])
            .collect();
        expected.sort();
        wait_for(&format!("{} to know {nodes:?}", self.name), || {
            let mut ways = self.ways();
            ways.sort();
            ways == expected
        });
    }

    /// The state of a node, as this one knows it.
    pub fn peer(&self, name: &str) -> String {
        let peers = self.ask("peers");
        let peers = peers["peers"].as_array().expect("peers");
        let peer = peers.iter().find(|peer| peer["node"] == name);
        peer.map_or("", |peer| peer["state"].as_str().expect("a state"))
            .to_owned()
    }
}
