//! What binds a node's name to its key: who comes first, the configuration, or an authority.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use ipnet::IpNet;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::record::{Content, PublicKey, Record, is_name};

/// How a node's key is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The first that is seen with a name is the node's: whoever comes first has it.
    FirstSight,
    /// By name; other nodes are not heard.
    Configured(BTreeMap<String, PublicKey>),
    /// Each record has a certificate of this one's.
    Authority(PublicKey),
}

/// What the authority of a cluster says of a node: it has this key, and may announce this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What is signed.
    pub claim: Claimed,
    /// Ed25519, 64 bytes.
    pub signature: Vec<u8>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The node's name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Seconds since 1970; of two certificates for a node the later one counts.
    pub issued: u64,
    /// What the node may announce, and nobody else; none: what is free.
    pub prefixes: Option<Vec<IpNet>>,
    /// Addresses that the node may have, and nobody else; none: the one at which gossip reaches it.
    pub addresses: Option<Vec<IpNet>>,
}

/// A certificate as releases without addresses wrote it.
#[derive(Deserialize)]
struct WithoutAddresses {
    claim: (String, PublicKey, u64, Option<Vec<IpNet>>),
    signature: Vec<u8>,
}

/// Why a node's key is not believed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
pub enum TrustError {
    /// Nobody may come.
    #[error("[[gossip.nodes]] has no node of its name")]
    UnknownNode,
    /// Or another key.
    #[error("[[gossip.nodes]] has another key for its node")]
    OtherKey,
    /// The authority has to sign.
    #[error("it has no certificate of the cluster's authority for its node and key")]
    NoCertificate,
    /// The signature is another's.
    #[error("its certificate is not signed by the cluster's authority")]
    BadCertificate,
    /// An older certificate than the node has shown.
    #[error("its certificate was replaced by a later one")]
    OldCertificate,
    /// A first key counts until its node is forgotten.
    #[error("it is signed by another key than the node has")]
    NotTheFirst,
}

impl TrustError {
    /// For counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownNode => "unknown-node",
            Self::OtherKey => "other-key",
            Self::NoCertificate => "no-certificate",
            Self::BadCertificate => "bad-certificate",
            Self::OldCertificate => "old-certificate",
            Self::NotTheFirst => "key-changed",
        }
    }
}

/// Why a certificate cannot be made or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No node can have the name.
    #[error("no node can have this name")]
    BadName,
    /// It has to fit a record.
    #[error("at most 16 prefixes and addresses fit a certificate")]
    TooLong,
    /// Not what `viaduct authority sign` says.
    #[error("it is no certificate")]
    Malformed,
}

/// Prefixes of a certificate at most: it is part of a record.
const MAX_PREFIXES: usize = 16;

fn signed_bytes(cluster: &str, claim: &Claimed) -> Vec<u8> {
    // Fails for lengths that are not known in advance only, of which there are none.
    if claim.addresses.is_some() {
        let claim = postcard::to_stdvec(claim).unwrap_or_default();
        return [
            b"viaduct certificate 2\0",
            cluster.as_bytes(),
            b"\0",
            &claim,
        ]
        .concat();
    }
    // As it was signed before there were addresses: such certificates stay good.
    let claim = (&claim.name, &claim.key, claim.issued, &claim.prefixes);
    let claim = postcard::to_stdvec(&claim).unwrap_or_default();
    [b"viaduct certificate\0", cluster.as_bytes(), b"\0", &claim].concat()
}

impl Certificate {
    /// Signs for a cluster, with the authority's key.
    ///
    /// # Errors
    /// When no node can have the name, or there are too many prefixes.
    pub fn new(
        claim: Claimed,
        cluster: &str,
        authority: &Ed25519KeyPair,
    ) -> Result<Self, CertificateError> {
        if !is_name(&claim.name) {
            return Err(CertificateError::BadName);
        }
        let lists = [&claim.prefixes, &claim.addresses];
        if lists.into_iter().flatten().map(Vec::len).sum::<usize>() > MAX_PREFIXES {
            return Err(CertificateError::TooLong);
        }
        let signature = authority.sign(&signed_bytes(cluster, &claim));
        let signature = signature.as_ref().to_vec();
        Ok(Self { claim, signature })
    }

    /// Whether this authority signed it for this cluster.
    pub fn is_of(&self, authority: &PublicKey, cluster: &str) -> bool {
        UnparsedPublicKey::new(&ED25519, authority)
            .verify(&signed_bytes(cluster, &self.claim), &self.signature)
            .is_ok()
    }

    /// As a file has it: hexadecimal digits.
    pub fn to_text(&self) -> String {
        HEX.encode(&postcard::to_stdvec(self).unwrap_or_default())
    }

    /// # Errors
    /// [`CertificateError::Malformed`].
    pub fn from_text(text: &str) -> Result<Self, CertificateError> {
        let bytes = HEX.decode(text.trim().as_bytes());
        let bytes = bytes.map_err(|_| CertificateError::Malformed)?;
        if let Ok((certificate, [])) = postcard::take_from_bytes(&bytes) {
            return Ok(certificate);
        }
        match postcard::take_from_bytes::<WithoutAddresses>(&bytes) {
            Ok((WithoutAddresses { claim, signature }, [])) => {
                let (name, key, issued, prefixes) = claim;
                let claim = Claimed {
                    name,
                    key,
                    issued,
                    prefixes,
                    addresses: None,
                };
                Ok(Self { claim, signature })
            }
            _ => Err(CertificateError::Malformed),
        }
    }
}

/// The public half of a key.
pub fn public(key: &Ed25519KeyPair) -> PublicKey {
    let mut bytes = PublicKey::default();
    bytes.copy_from_slice(key.public_key().as_ref());
    bytes
}

impl Trust {
    /// Whether a head that was signed with a key may follow what is held of its node. Anybody who
    /// is a node may say that another is forgotten.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admits(
        &self,
        record: &Record,
        key: &PublicKey,
        held: Option<(&Record, &PublicKey)>,
        cluster: &str,
    ) -> Result<(), TrustError> {
        let forgotten = |record: &Record| record.content == Content::Forgotten;
        let forgets = forgotten(record);
        match self {
            Self::FirstSight => {
                let released = |held: &Record| forgets || forgotten(held);
                match held {
                    Some((held, first)) if first != key && !released(held) => {
                        Err(TrustError::NotTheFirst)
                    }
                    _ => Ok(()),
                }
            }
            Self::Configured(keys) if forgets => {
                let known = keys.values().any(|known| known == key);
                known.then_some(()).ok_or(TrustError::OtherKey)
            }
            Self::Configured(keys) => match keys.get(&record.name) {
                None => Err(TrustError::UnknownNode),
                Some(known) if known == key => Ok(()),
                Some(_) => Err(TrustError::OtherKey),
            },
            Self::Authority(authority) => {
                let certificate = record.certificate.as_ref();
                let certificate = certificate.ok_or(TrustError::NoCertificate)?;
                let claim = &certificate.claim;
                if claim.key != *key || (claim.name != record.name && !forgets) {
                    return Err(TrustError::NoCertificate);
                }
                let before = held.and_then(|(held, _)| held.certificate.as_ref());
                let before = before.filter(|before| before.claim.name == claim.name);
                if before.is_some_and(|before| before.claim.issued > claim.issued) {
                    return Err(TrustError::OldCertificate);
                }
                let signed = certificate.is_of(authority, cluster);
                signed.then_some(()).ok_or(TrustError::BadCertificate)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{key, record};

    fn certificate(name: &str, seed: u8, issued: u64) -> Certificate {
        let claim = Claimed {
            name: name.to_owned(),
            key: public(&key(seed)),
            issued,
            prefixes: None,
            addresses: None,
        };
        Certificate::new(claim, "test", &key(100)).expect("short")
    }

    fn certified(name: &str, certificate: Certificate) -> Record {
        let mut record = record(name, 1, 1);
        record.certificate = Some(certificate);
        record
    }

    #[test]
    fn an_authority_binds_name_and_key() {
        let trust = Trust::Authority(public(&key(100)));
        let admits =
            |record: &Record, seed| trust.admits(record, &public(&key(seed)), None, "test");
        let good = certified("a", certificate("a", 1, 5));
        assert_eq!(admits(&good, 1), Ok(()));
        assert_eq!(admits(&good, 2), Err(TrustError::NoCertificate));
        assert_eq!(
            admits(&record("a", 1, 1), 1),
            Err(TrustError::NoCertificate)
        );
        let other = certified("b", certificate("a", 1, 5));
        assert_eq!(admits(&other, 1), Err(TrustError::NoCertificate));
        let mut forged = certificate("a", 1, 5);
        forged.claim.prefixes = Some(Vec::new());
        assert_eq!(
            admits(&certified("a", forged), 1),
            Err(TrustError::BadCertificate)
        );
        let elsewhere = trust.admits(&good, &public(&key(1)), None, "other");
        assert_eq!(elsewhere, Err(TrustError::BadCertificate));
        // A new key with a later certificate replaces the old one, not the other way.
        let new = certified("a", certificate("a", 2, 6));
        let after = |held: &Record, record: &Record, seed| {
            let held = Some((held, &good.certificate.as_ref().expect("one").claim.key));
            trust.admits(record, &public(&key(seed)), held, "test")
        };
        assert_eq!(after(&good, &new, 2), Ok(()));
        assert_eq!(after(&new, &good, 1), Err(TrustError::OldCertificate));
        // A node may say that another is forgotten.
        let mut forgotten = certified("b", certificate("a", 1, 5));
        forgotten.content = Content::Forgotten;
        assert_eq!(admits(&forgotten, 1), Ok(()));
        assert_eq!(admits(&forgotten, 3), Err(TrustError::NoCertificate));
    }

    #[test]
    fn a_configuration_binds_name_and_key() {
        let keys = [("a".to_owned(), public(&key(1)))];
        let trust = Trust::Configured(keys.into());
        let admits =
            |record: &Record, seed| trust.admits(record, &public(&key(seed)), None, "test");
        assert_eq!(admits(&record("a", 1, 1), 1), Ok(()));
        assert_eq!(admits(&record("a", 1, 1), 2), Err(TrustError::OtherKey));
        assert_eq!(admits(&record("b", 1, 1), 1), Err(TrustError::UnknownNode));
        let mut forgotten = record("b", 1, 1);
        forgotten.content = Content::Forgotten;
        assert_eq!(admits(&forgotten, 1), Ok(()));
        assert_eq!(admits(&forgotten, 2), Err(TrustError::OtherKey));
    }

    #[test]
    fn certificates_are_written_and_read() {
        let made = certificate("a", 1, 5);
        assert_eq!(
            Certificate::from_text(&format!(" {}\n", made.to_text())),
            Ok(made)
        );
        let mut claim = certificate("a", 1, 5).claim;
        claim.addresses = Some(vec!["192.0.2.1/32".parse().expect("one")]);
        let made = Certificate::new(claim, "test", &key(100)).expect("short");
        assert!(made.is_of(&public(&key(100)), "test"));
        assert_eq!(Certificate::from_text(&made.to_text()), Ok(made.clone()));
        let mut other = made;
        other.claim.addresses = None;
        assert!(!other.is_of(&public(&key(100)), "test"));
        for bad in ["", "00", "x"] {
            assert_eq!(
                Certificate::from_text(bad),
                Err(CertificateError::Malformed)
            );
        }
        let claim = |name: &str, prefixes| Claimed {
            name: name.to_owned(),
            key: public(&key(1)),
            issued: 1,
            prefixes: Some(vec!["fd00::/64".parse().expect("one"); prefixes]),
            addresses: None,
        };
        let new = |claim| Certificate::new(claim, "test", &key(100)).map(|_| ());
        assert_eq!(new(claim("a", 16)), Ok(()));
        assert_eq!(new(claim("a", 17)), Err(CertificateError::TooLong));
        assert_eq!(new(claim("A", 1)), Err(CertificateError::BadName));
    }
}
