//! What a node keeps between its starts: its own key, and which incarnation it was.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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

impl Identity {
    /// Takes, or makes, a node's key from a directory, and counts one more start.
    ///
    /// # Errors
    /// When the directory cannot be written, or what is in it is damaged.
    pub fn next(directory: &Path, node: &str) -> Result<Self, IdentityError> {
        fs::create_dir_all(directory).map_err(io_error("make", directory))?;
        let path = directory.join(format!("{node}.key"));
        let document = match fs::read(&path) {
            Ok(document) => document,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
                let made = made.map_err(|_| IdentityError::NoRandomness)?;
                replace(&path, made.as_ref())?;
                made.as_ref().to_vec()
            }
            Err(error) => return Err(io_error("read this node's key from", &path)(error)),
        };
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document)
            .map_err(|_| IdentityError::BadNodeKey(path))?;
        let path = directory.join(format!("{node}.incarnation"));
        // Without the last one the clock will do: it goes on faster than starts do.
        let last = fs::read_to_string(&path).ok();
        let last: u64 = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let incarnation = clock.map_or(0, |since| since.as_secs()).max(last + 1);
        replace(&path, format!("{incarnation}\n").as_bytes())?;
        Ok(Self { key, incarnation })
    }
}

/// Writes a file as a whole, or leaves what was there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let new = path.with_extension("new");
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
