//! What this node says of itself to the others: again when its configuration or its underlay's
//! addresses change.

use std::net::IpAddr;

use anyhow::Context;
use viaduct_config::Config;
use viaduct_control::OwnAddresses;
use viaduct_control::gossip::{Announcement, GossipHandle};

use crate::peers;

/// What gossip's callers say when its task is gone.
pub(crate) const ENDED: &str = "gossip has ended";

pub(crate) struct Announcer {
    /// None when the configuration has no `[gossip]`: then nothing is said.
    gossip: Option<GossipHandle>,
    own: OwnAddresses,
    /// The address at which others reach this node's gossip.
    heard: Option<IpAddr>,
    /// What was said last, if anything was since the start.
    said: Option<Announcement>,
}

impl Announcer {
    /// The node has these addresses on its underlay, and gossip has said so.
    pub(crate) fn new(gossip: Option<GossipHandle>, own: OwnAddresses) -> Self {
        Self {
            gossip,
            heard: own.iter().next(),
            own,
            said: None,
        }
    }

    /// The underlay's addresses that this node goes by.
    pub(crate) fn own(&self) -> OwnAddresses {
        self.own
    }

    /// Says what a node of this configuration is, unless that was said last.
    ///
    /// # Errors
    /// When it cannot be said, or nobody would take it: what was said before stands.
    pub(crate) async fn announce(&mut self, config: &Config) -> anyhow::Result<()> {
        let (Some(handle), Some(gossip)) = (&self.gossip, &config.gossip) else {
            return Ok(());
        };
        // A node without an address is heard when it has one.
        let Some(said) = peers::announcement(config, gossip, self.own, self.heard)? else {
            return Ok(());
        };
        if self.said.as_ref() != Some(&said) {
            let announced = handle.announce(said.clone()).await.context(ENDED)?;
            announced.context("cannot announce this node")?;
            self.heard = Some(said.gossip.ip());
            self.said = Some(said);
        }
        Ok(())
    }

    /// Says what was accepted before once more, after something else was said that did not come about.
    pub(crate) async fn announce_again(&mut self, config: &Config) {
        if let Err(error) = self.announce(config).await {
            tracing::error!("cannot tell the other nodes what this one is now: {error:#}");
        }
    }

    /// Takes the underlay's addresses as they are now; true if this node goes by others from now on.
    pub(crate) fn follow(&mut self, there: &[IpAddr]) -> bool {
        let own: OwnAddresses = there.iter().copied().collect();
        // An underlay without any address is down, and others need not know.
        if own == self.own || there.is_empty() {
            return false;
        }
        self.own = own;
        tracing::info!(addresses = ?there, "the underlay's addresses have changed");
        true
    }
}
