//! Time a packet in the pipeline, in memory. Sizes are those of inner IP packets.
//!
//! Between two batches headers are put back, untimed; the payload stays as it is.
#![allow(missing_docs, reason = "criterion's macros")]

mod lane;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lane::{BATCH, Case, Flows, Lane};

const ROUTES: [u32; 3] = [10, 10_000, 1_000_000];
const SIZES: [usize; 2] = [64, 1450];

fn bench(c: &mut Criterion, case: Case, size: usize, routes: u32, flows: Flows) {
    let name = format!("{case:?} {size} B, {routes} routes, {flows:?}").to_lowercase();
    let mut lane = None;
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |b| {
        // Made when it is wanted: a million routes take a second.
        let lane = lane.get_or_insert_with(|| Lane::new(case, size, routes, flows));
        b.iter_custom(|packets| {
            let batches = packets.div_ceil(BATCH as u64);
            let time = lane.time(batches).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let each = time / (batches * BATCH as u64) as f64;
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let all = each * packets as f64;
            Duration::from_secs_f64(all)
        });
    });
    group.finish();
}

fn pipeline(c: &mut Criterion) {
    for case in [Case::Encapsulate, Case::Decapsulate] {
        for size in SIZES {
            for routes in ROUTES {
                for flows in [Flows::Hot, Flows::Random] {
                    bench(c, case, size, routes, flows);
                }
            }
        }
    }
    for size in SIZES {
        for case in [Case::EncapsulatePartial, Case::Local, Case::Drop] {
            bench(c, case, size, 10, Flows::Hot);
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = pipeline
}
criterion_main!(benches);
