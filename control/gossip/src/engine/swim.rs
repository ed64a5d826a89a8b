//! foca's SWIM: who lives, and how nodes find each other.

use std::mem;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Notification, PostcardCodec, Runtime, Timer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use super::{Detection, Due, Engine, Event};
use crate::record::{Content, Record};
use crate::wire::{Member, Message, SMALL_ROOM};

/// What foca wants to be done.
#[derive(Default)]
pub(super) struct Wanted {
    send: Vec<(SocketAddr, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Member>)>,
    events: Vec<Event>,
    members: Vec<Change>,
}

/// What foca says of a member.
enum Change {
    Up(Member),
    Down(Member),
    Renamed(Member, Member),
}

impl Runtime<Member> for Wanted {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        match notification {
            Notification::MemberUp(member) => {
                self.events.push(Event::Up(member.clone()));
                self.members.push(Change::Up(member.clone()));
            }
            Notification::MemberDown(member) => {
                self.events.push(Event::Down(member.clone()));
                self.members.push(Change::Down(member.clone()));
            }
            Notification::Rename(old, new) => {
                let (old, new) = (old.clone(), new.clone());
                self.members.push(Change::Renamed(old, new));
            }
            _ => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        self.send.push((to.address, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.push((after, event));
    }
}

impl Engine {
    /// This node has its first address. It has not spoken before, so nobody has to be told of another.
    pub(super) fn has_address(&mut self, address: SocketAddr) {
        let me = self.foca.identity().clone();
        let swim = sized(self.detection, 0);
        let rng = StdRng::from_rng(&mut self.rng);
        self.foca = Foca::new(Member { address, ..me }, swim, rng, PostcardCodec);
        self.seek();
    }

    /// Who lives, without this node.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.foca.iter_members().map(foca::Member::id)
    }

    /// How many live, without this node.
    pub fn members_count(&self) -> usize {
        self.foca.num_members()
    }

    /// Runs something of foca's and carries out what it wants.
    pub(super) fn swim(
        &mut self,
        now: Duration,
        work: impl FnOnce(
            &mut Foca<Member, PostcardCodec, StdRng, NoCustomBroadcast>,
            &mut Wanted,
        ) -> Result<(), foca::Error>,
    ) {
        let mut wanted = Wanted::default();
        let alone = self.foca.num_members() == 0;
        // Its errors speak of packets that are late, or of members that have gone meanwhile.
        let _ = work(&mut self.foca, &mut wanted);
        for (to, data) in wanted.send {
            self.send(to, &Message::Swim(data));
        }
        for (after, timer) in wanted.timers {
            self.at(now + after, Due::Swim(timer));
        }
        self.events.append(&mut wanted.events);
        self.members_stale |= !wanted.members.is_empty();
        for change in wanted.members {
            match change {
                Change::Up(member) => {
                    let recorded = self.head(&member.name).is_some();
                    self.trouble.up(&member, recorded, now);
                    self.liveness.up(&member);
                }
                Change::Down(member) => {
                    self.trouble.down(&member);
                    self.liveness.down(&member);
                }
                Change::Renamed(old, new) => self.liveness.renamed(&old, &new),
            }
        }
        let some = self.foca.num_members() > 0;
        if alone == some {
            self.company(some, now);
        }
        if alone && some {
            self.pull();
        }
    }

    pub(super) fn refresh_members(&mut self) {
        if mem::take(&mut self.members_stale) {
            self.members.clear();
            let members = self.foca.iter_members().map(|member| member.id().address);
            self.members.extend(members);
            let count = self.members.len();
            // Others have to have the time to contradict, which grows with their number's logarithm.
            if count.max(1).ilog2() != self.sized_for.max(1).ilog2() {
                // Fails for times that cannot change, which do not depend on it.
                let _ = self.foca.set_config(sized(self.detection, count));
                self.sized_for = count;
            }
        }
    }

    /// Whoever has a record may live: SWIM will see. Without this a node of many would hear of the
    /// last of them after minutes.
    pub(super) fn meet(&mut self, members: impl IntoIterator<Item = Member>, now: Duration) {
        let members = members.into_iter().map(foca::Member::alive);
        self.swim(now, |foca, wanted| foca.apply_many(members, false, wanted));
    }

    /// Takes all whose records it holds for members, until SWIM finds that they are none. A real node
    /// asks instead; a simulation of thousands begins so, as joining costs each of them N² steps.
    pub fn assume_members(&mut self, now: Duration) {
        let records = self.store.iter().map(|held| &*held.record);
        let others = records.filter(|record| record.name != self.member().name);
        let members: Vec<_> = others.filter_map(member_of).collect();
        self.meet(members, now);
    }

    /// Looks for a node that was known to live, so that two parts of a cluster find each other again
    /// however they were parted.
    pub(super) fn seek_silent(&mut self) {
        let me = self.foca.identity().clone();
        // By instance: somebody else may call itself by the name.
        let live = |record: &Record| self.liveness.answers(&record.name, record.instance);
        let silent = self
            .store
            .iter()
            .filter_map(|held| match held.record.content {
                Content::Here { gossip, .. } if !live(&held.record) => Some(gossip),
                _ => None,
            });
        let silent = silent.filter(|address| *address != me.address);
        if let Some(to) = silent.choose(&mut self.rng) {
            self.send(to, &Message::Hello(me));
        }
    }

    pub(super) fn seek(&mut self) {
        self.refresh_members();
        let me = self.foca.identity().clone();
        let known = |seed: &SocketAddr| *seed == me.address || self.members.contains(seed);
        let unknown: Vec<_> = self.seeds.iter().copied().filter(|s| !known(s)).collect();
        for seed in unknown {
            self.send(seed, &Message::Hello(me.clone()));
        }
    }

    /// Where other nodes may be found; replaces the earlier list.
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>) {
        let same = self.seeds == seeds;
        self.seeds = seeds;
        let seeds = &self.seeds;
        self.seeds_heard.retain(|at, _| seeds.contains(at));
        if self.foca.num_members() == 0 || !same {
            self.seek();
        }
    }
}

/// For this node and so many others.
pub(super) fn sized(detection: Detection, others: usize) -> foca::Config {
    let size = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
    let mut swim = foca::Config::new_lan(NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN));
    if let Some(interval) = detection.probe_interval {
        // Suspicion is so many intervals.
        let times = swim.suspect_to_down_after.as_secs_f64() / swim.probe_period.as_secs_f64();
        swim.suspect_to_down_after = interval.mul_f64(times);
        swim.probe_period = interval;
        swim.probe_rtt = swim.probe_rtt.min(interval / 2);
    }
    swim.probe_rtt = detection.probe_timeout.unwrap_or(swim.probe_rtt);
    swim.suspect_to_down_after = detection.suspicion.unwrap_or(swim.suspect_to_down_after);
    // Who lives has to be known on every path.
    swim.max_packet_size = NonZeroUsize::new(SMALL_ROOM).unwrap_or(NonZeroUsize::MIN);
    swim
}

/// A node as its record has it.
pub(super) fn member_of(record: &Record) -> Option<Member> {
    let Content::Here { gossip, .. } = record.content else {
        return None;
    };
    Some(Member {
        name: record.name.clone(),
        address: gossip,
        incarnation: record.started,
        instance: record.instance,
        renewal: 0,
    })
}
