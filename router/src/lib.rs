//! The data plane: links, rings, workers, forwarding.
//!
//! Pinned workers poll AF_XDP rings; [`forward`] decides about each frame.
#![deny(unsafe_code)]
#![expect(
    clippy::vec_box,
    reason = "a boxed link crosses to its worker and back in one word, and is not moved among the others"
)]

mod attach;
mod bpf;
mod counters;
mod error;
mod files;
mod flows;
mod forward;
mod frame;
mod limit;
mod pins;
mod reason;
mod router;
mod sys;
mod tick;
mod trunk;
mod tun;
mod worker;
pub mod xsk;

pub use attach::has_tcx;
pub use bpf::{Carried, ClusterPrefix, Outcomes, Settled, Trial, Tried, XdpMode};
pub use counters::{PortTotals, SocketTotals, WorkerTotals};
pub use error::RouterError;
pub use flows::{FromPod, FromUnderlay, Side};
pub use forward::{
    DEFAULT_NETWORK, Exception, Pipeline, Prefetched, Verdict, WorkerState, answer, forward,
    originate, pod_pipeline, prepare_fragments, underlay_pipeline,
};
pub use frame::{Frame, MAX_MTU};
pub use pins::{pinned_programs, remove_pins};
pub use reason::DropReason;
pub use router::{Attached, Hook, InTc, Liveness, PodSide, Router, RouterOptions, WorkerHealth};
pub use sys::network_namespace;
pub use tick::Tick;
pub use tun::check_tun;
#[doc(hidden)]
pub use worker::HandoffPair;
