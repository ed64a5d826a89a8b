//! What one record costs that changes, among many.

use std::time::{Duration, Instant};

use ring::signature::Ed25519KeyPair;
use viaduct_gossip::{
    Content, Engine, KeyRing, Message, NameHash, Record, Seal, Signed, Trust, Version,
};

use crate::net::address;
use crate::noise;

fn record(node: usize, change: u64) -> Signed {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&node.to_be_bytes());
    let key = Ed25519KeyPair::from_seed_unchecked(&secret).expect("32 bytes");
    let said = crate::net::content(node, address(node), 0);
    let record = Record {
        name: format!("node-{node}"),
        part: 0,
        version: Version {
            incarnation: 1,
            change,
        },
        instance: 1,
        started: 1,
        certificate: None,
        content: Content::Here {
            gossip: said.gossip,
            vteps: said.vteps,
            parts: 1,
            networks: said.networks,
        },
    };
    Signed::new(&record, "noise", &key).expect("short")
}

fn told(engine: &mut Engine, now: Duration) -> usize {
    let changed = engine.take_changed(now);
    let known = changed.iter().filter_map(|name| engine.node(name, now));
    known.count()
}

/// Processor time until whoever makes routes is told, the signature's check included; and what copying all
/// records would add.
#[test]
#[ignore = "figures, with --release: ./dev bench gossip"]
fn cost_of_a_change() {
    println!("| nodes | one change | its signature's check | copying all records |");
    println!("|---|---|---|---|");
    for count in [10, 1_000, 10_000] {
        let mut engine = noise::engine_with(Trust::FirstSight);
        let all: Vec<_> = (1..=count).map(|node| record(node, 1)).collect();
        assert_eq!(engine.restore(all.into(), Duration::ZERO), count);
        told(&mut engine, Duration::ZERO);
        let mut seal = Seal::new(KeyRing::new("noise", &[[1; 32]]), [9; 16]);
        let changes: Vec<_> = (1..=200)
            .map(|n| record(1 + n % count, 2 + n as u64))
            .collect();
        let mut datagrams: Vec<_> = changes
            .iter()
            .map(|signed| seal.seal(&Message::Records(vec![signed.clone()]).to_bytes()))
            .collect();
        let start = Instant::now();
        for datagram in &mut datagrams {
            engine.datagram(address(1), datagram, Duration::ZERO);
            assert_eq!(told(&mut engine, Duration::ZERO), 1);
        }
        let change = start.elapsed() / 200;
        let start = Instant::now();
        assert!(changes.iter().all(|signed| signed.verify("noise").is_ok()));
        let check = start.elapsed() / 200;
        let start = Instant::now();
        let copies: Vec<Record> = engine.store().nodes().map(|(r, _)| (*r).clone()).collect();
        let copying = start.elapsed();
        assert!(copies.len() >= count && engine.store().get(NameHash::of("node-1")).is_some());
        println!("| {count} | {change:?} | {check:?} | {copying:?} |");
    }
}
