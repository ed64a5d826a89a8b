//! Who answers, by name, and since when others do not.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::node::TAKE_OVER;
use crate::wire::Member;

/// Senders that are remembered at most.
const MAX_HEARD: usize = 8192;
/// How long a node counts as heard from the address that its record has.
const HEARD_FOR: Duration = Duration::from_secs(60);
/// How often a silent node is asked before others may take over what it claims.
const ASK: Duration = Duration::from_secs(15);
/// How long a silent node's answer counts: one answer may be lost.
const ANSWER_HOLDS: Duration = Duration::from_secs(40);

/// Follows what foca says of members.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// Usually one for each name; more when a machine was copied or reinstalled.
    live: HashMap<String, Vec<Member>>,
    /// Since when nodes do not answer that have a record.
    silent: HashMap<String, Duration>,
    /// Those of them whose silence has lasted for [`TAKE_OVER`], also if it had before this start.
    overdue: HashSet<String>,
    heard: HashMap<String, (SocketAddr, Duration)>,
    /// When nodes that SWIM calls silent last answered this node itself.
    answered: HashMap<String, Duration>,
    /// Of whom something has changed that [`Node`](crate::Node) shows.
    changed: BTreeSet<String>,
}

impl Liveness {
    pub(super) fn up(&mut self, member: &Member) {
        // Nearly all have one: no room is made for more.
        let all = self.live.entry(member.name.clone());
        let all = all.or_insert_with(|| Vec::with_capacity(1));
        if !all.contains(member) {
            all.push(member.clone());
        }
        self.note(&member.name);
    }

    pub(super) fn down(&mut self, member: &Member) {
        if let Some(all) = self.live.get_mut(&member.name) {
            all.retain(|other| other != member);
            if all.is_empty() {
                self.live.remove(&member.name);
            }
        }
        self.note(&member.name);
    }

    pub(super) fn renamed(&mut self, old: &Member, new: &Member) {
        let all = self.live.get(&old.name);
        if all.is_some_and(|all| all.contains(old)) {
            self.down(old);
            self.up(new);
        }
    }

    /// Something of this node has changed.
    pub(super) fn note(&mut self, name: &str) {
        if !self.changed.contains(name) {
            self.changed.insert(name.to_owned());
        }
    }

    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    /// Those of a name that answer.
    pub(super) fn of(&self, name: &str) -> &[Member] {
        self.live.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether the very node answers that was started with this number.
    pub(super) fn answers(&self, name: &str, instance: u64) -> bool {
        self.of(name).iter().any(|m| m.instance == instance)
    }

    /// Sets since when a node is silent, or that it is not. When its silence is to be looked at again.
    pub(super) fn set_silent(
        &mut self,
        name: &str,
        silent: bool,
        now: Duration,
    ) -> Option<Duration> {
        if !silent {
            self.silent.remove(name);
            self.answered.remove(name);
            self.overdue.remove(name);
            return None;
        }
        if self.silent.contains_key(name) {
            return None;
        }
        self.silent.insert(name.to_owned(), now);
        Some(now.saturating_add(ASK))
    }

    /// Looks again at a silence that began at `since`. What SWIM says of a node is not signed, so others
    /// may take over its claims only when it has not answered this node either for [`TAKE_OVER`].
    /// When it is to be asked and looked at again; none: it is overdue, or that silence has ended.
    pub(super) fn look_at_silence(
        &mut self,
        name: &str,
        since: Duration,
        now: Duration,
    ) -> Option<Duration> {
        if self.silent_since(name) != Some(since) || self.is_overdue(name) {
            return None;
        }
        let answered = self.answered.get(name).copied();
        let over = since
            .max(answered.unwrap_or_default())
            .saturating_add(TAKE_OVER);
        if now >= over {
            self.overdue.insert(name.to_owned());
            self.note(name);
            return None;
        }
        Some(over.min(now.saturating_add(ASK)))
    }

    /// A node answers this one's question, from where its record says that it is.
    pub(super) fn answered(&mut self, name: &str, now: Duration) {
        if self.silent.contains_key(name) {
            self.answered.insert(name.to_owned(), now);
        }
    }

    /// Whether a node lives, by SWIM or by its own answers to this node.
    pub(super) fn lives(&self, name: &str, instance: u64, now: Duration) -> bool {
        let answered = self.answered.get(name);
        self.answers(name, instance)
            || answered.is_some_and(|at| now.saturating_sub(*at) < ANSWER_HOLDS)
    }

    /// Others may have taken over what this node claims.
    pub(super) fn is_overdue(&self, name: &str) -> bool {
        self.overdue.contains(name)
    }

    /// Those of whom others may have taken over what they claim, for the next start.
    pub(super) fn overdue(&self) -> impl Iterator<Item = &String> {
        self.overdue.iter()
    }

    /// Before this start these had been silent for [`TAKE_OVER`]; they are until they answer.
    pub(super) fn restore(&mut self, overdue: Vec<String>) {
        for name in overdue {
            self.note(&name);
            self.overdue.insert(name);
        }
    }

    pub(super) fn silent_since(&self, name: &str) -> Option<Duration> {
        self.silent.get(name).copied()
    }

    /// A datagram says that it is of this node. `own` is whether it came from where the node's record
    /// says that it is: somebody else who writes its name is not believed for as long as it is heard.
    pub(super) fn heard(&mut self, name: &str, from: SocketAddr, own: bool, now: Duration) {
        let full = self.heard.len() >= MAX_HEARD;
        match self.heard.get_mut(name) {
            Some((at, when)) if *at == from => *when = now,
            Some((at, when)) if own || now.saturating_sub(*when) >= HEARD_FOR => {
                (*at, *when) = (from, now);
                self.note(name);
            }
            Some(_) => {}
            None if full => {}
            None => {
                self.heard.insert(name.to_owned(), (from, now));
                self.note(name);
            }
        }
    }

    pub(super) fn heard_from(&self, name: &str) -> Option<SocketAddr> {
        self.heard.get(name).map(|(from, _)| *from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, instance: u64) -> Member {
        Member {
            name: name.to_owned(),
            address: ([192, 0, 2, 1], 1).into(),
            incarnation: 1,
            instance,
            renewal: 0,
        }
    }

    #[test]
    fn a_name_may_be_two_members() {
        let mut all = Liveness::default();
        all.up(&member("a", 1));
        all.up(&member("a", 2));
        all.up(&member("a", 2));
        assert!(all.answers("a", 1) && all.answers("a", 2) && !all.answers("a", 3));
        all.renamed(&member("a", 2), &member("a", 3));
        all.renamed(&member("a", 9), &member("a", 4));
        all.down(&member("a", 1));
        assert_eq!(all.of("a"), [member("a", 3)]);
        all.down(&member("a", 3));
        assert!(all.of("a").is_empty());
        assert_eq!(all.take_changed(), ["a".to_owned()].into());
        assert!(all.take_changed().is_empty());
    }

    #[test]
    fn who_writes_anothers_name_is_not_taken_for_it() {
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
        let mut all = Liveness::default();
        let second = Duration::from_secs;
        all.heard("a", at(1), true, second(1));
        all.heard("a", at(9), false, second(2));
        assert_eq!(all.heard_from("a"), Some(at(1)));
        all.heard("a", at(2), true, second(3));
        assert_eq!(all.heard_from("a"), Some(at(2)));
        all.heard("a", at(9), false, second(63));
        assert_eq!(all.heard_from("a"), Some(at(9)));
    }

    #[test]
    fn silence_begins_once() {
        let mut all = Liveness::default();
        let second = Duration::from_secs;
        assert_eq!(all.set_silent("a", true, second(5)), Some(second(20)));
        assert_eq!(all.set_silent("a", true, second(9)), None);
        assert_eq!(all.silent_since("a"), Some(second(5)));
        all.set_silent("a", false, second(10));
        assert_eq!(all.silent_since("a"), None);
    }

    #[test]
    fn who_answers_itself_is_not_overdue() {
        let mut all = Liveness::default();
        let second = Duration::from_secs;
        all.answered("a", second(1));
        assert!(!all.lives("a", 1, second(1)), "only silent nodes are asked");
        all.set_silent("a", true, second(5));
        let look = |all: &mut Liveness, at| all.look_at_silence("a", second(5), second(at));
        assert_eq!(look(&mut all, 20), Some(second(35)));
        all.answered("a", second(21));
        assert!(all.lives("a", 1, second(60)) && !all.lives("a", 1, second(61)));
        assert_eq!(look(&mut all, 70), Some(second(81)));
        assert!(!all.is_overdue("a"));
        assert_eq!(all.look_at_silence("a", second(4), second(99)), None);
        assert!(!all.is_overdue("a"), "that silence has ended");
        assert_eq!(look(&mut all, 81), None);
        assert!(all.is_overdue("a"));
    }
}
