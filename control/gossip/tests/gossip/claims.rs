//! Who has what several claim: all nodes come to the same, those that come later among them.

use crate::net::{Faults, Net};
use crate::{cluster, secs};

const P: &str = "10.244.2.0/24";
const HALF: &str = "10.244.2.0/25";
const DAYS: u64 = 86_400;

/// Every node that runs says that this one has it.
fn all_say(net: &Net, by: &[usize], of: &[(usize, &str)], owner: usize) -> bool {
    by.iter().all(|by| net.owner(*by, of) == Some(owner))
}

fn assert_all(net: &Net, by: &[usize], of: &[(usize, &str)], owner: usize, what: &str) {
    let said: Vec<_> = by.iter().map(|by| net.owner(*by, of)).collect();
    assert!(all_say(net, by, of, owner), "{what}: {said:?}");
}

/// Nobody is taken anything from, at no time.
fn run_and_watch(net: &mut Net, seconds: u64, by: &[usize], of: &[(usize, &str)], owner: usize) {
    let end = net.now + secs(seconds);
    let taken = net.run_until(end, |net| !all_say(net, by, of, owner));
    let said: Vec<_> = by.iter().map(|by| net.owner(*by, of)).collect();
    assert!(!taken, "at {:?}: {said:?}", net.now);
}

#[test]
fn a_clock_of_1970_takes_nothing() {
    for young in [5, 100] {
        let mut net = Net::new(6, 31, Faults::default());
        for node in 0..4 {
            if node == 1 {
                net.claim(1, P);
            }
            net.start(node, 0);
        }
        net.run(secs(5 + young));
        net.set_day_zero(4, DAYS);
        net.claim(4, HALF);
        net.start(4, 0);
        let of = [(1, P), (4, HALF)];
        run_and_watch(&mut net, 90, &[0, 1, 2, 3], &of, 1);
        assert_all(&net, &[4], &of, 1, "itself");
        // Who comes later has only what is signed; and the clock's being right changes nothing.
        net.kill(4);
        net.set_day_zero(4, 1_800_000_000);
        net.start(4, 0);
        net.start(5, 0);
        net.run(secs(60));
        assert_all(&net, &[0, 1, 2, 3, 4, 5], &of, 1, "later");
    }
}

/// It does not lose for ever either.
#[test]
fn a_clock_that_is_far_ahead_keeps_what_it_claimed_first() {
    let mut net = Net::new(6, 32, Faults::default());
    net.set_day_zero(1, 4_000_000_000);
    net.claim(1, P);
    for node in 0..4 {
        net.start(node, 0);
    }
    net.run(secs(60));
    net.claim(4, P);
    net.start(4, 0);
    let of = [(1, P), (4, P)];
    net.run(secs(60));
    net.start(5, 0);
    net.run(secs(60));
    assert_all(&net, &[0, 1, 2, 3, 4, 5], &of, 1, "all");
}

#[test]
fn a_replacement_has_what_the_dead_had() {
    let mut net = Net::new(6, 33, Faults::default());
    net.claim(3, P);
    for node in 0..4 {
        net.start(node, 0);
    }
    net.run(secs(30));
    net.kill(3);
    net.run(secs(20));
    net.claim(4, P);
    net.start(4, 0);
    let of = [(3, P), (4, P)];
    net.run(secs(90));
    assert_all(&net, &[0, 1, 2, 4], &of, 4, "after the time to take over");
    // A node that was restarted knows who had been silent, and for how long.
    net.kill(0);
    net.start(0, 1);
    run_and_watch(&mut net, 90, &[0, 1, 2, 4], &of, 4);
    // The dead one comes back, and takes nothing from the one that lives.
    net.start(3, 0);
    run_and_watch(&mut net, 120, &[0, 1, 2, 4], &of, 4);
    net.start(5, 0);
    net.run(secs(60));
    assert_all(&net, &[0, 1, 2, 3, 4, 5], &of, 4, "also later");
}

#[test]
fn who_was_cut_off_and_forgotten_takes_nothing_back() {
    for restarts in [false, true] {
        let mut net = Net::new(6, 34, Faults::default());
        net.claim(3, P);
        for node in 0..4 {
            net.start(node, 0);
        }
        net.run(secs(100));
        net.sides[3] = 1;
        net.run(secs(40));
        let now = net.now;
        net.engine(0).forget("node-3", now).expect("it is silent");
        net.run(secs(1));
        net.claim(4, P);
        net.start(4, 0);
        net.run(secs(60));
        let of = [(3, P), (4, P)];
        assert_all(&net, &[0, 1, 2, 4], &of, 4, "while it is away");
        if restarts {
            net.kill(3);
        }
        net.sides[3] = 0;
        if restarts {
            net.start(3, 0);
        }
        run_and_watch(&mut net, 120, &[0, 1, 2, 4], &of, 4);
        net.start(5, 0);
        net.run(secs(60));
        assert_all(&net, &[0, 1, 2, 3, 4, 5], &of, 4, "also later");
        assert!(net.agree());
    }
}

/// Whoever had it has it, with what was kept and without.
#[test]
fn a_restart_of_everybody_changes_nothing() {
    for lost in [false, true] {
        let mut net = Net::new(5, 35, Faults::default());
        net.claim(3, P);
        for node in 0..4 {
            net.start(node, 0);
        }
        net.run(secs(100));
        net.claim(1, P);
        net.run(secs(60));
        let of = [(1, P), (3, P)];
        assert_all(&net, &[0, 1, 2, 3], &of, 3, "the first");
        for node in 0..4 {
            net.kill(node);
            if lost {
                net.lose_records(node);
            }
        }
        net.run(secs(300));
        for node in 0..4 {
            net.start(node, 0);
        }
        net.run(secs(60));
        let owner = net.owner(0, &of).expect("one");
        assert!(lost || owner == 3);
        assert_all(&net, &[0, 1, 2, 3], &of, owner, "after it");
        net.start(4, 0);
        net.run(secs(60));
        assert_all(&net, &[0, 1, 2, 3, 4], &of, owner, "later");
    }
}

/// Everything at random: in the end all say the same.
#[test]
fn all_come_to_the_same() {
    for seed in 0..20 {
        let mut net = cluster(5, 400 + seed, Faults::default());
        let mut up = [true; 5];
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..8 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let node = 1 + usize::try_from(dice >> 8 & 3).expect("few");
            match dice & 3 {
                0 | 1 if up[node] => net.claim(node, if dice & 4 == 0 { P } else { HALF }),
                2 if up[node] => {
                    net.kill(node);
                    up[node] = false;
                }
                _ if !up[node] => {
                    net.start(node, 0);
                    up[node] = true;
                }
                // Wrong by hours, as by a time zone.
                _ => net.set_day_zero(node, 1_800_000_000 - (dice >> 16 & 0x7fff)),
            }
            net.run(secs(dice >> 40 & 63));
        }
        for (node, up) in up.iter().enumerate() {
            if !up {
                net.start(node, 0);
            }
        }
        net.run(secs(180));
        let of: Vec<_> = (1..5).flat_map(|node| [(node, P), (node, HALF)]).collect();
        let owner = net.owner(0, &of);
        for by in 1..5 {
            assert_eq!(net.owner(by, &of), owner, "seed {seed}, node {by}");
        }
    }
}
