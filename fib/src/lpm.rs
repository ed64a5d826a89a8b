//! Longest-prefix match (RFC 1812 section 5.2.4.3) for addresses of one family.
//!
//! One hash table per prefix length in use, tried from the longest to the shortest. A cluster
//! gives every node a prefix of one length, and a second length appears when single addresses
//! move away from their node, so a lookup is one or two probes of a table with integer keys,
//! whatever the number of nodes. The price is paid by clusters that mix many lengths: one probe
//! for each length in use, so at worst 33 probes for IPv4 and 129 for IPv6. A trie would bound
//! that, but costs more for the usual case and makes an update touch more than one entry.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use std::hash::Hash;
use std::ops::BitAnd;

use ahash::HashMap;

use crate::TunnelId;

/// An address as an integer, in host byte order.
pub(crate) trait Address: Copy + Eq + Hash + BitAnd<Output = Self> {
    /// The network mask of a prefix of `length` bits.
    fn mask(length: u8) -> Self;
}

impl Address for u32 {
    fn mask(length: u8) -> Self {
        let host_bits = Self::BITS.saturating_sub(length.into());
        Self::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

impl Address for u128 {
    fn mask(length: u8) -> Self {
        let host_bits = Self::BITS.saturating_sub(length.into());
        Self::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

/// All prefixes of one length; never empty.
#[derive(Clone, Debug, PartialEq)]
struct Table<A: Address> {
    length: u8,
    mask: A,
    prefixes: HashMap<A, TunnelId>,
}

/// The prefixes of one network and address family.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lpm<A: Address> {
    /// Longest prefixes first, so that the first match is the answer.
    tables: Vec<Table<A>>,
}

impl<A: Address> Default for Lpm<A> {
    fn default() -> Self {
        Self { tables: Vec::new() }
    }
}

impl<A: Address> Lpm<A> {
    /// The longest prefix that `address` lies in.
    #[inline]
    pub(crate) fn lookup(&self, address: A) -> Option<TunnelId> {
        self.tables
            .iter()
            .find_map(|table| table.prefixes.get(&(address & table.mask)))
            .copied()
    }

    /// What exactly this prefix leads to.
    pub(crate) fn get(&self, prefix: A, length: u8) -> Option<TunnelId> {
        let table = self.tables.get(self.position(length).ok()?)?;
        table.prefixes.get(&prefix).copied()
    }

    /// Adds or replaces a prefix, which has no host bits; returns what it led to.
    pub(crate) fn insert(&mut self, prefix: A, length: u8, tunnel: TunnelId) -> Option<TunnelId> {
        match self.position(length) {
            Ok(at) => self.tables.get_mut(at)?.prefixes.insert(prefix, tunnel),
            Err(at) => {
                let table = Table {
                    length,
                    mask: A::mask(length),
                    prefixes: HashMap::from_iter([(prefix, tunnel)]),
                };
                self.tables.insert(at, table);
                None
            }
        }
    }

    /// Removes a prefix; returns what it led to.
    pub(crate) fn remove(&mut self, prefix: A, length: u8) -> Option<TunnelId> {
        let at = self.position(length).ok()?;
        let table = self.tables.get_mut(at)?;
        let tunnel = table.prefixes.remove(&prefix)?;
        // A length that is no longer in use must not cost a probe.
        if table.prefixes.is_empty() {
            self.tables.remove(at);
        }
        Some(tunnel)
    }

    /// How many prefixes there are.
    pub(crate) fn len(&self) -> usize {
        self.tables.iter().map(|table| table.prefixes.len()).sum()
    }

    /// All prefixes with their lengths, the longest first, else in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (A, u8, TunnelId)> {
        self.tables.iter().flat_map(|table| {
            let length = table.length;
            table
                .prefixes
                .iter()
                .map(move |(&prefix, &tunnel)| (prefix, length, tunnel))
        })
    }

    /// Where the table for this length is, or belongs.
    fn position(&self, length: u8) -> Result<usize, usize> {
        self.tables
            .binary_search_by(|table| length.cmp(&table.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        assert_eq!(u32::mask(0), 0);
        assert_eq!(u32::mask(8), 0xff00_0000);
        assert_eq!(u32::mask(32), u32::MAX);
        assert_eq!(u128::mask(0), 0);
        assert_eq!(u128::mask(64), u128::from(u64::MAX) << 64);
        assert_eq!(u128::mask(128), u128::MAX);
    }

    #[test]
    fn longest_prefix_wins_in_any_order_of_insertion() {
        let prefixes = [
            (0, 0, TunnelId(0)),
            (0x0a00_0000, 8, TunnelId(1)),
            (0x0a01_0000, 16, TunnelId(2)),
            (0x0a01_0203, 32, TunnelId(3)),
        ];
        for turn in 0..prefixes.len() {
            let mut lpm = Lpm::<u32>::default();
            for (prefix, length, tunnel) in prefixes.iter().cycle().skip(turn).take(4) {
                assert_eq!(lpm.insert(*prefix, *length, *tunnel), None);
            }
            assert_eq!(lpm.len(), 4);
            assert_eq!(lpm.lookup(0x0a01_0203), Some(TunnelId(3)));
            assert_eq!(lpm.lookup(0x0a01_0204), Some(TunnelId(2)));
            assert_eq!(lpm.lookup(0x0aff_ffff), Some(TunnelId(1)));
            assert_eq!(lpm.lookup(0x0b00_0000), Some(TunnelId(0)));
        }
    }

    #[test]
    fn unused_length_goes_away() {
        let mut lpm = Lpm::<u128>::default();
        lpm.insert(1 << 64, 64, TunnelId(1));
        lpm.insert(5, 128, TunnelId(2));
        assert_eq!(lpm.remove(6, 128), None);
        assert_eq!(lpm.remove(5, 127), None);
        assert_eq!(lpm.tables.len(), 2);
        assert_eq!(lpm.remove(5, 128), Some(TunnelId(2)));
        assert_eq!(lpm.tables.len(), 1);
        assert_eq!(lpm.lookup(5), None);
        assert_eq!(lpm.lookup((1 << 64) + 5), Some(TunnelId(1)));
    }

    #[test]
    fn replacing_returns_the_old_tunnel() {
        let mut lpm = Lpm::<u32>::default();
        assert_eq!(lpm.insert(0, 24, TunnelId(1)), None);
        assert_eq!(lpm.insert(0, 24, TunnelId(2)), Some(TunnelId(1)));
        assert_eq!(lpm.get(0, 24), Some(TunnelId(2)));
        assert_eq!(lpm.get(0, 25), None);
        assert_eq!(lpm.iter().collect::<Vec<_>>(), [(0, 24, TunnelId(2))]);
    }
}
