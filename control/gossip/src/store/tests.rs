//! What a store holds after which records.

use super::*;
use crate::record::tests::{key, record};
use proptest::prelude::*;

fn signed(name: &str, incarnation: u64, change: u64, instance: u64) -> Signed {
    let mut record = record(name, incarnation, change);
    record.instance = instance;
    let seed = u8::try_from(name.len()).expect("short");
    Signed::new(&record, "test", &key(seed)).expect("short")
}

const NOW: Duration = Duration::ZERO;
/// No test's incarnation is far above it.
const CLOCK: u64 = 1_000;

fn dead(_: &Record) -> bool {
    false
}

#[test]
fn the_latest_is_held() {
    let mut store = Store::new("test", Trust::FirstSight);
    let (old, new) = (signed("a", 1, 9, 1), signed("a", 2, 1, 1));
    assert!(matches!(
        store.offer(&old, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(store.offer(&old, dead, CLOCK, NOW), Offer::Known);
    assert!(matches!(
        store.offer(&new, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(store.offer(&old, dead, CLOCK, NOW), Offer::Known);
    assert_eq!(store.len(), 1);
    let forged = Signed::new(&record("a", 9, 9), "test", &key(99)).expect("short");
    let refused = Offer::Refused(TrustError::NotTheFirst.into());
    assert_eq!(store.offer(&forged, dead, CLOCK, NOW), refused);
}

/// A head that speaks of so many parts, and a part.
fn in_parts(incarnation: u64, change: u64, parts: u16, seed: u8) -> Signed {
    let mut head = record("a", incarnation, change);
    if let Content::Here { parts: said, .. } = &mut head.content {
        *said = parts;
    }
    Signed::new(&head, "test", &key(seed)).expect("short")
}

fn part(number: u16, change: u64, seed: u8) -> Signed {
    let mut part = record("a", 1, change);
    part.part = number;
    let networks = part.networks().to_vec();
    part.content = Content::More { networks };
    Signed::new(&part, "test", &key(seed)).expect("short")
}

#[test]
fn parts_come_and_go_with_their_head() {
    let mut store = Store::new("test", Trust::FirstSight);
    let mut take = |signed: &Signed| match store.offer(signed, dead, CLOCK, NOW) {
        Offer::Taken { .. } => Some(
            store
                .nodes()
                .map(|(r, _)| r.networks()[0].prefixes.len())
                .sum(),
        ),
        Offer::Known => None,
        Offer::Refused(why) => panic!("{why}"),
    };
    let none: Option<usize> = None;
    assert_eq!(take(&part(1, 1, 1)), none, "before its head");
    assert_eq!(take(&in_parts(1, 1, 3, 1)), Some(1));
    assert_eq!(take(&part(2, 1, 1)), Some(2));
    assert_eq!(take(&part(1, 1, 1)), Some(3));
    assert_eq!(take(&part(1, 1, 1)), none);
    assert_eq!(take(&part(1, 9, 2)), none, "another's");
    assert_eq!(take(&part(3, 1, 1)), none, "more than there are");
    assert_eq!(take(&part(1, 2, 1)), Some(3));
    assert_eq!(take(&in_parts(1, 2, 2, 1)), Some(2));
    assert_eq!(
        take(&in_parts(2, 1, 2, 1)),
        Some(2),
        "an older part until it comes anew"
    );
    let mut gone = record("a", 3, 1);
    gone.content = Content::Gone;
    let gone = Signed::new(&gone, "test", &key(1)).expect("short");
    assert!(matches!(
        store.offer(&gone, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(store.len(), 1);
    // As one that has never heard of any part.
    let mut other = Store::new("test", Trust::FirstSight);
    other.offer(&gone, dead, CLOCK, NOW);
    assert_eq!(store.digest(), other.digest());
}

#[test]
fn a_new_key_ends_the_old_ones_parts() {
    let mut store = Store::new("test", Trust::FirstSight);
    for signed in [in_parts(1, 1, 2, 1), part(1, 1, 1)] {
        assert!(matches!(
            store.offer(&signed, dead, CLOCK, NOW),
            Offer::Taken { .. }
        ));
    }
    // As a configuration, or an authority, would let it.
    store.trust = Trust::Configured([("a".to_owned(), crate::public(&key(2)))].into());
    assert!(matches!(
        store.offer(&in_parts(2, 1, 2, 2), dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(store.len(), 1);
}

#[test]
fn who_has_gone_is_forgotten_in_the_end() {
    let mut store = Store::new("test", Trust::FirstSight);
    let mut gone = record("a", 1, 2);
    gone.content = Content::Gone;
    let gone = Signed::new(&gone, "test", &key(1)).expect("short");
    assert!(matches!(
        store.offer(&gone, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert!(matches!(
        store.offer(&signed("b", 1, 1, 1), dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(
        store.offer(&signed("a", 1, 1, 1), dead, CLOCK, NOW),
        Offer::Known
    );
    store.expire(GONE_FOR.mul_f64(0.99));
    assert_eq!(store.len(), 2);
    store.expire(GONE_FOR);
    assert_eq!(store.len(), 1);
    let mut other = Store::new("test", Trust::FirstSight);
    other.offer(&signed("b", 1, 1, 1), dead, CLOCK, NOW);
    assert_eq!(store.digest(), other.digest());
}

#[test]
fn the_forgotten_may_come_back_with_another_key() {
    let mut store = Store::new("test", Trust::FirstSight);
    let old = signed("a", 5, 1, 1);
    store.offer(&old, dead, CLOCK, NOW);
    let mut forgotten = record("a", 5, u64::MAX);
    forgotten.content = Content::Forgotten;
    let forgotten = Signed::new(&forgotten, "test", &key(50)).expect("short");
    let refused = Offer::Refused(StoreError::Lives);
    assert_eq!(store.offer(&forgotten, |_| true, CLOCK, NOW), refused);
    assert!(matches!(
        store.offer(&forgotten, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    assert_eq!(store.offer(&old, dead, CLOCK, NOW), Offer::Known);
    let new = Signed::new(&record("a", 6, 1), "test", &key(60)).expect("short");
    assert!(matches!(
        store.offer(&new, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
    let again = Signed::new(&record("a", 7, 1), "test", &key(1)).expect("short");
    let refused = Offer::Refused(TrustError::NotTheFirst.into());
    assert_eq!(
        store.offer(&again, dead, CLOCK, NOW),
        refused,
        "the new key counts"
    );
}

#[test]
fn nobody_is_brought_near_the_highest_number() {
    let mut store = Store::new("test", Trust::FirstSight);
    store.offer(&signed("a", 5, 1, 1), dead, CLOCK, NOW);
    let word = |name: &str, incarnation| {
        let mut forgotten = record(name, incarnation, u64::MAX);
        (forgotten.content, forgotten.started) = (Content::Forgotten, 0);
        Signed::new(&forgotten, "test", &key(50)).expect("short")
    };
    let refused = Offer::Refused(StoreError::Implausible);
    for incarnation in [u64::MAX, u64::MAX - 1, CLOCK + MAX_JUMP + 1] {
        assert_eq!(
            store.offer(&word("a", incarnation), dead, CLOCK, NOW),
            refused
        );
    }
    for incarnation in [u64::MAX, MAX_SECONDS + 1] {
        assert_eq!(
            store.offer(&word("new", incarnation), dead, CLOCK, NOW),
            refused
        );
    }
    // A clock of 1970 refuses nobody who is new, and the bound moves with what is held.
    let far = signed("bb", MAX_SECONDS, 1, 1);
    assert!(matches!(
        store.offer(&far, dead, 0, NOW),
        Offer::Taken { .. }
    ));
    let next = signed("bb", MAX_SECONDS + 2 * MAX_JUMP, 1, 1);
    assert!(matches!(
        store.offer(&next, dead, 0, NOW),
        Offer::Taken { .. }
    ));
    let plausible = word("a", CLOCK + MAX_JUMP);
    assert!(matches!(
        store.offer(&plausible, dead, CLOCK, NOW),
        Offer::Taken { .. }
    ));
}

/// Copies everything that they differ in, one way and back.
fn repair(a: &mut Store, b: &mut Store) {
    for range in &b.differing(0, &a.short_digest()) {
        let (wanted, lacked) = a.compare(range);
        let lacked: Vec<_> = lacked.into_iter().cloned().collect();
        let wanted: Vec<_> = wanted
            .into_iter()
            .map(|name| b.get(name).expect("it said so").signed.clone())
            .collect();
        for signed in wanted {
            assert!(matches!(
                a.offer(&signed, dead, CLOCK, NOW),
                Offer::Taken { .. }
            ));
        }
        for signed in lacked {
            assert!(matches!(
                b.offer(&signed, dead, CLOCK, NOW),
                Offer::Taken { .. }
            ));
        }
    }
}

proptest! {
    /// In any order, with any repetition, against a map of the highest; and what two stores
    /// differ in is found by their digests.
    #[test]
    fn stores_agree(
        offers in prop::collection::vec(("[a-d]{1,3}", 1u64..4, 1u64..4, 1u64..3), 1..60),
        seed: u64,
    ) {
        let all: Vec<_> = offers.iter().map(|(n, i, c, x)| signed(n, *i, *c, *x)).collect();
        let (mut a, mut b) = (Store::new("test", Trust::FirstSight), Store::new("test", Trust::FirstSight));
        let mut model = BTreeMap::new();
        for (place, record) in all.iter().enumerate() {
            if let Offer::Refused(why) = a.offer(record, dead, CLOCK, NOW) { panic!("{why}") }
            if (seed >> (place % 64)) & 1 == 1 { b.offer(record, dead, CLOCK, NOW); }
            let opened = record.decode().expect("sound");
            let entry = (opened.version, content_of(record));
            let highest = model.entry(opened.name).or_insert(entry);
            *highest = entry.max(*highest);
        }
        repair(&mut a, &mut b);
        prop_assert_eq!(a.digest(), b.digest());
        for store in [&a, &b] {
            let held: BTreeMap<_, _> = store
                .iter()
                .map(|held| (held.record.name.clone(), (held.record.version, held.content)))
                .collect();
            prop_assert_eq!(&held, &model);
        }
        let mut c = Store::new("test", Trust::FirstSight);
        for record in all.iter().rev() { c.offer(record, dead, CLOCK, NOW); }
        prop_assert_eq!(a.digest(), c.digest());
    }
}
