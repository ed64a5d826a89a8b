//! What a node keeps between its starts: its own key, and which incarnation it was.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;

/// Why a node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or directory cannot be read or written.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
    /// The cluster's key is for few to see.
    #[error("{} can be read by others than its owner; chmod 600 it", .0.display())]
    Open(PathBuf),
    /// It is no key.
    #[error(
        "{} does not hold 1 to 16 keys, each a line of 64 hexadecimal digits; `viaduct key new` makes such a key",
        .0.display()
    )]
    NotAKey(PathBuf),
    /// This node's key is damaged.
    #[error(
        "{} is no Ed25519 key; restore it, or remove it and have the other nodes forget this one",
        .0.display()
    )]
    BadNodeKey(PathBuf),
    /// The kernel gives no randomness.
    #[error("the kernel gives no random bytes")]
    NoRandomness,
}

pub(super) fn io_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |error| IdentityError::Io { doing, path, error }
}

/// Random bytes.
///
/// # Errors
/// [`IdentityError::NoRandomness`].
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    let filled = ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut bytes);
    filled.map_err(|_| IdentityError::NoRandomness)?;
    Ok(bytes)
}

/// What a node keeps.
#[derive(Debug)]
pub struct Identity {
    /// Signs what it says.
    pub key: Ed25519KeyPair,
    /// Grows with each start, and with the clock, should the directory be lost.
    pub incarnation: u64,
}

/// Since when a node claims each of these prefixes of networks (by VNI), in seconds since 1970: now,
/// for those that it did not claim when it was asked last.
///
/// # Errors
/// When the directory cannot be written.
pub fn first_claimed(
    directory: &Path,
    node: &str,
    wanted: &[(u32, IpNet)],
) -> Result<BTreeMap<(u32, IpNet), u64>, IdentityError> {
    fs::create_dir_all(directory).map_err(io_error("make", directory))?;
    let path = directory.join(format!("{node}.claims"));
    let text = fs::read_to_string(&path).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split(' ');
        let prefix = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((prefix, words.next()?.parse().ok()?))
    };
    let before: BTreeMap<(u32, IpNet), u64> = text.lines().filter_map(line).collect();
    let now = seconds();
    let since = |key: &(u32, IpNet)| before.get(key).copied().unwrap_or(now);
    let claims: BTreeMap<_, _> = wanted.iter().map(|key| (*key, since(key))).collect();
    if claims != before {
        let mut text = String::new();
        for ((vni, prefix), since) in &claims {
            let _ = writeln!(text, "{vni} {prefix} {since}");
        }
        replace(&path, text.as_bytes())?;
    }
    Ok(claims)
}

/// Since 1970.
pub fn seconds() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    clock.map_or(0, |since| since.as_secs())
}

/// A key from a file, which is made when it is missing and `create` says so.
///
/// # Errors
/// When it cannot be read or made, or is damaged.
pub fn key_from(path: &Path, create: bool) -> Result<Ed25519KeyPair, IdentityError> {
    let document = match fs::read(path) {
        Ok(document) => document,
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
            let made = made.map_err(|_| IdentityError::NoRandomness)?;
            replace(path, made.as_ref())?;
            made.as_ref().to_vec()
        }
        Err(error) => return Err(io_error("read the key", path)(error)),
    };
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document);
    key.map_err(|_| IdentityError::BadNodeKey(path.to_owned()))
}

/// A node's own key, which is made when there is none.
///
/// # Errors
/// When the directory cannot be written, or the key is damaged.
pub fn own_key(directory: &Path, node: &str) -> Result<Ed25519KeyPair, IdentityError> {
    fs::create_dir_all(directory).map_err(io_error("make", directory))?;
    key_from(&directory.join(format!("{node}.key")), true)
}

impl Identity {
    /// Takes, or makes, a node's key from a directory, and counts one more start.
    ///
    /// # Errors
    /// When the directory cannot be written, or what is in it is damaged.
    pub fn next(directory: &Path, node: &str) -> Result<Self, IdentityError> {
        let key = own_key(directory, node)?;
        let path = directory.join(format!("{node}.incarnation"));
        // Without the last one the clock will do: it goes on faster than starts do.
        let last = fs::read_to_string(&path).ok();
        let last: u64 = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let incarnation = seconds().max(last + 1);
        replace(&path, format!("{incarnation}\n").as_bytes())?;
        Ok(Self { key, incarnation })
    }
}

/// Writes a file as a whole, or leaves what was there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    written.map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::KeyPair;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_claim_keeps_its_age() {
        let directory = tempfile::tempdir().expect("a directory");
        let prefix = |text: &str| (1, text.parse::<IpNet>().expect("one"));
        let (first, second) = (prefix("10.244.1.0/24"), prefix("fd00::/64"));
        let file = directory.path().join("a.claims");
        fs::write(&file, "1 10.244.1.0/24 7\n1 10.244.9.0/24 8\nx\n").expect("written");
        let claims = first_claimed(directory.path(), "a", &[first, second]).expect("kept");
        assert_eq!(claims[&first], 7);
        assert!(claims[&second] > 1_700_000_000);
        let again = first_claimed(directory.path(), "a", &[second]).expect("kept");
        assert_eq!(again[&second], claims[&second]);
        let later = first_claimed(directory.path(), "a", &[first]).expect("kept");
        assert!(later[&first] > 7, "given up and claimed anew");
    }

    #[test]
    fn a_node_is_the_same_after_a_start_and_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let first = Identity::next(&state, "node-a").expect("made");
        let second = Identity::next(&state, "node-a").expect("kept");
        assert_eq!(
            first.key.public_key().as_ref(),
            second.key.public_key().as_ref()
        );
        assert!(second.incarnation > first.incarnation);
        let other = Identity::next(&state, "node-b").expect("made");
        assert_ne!(
            first.key.public_key().as_ref(),
            other.key.public_key().as_ref()
        );
        let mode = fs::metadata(state.join("node-a.key"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        // A clock that was set back does not matter, a lost file neither.
        fs::write(state.join("node-a.incarnation"), "99999999999\n").expect("written");
        let later = Identity::next(&state, "node-a").expect("kept");
        assert_eq!(later.incarnation, 100_000_000_000);
        fs::write(state.join("node-a.key"), "x").expect("written");
        let error = Identity::next(&state, "node-a")
            .expect_err("damaged")
            .to_string();
        assert!(error.contains("node-a.key is no Ed25519 key"), "{error}");
    }
}
