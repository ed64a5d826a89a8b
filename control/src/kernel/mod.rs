//! What the kernel knows of the network namespace: links, addresses, routes, neighbours.
//!
//! All of it comes over rtnetlink (Linux `include/uapi/linux/rtnetlink.h`). Requests and events
//! have sockets of their own: the kernel stamps an event with the sequence number of whoever
//! caused it, so on a shared socket it could be taken for the answer to a request.

mod addresses;
mod entries;
mod events;
mod foreign_routes;
mod links;
mod neighbours;
mod path_mtu;
mod routes;
mod vxlan;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, new_connection_with_strict_check};
use tokio::task::AbortHandle;

pub use addresses::InterfaceAddress;
pub use entries::{Entries, Entry, EntryChange, Key, Names, PROTOCOL, Way};
pub use events::{Change, Events, KernelEvent};
pub use foreign_routes::ForeignRoute;
pub use links::{LinkInfo, Peer, XdpAttached, XdpMode};
pub use neighbours::{Neighbour, NeighbourState};
pub(crate) use path_mtu::lifetime as path_mtu_lifetime;
pub use path_mtu::{PathMtuNews, PathMtus};
pub use routes::{RouteMtu, RouteTo, Routes, UdpFlow};
pub use vxlan::{LinkState, VxlanDevice, VxlanSettings};

/// How long the kernel may take to answer. It answers within the system call, so a missing
/// answer means that it was lost or could not be understood.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a list is asked for again when it changed while the kernel was giving it out.
const DUMP_ATTEMPTS: usize = 4;

/// Why the kernel could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be had.
    #[error("cannot open a netlink socket: {0}; check that the daemon may use AF_NETLINK")]
    Socket(#[source] io::Error),
    /// There is no interface of that name.
    #[error("interface {name} does not exist: create it, or correct its name")]
    NoSuchInterface {
        /// The name asked for.
        name: String,
    },
    /// The kernel answered with an error.
    #[error("cannot {what}: the kernel says: {source}")]
    Refused {
        /// What was being asked.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel gave no answer that could be understood.
    #[error("cannot {what}: no usable answer from the kernel; try again")]
    NoAnswer {
        /// What was being asked.
        what: String,
    },
}

impl KernelError {
    /// The error number that the kernel answered with, if it was that.
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel refused because there is such a thing already.
    pub fn exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether what was asked for needs an address or port that somebody else has.
    pub(crate) fn is_address_in_use(&self) -> bool {
        self.errno() == Some(libc::EADDRINUSE)
    }
}

/// Asks the kernel about one network namespace: the one that the thread was in when this was
/// opened. Clones share the socket.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
    _connection: Arc<AbortOnDrop>,
}

impl Kernel {
    /// Opens a netlink socket in the thread's network namespace.
    ///
    /// It must be called within a tokio runtime that has I/O and time enabled: the socket is
    /// served by a task there, which ends with the last clone.
    ///
    /// # Errors
    ///
    /// [`KernelError::Socket`] if the socket cannot be had.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) =
            new_connection_with_strict_check().map_err(KernelError::Socket)?;
        let task = tokio::spawn(connection);
        Ok(Self {
            handle,
            _connection: Arc::new(AbortOnDrop(task.abort_handle())),
        })
    }

    /// Sends a request and collects what comes back until the kernel says that this is all.
    async fn request(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        self.exchange(what, message, flags)
            .await
            .map(|(all, _)| all)
    }

    /// Asks for a list. One that changed while it was given out is asked for again, as entries
    /// may be missing from it (Linux `Documentation/userspace-api/netlink/intro.rst`).
    async fn dump(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        for _ in 1..DUMP_ATTEMPTS {
            let (all, consistent) = self.exchange(what, message.clone(), NLM_F_DUMP).await?;
            if consistent {
                return Ok(all);
            }
        }
        self.request(what, message, NLM_F_DUMP).await
    }

    async fn exchange(
        &self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), KernelError> {
        let no_answer = || KernelError::NoAnswer { what: what.into() };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| no_answer())?;
        let collect = async {
            let mut all = Vec::new();
            let mut consistent = true;
            while let Some(answer) = answers.next().await {
                consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => all.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(KernelError::Refused {
                            what: what.into(),
                            source: error.to_io(),
                        });
                    }
                    NetlinkPayload::Overrun(_) => return Err(no_answer()),
                    _ => {}
                }
            }
            Ok((all, consistent))
        };
        tokio::time::timeout(ANSWER_TIMEOUT, collect)
            .await
            .unwrap_or_else(|_| Err(no_answer()))
    }
}

/// Ends the task that serves a socket, and with it the socket.
#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
