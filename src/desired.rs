//! What is wanted now: the file's pods and routes, and those that were added by command.
//!
//! Added ones are written down as the file would have them and checked together with it, so that
//! one set of rules holds for both. They last until they are removed or the daemon ends.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use viaduct_config::Config;

/// The file's text, what was added to it, and what both come to.
pub(crate) struct Desired {
    text: String,
    added: Vec<Added>,
    config: Config,
}

/// A pod or a route that was added by command.
#[derive(Clone)]
struct Added {
    kind: Kind,
    /// The pod's name, or the route's prefix.
    key: String,
    toml: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Port,
    Route,
}

/// A change that has been checked, and not been made yet.
pub(crate) struct Change(Desired);

impl Change {
    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }
}

impl Desired {
    /// Reads the file again that `config` was read from.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let text = fs::read_to_string(&config.file)
            .with_context(|| format!("cannot read {} again", config.file.display()))?;
        Ok(Self {
            text,
            added: Vec::new(),
            config: config.clone(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether a route was added by command.
    pub(crate) fn is_added_route(&self, prefix: &str) -> bool {
        let mut added = self.added.iter();
        added.any(|entry| entry.kind == Kind::Route && entry.key == prefix)
    }

    pub(crate) fn carry_out(&mut self, change: Change) {
        *self = change.0;
    }

    /// With the file as it is now.
    pub(crate) fn reloaded(&self) -> anyhow::Result<Change> {
        let file = &self.config.file;
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        self.changed(text, self.added.clone())
    }

    /// With one more pod or route: `entry` has the keys of `[[pods]]` or `[[routes]]`.
    pub(crate) fn with(&self, kind: Kind, entry: &Value) -> anyhow::Result<Change> {
        let keys = entry.as_object().context("not an object")?;
        let title = match kind {
            Kind::Port => "[[pods]]",
            Kind::Route => "[[routes]]",
        };
        let mut toml = format!("\n{title}\n");
        for (name, value) in keys.iter().filter(|(_, value)| !value.is_null()) {
            // JSON's texts and lists of texts are TOML's.
            let _ = writeln!(toml, "{name} = {value}");
        }
        let text = |name: &str| keys.get(name).and_then(Value::as_str);
        let key = match kind {
            Kind::Port => text("name").or_else(|| text("interface")),
            Kind::Route => keys.get("prefixes").and_then(|p| p[0].as_str()),
        };
        let key = key.context("it has no name")?.to_owned();
        let mut added = self.added.clone();
        added.push(Added { kind, key, toml });
        self.changed(self.text.clone(), added)
    }

    /// Without a pod or route that was added.
    pub(crate) fn without(&self, kind: Kind, key: &str) -> anyhow::Result<Change> {
        let mut added = self.added.clone();
        let place = added
            .iter()
            .position(|entry| entry.kind == kind && entry.key == key);
        let Some(place) = place else {
            let in_file = match kind {
                Kind::Port => self.config.pods.iter().any(|pod| pod.name == key),
                Kind::Route => {
                    let mut prefixes = self.config.routes.iter().flat_map(|r| &r.prefixes);
                    prefixes.any(|prefix| prefix.to_string() == key)
                }
            };
            let file = self.config.file.display();
            ensure!(
                !in_file,
                "{key} is in {file}: remove it there and send the daemon SIGHUP"
            );
            bail!("there is no {key}");
        };
        added.remove(place);
        self.changed(self.text.clone(), added)
    }

    fn changed(&self, text: String, added: Vec<Added>) -> anyhow::Result<Change> {
        let mut whole = text.clone();
        for entry in &added {
            whole += &entry.toml;
        }
        let lines = text.lines().count();
        let name = self.config.file.display().to_string();
        let mut config = Config::parse(&whole, &name).map_err(|errors| {
            // What is behind the file's last line was given by command.
            let said = errors.iter().map(|error| match error.position {
                Some(position) if position.line > lines => error.message.clone(),
                _ => error.to_string(),
            });
            anyhow::anyhow!(said.collect::<Vec<_>>().join("\n"))
        })?;
        // Its folders may have been given on the command line.
        config.runtime = self.config.runtime.clone();
        if let Some(what) = fixed_part_that_differs(&self.config, &config) {
            bail!("[{what}] has changed: that needs a restart of the daemon; nothing was changed");
        }
        Ok(Change(Self {
            text,
            added,
            config,
        }))
    }
}

/// What cannot change while the daemon runs.
fn fixed_part_that_differs(old: &Config, new: &Config) -> Option<&'static str> {
    // The lines at which things stand are no part of what they say.
    let plain = |config: &Config| {
        let mut config = config.clone();
        config.underlay.line = 0;
        if let Some(gossip) = &mut config.gossip {
            // Who may be asked, and what is believed of whom, may change: not who is believed.
            gossip.peers.clear();
            gossip.allowed_prefixes = None;
            gossip.nodes.retain(|node| node.key.is_some());
            for node in &mut gossip.nodes {
                node.allowed_prefixes = None;
            }
        }
        for network in &mut config.networks {
            network.line = 0;
        }
        config
    };
    let (old, new) = (plain(old), plain(new));
    let parts = [
        ("node", old.node == new.node),
        ("underlay", old.underlay == new.underlay),
        ("workers", old.workers == new.workers),
        ("slow_path", old.slow_path == new.slow_path),
        ("gossip", old.gossip == new.gossip),
        ("[networks]", old.networks == new.networks),
    ];
    parts.iter().find(|(_, same)| !same).map(|(name, _)| *name)
}
