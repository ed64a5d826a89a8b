//! Gossip: nodes find each other from one peer's address and learn each other's prefixes.
//!
//! Everything here but the transport takes time and randomness as arguments and does no I/O:
//! a simulation of many nodes runs the same code as a node.

mod bytes;
mod engine;
mod identity;
mod kept;
mod keys;
mod record;
mod refusal;
mod seal;
mod store;
mod transport;
mod trust;
mod verified;
mod wire;

pub use engine::{Announcement, Detection, Engine, Event, ForgetError, Options};
pub use identity::{Identity, IdentityError, first_claimed, key_from, own_key, random, seconds};
pub use keys::{
    KeyChange, KeyError, KeyFile, KeyUse, MAX_KEYS, hexadecimal, in_hexadecimal, key_id, spoken,
};
pub use record::{
    Claim, Content, Delegation, MAX_NAME, MAX_PARTS, MAX_RECORD, NameHash, NetworkPart, PublicKey,
    Record, RecordError, Signed, Version, is_name,
};
pub use refusal::Refusal;
pub use seal::{KeyId, KeyRing, MAX_DATAGRAM, Seal};
pub use store::{GONE_FOR, Held, Offer, Store, StoreError};
pub use transport::{Gossip, GossipError, GossipHandle, GossipOptions, GossipStatus, Known};
pub use trust::{Certificate, CertificateError, Claimed, Trust, TrustError, public};
pub use verified::{Checked, Verified};
pub use wire::{Member, Message, Range, Summary};
