//! What a node says of itself, signed: its VTEPs and its pods' prefixes.
//!
//! A node has one record, or, when that would not fit a datagram, a head and more parts. Each
//! change makes a new version, which replaces the old one of its part as a whole. What is in one
//! part stays there, so that parts may come in any order and nothing is missing meanwhile. The head
//! says how many parts there are; others than these count for nothing.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::trust::Certificate;

/// Bytes of a record at most, signature included: one fits a datagram with its message.
pub const MAX_RECORD: usize = 1100;
/// Bytes of a node's name at most, as of a DNS label (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 63;

/// Parts of a node's record at most: about 14,000 IPv4 prefixes.
pub const MAX_PARTS: u16 = 256;

/// The highest incarnation with which a node can become known, and the latest second since 1970 of a
/// claim: it is thousands of years away, and far enough from the highest number to count on from there.
pub const MAX_SECONDS: u64 = 1 << 40;
/// How far an incarnation may be above both the one that is held of its node and the clock, in seconds.
/// A node starts with the last one and 1, or with its clock's seconds since 1970.
pub const MAX_JUMP: u64 = 30 * 24 * 3600;

/// An Ed25519 public key (RFC 8032).
pub type PublicKey = [u8; 32];

/// Which of a node's records this is: a later one replaces the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Grows with each start of the node.
    pub incarnation: u64,
    /// Grows with each change.
    pub change: u64,
}

/// What a node says. Name, part and version are read before the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node's name.
    pub name: String,
    /// Which part of what the node says; 0 for the head.
    pub part: u16,
    /// Which of its records.
    pub version: Version,
    /// Drawn by the node at its start: two nodes with one name differ in it.
    pub instance: u64,
    /// The incarnation that the node started with; its version's may have had to grow since.
    pub started: u64,
    /// What the cluster's authority says of the node, where there is one; the head has it.
    pub certificate: Option<Certificate>,
    /// What it says.
    pub content: Content,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// The node is there.
    Here {
        /// Where it listens for gossip.
        gossip: SocketAddr,
        /// Its underlay addresses; the first of a family is where its tunnels end.
        vteps: Vec<IpAddr>,
        /// How many parts there are, this one among them, 1 to [`MAX_PARTS`].
        parts: u16,
        /// Its part of each network.
        networks: Vec<NetworkPart>,
    },
    /// More of each network.
    More {
        /// With the same VNIs, ports and MACs.
        networks: Vec<NetworkPart>,
    },
    /// The node has gone, and its pods with it.
    Gone,
    /// An operator had another node say that this one has gone; its key is nobody's any more.
    Forgotten,
}

/// A node's part of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPart {
    /// VXLAN network identifier (RFC 7348, section 5).
    pub vni: u32,
    /// UDP port of its tunnels.
    pub port: u16,
    /// Its VTEP's MAC in packets over IPv4.
    pub mac: [u8; 6],
    /// The same in packets over IPv6.
    pub mac6: [u8; 6],
    /// Where its pods have their addresses from.
    pub prefixes: Vec<Claim>,
    /// Addresses of other nodes' prefixes, whose pods have moved to this one.
    pub moved: Vec<IpNet>,
    /// What of its own prefixes is another node's.
    pub delegated: Vec<Delegation>,
}

/// A prefix that a node claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Claim {
    /// The prefix.
    pub prefix: IpNet,
    /// Since when, in seconds since 1970, by its own clock. Of two claims the earlier one counts.
    pub since: u64,
}

/// A part of a node's prefix whose pod has moved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Delegation {
    /// Usually one address.
    pub prefix: IpNet,
    /// The name of the node that has it now.
    pub to: String,
}

impl NetworkPart {
    /// Of a network, with nothing in it.
    #[must_use]
    pub fn empty(&self) -> Self {
        Self {
            prefixes: Vec::new(),
            moved: Vec::new(),
            delegated: Vec::new(),
            ..self.clone()
        }
    }

    /// Adds what another part has of the same network.
    fn append(&mut self, other: &Self) {
        self.prefixes.extend_from_slice(&other.prefixes);
        self.moved.extend_from_slice(&other.moved);
        self.delegated.extend_from_slice(&other.delegated);
    }
}

/// A record as its node wrote and signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The record in postcard's encoding.
    #[serde(with = "crate::bytes")]
    pub bytes: Vec<u8>,
    /// Who signed.
    pub key: PublicKey,
    /// Ed25519, 64 bytes.
    #[serde(with = "crate::bytes")]
    pub signature: Vec<u8>,
}

/// Why a record is not taken.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
pub enum RecordError {
    /// More than [`MAX_RECORD`] bytes.
    #[error(
        "it is longer than {MAX_RECORD} bytes in each of {MAX_PARTS} parts; announce fewer prefixes"
    )]
    TooLong,
    /// Its bytes are no record, or are more than one.
    #[error("it is malformed")]
    Malformed,
    /// Not a name that a node can have.
    #[error("its node's name is empty, too long, or has other signs than a-z, 0-9, '.', '-', '_'")]
    BadName,
    /// A prefix with host bits, a claim of the far future, a VNI of more than 24 bits, an address that
    /// no node can have.
    #[error("it has a prefix, a time, a VNI or an address that no record can have")]
    Impossible,
    /// Signature and key do not fit.
    #[error("its signature is wrong")]
    BadSignature,
}

impl RecordError {
    /// For counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "record-too-long",
            Self::Malformed => "record-malformed",
            Self::BadName => "bad-name",
            Self::Impossible => "impossible",
            Self::BadSignature => "bad-signature",
        }
    }
}

/// What is signed: a record says nothing to another cluster.
fn signed_bytes(cluster: &str, bytes: &[u8]) -> Vec<u8> {
    [b"viaduct record\0", cluster.as_bytes(), b"\0", bytes].concat()
}

impl Signed {
    /// Signs a record for a cluster.
    ///
    /// # Errors
    /// When it is too long, or nobody would take it.
    pub fn new(record: &Record, cluster: &str, key: &Ed25519KeyPair) -> Result<Self, RecordError> {
        record.check()?;
        let bytes = postcard::to_stdvec(record).map_err(|_| RecordError::Malformed)?;
        let signature = key.sign(&signed_bytes(cluster, &bytes));
        let public = key.public_key().as_ref();
        let signed = Self {
            bytes,
            key: public.try_into().map_err(|_| RecordError::BadSignature)?,
            signature: signature.as_ref().to_vec(),
        };
        if signed.len() > MAX_RECORD {
            return Err(RecordError::TooLong);
        }
        Ok(signed)
    }

    /// Bytes that it takes in a message, or a few less.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.key.len() + self.signature.len() + 4
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The record, if it is one. Whether its node wrote it, [`verify`](Self::verify) says.
    ///
    /// # Errors
    /// Why not.
    pub fn decode(&self) -> Result<Record, RecordError> {
        if self.len() > MAX_RECORD {
            return Err(RecordError::TooLong);
        }
        let (record, rest): (Record, _) =
            postcard::take_from_bytes(&self.bytes).map_err(|_| RecordError::Malformed)?;
        if !rest.is_empty() {
            return Err(RecordError::Malformed);
        }
        record.check()?;
        Ok(record)
    }

    /// Which record it says to be: its node's name, part and version, which stand first.
    pub(super) fn peek(&self) -> Option<(&str, u16, Version)> {
        let peeked = postcard::take_from_bytes(&self.bytes);
        peeked.ok().map(|(peeked, _)| peeked)
    }

    /// Whether it was signed with its key, for this cluster.
    ///
    /// # Errors
    /// [`RecordError::BadSignature`].
    pub fn verify(&self, cluster: &str) -> Result<(), RecordError> {
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(&signed_bytes(cluster, &self.bytes), &self.signature)
            .map_err(|_| RecordError::BadSignature)
    }
}

/// Whether a node can have this name: what can also be a file's and a host's.
pub fn is_name(name: &str) -> bool {
    let sign = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(sign)
}

impl Record {
    /// By which it is found.
    pub fn id(&self) -> NameHash {
        NameHash::of_part(&self.name, self.part)
    }

    /// How many parts its head says there are; 0 when the node has gone.
    pub fn parts(&self) -> u16 {
        match self.content {
            Content::Here { parts, .. } => parts,
            Content::More { .. } | Content::Gone | Content::Forgotten => 0,
        }
    }

    /// Its part of each network.
    pub fn networks(&self) -> &[NetworkPart] {
        match &self.content {
            Content::Here { networks, .. } | Content::More { networks } => networks,
            Content::Gone | Content::Forgotten => &[],
        }
    }

    /// Adds what another part says.
    pub(super) fn append(&mut self, other: &Self) {
        let Content::Here { networks, .. } = &mut self.content else {
            return;
        };
        for part in other.networks() {
            match networks.iter_mut().find(|own| own.vni == part.vni) {
                Some(own) => own.append(part),
                None => networks.push(part.clone()),
            }
        }
    }

    fn check(&self) -> Result<(), RecordError> {
        if !is_name(&self.name) {
            return Err(RecordError::BadName);
        }
        let reachable = |address: &IpAddr| {
            !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
        };
        let place = match &self.content {
            Content::Here {
                gossip,
                vteps,
                parts,
                ..
            } => {
                self.part == 0
                    && (1..=MAX_PARTS).contains(parts)
                    && reachable(&gossip.ip())
                    && vteps.iter().all(reachable)
            }
            Content::More { .. } => (1..MAX_PARTS).contains(&self.part),
            Content::Gone | Content::Forgotten => self.part == 0,
        };
        let sound = |part: &NetworkPart| {
            part.vni < 1 << 24
                && (part.mac[0] | part.mac6[0]) & 1 == 0
                && (part.prefixes.iter())
                    .all(|p| p.prefix.trunc() == p.prefix && p.since <= MAX_SECONDS)
                && part.moved.iter().all(|p| p.trunc() == *p)
                && (part.delegated.iter()).all(|d| d.prefix.trunc() == d.prefix && is_name(&d.to))
        };
        if place && self.networks().iter().all(sound) {
            Ok(())
        } else {
            Err(RecordError::Impossible)
        }
    }
}

/// By which a record is found: 64 bits of SHA-256 of the node's name, and the part's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NameHash(pub u64);

impl NameHash {
    /// Of the head of this name's node.
    pub fn of(name: &str) -> Self {
        Self::of_part(name, 0)
    }

    /// Of a part.
    pub fn of_part(name: &str, part: u16) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(name.as_bytes());
        if part > 0 {
            // No name has such a sign.
            context.update(&[0]);
            context.update(&part.to_be_bytes());
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&context.finish().as_ref()[..8]);
        Self(u64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes")
    }

    pub(crate) fn claim(prefix: &str, since: u64) -> Claim {
        let prefix = prefix.parse().expect("a prefix");
        Claim { prefix, since }
    }

    pub(crate) fn record(name: &str, incarnation: u64, change: u64) -> Record {
        Record {
            name: name.to_owned(),
            part: 0,
            version: Version {
                incarnation,
                change,
            },
            instance: 1,
            started: incarnation,
            certificate: None,
            content: Content::Here {
                gossip: "192.0.2.1:7950".parse().expect("an address"),
                vteps: vec!["192.0.2.1".parse().expect("an address")],
                parts: 1,
                networks: vec![NetworkPart {
                    vni: 1,
                    port: 8472,
                    mac: [2, 0, 0, 0, 1, 1],
                    mac6: [2, 0, 0, 0, 1, 6],
                    prefixes: vec![claim("10.244.1.0/24", 7)],
                    moved: Vec::new(),
                    delegated: Vec::new(),
                }],
            },
        }
    }

    #[test]
    fn a_signed_record_verifies_and_nothing_else_does() {
        let record = record("node-a", 3, 4);
        let signed = Signed::new(&record, "test", &key(1)).expect("short");
        let version = record.version;
        assert_eq!(signed.decode(), Ok(record));
        assert_eq!(signed.peek(), Some(("node-a", 0, version)));
        assert_eq!(signed.verify("test"), Ok(()));
        assert_eq!(signed.verify("other"), Err(RecordError::BadSignature));
        for change in [
            |s: &mut Signed| s.bytes[1] ^= 1,
            |s: &mut Signed| s.signature[5] ^= 1,
            |s: &mut Signed| s.key[5] ^= 1,
            |s: &mut Signed| s.bytes.push(0),
            |s: &mut Signed| s.signature.clear(),
        ] {
            let mut changed = signed.clone();
            change(&mut changed);
            assert!(changed.verify("test").is_err(), "{changed:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut Record)| {
            let mut record = record("node-a", 1, 1);
            change(&mut record);
            Signed::new(&record, "test", &key(1)).map(|_| ())
        };
        assert_eq!(with(|_| ()), Ok(()));
        for name in ["", "Node", "a/b", "n\u{f6}de", &"a".repeat(64)] {
            let mut record = record("x", 1, 1);
            record.name = name.to_owned();
            let signed = Signed::new(&record, "test", &key(1));
            assert_eq!(signed, Err(RecordError::BadName), "{name}");
        }
        let part = |record: &mut Record, change: fn(&mut NetworkPart)| {
            if let Content::Here { networks, .. } = &mut record.content {
                change(&mut networks[0]);
            }
        };
        let impossible = Err(RecordError::Impossible);
        let mut bad = record("x", 1, 1);
        part(&mut bad, |p| p.vni = 1 << 24);
        assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        let mut bad = record("x", 1, 1);
        part(&mut bad, |p| {
            p.prefixes = vec![claim("10.244.1.1/24", 1)];
        });
        assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        for family in [
            |p: &mut NetworkPart| p.mac = [1; 6],
            |p: &mut NetworkPart| p.mac6 = [1; 6],
        ] {
            let mut bad = record("x", 1, 1);
            part(&mut bad, family);
            assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        }
        for (part, parts) in [(1, 1), (0, 0), (0, 257)] {
            let mut bad = record("x", 1, 1);
            bad.part = part;
            if let Content::Here { parts: said, .. } = &mut bad.content {
                *said = parts;
            }
            assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        }
        let mut long = record("x", 1, 1);
        part(&mut long, |p| {
            p.prefixes = vec![claim("fd00::/64", 1); 70];
        });
        assert_eq!(
            Signed::new(&long, "test", &key(1)).map(|_| ()),
            Err(RecordError::TooLong)
        );
    }
}
