//! What other nodes said last, kept in a file as they signed it: a node that starts while no other
//! answers knows the ways to them.
//!
//! The file is ignored when it is damaged, and when it is so old that what was gone or forgotten
//! since may be remembered by nobody: it would come back.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{SHA256, digest};

use crate::claims::KeptNode;
use crate::record::Signed;
use crate::store::GONE_FOR;

/// What the file begins with.
const MAGIC: &[u8; 16] = b"viaduct records2";
/// What a file of an earlier release begins with, which has the records alone.
const EARLIER: &[u8; 16] = b"viaduct records1";
/// Bytes of SHA-256 and of the time, in front of the records.
const HEADER: usize = MAGIC.len() + 32 + 8;
/// Bytes of the file at most.
const MAX_FILE: usize = 64 << 20;

/// Why kept records are not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// More than any node writes.
    #[error("it is longer than {MAX_FILE} bytes")]
    TooLong,
    /// Cut short, changed, or no such file at all.
    #[error("it is damaged")]
    Damaged,
    /// Others forget as fast who has gone.
    #[error("it is older than {} hours", GONE_FOR.as_secs() / 3600)]
    Old,
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What others said last.
    pub records: Vec<Signed>,
    /// Since when that is known.
    pub(super) nodes: Vec<KeptNode>,
    /// Who had been silent for so long that others may have taken over what they claim.
    pub(super) overdue: Vec<String>,
}

/// Records of which nothing is known but that they are there.
impl From<Vec<Signed>> for Kept {
    fn from(records: Vec<Signed>) -> Self {
        Self {
            records,
            ..Self::default()
        }
    }
}

/// A file of this, which was true at a time, in seconds since 1970; none, when it would be too long.
pub(super) fn file(kept: &Kept, at: u64) -> Option<Vec<u8>> {
    let mut said = at.to_be_bytes().to_vec();
    said.extend(postcard::to_stdvec(&(&kept.records, &kept.nodes, &kept.overdue)).ok()?);
    let bytes = [&MAGIC[..], digest(&SHA256, &said).as_ref(), &said].concat();
    (bytes.len() <= MAX_FILE).then_some(bytes)
}

/// What a file has; nothing, when there is no file.
///
/// # Errors
/// Why they should not be used `now`, in seconds since 1970.
pub(super) fn read(path: &Path, now: u64) -> Result<Kept, KeptError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        return Err(KeptError::TooLong);
    }
    let (header, records) = bytes.split_at_checked(HEADER).ok_or(KeptError::Damaged)?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let (sum, at) = rest.split_at(32);
    let known = magic == MAGIC || magic == EARLIER;
    if !known || digest(&SHA256, &bytes[MAGIC.len() + 32..]).as_ref() != sum {
        return Err(KeptError::Damaged);
    }
    let at = u64::from_be_bytes(at.try_into().map_err(|_| KeptError::Damaged)?);
    if now.saturating_sub(at) >= GONE_FOR.as_secs() {
        return Err(KeptError::Old);
    }
    if magic == EARLIER {
        let records: Vec<Signed> = postcard::from_bytes(records).map_err(|_| KeptError::Damaged)?;
        return Ok(records.into());
    }
    let kept = postcard::from_bytes(records).map_err(|_| KeptError::Damaged)?;
    let (records, nodes, overdue) = kept;
    Ok(Kept {
        records,
        nodes,
        overdue,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{key, record};
    use std::fs;

    const AT: u64 = 1_800_000_000;

    #[test]
    fn records_are_read_as_they_were_written_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.records");
        assert_eq!(read(&path, AT).expect("nothing is there"), Kept::default());
        let signed = ["b", "c"]
            .map(|name| Signed::new(&record(name, 1, 1), "test", &key(1)).expect("short"));
        let kept = Kept::from(signed.to_vec());
        let whole = file(&kept, AT).expect("short");
        fs::write(&path, &whole).expect("written");
        let day = GONE_FOR.as_secs();
        for now in [AT, AT + day - 1, AT - 9] {
            assert_eq!(read(&path, now).expect("sound"), kept);
        }
        assert!(matches!(read(&path, AT + day), Err(KeptError::Old)));
        let damaged = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            matches!(read(&path, AT), Err(KeptError::Damaged))
        };
        for len in 0..whole.len() {
            assert!(damaged(&whole[..len]), "cut to {len}");
            let mut changed = whole.clone();
            changed[len] ^= 1;
            assert!(damaged(&changed), "changed at {len}");
        }
        assert!(damaged(&[&whole[..], b"x"].concat()));
        let long = File::create(&path).expect("a file");
        long.set_len(MAX_FILE as u64 + 1).expect("sparse");
        assert!(matches!(read(&path, AT), Err(KeptError::TooLong)));
    }
}
