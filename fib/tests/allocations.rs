//! A reader neither allocates nor frees, whatever the publisher does meanwhile.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{ip, put_local, put_network, put_next_hop, put_port, put_remote};
use common::{remove_local, remove_remote, vni};
use viaduct_fib::{NetworkId, PortId, Publisher, Reader, TunnelId, Update};

/// How long the reader may take to see enough tables.
const PATIENCE: Duration = Duration::from_secs(20);

thread_local! {
    /// Calls of the allocator by this thread, frees included.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator; counting touches a
// constant-initialised thread-local without destructor, which does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the pointer came from `System` with this layout, through `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn readers_neither_allocate_nor_free() {
    let before = CALLS.get();
    drop(black_box(Box::new(1)));
    assert_eq!(CALLS.get() - before, 2, "the counter works");

    let (mut publisher, factory) = Publisher::new();
    for update in [put_network(0, 1), put_port(1, 0)] {
        publisher.apply(update).unwrap();
    }
    publisher.publish().unwrap();
    let (stop, epochs) = (AtomicBool::new(false), AtomicU64::new(0));
    let reader = factory.reader();
    let start = Instant::now();
    let calls = thread::scope(|scope| {
        let watcher = scope.spawn({
            let (stop, epochs) = (&stop, &epochs);
            move || watch(&reader, stop, epochs)
        });
        // Whole tables come and go, so that there is a lot to be freed.
        while epochs.load(Ordering::Relaxed) < 100 && start.elapsed() < PATIENCE {
            fill().for_each(|update| publisher.apply(update).unwrap());
            // A reader that has lost its CPU may delay this: then the next one has it all.
            let _ = publisher.publish();
            clear().for_each(|update| publisher.apply(update).unwrap());
            let _ = publisher.publish();
        }
        stop.store(true, Ordering::Release);
        watcher.join().unwrap()
    });
    assert_eq!(calls, 0);
    let epochs = epochs.into_inner();
    assert!(epochs >= 100, "the reader saw only {epochs} tables");
}

fn fill() -> impl Iterator<Item = Update> {
    [
        put_next_hop(0, 1),
        put_local(0, "10.1.0.1", 1),
        put_remote(0, "fd00::/64", 0),
    ]
    .into_iter()
    .chain((0..50).map(|node| put_remote(0, &format!("10.2.{node}.0/24"), 0)))
}

fn clear() -> impl Iterator<Item = Update> {
    (0..50)
        .map(|node| remove_remote(0, &format!("10.2.{node}.0/24")))
        .chain([
            remove_remote(0, "fd00::/64"),
            remove_local(0, "10.1.0.1"),
            Update::RemoveNextHop {
                tunnel: TunnelId(0),
            },
        ])
}

/// Counts the tables seen; returns the allocator calls during a worker's use of them.
fn watch(reader: &Reader, stop: &AtomicBool, epochs: &AtomicU64) -> u64 {
    let addresses = ["10.1.0.1", "10.2.7.7", "10.9.9.9", "fd00::1", "fd01::1"].map(ip);
    let mut last = u64::MAX;
    let before = CALLS.get();
    while !stop.load(Ordering::Acquire) {
        let fib = reader.load();
        epochs.fetch_add(u64::from(fib.epoch() != last), Ordering::Relaxed);
        last = fib.epoch();
        black_box(fib.network_by_vni(vni(1)));
        black_box(fib.port(PortId(1)));
        for address in addresses {
            black_box(fib.local(NetworkId(0), address));
            let tunnel = black_box(fib.remote(NetworkId(0), address));
            black_box(tunnel.and_then(|tunnel| fib.next_hop(tunnel)));
        }
    }
    CALLS.get() - before
}
