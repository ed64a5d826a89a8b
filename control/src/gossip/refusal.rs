//! Why a datagram is not taken.

/// Why a datagram from the gossip port is not taken. Each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// More bytes than any node of this release sends.
    #[error("it is longer than 1,400 bytes")]
    TooLong,
    /// Not even a header.
    #[error("it is cut short")]
    TooShort,
    /// Its first byte is another.
    #[error("it is of another version")]
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
    #[error("it is sealed well and says nothing that is understood")]
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
