//! The control plane: what the kernel knows, and the reconciler.
//!
//! [`Agent`] keeps a node's forwarding table and data plane as [`AgentOptions`] and the kernel
//! say. It listens to the kernel's events, looks at what changed ([`kernel`]), and hands what it
//! sees to a reconciler that decides without asking anybody. The forwarding table is reached
//! through [`viaduct_fib::Publisher`], the data plane through [`DataPlane`].

#![forbid(unsafe_code)]

mod agent;
mod binding;
mod data_plane;
mod difference;
mod error;
pub mod kernel;
mod next_hop;
mod observe;
mod options;
mod overlaps;
mod own_addresses;
mod place;
mod preview;
mod reconciler;
mod slow_path;
pub mod sources;
mod status;
#[cfg(test)]
mod testing;

pub use agent::{Agent, AgentHandle};
pub use binding::{Binding, InterfaceId};
pub use data_plane::{DataPlane, DataPlaneError, PodSide};
pub use error::AgentError;
pub use options::{
    AgentOptions, NetworkOptions, OptionsError, OwnAddresses, PortOptions, RouteOptions,
    SlowPathOptions, UnderlayOptions,
};
pub use overlaps::Overlaps;
pub use place::Place;
pub use preview::{Preview, preview};
pub use slow_path::{Leftovers, LeftoversError, SlowPathError, has_slow_path, note_place};
pub use status::{
    AgentStatus, MtuBy, NextHopStatus, PortState, PortStatus, RouteList, RouteState, RouteStatus,
    SlowPathStatus, StatusHandle,
};
pub use viaduct_gossip as gossip;
