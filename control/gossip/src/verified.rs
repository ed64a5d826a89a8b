//! Records whose signatures are right, also for many nodes in one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::record::{Record, Signed};

/// Records that a [`Verified`] remembers.
const MAX_VERIFIED: usize = 100_000;

/// A record whose signature is right.
#[derive(Debug)]
pub struct Checked {
    /// What it says.
    pub record: Arc<Record>,
    /// As it came, to pass on.
    pub signed: Signed,
    /// Of its bytes.
    pub(super) content: u64,
}

/// Records that were verified before. Whether a signature is right does not change, so the nodes
/// of a simulation share one: it saves time and memory, and changes nothing that they do.
#[derive(Clone, Debug, Default)]
pub struct Verified(Arc<Mutex<HashMap<[u8; 32], Arc<Checked>>>>);

impl Verified {
    pub(super) fn get(&self, fingerprint: &[u8; 32]) -> Option<Arc<Checked>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(fingerprint).cloned()
    }

    pub(super) fn insert(&self, fingerprint: [u8; 32], checked: &Arc<Checked>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_VERIFIED {
            all.clear();
        }
        all.insert(fingerprint, Arc::clone(checked));
    }
}

/// Of all that a signature's check depends on.
pub(super) fn fingerprint(signed: &Signed, cluster: &str) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [
        cluster.as_bytes(),
        &signed.bytes,
        &signed.key,
        &signed.signature,
    ] {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}
