//! Time a packet in the hand-off between workers, in memory: given, taken, its buffer brought back.
//!
//! Both ends are on one thread. So it is the work that is measured, two copies of the packet among it;
//! what it costs to have cache lines cross between processors comes on top.
#![allow(missing_docs, reason = "criterion's macros")]

mod ring;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::{BATCH, Ring};

const SIZES: [usize; 2] = [64, 1450];

fn handoff(c: &mut Criterion) {
    let mut group = c.benchmark_group("hand-off");
    group.throughput(Throughput::Elements(1));
    for size in SIZES {
        let mut ring = Ring::new(size);
        group.bench_function(format!("{size} B"), |b| {
            b.iter_custom(|packets| {
                let batches = packets.div_ceil(BATCH as u64);
                let begin = Instant::now();
                for _ in 0..batches {
                    ring.pass();
                }
                each(begin.elapsed(), batches, packets)
            });
        });
    }
    group.finish();
}

/// What so many of the packets took, of so many batches.
fn each(all: Duration, batches: u64, packets: u64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let part = packets as f64 / (batches * BATCH as u64) as f64;
    all.mul_f64(part)
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = handoff
}
criterion_main!(benches);
