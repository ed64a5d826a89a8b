//! Why a datagram is not taken.

/// Why a datagram from the gossip port is not taken. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// More bytes than any node of this release sends.
    #[error("it is longer than 1,200 bytes")]
    TooLong,
    /// Not even a header.
    #[error("it is cut short")]
    TooShort,
    /// Its first byte is another.
    #[error("it is of another version of the protocol")]
    OtherVersion,
    /// A wrong key and a wrong cluster name look alike.
    #[error("it is sealed with a key, or for a cluster, that this node does not have")]
    UnknownKey,
    /// The tag does not fit.
    #[error("it was changed on its way, or made by somebody without the key")]
    Forged,
    /// Its counter has come before, or is too far back to know.
    #[error("it has come before")]
    Replayed,
    /// What this node sent.
    #[error("it is this node's own")]
    OwnSession,
    /// It opens, and is none of the messages there are.
    #[error("its seal is good, and it is no message that this release knows")]
    Malformed,
}

impl Refusal {
    /// For counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too-long",
            Self::TooShort => "too-short",
            Self::OtherVersion => "other-version",
            Self::UnknownKey => "unknown-key",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::OwnSession => "own-session",
            Self::Malformed => "malformed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{RecordError, StoreError, TrustError};

    #[test]
    fn each_reason_has_a_label_of_its_own() {
        let datagrams = [
            Refusal::TooLong,
            Refusal::TooShort,
            Refusal::OtherVersion,
            Refusal::UnknownKey,
            Refusal::Forged,
            Refusal::Replayed,
            Refusal::OwnSession,
            Refusal::Malformed,
        ];
        let records: [StoreError; 13] = [
            RecordError::TooLong.into(),
            RecordError::Malformed.into(),
            RecordError::BadName.into(),
            RecordError::Impossible.into(),
            RecordError::BadSignature.into(),
            TrustError::UnknownNode.into(),
            TrustError::OtherKey.into(),
            TrustError::NoCertificate.into(),
            TrustError::BadCertificate.into(),
            TrustError::OldCertificate.into(),
            TrustError::NotTheFirst.into(),
            StoreError::Lives,
            StoreError::Implausible,
        ];
        let labels = datagrams.map(Refusal::label).into_iter();
        let labels = labels.chain(records.map(StoreError::label));
        let kebab = |label: &str| label.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let unique: BTreeSet<_> = labels.filter(|label| kebab(label)).collect();
        assert_eq!(unique.len(), datagrams.len() + records.len());
    }
}
