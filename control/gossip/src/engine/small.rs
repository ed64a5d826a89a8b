//! Paths that do not carry a whole record: it is asked for again in pieces that every path carries.
//!
//! Nothing tells a sender that a datagram was too long for some link on the way, when a firewall drops
//! the ICMP error. Whoever asked for a record knows that it has not come.

use std::collections::HashMap;
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Due, Engine};
use crate::record::{NameHash, Signed, Version};
use crate::seal::SMALL_MESSAGE;
use crate::store::Held;
use crate::wire::{MAX_NAMES, Message};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a path counts as small. Then a whole record is tried again.
const SMALL_FOR: Duration = Duration::from_secs(600);
/// Records that are waited for, paths that are known, and records of which some pieces have come, at most.
const MAX_ASKED: usize = 4096;
const MAX_PATHS: usize = 4096;
const MAX_PARTIAL: usize = 64;
/// Bytes of a piece: its message has a number, two counts and a length beside them.
const PIECE: usize = SMALL_MESSAGE - 20;

/// A record that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    whom: SocketAddr,
    at: Duration,
    /// What was held instead.
    had: Option<(Version, u64)>,
    in_pieces: bool,
}

/// A record of which some pieces have come.
#[derive(Debug)]
struct Partial {
    pieces: Vec<Option<Vec<u8>>>,
    at: Duration,
}

/// What is known of paths.
#[derive(Debug, Default)]
pub(super) struct Small {
    paths: HashMap<SocketAddr, Duration>,
    asked: HashMap<NameHash, Asked>,
    partial: HashMap<(SocketAddr, u64), Partial>,
    waking: bool,
}

impl Small {
    fn is_small(&self, to: SocketAddr, now: Duration) -> bool {
        let since = self.paths.get(&to);
        since.is_some_and(|since| now.saturating_sub(*since) < SMALL_FOR)
    }

    fn found_small(&mut self, to: SocketAddr, now: Duration) {
        if self.paths.len() >= MAX_PATHS {
            self.paths
                .retain(|_, since| now.saturating_sub(*since) < SMALL_FOR);
        }
        if self.paths.len() < MAX_PATHS {
            self.paths.insert(to, now);
        }
    }

    /// Takes a piece; the whole, when it was the last that was missing.
    fn piece(
        &mut self,
        key: (SocketAddr, u64),
        (number, of): (u8, u8),
        bytes: Vec<u8>,
        now: Duration,
    ) -> Option<Vec<u8>> {
        let (number, of) = (usize::from(number), usize::from(of));
        if number >= of || of > MAX_PIECES {
            return None;
        }
        if !self.partial.contains_key(&key) && self.partial.len() >= MAX_PARTIAL {
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.at);
            let oldest = oldest.map(|(key, _)| *key);
            oldest.and_then(|key| self.partial.remove(&key));
        }
        let pieces = vec![None; of];
        let partial = self
            .partial
            .entry(key)
            .or_insert(Partial { pieces, at: now });
        *partial.pieces.get_mut(number)? = Some(bytes);
        if partial.pieces.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.partial.remove(&key)?;
        Some(whole.pieces.into_iter().flatten().flatten().collect())
    }
}

/// So many make a record of the greatest length.
const MAX_PIECES: usize = crate::record::MAX_RECORD.div_ceil(PIECE) + 1;

/// A record in pieces.
fn cut(signed: &Signed) -> Vec<Message> {
    let bytes = postcard::to_stdvec(signed).unwrap_or_default();
    let of = u8::try_from(bytes.len().div_ceil(PIECE)).unwrap_or(u8::MAX);
    // It only has to tell apart what comes from one sender within moments.
    let mut record = [0; 8];
    let from = signed.signature.iter().zip(&mut record);
    from.for_each(|(byte, to)| *to = *byte);
    let record = u64::from_be_bytes(record);
    let piece = |(number, bytes): (u8, &[u8])| Message::Piece {
        record,
        number,
        of,
        bytes: bytes.to_vec(),
    };
    (0..).zip(bytes.chunks(PIECE)).map(piece).collect()
}

impl Engine {
    /// Asks for records, in pieces if the path is known to be small, and again if they do not come.
    pub(super) fn ask(&mut self, whom: SocketAddr, names: &[NameHash], now: Duration) {
        let in_pieces = self.small.is_small(whom, now);
        for name in names {
            let had = self.store.get(*name).map(Held::rank);
            if self.small.asked.len() < MAX_ASKED {
                let at = now;
                let asked = Asked {
                    whom,
                    at,
                    had,
                    in_pieces,
                };
                // An older question is not made younger: it would never be asked again.
                self.small.asked.entry(*name).or_insert(asked);
            }
        }
        self.request(whom, names, in_pieces);
        if !mem::replace(&mut self.small.waking, true) {
            self.at(now + ANSWER, Due::AskAgain);
        }
    }

    fn request(&mut self, whom: SocketAddr, names: &[NameHash], in_pieces: bool) {
        for names in names.chunks(MAX_NAMES) {
            let names = names.to_vec();
            let message = if in_pieces {
                Message::RequestPieces(names)
            } else {
                Message::Request(names)
            };
            self.send(whom, &message);
        }
    }

    /// What was asked for and has not come is asked for in pieces, once.
    pub(super) fn ask_again(&mut self, now: Duration) {
        self.small.waking = false;
        let store = &self.store;
        let mut again: HashMap<SocketAddr, Vec<NameHash>> = HashMap::new();
        self.small.asked.retain(|name, asked| {
            let has = store.get(*name).map(Held::rank);
            if has != asked.had {
                return false;
            }
            if now.saturating_sub(asked.at) < ANSWER {
                return true;
            }
            if !asked.in_pieces {
                again.entry(asked.whom).or_default().push(*name);
                (asked.in_pieces, asked.at) = (true, now);
                return true;
            }
            false
        });
        let mut again: Vec<_> = again.into_iter().collect();
        again.sort_unstable_by_key(|(whom, _)| *whom);
        for (whom, mut names) in again {
            names.sort_unstable();
            self.request(whom, &names, true);
        }
        if !self.small.asked.is_empty() {
            self.small.waking = true;
            self.at(now + ANSWER, Due::AskAgain);
        }
    }

    /// Somebody wants these in pieces: what goes there is sent so from now on.
    pub(super) fn wants_pieces(&mut self, from: SocketAddr, now: Duration) {
        self.small.found_small(from, now);
    }

    /// Sends records in pieces, if the path is small. Whether it is.
    pub(super) fn send_in_pieces(
        &mut self,
        to: SocketAddr,
        records: &[Signed],
        now: Duration,
    ) -> bool {
        if !self.small.is_small(to, now) {
            return false;
        }
        for signed in records.iter().take(MAX_NAMES) {
            for message in cut(signed) {
                self.send(to, &message);
            }
        }
        true
    }

    /// Takes a piece of a record.
    pub(super) fn piece(
        &mut self,
        from: SocketAddr,
        record: u64,
        place: (u8, u8),
        bytes: Vec<u8>,
        now: Duration,
    ) {
        let Some(whole) = self.small.piece((from, record), place, bytes, now) else {
            return;
        };
        if let Ok(signed) = postcard::from_bytes::<Signed>(&whole) {
            self.small.found_small(from, now);
            self.take(from, &signed, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{key, record};
    use crate::seal::SMALL_MESSAGE;

    #[test]
    fn a_record_in_pieces_is_the_same() {
        let signed = Signed::new(&record("a", 1, 1), "test", &key(1)).expect("short");
        let from = SocketAddr::from(([192, 0, 2, 1], 9));
        for bytes in [signed.bytes.len(), crate::record::MAX_RECORD - 110] {
            let mut long = signed.clone();
            long.bytes.resize(bytes, 7);
            let mut pieces = cut(&long);
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.to_bytes().len() <= SMALL_MESSAGE)
            );
            assert!(pieces.len() <= MAX_PIECES);
            // Backwards, and each twice.
            pieces.reverse();
            let mut small = Small::default();
            let mut wholes = Vec::new();
            for piece in pieces.iter().flat_map(|piece| [piece, piece]) {
                let Message::Piece {
                    record,
                    number,
                    of,
                    bytes,
                } = piece.clone()
                else {
                    panic!()
                };
                let whole = small.piece((from, record), (number, of), bytes, Duration::ZERO);
                wholes.extend(whole.map(|whole| postcard::from_bytes::<Signed>(&whole)));
            }
            assert!(wholes.iter().all(|whole| *whole == Ok(long.clone())));
            assert!(!wholes.is_empty());
        }
    }

    #[test]
    fn pieces_that_never_end_are_forgotten() {
        let mut small = Small::default();
        let from = |n: u16| SocketAddr::from(([192, 0, 2, 1], n));
        for n in 0..1000 {
            let at = Duration::from_secs(u64::from(n));
            assert!(
                small
                    .piece((from(n), 1), (0, 3), vec![0; 400], at)
                    .is_none()
            );
            small.found_small(from(n), at);
        }
        assert!(small.partial.len() <= MAX_PARTIAL);
        let wrong = [(3, 3), (0, 0), (0, u8::MAX)];
        for place in wrong {
            assert!(
                small
                    .piece((from(1), 2), place, Vec::new(), Duration::ZERO)
                    .is_none()
            );
        }
    }
}
