//! Asking a gossip that runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::peers::PeerStatus;
use crate::engine::{Announcement, ForgetError};
use crate::keys::{KeyChange, KeyError, KeyUse};
use crate::node::Nodes;
use crate::record::RecordError;
use crate::refusal::Refusal;
use crate::store::StoreError;
use crate::trust::Certificate;
use crate::wire::Member;

/// What gossip is doing.
#[derive(Clone, Debug)]
pub struct GossipStatus {
    /// This node.
    pub me: Member,
    /// Who answers, without this node.
    pub members: Vec<Member>,
    /// What is known of every node that has said something, this one among them.
    pub nodes: Nodes,
    /// Datagrams that were not taken since the start, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Records that were not taken since the start, by reason.
    pub records_refused: BTreeMap<StoreError, u64>,
    /// Why gossip does not listen now, and what to do.
    pub problem: Option<String>,
    /// The peers of the configuration.
    pub configured: Vec<PeerStatus>,
    /// Nodes whose records are not taken now.
    pub refused_records: Vec<RefusedStatus>,
    /// Where this node's own record is not taken, and why.
    pub refused_by: Vec<(SocketAddr, StoreError)>,
    /// Nodes that are heard and do not hear this one.
    pub one_way: Vec<OneWayStatus>,
    /// Nodes that answer, whose records do not come, and since when.
    pub unrecorded: Vec<(String, Instant)>,
    /// The node that has this one's name, if this one has given way to it.
    pub yielded: Option<Member>,
}

/// A record that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedStatus {
    /// Whose it says to be.
    pub node: String,
    /// Who brought it last.
    pub from: SocketAddr,
    /// Why not.
    pub why: StoreError,
    /// How often.
    pub count: u64,
}

/// A node that is heard and does not hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneWayStatus {
    /// Who it says that it is.
    pub node: String,
    /// Where from.
    pub from: SocketAddr,
    /// Since when.
    pub since: Instant,
}

#[derive(Debug)]
pub(super) enum Request {
    Status(oneshot::Sender<GossipStatus>),
    Leave(oneshot::Sender<()>),
    Announce(Announcement, oneshot::Sender<Result<(), RecordError>>),
    Certificate(Option<Certificate>, oneshot::Sender<Result<(), StoreError>>),
    Keys(KeyChange, oneshot::Sender<Result<Vec<KeyUse>, KeyError>>),
    Peers(Vec<(String, u16)>, oneshot::Sender<()>),
    Forget(String, oneshot::Sender<Result<(), ForgetError>>),
}

/// Asks a running gossip.
#[derive(Clone, Debug)]
pub struct GossipHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) nodes: watch::Receiver<Nodes>,
}

impl GossipHandle {
    /// All nodes that have said something. Changes when one says something else, falls silent or
    /// answers again, and when its silence has lasted for [`TAKE_OVER`](crate::TAKE_OVER).
    pub fn nodes(&self) -> watch::Receiver<Nodes> {
        self.nodes.clone()
    }

    /// What it is doing; none when it has ended.
    pub async fn status(&self) -> Option<GossipStatus> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Status(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Has all nodes forget another one; none when gossip has ended.
    ///
    /// # Errors
    /// When that node answers, or is unknown.
    pub async fn forget(&self, name: &str) -> Option<Result<(), ForgetError>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Forget(name.to_owned(), reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Changes the cluster's keys on this node, in their file too, and says which there are; none
    /// when gossip has ended.
    ///
    /// # Errors
    /// When they cannot be changed so.
    pub async fn keys(&self, change: KeyChange) -> Option<Result<Vec<KeyUse>, KeyError>> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Keys(change, reply))
            .await
            .ok()?;
        answer.await.ok()
    }

    /// Shows other nodes this certificate from now on, in place of the one that the node had.
    ///
    /// # Errors
    /// When the node's record would not fit with it, or it is older than that one. None: gossip has ended.
    pub async fn set_certificate(
        &self,
        certificate: Option<Certificate>,
    ) -> Option<Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Certificate(certificate, reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Says this of the node from now on; none when gossip has ended.
    ///
    /// # Errors
    /// When nobody would take it: what was said before stands.
    pub async fn announce(&self, announcement: Announcement) -> Option<Result<(), RecordError>> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Announce(announcement, reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Looks for others at these hosts and ports from now on; none when gossip has ended.
    pub async fn set_peers(&self, peers: Vec<(String, u16)>) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Peers(peers, reply);
        self.requests.send(request).await.ok()?;
        answer.await.ok()
    }

    /// Says that this node and its pods have gone.
    pub async fn leave(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Leave(reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}
