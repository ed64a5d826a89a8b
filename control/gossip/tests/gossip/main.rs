//! Gossip among many nodes, simulated: the engine, the store and the seal are the real ones.

mod claims;
mod cost;
mod hostile;
mod net;
mod noise;

use std::time::Duration;

use net::{Faults, Net};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use viaduct_gossip::{Detection, MAX_DATAGRAM, SMALL_DATAGRAM, TAKE_OVER};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Nodes that have found each other from one peer's address.
fn cluster(count: usize, seed: u64, faults: Faults) -> Net {
    let mut net = Net::new(count, seed, faults);
    for node in 0..count {
        net.start(node, 0);
        net.run(Duration::from_millis(20));
    }
    let end = net.now + secs(60);
    let joined = net.run_until(end, |net| {
        net.agree() && net.members().iter().all(|&members| members + 1 == count)
    });
    assert!(joined, "seed {seed}: {:?}", net.members());
    net
}

/// Nodes that know each other, without having joined one by one.
fn acquainted(count: usize, seed: u64) -> Net {
    let mut net = Net::new(count, seed, Faults::default());
    for node in 0..count {
        net.start(node, node);
    }
    net.acquaint();
    let end = net.now + secs(60);
    let whole = net.run_until(end, |net| {
        net.agree() && net.members().iter().all(|&members| members + 1 == count)
    });
    assert!(whole, "seed {seed}: {:?}", net.members());
    net
}

/// Things happen to a cluster at random; when they have ended, all know the same.
fn scenario(count: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let faults = Faults {
        loss: rng.random_range(0..=200),
        twice: rng.random_range(0..=100),
    };
    let mut net = cluster(count, seed, Faults::default());
    net.faults = faults;
    let mut running = vec![true; count];
    for _ in 0..8 {
        let node = rng.random_range(0..count);
        match rng.random_range(0..8) {
            0 | 1 if running[node] => net.change(node),
            2 if running[node] && node != 0 => {
                net.kill(node);
                running[node] = false;
            }
            3 if !running[node] => {
                net.start(node, 0);
                running[node] = true;
            }
            4 => {
                for side in &mut net.sides {
                    *side = rng.random_range(0..2);
                }
            }
            // The one that all are told of stays where it is.
            5 if running[node] && node != 0 => net.move_away(node),
            6 if running[node] => {
                let by = rng.random_range(1..1_000_000);
                net.jump(node, Duration::from_millis(by));
            }
            _ => net.sides.fill(0),
        }
        net.run(Duration::from_millis(rng.random_range(0..8000)));
    }
    net.sides.fill(0);
    let end = net.now + secs(200);
    net.run_until(end, Net::agree);
    net.check(&format!("seed {seed}"));
}

#[test]
fn three_nodes_find_each_other_and_learn_a_change() {
    let mut net = cluster(3, 1, Faults::default());
    net.change(2);
    let end = net.now + secs(1);
    assert!(net.run_until(end, |net| net.who_lack(2) == 0));
    net.check("three");
}

#[test]
fn who_leaves_is_gone_and_who_dies_is_not() {
    let mut net = cluster(5, 2, Faults::default());
    net.leave(3);
    net.run(secs(1));
    net.kill(3);
    net.kill(4);
    net.run(secs(60));
    assert_eq!(net.members(), [2, 2, 2]);
    let store = net.engine(0).store();
    let gone = store
        .iter()
        .filter(|held| held.record.content == viaduct_gossip::Content::Gone);
    let gone: Vec<_> = gone.map(|held| held.record.name.clone()).collect();
    assert_eq!(gone, ["node-3"], "and node-4's record stays");
    assert_eq!(store.len(), 5);
}

/// Whoever makes routes is told of silence, of its end, and of when others may take over.
#[test]
fn silence_is_told_and_when_it_has_lasted() {
    let mut net = cluster(3, 5, Faults::default());
    net.run(secs(5));
    let known = net.known(0, 2);
    assert!(known.answers && known.silent_since.is_none() && !known.overdue);
    assert_eq!(known.heard_from, Some(net::address(2)));
    net.told(0);
    net.kill(2);
    let end = net.now + secs(30);
    assert!(net.run_until(end, |net| !net.known(0, 2).answers));
    let since = net.known(0, 2).silent_since.expect("it is silent");
    assert!(net.told(0).contains("node-2"));
    net.run((since + TAKE_OVER).saturating_sub(net.now + Duration::from_millis(50)));
    assert!(!net.known(0, 2).overdue);
    net.told(0);
    net.run(Duration::from_millis(100));
    assert!(net.known(0, 2).overdue && net.told(0).contains("node-2"));
    net.start(2, 0);
    let end = net.now + secs(10);
    assert!(net.run_until(end, |net| net.known(0, 2).answers));
    assert!(net.told(0).contains("node-2") && net.known(0, 2).silent_since.is_none());
}

/// Two seconds are enough with these times, and too few with the usual ones.
#[test]
fn times_of_detection_may_be_given() {
    let millis = |millis| Some(Duration::from_millis(millis));
    let fast = Detection {
        probe_interval: millis(200),
        probe_timeout: millis(100),
        suspicion: millis(400),
    };
    for (detection, expected) in [(fast, [1, 1]), (Detection::default(), [2, 2])] {
        let mut net = Net::new(3, 4, Faults::default());
        net.detection = detection;
        for node in 0..3 {
            net.start(node, 0);
        }
        net.run(secs(20));
        assert_eq!(net.members(), [2, 2, 2]);
        net.kill(2);
        net.run(secs(2));
        assert_eq!(net.members(), expected);
    }
}

/// Those that were alone, and two halves that have taken each other for dead, are whole again soon.
#[test]
fn parted_nodes_find_each_other_again() {
    for alone in [1, 5] {
        let mut net = cluster(10, 3, Faults::default());
        net.sides[..alone].fill(1);
        net.run(secs(60));
        let mut members = vec![9 - alone; 10];
        members[..alone].fill(alone - 1);
        assert_eq!(net.members(), members);
        net.sides.fill(0);
        let end = net.now + secs(20);
        let whole = net.run_until(end, |net| net.members() == [9; 10]);
        assert!(whole, "{alone} of 10: {:?}", net.members());
    }
}

/// Every link carries 1,200 bytes; what is on a path that does not, comes in pieces.
#[test]
fn records_come_on_small_paths() {
    for path in [MAX_DATAGRAM, 1_000, 700, SMALL_DATAGRAM] {
        let mut net = Net::new(6, 11, Faults::default());
        net.path = path;
        for node in 0..6 {
            net.start(node, 0);
            net.grow(node, 200);
        }
        let whole = |net: &Net| {
            let all = (0..6).flat_map(|by| (0..6).map(move |of| (by, of)));
            let prefixes = |by, of| net.prefixes(by, of);
            net.agree() && all.fold(true, |all, (by, of)| all && prefixes(by, of) == 202)
        };
        let end = net.now + secs(60);
        assert!(net.run_until(end, whole), "{path} bytes");
        net.grow(3, 90);
        let end = net.now + secs(20);
        let less = |net: &Net| (0..6).all(|by| net.prefixes(by, 3) == 92);
        assert!(net.run_until(end, less), "{path} bytes, changed");
        assert!(net.longest <= MAX_DATAGRAM);
    }
}

/// All know soon where it is; that it was elsewhere is no second node.
#[test]
fn a_node_may_have_another_address() {
    let mut net = cluster(10, 6, Faults::default());
    net.move_away(3);
    let end = net.now + secs(1);
    assert!(net.run_until(end, |net| net.who_lack(3) == 0));
    net.run(secs(60));
    assert_eq!(net.members(), [9; 10]);
    net.check("moved");
}

/// Nobody is lost by it for longer than others take to say so.
#[test]
fn clocks_may_jump() {
    for (seed, by) in [(7, 1), (8, 60), (9, 86_400), (10, 100 * 86_400)] {
        let mut net = cluster(10, seed, Faults::default());
        net.jump(0, secs(by));
        net.change(4);
        let end = net.now + secs(1);
        assert!(net.run_until(end, |net| net.who_lack(4) == 0), "{by} s");
        let end = net.now + secs(60);
        let whole = net.run_until(end, |net| net.members() == [9; 10]);
        assert!(whole, "{by} s: {:?}", net.members());
        net.check("jumped");
    }
}

/// With the same key, too, as when a machine was copied.
#[test]
fn of_two_with_one_name_one_yields() {
    for seed in 0..40 {
        let mut net = Net::new(6, seed, Faults::default());
        net.name(5, "node-4");
        for node in 0..6 {
            net.start(node, 0);
        }
        net.run(secs(60));
        if !net.agree() {
            net.show();
        }
        assert!(net.agree(), "seed {seed}");
        let digest = *net.engine(0).store().digest();
        net.run(secs(120));
        assert_eq!(
            digest,
            *net.engine(0).store().digest(),
            "seed {seed}: and no flap"
        );
    }
}

/// A part of the seeds, so that parts run side by side. `GOSSIP_SEEDS` gives another number of all.
fn scenarios(count: usize, seeds: u64, part: u64, of: u64) {
    let given = std::env::var("GOSSIP_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok());
    for seed in (0..given.unwrap_or(seeds)).filter(|seed| seed % of == part) {
        scenario(count, seed);
    }
}

#[test]
fn scenarios_of_twenty() {
    scenarios(20, 1000, 0, 2);
}

#[test]
fn more_scenarios_of_twenty() {
    scenarios(20, 1000, 1, 2);
}

#[test]
fn scenarios_of_a_hundred() {
    scenarios(100, 50, 0, 1);
}

/// Larger clusters begin with nodes that know each other.
const JOINING: usize = 1000;

/// How fast a change is known to all, and what it costs when nothing changes.
#[test]
#[ignore = "minutes, with --release: ./dev bench gossip"]
fn report() {
    let sizes =
        std::env::var("GOSSIP_SIZES").unwrap_or_else(|_| "3 20 100 300 1000 2000".to_owned());
    let mut rows = Vec::new();
    println!("| nodes | loss | known to half | p99 | all | bytes/s a node, nothing changing |");
    println!("|---|---|---|---|---|---|");
    for count in sizes
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
    {
        // Joining one by one takes each of them N² steps: SWIM's list of members is no index.
        let mut net = if count > JOINING {
            acquainted(count, 1)
        } else {
            cluster(count, 1, Faults::default())
        };
        // SWIM's own news of who has come have ended.
        net.run(secs(20));
        net.faults.loss = 10;
        let (bytes, time) = (net.bytes, 30);
        net.run(secs(time));
        let idle = (net.bytes - bytes) / time / count as u64;
        let mut times = Vec::new();
        for change in 0..10 {
            let (node, start) = (change * count / 10, net.now);
            net.change(node);
            let mut lack = count - 1;
            while lack > 0 {
                net.run(Duration::from_millis(10));
                let now = net.who_lack(node);
                times.extend(vec![net.now.saturating_sub(start); lack - now]);
                lack = now;
            }
            net.run(secs(2));
        }
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_millis();
        println!(
            "| {count} | 1% | {} ms | {} ms | {} ms | {idle} |",
            at(50),
            at(99),
            at(100)
        );
        rows.push(format!(
            "{{\"nodes\": {count}, \"half, ms\": {}, \"p99, ms\": {}, \"all, ms\": {}, \"bytes/s a node, idle\": {idle}}}",
            at(50),
            at(99),
            at(100)
        ));
    }
    // For benches/plot.py.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench");
    std::fs::create_dir_all(folder).expect("a folder");
    let text = format!("[\n{}\n]\n", rows.join(",\n"));
    std::fs::write(format!("{folder}/gossip.json"), text).expect("written");
}
