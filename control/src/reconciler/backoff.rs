//! When to look again at a pod that is not there yet, or not settled.

use std::time::{Duration, Instant};

/// The first wait: an `AF_XDP` queue can be bound again about so long after it was let go.
const FIRST: Duration = Duration::from_millis(16);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);

/// Waits that double, for each interface anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    wait: Duration,
    /// The interface that is waited for, by number, and until when.
    waiting: Option<(u32, Instant)>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            wait: FIRST,
            waiting: None,
        }
    }
}

impl Backoff {
    /// Whether to try this interface now.
    pub(super) fn permits(&self, interface: u32, now: Instant) -> bool {
        self.waiting
            .is_none_or(|(waiting, until)| waiting != interface || until <= now)
    }

    /// When to look again; none if nothing is waited for.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.waiting.map(|(_, until)| until)
    }

    /// Waits for this interface, twice as long as before.
    pub(super) fn wait(&mut self, interface: u32, now: Instant) {
        if self.waiting.is_none_or(|(waiting, _)| waiting != interface) {
            self.wait = FIRST;
        }
        self.waiting = Some((interface, now + self.wait));
        self.wait = (self.wait * 2).min(LONGEST);
    }

    /// If the wait is over, waits once more, until the waits are long; then no more.
    pub(super) fn fade(&mut self, interface: u32, now: Instant) {
        if self.retry_at().is_none_or(|at| at > now) {
            return;
        }
        if self.wait < LONGEST {
            self.wait(interface, now);
        } else {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        assert!(backoff.permits(5, now));
        let mut waits = Vec::new();
        for _ in 0..8 {
            backoff.wait(5, now);
            assert!(!backoff.permits(5, now));
            let at = backoff.retry_at().unwrap();
            waits.push((at - now).as_millis());
            now = at;
            assert!(backoff.permits(5, now));
        }
        assert_eq!(waits, [16, 32, 64, 128, 256, 512, 1000, 1000]);
    }

    #[test]
    fn a_new_interface_starts_anew() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        backoff.wait(5, now);
        backoff.wait(5, now);
        assert!(backoff.permits(6, now));
        backoff.wait(6, now);
        assert_eq!(backoff.retry_at(), Some(now + FIRST));
    }

    #[test]
    fn looks_fade_out() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        backoff.fade(5, start);
        assert_eq!(backoff.retry_at(), None);
        backoff.wait(5, start);
        let mut looks = 0;
        while let Some(at) = backoff.retry_at() {
            backoff.fade(5, start);
            assert_eq!(backoff.retry_at(), Some(at));
            backoff.fade(5, at);
            looks += 1;
        }
        assert_eq!(looks, 6);
    }
}
