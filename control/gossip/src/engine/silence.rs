//! Who answers, whose records are held, and what others may take over of a silent node.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Due, Engine, Known};
use crate::claims::SETTLE;
use crate::record::{Content, Record};
use crate::wire::{Member, Message};

impl Engine {
    /// Of which nodes something has changed since the last call: what they say, or whether they answer.
    /// `now` is when their silence begins or ends.
    pub fn take_changed(&mut self, now: Duration) -> BTreeSet<String> {
        let changed = self.liveness.take_changed();
        for name in &changed {
            let silent = self
                .head(name)
                .is_some_and(|held| !self.answers(&held.record));
            if !silent && self.liveness.is_overdue(name) {
                self.has_returned(name, now);
            }
            if let Some(at) = self.liveness.set_silent(name, silent, now) {
                self.at(at, Due::Silence(name.clone(), now));
            }
        }
        changed
    }

    /// A node answers after others may have taken over what it claims.
    pub(super) fn has_returned(&mut self, name: &str, now: Duration) {
        // If this node was away itself, it does not know who else was.
        if now.saturating_sub(self.joined) >= SETTLE
            && let Some(at) = self.seen.returned(name, self.moment(now))
        {
            self.at(at, Due::Settled(name.to_owned()));
        }
    }

    pub(super) fn answers(&self, record: &Record) -> bool {
        let me = self.foca.identity();
        record.name == me.name || self.liveness.answers(&record.name, record.instance)
    }

    /// What is known of a node that has said something.
    pub fn node(&self, name: &str, now: Duration) -> Option<Known> {
        let held = self.head(name)?;
        let record = self.store.whole(held);
        let silent_since = self.liveness.silent_since(name);
        let overdue = self.liveness.is_overdue(name);
        Some(Known {
            since: held.since,
            answers: self.answers(&record),
            silent_since,
            overdue,
            heard_from: self.liveness.heard_from(name),
            first_held: self.seen.first(name).unwrap_or(0),
            ages: self.seen.ages(&record, now),
            record,
        })
    }

    /// A datagram says whose it is.
    pub(super) fn heard_from(&mut self, member: &Member, from: SocketAddr, now: Duration) {
        let Some(held) = self.head(&member.name) else {
            return;
        };
        let own = match held.record.content {
            Content::Here { gossip, .. } => gossip.ip() == from.ip(),
            _ => false,
        };
        self.liveness.heard(&member.name, from, own, now);
    }

    /// Notes an answer of the very node whose record is held, from where that says that it is. Only that
    /// node can receive the question, and only who can write its address can forge the answer.
    pub(super) fn answered(&mut self, member: &Member, from: SocketAddr, now: Duration) {
        if let Some(held) = self.head(&member.name)
            && held.record.instance == member.instance
            && matches!(held.record.content, Content::Here { gossip, .. } if gossip == from)
        {
            self.liveness.answered(&member.name, now);
        }
    }

    /// Asks a silent node whether it lives, until others may take over what it claims.
    pub(super) fn look_at_silence(&mut self, name: String, since: Duration, now: Duration) {
        let Some(again) = self.liveness.look_at_silence(&name, since, now) else {
            return;
        };
        if let Some(held) = self.head(&name)
            && let Content::Here { gossip, .. } = held.record.content
        {
            self.send(gossip, &Message::Hello(self.foca.identity().clone()));
        }
        self.at(again, Due::Silence(name, since));
    }
}
