//! What nodes say to each other, inside a seal, in postcard's encoding.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::record::{NameHash, Signed, Version};
use crate::refusal::Refusal;
use crate::seal::{MAX_MESSAGE, SMALL_MESSAGE};
use crate::store::StoreError;

/// How many buckets a digest has: names fall into them by the first bits of their hash.
pub(super) const BUCKETS: usize = 128;
/// Bytes of a message that are left when its kind and lengths are written.
pub(super) const ROOM: usize = MAX_MESSAGE - 16;
/// The same of a message that every path carries.
pub(super) const SMALL_ROOM: usize = SMALL_MESSAGE - 16;
/// Buckets of a digest in one message.
pub(super) const BUCKETS_A_MESSAGE: usize = 64;
/// Names of a [`Message::Request`] at most; so many fit a small message.
pub(super) const MAX_NAMES: usize = 45;
/// Records of a [`Range`] at most; so many fit a small message.
pub(super) const MAX_RANGE: usize = 12;

/// Who a node is, for membership: SWIM's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Grows with each start.
    pub incarnation: u64,
    /// Drawn at its start.
    pub instance: u64,
    /// Grows when it comes back after others thought it dead.
    pub renewal: u16,
}

impl foca::Identity for Member {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            renewal: self.renewal.wrapping_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        let rank = |m: &Self| (m.incarnation, m.instance, m.renewal);
        rank(self) > rank(other)
    }
}

/// What somebody has of a node, without what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Of the node's name.
    pub name: NameHash,
    /// The version it has.
    pub version: Version,
    /// Of the record, so that two of one version differ.
    pub content: u64,
}

/// All that somebody has of the names from `first` to `last`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first name's hash that it speaks of.
    pub first: NameHash,
    /// The last one's.
    pub last: NameHash,
    /// What there is between them, at most [`MAX_RANGE`].
    pub records: Vec<Summary>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Who is there? To an address of which no more is known.
    Hello(Member),
    /// Answers [`Hello`](Self::Hello).
    Welcome(Member),
    /// foca's.
    Swim(#[serde(with = "crate::bytes")] Vec<u8>),
    /// News, or what was asked for.
    Records(Vec<Signed>),
    /// Hashes of buckets; whoever has others answers with what it has.
    Digest {
        /// The first bucket of these.
        first: u8,
        /// Half of each one's hash.
        hashes: Vec<u32>,
    },
    /// What the sender has where both differ.
    Ranges(Vec<Range>),
    /// Asks for the records of these names.
    Request(Vec<NameHash>),
    /// Asks for them in pieces: whole ones do not come.
    RequestPieces(Vec<NameHash>),
    /// A piece of a record.
    Piece {
        /// Tells it from others of this sender.
        record: u64,
        /// Which piece, from 0.
        number: u8,
        /// How many there are.
        of: u8,
        /// Of a [`Signed`] in postcard's encoding.
        #[serde(with = "crate::bytes")]
        bytes: Vec<u8>,
    },
    /// The sender does not take the record of the node to which this goes.
    NotTaken {
        /// That node's name.
        node: String,
        /// Why not.
        why: StoreError,
    },
}

impl Message {
    /// At most [`MAX_MESSAGE`] bytes, when its maker has counted right.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Fails for lengths that are not known in advance only, of which there are none.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(Refusal::Malformed),
        }
    }
}
