//! Gossip's datagrams, as they come and behind the seal, into an engine; and what must be true then.

use std::net::SocketAddr;
use std::time::Duration;

use ring::signature::Ed25519KeyPair;
use viaduct_control::gossip::{
    Announcement, Content, Detection, Engine, Event, KeyRing, MAX_DATAGRAM, Member, Message,
    NameHash, Offer, Options, Record, Seal, Signed, Store, Trust, public,
};

const CLUSTER: &str = "fuzz";
const KEY: [u8; 32] = [1; 32];
const NAME: &str = "node-0";
/// Bytes of a message that fit a datagram with its seal.
const LONGEST: usize = 1350;
/// Messages of an input that are looked at.
const MOST: usize = 8;
/// Seed of the node's own signing key, and the first of those that the others sign with: nobody
/// else has the node's own.
const OWN: u8 = 3;
const OTHERS: u8 = 4;

fn address(node: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node + 1], 7950))
}

fn signing_key(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes")
}

fn ring() -> KeyRing {
    KeyRing::new(CLUSTER, &[KEY])
}

fn announcement() -> Announcement {
    Announcement {
        gossip: address(0),
        vteps: vec![address(0).ip()],
        networks: Vec::new(),
    }
}

/// A node that knows nobody and has said what it is.
fn engine() -> Engine {
    let options = Options {
        cluster: CLUSTER.to_owned(),
        member: Member {
            name: NAME.to_owned(),
            address: address(0),
            incarnation: 1,
            instance: 1,
            renewal: 0,
        },
        detection: Detection::default(),
        trust: Trust::FirstSight,
        certificate: None,
        verified: None,
        keys: ring(),
        seed: [2; 32],
    };
    let mut engine = Engine::new(options, signing_key(OWN), Duration::ZERO);
    engine
        .announce(announcement(), Duration::ZERO)
        .expect("short");
    engine.take_datagrams();
    engine.take_events();
    engine
}

/// A datagram as anybody may send it: the input's bytes, or a sound one that the input changes.
/// Only the sound one is heard; for any other there is one refusal, and no answer.
pub fn check_sealed(data: &[u8]) {
    let Some((way, rest)) = data.split_first() else {
        return;
    };
    let hello = Message::Hello(Member {
        name: "node-1".to_owned(),
        address: address(1),
        incarnation: 1,
        instance: 2,
        renewal: 0,
    });
    let sound = Seal::new(ring(), [9; 16]).seal(&hello.to_bytes());
    let mut datagram = if way & 1 == 0 {
        rest.to_vec()
    } else {
        let mut changed = sound.clone();
        for change in rest.chunks_exact(3) {
            let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
            let place = place % (changed.len() + 1);
            match changed.get_mut(place) {
                Some(byte) => *byte ^= change[2],
                None => changed.push(change[2]),
            }
        }
        changed
    };
    let heard = datagram == sound;
    let mut engine = engine();
    engine.datagram(address(1), &mut datagram, Duration::ZERO);
    let refusals = engine.take_events();
    let answers = engine.take_datagrams();
    if heard {
        assert!(refusals.is_empty(), "{refusals:?}");
        assert_eq!(answers.len(), 1, "a welcome");
    } else {
        assert!(
            matches!(refusals[..], [Event::Refused { .. }]),
            "{refusals:?}"
        );
        assert!(answers.is_empty(), "an answer to what was not understood");
    }
}

/// What a member sends, read from the input: each with a kind and a length before it. A record is
/// signed, so that it gets as far as a member's would.
fn messages(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let [kind, high, low, rest @ ..] = data
        && all.len() < MOST
    {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (bytes, later) = rest.split_at(len);
        data = later;
        if kind % 2 == 0 {
            all.push(bytes.to_vec());
        } else if let Ok(record) = postcard::from_bytes::<Record>(bytes) {
            let signed = Signed::new(&record, CLUSTER, &signing_key(OTHERS + kind / 2 % 4));
            all.extend(signed.map(|signed| Message::Records(vec![signed]).to_bytes()));
        }
    }
    all
}

/// Messages of a member, some of them with records that are signed. No answer is too long, the
/// node's own record stays its own, and what is held is what another would hold of the same.
pub fn check_opened(data: &[u8]) {
    let mut engine = engine();
    let mut seal = Seal::new(ring(), [9; 16]);
    for message in messages(data) {
        if message.len() <= LONGEST {
            let mut datagram = seal.seal(&message);
            engine.datagram(address(1), &mut datagram, Duration::ZERO);
        }
    }
    for second in 0..10 {
        engine.wake(Duration::from_secs(second));
        for (_, datagram) in engine.take_datagrams() {
            assert!(datagram.len() <= MAX_DATAGRAM, "{} bytes", datagram.len());
        }
    }
    let store = engine.store();
    let own = store.get(NameHash::of(NAME)).expect("its own");
    // Under first sight another key may have the name, after a record that forgets the first.
    if own.signed.key == public(&signing_key(OWN)) {
        assert!(matches!(own.record.content, Content::Here { .. }));
    }
    // The heads first: they say which parts count.
    let mut other = Store::new(CLUSTER, Trust::FirstSight);
    for heads in [true, false] {
        for held in store.iter().filter(|h| (h.record.part == 0) == heads) {
            let offered = other.offer(&held.signed, |_| false, 0, Duration::ZERO);
            assert!(matches!(offered, Offer::Taken { .. }), "{offered:?}");
        }
    }
    assert_eq!(other.digest(), store.digest());
    assert_eq!(other.nodes().count(), store.nodes().count());
}

/// What a member may well send, as inputs for [`check_opened`] to begin with.
#[must_use]
pub fn examples() -> Vec<Vec<u8>> {
    let mut engine = engine();
    let own = engine.store().get(NameHash::of(NAME)).expect("its own");
    let mut record = viaduct_control::gossip::Record::clone(&own.record);
    let mut all = Vec::new();
    let mut add = |kind: u8, bytes: &[u8]| {
        let len = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        all.push([&[kind], &len[..], bytes].concat());
    };
    for name in ["node-1", NAME] {
        for content in [
            record.content.clone(),
            Content::Gone,
            Content::Forgotten,
            Content::More {
                networks: Vec::new(),
            },
        ] {
            name.clone_into(&mut record.name);
            record.part = u16::from(matches!(content, Content::More { .. }));
            record.content = content;
            add(1, &postcard::to_stdvec(&record).expect("encoded"));
        }
        record.content = engine
            .store()
            .get(NameHash::of(NAME))
            .map_or(Content::Gone, |own| own.record.content.clone());
    }
    let member = engine.member().clone();
    let hashes = engine.store().short_digest();
    let ranges = engine.store().differing(0, &[1; 128]);
    for message in [
        Message::Hello(member.clone()),
        Message::Welcome(Member {
            address: address(1),
            name: "node-1".to_owned(),
            ..member
        }),
        Message::Request(vec![NameHash::of(NAME)]),
        Message::Digest { first: 0, hashes },
        Message::Ranges(ranges.into_iter().take(20).collect()),
        Message::Swim(vec![0; 40]),
    ] {
        add(0, &message.to_bytes());
    }
    engine.take_datagrams();
    all
}
