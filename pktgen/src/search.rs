//! The highest rate with at most some loss, as RFC 2544 (section 26.1) searches for it, by halving.
//!
//! From MLRsearch (RFC 9907's terms: load, loss ratio) it has that early trials are short and later ones long, and
//! that one search serves both limits.

use std::time::Duration;

use serde_json::{Value, json};

/// When a search ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Loss that is allowed, 0 to 1: 0 for NDR.
    pub loss: f64,
    /// The lowest rate that is tried, packets a second.
    pub least: u64,
    /// The highest.
    pub most: u64,
    /// Width of the interval that is good enough, as a part of the rate.
    pub precision: f64,
    /// How long a trial lasts whose result counts.
    pub trial: Duration,
}

/// What a trial showed.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Packets a second that were sent indeed.
    pub sent_rate: f64,
    /// Lost of those, 0 to 1.
    pub loss: f64,
    /// The rate was not reached.
    pub fell_short: bool,
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The highest rate, packets a second; none when even the lowest lost too much.
    pub rate: Option<f64>,
    /// The generator could not send more: the true rate is at least that.
    pub generator_limited: bool,
    /// Trials that were made.
    pub trials: u32,
}

impl Found {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({"packets_per_s": self.rate, "generator_limited": self.generator_limited, "trials": self.trials})
    }
}

/// Trials that a search makes at most.
const MOST_TRIALS: u32 = 40;
/// A trial that only narrows the interval lasts this part of one whose result counts.
const SHORT: u32 = 4;

/// Searches by trials: each is told its rate and its duration.
///
/// Short trials halve the interval between a rate that loses nothing and one that loses too much, until it is narrow.
/// A long one at its lower end then has to confirm it; where that fails, the search goes on below with long ones only.
///
/// # Errors
/// Those of a trial.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are far below 2^52"
)]
pub fn search<E>(
    limits: &Limits,
    mut trial: impl FnMut(u64, Duration) -> Result<Trial, E>,
) -> Result<Found, E> {
    let least = limits.least as f64;
    let (mut good, mut bad) = (least, limits.most as f64);
    let mut rate = bad;
    // Whether short trials have been contradicted, and then are of no use.
    let mut long = false;
    let mut limited = false;
    for trials in 1..=MOST_TRIALS {
        let narrow = bad <= good * (1.0 + limits.precision);
        let full = long || narrow;
        let time = limits.trial / if full { 1 } else { SHORT };
        let result = trial(rate as u64, time)?;
        let passed = result.loss <= limits.loss;
        if passed {
            // More than the generator sends cannot be asked for.
            good = rate;
            if result.fell_short || rate >= limits.most as f64 {
                good = rate.min(result.sent_rate);
                (bad, limited) = (good, true);
            }
        } else if rate <= least {
            return Ok(Found {
                rate: None,
                generator_limited: false,
                trials,
            });
        } else {
            bad = rate;
            if narrow {
                (long, limited) = (true, false);
                good = (rate * (1.0 - 8.0 * limits.precision)).max(least);
            }
        }
        let narrow = bad <= good * (1.0 + limits.precision);
        if passed && full && narrow {
            return Ok(Found {
                rate: Some(good.min(result.sent_rate)),
                generator_limited: limited,
                trials,
            });
        }
        // Halved by ratio: the bounds may be orders of magnitude apart. A bound that nothing has
        // shown yet is shown.
        rate = if narrow || (long && !passed) {
            good
        } else {
            (good * bad).sqrt()
        };
    }
    Ok(Found {
        rate: None,
        generator_limited: false,
        trials: MOST_TRIALS,
    })
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        loss: 0.0,
        least: 1_000,
        most: 10_000_000,
        precision: 0.01,
        trial: Duration::from_secs(4),
    };

    /// A device that forwards `capacity`, a generator that sends at most `most`; and in long trials it is worse by `worse`.
    fn device(capacity: f64, most: f64, worse: f64, limits: &Limits) -> Found {
        let found = search(limits, |rate, time| {
            let sent_rate = most.min(rate as f64);
            let capacity = if time < limits.trial {
                capacity
            } else {
                capacity * (1.0 - worse)
            };
            Ok::<_, ()>(Trial {
                sent_rate,
                loss: (1.0 - capacity / sent_rate).max(0.0),
                fell_short: sent_rate < rate as f64 * 0.98,
            })
        });
        found.expect("no trial fails")
    }

    #[test]
    fn the_rate_is_found() {
        for capacity in [1_500.0, 750_000.0, 9_900_000.0] {
            let found = device(capacity, 2e7, 0.0, &LIMITS);
            let rate = found.rate.expect("a rate");
            assert!(
                rate <= capacity && rate > capacity * 0.97,
                "{capacity} {found:?}"
            );
            assert!(!found.generator_limited && found.trials < 20, "{found:?}");
        }
    }

    #[test]
    fn a_long_look_that_sees_more_loss_wins() {
        let found = device(750_000.0, 2e7, 0.1, &LIMITS);
        let rate = found.rate.expect("a rate");
        assert!(rate <= 675_000.0 && rate > 600_000.0, "{found:?}");
    }

    #[test]
    fn some_loss_may_be_allowed() {
        let limits = Limits {
            loss: 0.005,
            ..LIMITS
        };
        let rate = device(750_000.0, 2e7, 0.0, &limits).rate.expect("a rate");
        assert!(
            rate <= 750_000.0 / 0.995 + 1.0 && rate > 745_000.0,
            "{rate}"
        );
    }

    #[test]
    fn a_generator_may_be_the_limit_and_nothing_may_go_through() {
        let found = device(2e7, 1_000_000.0, 0.0, &LIMITS);
        assert_eq!(
            (found.rate, found.generator_limited),
            (Some(1_000_000.0), true)
        );
        let found = device(2e7, 2e7, 0.0, &LIMITS);
        assert_eq!((found.rate, found.generator_limited), (Some(1e7), true));
        let found = device(10.0, 2e7, 0.0, &LIMITS);
        assert_eq!((found.rate, found.generator_limited), (None, false));
    }
}
