//! Publishing and reading from different threads: what readers see, and who waits for whom.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{ip, next_hop, put_local, put_network, put_next_hop, put_port, put_remote};
use common::{remove_local, remove_remote};
use viaduct_fib::{NetworkId, PortId, Publisher, Reader, ReaderFactory, TunnelId, Update};

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}

#[test]
fn handles_can_be_sent() {
    is_send::<Publisher>();
    is_send::<Reader>();
    is_send::<ReaderFactory>();
    is_sync::<Publisher>();
    is_sync::<ReaderFactory>();
}

#[test]
fn nothing_staged_is_nothing_published() {
    let (mut publisher, _factory) = Publisher::new();
    assert_eq!(publisher.publish(), Ok(0));
    publisher.apply(put_network(0, 1)).unwrap();
    assert_eq!(publisher.publish(), Ok(1));
    assert_eq!(publisher.publish(), Ok(1));
    assert_eq!(publisher.fib().epoch(), 1);
}

#[test]
fn staged_updates_are_invisible_until_published() {
    let (mut publisher, factory) = Publisher::new();
    let reader = factory.reader();
    publisher.apply(put_network(0, 1)).unwrap();
    assert_eq!(reader.load().counts().networks, 0);
    assert_eq!(publisher.publish(), Ok(1));
    publisher.apply(put_network(1, 2)).unwrap();
    assert!(publisher.quiesced(1));
    assert_eq!(reader.load().counts().networks, 1);
    assert!(!publisher.quiesced(2));
    assert_eq!(publisher.publish(), Ok(2));
    assert_eq!(reader.load().counts().networks, 2);
}

#[test]
fn both_copies_are_equal_after_each_publication() {
    let (mut publisher, factory) = Publisher::new();
    let reader = factory.reader();
    let updates = [
        put_network(0, 1),
        put_port(1, 0),
        put_local(0, "10.0.0.1", 1),
        put_next_hop(3, 1),
        put_remote(0, "10.1.0.0/24", 3),
        remove_remote(0, "10.1.0.0/24"),
        remove_local(0, "10.0.0.1"),
        Update::RemovePort { id: PortId(1) },
    ];
    for (epoch, update) in (1..).zip(updates) {
        publisher.apply(update).unwrap();
        assert_eq!(publisher.publish(), Ok(epoch));
        assert_eq!(*reader.load(), *publisher.fib());
        // This swaps the copies.
        assert!(publisher.quiesced(epoch));
        assert_eq!(*reader.load(), *publisher.fib());
    }
}

#[test]
fn stuck_reader_delays_but_does_not_hang() {
    let (mut publisher, factory) = Publisher::new();
    let (stuck, other) = (factory.reader(), factory.reader());
    publisher.apply(put_network(0, 1)).unwrap();
    let held = stuck.load();
    // The copy that it does not hold can still be published...
    assert_eq!(publisher.publish(), Ok(1));
    assert!(!publisher.quiesced(1));
    // ... the one that it holds cannot.
    publisher.apply(put_network(1, 2)).unwrap();
    let start = Instant::now();
    let error = publisher.publish().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!((error.epoch, error.published), (2, 1));
    assert_eq!(
        error.to_string(),
        "cannot publish forwarding table 2: a worker has used a table older than 1 for more \
         than 100 ms; the changes are kept, publish again, and restart the daemon if this persists"
    );
    assert_eq!(other.load().counts().networks, 1);
    assert_eq!(held.counts().networks, 0);
    // More can be staged; all of it is seen together when the reader has moved on.
    publisher.apply(put_network(2, 3)).unwrap();
    assert!(!publisher.quiesced(1));
    drop(held);
    assert_eq!(publisher.publish(), Ok(2));
    assert_eq!(other.load().counts().networks, 3);
    assert_eq!(stuck.load().epoch(), 2);
    assert!(publisher.quiesced(2));
}

#[test]
fn quiesced_completes_a_failed_publication_only() {
    let (mut publisher, factory) = Publisher::new();
    let reader = factory.reader();
    publisher.apply(put_network(0, 1)).unwrap();
    let held = reader.load();
    publisher.publish().unwrap();
    publisher.apply(put_network(1, 2)).unwrap();
    publisher.publish().unwrap_err();
    publisher.apply(put_network(2, 3)).unwrap();
    drop(held);
    assert!(publisher.quiesced(1));
    assert_eq!(reader.load().counts().networks, 2);
    assert_eq!(publisher.publish(), Ok(3));
    assert_eq!(reader.load().counts().networks, 3);
}

#[test]
fn readers_keep_the_last_table_when_the_publisher_is_gone() {
    let (mut publisher, factory) = Publisher::new();
    let reader = factory.reader();
    publisher.apply(put_network(0, 1)).unwrap();
    publisher.publish().unwrap();
    let held = reader.load();
    publisher.apply(put_network(1, 2)).unwrap();
    drop(publisher);
    assert_eq!(held.counts().networks, 1);
    drop(held);
    assert_eq!(reader.load().epoch(), 1);
    let late = factory.reader();
    drop((factory, reader));
    assert_eq!(late.load().counts().networks, 1);
}

/// Moves a pod to and fro, by several updates in one publication; every table that a reader
/// sees must have all of them or none, and the epochs must never go back.
#[test]
fn readers_see_only_whole_publications() {
    const READERS: usize = 2;
    let (mut publisher, factory) = Publisher::new();
    for update in [
        put_network(0, 1),
        put_port(1, 0),
        put_next_hop(0, 0),
        put_next_hop(1, 1),
        put_remote(0, "10.1.0.0/16", 0),
        put_remote(0, "fd00::/64", 0),
    ] {
        publisher.apply(update).unwrap();
    }
    publisher.publish().unwrap();
    let stop = AtomicBool::new(false);
    let (seen, last) = mpsc::channel();
    let epoch = thread::scope(|scope| {
        for _ in 0..READERS {
            let (reader, seen, stop) = (factory.reader(), seen.clone(), &stop);
            scope.spawn(move || seen.send(watch(&reader, stop)));
        }
        let end = Instant::now() + Duration::from_millis(500);
        let mut epoch = 1;
        while Instant::now() < end {
            flip(&mut publisher, epoch);
            epoch = patiently(|| publisher.publish().ok());
        }
        patiently(|| publisher.quiesced(epoch).then_some(()));
        stop.store(true, Ordering::Release);
        epoch
    });
    drop(seen);
    assert!(epoch > 10, "only {epoch} publications");
    assert_eq!(last.iter().collect::<Vec<_>>(), [epoch; READERS]);
}

/// Tries until it works: on a busy machine a reader may be off its CPU for long.
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "a reader hangs");
        thread::yield_now();
    }
}

/// At odd epochs everything leads to tunnel 0 and 10.1.0.1 is not local, at even ones to tunnel 1
/// and it is.
fn flip(publisher: &mut Publisher, epoch: u64) {
    let here = !epoch.is_multiple_of(2);
    let tunnel = u32::from(here);
    let local = if here {
        put_local(0, "10.1.0.1", 1)
    } else {
        remove_local(0, "10.1.0.1")
    };
    for update in [
        put_remote(0, "10.1.0.0/16", tunnel),
        local,
        put_remote(0, "fd00::/64", tunnel),
    ] {
        publisher.apply(update).unwrap();
    }
}

fn watch(reader: &Reader, stop: &AtomicBool) -> u64 {
    let mut epoch = 0;
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let fib = reader.load();
        assert!(fib.epoch() >= epoch, "from {epoch} back to {}", fib.epoch());
        epoch = fib.epoch();
        let here = epoch.is_multiple_of(2);
        let tunnel = Some(TunnelId(u32::from(here)));
        assert_eq!(fib.remote(NetworkId(0), ip("10.1.2.3")), tunnel);
        let local = fib.local(NetworkId(0), ip("10.1.0.1"));
        assert_eq!(local, here.then_some(PortId(1)));
        assert_eq!(fib.remote(NetworkId(0), ip("fd00::1")), tunnel);
        assert_eq!(fib.next_hop(TunnelId(1)), Some(&next_hop(1)));
        if stopping {
            return epoch;
        }
    }
}
