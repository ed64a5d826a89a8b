//! What an operator may say: the configuration file of one node, its defaults and its rules.
//!
//! [`Config::load`] reads a TOML file and gives plain, checked values, or every mistake at once as
//! `file:line:column: message`. Nothing here touches the host: whether an interface exists is for others to find out,
//! and [`PodConfig::line`] and its like let them say where it was named.
//!
//! The way through the crate: `raw` is the file as written, each value with its place; `validate` turns it into
//! `model`; `source` turns places into lines, and what the TOML parser says into advice.

#![forbid(unsafe_code)]

mod entry;
mod error;
mod hint;
mod load;
mod mac;
mod model;
mod raw;
mod source;
mod validate;

pub use entry::{Entry, EntryError, PodEntry, RouteEntry};
pub use error::{ConfigError, ConfigErrors, Position};
pub use load::MAX_FILE_BYTES;
pub use mac::{Mac, ParseMacError, derive_vtep_mac};
pub use model::{
    Config, DEFAULT_GOSSIP_PORT, DEFAULT_UDP_PORT, DelegationConfig, DetectionConfig, GossipConfig,
    GossipNode, Hook, HooksConfig, NetworkConfig, NodeConfig, OnExit, PodConfig, Polling,
    RateConfig, RouteConfig, RuntimeConfig, SlowPathConfig, Trust, UnderlayConfig, WorkersConfig,
    XdpMode,
};
pub use validate::is_node_name;
