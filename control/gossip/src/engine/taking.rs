//! Records that come: which are taken, and what is told of the others.

use std::net::SocketAddr;
use std::time::Duration;

use super::own::{Claim, Rival};
use super::swim::member_of;
use super::{Engine, Event, OneWay, RefusedRecord};
use crate::record::{Content, Record, Signed};
use crate::store::{Offer, StoreError};
use crate::trust::TrustError;
use crate::wire::Message;

impl Engine {
    /// Takes a record that somebody sent.
    pub(super) fn take(&mut self, from: SocketAddr, signed: &Signed, now: Duration) {
        let liveness = &self.liveness;
        let lives = |held: &Record| liveness.lives(&held.name, held.instance, now);
        let new = match self.store.judge(signed, lives, self.clock) {
            Ok(Some(new)) => new,
            Ok(None) => return,
            Err(why) => return self.refuse(from, signed, why, now),
        };
        let (record, me) = (new.record(), self.foca.identity());
        let ours = record.name == me.name && record.instance != me.instance;
        let member = (record.part == 0).then(|| member_of(record)).flatten();
        if ours && self.claim != Claim::Yielded {
            // Words about this node are answered, and change nothing here.
            if record.content == Content::Forgotten {
                self.claiming.was_forgotten();
            }
            self.contested(Rival::of(record), now);
        } else {
            let node = record.name.clone();
            self.trouble.taken(&node);
            let Offer::Taken { name, replaced } = self.store.accept(new, now) else {
                return;
            };
            self.is_news(name, replaced, now);
        }
        self.meet(member, now);
    }

    /// Counts a record that is not taken, and tells its node, if it is that node that has brought it.
    pub(super) fn refuse(
        &mut self,
        from: SocketAddr,
        signed: &Signed,
        why: StoreError,
        now: Duration,
    ) {
        let said = signed.decode().ok();
        let node = said.as_ref().map_or_else(String::new, |r| r.name.clone());
        let tell = self.trouble.refused(&node, from, why, now);
        self.events.push(Event::RecordRefused {
            node: node.clone(),
            from,
            why,
        });
        if let Some(record) = &said
            && node == self.foca.identity().name
            && why == StoreError::Trust(TrustError::NotTheFirst)
            && signed.verify(&self.cluster).is_ok()
        {
            self.outrank(record.version, now);
        }
        let itself = said.is_some_and(|record| match record.content {
            Content::Here { gossip, .. } => gossip == from,
            _ => false,
        });
        if itself && tell && node != self.foca.identity().name {
            self.send(from, &Message::NotTaken { node, why });
        }
    }

    /// Records that are not taken, by node.
    pub fn records_refused(&self, now: Duration) -> Vec<RefusedRecord> {
        self.trouble.records(now)
    }

    /// Who does not take this node's record, and why.
    pub fn refusers(&self, now: Duration) -> Vec<(SocketAddr, StoreError)> {
        self.trouble.refusers(now)
    }

    /// Nodes that are heard and do not hear this one.
    pub fn one_way(&self, now: Duration) -> Vec<OneWay> {
        self.trouble.one_way(&self.liveness, now)
    }

    /// Members whose records do not come, and since when.
    pub fn unrecorded(&self, now: Duration) -> Vec<(String, Duration)> {
        self.trouble.unrecorded(now)
    }

    /// When something came from an address that peers may be found at.
    pub fn seed_heard(&self, seed: SocketAddr) -> Option<Duration> {
        self.seeds_heard.get(&seed).copied()
    }
}
