//! What came of a run, as text and JSON.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::programs::nanoseconds;

/// Packets since some moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Given to the interfaces.
    pub sent: u64,
    /// Of frames, without Ethernet's checksum.
    pub sent_bytes: u64,
    /// Seen by the receiver.
    pub received: u64,
    /// The same of theirs.
    pub received_bytes: u64,
    /// Behind a later one of their flow.
    pub reordered: u64,
    /// Like a generator's, but not this one's.
    pub foreign: u64,
    /// The time that it took.
    pub seconds: f64,
}

impl Progress {
    /// What has been counted since `before`, in that time.
    pub(crate) fn since(&self, before: &Self, time: Duration) -> Self {
        Self {
            sent: self.sent - before.sent,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received: self.received - before.received,
            received_bytes: self.received_bytes - before.received_bytes,
            reordered: self.reordered - before.reordered,
            foreign: self.foreign - before.foreign,
            seconds: time.as_secs_f64(),
        }
    }

    /// Sent and not received.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let count = count as f64;
            count / self.seconds
        } else {
            0.0
        }
    }

    /// Packets a second.
    pub fn sent_rate(&self) -> f64 {
        self.rate(self.sent)
    }

    /// Packets a second.
    pub fn received_rate(&self) -> f64 {
        self.rate(self.received)
    }
}

impl std::fmt::Display for Progress {
    /// One line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "sent {:.0}/s, received {:.0}/s",
            self.sent_rate(),
            self.received_rate()
        )
    }
}

/// How long packets took from sender to receiver, microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "percentiles")]
pub struct Latency {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Packets a second that were wanted; as many as possible if none.
    pub wanted: Option<u64>,
    /// What was counted.
    pub counted: Progress,
    /// Whether anybody received.
    pub receiver: bool,
    /// None when nothing arrived.
    pub latency: Option<Latency>,
    /// Ended by a signal.
    pub interrupted: bool,
}

impl Outcome {
    pub(crate) fn new(
        wanted: Option<u64>,
        counted: Progress,
        receiver: bool,
        latencies: &[u64],
        interrupted: bool,
    ) -> Self {
        Self {
            wanted,
            counted,
            receiver,
            latency: latency(latencies),
            interrupted,
        }
    }

    /// Lost packets of those sent, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.counted.sent == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let ratio = self.counted.lost() as f64 / self.counted.sent as f64;
        ratio
    }

    /// The rate that was wanted was not reached: fewer than 98 of 100 packets were sent.
    pub fn fell_short(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "rates far below 2^52")]
        let short = |wanted: u64| self.counted.sent_rate() < wanted as f64 * 0.98;
        self.wanted.is_some_and(short)
    }

    /// For programs. What was not measured is null.
    pub fn to_json(&self) -> Value {
        let c = &self.counted;
        let received = |value: Value| if self.receiver { value } else { Value::Null };
        json!({
            "wanted_per_s": self.wanted,
            "seconds": c.seconds,
            "sent": c.sent,
            "sent_bytes": c.sent_bytes,
            "sent_per_s": c.sent_rate(),
            "received": received(c.received.into()),
            "received_bytes": received(c.received_bytes.into()),
            "received_per_s": received(c.received_rate().into()),
            "lost": received(c.lost().into()),
            "reordered": received(c.reordered.into()),
            "foreign": received(c.foreign.into()),
            "latency_us": self.latency.map(|l| json!({
                "min": l.min, "mean": l.mean, "p50": l.p50, "p90": l.p90, "p99": l.p99, "p999": l.p999, "max": l.max,
            })),
            "interrupted": self.interrupted,
        })
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let c = &self.counted;
        let mut text = format!(
            "sent       {:>12} packets in {:.2} s, {:.0}/s, {:.3} Gbit/s\n",
            c.sent,
            c.seconds,
            c.sent_rate(),
            c.rate(c.sent_bytes) * 8e-9
        );
        if self.fell_short() {
            let wanted = self.wanted.unwrap_or_default();
            let _ = writeln!(
                text,
                "the rate of {wanted}/s was not reached: the generator, or an interface, is the limit"
            );
        }
        if self.receiver {
            let _ = writeln!(
                text,
                "received   {:>12} packets, {:.0}/s, {:.3} Gbit/s",
                c.received,
                c.received_rate(),
                c.rate(c.received_bytes) * 8e-9
            );
            let _ = writeln!(
                text,
                "lost       {:>12} packets, {:.4} %",
                c.lost(),
                self.loss() * 100.0
            );
            let _ = writeln!(text, "reordered  {:>12} packets", c.reordered);
        } else {
            text.push_str("nobody counted what arrived: --receive names an interface that does\n");
        }
        if self.receiver && c.sent > 0 && c.received == 0 {
            text.push_str(
                "Nothing arrived. Live frames enter a veth only if its other end has an XDP program or GRO \
                 (ethtool -K DEV gro on), and every router on the way must know --gateway, source and destination.\n",
            );
        }
        if let Some(l) = self.latency {
            let _ = writeln!(
                text,
                "latency    min {:.1}  mean {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1} us",
                l.min, l.mean, l.p50, l.p90, l.p99, l.p999, l.max
            );
        }
        if self.interrupted {
            text.push_str("ended by a signal\n");
        }
        text
    }
}

fn latency(counts: &[u64]) -> Option<Latency> {
    // Three digits are more than the buckets have.
    let mut histogram = Histogram::<u64>::new(3).ok()?;
    for (bucket, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        histogram
            .record_n(nanoseconds(bucket).max(1), *count)
            .ok()?;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "an hour of nanoseconds is below 2^52"
    )]
    let us = |ns: u64| ns as f64 / 1000.0;
    (!histogram.is_empty()).then(|| Latency {
        min: us(histogram.min()),
        mean: histogram.mean() / 1000.0,
        p50: us(histogram.value_at_quantile(0.5)),
        p90: us(histogram.value_at_quantile(0.9)),
        p99: us(histogram.value_at_quantile(0.99)),
        p999: us(histogram.value_at_quantile(0.999)),
        max: us(histogram.max()),
    })
}
