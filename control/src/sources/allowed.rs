//! Which prefixes and addresses each node may announce: by the configuration, and by an authority's
//! certificates.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::space::{Budget, Space, inside};
use super::{Announced, Rules, Sources};

/// What each node may announce.
pub(super) struct Allowed<'a> {
    rules: &'a Rules,
    prefixes: BTreeMap<&'a str, &'a [IpNet]>,
    addresses: BTreeMap<&'a str, &'a [IpNet]>,
    /// All that some node alone may announce.
    granted: Space<()>,
}

/// What of a prefix a node may announce, and what is wrong with the rest.
pub(super) struct Permitted {
    pub(super) parts: Vec<IpNet>,
    pub(super) why: Option<String>,
}

/// How a list of prefixes is found.
type List<'a> = fn(&'a super::Grant) -> Option<&'a Vec<IpNet>>;

impl<'a> Allowed<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        let rules = &sources.rules;
        let mut prefixes = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        // A certificate is somebody's word only where the authority is known.
        for Announced { record, .. } in sources.announced.iter().filter(|_| rules.certified) {
            let Some(certificate) = &record.certificate else {
                continue;
            };
            let claim = &certificate.claim;
            if let Some(list) = &claim.prefixes {
                prefixes.insert(&record.name[..], &list[..]);
            }
            if let Some(list) = &claim.addresses {
                addresses.insert(&record.name[..], &list[..]);
            }
        }
        // What is configured goes before what the authority says.
        let lists: [(_, List<'a>); 2] = [
            (&mut prefixes, |grant| grant.prefixes.as_ref()),
            (&mut addresses, |grant| grant.addresses.as_ref()),
        ];
        for (all, list) in lists {
            for (name, grant) in &rules.nodes {
                if let Some(list) = list(grant) {
                    all.insert(name, list);
                }
            }
        }
        let mut granted = Space::default();
        for prefix in prefixes.values().copied().flatten() {
            granted.insert(prefix.trunc(), ());
        }
        Self {
            rules,
            prefixes,
            addresses,
            granted,
        }
    }

    /// The narrowest prefix of the node's own list that contains this one.
    pub(super) fn grant(&self, name: &str, prefix: IpNet) -> Option<IpNet> {
        let list = self.prefixes.get(name)?.iter();
        let around = list.filter(|allowed| allowed.contains(&prefix));
        around.max_by_key(|allowed| allowed.prefix_len()).copied()
    }

    /// What of a prefix the node may announce.
    pub(super) fn permitted(&self, name: &str, prefix: IpNet) -> Permitted {
        let (parts, mut why) = if let Some(list) = self.prefixes.get(name) {
            let parts = inside(prefix, list);
            let lies = lies(&parts);
            (
                parts,
                format!("{lies} lies outside what is allowed to {name}"),
            )
        } else {
            self.free(prefix)
        };
        if !parts.is_empty() {
            why.push_str("; the rest of it is used");
        }
        let lacks = parts != [prefix];
        Permitted {
            parts,
            why: lacks.then_some(why),
        }
    }

    /// What of a prefix a node without a list may announce, and why not the rest.
    fn free(&self, prefix: IpNet) -> (Vec<IpNet>, String) {
        let pool = match &self.rules.prefixes {
            Some(pool) => inside(prefix, pool),
            None => vec![prefix],
        };
        let mut why = format!("{} lies outside allowed_prefixes", lies(&pool));
        let mut parts = Vec::new();
        // Lists are an operator's or the authority's: they are not made to be cut into many.
        let mut budget = Budget(1024);
        for part in &pool {
            let around = std::iter::successors(Some(*part), IpNet::supernet);
            let mut around = around.filter(|one| self.granted.covering(*one).is_some());
            let free = match around.next() {
                Some(_) => None,
                None => self.granted_from(*part, &mut budget),
            };
            match free {
                Some(free) if free == [*part] => parts.push(*part),
                other => {
                    why = self.others(*part);
                    parts.extend(other.unwrap_or_default());
                }
            }
        }
        (parts, why)
    }

    /// What of a prefix is granted to nobody.
    fn granted_from(&self, prefix: IpNet, budget: &mut Budget) -> Option<Vec<IpNet>> {
        // Nobody is `()`: what is granted is somebody else's for each node without a list.
        let mut others = Space::default();
        for (granted, ()) in self.granted.within(prefix) {
            others.insert(granted, true);
        }
        Some(others.free(prefix, false, budget)?.pieces)
    }

    /// Who alone may have a part of a prefix.
    fn others(&self, prefix: IpNet) -> String {
        let meets = |one: &IpNet| one.contains(&prefix) || prefix.contains(one);
        let mut all = BTreeMap::<IpNet, Vec<&str>>::new();
        for (name, list) in &self.prefixes {
            for one in list.iter().filter(|one| meets(one)) {
                all.entry(*one).or_default().push(name);
            }
        }
        let first = all.first_key_value();
        first.map_or_else(String::new, |(prefix, names)| {
            format!("{prefix} is allowed to {} only", names.join(", "))
        })
    }

    /// Whether the node's own list has this address.
    pub(super) fn grants_address(&self, name: &str, address: IpAddr) -> bool {
        let list = self.addresses.get(name);
        list.is_some_and(|list| list.iter().any(|one| one.contains(&address)))
    }

    /// Another node whose list has this address.
    pub(super) fn address_of_another(&self, name: &str, address: IpAddr) -> Option<&'a str> {
        let mut lists = self.addresses.iter();
        let has = |list: &[IpNet]| list.iter().any(|one| one.contains(&address));
        lists.find_map(|(other, list)| (*other != name && has(list)).then_some(*other))
    }

    /// Whether any node may have this address, if it is free.
    pub(super) fn pools_address(&self, address: IpAddr) -> bool {
        let pool = &self.rules.addresses;
        pool.iter().any(|one| one.contains(&address))
    }
}

/// How a prefix is spoken of, of which only these parts are inside.
fn lies(parts: &[IpNet]) -> &'static str {
    if parts.is_empty() { "it" } else { "part of it" }
}
