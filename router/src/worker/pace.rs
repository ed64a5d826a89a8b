//! When a worker rests. Polling costs a processor; being woken costs some microseconds, which is much
//! for a single packet.

use std::time::Duration;

use crate::tick::Tick;

/// What a worker does between two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing: it goes on.
    Poll,
    /// It lets packets gather, and is not woken for them.
    Nap(Duration),
    /// It sleeps until somebody wakes it.
    Sleep,
}

/// For how long a worker without packets polls on before it sleeps, ns: about what it costs to be
/// woken.
const PATIENCE: u64 = 5_000;
/// The fewest packets that have to gather in a nap. With fewer, a wake-up costs no more.
const WORTH: u64 = 2;
/// The part of its time, in hundredths, from which on a busy worker does not rest: there is little to save, and queues
/// fill up.
const LOADED: u64 = 75;
/// How long packets are counted for, ns.
const WINDOW: u64 = 500_000;
/// From this rate on, packets a second, it hardly has to sleep, also without naps: gaps are shorter
/// than its patience.
const FAST: u64 = 250_000;

/// Follows how fast packets come, and since when there are none.
pub(super) struct Pace {
    adaptive: bool,
    nap: Duration,
    /// From which rate on naps are worth it, packets a second; none without naps.
    worth_nap: Option<u64>,
    worked: Tick,
    window: Tick,
    /// What had been received when the window began.
    taken: u32,
    /// Packets a second in the last window.
    rate: u64,
    /// When the last turn began, and whether it worked.
    turn: (Tick, bool),
    /// Time of turns that worked in this window, ns.
    busy: u64,
    /// Whether it was busy for most of the last window.
    loaded: bool,
}

impl Pace {
    /// `nap` is below a second; zero for none.
    pub(super) fn new(adaptive: bool, nap: Duration) -> Self {
        let nanos = u64::from(nap.subsec_nanos());
        Self {
            adaptive,
            nap,
            worth_nap: WORTH.saturating_mul(1_000_000_000).checked_div(nanos),
            worked: Tick(0),
            window: Tick(0),
            taken: 0,
            rate: 0,
            turn: (Tick(0), false),
            busy: 0,
            loaded: false,
        }
    }

    /// After a turn that began at `now`. `taken` counts all that was ever received, and may wrap.
    #[inline]
    pub(super) fn rest(&mut self, worked: bool, now: Tick, taken: impl FnOnce() -> u32) -> Rest {
        if !self.adaptive {
            return Rest::Poll;
        }
        let (began, busy) = std::mem::replace(&mut self.turn, (now, worked));
        if busy {
            self.busy = self.busy.saturating_add(now.0.saturating_sub(began.0));
        }
        let window = now.0.saturating_sub(self.window.0);
        if window >= WINDOW {
            let taken = taken();
            let came = u64::from(taken.wrapping_sub(self.taken)).saturating_mul(1_000_000_000);
            self.rate = came.checked_div(window).unwrap_or(0);
            self.loaded = self.busy.saturating_mul(100) > window.saturating_mul(LOADED);
            (self.window, self.taken, self.busy) = (now, taken, 0);
        }
        if worked {
            self.worked = now;
            return Rest::Poll;
        }
        if self.loaded {
            return Rest::Poll;
        }
        if self.worth_nap.is_some_and(|worth| self.rate >= worth) {
            return Rest::Nap(self.nap);
        }
        if now.0.saturating_sub(self.worked.0) > PATIENCE {
            // Not busy before another window has shown it: it is watched for in between.
            self.rate = 0;
            return Rest::Sleep;
        }
        Rest::Poll
    }

    /// Whether packets come so fast that the worker hardly sleeps.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        self.rate >= self.worth_nap.map_or(FAST, |worth| worth.min(FAST))
    }
}

#[cfg(test)]
#[expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    reason = "a test may fail"
)]
mod tests {
    use super::*;

    const NAP: Duration = Duration::from_micros(25);

    /// A second in which a packet arrives every `gap` ns, and a turn takes 1 us: how often it rested
    /// in which way, and how it ended.
    fn second(pace: &mut Pace, gap: u64) -> (u32, u32) {
        let (mut now, mut seen) = (1_000_000_000, 0u64);
        let (mut naps, mut sleeps) = (0, 0);
        while now < 2_000_000_000 {
            let due = (now - 1_000_000_000) / gap;
            let worked = due > seen;
            seen = due;
            let taken = u32::try_from(seen).expect("few");
            now += match pace.rest(worked, Tick(now), || taken) {
                Rest::Poll => 1_000,
                Rest::Nap(time) => {
                    naps += 1;
                    u64::try_from(time.as_nanos()).expect("short")
                }
                Rest::Sleep => {
                    sleeps += 1;
                    gap - (now - 1_000_000_000) % gap
                }
            };
        }
        (naps, sleeps)
    }

    #[test]
    fn a_busy_worker_never_rests() {
        let mut pace = Pace::new(false, NAP);
        assert_eq!(second(&mut pace, 1_000_000), (0, 0));
    }

    #[test]
    fn a_few_packets_wake_a_sleeper_each() {
        let mut pace = Pace::new(true, NAP);
        let (naps, sleeps) = second(&mut pace, 1_000_000);
        assert_eq!(naps, 0);
        assert!((990..=1001).contains(&sleeps), "{sleeps}");
        assert!(!pace.is_busy());
    }

    #[test]
    fn many_packets_gather_while_it_naps() {
        let mut pace = Pace::new(true, NAP);
        let (naps, sleeps) = second(&mut pace, 2_500);
        // A turn that works, one that does not, and a nap: 27 us in all.
        assert!((30_000..=40_000).contains(&naps), "{naps}");
        assert!(sleeps <= 100, "{sleeps}");
        assert!(pace.is_busy());
        // Once they have stopped, it sleeps.
        let late = Tick(2_100_000_000);
        assert_eq!(pace.rest(false, late, || 400_000), Rest::Sleep);
        assert!(!pace.is_busy());
    }

    #[test]
    fn who_is_busy_most_of_the_time_does_not_rest() {
        let mut pace = Pace::new(true, NAP);
        // Turns of 8 us in which it works, and every tenth finds nothing.
        let (mut now, mut rests) = (1_000_000_000, 0);
        for turn in 0..10_000u32 {
            if pace.rest(turn % 10 != 0, Tick(now), || turn * 8) != Rest::Poll {
                rests += 1;
            }
            now += if turn % 10 == 0 { 1_000 } else { 8_000 };
        }
        // In the first window.
        assert!(rests < 20, "{rests}");
        // Once nothing comes any more, it does.
        for _ in 0..2_000 {
            now += 1_000;
            rests += u32::from(pace.rest(false, Tick(now), || 80_000) == Rest::Sleep);
        }
        assert!(rests > 900, "{rests}");
    }

    #[test]
    fn without_naps_it_polls_or_sleeps() {
        let mut pace = Pace::new(true, Duration::ZERO);
        assert_eq!(second(&mut pace, 2_500).0, 0);
        assert!(pace.is_busy());
    }
}
