//! What a change of routes costs, in a table of a thousand and of a million prefixes, with two
//! threads that read it as workers do: until both see it, and of the publisher's processor. And
//! what a lookup costs in each.
//!
//! Only the forwarding table: the kernel's own tables are no part of this.
#![allow(
    clippy::cast_precision_loss,
    reason = "sizes and counts far below 2^52"
)]

#[path = "../fib/tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{put_network, put_next_hop};
use ipnet::{IpNet, Ipv4Net};
use nix::time::{ClockId, clock_gettime};
use viaduct_fib::{NetworkId, Publisher, Reader, ReaderFactory, TunnelId, Update};

const SIZES: [u32; 2] = [1_000, 1_000_000];
const CHANGES: u32 = 1_000;
const BURST: u32 = 100_000;
const BATCH: usize = 64;
const NETWORK: NetworkId = NetworkId(0);

/// The n-th /28 from 16.0.0.0 on.
fn prefix(n: u32) -> IpNet {
    let address = Ipv4Addr::from((16 << 24) + (n << 4));
    Ipv4Net::new(address, 28).expect("a length").into()
}

/// An address in it.
fn inside(n: u32) -> IpAddr {
    Ipv4Addr::from((16 << 24) + (n << 4) + 5).into()
}

fn put(n: u32, tunnel: u32) -> Update {
    Update::PutRemote {
        network: NETWORK,
        prefix: prefix(n),
        tunnel: TunnelId(tunnel),
    }
}

/// A thread that takes the table for each batch, and notes when it first saw each epoch.
struct Worker {
    /// Nanoseconds from the start on, by epoch.
    seen: Arc<Vec<AtomicU64>>,
    /// The longest time between two batches.
    longest: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

fn worker(readers: &ReaderFactory, start: Instant, stop: &Arc<AtomicBool>) -> Worker {
    let epochs = CHANGES as usize + 8;
    let seen: Arc<Vec<_>> = Arc::new((0..epochs).map(|_| AtomicU64::new(0)).collect());
    let longest = Arc::new(AtomicU64::new(0));
    let (reader, stop) = (readers.reader(), Arc::clone(stop));
    let (noted, most) = (Arc::clone(&seen), Arc::clone(&longest));
    let run = move || {
        let (mut last, mut turn) = (u64::MAX, start.elapsed());
        while !stop.load(Ordering::Relaxed) {
            let table = reader.load();
            for n in 0..BATCH {
                black_box(table.remote(NETWORK, inside(u32::try_from(n).expect("few"))));
            }
            let epoch = table.epoch();
            drop(table);
            let now = start.elapsed();
            if epoch != last {
                let place = usize::try_from(epoch).expect("few");
                noted[place].store(nanoseconds(now), Ordering::Release);
                last = epoch;
            }
            most.fetch_max(nanoseconds(now.saturating_sub(turn)), Ordering::Relaxed);
            turn = now;
        }
    };
    let thread = thread::spawn(run);
    Worker {
        seen,
        longest,
        thread,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("centuries")
}

/// Of this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux has it")
        .into()
}

fn micro(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Percentiles of sorted times, in microseconds.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| micro(times[(times.len() - 1) * percent / 100]);
    format!("{:9.1} {:9.1} {:9.1}", at(50), at(99), at(100))
}

fn filled(size: u32) -> (Publisher, ReaderFactory) {
    let (mut publisher, readers) = Publisher::new();
    let first = [put_network(0, 1), put_next_hop(0, 0), put_next_hop(1, 1)];
    for update in first.into_iter().chain((0..size).map(|n| put(n, 0))) {
        publisher.apply(update).expect("sound");
    }
    publisher.publish().expect("nobody reads");
    (publisher, readers)
}

/// One change at a time, as they come from other nodes.
fn changes(size: u32, workers: usize) {
    let (mut publisher, readers) = filled(size);
    let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let workers: Vec<_> = (0..workers)
        .map(|_| worker(&readers, start, &stop))
        .collect();
    let (mut made, mut cost) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        // The control thread sleeps until there is something to do.
        thread::sleep(Duration::from_millis(1));
        let (began, spent) = (start.elapsed(), processor_time());
        publisher.apply(put(n * 7919 % size, n % 2)).expect("sound");
        let epoch = publisher.publish().expect("workers let go");
        cost.push(processor_time().saturating_sub(spent));
        made.push((epoch, began));
    }
    thread::sleep(Duration::from_millis(50));
    stop.store(true, Ordering::Relaxed);
    let mut visible = Vec::new();
    for (epoch, began) in made {
        let place = usize::try_from(epoch).expect("few");
        let seen = workers
            .iter()
            .map(|w| w.seen[place].load(Ordering::Acquire));
        // A worker without the processor for a while may see the next one first.
        let all: Option<Vec<_>> = seen.map(|at| (at > 0).then_some(at)).collect();
        if let Some(last) = all.and_then(|all| all.into_iter().max()) {
            visible.push(Duration::from_nanos(last).saturating_sub(began));
        }
    }
    let count = workers.len();
    for worker in workers {
        worker.thread.join().expect("no panic");
    }
    println!(
        "{size:9} {count:8} {}   {}   ({} of {CHANGES} seen by all before the next)",
        spread(&mut visible),
        spread(&mut cost),
        visible.len()
    );
}

/// As many changes at once as a large cluster's restart brings.
fn burst() {
    let (mut publisher, readers) = filled(1_000_000);
    let (start, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let worker = worker(&readers, start, &stop);
    thread::sleep(Duration::from_millis(100));
    worker.longest.store(0, Ordering::Relaxed);
    let (began, spent) = (Instant::now(), processor_time());
    for n in 0..BURST {
        publisher.apply(put(n, 1)).expect("sound");
    }
    publisher.publish().expect("the worker lets go");
    let (took, cost) = (began.elapsed(), processor_time().saturating_sub(spent));
    // The other copy is brought up to date when the worker has left it.
    while !publisher.quiesced(publisher.fib().epoch()) {
        publisher.apply(put(0, 1)).expect("sound");
        publisher.publish().expect("the worker lets go");
    }
    stop.store(true, Ordering::Relaxed);
    worker.thread.join().expect("no panic");
    println!(
        "{BURST} changes at once: {:.0} ms, {:.2} us of processor each; the worker's longest batch meanwhile {:.0} us",
        took.as_secs_f64() * 1e3,
        micro(cost) / f64::from(BURST),
        worker.longest.load(Ordering::Relaxed) as f64 / 1e3
    );
}

/// Nanoseconds a lookup in each table, which take turns: of one flow, and of all.
fn lookups() {
    let tables = SIZES.map(filled);
    let readers = tables.each_ref().map(|(_, readers)| readers.reader());
    let mut times: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..2_000u32 {
        for (place, reader) in readers.iter().enumerate() {
            let random = |n: u32| (round * 1_000 + n).wrapping_mul(2_654_435_761) % SIZES[place];
            times[place][0].push(lookup(reader, |_| 7));
            times[place][1].push(lookup(reader, random));
        }
    }
    let medians = times.map(|kinds| {
        kinds.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    });
    for (kind, name) in ["one flow", "random flows"].iter().enumerate() {
        let (small, large) = (medians[0][kind], medians[1][kind]);
        println!(
            "lookup, {name:12} {small:6.1} ns in {}, {large:6.1} ns in {}: {:.2} times",
            SIZES[0],
            SIZES[1],
            large / small
        );
    }
}

fn lookup(reader: &Reader, which: impl Fn(u32) -> u32) -> f64 {
    const LOOKUPS: u32 = 1_000;
    let addresses: Vec<_> = (0..LOOKUPS).map(|n| inside(which(n))).collect();
    let table = reader.load();
    let began = Instant::now();
    for address in &addresses {
        black_box(table.remote(NETWORK, black_box(*address)));
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS)
}

fn main() {
    println!(
        "microseconds: p50, p99, most; until all workers see it, and of the publisher's processor"
    );
    println!(" prefixes  workers   visible                           processor");
    for size in SIZES {
        for workers in [1, 2] {
            changes(size, workers);
        }
    }
    burst();
    lookups();
}
