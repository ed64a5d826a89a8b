//! Kernel settings (`/proc/sys/net`) that the slow path needs, interface by interface. What they
//! were is written down first, so that it can be restored, also after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

const ROOT: &str = "/proc/sys/net";

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

/// Settings that were changed, in a file that outlives the process.
#[derive(Debug)]
pub(super) struct Settings {
    file: PathBuf,
    changed: BTreeMap<String, Changed>,
}

/// What the interfaces need. `read` gives a setting as it is, or was before Viaduct changed it.
pub(super) fn wanted(
    underlay: &str,
    devices: &[&str],
    pods: &[&str],
    read: impl Fn(&str) -> Option<String>,
) -> Wanted {
    let mut wanted = Wanted::new();
    for interface in pods.iter().chain(devices).copied().chain([underlay]) {
        wanted.insert(format!("ipv4/conf/{interface}/forwarding"), "1");
        wanted.insert(format!("ipv6/conf/{interface}/forwarding"), "1");
    }
    for pod in pods {
        // Pods with a /24 take each other for neighbours; the routes say whom to answer for.
        wanted.insert(format!("ipv4/conf/{pod}/proxy_arp"), "1");
        wanted.insert(format!("ipv6/conf/{pod}/proxy_ndp"), "1");
        // Answers for others are otherwise held back for up to 0.8 s.
        wanted.insert(format!("ipv4/neigh/{pod}/proxy_delay"), "0");
        wanted.insert(format!("ipv6/neigh/{pod}/proxy_delay"), "0");
        // A pod must not tell the host where the world is (CVE-2020-13401 is of this kind).
        wanted.insert(format!("ipv6/conf/{pod}/accept_ra"), "0");
    }
    for device in devices {
        wanted.insert(format!("ipv6/conf/{device}/accept_ra"), "0");
    }
    // A pod's packets to a node leave by the underlay, the answers come by VXLAN: strict checks
    // of the reverse path would drop them. The stricter of "all" and the interface's counts.
    let strict = |name: &str| {
        let value = |of: &str| read(&format!("ipv4/conf/{of}/rp_filter"));
        let own = value(name).or_else(|| value("default"));
        let effective = [own, value("all")].into_iter().flatten().max();
        effective.as_deref() == Some("1")
    };
    for interface in devices.iter().copied().chain([underlay]) {
        if strict(interface) {
            wanted.insert(format!("ipv4/conf/{interface}/rp_filter"), "2");
        }
    }
    forward_v6(&mut wanted, underlay, devices, pods, &read);
    wanted
}

/// What the interfaces of pods need whose network the kernel does not carry: answers for their
/// gateway, whose route back may be another network's, and nothing forwarded.
pub(super) fn add_strangers(wanted: &mut Wanted, pods: &[&str]) {
    for pod in pods {
        for (name, value) in [
            ("ipv4/conf/{}/rp_filter", "0"),
            ("ipv4/conf/{}/forwarding", "0"),
            ("ipv6/conf/{}/forwarding", "0"),
            ("ipv6/conf/{}/accept_ra", "0"),
        ] {
            wanted.insert(name.replace("{}", pod), value);
        }
    }
}

/// The kernel forwards IPv6 only if it does so everywhere, or (Linux 6.17) where it is forced to.
fn forward_v6(
    wanted: &mut Wanted,
    underlay: &str,
    devices: &[&str],
    pods: &[&str],
    read: &impl Fn(&str) -> Option<String>,
) {
    // A host that forwards ignores router advertisements, unless told to heed them all the same.
    if read(&format!("ipv6/conf/{underlay}/accept_ra")).as_deref() == Some("1") {
        wanted.insert(format!("ipv6/conf/{underlay}/accept_ra"), "2");
    }
    if read("ipv6/conf/all/forwarding").as_deref() != Some("0") {
        return;
    }
    if read(&format!("ipv6/conf/{underlay}/force_forwarding")).is_none() {
        wanted.insert("ipv6/conf/all/forwarding".into(), "1");
        return;
    }
    for interface in pods.iter().chain(devices).copied().chain([underlay]) {
        wanted.insert(format!("ipv6/conf/{interface}/force_forwarding"), "1");
    }
}

/// A setting as it is now; none if there is no such.
fn read(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(ROOT).join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(ROOT).join(name), value)
}

impl Settings {
    /// Takes over what a predecessor wrote down.
    pub(super) fn load(file: PathBuf) -> Self {
        let changed = fs::read(&file)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            file,
            changed: changed.unwrap_or_default(),
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
        let mut noted = false;
        for (name, value) in wanted {
            // What does not exist (IPv6 switched off, an interface that just went) needs nothing.
            let Some(now) = read(name).filter(|now| now != value) else {
                continue;
            };
            to_do.push((name, *value));
            noted |= !self.changed.contains_key(name);
            self.changed.entry(name.clone()).or_insert(Changed {
                was: now,
                set: (*value).to_owned(),
            });
        }
        let before = self.changed.len();
        self.changed.retain(|name, changed| {
            if wanted.contains_key(name) {
                return read(name).is_some();
            }
            changed.restore(name);
            false
        });
        if (noted || before != self.changed.len())
            && let Err(error) = self.save()
        {
            return vec![format!("cannot write {}: {error}", self.file.display())];
        }
        let mut problems = Vec::new();
        for (name, value) in to_do {
            match write(name, value) {
                Ok(()) => info!(setting = name, value, "set"),
                Err(error) => problems.push(format!("cannot set {name} to {value}: {error}")),
            }
        }
        problems
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
        fs::write(&beside, serde_json::to_vec(&self.changed)?)?;
        fs::rename(&beside, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_with(values: &[(&str, &str)]) -> Wanted {
        wanted("eth0", &["viaduct.1"], &["veth-a"], |name| {
            let found = values.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn strict_reverse_path_checks_are_loosened_and_others_left() {
        let strict = wanted_with(&[("ipv4/conf/all/rp_filter", "1")]);
        assert_eq!(strict.get("ipv4/conf/eth0/rp_filter"), Some(&"2"));
        let loose = [
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/eth0/rp_filter", "2"),
        ];
        assert_eq!(wanted_with(&loose).get("ipv4/conf/eth0/rp_filter"), None);
        assert_eq!(wanted_with(&[]).get("ipv4/conf/eth0/rp_filter"), None);
    }

    #[test]
    fn ipv6_is_forwarded_where_it_can_be_told_and_everywhere_else() {
        let old = wanted_with(&[("ipv6/conf/all/forwarding", "0")]);
        assert_eq!(old.get("ipv6/conf/all/forwarding"), Some(&"1"));
        let new = [
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/force_forwarding", "0"),
        ];
        let new = wanted_with(&new);
        assert_eq!(new.get("ipv6/conf/all/forwarding"), None);
        assert_eq!(new.get("ipv6/conf/veth-a/force_forwarding"), Some(&"1"));
        let set = wanted_with(&[("ipv6/conf/all/forwarding", "1")]);
        assert_eq!(set.get("ipv6/conf/veth-a/force_forwarding"), None);
    }

    #[test]
    fn a_host_that_learns_its_routes_goes_on_to() {
        let learns = wanted_with(&[("ipv6/conf/eth0/accept_ra", "1")]);
        assert_eq!(learns.get("ipv6/conf/eth0/accept_ra"), Some(&"2"));
        assert_eq!(wanted_with(&[]).get("ipv6/conf/eth0/accept_ra"), None);
    }
}
