//! What a node says, in parts that fit datagrams.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::record::{
    Claim, Content, Delegation, MAX_PARTS, MAX_RECORD, NetworkPart, Record, RecordError,
};

/// What a node says of itself, however long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Where it listens for gossip.
    pub gossip: SocketAddr,
    /// Its underlay addresses; the first of a family is where its tunnels end.
    pub vteps: Vec<IpAddr>,
    /// Its part of each network.
    pub networks: Vec<NetworkPart>,
}

/// Something that can be in one part or another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Prefix(Claim),
    Moved(ipnet::IpNet),
    Delegated(Delegation),
}

/// An item, and which of the networks it is in.
type Placed = (usize, Item);

/// Where everything that a node says is: what is in a part stays in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(Vec<Vec<Placed>>);

fn encoded<T: serde::Serialize>(what: &T) -> usize {
    postcard::to_stdvec(what).map_or(usize::MAX / 2, |bytes| bytes.len())
}

/// Bytes of an item in a part.
fn bytes((_, item): &Placed) -> usize {
    match item {
        Item::Prefix(claim) => encoded(claim),
        Item::Moved(prefix) => encoded(prefix),
        Item::Delegated(delegation) => encoded(delegation),
    }
}

fn items(networks: &[NetworkPart]) -> BTreeSet<Placed> {
    let mut all = BTreeSet::new();
    for (place, network) in networks.iter().enumerate() {
        let prefixes = network.prefixes.iter().copied().map(Item::Prefix);
        let moved = network.moved.iter().copied().map(Item::Moved);
        let delegated = network.delegated.iter().cloned().map(Item::Delegated);
        let items = prefixes.chain(moved).chain(delegated);
        all.extend(items.map(|item| (place, item)));
    }
    all
}

/// The networks with these items, those without any left out.
fn networks(announcement: &Announcement, items: &[Placed], all: bool) -> Vec<NetworkPart> {
    let networks = announcement.networks.iter().enumerate();
    let networks = networks.map(|(place, network)| {
        let mut part = network.empty();
        for (_, item) in items.iter().filter(|(of, _)| *of == place) {
            match item {
                Item::Prefix(claim) => part.prefixes.push(*claim),
                Item::Moved(prefix) => part.moved.push(*prefix),
                Item::Delegated(delegation) => part.delegated.push(delegation.clone()),
            }
        }
        part
    });
    let says = |part: &NetworkPart| {
        all || !(part.prefixes.is_empty() && part.moved.is_empty() && part.delegated.is_empty())
    };
    networks.filter(says).collect()
}

impl Parts {
    /// The contents of all parts, the head's first. `like` is a head that says nothing yet, to
    /// measure by.
    ///
    /// # Errors
    /// When it does not fit [`MAX_PARTS`].
    pub(super) fn split(
        &mut self,
        announcement: &Announcement,
        like: &Record,
    ) -> Result<Vec<Content>, RecordError> {
        let mut new = self.clone();
        let mut wanted = items(&announcement.networks);
        for part in &mut new.0 {
            part.retain(|item| wanted.remove(item));
        }
        new.0.resize_with(new.0.len().max(1), Vec::new);
        let room = room(announcement, like)?;
        let mut used: Vec<usize> = (new.0.iter())
            .map(|part| part.iter().map(bytes).sum())
            .collect();
        for item in wanted {
            let size = bytes(&item);
            let fits = |(part, used): (usize, &usize)| used + size <= room[usize::from(part > 0)];
            let place = used.iter().enumerate().position(fits).unwrap_or(used.len());
            if place == used.len() {
                used.push(0);
                new.0.push(Vec::new());
            }
            if size > room[1] || place >= usize::from(MAX_PARTS) {
                return Err(RecordError::TooLong);
            }
            used[place] += size;
            new.0[place].push(item);
        }
        // A head that has become shorter has room for less.
        if used[0] > room[0] {
            *self = Self::default();
            return self.split(announcement, like);
        }
        while new.0.len() > 1 && new.0.last().is_some_and(Vec::is_empty) {
            new.0.pop();
        }
        *self = new;
        Ok(self.contents(announcement))
    }

    fn contents(&self, announcement: &Announcement) -> Vec<Content> {
        let parts = u16::try_from(self.0.len()).unwrap_or(MAX_PARTS);
        let content = |(place, items): (usize, &Vec<Placed>)| {
            let networks = networks(announcement, items, place == 0);
            if place > 0 {
                return Content::More { networks };
            }
            Content::Here {
                gossip: announcement.gossip,
                vteps: announcement.vteps.clone(),
                parts,
                networks,
            }
        };
        self.0.iter().enumerate().map(content).collect()
    }
}

/// Bytes for items in the head, and in each of the other parts.
fn room(announcement: &Announcement, like: &Record) -> Result<[usize; 2], RecordError> {
    let mut head = like.clone();
    head.content = Content::Here {
        gossip: announcement.gossip,
        vteps: announcement.vteps.clone(),
        parts: MAX_PARTS,
        networks: networks(announcement, &[], true),
    };
    let mut more = like.clone();
    (more.part, more.certificate) = (MAX_PARTS, None);
    more.content = Content::More {
        networks: networks(announcement, &[], true),
    };
    // Key, signature and lengths; and each of three lists of a network may need a longer length.
    let around = 100 + 3 * announcement.networks.len();
    let left = |record: &Record| MAX_RECORD.checked_sub(encoded(record) + around);
    match (left(&head), left(&more)) {
        (Some(head), Some(more)) => Ok([head, more]),
        _ => Err(RecordError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Signed;
    use crate::record::tests::{claim, key, record};
    use proptest::prelude::*;

    fn announcement(prefixes: impl Iterator<Item = u32>) -> Announcement {
        let Content::Here {
            gossip,
            vteps,
            networks,
            ..
        } = record("a", 1, 1).content
        else {
            panic!("a head")
        };
        let mut other = networks[0].empty();
        other.vni = 2;
        let mut networks = vec![networks[0].empty(), other];
        for n in prefixes {
            let prefix = format!("fd00:{:x}:{:x}::/64", n >> 16, n & 0xffff);
            let place = usize::from(n % 3 == 0);
            networks[place]
                .prefixes
                .push(claim(&prefix, u64::from(n) << 20));
        }
        Announcement {
            gossip,
            vteps,
            networks,
        }
    }

    fn signed(contents: &[Content]) -> usize {
        let mut prefixes = 0;
        for (number, content) in contents.iter().enumerate() {
            let mut part = record("a", u64::MAX, u64::MAX);
            part.part = u16::try_from(number).expect("few");
            part.content = content.clone();
            Signed::new(&part, "test", &key(1)).expect("it fits");
            prefixes += part
                .networks()
                .iter()
                .map(|n| n.prefixes.len())
                .sum::<usize>();
        }
        prefixes
    }

    #[test]
    fn many_prefixes_take_many_parts() {
        let mut parts = Parts::default();
        let like = record("a", u64::MAX, u64::MAX);
        for (count, parts_of_40) in [(0, 1), (10, 1), (2_000, 56), (9_000, 251)] {
            let contents = parts.split(&announcement(0..count), &like).expect("fits");
            assert_eq!(signed(&contents), usize::try_from(count).expect("few"));
            // As long as a record may be, and none shorter than it has to be.
            assert!(contents.len() <= parts_of_40, "{count}: {}", contents.len());
        }
        let error = parts.split(&announcement(0..20_000), &like);
        assert!(matches!(error, Err(RecordError::TooLong)));
        let contents = parts.split(&announcement(0..5), &like).expect("fits");
        assert_eq!((contents.len(), signed(&contents)), (1, 5));
    }

    proptest! {
        /// Nothing is lost, nothing is too long, and what stays stays where it is.
        #[test]
        fn changes_leave_the_rest_in_place(sets in prop::collection::vec(prop::collection::btree_set(0u32..300, 0..250), 1..5)) {
            let mut parts = Parts::default();
            let like = record("a", u64::MAX, u64::MAX);
            let mut before: Vec<Vec<Placed>> = Vec::new();
            for set in sets {
                let all = announcement(set.iter().copied());
                let contents = parts.split(&all, &like).expect("fits");
                prop_assert_eq!(signed(&contents), set.len());
                let wanted = items(&all.networks);
                for (number, part) in before.iter().enumerate() {
                    for item in part.iter().filter(|item| wanted.contains(item)) {
                        prop_assert!(parts.0[number].contains(item));
                    }
                }
                before.clone_from(&parts.0);
            }
        }
    }
}
