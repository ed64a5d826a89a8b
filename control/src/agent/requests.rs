//! Requests of the daemon for other pods and routes.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::Agent;
use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::options::{PortOptions, RouteOptions};

/// Asks a running agent for other pods and routes.
#[derive(Clone, Debug)]
pub struct AgentHandle(mpsc::Sender<Request>);

/// What somebody asks for, and where they wait for the answer.
#[derive(Debug)]
pub(super) struct Request {
    ports: Vec<PortOptions>,
    routes: Vec<RouteOptions>,
    reply: Reply,
}

pub(super) type Reply = oneshot::Sender<Result<(), AgentError>>;

impl AgentHandle {
    pub(super) fn new(requests: mpsc::Sender<Request>) -> Self {
        Self(requests)
    }

    /// Makes these the pods and routes that are wanted, all else as it was. When it returns, what
    /// is new has been tried once; the status says what came of it.
    ///
    /// # Errors
    ///
    /// If they contradict themselves: then nothing has changed. [`AgentError::Ended`] if there is
    /// no agent any more.
    pub async fn reconfigure(
        &self,
        ports: Vec<PortOptions>,
        routes: Vec<RouteOptions>,
    ) -> Result<(), AgentError> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            ports,
            routes,
            reply,
        };
        let sent = self.0.send(request).await;
        sent.map_err(|_| AgentError::Ended)?;
        answer.await.unwrap_or(Err(AgentError::Ended))
    }
}

impl<D: DataPlane> Agent<D> {
    /// Order of change, as at the start: table, kernel, then the workers.
    pub(super) async fn handle_request(&mut self, request: Request) {
        let now = Instant::now();
        let changed = self
            .reconciler
            .reconfigure(request.ports, request.routes, now);
        let result = changed.map(|(ports, vteps)| {
            self.dirty.ports.extend(ports);
            self.dirty.vteps.extend(vteps);
            self.slow_path_at = self.slow_path.as_ref().map(|_| now);
        });
        self.work().await;
        match result {
            // A pod's way through the kernel is made when the rules against what it could forge
            // stand; whoever asked is to find it. Nothing else waits for that.
            Ok(()) if !self.firewall_is_settled() => self.waiting.push(request.reply),
            // Whoever asked may have gone.
            result => drop(request.reply.send(result)),
        }
    }
}
