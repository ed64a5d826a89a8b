//! What the slow path consists of, one entry of a kernel table each: read, added and removed.
//!
//! Entries that Viaduct made are told from others by their protocol number (routes, addresses,
//! neighbours; `rtnetlink.h`, `if_addr.h`, `neighbour.h`) or, in the VXLAN device's forwarding
//! table, which has none, by the flag that says "learned from a control plane".

mod messages;
mod model;

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use self::messages::{
    address, address_message, neighbour, neighbour_message, own_route, route_message,
};
pub use self::model::{Entry, EntryChange, Key, Names, Way};
use super::{Kernel, KernelError};

pub(super) use self::messages::change;

/// Who made a route, address or neighbour entry: Viaduct. In the range that the kernel leaves to
/// daemons, and nobody's in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 118;

/// Entries of the kernel, and whether Viaduct made them.
pub type Entries = BTreeMap<Entry, bool>;

impl Kernel {
    /// What there is of entries, whoever made them: addresses, permanent neighbours and proxies;
    /// forwarding entries of these devices, and of others where Viaduct has made neighbours; and
    /// the routes that Viaduct has made.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn entries(&self, devices: &BTreeSet<u32>) -> Result<Entries, KernelError> {
        let mut entries = self.own_routes().await?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", request).await?;
        entries.extend(answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(message),
            _ => None,
        }));
        let kinds = [
            (AddressFamily::Inet, NeighbourFlags::empty()),
            (AddressFamily::Inet6, NeighbourFlags::empty()),
            (AddressFamily::Inet6, NeighbourFlags::Proxy),
            (AddressFamily::Bridge, NeighbourFlags::empty()),
        ];
        for (family, flags) in kinds {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            request.header.flags = flags;
            let request = RouteNetlinkMessage::GetNeighbour(request);
            let answers = self.dump("list neighbours", request).await?;
            entries.extend(answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
                _ => None,
            }));
        }
        // Other control planes learn, too: forwarding entries are ours only on devices where
        // neighbours are.
        let tunnels: BTreeSet<u32> = entries
            .iter()
            .filter(|(entry, ours)| **ours && matches!(entry, Entry::Neighbour { .. }))
            .filter_map(|(entry, _)| entry.interface())
            .collect();
        entries.retain(|entry, _| match entry {
            Entry::Forward { interface, .. } => {
                devices.contains(interface) || tunnels.contains(interface)
            }
            _ => true,
        });
        Ok(entries)
    }

    async fn own_routes(&self) -> Result<Entries, KernelError> {
        let mut entries = Entries::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.protocol = RouteProtocol::Other(PROTOCOL);
            let request = RouteNetlinkMessage::GetRoute(request);
            let answers = self.dump("list routes", request).await?;
            let routes = answers.iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => own_route(message),
                _ => None,
            });
            entries.extend(routes.map(|route| (route, true)));
        }
        Ok(entries)
    }

    /// Makes an entry. A neighbour, forwarding or proxy entry of the same key is replaced; a route
    /// only if `replace` says so.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; [`KernelError::exists`] is true if something of somebody else's is
    /// in the way.
    pub async fn add(
        &self,
        entry: &Entry,
        replace: bool,
        names: &Names,
    ) -> Result<(), KernelError> {
        let what = format!("add {}", names.of(entry));
        let (message, flags) = match *entry {
            Entry::Address { interface, address } => (
                RouteNetlinkMessage::NewAddress(address_message(interface, address)),
                NLM_F_EXCL,
            ),
            Entry::Route { destination, way } => (
                RouteNetlinkMessage::NewRoute(route_message(destination, way)),
                if replace { NLM_F_REPLACE } else { NLM_F_EXCL },
            ),
            _ => (
                RouteNetlinkMessage::NewNeighbour(neighbour_message(entry)),
                NLM_F_REPLACE,
            ),
        };
        self.request(&what, message, flags | NLM_F_CREATE | NLM_F_ACK)
            .await
            .map(drop)
    }

    /// Removes an entry; one that is not there any more is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove(&self, entry: &Entry, names: &Names) -> Result<(), KernelError> {
        let what = format!("remove {}", names.of(entry));
        let message = match *entry {
            Entry::Address { interface, address } => {
                RouteNetlinkMessage::DelAddress(address_message(interface, address))
            }
            Entry::Route { destination, way } => {
                RouteNetlinkMessage::DelRoute(route_message(destination, way))
            }
            _ => RouteNetlinkMessage::DelNeighbour(neighbour_message(entry)),
        };
        match self.request(&what, message, NLM_F_ACK).await {
            Err(error) if error.errno().is_some_and(is_gone) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Whether the kernel says with this error that what was to be removed is not there.
fn is_gone(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL
    )
}
