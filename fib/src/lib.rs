//! Which way a pod is: the forwarding table and the one seam between the two planes.
//!
//! The control plane owns a [`Publisher`], stages [`Update`]s and publishes them together. Each
//! worker owns a [`Reader`] and takes a [`Snapshot`] once per batch. There are two copies of the
//! table that swap places (left-right): workers read one while the other is brought up to date,
//! so a reader never waits, allocates or frees, and an update costs what it changes.

#![forbid(unsafe_code)]

mod entry;
mod fib;
mod ids;
mod lpm;
mod modify;
mod publisher;
mod reader;
mod update;

pub use entry::{Limits, Network, NextHop, NextHopState, Port, Rate, slot};
pub use fib::{Counts, Fib};
pub use ids::{MAX_NETWORKS, MAX_PORTS, MAX_TUNNELS, NetworkId, PortId, TunnelId};
pub use publisher::{Publisher, ReaderStuck};
pub use reader::{Reader, ReaderFactory, Snapshot};
pub use update::{Update, UpdateError};
