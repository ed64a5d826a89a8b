//! How many frames a queue has for receiving: some are its own, others are lent.
//!
//! A queue has to hold what arrives while its worker does something else, or is not scheduled. What arrives first is
//! often a burst: a TCP connection doubles what it has under way with each round trip, and 1 MB never needs
//! more than about 380 packets at once. A frame in a fill ring cannot be taken back, and one that is put there after a
//! burst has come is too late; so every queue has frames of its own for a burst, whatever other queues have.
//! A queue that has used half of what it had is lent more. What is left to lend bounds each loan (the dynamic
//! thresholds of shared-memory switches: Choudhury and Hahne, 1998), so that the first do not take everything. A queue
//! that its worker does not get to the end of is lent little: more frames would make it no faster, and each packet later.
//! While packets come fast and without bursts, few frames are in use, which stay in the processor's cache; the others
//! are put back once the queue is quiet.

/// Frames in one queue, at most: the size of its fill and receive rings.
pub const MAX_DEPTH: u32 = 2048;
/// Frames kept back from fill rings for packets on their way out.
pub const RESERVE: usize = 2048;
/// Frames of a worker that queues can be lent.
const LOANS: u32 = 8192;
/// Frames of a worker that the queues of all pods' ports have as their own, in equal parts, between the two limits below.
/// Beside its memory each frame costs 128 bytes of the kernel's for each socket (`xp_create_and_assign_umem`,
/// net/xdp/xsk_buff_pool.c), which is why many ports have smaller parts.
const SHARED_OUT: usize = 65_536;
/// The frames of one port's own, at most: a burst of 1,024 packets, and what may be missing for want of a top-up.
const MAX_SHARE: u32 = 1024 + TOP_UP;
/// And at least, however many ports there are.
const LEAST_SHARE: u32 = 128;
/// The fewest of a single queue, also of a device with many.
const MIN_SHARE: u32 = 16;
/// Frames in a queue whose packets stand, or wait for their pod's rate: enough to even out how sender and worker come and
/// go; with more they would wait longer, and no more would come through.
const STANDING_DEPTH: u32 = 512;
/// For how many pods' ports the underlay counts.
const UNDERLAY_SHARES: u32 = 8;
/// Fewer missing frames than this are not worth a shared line.
const TOP_UP: u32 = 32;
/// For how long a queue may be without an end before more frames are of no use to it, ns.
const STANDING: u64 = 10_000_000;
/// And for how many visits: two full queues' worth of batches. Its worker may have been away for long.
const STANDING_VISITS: u32 = 64;
/// For how long it is lent no more than that then, ns.
const REFUSED: u64 = 100_000_000;
/// How many times as many frames are lent when they turn out to be few: what is missing is lost.
const GROWTH: u32 = 4;
/// How often it is looked at what a queue had no use for, ns.
const REVIEW: u64 = 10_000_000_000;
/// The same for a queue whose packets come fast.
const FAST_REVIEW: u64 = 1_000_000_000;
/// ns for each packet, at most, of a queue whose packets come fast: 100,000 packets a second.
const FAST: u64 = 10_000;
/// Frames in use of a queue whose packets come fast and without bursts.
const SHALLOW: u32 = 128;
/// For how long no packet comes to a queue that is quiet, ns.
const QUIET: u64 = 50_000_000;

/// Frames that each of so many pods' ports has with a worker in any case.
#[must_use]
pub fn share(pods: usize) -> u32 {
    let each = SHARED_OUT.checked_div(pods).unwrap_or(SHARED_OUT);
    u32::try_from(each)
        .unwrap_or(MAX_SHARE)
        .clamp(LEAST_SHARE, MAX_SHARE)
}

/// Frames that a worker needs for so many pods' ports and the underlay.
#[must_use]
pub fn frames(pods: usize) -> usize {
    let share = share(pods);
    let underlay = Depth::new(true, share, 1).own;
    RESERVE
        .saturating_add(LOANS as usize)
        .saturating_add(underlay as usize)
        .saturating_add(pods.saturating_mul(share as usize))
}

/// Frames of one worker that queues can be lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loans {
    left: u32,
}

impl Loans {
    /// None of them is lent yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is not nothing")]
    pub const fn new() -> Self {
        Self { left: LOANS }
    }

    /// The same, while these queues have what they have.
    #[must_use]
    pub fn without<'a>(self, queues: impl Iterator<Item = &'a Depth>) -> Self {
        let left = queues.fold(self.left, |left, queue| left.saturating_sub(queue.lent));
        Self { left }
    }
}

/// What a queue has seen since its last batch, or the one before.
#[derive(Debug, Clone, Copy)]
pub struct Visit {
    /// ns, from any beginning, not 0.
    pub now: u64,
    /// Whether all packets were taken that there were.
    pub drained: bool,
    /// Whether the pod may send at a rate only; none when there was no packet, and so nobody has looked.
    pub limited: Option<bool>,
    /// Frames in the fill ring.
    pub filled: u32,
    /// These, and those of packets that have not been taken.
    pub receiving: u32,
}

/// One queue's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// In any case, whatever other queues have.
    own: u32,
    /// Lent as of the last visit.
    lent: u32,
    /// So many it could use, its own ones included.
    wanted: u32,
    /// In the fill ring after the last visit.
    had: u32,
    /// The most that were used between two visits since `reviewed`.
    used: u32,
    /// Packets since `reviewed`.
    packets: u64,
    /// When the last packets were seen to have come, ns.
    busy_at: u64,
    /// Whether the pod may send at a rate only, as it was known last.
    limited: bool,
    /// Visits since it was last drained, and the first of them, ns.
    standing: u32,
    standing_since: u64,
    /// Until when it is lent no more than a standing one, ns.
    refused_until: u64,
    reviewed: u64,
    /// Whether it has the same number of frames always.
    fixed: bool,
}

impl Depth {
    /// One of so many queues that a port has with a worker. `share` is a pod's ([`share`]).
    #[must_use]
    pub fn new(underlay: bool, share: u32, queues: usize) -> Self {
        let shares = if underlay { UNDERLAY_SHARES } else { 1 };
        let queues = u32::try_from(queues).unwrap_or(u32::MAX);
        let all = share.saturating_mul(shares).min(MAX_DEPTH);
        let each = all.checked_div(queues);
        let own = each.unwrap_or(0).clamp(MIN_SHARE, MAX_DEPTH);
        Self {
            own,
            lent: 0,
            wanted: own,
            had: 0,
            used: 0,
            packets: 0,
            busy_at: 0,
            limited: false,
            standing: 0,
            standing_since: 0,
            refused_until: 0,
            reviewed: 0,
            fixed: false,
        }
    }

    /// Of a trunk: who sends there counts on its places, whoever has taken others.
    #[must_use]
    pub fn of_trunk(share: u32) -> Self {
        Self {
            fixed: true,
            ..Self::new(true, share, 1)
        }
    }

    /// Frames that it has in any case.
    #[inline]
    #[must_use]
    pub const fn own(&self) -> u32 {
        self.own
    }

    /// How many frames are to be put into the fill ring now.
    #[inline]
    pub fn missing(&mut self, visit: &Visit, loans: &mut Loans) -> u32 {
        self.want(visit);
        let own = self.own;
        // What has been received by now is not lent any more.
        let held = visit.receiving.saturating_sub(own).min(self.lent);
        loans.left = loans.left.saturating_add(self.lent.saturating_sub(held));
        self.lent = held;
        let loan = self.wanted.saturating_sub(own);
        // No loan is larger than what is left beside it.
        let fair = held.saturating_add(loans.left).div_ceil(2);
        let most = self.wanted.min(own).saturating_add(loan.min(fair));
        let missing = most.saturating_sub(visit.receiving);
        self.had = visit.filled;
        if missing < TOP_UP.min(most.div_ceil(2)) {
            0
        } else {
            missing
        }
    }

    /// Frames were put there: now it has `filled`, and `receiving` as in [`Visit`].
    #[inline]
    pub const fn topped_up(&mut self, filled: u32, receiving: u32, loans: &mut Loans) {
        self.had = filled;
        let held = receiving.saturating_sub(self.own);
        let more = held.saturating_sub(self.lent);
        loans.left = loans.left.saturating_sub(more);
        self.lent = self.lent.saturating_add(more);
    }

    #[inline]
    fn want(&mut self, visit: &Visit) {
        if self.fixed {
            return;
        }
        let now = visit.now;
        self.limited = visit.limited.unwrap_or(self.limited);
        if self.limited {
            self.wanted = STANDING_DEPTH;
            return;
        }
        let used = self.had.saturating_sub(visit.filled);
        self.used = self.used.max(used);
        self.packets = self.packets.saturating_add(u64::from(used));
        if used > 0 {
            self.busy_at = now;
        }
        if self.stands(visit) {
            self.refused_until = now.saturating_add(REFUSED);
            self.wanted = STANDING_DEPTH;
        } else if now.saturating_sub(self.busy_at) > QUIET {
            // What comes next may be a burst.
            self.wanted = self.wanted.max(self.own);
        } else if used > self.had / 2 && now >= self.refused_until {
            self.wanted = self.wanted.saturating_mul(GROWTH).min(MAX_DEPTH);
        }
        self.review(now);
    }

    /// Whether more frames would be of no use, as the worker does not get to the queue's end.
    #[inline]
    const fn stands(&mut self, visit: &Visit) -> bool {
        if visit.drained {
            self.standing = 0;
            return false;
        }
        if self.standing == 0 {
            self.standing_since = visit.now;
        }
        self.standing = self.standing.saturating_add(1);
        self.standing > STANDING_VISITS && visit.now.saturating_sub(self.standing_since) > STANDING
    }

    /// Has it give up what it had no use for.
    #[inline]
    fn review(&mut self, now: u64) {
        if self.reviewed == 0 {
            self.reviewed = now;
        }
        let age = now.saturating_sub(self.reviewed);
        let fast = age > FAST_REVIEW && self.packets >= age / FAST;
        if !fast && age <= REVIEW {
            return;
        }
        // With half as many, half of them would still have been left.
        if self.used <= self.wanted / 4 {
            self.wanted /= 2;
        }
        let least = if fast {
            SHALLOW.min(self.own)
        } else {
            self.own
        };
        self.wanted = self.wanted.max(least);
        (self.reviewed, self.used, self.packets) = (now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = LEAST_SHARE;
    const TURN: u64 = 50_000;

    /// A queue and its worker; what comes in a turn is lost where there is no frame.
    struct Queue {
        depth: Depth,
        filled: u32,
        waiting: u32,
        lost: u32,
    }

    impl Queue {
        fn new() -> Self {
            Self::of(OWN)
        }

        fn of(share: u32) -> Self {
            let depth = Depth::new(false, share, 1);
            let (filled, waiting, lost) = (0, 0, 0);
            Self {
                depth,
                filled,
                waiting,
                lost,
            }
        }

        fn turn(&mut self, now: u64, come: u32, taken: u32, loans: &mut Loans) {
            self.lost = come.saturating_sub(self.filled);
            let received = come.min(self.filled);
            self.filled -= received;
            self.waiting += received;
            let visit = Visit {
                now,
                drained: self.waiting < taken,
                limited: Some(false),
                filled: self.filled,
                receiving: self.filled + self.waiting - taken.min(self.waiting),
            };
            self.waiting -= taken.min(self.waiting);
            let missing = self.depth.missing(&visit, loans);
            if missing == 0 {
                return;
            }
            self.filled += missing;
            let receiving = self.filled + self.waiting;
            self.depth.topped_up(self.filled, receiving, loans);
        }
    }

    #[test]
    fn a_quiet_queue_has_its_own_frames_only() {
        let (mut queue, mut loans) = (Queue::new(), Loans::new());
        for turn in 1..10_000 {
            queue.turn(turn * TURN, u32::from(turn % 3 == 0), 64, &mut loans);
        }
        assert!(
            queue.filled <= OWN && queue.filled > OWN - TOP_UP,
            "{}",
            queue.filled
        );
        assert_eq!(loans, Loans::new());
    }

    #[test]
    fn a_first_burst_is_not_lost() {
        let (pods, mut loans) = (110, Loans::new());
        let mut queues: Vec<_> = (0..pods).map(|_| Queue::of(share(pods))).collect();
        for queue in &mut queues {
            queue.turn(1, 0, 64, &mut loans);
            // Its worker looks, packets come one by one for a time, then a burst: again and again.
            for turn in 1..5_000u64 {
                let come = if turn % 1_000 == 0 { 512 } else { 1 };
                queue.turn(turn * TURN, come, 64, &mut loans);
                assert_eq!(queue.lost, 0, "in turn {turn}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_each_port_has_its_share() {
        let bytes = |pods| frames(pods) * 2048;
        assert!(bytes(110) <= 160_000_000 && bytes(16) <= 64_000_000);
        for pods in [0, 1, 16, 110, 124, 512, 1024, 100_000] {
            let own = share(pods) as usize;
            assert!((128..=1056).contains(&own), "{own}");
            assert!(frames(pods) >= RESERVE + LOANS as usize + (pods + 1) * own);
        }
    }

    #[test]
    fn fast_packets_without_bursts_use_few_frames_until_it_is_quiet() {
        let (mut queue, mut loans) = (Queue::of(MAX_SHARE), Loans::new());
        let mut now = 1;
        queue.turn(now, 0, 64, &mut loans);
        for _ in 0..200_000 {
            now += TURN;
            queue.turn(now, 20, 64, &mut loans);
            assert_eq!(queue.lost, 0);
        }
        assert!(queue.filled <= SHALLOW, "{}", queue.filled);
        for _ in 0..2 * QUIET / TURN {
            now += TURN;
            queue.turn(now, 0, 64, &mut loans);
        }
        assert!(queue.filled >= 1024, "{}", queue.filled);
        queue.turn(now, 1024, 64, &mut loans);
        assert_eq!(queue.lost, 0);
    }

    #[test]
    fn bursts_are_lost_only_until_it_is_lent_enough() {
        let (mut queue, mut loans) = (Queue::new(), Loans::new());
        let mut lost = Vec::new();
        for turn in 1..20_000u64 {
            let come = if turn % 100 == 0 { 1000 } else { 0 };
            queue.turn(turn * TURN, come, 64, &mut loans);
            if come > 0 {
                lost.push(queue.lost);
            }
        }
        assert_eq!(lost[..2].iter().filter(|n| **n > 0).count(), 2, "{lost:?}");
        assert!(lost[2..].iter().all(|n| *n == 0), "{lost:?}");
    }

    #[test]
    fn what_it_does_not_use_is_given_back_with_its_packets() {
        let (mut queue, mut loans) = (Queue::new(), Loans::new());
        for turn in 1..1_000 {
            queue.turn(
                turn * TURN,
                if turn % 100 == 0 { 1000 } else { 0 },
                64,
                &mut loans,
            );
        }
        assert!(queue.filled > 1000 && loans.left < LOANS - 800);
        let later = 2 * REVIEW;
        for turn in 1..100_000 {
            queue.turn(later + turn * REVIEW / 1000, 1, 64, &mut loans);
        }
        assert!(queue.filled <= OWN);
        assert_eq!(loans, Loans::new());
    }

    #[test]
    fn without_an_end_little_is_lent() {
        let (mut queue, mut loans) = (Queue::new(), Loans::new());
        for turn in 1..10_000 {
            queue.turn(turn * TURN, 100, 64, &mut loans);
        }
        let frames = queue.filled + queue.waiting;
        assert!(
            (STANDING_DEPTH / 2..=STANDING_DEPTH).contains(&frames),
            "{frames}"
        );
    }

    #[test]
    fn a_worker_that_was_away_finds_it_full_and_keeps_it_deep() {
        let (mut queue, mut loans) = (Queue::new(), Loans::new());
        let mut now = TURN;
        for _ in 0..20 {
            // Away for 20 ms, and again while it is working off what has come.
            for (come, away) in [(1000, 20_000_000), (500, 20_000_000), (0, TURN)] {
                now += away;
                queue.turn(now, come, 64, &mut loans);
            }
            for _ in 0..100 {
                now += TURN;
                queue.turn(now, 1, 64, &mut loans);
            }
        }
        assert!(queue.filled > 1500, "{}", queue.filled);
    }

    #[test]
    fn many_that_want_all_get_about_the_same() {
        let mut queues: Vec<_> = (0..50).map(|_| Queue::new()).collect();
        let mut loans = Loans::new();
        for turn in 1..20_000 {
            for queue in &mut queues {
                queue.turn(
                    turn * TURN,
                    if turn % 100 == 0 { 3000 } else { 0 },
                    64,
                    &mut loans,
                );
            }
        }
        let held = queues.iter().map(|q| q.filled + q.waiting - OWN);
        assert!(held.clone().sum::<u32>() <= LOANS);
        let (least, most) = (held.clone().min().unwrap(), held.max().unwrap());
        assert!(
            least > LOANS / 51 / 2 && most < LOANS / 51 * 2,
            "{least} to {most}"
        );
        let depths = queues.iter().map(|q| &q.depth);
        assert_eq!(Loans::new().without(depths), loans);
    }
}
