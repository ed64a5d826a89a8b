//! The cluster's keys in their file, which an operator gives, and commands change.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE as HEX;

use crate::identity::{IdentityError, io_error, replace};
use crate::seal::{KeyId, KeyRing};

/// Keys of a file at most.
pub const MAX_KEYS: usize = 16;

/// The keys of a cluster as a file has them: one a line, 64 hexadecimal digits; the first seals,
/// all open. Empty lines and those that begin with `#` say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    path: PathBuf,
    secrets: Vec<[u8; 32]>,
}

/// A change of the cluster's keys, on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// None: which are there?
    List,
    /// Opens with this one, too.
    Add([u8; 32]),
    /// Seals with this one.
    Use(KeyId),
    /// Opens with this one no more.
    Remove(KeyId),
    /// Takes those of the file, which was changed.
    Reload,
}

/// A key, without itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Which.
    pub id: KeyId,
    /// Whether this node seals with it.
    pub used: bool,
    /// How many seconds ago a datagram came that was sealed with it; none: never yet.
    pub heard_s: Option<u64>,
}

/// Why keys are not changed. They are as they were, and the file is.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// None of this id.
    #[error("there is no key {}; `viaduct key list` says which there are", spoken(*.0))]
    Unknown(KeyId),
    /// It seals.
    #[error("key {} is in use: use another first, on all nodes", spoken(*.0))]
    Used(KeyId),
    /// Two keys too many are one leaked.
    #[error("there are {MAX_KEYS} keys already: remove one that no node uses")]
    TooMany,
    /// The file.
    #[error(transparent)]
    File(#[from] IdentityError),
}

/// A key's id for people: 8 hexadecimal digits.
pub fn spoken(id: KeyId) -> String {
    HEX.encode(&id)
}

/// What [`spoken`] says.
pub fn key_id(text: &str) -> Option<KeyId> {
    HEX.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// 64 hexadecimal digits as the 32 bytes that they are.
pub fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    HEX.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Bytes as hexadecimal digits.
pub fn in_hexadecimal(bytes: &[u8]) -> String {
    HEX.encode(bytes)
}

impl KeyFile {
    /// Reads a file that is its owner's alone.
    ///
    /// # Errors
    /// When it is not there, open to others, or holds anything but keys, or none.
    pub fn read(path: &Path) -> Result<Self, IdentityError> {
        let reading = || io_error("read the cluster's key from", path);
        let file = File::open(path).map_err(reading())?;
        let mode = file.metadata().map_err(reading())?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::Open(path.to_owned()));
        }
        let text = fs::read_to_string(path).map_err(reading())?;
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut secrets: Vec<[u8; 32]> = Vec::new();
        for line in lines {
            let secret = hexadecimal(line);
            let secret = secret.ok_or_else(|| IdentityError::NotAKey(path.to_owned()))?;
            if !secrets.contains(&secret) {
                secrets.push(secret);
            }
        }
        if secrets.is_empty() || secrets.len() > MAX_KEYS {
            return Err(IdentityError::NotAKey(path.to_owned()));
        }
        let path = path.to_owned();
        Ok(Self { path, secrets })
    }

    /// The keys, for a cluster of this name.
    pub fn ring(&self, cluster: &str) -> KeyRing {
        KeyRing::new(cluster, &self.secrets)
    }

    /// After a change, which is in the file then.
    ///
    /// # Errors
    /// When there is no such key, it is used, there are too many, or the file cannot be written.
    pub fn changed(&self, change: &KeyChange, cluster: &str) -> Result<Self, KeyError> {
        let mut new = self.clone();
        let ids: Vec<_> = self.ring(cluster).ids().collect();
        let place = |id: &KeyId| {
            let place = ids.iter().position(|known| known == id);
            place.ok_or(KeyError::Unknown(*id))
        };
        match change {
            KeyChange::List => return Ok(new),
            KeyChange::Reload => return Ok(Self::read(&self.path)?),
            KeyChange::Add(secret) if self.secrets.contains(secret) => return Ok(new),
            KeyChange::Add(_) if self.secrets.len() >= MAX_KEYS => return Err(KeyError::TooMany),
            KeyChange::Add(secret) => new.secrets.push(*secret),
            KeyChange::Use(id) => {
                let secret = new.secrets.remove(place(id)?);
                new.secrets.insert(0, secret);
            }
            KeyChange::Remove(id) => match place(id)? {
                0 => return Err(KeyError::Used(*id)),
                place => {
                    new.secrets.remove(place);
                }
            },
        }
        let mut text = "# The first key seals, all open.\n".to_owned();
        for secret in &new.secrets {
            text += &in_hexadecimal(secret);
            text.push('\n');
        }
        replace(&self.path, text.as_bytes())?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set");
    }

    #[test]
    fn the_clusters_key_is_checked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gossip.key");
        let error = |path: &Path| KeyFile::read(path).expect_err("bad").to_string();
        assert!(error(&path).contains("No such file"));
        let key = "0a".repeat(32);
        write(&path, &format!("{key}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(error(&path).contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(KeyFile::read(&path).expect("a key").secrets, [[10; 32]]);
        write(
            &path,
            &format!("# old\n\n{key}\n {} \n{key}\n", "0B".repeat(32)),
        );
        let two = KeyFile::read(&path).expect("keys").secrets;
        assert_eq!(two, [[10; 32], [11; 32]]);
        for bad in [
            "",
            "# none",
            "0a",
            &"0g".repeat(32),
            &"0a".repeat(33),
            &"\u{e9}a".repeat(32),
            &format!("{key}\nx\n"),
        ] {
            write(&path, bad);
            assert!(error(&path).contains("64 hexadecimal digits"), "{bad}");
        }
    }

    #[test]
    fn keys_are_added_used_and_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gossip.key");
        write(&path, &"0a".repeat(32));
        let first = KeyFile::read(&path).expect("a key");
        let ids = |file: &KeyFile| file.ring("test").ids().collect::<Vec<_>>();
        let old = ids(&first)[0];
        let two = first
            .changed(&KeyChange::Add([11; 32]), "test")
            .expect("added");
        let new = ids(&two)[1];
        assert_eq!(ids(&two), [old, new]);
        let error = |file: &KeyFile, change| {
            let read = || fs::read_to_string(&path).expect("a file");
            let before = read();
            let error = file.changed(&change, "test").expect_err("refused");
            assert_eq!(read(), before);
            error.to_string()
        };
        assert!(error(&two, KeyChange::Remove(old)).contains("is in use"));
        assert!(error(&two, KeyChange::Use([1, 2, 3, 4])).contains("no key 01020304"));
        let used = two.changed(&KeyChange::Use(new), "test").expect("used");
        assert_eq!(ids(&used), [new, old]);
        let one = used
            .changed(&KeyChange::Remove(old), "test")
            .expect("removed");
        assert_eq!(ids(&one), [new]);
        assert!(error(&one, KeyChange::Remove(old)).contains("no key"));
        assert_eq!(KeyFile::read(&path).expect("keys"), one);
        let mut many = one;
        for n in 0..15 {
            let added = many.changed(&KeyChange::Add([100 + n; 32]), "test");
            many = added.expect("added");
        }
        assert!(error(&many, KeyChange::Add([1; 32])).contains("16 keys"));
    }

    #[test]
    fn ids_are_read_as_they_are_said() {
        assert_eq!(key_id(&spoken([0, 1, 0xab, 9])), Some([0, 1, 0xab, 9]));
        for bad in ["", "0001ab0", "0001ab090", "+001ab09", "0001ab0g"] {
            assert_eq!(key_id(bad), None, "{bad}");
        }
        assert_eq!(in_hexadecimal(&[0, 0xf1]), "00f1");
    }
}
