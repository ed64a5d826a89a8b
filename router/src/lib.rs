//! The data plane: links, rings, workers, forwarding.
//!
//! Pinned workers poll AF_XDP rings; [`forward`] decides about each frame.
#![deny(unsafe_code)]
#![allow(clippy::doc_markdown, reason = "AF_XDP and its like are names")]

mod bpf;
mod counters;
mod error;
mod forward;
mod frame;
mod reason;
mod router;
mod sys;
mod worker;
mod xsk;

pub use bpf::{Outcomes, XdpMode, remove_pins};
pub use counters::{PortTotals, WorkerTotals};
pub use error::RouterError;
pub use forward::{Tick, Verdict, WorkerState, forward};
pub use frame::Frame;
pub use reason::DropReason;
pub use router::{Attached, MAX_MTU, Router, RouterOptions};
