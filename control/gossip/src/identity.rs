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

use crate::record::{MAX_JUMP, MAX_SECONDS};

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

/// Since when prefixes of networks (by VNI) are claimed, in seconds since 1970.
type Claims = BTreeMap<(u32, IpNet), u64>;

fn claims_of(path: &Path) -> Claims {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let prefix = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let since: u64 = words.next()?.parse().ok()?;
        Some((prefix, since.min(MAX_SECONDS)))
    };
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(line).collect()
}

fn write_claims(path: &Path, claims: &Claims) -> Result<(), IdentityError> {
    let mut text = String::new();
    for ((vni, prefix), since) in claims {
        let _ = writeln!(text, "{vni} {prefix} {since}");
    }
    replace(path, text.as_bytes())
}

fn claims_file(directory: &Path, node: &str) -> PathBuf {
    directory.join(format!("{node}.claims"))
}

/// Since when a node claims these prefixes, and smaller ones inside them: now, for what it did not claim
/// when it was asked last. What it claimed before keeps its age, as long as it lies in what it claims now:
/// it is claimed beside that. What is a part of what it claimed before is as old.
///
/// # Errors
/// When the directory cannot be made. What cannot be written down is logged, and will count as new after
/// the next start.
pub fn first_claimed(
    directory: &Path,
    node: &str,
    wanted: &[(u32, IpNet)],
) -> Result<BTreeMap<(u32, IpNet), u64>, IdentityError> {
    fs::create_dir_all(directory).map_err(io_error("make", directory))?;
    let path = claims_file(directory, node);
    let before = claims_of(&path);
    let now = seconds().min(MAX_SECONDS);
    let inside = |(vni, prefix): &(u32, IpNet), (of, wide): &(u32, IpNet)| {
        vni == of && wide.contains(prefix)
    };
    let since = |key: &(u32, IpNet)| {
        let covering = before.iter().filter(|(old, _)| inside(key, old));
        before
            .get(key)
            .copied()
            .unwrap_or_else(|| covering.map(|(_, since)| *since).min().unwrap_or(now))
    };
    let mut claims: Claims = wanted.iter().map(|key| (*key, since(key))).collect();
    for (old, since) in &before {
        let mut around = wanted.iter().filter(|key| inside(old, key));
        if around.any(|key| claims.get(key).is_some_and(|wide| since < wide)) {
            claims.insert(*old, *since);
        }
    }
    if claims != before
        && let Err(error) = write_claims(&path, &claims)
    {
        tracing::warn!("the claims' age is not kept for the next start: {error}");
    }
    Ok(claims)
}

/// From now on these claims of a node are so young, and no older.
///
/// # Errors
/// When the file cannot be written.
pub fn claimed_younger(
    directory: &Path,
    node: &str,
    younger: &BTreeMap<(u32, IpNet), u64>,
) -> Result<(), IdentityError> {
    let path = claims_file(directory, node);
    let mut claims = claims_of(&path);
    for (key, least) in younger {
        if let Some(since) = claims.get_mut(key) {
            *since = (*since).max(*least);
        }
    }
    write_claims(&path, &claims)
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
        let last = fs::read_to_string(&path).ok();
        let last = last.and_then(|text| text.trim().parse().ok());
        let incarnation = after(last, seconds());
        // The next start goes by the clock then, and by what others hold.
        if let Err(error) = replace(&path, format!("{incarnation}\n").as_bytes()) {
            tracing::warn!("this start is not counted for the next one: {error}");
        }
        Ok(Self { key, incarnation })
    }
}

/// The incarnation of a start. The clock goes on faster than starts do, so it will do when the last one is
/// lost, or is so far ahead of the clock that others would not believe what follows. Should it be behind what
/// others hold then, they say so, and the node goes on from there.
fn after(last: Option<u64>, clock: u64) -> u64 {
    let next = last.map_or(0, |last| last.saturating_add(1));
    if next > clock.saturating_add(MAX_JUMP) {
        return clock;
    }
    next.max(clock)
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
    fn what_was_claimed_keeps_its_age_in_what_is_claimed_now() {
        let directory = tempfile::tempdir().expect("a directory");
        let prefix = |text: &str| (1, text.parse::<IpNet>().expect("one"));
        let (small, wide) = (prefix("10.244.3.0/24"), prefix("10.244.0.0/21"));
        let file = directory.path().join("a.claims");
        fs::write(&file, "1 10.244.3.0/24 7\n").expect("written");
        let claim = |wanted| first_claimed(directory.path(), "a", &[wanted]).expect("kept");
        let claims = claim(wide);
        assert_eq!((claims.len(), claims[&small]), (2, 7));
        assert!(claims[&wide] > 1_700_000_000);
        assert_eq!(claim(wide), claims, "and so it stays");
        // Smaller again: as old as before.
        assert_eq!(claim(small), [(small, 7)].into());
        assert_eq!(
            claim(prefix("10.244.3.128/25"))[&prefix("10.244.3.128/25")],
            7
        );
        claimed_younger(
            directory.path(),
            "a",
            &[(prefix("10.244.3.128/25"), 9)].into(),
        )
        .expect("written");
        assert_eq!(
            claim(prefix("10.244.3.128/25"))[&prefix("10.244.3.128/25")],
            9
        );
    }

    #[test]
    fn incarnations_grow_whatever_the_clock() {
        assert_eq!(after(None, 5), 5);
        assert_eq!(after(Some(5), 5), 6);
        assert_eq!(after(Some(5), 90), 90);
        // The clock was set back.
        assert_eq!(after(Some(1_000), 5), 1_001);
        assert_eq!(after(Some(MAX_JUMP + 5), 5), 5);
        assert_eq!(after(Some(u64::MAX), 5), 5);
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
        // A damaged file does not matter, whatever it says.
        for text in [u64::MAX.to_string(), "-1".to_owned(), String::new()] {
            fs::write(state.join("node-a.incarnation"), text).expect("written");
            let later = Identity::next(&state, "node-a").expect("kept");
            assert!(later.incarnation.abs_diff(seconds()) < 1000);
        }
        fs::write(state.join("node-a.key"), "x").expect("written");
        let error = Identity::next(&state, "node-a")
            .expect_err("damaged")
            .to_string();
        assert!(error.contains("node-a.key is no Ed25519 key"), "{error}");
    }
}
