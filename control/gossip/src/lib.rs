//! Gossip: nodes find each other from one peer's address and learn each other's prefixes.
//!
//! Everything here but the transport takes time and randomness as arguments and does no I/O:
//! a simulation of many nodes runs the same code as a node.

#![forbid(unsafe_code)]

mod bytes;
mod claims;
mod engine;
mod identity;
mod kept;
mod keys;
mod node;
mod record;
mod refusal;
mod seal;
mod store;
mod transport;
mod trust;
mod verified;
mod wire;

pub use engine::{
    Announcement, Detection, Engine, Event, ForgetError, Known, OneWay, Options, RefusedRecord,
};
pub use identity::{
    Identity, IdentityError, claimed_younger, first_claimed, key_from, own_key, random, seconds,
};
pub use kept::Kept;
pub use keys::{
    KeyChange, KeyError, KeyFile, KeyUse, MAX_KEYS, hexadecimal, in_hexadecimal, key_id, spoken,
};
pub use node::{Ages, Node, Nodes, TAKE_OVER};
pub use record::{
    Claim, Content, Delegation, MAX_JUMP, MAX_NAME, MAX_PARTS, MAX_RECORD, MAX_SECONDS, NameHash,
    NetworkPart, PublicKey, Record, RecordError, Signed, Version, is_name,
};
pub use refusal::Refusal;
pub use seal::{KeyId, KeyRing, MAX_DATAGRAM, SMALL_DATAGRAM, Seal};
pub use store::{GONE_FOR, Held, New, Offer, Store, StoreError};
pub use transport::{
    Gossip, GossipError, GossipHandle, GossipOptions, GossipStatus, OneWayStatus, PeerStatus,
    RefusedStatus,
};
pub use trust::{Certificate, CertificateError, Claimed, Trust, TrustError, public};
pub use verified::{Checked, Verified};
pub use wire::{Member, Message, Range, Summary};
