//! Rates of ports, kept by all workers together.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use viaduct_fib::{PortId, Rate};

use crate::frame::MAX_MTU;
use crate::tick::Tick;

/// Attempts against other workers at one bucket; a packet that loses all of them passes.
const ATTEMPTS: usize = 8;

/// Bits of the longest frame that a pod sends.
const LONGEST: u64 = (MAX_MTU as u64 + 14) * 8;

/// A leaky bucket as a point in time: when all that was let through would have passed at its rate
/// (the "theoretical arrival time" of ITU-T I.371's generic cell rate algorithm).
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Whether a frame of so many bytes may pass now; then it is counted. One that is longer than
    /// a burst may when there is nothing before it.
    #[inline]
    fn admit(&self, rate: &Rate, bytes: usize, now: Tick) -> bool {
        let time = rate.time_of(u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8));
        let mut full_until = self.0.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let after = full_until.max(now.0).saturating_add(time);
            if after.saturating_sub(now.0) > rate.burst().max(time) {
                return false;
            }
            match self.0.compare_exchange_weak(
                full_until,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => full_until = seen,
            }
        }
        true
    }
}

/// Of packets, as a pod sees itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    FromPod,
    ToPod,
}

/// Both directions of a port, on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Buckets {
    from_pod: Bucket,
    to_pod: Bucket,
}

/// All ports' buckets, or none: nothing is limited. Only those of limited ports are ever touched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter(Option<Limits>);

#[derive(Clone, Debug)]
struct Limits {
    buckets: Arc<[Buckets]>,
    /// Whether limits do not hold for now: one flag a worker, which its parts share.
    lifted: Arc<AtomicBool>,
}

impl Limiter {
    pub(crate) fn new(ports: usize) -> Self {
        Self(Some(Limits {
            buckets: (0..ports).map(|_| Buckets::default()).collect(),
            lifted: Arc::default(),
        }))
    }

    /// The same buckets for another worker.
    pub(crate) fn for_worker(&self) -> Self {
        let limits = self.0.as_ref();
        Self(limits.map(|limits| Limits {
            buckets: Arc::clone(&limits.buckets),
            lifted: Arc::default(),
        }))
    }

    /// Lifts all limits of this worker, or no longer: while a port goes away, whatever waits may pass.
    pub(crate) fn lift(&self, lifted: bool) {
        if let Some(limits) = &self.0 {
            limits.lifted.store(lifted, Ordering::Relaxed);
        }
    }

    fn lifted(&self) -> bool {
        let limits = self.0.as_ref();
        limits.is_some_and(|limits| limits.lifted.load(Ordering::Relaxed))
    }

    /// Whether the longest frame could pass a port now, not counting it.
    #[inline]
    pub(crate) fn ready(&self, port: PortId, direction: Direction, rate: &Rate, now: Tick) -> bool {
        let Some(bucket) = self.bucket(port, direction) else {
            return true;
        };
        if self.lifted() {
            return true;
        }
        let time = rate.time_of(LONGEST);
        let before = bucket.0.load(Ordering::Relaxed).saturating_sub(now.0);
        before.saturating_add(time) <= rate.burst().max(time)
    }

    fn bucket(&self, port: PortId, direction: Direction) -> Option<&Bucket> {
        let buckets = self.0.as_ref()?.buckets.get(usize::from(port.0))?;
        Some(match direction {
            Direction::FromPod => &buckets.from_pod,
            Direction::ToPod => &buckets.to_pod,
        })
    }

    /// Whether a frame of so many bytes may pass a port now.
    #[inline]
    pub(crate) fn admit(
        &self,
        port: PortId,
        direction: Direction,
        rate: Option<&Rate>,
        bytes: usize,
        now: Tick,
    ) -> bool {
        let bucket = self.bucket(port, direction);
        match (rate, bucket) {
            // While limits are lifted, what is beyond the rate passes uncounted.
            (Some(rate), Some(bucket)) => bucket.admit(rate, bytes, now) || self.lifted(),
            _ => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test may fail")]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// How many of the frames, one each `gap` ns for a second, pass.
    fn passed(bucket: &Bucket, rate: &Rate, bytes: usize, gap: u64) -> u64 {
        let times = (0..1000 * MS).step_by(usize::try_from(gap).unwrap_or(1));
        let admitted = times.filter(|&at| bucket.admit(rate, bytes, Tick(5000 * MS + at)));
        u64::try_from(admitted.count()).unwrap_or(0)
    }

    #[test]
    fn what_is_too_much_is_cut_to_the_rate_and_a_burst() {
        // 8 Mbit/s are 1,000 frames of 1,000 bytes; a burst of 80,000 bits is 10 more.
        let rate = Rate::new(8_000_000, 80_000);
        assert_eq!(passed(&Bucket::default(), &rate, 1000, 100_000), 1010 - 1);
        // What keeps to it passes whole.
        assert_eq!(passed(&Bucket::default(), &rate, 1000, MS), 1000);
    }

    #[test]
    fn time_without_packets_is_no_more_than_a_burst() {
        let rate = Rate::new(8_000_000, 80_000);
        let bucket = Bucket::default();
        assert!(bucket.admit(&rate, 1000, Tick(MS)));
        let at_once = (0..100).filter(|_| bucket.admit(&rate, 1000, Tick(900_000 * MS)));
        assert_eq!(at_once.count(), 10);
    }

    #[test]
    fn a_frame_longer_than_a_burst_passes_alone() {
        let rate = Rate::new(1000, 1);
        let bucket = Bucket::default();
        assert!(bucket.admit(&rate, 1500, Tick(0)));
        assert!(!bucket.admit(&rate, 1500, Tick(11_000 * MS)));
        assert!(bucket.admit(&rate, 1500, Tick(12_000 * MS)));
    }

    #[test]
    fn limits_are_lifted_for_all_parts_of_one_worker() {
        let rate = Rate::new(1000, 1);
        let worker = Limiter::new(2);
        let (part, other) = (worker.clone(), worker.for_worker());
        for limiter in [&worker, &part, &other] {
            limiter.admit(PortId(1), Direction::FromPod, Some(&rate), 1500, Tick(0));
        }
        let passes = |limiter: &Limiter| {
            let admitted = limiter.admit(PortId(1), Direction::FromPod, Some(&rate), 1500, Tick(0));
            let ready = limiter.ready(PortId(1), Direction::FromPod, &rate, Tick(0));
            (admitted, ready)
        };
        worker.lift(true);
        assert_eq!(passes(&part), (true, true));
        assert_eq!(passes(&other), (false, false));
        worker.lift(false);
        assert_eq!(passes(&part), (false, false));
    }

    #[test]
    fn workers_share_a_bucket() {
        let rate = Rate::new(8_000_000, 800_000);
        let limiter = Limiter::new(2);
        let count = move |limiter: &Limiter| {
            (0..1000)
                .filter(|_| limiter.admit(PortId(1), Direction::ToPod, Some(&rate), 1000, Tick(0)))
                .count()
        };
        let (one, two) = (limiter.clone(), limiter.clone());
        let other = std::thread::spawn(move || count(&one));
        let sum = count(&two) + other.join().unwrap_or(0);
        assert!((100..110).contains(&sum), "{sum} of 100");
        assert!(
            limiter.admit(PortId(1), Direction::FromPod, Some(&rate), 1000, Tick(0)),
            "the other direction"
        );
        assert!(
            limiter.admit(PortId(1), Direction::ToPod, None, 1000, Tick(0)),
            "without a rate"
        );
    }
}
