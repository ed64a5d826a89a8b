//! What is wanted of this node: the file's pods and routes, and those that were added by command.
//!
//! The rules of the file hold for an entry that a command adds, beside the file's and the others. An
//! entry that the file has come to contradict is not used, and is not forgotten: it is refused by
//! itself, with the reason.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use viaduct_config::{Config, Entry};
use viaduct_control::kernel::Kernel;
use viaduct_control::sources::{Refused, Source};
use viaduct_control::{Binding, Place, PortState, PortStatus};

use crate::commands::{self, Command, Device};
use crate::options::here;

/// The file's entries, what was added to them, and what both come to.
#[derive(Clone)]
pub(crate) struct Desired {
    file: Config,
    commands: Vec<Command>,
    config: Config,
    /// Entries of commands that are not used.
    refused: Vec<Refused>,
    /// Where commands are written down.
    path: PathBuf,
    /// Where interfaces' numbers are of.
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Port,
    Route,
}

impl Kind {
    fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Port(_) => Self::Port,
            Entry::Route(_) => Self::Route,
        }
    }
}

/// A change that has been checked, and not been made yet.
pub(crate) struct Change(Desired);

impl Change {
    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// What would be wanted.
    pub(crate) fn desired(&self) -> &Desired {
        &self.0
    }

    /// What is wanted once the change has been made.
    pub(crate) fn into_desired(self) -> Desired {
        self.0
    }
}

impl Desired {
    /// At a start: the file's entries, and those of commands that the last daemon wrote down.
    pub(crate) fn at_start(file: &Config) -> Self {
        let path = file.runtime.commands(&file.node.name);
        let mut desired = Self {
            commands: commands::read(&path),
            config: file.clone(),
            file: file.clone(),
            refused: Vec::new(),
            path,
            place: here(),
        };
        desired.add_all();
        if !desired.commands.is_empty() {
            let (all, unused) = (desired.commands.len(), desired.refused.len());
            tracing::info!(
                all,
                unused,
                "pods and routes that were added by command are back"
            );
        }
        desired
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// How many of the configuration's pods and routes, the first ones, are the file's.
    pub(crate) fn of_file(&self) -> (usize, usize) {
        (self.file.pods.len(), self.file.routes.len())
    }

    /// Entries of commands that are not used.
    pub(crate) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// The interface that each pod of a command is bound to, by the pod's name.
    pub(crate) fn bindings(&self) -> BTreeMap<&str, Binding> {
        let pods = self.commands.iter().filter(|it| it.is_pod());
        let binding = |it: &Command| {
            let known = it.device.as_ref().map(|device| device.known(&self.place));
            Binding::Interface(known)
        };
        pods.filter_map(|it| Some((it.entry.key()?, binding(it))))
            .collect()
    }

    /// With the interfaces that pods have now which had none when commands added them; none if there
    /// is no news.
    pub(crate) async fn with_interfaces(&self, ports: &[PortStatus]) -> Option<Self> {
        let commands = self.commands.iter().enumerate();
        let mut new = Vec::new();
        for (place, command) in commands.filter(|(_, it)| it.is_pod() && it.device.is_none()) {
            let key = command.entry.key();
            let up = |port: &&PortStatus| Some(&*port.name) == key && port.state == PortState::Up;
            if let Some(port) = ports.iter().find(up) {
                let kernel = Kernel::open().ok()?;
                let device = Device::named(&kernel, &port.interface, &self.place).await;
                new.extend(device.map(|device| (place, device)));
            }
        }
        if new.is_empty() {
            return None;
        }
        let mut desired = self.clone();
        for (place, device) in new {
            if let Some(command) = desired.commands.get_mut(place) {
                command.device = Some(device);
            }
        }
        Some(desired)
    }

    /// Writes down what commands added, so that the next daemon has it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(crate) fn save(&self) -> anyhow::Result<()> {
        commands::write(&self.path, &self.commands)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// With the file as it is now.
    pub(crate) fn reloaded(&self) -> anyhow::Result<Change> {
        let mut file = Config::load(&self.file.file)?;
        // Its folders may have been given on the command line.
        file.runtime = self.file.runtime.clone();
        if let Some(what) = fixed_part_that_differs(&self.file, &file) {
            bail!("[{what}] has changed: that needs a restart of the daemon; nothing was changed");
        }
        let mut desired = Self {
            file,
            ..self.clone()
        };
        desired.add_all();
        Ok(Change(desired))
    }

    /// With one more pod or route: `entry` has the keys of `[[pods]]` or `[[routes]]`.
    pub(crate) async fn with(&self, kind: Kind, entry: &Value) -> anyhow::Result<Change> {
        let entry = match kind {
            Kind::Port => Entry::Port(serde_json::from_value(entry.clone())?),
            Kind::Route => Entry::Route(serde_json::from_value(entry.clone())?),
        };
        let mut desired = self.clone();
        desired.config.add(&entry)?;
        let device = match &entry {
            Entry::Port(pod) => {
                let kernel = Kernel::open()?;
                let name = pod.interface.as_deref().unwrap_or_default();
                Device::named(&kernel, name, &desired.place).await
            }
            Entry::Route(_) => None,
        };
        desired.commands.push(Command { entry, device });
        Ok(Change(desired))
    }

    /// Without a pod or route that was added.
    pub(crate) fn without(&self, kind: Kind, key: &str) -> anyhow::Result<Change> {
        let mut desired = self.clone();
        let same = |c: &Command| Kind::of(&c.entry) == kind && c.entry.key() == Some(key);
        let Some(place) = desired.commands.iter().position(same) else {
            let in_file = match kind {
                Kind::Port => self.file.pods.iter().any(|pod| pod.name == key),
                Kind::Route => {
                    let mut prefixes = self.file.routes.iter().flat_map(|r| &r.prefixes);
                    prefixes.any(|prefix| prefix.to_string() == key)
                }
            };
            let file = self.file.file.display();
            ensure!(
                !in_file,
                "{key} is in {file}: remove it there and send the daemon SIGHUP"
            );
            bail!("there is no {key}");
        };
        desired.commands.remove(place);
        desired.add_all();
        Ok(Change(desired))
    }

    /// Adds all entries of commands to those of the file.
    fn add_all(&mut self) {
        self.config = self.file.clone();
        self.refused.clear();
        for command in self.commands.clone() {
            self.add(&command.entry);
        }
    }

    fn add(&mut self, entry: &Entry) {
        if let Err(error) = self.config.add(entry) {
            self.refuse(entry, error.to_string().replace('\n', "; "));
        }
    }

    fn refuse(&mut self, entry: &Entry, why: String) {
        let what = entry.key().unwrap_or_default().to_owned();
        let kind = match Kind::of(entry) {
            Kind::Port => "port",
            Kind::Route => "route",
        };
        self.refused.push(Refused {
            node: self.file.node.name.clone(),
            mend: Some(format!("viaduct {kind} del {what}")),
            what,
            why,
            source: Source::Command,
            notice: false,
        });
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
            gossip.allowed_addresses.clear();
            gossip.nodes.retain(|node| node.key.is_some());
            for node in &mut gossip.nodes {
                node.allowed_prefixes = None;
                node.allowed_addresses = None;
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
