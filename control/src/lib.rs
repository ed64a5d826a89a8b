//! The control plane: what the kernel knows, and the reconciler.
//!
//! [`Agent`] keeps a node's forwarding table and data plane as [`AgentOptions`] and the kernel
//! say. It listens to the kernel's events, looks at what changed ([`kernel`]), and hands what it
//! sees to a reconciler that decides without asking anybody. The forwarding table is reached
//! through [`viaduct_fib::Publisher`], the data plane through [`DataPlane`].

#![forbid(unsafe_code)]

mod agent;
mod data_plane;
mod error;
pub mod gossip;
pub mod kernel;
mod next_hop;
mod observe;
mod options;
mod reconciler;
mod slow_path;
mod status;
#[cfg(test)]
mod testing;

pub use agent::{Agent, AgentHandle};
pub use data_plane::{DataPlane, DataPlaneError, PodSide};
pub use error::AgentError;
pub use options::{
    AgentOptions, NetworkOptions, OptionsError, OwnAddresses, PortOptions, RouteOptions,
    SlowPathOptions, UnderlayOptions,
};
pub use slow_path::{SlowPathError, remove_slow_path};
pub use status::{
    AgentStatus, NextHopStatus, PortState, PortStatus, RouteState, RouteStatus, SlowPathStatus,
    StatusHandle,
};
