//! Kernel settings (`/proc/sys/net`) that are changed, and given back. What they were is written
//! down first, with the network namespace that they are of, so that they can be restored, also
//! after a crash, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::place::Place;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

const ROOT: &str = "/proc/sys/net";
/// How many settings a sentence names.
const NAMED: usize = 4;

/// A setting's name, as a path below `/proc/sys/net`, and the value that it is to have.
pub(super) type Wanted = BTreeMap<String, &'static str>;

/// What a setting was, and what it was set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    was: String,
    set: String,
}

impl Changed {
    /// Nothing is done where somebody else has changed it since, or it is gone.
    fn restore(&self, name: &str) {
        if read(name).as_deref() != Some(self.set.as_str()) {
            return;
        }
        if let Err(error) = write(name, &self.was) {
            warn!(setting = name, value = self.was, %error, "cannot restore");
        }
    }
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    place: Place,
    changed: BTreeMap<String, Changed>,
}

/// What a file of saved settings says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// There is none, or it cannot be read.
    Nothing,
    /// It is of this place, or of a version that did not say.
    Here,
    /// It is of another network namespace.
    OtherNamespace,
    /// It is of an earlier boot: what it says of settings is past.
    EarlierBoot,
}

/// Settings that were changed, in a file that outlives the process.
#[derive(Debug)]
pub(super) struct Settings {
    file: PathBuf,
    place: Place,
    changed: BTreeMap<String, Changed>,
    saved: bool,
}

/// A setting as it is now; none if there is no such.
pub(super) fn read(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(ROOT).join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(name), value)
}

/// What a file says that a predecessor wrote, and of where.
fn load(file: &Path, place: &Place) -> (Origin, BTreeMap<String, Changed>) {
    let Ok(text) = fs::read(file) else {
        return (Origin::Nothing, BTreeMap::new());
    };
    if let Ok(Saved { place: of, changed }) = serde_json::from_slice(&text) {
        return if of.boot != place.boot {
            (Origin::EarlierBoot, BTreeMap::new())
        } else if of.namespace != place.namespace {
            (Origin::OtherNamespace, BTreeMap::new())
        } else {
            (Origin::Here, changed)
        };
    }
    // As versions before wrote it.
    serde_json::from_slice(&text).map_or((Origin::Nothing, BTreeMap::new()), |changed| {
        (Origin::Here, changed)
    })
}

/// What a file of saved settings says of its place.
pub(super) fn origin(file: &Path, place: &Place) -> Origin {
    load(file, place).0
}

/// Writes down that a router runs here, where no settings are written down.
///
/// # Errors
///
/// If the file cannot be written.
pub fn note_place(file: &Path, place: Place) -> io::Result<()> {
    Settings::load(file.to_owned(), place).save()
}

impl Settings {
    /// Takes over what a predecessor wrote down here.
    pub(super) fn load(file: PathBuf, place: Place) -> Self {
        let (origin, changed) = load(&file, &place);
        if origin == Origin::OtherNamespace {
            warn!(
                file = %file.display(),
                "a router of this node's name changed settings in another network namespace; they are not restored"
            );
        }
        Self {
            file,
            place,
            changed,
            saved: false,
        }
    }

    /// A setting as it was before Viaduct changed it; as it is, if it has not.
    pub(super) fn original(&self, name: &str) -> Option<String> {
        let changed = self.changed.get(name).map(|changed| changed.was.clone());
        changed.or_else(|| read(name))
    }

    /// Brings settings about that are not as wanted, having written down what they were, and makes
    /// those what they were that are not wanted any more. Returns what could not be done.
    pub(super) fn apply(&mut self, wanted: &Wanted) -> Vec<String> {
        let mut to_do = Vec::new();
        let mut noted = !self.saved;
        for (name, value) in wanted {
            // What does not exist (IPv6 switched off, an interface that just went) needs nothing.
            let Some(now) = read(name).filter(|now| now != value) else {
                continue;
            };
            to_do.push((name, *value));
            let change = self.changed.entry(name.clone()).or_insert(Changed {
                was: now,
                set: String::new(),
            });
            noted |= change.set != *value;
            (*value).clone_into(&mut change.set);
        }
        let before = self.changed.len();
        self.changed.retain(|name, changed| {
            if wanted.contains_key(name) {
                return read(name).is_some();
            }
            changed.restore(name);
            false
        });
        if noted || before != self.changed.len() {
            if let Err(error) = self.save() {
                return vec![format!(
                    "cannot write down what kernel settings were, so none is changed: {}: {error}",
                    self.file.display()
                )];
            }
            self.saved = true;
        }
        set_all(&to_do)
    }

    /// Makes every setting what it was, unless somebody has changed it since.
    pub(super) fn restore(&mut self) {
        for (name, changed) in std::mem::take(&mut self.changed) {
            changed.restore(&name);
        }
        let _ = fs::remove_file(&self.file);
    }

    /// Written beside and renamed: a crash leaves the old file or the new one.
    fn save(&self) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let beside = self.file.with_extension("new");
        let saved = Saved {
            place: self.place.clone(),
            changed: self.changed.clone(),
        };
        fs::write(&beside, serde_json::to_vec(&saved)?)?;
        fs::rename(&beside, &self.file)
    }
}

/// Sets them, with one line of the log for all; a sentence for each reason why some could not be.
fn set_all(to_do: &[(&String, &'static str)]) -> Vec<String> {
    let mut set = Vec::new();
    let mut failed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in to_do {
        match write(name, value) {
            Ok(()) => set.push(dotted(name, value)),
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(libc::EROFS) => "/proc/sys is read-only".to_owned(),
                    _ => error.to_string(),
                };
                failed.entry(reason).or_default().push(dotted(name, value));
            }
        }
    }
    if !set.is_empty() {
        info!(settings = some_of(&set), "set kernel settings");
    }
    let problems = failed.into_iter().map(|(reason, settings)| {
        format!(
            "cannot set {} ({reason}): give the router a writable /proc/sys/net, or set them on the \
             host (sysctl -w)",
            some_of(&settings)
        )
    });
    problems.collect()
}

/// As sysctl(8) takes it. Interfaces' names may have dots, which it wants as slashes.
fn dotted(name: &str, value: &str) -> String {
    let name = name.split('/').map(|part| part.replace('.', "/"));
    let name: Vec<_> = name.collect();
    format!("net.{}={value}", name.join("."))
}

/// The first few, and how many more there are.
fn some_of(settings: &[String]) -> String {
    let shown: BTreeSet<_> = settings.iter().take(NAMED).map(String::as_str).collect();
    let shown: Vec<_> = shown.into_iter().collect();
    match settings.len().checked_sub(NAMED) {
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_elsewhere_is_not_restored_here() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.settings");
        let place = Place::here(7);
        assert_eq!(origin(&file, &place), Origin::Nothing);
        let mut settings = Settings::load(file.clone(), place.clone());
        let changed = Changed {
            was: "0".into(),
            set: "1".into(),
        };
        settings.changed.insert("no/such/setting".into(), changed);
        settings.save().unwrap();
        let of = |place: Place| Settings::load(file.clone(), place).changed.len();
        assert_eq!(origin(&file, &place), Origin::Here);
        assert_eq!(of(place.clone()), 1);
        assert_eq!(origin(&file, &Place::here(8)), Origin::OtherNamespace);
        assert_eq!(of(Place::here(8)), 0);
        let boot = Place {
            boot: "another".into(),
            ..place
        };
        assert_eq!(origin(&file, &boot), Origin::EarlierBoot);
        assert_eq!(of(boot), 0);
        fs::write(&file, "{").unwrap();
        assert_eq!(origin(&file, &Place::here(7)), Origin::Nothing);
        fs::write(&file, "{\"a/b\":{\"was\":\"0\",\"set\":\"1\"}}").unwrap();
        assert_eq!(origin(&file, &Place::here(7)), Origin::Here);
    }

    #[test]
    fn names_are_as_sysctl_takes_them() {
        assert_eq!(
            dotted("ipv4/conf/eth0.5/rp_filter", "2"),
            "net.ipv4.conf.eth0/5.rp_filter=2"
        );
        let many: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        assert_eq!(some_of(&many), "0, 1, 2, 3 and 2 more");
        assert_eq!(some_of(&many[..4]), "0, 1, 2, 3");
    }
}
