//! What the daemon was told by command, in a file that outlives it: `<directory>/<node>.commands`.
//!
//! One line of JSON, and one with its checksum. It is written anew beside the old one, synced and
//! renamed. A pod's entry has the number and the MAC of its interface: when that is gone, another
//! interface of its name is another pod's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viaduct_config::Entry;
use viaduct_control::kernel::Kernel;
use viaduct_control::{InterfaceId, Place};

/// An entry that a command added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) entry: Entry,
    /// The pod's interface when it was added, or came; none: it has not been there.
    #[serde(default)]
    pub(crate) device: Option<Device>,
}

/// What an interface is known by, beside its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// Its number, unique in the namespace until the machine is restarted.
    index: u32,
    mac: Option<String>,
    /// The namespace and the boot that its number is of; as releases before wrote it: not known.
    #[serde(default)]
    place: Place,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    /// What releases to come may tell apart by.
    version: u32,
    commands: Vec<Command>,
}

const VERSION: u32 = 1;

impl Device {
    /// The interface of this name, if it is there.
    pub(crate) async fn named(kernel: &Kernel, name: &str, place: &Place) -> Option<Self> {
        let link = kernel.link_by_name(name).await.ok()?;
        Some(Self {
            index: link.index,
            mac: link.mac.map(|mac| mac.to_string()),
            place: place.clone(),
        })
    }

    /// What of it is known in this place.
    pub(crate) fn known(&self, place: &Place) -> InterfaceId {
        let mac = self.mac.as_ref().and_then(|mac| mac.parse().ok());
        InterfaceId {
            index: if self.place == *place { self.index } else { 0 },
            mac,
        }
    }
}

impl Command {
    pub(crate) fn is_pod(&self) -> bool {
        matches!(self.entry, Entry::Port(_))
    }
}

/// Reads the file. One that is damaged is kept beside it for people to look at, and said.
pub(crate) fn read(path: &Path) -> Vec<Command> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(
                "cannot read what was added by command: {}: {error}",
                path.display()
            );
            return Vec::new();
        }
    };
    if let Some(commands) = parse(&text) {
        return commands;
    }
    let aside = beside(path, "damaged");
    let kept = match fs::rename(path, &aside) {
        Ok(()) => format!("it is kept as {}", aside.display()),
        Err(error) => format!("it cannot be kept: {error}"),
    };
    tracing::error!(
        "{} is damaged, so what was added by command is forgotten: {kept}; add it again",
        path.display()
    );
    Vec::new()
}

/// Writes the file, or removes it when there is nothing to remember.
///
/// # Errors
/// When it cannot be written: the old one is still there.
pub(crate) fn write(path: &Path, commands: &[Command]) -> io::Result<()> {
    if commands.is_empty() {
        return remove(path);
    }
    let written = Written {
        version: VERSION,
        commands: commands.to_vec(),
    };
    let mut text = serde_json::to_vec(&written)?;
    let sum = checksum(&text);
    writeln!(text, "\n{sum:016x}")?;
    let new = beside(path, "new");
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)?;
    // The name, too, is to be there after a crash of the machine.
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Forgets what was added by command.
///
/// # Errors
/// When the file is there and cannot be removed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parse(text: &[u8]) -> Option<Vec<Command>> {
    let text = std::str::from_utf8(text).ok()?;
    let (json, sum) = text.strip_suffix('\n')?.split_once('\n')?;
    if u64::from_str_radix(sum, 16).ok()? != checksum(json.as_bytes()) {
        return None;
    }
    let written: Written = serde_json::from_str(json).ok()?;
    (written.version == VERSION).then_some(written.commands)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// FNV-1a of 64 bits: finds damage, not forgery.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use viaduct_config::{PodEntry, RouteEntry};
    use viaduct_encap::MacAddr;

    fn commands() -> Vec<Command> {
        let pod = PodEntry {
            interface: Some("veth-web".to_owned()),
            addresses: Some(vec!["10.244.1.2".to_owned()]),
            ..PodEntry::default()
        };
        let route = RouteEntry {
            prefixes: Some(vec!["10.244.7.0/24".to_owned()]),
            ..RouteEntry::default()
        };
        let device = Device {
            index: 7,
            mac: Some("02:00:00:00:00:01".to_owned()),
            place: Place::default(),
        };
        vec![
            Command {
                entry: Entry::Port(pod),
                device: Some(device),
            },
            Command {
                entry: Entry::Route(route),
                device: None,
            },
        ]
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_kept_aside() {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path().join("node-a.commands");
        assert_eq!(read(&path), []);
        write(&path, &commands()).expect("written");
        let good = fs::read(&path).expect("there");
        assert_eq!(read(&path), commands());
        let aside = beside(&path, "damaged");
        // Torn anywhere, or with any bit turned.
        for place in 0..good.len() {
            let mut turned = good.clone();
            turned[place] ^= 1;
            for bad in [&good[..place], &turned] {
                fs::write(&path, bad).expect("written");
                assert_eq!(read(&path), [], "{place}");
                assert!(!path.exists());
                assert_eq!(fs::read(&aside).expect("kept"), bad);
            }
        }
        write(&path, &commands()).expect("written");
        write(&path, &[]).expect("removed");
        assert!(!path.exists());
        remove(&path).expect("nothing to do");
        assert!(write(Path::new("/nonexistent/x"), &commands()).is_err());
    }

    #[test]
    fn a_number_counts_where_it_was_given() {
        let device = |place| Device {
            index: 7,
            mac: Some("02:00:00:00:00:01".to_owned()),
            place,
        };
        let here = Place {
            boot: "a".to_owned(),
            namespace: 1,
        };
        let rebooted = Place {
            boot: "b".to_owned(),
            ..here.clone()
        };
        let elsewhere = Place {
            namespace: 2,
            ..here.clone()
        };
        for (of, index) in [
            (here.clone(), 7),
            (rebooted, 0),
            (elsewhere, 0),
            (Place::default(), 0),
        ] {
            let known = device(of).known(&here);
            assert_eq!(known.index, index);
            assert_eq!(known.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
        }
        let old = r#"{"index":7,"mac":null}"#;
        let old: Device = serde_json::from_str(old).expect("as releases before wrote it");
        assert_eq!(
            old.known(&here),
            InterfaceId {
                index: 0,
                mac: None
            }
        );
    }
}
