//! The agent: listens to the kernel, looks where something changed, and lets the reconciler act.

mod look;
mod news;
mod requests;

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{debug, warn};
use viaduct_fib::Publisher;

use self::look::{Dirty, look_at_ways};
use self::news::{next, next_of_firewall, next_path_mtu};
pub use self::requests::AgentHandle;
use self::requests::{Reply, Request};
use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::kernel::{Events, Kernel, PathMtus};
use crate::observe;
use crate::options::{AgentOptions, OwnAddresses};
use crate::overlaps::Overlaps;
use crate::reconciler::Reconciler;
use crate::slow_path::SlowPath;
use crate::status::StatusHandle;

/// How often everything is looked at again, whether events say so or not: it finds what no event
/// tells of, such as a pod that changes its own MAC.
const RESYNC_INTERVAL: Duration = Duration::from_secs(15);
/// How soon to look again where the kernel could not be asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often the underlay is looked at: no event tells of another number of queues.
const UNDERLAY_INTERVAL: Duration = Duration::from_secs(1);

/// How long changes of the kernel's path are gathered before it is looked at.
const SETTLE: Duration = Duration::from_millis(100);

/// Keeps forwarding table and data plane as the options and the kernel say.
///
/// It lives in the network namespace that the thread is in at [`start`](Self::start), and in a
/// tokio runtime with I/O and time enabled, of either flavour.
pub struct Agent<D> {
    kernel: Kernel,
    events: Option<Events>,
    /// Routers' answers to packets that were too long for the way, on the underlay.
    path_mtus: Option<PathMtus>,
    /// The number of the interface that they are received on; 0: none.
    listening_on: u32,
    reconciler: Reconciler<D>,
    slow_path: Option<SlowPath>,
    /// When to look at the kernel's path; none while nothing of it has changed.
    slow_path_at: Option<Instant>,
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    /// Who waits until the firewall has what they asked for.
    waiting: Vec<Reply>,
    dirty: Dirty,
    resync_at: Instant,
    underlay_at: Instant,
}

impl<D: DataPlane> Agent<D> {
    /// Looks at everything and brings the desired state about, as far as that is possible now. What
    /// is not is in the status, followed, and brought about when it can be, as later.
    ///
    /// It can be cancelled: what it did at the data plane is then for the data plane to undo, and
    /// what it did in the kernel for [`Leftovers`](crate::Leftovers).
    ///
    /// # Errors
    ///
    /// If the options contradict themselves or the VXLAN devices that there are, or the kernel
    /// cannot be asked at all. What had been done is undone.
    pub async fn start(
        options: AgentOptions,
        publisher: Publisher,
        data_plane: D,
    ) -> Result<Self, AgentError> {
        options.check()?;
        let events = Events::subscribe()?;
        let kernel = Kernel::open()?;
        let overlaps = Overlaps::find(&kernel, &options).await?;
        if !overlaps.refused.is_empty() {
            return Err(AgentError::Overlaps(overlaps.refused));
        }
        let found = SlowPath::exists(&kernel).await?;
        let slow_path = options.slow_path.as_ref();
        let mut slow_path = slow_path.map(|options| SlowPath::new(options, overlaps));
        let started = Self::start_with(&kernel, slow_path.as_mut(), options, publisher, data_plane);
        let (reconciler, slow_path_at) = match started.await {
            Ok(started) => started,
            Err(error) => {
                // What a predecessor left may be carrying traffic; what we made is undone.
                if let Some(slow_path) = slow_path.filter(|_| !found) {
                    slow_path.remove(&kernel).await?;
                }
                return Err(error);
            }
        };
        let mut agent = Self {
            kernel,
            events: Some(events),
            path_mtus: None,
            listening_on: 0,
            reconciler,
            slow_path,
            slow_path_at,
            requests: mpsc::channel(1),
            waiting: Vec::new(),
            dirty: Dirty::default(),
            resync_at: Instant::now() + RESYNC_INTERVAL,
            underlay_at: Instant::now() + UNDERLAY_INTERVAL,
        };
        agent.dirty.ports.extend(agent.reconciler.port_ids());
        let dirty = std::mem::take(&mut agent.dirty);
        agent.look_or_again(dirty).await;
        // The kernel may have to do with these rules very soon.
        agent.note_macs();
        agent.listen();
        agent.slow_path_at = agent.slow_path_at.map(|_| Instant::now());
        agent.keep_slow_path().await;
        agent.reconciler.report();
        agent.probe().await;
        Ok(agent)
    }

    /// Order of change: the kernel's path before the workers', so that what they leave alone has
    /// a way. Pods come last, one by one. Also returned is when to look at the kernel's path again,
    /// if it is not as it should be.
    async fn start_with(
        kernel: &Kernel,
        slow_path: Option<&mut SlowPath>,
        mut options: AgentOptions,
        publisher: Publisher,
        data_plane: D,
    ) -> Result<(Reconciler<D>, Option<Instant>), AgentError> {
        let underlay = observe::underlay(kernel, &options.underlay, 0).await?;
        let own = &mut options.underlay;
        own.addresses =
            OwnAddresses::choose(own.fixed, own.addresses, &underlay.addresses).or(own.addresses);
        let mut status = None;
        let mut overlay = [None; 2];
        let mut again = None;
        if let Some(slow_path) = slow_path {
            match slow_path.start(kernel, &options).await {
                Err(error) if error.is_contradiction() => return Err(error.into()),
                Err(_) => again = Some(Instant::now() + ASK_AGAIN),
                Ok(()) => {}
            }
            status = Some(slow_path.status().clone());
            overlay = slow_path.overlay();
        }
        let observed = look_at_ways(kernel, &options, underlay).await?;
        let now = Instant::now();
        let mut reconciler = Reconciler::start(options, publisher, data_plane, &observed, now)?;
        if let Some(status) = &status {
            reconciler.note_slow_path(status);
            reconciler.note_overlay(overlay);
            reconciler.report();
        }
        Ok((reconciler, again))
    }

    /// Where to read what the agent does.
    pub fn status(&self) -> StatusHandle {
        self.reconciler.status()
    }

    /// How to ask for other pods and routes.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle::new(self.requests.0.clone())
    }

    /// Follows the kernel until `shutdown` completes. Then the data plane is given back, with the pods or without, as the
    /// options say. The forwarding table stays, and the kernel's path unless the options say otherwise.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> D {
        let mut shutdown = pin!(shutdown);
        loop {
            let due = self.next_due().into();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                event = next(&mut self.events) => self.note_all(event),
                event = next_of_firewall(&mut self.slow_path) => self.note_firewall(event),
                news = next_path_mtu(&mut self.path_mtus) => self.note_path_mtu(&news),
                Some(request) = self.requests.1.recv() => {
                    self.handle_request(request).await;
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.work().await;
        }
        if let Some(slow_path) = &mut self.slow_path {
            // The rules are to hold when nobody is there to make them.
            slow_path.settle().await;
        }
        let remove = self.reconciler.options().slow_path.as_ref();
        let remove = remove.is_some_and(|options| options.remove_at_end);
        let data_plane = self.reconciler.shut_down();
        if let Some(slow_path) = self.slow_path.filter(|_| remove)
            && let Err(error) = slow_path.remove(&self.kernel).await
        {
            warn!(%error, "something of the kernel's path is left");
        }
        data_plane
    }

    fn next_due(&self) -> Instant {
        let due = self
            .reconciler
            .next_due()
            .into_iter()
            .chain(self.slow_path_at)
            .chain(self.slow_path.as_ref().and_then(SlowPath::next_due))
            .chain([self.underlay_at]);
        due.fold(self.resync_at, Instant::min)
    }

    fn firewall_is_settled(&self) -> bool {
        self.slow_path.as_ref().is_none_or(SlowPath::is_settled)
    }

    fn look_at_slow_path(&mut self) {
        if self.slow_path.is_some() {
            self.slow_path_at.get_or_insert(Instant::now() + SETTLE);
        }
    }

    /// Receives what routers say of too long packets on the underlay as it is now.
    fn listen(&mut self) {
        let index = self.reconciler.underlay_index();
        if index == self.listening_on {
            return;
        }
        self.listening_on = index;
        self.path_mtus = None;
        if index == 0 {
            return;
        }
        let wanted = &self.reconciler.options().underlay.name;
        match PathMtus::open(self.reconciler.underlay_link().name(wanted)) {
            Ok(path_mtus) => self.path_mtus = Some(path_mtus),
            Err(error) => warn!(
                %error,
                "cannot receive ICMP errors on the underlay: path MTUs are noticed late; the daemon needs CAP_NET_RAW"
            ),
        }
    }

    /// Does what is due.
    async fn work(&mut self) {
        let now = Instant::now();
        if now >= self.resync_at {
            self.resync_at = now + RESYNC_INTERVAL;
            self.mark_all();
        }
        if self.events.is_none() {
            self.subscribe_again(now);
        }
        if now >= self.underlay_at || self.reconciler.underlay_due(now) {
            self.underlay_at = now + UNDERLAY_INTERVAL;
            self.dirty.underlay = true;
            self.reconciler.maintain();
        }
        let due = self.reconciler.due_ports(now);
        self.dirty.ports.extend(due);
        let due = self.reconciler.due_vteps(now);
        self.dirty.vteps.extend(due);
        let dirty = std::mem::take(&mut self.dirty);
        self.keep_slow_path().await;
        self.look_or_again(dirty).await;
        self.listen();
        self.note_macs();
        self.reconciler.publish_due(Instant::now());
        self.reconciler.report();
        self.probe().await;
    }

    /// Tells the kernel's path the pods' MACs.
    fn note_macs(&mut self) {
        let macs = self.reconciler.pod_macs();
        if self.slow_path.as_mut().is_some_and(|it| it.set_macs(macs)) {
            self.look_at_slow_path();
        }
    }

    fn subscribe_again(&mut self, now: Instant) {
        match Events::subscribe() {
            Ok(events) => {
                self.events = Some(events);
                self.mark_all();
            }
            Err(error) => {
                warn!(%error, "changes are noticed late until this works again");
                self.resync_at = self.resync_at.min(now + ASK_AGAIN);
            }
        }
    }

    /// Looks at the kernel's path, if it is time.
    async fn keep_slow_path(&mut self) {
        let now = Instant::now();
        let due = self.slow_path.as_ref().and_then(SlowPath::next_due);
        let due = self.slow_path_at.into_iter().chain(due).min();
        if due.is_none_or(|at| at > now) {
            return;
        }
        self.slow_path_at = None;
        let Some(slow_path) = &mut self.slow_path else {
            return;
        };
        let options = self.reconciler.current_options();
        if slow_path.reconcile(&self.kernel, &options).await.is_err() {
            self.slow_path_at = Some(now + ASK_AGAIN);
        }
        self.reconciler.note_slow_path(slow_path.status());
        self.reconciler.note_overlay(slow_path.overlay());
        if slow_path.is_settled() {
            for reply in self.waiting.drain(..) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    /// Asks the kernel to resolve and check neighbours. What comes of it comes as events.
    async fn probe(&mut self) {
        for probe in self.reconciler.due_probes(Instant::now()) {
            if let Err(error) = self.kernel.probe(probe.interface, probe.address).await {
                debug!(%error, "will try again");
            }
        }
    }
}
