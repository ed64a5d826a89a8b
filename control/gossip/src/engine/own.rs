//! What a node says of itself, and who may speak in its name.

use std::time::Duration;

use super::parts::{Announcement, Parts};
use super::{Due, Engine, Event};
use crate::record::{Content, MAX_JUMP, NameHash, Record, RecordError, Signed, Version};
use crate::store::{Offer, StoreError};
use crate::trust::{Certificate, TrustError};
use crate::wire::Member;

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

/// Somebody else's record of this node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rival {
    version: Version,
    instance: u64,
}

impl Rival {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            version: record.version,
            instance: record.instance,
        }
    }
}

/// What this node has said.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// None: that it has gone.
    said: Option<Announcement>,
    parts: Parts,
    version: Version,
}

impl Own {
    pub(super) fn said(&self) -> Option<&Announcement> {
        self.said.as_ref()
    }
}

impl Engine {
    /// Says this of the node from now on.
    ///
    /// # Errors
    /// When nobody would take it; what was said before stands.
    pub fn announce(&mut self, content: Announcement, now: Duration) -> Result<(), RecordError> {
        let (mut content, start) = (content, self.own.is_none());
        if start {
            self.claiming.away_since = self.clock;
        }
        let opened = self.claiming.adjust(&mut content, start, self.clock);
        let (version, address) = (self.next_version(), content.gossip);
        self.say(Some(content), version, now)?;
        if opened {
            self.compare_later(now);
        }
        let me = self.foca.identity();
        if me.address.ip().is_unspecified() {
            // Nobody has heard of it yet.
            self.has_address(address);
        } else if me.address != address {
            let moved = Member {
                address,
                ..me.clone()
            };
            self.swim(now, |foca, wanted| foca.change_identity(moved, wanted));
        }
        Ok(())
    }

    /// Shows this certificate from now on: the authority's later word on this node.
    ///
    /// # Errors
    /// When the node's record would not fit with it, or it is older than the former one: no node takes a record
    /// with an older certificate than it has seen. The former one stands.
    pub fn set_certificate(
        &mut self,
        certificate: Option<Certificate>,
        now: Duration,
    ) -> Result<(), StoreError> {
        let issued = |one: &Option<Certificate>| one.as_ref().map(|one| one.claim.issued);
        if certificate.is_some() && issued(&certificate) < issued(&self.certificate) {
            return Err(TrustError::OldCertificate.into());
        }
        let former = std::mem::replace(&mut self.certificate, certificate);
        let said = self.own.as_ref().map(|own| own.said.clone());
        let Some(said) = said.filter(|_| former != self.certificate) else {
            return Ok(());
        };
        let told = self.say(said, self.next_version(), now);
        if told.is_err() {
            self.certificate = former;
        }
        Ok(told?)
    }

    fn next_version(&self) -> Version {
        let incarnation = self.foca.identity().incarnation;
        let first = Version {
            incarnation,
            change: 1,
        };
        self.own.as_ref().map_or(first, |own| Version {
            change: own.version.change.saturating_add(1),
            ..own.version
        })
    }

    fn say(
        &mut self,
        said: Option<Announcement>,
        version: Version,
        now: Duration,
    ) -> Result<(), RecordError> {
        let me = self.foca.identity();
        let head = Record {
            name: me.name.clone(),
            part: 0,
            version,
            instance: me.instance,
            started: me.incarnation,
            certificate: self.certificate.clone(),
            content: Content::Gone,
        };
        let mut parts = self
            .own
            .as_ref()
            .map_or_else(Parts::default, |own| own.parts.clone());
        let contents = match &said {
            Some(said) => parts.split(said, &head)?,
            None => vec![Content::Gone],
        };
        let mut signed = Vec::new();
        for (part, content) in (0..).zip(contents) {
            let mut record = head.clone();
            (record.part, record.content) = (part, content);
            if part > 0 {
                record.certificate = None;
            }
            if part == 0 || !self.is_said(&record) {
                signed.push(Signed::new(&record, &self.cluster, &self.key)?);
            }
        }
        self.own = Some(Own {
            said,
            parts,
            version,
        });
        if self.claim == Claim::Yielded {
            return Ok(());
        }
        // The head first: it says which parts count.
        for signed in &signed {
            if let Offer::Taken { name, .. } = self.store.offer(signed, |_| false, self.clock, now)
            {
                self.is_news(name, true, now);
            }
        }
        Ok(())
    }

    /// Whether a part says the same already.
    fn is_said(&self, record: &Record) -> bool {
        self.store.get(record.id()).is_some_and(|held| {
            let held = &held.record;
            held.content == record.content
                && held.instance == record.instance
                && held.version.incarnation == record.version.incarnation
        })
    }

    /// Tells all nodes that another one has gone for good, with its routes; its name is free then
    /// for a node with another key.
    ///
    /// # Errors
    /// When it answers, or nobody knows it.
    pub fn forget(&mut self, name: &str, now: Duration) -> Result<(), ForgetError> {
        let held = self
            .store
            .get(NameHash::of(name))
            .ok_or(ForgetError::Unknown)?;
        if name == self.foca.identity().name {
            return Err(ForgetError::Lives);
        }
        // One that answers under another key is another node: its name's first key is lost.
        let lives = (self.liveness).lives(name, held.record.instance, now);
        if lives && !self.trouble.has_other_key(name) {
            return Err(ForgetError::Lives);
        }
        let incarnation = held.record.version.incarnation;
        let record = Record {
            name: name.to_owned(),
            part: 0,
            version: Version {
                incarnation,
                change: u64::MAX,
            },
            instance: 0,
            started: 0,
            // This node's: it is this node that says so.
            certificate: self.certificate.clone(),
            content: Content::Forgotten,
        };
        let signed = Signed::new(&record, &self.cluster, &self.key);
        let signed = signed.map_err(|_| ForgetError::Unknown)?;
        if let Offer::Taken { name, .. } = self.store.offer(&signed, |_| false, self.clock, now) {
            self.is_news(name, true, now);
        }
        Ok(())
    }

    /// Tells the others that this node and its pods have gone.
    pub fn leave(&mut self, now: Duration) {
        if self.own.is_some() && self.say(None, self.next_version(), now).is_ok() {
            for _ in 0..2 {
                self.push(now);
            }
        }
        self.swim(now, |foca, wanted| foca.leave_cluster(wanted));
    }

    /// Somebody has said something later in this node's name.
    pub(super) fn contested(&mut self, by: Rival, now: Duration) {
        self.rival = self.rival.max(Some(by));
        if self.claim == Claim::Held {
            self.claim = Claim::Contested;
            self.at(now + CONTEST_AFTER, Due::Contest);
        }
    }

    /// Others hold a record of this node's name by another key. This node's has to be later than that, or
    /// nobody would look at it, also when its name is free again.
    pub(super) fn outrank(&mut self, held: Version, now: Duration) {
        let Some(own) = self.own.clone().filter(|own| own.version <= held) else {
            return;
        };
        let most = own.version.incarnation.max(self.clock);
        if held.incarnation > most.saturating_add(MAX_JUMP) {
            return;
        }
        let version = Version {
            incarnation: held.incarnation.saturating_add(1),
            change: 1,
        };
        if let Err(error) = self.say(own.said, version, now) {
            self.events.push(Event::Unannounced(error));
        }
    }

    /// Another node, or this one before it forgot which incarnation it was, has said something
    /// later in this node's name. The one that lives has the last word; of two the one with the
    /// lower instance, so that they do not go on for ever.
    pub(super) fn contest(&mut self, now: Duration) {
        self.claim = Claim::Held;
        let Some(rival) = self.rival.take() else {
            return;
        };
        let me = self.foca.identity().clone();
        let mut twins = self.liveness.of(&me.name).iter();
        let twin = twins.find(|m| m.instance == rival.instance).cloned();
        if let Some(to) = twin
            && rival.instance < me.instance
        {
            self.claim = Claim::Yielded;
            self.events.push(Event::Yielded { to });
        } else if let Some(own) = self.own.clone() {
            // The store has refused what is so high that nothing could follow.
            let version = Version {
                incarnation: rival.version.incarnation.saturating_add(1),
                change: 1,
            };
            if let Err(error) = self.say(own.said, version, now) {
                self.events.push(Event::Unannounced(error));
            }
        }
    }
}
