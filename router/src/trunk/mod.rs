//! The trunk: a veth pair for each worker, between the hooks and its AF_XDP socket.
//!
//! The worker's end is in a network namespace that nobody but this process has: it is gone with the
//! process, and the pair with it, however the process ends. Where the hooks are, the host sees only
//! their end. `router/bpf/trunk.h` is the other side.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod link;
mod mac;

pub(crate) use self::link::{Ends, Outer, Pair, bring_up, pair};
pub(crate) use self::mac::{arrive, leave};
