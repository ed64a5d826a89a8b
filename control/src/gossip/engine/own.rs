//! What a node says of itself, and who may speak in its name.

use std::time::Duration;

use super::{Engine, Event};
use crate::gossip::record::{Content, NameHash, Record, RecordError, Signed, Version};
use crate::gossip::store::Offer;

/// How long a node waits before it speaks up against another that has its name: so often at most.
pub(super) const CONTEST_AFTER: Duration = Duration::from_secs(1);

/// Why a node is not forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgetError {
    /// It would only come back.
    #[error("it answers: stop it first, or have it leave")]
    Lives,
    /// Nobody has said anything in this name.
    #[error("no node of this name is known")]
    Unknown,
}

/// What becomes of this node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Held,
    /// Somebody else has spoken in it.
    Contested,
    /// It is another's, and this node says nothing.
    Yielded,
}

impl Engine {
    /// Says this of the node from now on.
    ///
    /// # Errors
    /// When nobody would take it; what was said before stands.
    pub fn announce(&mut self, content: Content, now: Duration) -> Result<(), RecordError> {
        let change = self.own.as_ref().map_or(0, |(_, version)| version.change);
        let incarnation = self.own.as_ref().map_or_else(
            || self.foca.identity().incarnation,
            |(_, version)| version.incarnation,
        );
        self.say(
            content,
            Version {
                incarnation,
                change: change + 1,
            },
            now,
        )
    }

    pub(super) fn say(
        &mut self,
        content: Content,
        version: Version,
        now: Duration,
    ) -> Result<(), RecordError> {
        let me = self.foca.identity();
        let record = Record {
            name: me.name.clone(),
            version,
            instance: me.instance,
            started: me.incarnation,
            content: content.clone(),
        };
        let signed = Signed::new(&record, &self.cluster, &self.key)?;
        self.own = Some((content, version));
        if self.claim != Claim::Yielded
            && let Offer::Taken(name) = self.store.offer(&signed, |_| false, now)
        {
            self.is_news(name, now);
        }
        Ok(())
    }

    /// Tells all nodes that another one has gone for good, with its routes; its name is free then
    /// for a node with another key.
    ///
    /// # Errors
    /// When it answers, or nobody knows it.
    pub fn forget(&mut self, name: &str, now: Duration) -> Result<(), ForgetError> {
        let lives = self.members().any(|member| member.name == name);
        if lives || name == self.foca.identity().name {
            return Err(ForgetError::Lives);
        }
        let held = self
            .store
            .get(NameHash::of(name))
            .ok_or(ForgetError::Unknown)?;
        let incarnation = held.record.version.incarnation;
        let record = Record {
            name: name.to_owned(),
            version: Version {
                incarnation,
                change: u64::MAX,
            },
            instance: 0,
            started: 0,
            content: Content::Forgotten,
        };
        let signed = Signed::new(&record, &self.cluster, &self.key);
        let signed = signed.map_err(|_| ForgetError::Unknown)?;
        if let Offer::Taken(name) = self.store.offer(&signed, |_| false, now) {
            self.is_news(name, now);
        }
        Ok(())
    }

    /// Tells the others that this node and its pods have gone.
    pub fn leave(&mut self, now: Duration) {
        if self.own.is_some() && self.announce(Content::Gone, now).is_ok() {
            for _ in 0..2 {
                self.push();
            }
        }
        self.swim(now, |foca, wanted| foca.leave_cluster(wanted));
    }

    /// Another node, or this one before it forgot which incarnation it was, has said something
    /// later in this node's name. The one that lives has the last word; of two the one with the
    /// lower instance, so that they do not go on for ever.
    pub(super) fn contest(&mut self, now: Duration) {
        self.claim = Claim::Held;
        let me = self.foca.identity().clone();
        let Some(held) = self.store.get(NameHash::of(&me.name)) else {
            return;
        };
        let (instance, version) = (held.record.instance, held.record.version);
        if instance == me.instance {
            return;
        }
        let twin = self
            .members()
            .find(|m| m.name == me.name && m.instance == instance);
        if let Some(to) = twin.cloned()
            && instance < me.instance
        {
            self.claim = Claim::Yielded;
            self.events.push(Event::Yielded { to });
        } else if let Some((content, _)) = self.own.clone() {
            let version = Version {
                incarnation: version.incarnation + 1,
                change: 1,
            };
            if let Err(error) = self.say(content, version, now) {
                self.events.push(Event::Unannounced(error));
            }
        }
    }
}
