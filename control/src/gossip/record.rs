//! What a node says of itself, signed: its VTEPs and its pods' prefixes.
//!
//! A node has one record. Each change makes a new one, which replaces the old one as a whole:
//! whoever has it knows all that the node says, and nothing that it no longer says.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// Bytes of a record at most, signature included: one fits a datagram with its message.
pub const MAX_RECORD: usize = 1200;
/// Bytes of a node's name at most, as of a DNS label (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 63;

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

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The node's name.
    pub name: String,
    /// Which of its records.
    pub version: Version,
    /// Drawn by the node at its start: two nodes with one name differ in it.
    pub instance: u64,
    /// The incarnation that the node started with; its version's may have had to grow since.
    pub started: u64,
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
        /// Its part of each network.
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
    /// Its VTEP's MAC.
    pub mac: [u8; 6],
    /// Where its pods have their addresses from.
    pub prefixes: Vec<IpNet>,
}

/// A record as its node wrote and signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The record in postcard's encoding.
    pub bytes: Vec<u8>,
    /// Who signed.
    pub key: PublicKey,
    /// Ed25519, 64 bytes.
    pub signature: Vec<u8>,
}

/// Why a record is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// More than [`MAX_RECORD`] bytes.
    #[error("it is longer than {MAX_RECORD} bytes; announce fewer prefixes")]
    TooLong,
    /// Its bytes are no record, or are more than one.
    #[error("it is malformed")]
    Malformed,
    /// Not a name that a node can have.
    #[error("its node's name is empty, too long, or has other signs than a-z, 0-9, '.', '-', '_'")]
    BadName,
    /// A prefix with host bits, a VNI of more than 24 bits, an address that no node can have.
    #[error("it says what cannot be")]
    Impossible,
    /// Signature and key do not fit.
    #[error("its signature is wrong")]
    BadSignature,
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
    fn check(&self) -> Result<(), RecordError> {
        if !is_name(&self.name) {
            return Err(RecordError::BadName);
        }
        let Content::Here {
            gossip,
            vteps,
            networks,
        } = &self.content
        else {
            return Ok(());
        };
        let reachable = |address: &IpAddr| {
            !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
        };
        let sound = reachable(&gossip.ip())
            && vteps.iter().all(reachable)
            && networks.iter().all(|part| {
                part.vni < 1 << 24
                    && part.mac[0] & 1 == 0
                    && part.prefixes.iter().all(|p| p.trunc() == *p)
            });
        if sound {
            Ok(())
        } else {
            Err(RecordError::Impossible)
        }
    }
}

/// By which a record is found: 64 bits of SHA-256 of the node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NameHash(pub u64);

impl NameHash {
    /// Of this name.
    pub fn of(name: &str) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest.as_ref()[..8]);
        Self(u64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes")
    }

    pub(in super::super) fn record(name: &str, incarnation: u64, change: u64) -> Record {
        Record {
            name: name.to_owned(),
            version: Version {
                incarnation,
                change,
            },
            instance: 1,
            started: incarnation,
            content: Content::Here {
                gossip: "192.0.2.1:7946".parse().expect("an address"),
                vteps: vec!["192.0.2.1".parse().expect("an address")],
                networks: vec![NetworkPart {
                    vni: 1,
                    port: 8472,
                    mac: [2, 0, 0, 0, 1, 1],
                    prefixes: vec!["10.244.1.0/24".parse().expect("a prefix")],
                }],
            },
        }
    }

    #[test]
    fn a_signed_record_verifies_and_nothing_else_does() {
        let record = record("node-a", 3, 4);
        let signed = Signed::new(&record, "test", &key(1)).expect("short");
        assert_eq!(signed.decode(), Ok(record));
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
            p.prefixes = vec!["10.244.1.1/24".parse().expect("one")];
        });
        assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        let mut bad = record("x", 1, 1);
        part(&mut bad, |p| p.mac = [1; 6]);
        assert_eq!(Signed::new(&bad, "test", &key(1)).map(|_| ()), impossible);
        let mut long = record("x", 1, 1);
        part(&mut long, |p| {
            p.prefixes = vec!["fd00::/64".parse().expect("one"); 70];
        });
        assert_eq!(
            Signed::new(&long, "test", &key(1)).map(|_| ()),
            Err(RecordError::TooLong)
        );
    }
}
