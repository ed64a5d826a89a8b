//! The time, as an argument.

/// `CLOCK_MONOTONIC` in nanoseconds, read once a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u64);
