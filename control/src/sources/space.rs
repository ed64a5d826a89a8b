//! Who has which addresses of a network.

use std::collections::BTreeMap;

use ipnet::IpNet;

/// Prefixes of a network with whose each is. Those of nodes that announce are disjoint.
#[derive(Clone, Debug)]
pub(super) struct Space<O>(BTreeMap<IpNet, O>);

impl<O> Default for Space<O> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// What of a prefix is free for somebody.
#[derive(Debug)]
pub(super) struct Free<O> {
    /// Disjoint, in order.
    pub(super) pieces: Vec<IpNet>,
    /// What is others', and whose.
    pub(super) taken: Vec<(IpNet, O)>,
}

/// Pieces that a prefix may still fall into.
#[derive(Debug)]
pub(super) struct Budget(pub(super) usize);

impl Budget {
    fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

impl<O: Copy + PartialEq> Space<O> {
    /// Gives a prefix, which must have no host bits, to somebody.
    pub(super) fn insert(&mut self, prefix: IpNet, owner: O) {
        self.0.insert(prefix, owner);
    }

    /// Gives a piece to somebody who has perhaps parts of it.
    pub(super) fn fill(&mut self, piece: IpNet, owner: O) {
        let inside: Vec<_> = self.within(piece).map(|(prefix, _)| prefix).collect();
        for prefix in inside {
            self.0.remove(&prefix);
        }
        self.0.insert(piece, owner);
    }

    /// The longest prefix that contains all of `prefix`, which may be `prefix`.
    pub(super) fn covering(&self, prefix: IpNet) -> Option<(IpNet, O)> {
        self.around(prefix).next()
    }

    /// The prefixes that contain all of `prefix`, the longest first.
    fn around(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, O)> {
        std::iter::successors(Some(prefix), IpNet::supernet)
            .filter_map(|prefix| Some((prefix, *self.0.get(&prefix)?)))
    }

    /// The prefixes inside `prefix`, which may be `prefix`.
    pub(super) fn within(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, O)> {
        // They are ordered by first address and then by length, so those inside come next to it.
        let after = self.0.range(prefix..);
        after
            .take_while(move |(after, _)| prefix.contains(*after))
            .map(|(prefix, owner)| (*prefix, *owner))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, O)> {
        self.0.iter().map(|(prefix, owner)| (*prefix, *owner))
    }

    /// What of `prefix` nobody but `me` has; none when that are more pieces than the budget has.
    pub(super) fn free(&self, prefix: IpNet, me: O, budget: &mut Budget) -> Option<Free<O>> {
        let mut free = Free {
            pieces: Vec::new(),
            taken: Vec::new(),
        };
        if let Some(other) = self.around(prefix).find(|(_, owner)| *owner != me) {
            free.taken.push(other);
        } else if self.covering(prefix).is_none() {
            self.split(prefix, me, &mut free, budget)?;
        }
        Some(free)
    }

    fn split(&self, net: IpNet, me: O, free: &mut Free<O>, budget: &mut Budget) -> Option<()> {
        match self.within(net).find(|(_, owner)| *owner != me) {
            None => {
                budget.take()?;
                free.pieces.push(net);
            }
            Some((hit, owner)) if hit == net => free.taken.push((hit, owner)),
            Some(_) => {
                let length = net.prefix_len().saturating_add(1);
                for half in net.subnets(length).into_iter().flatten() {
                    self.split(half, me, free, budget)?;
                }
            }
        }
        Some(())
    }
}

/// What of `prefix` lies in one of these prefixes.
pub(super) fn inside(prefix: IpNet, all: &[IpNet]) -> Vec<IpNet> {
    if all.iter().any(|one| one.contains(&prefix)) {
        return vec![prefix];
    }
    let mut inside: Vec<_> = (all.iter().copied())
        .filter(|one| prefix.contains(one))
        .collect();
    inside.sort_unstable();
    // The widest come first.
    let mut kept: Vec<IpNet> = Vec::new();
    for one in inside {
        if kept.last().is_none_or(|before| !before.contains(&one)) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn net(last: u8, length: u8) -> IpNet {
        IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), length)
            .expect("at most 32")
            .trunc()
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 22u8..=32).prop_map(|(last, length)| net(last, length))
    }

    proptest! {
        /// Address by address, a piece is free exactly when nobody else has it.
        #[test]
        fn pieces_are_what_nobody_else_has(
            taken in prop::collection::vec((any_net(), 0u8..3), 0..8), asked in any_net()
        ) {
            let mut space = Space::default();
            for (prefix, owner) in &taken {
                let free = space.free(*prefix, *owner, &mut Budget(1000)).expect("few");
                for piece in free.pieces {
                    space.fill(piece, *owner);
                }
            }
            let free = space.free(asked, 0, &mut Budget(1000)).expect("few");
            for last in 0..=255 {
                let address = net(last, 32);
                let owner = space.covering(address).map(|(_, owner)| owner);
                let holders = space.iter().filter(|(prefix, _)| prefix.contains(&address)).count();
                prop_assert!(holders <= 1);
                // Who came first.
                let first = taken.iter().find(|(prefix, _)| prefix.contains(&address));
                prop_assert_eq!(owner, first.map(|(_, owner)| *owner));
                let pieces = free.pieces.iter().filter(|piece| piece.contains(&address)).count();
                let others = asked.contains(&address) && owner.is_some_and(|owner| owner != 0);
                let lost = free.taken.iter().any(|(prefix, _)| prefix.contains(&address));
                prop_assert!(!others || lost);
                let known = space.covering(asked).is_some();
                let mine = asked.contains(&address) && !others && !known;
                prop_assert_eq!(pieces, usize::from(mine));
            }
        }
    }

    #[test]
    fn a_budget_ends_it() {
        let mut space = Space::default();
        space.insert(net(1, 32), 1);
        let whole = net(0, 24);
        assert_eq!(
            space
                .free(whole, 0, &mut Budget(8))
                .expect("8")
                .pieces
                .len(),
            8
        );
        assert!(space.free(whole, 0, &mut Budget(7)).is_none());
    }

    #[test]
    fn what_lies_inside_is_kept_once() {
        let wide = net(0, 24);
        assert_eq!(inside(net(7, 32), &[wide]), [net(7, 32)]);
        let list = [net(0, 25), net(0, 32), net(128, 26)];
        assert_eq!(inside(wide, &list), [net(0, 25), net(128, 26)]);
        assert_eq!(inside(net(200, 32), &list), []);
    }
}
