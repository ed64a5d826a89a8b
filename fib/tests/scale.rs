//! A table of a million prefixes: it works, and an update does not cost what it holds.

mod common;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{put_network, put_next_hop};
use ipnet::{IpNet, Ipv4Net};
use viaduct_fib::{NetworkId, Publisher, TunnelId, Update};

const PREFIXES: u32 = 1_000_000;
const NETWORK: NetworkId = NetworkId(0);

/// The n-th /28 from 16.0.0.0 on.
fn prefix(n: u32) -> IpNet {
    let address = Ipv4Addr::from((16 << 24) + (n << 4));
    Ipv4Net::new(address, 28).expect("a length").into()
}

fn put(n: u32, tunnel: u32) -> Update {
    Update::PutRemote {
        network: NETWORK,
        prefix: prefix(n),
        tunnel: TunnelId(tunnel),
    }
}

#[test]
fn a_million_prefixes() {
    let (mut publisher, factory) = Publisher::new();
    let reader = factory.reader();
    for update in [put_network(0, 1), put_next_hop(0, 0), put_next_hop(1, 1)] {
        publisher.apply(update).unwrap();
    }
    for n in 0..PREFIXES {
        publisher.apply(put(n, 0)).unwrap();
    }
    // It is the publisher that works here; readers are free.
    assert_eq!(publisher.publish(), Ok(1));
    assert!(publisher.quiesced(1));
    assert_eq!(reader.load().counts().remotes, 1_000_000);

    let mut fastest = Duration::MAX;
    for n in 0..100 {
        let start = Instant::now();
        publisher.apply(put(n * 9_999, 1)).unwrap();
        publisher.publish().unwrap();
        fastest = fastest.min(start.elapsed());
    }
    // Copying or walking the table would take milliseconds.
    assert!(fastest < Duration::from_micros(500), "{fastest:?}");
    for n in 0..PREFIXES {
        let found = reader.load().remote(NETWORK, prefix(n).broadcast());
        let moved = n.is_multiple_of(9_999) && n < 999_900;
        assert_eq!(found, Some(TunnelId(moved.into())), "{}", prefix(n));
    }
}
