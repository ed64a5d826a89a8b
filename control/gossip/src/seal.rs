//! Sealed datagrams: who has the cluster's key can read and write them, and each counts once.
//!
//! ```text
//! 0        1        5                21              29              -16     end
//! | version | key id | session        | counter       | sealed        | tag   |
//! |------------------ associated data ----------------|
//! ```
//!
//! A sender draws a session at random when it starts. Its key is HKDF-SHA256 of the cluster's key,
//! the cluster's name and the session, so the counter alone is a nonce that never comes again
//! (RFC 5116, section 3.2; RFC 5869). AEAD_CHACHA20_POLY1305 (RFC 8439).

use std::collections::{HashMap, VecDeque};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use crate::refusal::Refusal;

/// The first byte of what this release sends and takes.
const VERSION: u8 = 2;
/// Bytes in front of what is sealed.
const HEADER: usize = 1 + 4 + 16 + 8;
/// Bytes that sealing adds.
pub(super) const OVERHEAD: usize = HEADER + 16;
/// Bytes of a sealed datagram at most. With its headers it takes 1,228 bytes over IPv4 and 1,248 over IPv6,
/// where every link carries 1,280 (RFC 8200, section 5).
pub const MAX_DATAGRAM: usize = 1200;
/// Bytes of a datagram that every path carries: 576 with its headers over IPv4 (RFC 1122, section 3.3.3).
pub const SMALL_DATAGRAM: usize = 540;
/// Bytes of a message at most.
pub(super) const MAX_MESSAGE: usize = MAX_DATAGRAM - OVERHEAD;
/// Bytes of a message that every path carries: all but whole records.
pub(super) const SMALL_MESSAGE: usize = SMALL_DATAGRAM - OVERHEAD;
/// Sessions whose windows are kept: beyond them the oldest are forgotten, and could be replayed.
const MAX_SESSIONS: usize = 65_536;

/// The first bytes of what HKDF makes of a key and the cluster's name: it says which key, not what.
pub type KeyId = [u8; 4];
type Session = [u8; 16];

/// A key that the nodes of a cluster share.
#[derive(Clone, Debug)]
struct Key {
    id: KeyId,
    secret: Prk,
}

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand into `out`.
fn expand(secret: &Prk, info: &[&[u8]], out: &mut [u8]) {
    let made = secret.expand(info, Bytes(out.len()));
    // Fails above 255 hashes' length only (RFC 5869, section 2.3).
    let filled = made.and_then(|okm| okm.fill(out));
    debug_assert!(filled.is_ok());
}

/// The keys of a cluster: one to seal with, and others that are still, or already, taken.
#[derive(Clone, Debug)]
pub struct KeyRing {
    cluster: Box<str>,
    keys: Vec<Key>,
}

impl KeyRing {
    /// Of at least one key, of which the first seals, for a cluster of this name: nodes of another
    /// name do not understand it.
    pub fn new(cluster: &str, secrets: &[[u8; 32]]) -> Self {
        let keys = secrets.iter().map(|secret| {
            let secret = Salt::new(HKDF_SHA256, b"viaduct gossip").extract(secret);
            let mut id = KeyId::default();
            expand(&secret, &[b"id", cluster.as_bytes()], &mut id);
            Key { id, secret }
        });
        Self {
            keys: keys.collect(),
            cluster: cluster.into(),
        }
    }

    /// The keys' ids; the first seals.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|key| key.id)
    }

    fn get(&self, id: KeyId) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    fn session_key(&self, key: &Key, session: &Session) -> LessSafeKey {
        let mut bytes = [0; 32];
        let info: [&[u8]; 3] = [b"session", session, self.cluster.as_bytes()];
        expand(&key.secret, &info, &mut bytes);
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        LessSafeKey::new(unbound.expect("32 bytes, as the algorithm wants"))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Which counters of a session have come: the highest, and the 128 up to it.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// One more than the highest; 0 when none has come.
    end: u64,
    /// Bit n: `end - 1 - n` has come.
    seen: u128,
}

impl Window {
    /// Whether it has not come yet, as far as is remembered. It has, from now on.
    fn admit(&mut self, counter: u64) -> bool {
        if counter >= self.end {
            // The counter is the sender's word: it may be the highest there is.
            let ahead = (counter - self.end).saturating_add(1);
            let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.end = counter.saturating_add(1);
            return true;
        }
        let behind = self.end - 1 - counter;
        if behind >= 128 {
            return false;
        }
        let bit = 1 << behind;
        let new = self.seen & bit == 0;
        self.seen |= bit;
        new
    }
}

/// Seals and opens the datagrams of one node.
#[derive(Debug)]
pub struct Seal {
    ring: KeyRing,
    session: Session,
    counter: u64,
    /// By key and session of other nodes.
    windows: HashMap<(KeyId, Session), Window>,
    /// The same, oldest first.
    order: VecDeque<(KeyId, Session)>,
}

impl Seal {
    /// `session` has to be drawn at random, each time that the node starts.
    pub fn new(ring: KeyRing, session: [u8; 16]) -> Self {
        Self {
            ring,
            session,
            counter: 0,
            windows: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Seals and opens with other keys from now on. What has come under those that stay is still
    /// known.
    pub fn set_ring(&mut self, ring: KeyRing) {
        self.windows.retain(|(id, _), _| ring.get(*id).is_some());
        self.order.retain(|(id, _)| ring.get(*id).is_some());
        self.ring = ring;
    }

    /// The keys.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Seals a message of at most [`MAX_MESSAGE`] bytes into a datagram.
    pub fn seal(&mut self, message: &[u8]) -> Vec<u8> {
        debug_assert!(message.len() <= MAX_MESSAGE);
        let key = &self.ring.keys[0];
        let mut datagram = Vec::with_capacity(message.len() + OVERHEAD);
        datagram.push(VERSION);
        datagram.extend(key.id);
        datagram.extend(self.session);
        datagram.extend(self.counter.to_be_bytes());
        let mut sealed = message.to_vec();
        let cipher = self.ring.session_key(key, &self.session);
        cipher
            .seal_in_place_append_tag(nonce(self.counter), Aad::from(&datagram), &mut sealed)
            .expect("far below the algorithm's 256 GB");
        self.counter += 1;
        datagram.append(&mut sealed);
        datagram
    }

    /// The message in a datagram, which is opened where it lies, and the key that it was sealed
    /// with.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<(KeyId, &'a mut [u8]), Refusal> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Refusal::TooLong);
        }
        let (header, sealed) = datagram
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Refusal::TooShort)?;
        if header[0] != VERSION {
            return Err(Refusal::OtherVersion);
        }
        let (mut id, mut session, mut counter) = (KeyId::default(), [0; 16], [0; 8]);
        id.copy_from_slice(&header[1..5]);
        session.copy_from_slice(&header[5..21]);
        counter.copy_from_slice(&header[21..]);
        let counter = u64::from_be_bytes(counter);
        // No sender comes so far, and no counter could follow.
        if counter == u64::MAX {
            return Err(Refusal::Malformed);
        }
        if session == self.session {
            return Err(Refusal::OwnSession);
        }
        let key = self.ring.get(id).ok_or(Refusal::UnknownKey)?;
        let cipher = self.ring.session_key(key, &session);
        let message = cipher
            .open_in_place(nonce(counter), Aad::from(&*header), sealed)
            .map_err(|_| Refusal::Forged)?;
        // Only what was sealed by a member has a place here.
        if self.window(id, session).admit(counter) {
            Ok((id, message))
        } else {
            Err(Refusal::Replayed)
        }
    }

    fn window(&mut self, id: KeyId, session: Session) -> &mut Window {
        if !self.windows.contains_key(&(id, session)) {
            if self.windows.len() >= MAX_SESSIONS
                && let Some(oldest) = self.order.pop_front()
            {
                self.windows.remove(&oldest);
            }
            self.order.push_back((id, session));
        }
        self.windows.entry((id, session)).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: [u8; 32] = [7; 32];

    fn pair() -> (Seal, Seal) {
        let ring = KeyRing::new("test", &[SECRET]);
        (Seal::new(ring.clone(), [1; 16]), Seal::new(ring, [2; 16]))
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let (mut a, mut b) = pair();
        let datagram = a.seal(b"hello");
        assert_eq!(datagram.len(), 5 + OVERHEAD);
        assert!(!datagram.windows(5).any(|w| w == b"hello"));
        let id = a.ring().ids().next().expect("a key");
        let hello = (id, &mut b"hello"[..].to_owned()[..]);
        assert_eq!(b.open(&mut datagram.clone()), Ok(hello));
        assert_eq!(b.open(&mut datagram.clone()), Err(Refusal::Replayed));
        assert_eq!(a.open(&mut datagram.clone()), Err(Refusal::OwnSession));
        // An empty message, and the longest.
        assert_eq!(b.open(&mut a.seal(b"")), Ok((id, &mut [][..])));
        let longest = a.seal(&[9; MAX_MESSAGE]);
        assert_eq!(longest.len(), MAX_DATAGRAM);
        assert!(b.open(&mut longest.clone()).is_ok());
        assert_eq!(
            b.open(&mut [longest, vec![0]].concat()),
            Err(Refusal::TooLong)
        );
    }

    #[test]
    fn another_key_or_cluster_is_not_understood() {
        let (mut a, _) = pair();
        for (cluster, secret) in [("test", [8; 32]), ("other", SECRET)] {
            let mut other = Seal::new(KeyRing::new(cluster, &[secret]), [3; 16]);
            let datagram = a.seal(b"hello");
            assert_eq!(other.open(&mut datagram.clone()), Err(Refusal::UnknownKey));
        }
    }

    #[test]
    fn a_second_key_is_taken_beside_the_first() {
        let (mut a, mut b) = pair();
        let mut c = Seal::new(KeyRing::new("test", &[[9; 32], SECRET]), [3; 16]);
        assert!(c.open(&mut a.seal(b"old")).is_ok());
        let new = c.seal(b"new");
        assert_eq!(b.open(&mut new.clone()), Err(Refusal::UnknownKey));
        let before = a.seal(b"before");
        assert!(b.open(&mut before.clone()).is_ok());
        b.set_ring(KeyRing::new("test", &[SECRET, [9; 32]]));
        assert!(b.open(&mut new.clone()).is_ok());
        assert_eq!(b.open(&mut before.clone()), Err(Refusal::Replayed));
        b.set_ring(KeyRing::new("test", &[[9; 32]]));
        assert_eq!(b.open(&mut a.seal(b"old")), Err(Refusal::UnknownKey));
        assert_eq!(b.open(&mut new.clone()), Err(Refusal::Replayed));
    }

    #[test]
    fn a_window_knows_what_came() {
        let mut window = Window::default();
        for (counter, new) in [
            (0, true),
            (0, false),
            (5, true),
            (3, true),
            (3, false),
            (5, false),
            (200, true),
            (72, false),
            (73, true),
            (199, true),
            (u64::MAX, true),
            (200, false),
        ] {
            assert_eq!(window.admit(counter), new, "{counter}");
        }
    }

    proptest! {
        /// As a set would, for what is not further back than 128.
        #[test]
        fn windows_are_like_a_set(counters in prop::collection::vec(0u64..300, 1..400)) {
            let (mut window, mut set) = (Window::default(), std::collections::HashSet::new());
            for counter in counters {
                let highest = set.iter().max().copied().unwrap_or(0);
                let expected = set.insert(counter) && counter + 128 > highest;
                prop_assert_eq!(window.admit(counter), expected);
            }
        }

        #[test]
        fn nothing_that_was_changed_opens(at in 0usize..OVERHEAD + 20, bit in 0u8..8) {
            let (mut a, mut b) = pair();
            let mut datagram = a.seal(&[1; 20]);
            datagram[at] ^= 1 << bit;
            prop_assert!(b.open(&mut datagram).is_err());
        }

        #[test]
        fn noise_is_refused(mut noise in prop::collection::vec(any::<u8>(), 0..1500)) {
            let (mut a, _) = pair();
            prop_assert!(a.open(&mut noise).is_err());
            prop_assert!(a.windows.is_empty());
        }
    }
}
