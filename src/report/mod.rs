//! What the commands that only read say: each subject's JSON, and the same for people. The names of
//! fields are documented in docs/operations.md.

mod drops;
mod gossip;
mod health;
mod keys;
mod peers;
mod ports;
mod problems;
mod routes;
mod status;
mod table;

use std::sync::Arc;

use viaduct_config::Config;
use viaduct_control::AgentStatus;
use viaduct_control::gossip::GossipStatus;

use crate::orchestrator::State;
use crate::plane::SharedRouter;

pub(crate) use drops::{drops, drops_text};
pub(crate) use gossip::peers;
pub(crate) use keys::keys_text;
pub(crate) use peers::peers_text;
pub(crate) use ports::{ports, ports_text};
pub(crate) use routes::{routes, routes_text};
pub(crate) use status::{status, status_text};

/// What is reported of, at one moment.
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) router: &'a SharedRouter,
    pub(crate) agent: Arc<AgentStatus>,
    /// None where it is not asked for, or this node does not gossip.
    pub(crate) gossip: Option<GossipStatus>,
    /// It has just started, and has not learned any route yet.
    pub(crate) learning: bool,
}

impl View<'_> {
    fn config(&self) -> &Config {
        self.state.desired.config()
    }
}
