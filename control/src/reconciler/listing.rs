//! The routes as the status shows them, kept up to date piece by piece.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::status::{NodeRoute, NodeRoutes, RouteList, RouteState};

/// One entry for each of the wanted routes, in their order.
#[derive(Default)]
pub(super) struct Listing {
    entries: Arc<Vec<NodeRoutes>>,
    /// Where a node's entries are.
    places: BTreeMap<IpAddr, Vec<usize>>,
}

impl Listing {
    /// As it is now; later changes do not show in it.
    pub(super) fn list(&self) -> RouteList {
        RouteList::new(&self.entries)
    }

    /// Replaces the entries between the first `front` and the last `back`.
    pub(super) fn replace(
        &mut self,
        front: usize,
        back: usize,
        middle: impl IntoIterator<Item = (NodeRoute, Arc<RouteState>)>,
    ) {
        let entries = Arc::make_mut(&mut self.entries);
        let end = entries.len().saturating_sub(back);
        let middle = middle.into_iter().map(|(route, state)| NodeRoutes {
            route: Arc::new(route),
            state,
        });
        entries.splice(front.min(end)..end, middle);
        self.places.clear();
        for (place, entry) in entries.iter().enumerate() {
            let places = self.places.entry(entry.route.vtep).or_default();
            places.push(place);
        }
    }

    /// Notes a node's state.
    pub(super) fn set_state(&mut self, vtep: IpAddr, state: &Arc<RouteState>) {
        let Some(places) = self.places.get(&vtep) else {
            return;
        };
        let entries = Arc::make_mut(&mut self.entries);
        for &place in places {
            if let Some(entry) = entries.get_mut(place) {
                entry.state = Arc::clone(state);
            }
        }
    }
}
