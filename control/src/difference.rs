//! How two lists of routes differ.

use std::collections::HashMap;

use crate::options::RouteOptions;

/// How two lists of routes differ.
pub(crate) struct Difference<'a> {
    /// How many routes are the same at the beginning.
    pub(crate) front: usize,
    /// How many routes are the same at the end, beside those at the beginning.
    pub(crate) back: usize,
    /// What only the first has.
    pub(crate) removed: Vec<&'a RouteOptions>,
    /// What only the second has.
    pub(crate) added: Vec<&'a RouteOptions>,
}

/// What has to go from `old` and to come for it to be `new`. A list is mostly the same as before:
/// that part is compared, and neither hashed nor copied.
pub(crate) fn difference<'a>(old: &'a [RouteOptions], new: &'a [RouteOptions]) -> Difference<'a> {
    let front = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[front..], &new[front..]);
    let ends = old.iter().rev().zip(new.iter().rev());
    let back = ends.take_while(|(a, b)| a == b).count();
    let (old, new) = (&old[..old.len() - back], &new[..new.len() - back]);
    let mut left: HashMap<&RouteOptions, usize> = HashMap::new();
    for route in old {
        *left.entry(route).or_default() += 1;
    }
    let mut added = Vec::new();
    for route in new {
        match left.get_mut(route) {
            Some(count) if *count > 0 => *count -= 1,
            _ => added.push(route),
        }
    }
    let mut removed = Vec::new();
    for route in old {
        if let Some(count) = left.get_mut(route).filter(|count| **count > 0) {
            *count -= 1;
            removed.push(route);
        }
    }
    Difference {
        front,
        back,
        removed,
        added,
    }
}
