//! An authority, the certificates that it signs, and the keys of nodes that have not run yet.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{CLUSTER, Node, Testbed};

/// A command that needs no router: whether it succeeded, and what it printed.
pub fn viaduct(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_viaduct"))
        .args(words)
        .output()
        .expect("viaduct runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    (output.status.success(), said)
}

/// What a command prints that has to succeed.
pub fn good(words: &[&str]) -> String {
    let (did, said) = viaduct(words);
    assert!(did, "{words:?}: {said}");
    said
}

/// An authority of the tests' cluster.
pub struct Authority {
    /// The file with its private key.
    key: String,
    public: String,
}

/// A node's name and public key.
pub struct Signee {
    pub name: String,
    pub key: String,
}

impl Authority {
    pub fn new(bed: &Testbed, name: &str) -> Self {
        let key = bed.directory.path().join(name).display().to_string();
        let public = good(&["authority", "new", &key]);
        let (did, _) = viaduct(&["authority", "new", &key]);
        assert!(!did, "a key never replaces another");
        Self { key, public }
    }

    /// The `[gossip]` table of a node that believes this authority and has one peer.
    pub fn table(&self, bed: &Testbed, peer: u8) -> String {
        let trust = format!("trust = \"authority\"\nauthority = \"{}\"", self.public);
        bed.trusting(peer, &trust)
    }

    /// A certificate; `options` are further words, `--prefix` and `--address` among them.
    pub fn sign(&self, node: &Signee, options: &[&str]) -> String {
        let mut words = vec!["authority", "sign", "--key", &self.key];
        words.extend(["--cluster", CLUSTER.0]);
        words.extend(options);
        words.extend([&node.name[..], &node.key]);
        good(&words)
    }
}

impl Testbed {
    /// The directory in which nodes keep their keys and certificates.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The file from which a node reads its certificate.
    pub fn certificate(&self, node: &str) -> PathBuf {
        self.state().join(format!("{node}.cert"))
    }

    /// The `[gossip]` table of a node with one peer; `trust` is its line of that name, and more.
    pub fn trusting(&self, peer: u8, trust: &str) -> String {
        let table = self.gossip(peer, CLUSTER);
        assert!(table.contains("trust = \"first-sight\""));
        table.replace("trust = \"first-sight\"", trust)
    }

    /// The name and key of node N, which has not run yet.
    pub fn identity(&self, node: &Node) -> Signee {
        let file = format!("identity-{}.toml", node.n);
        let file = self.directory.path().join(file);
        let text = format!(
            "[node]\nname = \"{}-{}\"\n[underlay]\ninterface = \"eth0\"\n{}\n[[networks]]\nname = \"default\"\n\
             vni = 1\npod_prefixes = [\"10.244.1.0/24\"]\ncluster_prefixes = [\"10.244.0.0/16\"]\n",
            self.id,
            node.n,
            self.gossip(1, CLUSTER),
        );
        fs::write(&file, text).expect("written");
        let said = good(&["identity", "--config", &file.display().to_string()]);
        let (name, key) = said.split_once(' ').expect("two words");
        let (name, key) = (name.to_owned(), key.to_owned());
        Signee { name, key }
    }
}
