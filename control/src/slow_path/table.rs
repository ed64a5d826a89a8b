//! An nftables table as it is wanted: chains, and sets whose elements come and go one by one.
//!
//! The chains and the declarations of sets are the table's shape. Another shape is written as a
//! whole, in one transaction; another element alone is one `add element` or `delete element`, so
//! that a change costs what it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

/// The table's name, in family `inet`.
pub(super) const TABLE: &str = "viaduct";

/// A table. Two are equal when the kernel would do the same by both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    comment: String,
    chains: String,
    sets: BTreeMap<String, Set>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    /// `set` or `map`, the type and flags.
    kind: &'static str,
    declaration: String,
    elements: Elements,
}

/// A set's elements. Tables that have the same ones share them.
pub(super) type Elements = Arc<BTreeSet<Arc<str>>>;

impl Table {
    /// An empty one, with a comment that says whose it is.
    pub(super) fn new(comment: String) -> Self {
        Self {
            comment,
            ..Self::default()
        }
    }

    /// Adds chains' text.
    pub(super) fn chains(&mut self, text: &str) {
        self.chains += text;
    }

    /// Declares a set: `declaration` is its `type` or `typeof` and its flags.
    pub(super) fn set(&mut self, name: impl Into<String>, declaration: &str) {
        self.declare("set", name.into(), declaration);
    }

    /// Declares a map of verdicts; `declaration` as for a set.
    pub(super) fn map(&mut self, name: impl Into<String>, declaration: &str) {
        self.declare("map", name.into(), declaration);
    }

    fn declare(&mut self, kind: &'static str, name: String, declaration: &str) {
        let set = self.sets.entry(name).or_default();
        set.kind = kind;
        declaration.clone_into(&mut set.declaration);
    }

    /// Puts an element into a set that has been declared.
    pub(super) fn put(&mut self, set: &str, element: &str) {
        if let Some(set) = self.sets.get_mut(set) {
            Arc::make_mut(&mut set.elements).insert(canonical(element).into());
        }
    }

    /// Makes these the elements of a set that has been declared; they are as [`canonical`] writes
    /// them.
    pub(super) fn share(&mut self, set: &str, elements: &Elements) {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements = Arc::clone(elements);
        }
    }

    /// Whether a set has an element.
    pub(super) fn has(&self, set: &str, element: &str) -> bool {
        let set = self.sets.get(set);
        set.is_some_and(|set| set.elements.contains(&*canonical(element)))
    }

    fn same_shape(&self, other: &Self) -> bool {
        let shape = |set: &Set| (set.kind, set.declaration.clone());
        self.comment == other.comment
            && self.chains == other.chains
            && self.sets.len() == other.sets.len()
            && self.sets.iter().all(|(name, set)| {
                let there = other.sets.get(name);
                there.is_some_and(|there| shape(there) == shape(set))
            })
    }

    /// What `nft` is to be told to make this table, whatever is there.
    pub(super) fn script(&self) -> String {
        let mut text = removal();
        let _ = writeln!(
            text,
            "table inet {TABLE} {{\n  comment \"{}\"",
            self.comment
        );
        for (name, set) in &self.sets {
            let _ = writeln!(text, "  {} {name} {{ {}; }}", set.kind, set.declaration);
        }
        text += &self.chains;
        text += "}\n";
        for (name, set) in &self.sets {
            elements(&mut text, "add", name, set.elements.iter());
        }
        text
    }

    /// What `nft` is to be told to turn a table that is there into this one; none if that takes
    /// the [whole](Self::script).
    pub(super) fn script_from(&self, there: &Self) -> Option<String> {
        if !self.same_shape(there) {
            return None;
        }
        let mut text = String::new();
        for (name, set) in &self.sets {
            let old = &there.sets.get(name)?.elements;
            if Arc::ptr_eq(old, &set.elements) {
                continue;
            }
            elements(&mut text, "delete", name, old.difference(&set.elements));
            elements(&mut text, "add", name, set.elements.difference(old));
        }
        Some(text)
    }

    /// Whether a listing of the kernel's has these elements and no others; its shape otherwise
    /// does not count.
    pub(super) fn has_elements_of(&self, listing: &Listing) -> bool {
        self.sets.iter().all(|(name, set)| {
            let there = listing.elements.get(name);
            there.map_or_else(
                || set.elements.is_empty(),
                |there| {
                    there
                        .iter()
                        .map(|it| &**it)
                        .eq(set.elements.iter().map(|it| &**it))
                },
            )
        })
    }
}

/// Elements that several may want: each is there as long as somebody does.
#[derive(Debug, Default)]
pub(super) struct Counted {
    counts: HashMap<Arc<str>, u32>,
    elements: Elements,
}

impl Counted {
    pub(super) fn elements(&self) -> &Elements {
        &self.elements
    }

    /// One more wants it.
    pub(super) fn add(&mut self, element: &str) {
        let element: Arc<str> = canonical(element).into();
        let count = self.counts.entry(Arc::clone(&element)).or_default();
        *count += 1;
        if *count == 1 {
            Arc::make_mut(&mut self.elements).insert(element);
        }
    }

    /// One less wants it.
    pub(super) fn remove(&mut self, element: &str) {
        let element: Arc<str> = canonical(element).into();
        let Some(count) = self.counts.get_mut(&element) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&element);
            Arc::make_mut(&mut self.elements).remove(&element);
        }
    }
}

/// What a table's comment says of whose it is.
pub(super) fn owner_comment(node: &str) -> String {
    format!("node {node}")
}

/// Whose a table is, by its comment.
pub(super) fn owner(comment: &str) -> Option<&str> {
    comment.strip_prefix("node ")
}

/// Removes the table; no error if it is not there.
pub(super) fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

fn elements<'a>(text: &mut String, verb: &str, set: &str, all: impl Iterator<Item = &'a Arc<str>>) {
    let mut all = all.peekable();
    if all.peek().is_none() {
        return;
    }
    let _ = write!(text, "{verb} element inet {TABLE} {set} {{ ");
    for element in all {
        let _ = write!(text, "{element}, ");
    }
    *text += "}\n";
}

/// A table as `nft -s list table` shows it: elements by set, and the rest as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// All but the elements.
    pub(super) shape: String,
    elements: BTreeMap<String, BTreeSet<String>>,
}

impl Listing {
    /// Takes a listing apart.
    pub(super) fn parse(text: &str) -> Self {
        const BEGIN: &str = "elements = {";
        let mut listing = Self::default();
        let mut name = "";
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut words = line.split_whitespace();
            if let (Some("set" | "map"), Some(this)) = (words.next(), words.next()) {
                name = this;
            }
            let Some((_, first)) = line.split_once(BEGIN) else {
                listing.shape += line;
                listing.shape.push('\n');
                continue;
            };
            let set = listing.elements.entry(name.to_owned()).or_default();
            let mut rest = first;
            loop {
                let (part, end) = rest
                    .split_once('}')
                    .map_or((rest, None), |(p, e)| (p, Some(e)));
                let parts = part.split(',').map(str::trim);
                set.extend(parts.filter(|part| !part.is_empty()).map(canonical));
                if end.is_some() {
                    break;
                }
                let Some(next) = lines.next() else { break };
                rest = next;
            }
        }
        listing
    }

    /// The comment of the table.
    pub(super) fn comment(&self) -> Option<&str> {
        let mut lines = self.shape.lines().map(str::trim);
        let text = lines.find_map(|line| line.strip_prefix("comment \""))?;
        text.strip_suffix('"')
    }
}

/// An element as both sides would write it: addresses in one form, one space between words.
pub(super) fn canonical(element: &str) -> String {
    let words = element.split_whitespace().map(|word| {
        let address = word.parse::<IpAddr>();
        address.map_or_else(|_| word.to_owned(), |address| address.to_string())
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(chains: &str, elements: &[&str]) -> Table {
        let mut table = Table::new("node x".into());
        table.set("nodes", "type ipv6_addr");
        table.map("ports", "type ifname : verdict");
        table.chains(chains);
        for element in elements {
            table.put("nodes", element);
        }
        table
    }

    #[test]
    fn an_element_alone_is_no_new_table() {
        let before = table("chain c { }\n", &["fd00::1", "fd00::2"]);
        let after = table("chain c { }\n", &["fd00::2", "fd00:0::3"]);
        assert_eq!(
            after.script_from(&before).unwrap(),
            "delete element inet viaduct nodes { fd00::1, }\n\
             add element inet viaduct nodes { fd00::3, }\n"
        );
        assert_eq!(after.script_from(&after).unwrap(), "");
        let other = table("chain c { accept; }\n", &["fd00::2"]);
        assert_eq!(other.script_from(&before), None);
        let mut more = before.clone();
        more.set("further", "type ipv4_addr");
        assert_eq!(more.script_from(&before), None);
        assert_eq!(before.script_from(&more), None);
    }

    #[test]
    fn what_the_kernel_lists_is_compared_by_its_elements() {
        let text = "table inet viaduct {\n\tcomment \"node x\"\n\tset nodes {\n\t\ttype ipv6_addr\n\
                    \t\telements = { fd00::1,\n\t\t\t     fd00::2 }\n\t}\n\n\tmap ports {\n\
                    \t\ttype ifname : verdict\n\t}\n\n\tchain c {\n\t}\n}\n";
        let listing = Listing::parse(text);
        assert_eq!(listing.comment(), Some("node x"));
        assert!(table("", &["fd00::2", "fd00::1"]).has_elements_of(&listing));
        assert!(!table("", &["fd00::2"]).has_elements_of(&listing));
        assert!(!table("", &["fd00::2", "fd00::1", "fd00::3"]).has_elements_of(&listing));
        assert!(listing.shape.contains("chain c") && !listing.shape.contains("fd00"));
        let one_line = "\tmap ports {\n\t\telements = { \"veth-a\" : jump pods }\n\t}\n";
        let mut wanted = table("", &[]);
        wanted.put("ports", "\"veth-a\" : jump pods");
        assert!(wanted.has_elements_of(&Listing::parse(one_line)));
        assert!(wanted.has("ports", "\"veth-a\"  : jump pods"));
    }
}
