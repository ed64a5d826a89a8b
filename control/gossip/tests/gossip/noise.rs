//! Whatever a member says, sealed with the right key: nobody panics, no answer is too long, and
//! nobody believes what is not signed.
#![allow(unreachable_pub, reason = "a part of the test beside it")]

use std::time::Duration;

use proptest::prelude::*;
use ring::signature::Ed25519KeyPair;
use viaduct_gossip::{
    Announcement, Detection, Engine, KeyRing, MAX_DATAGRAM, Member, Message, NameHash, Options,
    Seal, Signed, StoreError, Trust, Version,
};

use crate::net::address;

fn member(node: usize) -> Member {
    Member {
        name: format!("node-{node}"),
        address: address(node),
        incarnation: 1,
        instance: u64::try_from(node).expect("few"),
        renewal: 0,
    }
}

fn engine() -> Engine {
    engine_with(Trust::FirstSight)
}

/// A node that knows nobody.
pub fn engine_with(trust: Trust) -> Engine {
    let options = Options {
        cluster: "noise".to_owned(),
        member: member(0),
        detection: Detection::default(),
        trust,
        certificate: None,
        verified: None,
        keys: KeyRing::new("noise", &[[1; 32]]),
        seed: [2; 32],
    };
    let key = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).expect("32 bytes");
    let mut engine = Engine::new(options, key, Duration::ZERO);
    let content = Announcement {
        gossip: address(0),
        vteps: vec![address(0).ip()],
        networks: Vec::new(),
    };
    engine.announce(content, Duration::ZERO).expect("short");
    engine
}

/// What comes of messages, each sealed well, and of a minute after.
fn hear(messages: &[Vec<u8>]) {
    let mut engine = engine();
    let mut seal = Seal::new(KeyRing::new("noise", &[[1; 32]]), [9; 16]);
    for message in messages {
        engine.datagram(address(1), &mut seal.seal(message), Duration::ZERO);
    }
    for second in 0..60 {
        engine.wake(Duration::from_secs(second));
        for (_, datagram) in engine.take_datagrams() {
            assert!(datagram.len() <= MAX_DATAGRAM, "{} bytes", datagram.len());
        }
    }
    assert_eq!(engine.store().len(), 1, "only its own");
}

fn message() -> impl Strategy<Value = Message> {
    let signed = (
        prop::collection::vec(any::<u8>(), 0..200),
        any::<[u8; 32]>(),
        prop::collection::vec(any::<u8>(), 0..70),
    );
    let signed = signed.prop_map(|(bytes, key, signature)| Signed {
        bytes,
        key,
        signature,
    });
    prop_oneof![
        (0usize..4).prop_map(|n| Message::Hello(member(n))),
        (0usize..4).prop_map(|n| Message::Welcome(member(n))),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Message::Swim),
        prop::collection::vec(signed, 0..3).prop_map(Message::Records),
        (any::<u8>(), prop::collection::vec(any::<u32>(), 0..140))
            .prop_map(|(first, hashes)| Message::Digest { first, hashes }),
        (
            any::<(u64, u8, u8)>(),
            prop::collection::vec(any::<u8>(), 0..300)
        )
            .prop_map(|((record, number, of), bytes)| Message::Piece {
                record,
                number,
                of,
                bytes
            }),
        prop::collection::vec(any::<u64>().prop_map(NameHash), 0..90)
            .prop_map(Message::RequestPieces),
        "[a-z-]{0,70}".prop_map(|node| Message::NotTaken {
            node,
            why: StoreError::Lives
        }),
        prop::collection::vec(any::<u64>().prop_map(NameHash), 0..120).prop_map(Message::Request),
        any::<(u64, u64)>().prop_map(|(first, last)| Message::Ranges(vec![
            viaduct_gossip::Range {
                first: NameHash(first),
                last: NameHash(last),
                records: vec![viaduct_gossip::Summary {
                    name: NameHash(last),
                    version: Version {
                        incarnation: first,
                        change: last,
                    },
                    content: first,
                }],
            }
        ])),
    ]
}

proptest! {
    #[test]
    fn noise(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1150), 0..4)) {
        hear(&messages);
    }

    #[test]
    fn messages_that_mean_nothing(
        messages in prop::collection::vec(message(), 1..5),
        damage in prop::collection::vec((0usize..300, any::<u8>()), 0..4),
    ) {
        let mut messages: Vec<_> = messages.iter().map(Message::to_bytes).collect();
        messages.retain(|bytes| bytes.len() < 1150);
        for (at, byte) in damage {
            for message in &mut messages {
                if let Some(place) = message.get_mut(at) { *place = byte; }
            }
        }
        hear(&messages);
    }
}
