//! Which prefixes each node may announce: by the configuration, and by an authority's certificates.

use std::collections::{BTreeMap, HashMap};

use ipnet::IpNet;
use viaduct_config::{Config, PrefixTable, Trust};
use viaduct_control::gossip::Record;

/// What each node may announce.
pub(crate) struct Allowed<'a> {
    /// Of nodes without a list of their own.
    pool: Option<&'a [IpNet]>,
    lists: HashMap<&'a str, &'a [IpNet]>,
    /// Whose alone each prefix of a list is; two may have the same.
    grants: PrefixTable<Vec<&'a str>>,
}

impl<'a> Allowed<'a> {
    pub(crate) fn new(config: &'a Config, records: &'a [Record]) -> Self {
        let gossip = config.gossip.as_ref();
        let mut lists = HashMap::new();
        // A certificate is somebody's word only where the authority is known.
        let certified = gossip.is_some_and(|g| matches!(g.trust, Trust::Authority { .. }));
        for record in records.iter().filter(|_| certified) {
            let certificate = record.certificate.as_ref();
            if let Some(list) = certificate.and_then(|c| c.claim.prefixes.as_deref()) {
                lists.insert(&record.name[..], list);
            }
        }
        // What is written here goes before what the authority says.
        for node in gossip.iter().flat_map(|gossip| &gossip.nodes) {
            if let Some(list) = &node.allowed_prefixes {
                lists.insert(&node.name[..], list);
            }
        }
        let mut all: BTreeMap<IpNet, Vec<&str>> = BTreeMap::new();
        for (name, list) in &lists {
            for prefix in *list {
                all.entry(*prefix).or_default().push(name);
            }
        }
        let mut grants = PrefixTable::default();
        for (prefix, mut names) in all {
            names.sort_unstable();
            grants.insert(prefix, names);
        }
        Self {
            pool: gossip.and_then(|gossip| gossip.allowed_prefixes.as_deref()),
            lists,
            grants,
        }
    }

    /// Whether a list has it for just this node.
    pub(crate) fn grants(&self, name: &str, prefix: IpNet) -> bool {
        let list = self.lists.get(name);
        list.is_some_and(|list| list.iter().any(|allowed| allowed.contains(&prefix)))
    }

    /// Why a node may not announce a prefix.
    pub(crate) fn against(&self, name: &str, prefix: IpNet) -> Option<String> {
        if self.lists.contains_key(name) {
            let granted = self.grants(name, prefix);
            return (!granted).then(|| format!("it lies outside what is allowed to {name}"));
        }
        if let Some((allowed, names)) = self.grants.overlapping(prefix).next() {
            return Some(format!("{allowed} is allowed to {} only", names.join(", ")));
        }
        let pool = self.pool?;
        let inside = pool.iter().any(|pool| pool.contains(&prefix));
        (!inside).then(|| "it lies outside allowed_prefixes".to_owned())
    }
}
