//! Looks again and again at what of the host's lies in the cluster's prefixes.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::debug;

use crate::kernel::{Kernel, KernelError};
use crate::options::AgentOptions;
use crate::overlaps::Overlaps;

/// How often it is looked what of the host's lies in the cluster's prefixes.
const OVERLAPS_INTERVAL: Duration = Duration::from_secs(30);
/// The same, at most, when routes or addresses change.
const OVERLAPS_SOON: Duration = Duration::from_secs(5);

/// What was found in the cluster's prefixes, looked at again now and then beside other work: a host
/// may have many routes.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) found: Overlaps,
    /// When the last look was begun, and when the next is due.
    last: Instant,
    at: Instant,
    /// Whether it is time.
    wanted: bool,
    task: Option<JoinHandle<Option<Overlaps>>>,
}

impl Looked {
    pub(super) fn new(found: Overlaps) -> Self {
        let now = Instant::now();
        Self {
            found,
            last: now,
            at: now + OVERLAPS_INTERVAL,
            wanted: false,
            task: None,
        }
    }

    /// Something has changed: looks again soon.
    pub(super) fn changed(&mut self) {
        self.at = self.at.min(self.last + OVERLAPS_SOON);
    }

    /// Waits until something was found, or it is time to look. Cancel-safe.
    pub(super) async fn next(&mut self) {
        if let Some(task) = &mut self.task {
            if let Ok(Some(found)) = task.await {
                self.found = found;
            }
            self.task = None;
            return;
        }
        tokio::time::sleep_until(self.at.into()).await;
        self.at = Instant::now() + OVERLAPS_INTERVAL;
        self.wanted = true;
    }

    /// Looks again, if it is time: by a socket of its own, since the kernel gives out one list at a
    /// time by each.
    pub(super) fn again(&mut self, options: &AgentOptions) {
        if std::mem::take(&mut self.wanted) && self.task.is_none() {
            self.last = Instant::now();
            let options = options.clone();
            self.task = Some(tokio::spawn(async move {
                let found = async { Overlaps::find(&Kernel::open()?, &options).await };
                let missed =
                    |error: &KernelError| debug!(%error, "cannot look at the host's networks");
                found.await.inspect_err(missed).ok()
            }));
        }
    }
}
