//! What a member says that is believed, and lies: about nodes that live, about dead ones, to third parties.

use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, PostcardCodec};
use rand::SeedableRng;
use rand::rngs::StdRng;
use viaduct_gossip::{Content, MAX_JUMP, Member, Message, Record, Signed, TAKE_OVER, Version};

use crate::net::{Faults, Net};
use crate::{cluster, secs};

const LIAR: usize = 4;
/// Does not run when the lies are told.
const DEAD: usize = 3;
const NODES: usize = 5;

/// That a node is forgotten, in the liar's name.
fn forgotten(net: &Net, node: usize, version: Version) -> Message {
    let record = Record {
        name: format!("node-{node}"),
        part: 0,
        version,
        instance: 0,
        started: version.incarnation,
        certificate: None,
        content: Content::Forgotten,
    };
    let signed = Signed::new(&record, "simulated", &net.key(LIAR)).expect("short");
    Message::Records(vec![signed])
}

/// Tells everybody.
fn tell(net: &mut Net, message: &Message) {
    for to in 0..NODES {
        if to != LIAR {
            net.inject(LIAR, to, message);
        }
    }
}

fn numbers(net: &Net) -> [u64; 7] {
    let plausible = net.time_of_day() + MAX_JUMP - 100;
    [0, 1, 2, plausible, MAX_JUMP, u64::MAX - 1, u64::MAX]
}

#[test]
fn nobody_is_forgotten_who_lives() {
    let mut net = cluster(NODES, 21, Faults::default());
    net.kill(DEAD);
    net.run(secs(30));
    for incarnation in numbers(&net) {
        for change in [1, u64::MAX] {
            for node in 0..NODES {
                let version = Version {
                    incarnation,
                    change,
                };
                let lie = forgotten(&net, node, version);
                tell(&mut net, &lie);
            }
            net.run(secs(5));
        }
    }
    for by in [0, 1, 2, LIAR] {
        for node in [0, 1, 2] {
            let known = net.known(by, node);
            assert!(
                matches!(known.record.content, Content::Here { .. }),
                "{by}: {known:?}"
            );
            assert!(known.answers && known.record.version.incarnation < u64::MAX / 2);
        }
        assert_eq!(net.known(by, DEAD).record.content, Content::Forgotten);
    }
    // The dead one is heard when it comes back, however far its name was brought.
    net.start(DEAD, 0);
    net.run(secs(20));
    net.check("after lies");
    assert!(net.agree() && net.known(0, DEAD).answers);
}

/// Third parties do not see that it lives, and believe it until it answers.
#[test]
fn words_about_a_node_that_is_cut_off_are_answered() {
    let mut net = cluster(NODES, 22, Faults::default());
    net.sides[2] = 1;
    net.run(secs(60));
    for incarnation in numbers(&net) {
        let version = Version {
            incarnation,
            change: u64::MAX,
        };
        let lie = forgotten(&net, 2, version);
        tell(&mut net, &lie);
        net.run(secs(2));
    }
    assert_eq!(net.known(0, 2).record.content, Content::Forgotten);
    assert!(matches!(
        net.known(2, 2).record.content,
        Content::Here { .. }
    ));
    net.sides[2] = 0;
    let back = |net: &Net| {
        (0..NODES).all(|by| matches!(net.known(by, 2).record.content, Content::Here { .. }))
    };
    let end = net.now + secs(30);
    assert!(net.run_until(end, back));
    net.run(secs(10) + Duration::from_millis(1));
    net.check("it is back");
}

/// What SWIM would say in a node's name, as a later instance of it: nobody signs that.
fn impersonated(net: &mut Net, node: usize, to: usize) -> Message {
    let mut member = |node: usize| net.engine(node).member().clone();
    let forged = Member {
        incarnation: u64::MAX,
        instance: u64::MAX,
        renewal: u16::MAX,
        ..member(node)
    };
    let config = foca::Config::simple();
    let mut foca = Foca::new(forged, config, StdRng::seed_from_u64(1), PostcardCodec);
    let mut said = AccumulatingRuntime::new();
    foca.announce(member(to), &mut said).expect("sent");
    let (_, bytes) = said.to_send().expect("a datagram");
    Message::Swim(bytes.to_vec())
}

/// SWIM then takes the real node for a former instance. It answers each node that asks it, so its claims
/// stay its own, and nobody can have it forgotten.
#[test]
fn nobody_loses_its_claims_to_who_uses_its_name_in_swim() {
    let mut net = cluster(NODES, 23, Faults::default());
    net.run(secs(10));
    let mut was_silent = false;
    let end = net.now + TAKE_OVER * 3;
    while net.now < end {
        for to in [0, 1] {
            let lie = impersonated(&mut net, 2, to);
            net.inject(LIAR, to, &lie);
        }
        net.run(secs(1));
        let known = net.known(0, 2);
        was_silent |= known.silent_since.is_some();
        assert!(!known.overdue, "at {:?}", net.now);
    }
    assert!(was_silent, "the lie had no effect: test another");
    let number = net.known(0, 2).record.version.incarnation;
    let lie = forgotten(
        &net,
        2,
        Version {
            incarnation: number,
            change: u64::MAX,
        },
    );
    tell(&mut net, &lie);
    net.run(secs(1));
    assert!(matches!(
        net.known(0, 2).record.content,
        Content::Here { .. }
    ));
    // Who does not answer anybody is overdue, whoever uses its name.
    let lie = impersonated(&mut net, 2, 0);
    net.kill(2);
    for _ in 0..150 {
        net.inject(LIAR, 0, &lie);
        net.run(secs(1));
    }
    assert!(net.known(0, 2).overdue);
}
