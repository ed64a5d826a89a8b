//! The agent: listens to the kernel, looks where something changed, and lets the reconciler act.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};
use viaduct_fib::{PortId, Publisher};

use crate::data_plane::DataPlane;
use crate::error::AgentError;
use crate::kernel::{Events, Kernel, KernelError, KernelEvent};
use crate::observe;
use crate::options::{AgentOptions, PortOptions, RouteOptions};
use crate::reconciler::{Observed, Reconciler};
use crate::slow_path::SlowPath;
use crate::slow_path::firewall::Changes;
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
    reconciler: Reconciler<D>,
    slow_path: Option<SlowPath>,
    /// When to look at the kernel's path; none while nothing of it has changed.
    slow_path_at: Option<Instant>,
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    firewall: Option<Changes>,
    firewall_changed: bool,
    /// Whether the next look at the kernel's path is at the firewall, too.
    look_at_firewall: bool,
    dirty: Dirty,
    resync_at: Instant,
    underlay_at: Instant,
}

/// Asks a running agent for other pods and routes.
#[derive(Clone, Debug)]
pub struct AgentHandle(mpsc::Sender<Request>);

#[derive(Debug)]
struct Request {
    ports: Vec<PortOptions>,
    routes: Vec<RouteOptions>,
    reply: oneshot::Sender<Result<(), AgentError>>,
}

impl AgentHandle {
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

/// What is to be looked at again.
#[derive(Debug, Default)]
struct Dirty {
    underlay: bool,
    ports: BTreeSet<PortId>,
    vteps: BTreeSet<IpAddr>,
    host: bool,
}

impl<D: DataPlane> Agent<D> {
    /// Looks at everything and brings the desired state about. Routes may be unresolved yet;
    /// underlay and pods must be there.
    ///
    /// # Errors
    ///
    /// If something is missing or refused. What had been done at the data plane is undone.
    pub async fn start(
        options: AgentOptions,
        publisher: Publisher,
        data_plane: D,
    ) -> Result<Self, AgentError> {
        options.check()?;
        let events = Events::subscribe()?;
        let kernel = Kernel::open()?;
        let found = SlowPath::exists(&kernel).await?;
        let mut slow_path = options.slow_path.as_ref().map(SlowPath::new);
        let firewall = slow_path.as_ref().and_then(|_| Changes::subscribe().ok());
        let started = Self::start_with(&kernel, slow_path.as_mut(), options, publisher, data_plane);
        let reconciler = match started.await {
            Ok(reconciler) => reconciler,
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
            reconciler,
            slow_path,
            slow_path_at: None,
            requests: mpsc::channel(1),
            firewall,
            firewall_changed: false,
            look_at_firewall: false,
            dirty: Dirty::default(),
            resync_at: Instant::now() + RESYNC_INTERVAL,
            underlay_at: Instant::now() + UNDERLAY_INTERVAL,
        };
        // The kernel may have to do with these rules very soon.
        agent.note_macs();
        agent.slow_path_at = agent.slow_path_at.map(|_| Instant::now());
        agent.keep_slow_path().await;
        agent.probe().await;
        Ok(agent)
    }

    /// Order of change: the kernel's path before the workers', so that what they leave alone has
    /// a way.
    async fn start_with(
        kernel: &Kernel,
        slow_path: Option<&mut SlowPath>,
        options: AgentOptions,
        publisher: Publisher,
        data_plane: D,
    ) -> Result<Reconciler<D>, AgentError> {
        let mut status = None;
        if let Some(slow_path) = slow_path {
            slow_path.reconcile(kernel, &options, true).await?;
            status = Some(slow_path.status().clone());
        }
        let observed = look_at_all(kernel, &options).await?;
        let now = Instant::now();
        let mut reconciler = Reconciler::start(options, publisher, data_plane, &observed, now)?;
        if let Some(status) = &status {
            reconciler.note_slow_path(status);
            reconciler.report();
        }
        Ok(reconciler)
    }

    /// Where to read what the agent does.
    pub fn status(&self) -> StatusHandle {
        self.reconciler.status()
    }

    /// How to ask for other pods and routes.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle(self.requests.0.clone())
    }

    /// Follows the kernel until `shutdown` completes. Then all pods are taken from the workers,
    /// so that the kernel has them, and the data plane is given back. The forwarding table stays,
    /// and the kernel's path unless the options say otherwise.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> D {
        let mut shutdown = pin!(shutdown);
        loop {
            let due = self.next_due().into();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                event = next(&mut self.events) => self.note_all(event),
                () = next_change(&mut self.firewall) => self.firewall_changed = true,
                Some(request) = self.requests.1.recv() => {
                    self.obey(request).await;
                    continue;
                }
                () = tokio::time::sleep_until(due) => {}
            }
            self.work().await;
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
            .chain([self.underlay_at]);
        due.fold(self.resync_at, Instant::min)
    }

    /// Notes an event and all others that are there already, so that what a burst of them is
    /// about is looked at once.
    fn note_all(&mut self, first: Option<KernelEvent>) {
        let mut event = first;
        if event.is_none() {
            warn!("the kernel's event socket has failed; opening another");
            self.events = None;
            self.note(KernelEvent::Resync);
        }
        while let Some(this) = event {
            self.note(this);
            event = self.events.as_mut().and_then(Events::try_next);
        }
    }

    fn note(&mut self, event: KernelEvent) {
        debug!(?event, "the kernel says");
        let about_slow_path = match &event {
            KernelEvent::NeighbourChanged { interface, .. }
            | KernelEvent::ForwardingChanged { interface } => {
                let slow_path = self.slow_path.as_ref();
                slow_path.is_some_and(|path| path.watches(*interface))
            }
            _ => true,
        };
        if about_slow_path {
            self.look_at_slow_path();
        }
        match event {
            KernelEvent::LinkChanged(link) => self.note_link(&link.name, link.index),
            KernelEvent::LinkRemoved { index, name } => {
                let now = Instant::now();
                self.reconciler.link_removed(index, now);
                if index == self.reconciler.underlay_index() {
                    self.reconciler.underlay_removed(now);
                }
                self.note_link(&name, index);
            }
            KernelEvent::ForwardingChanged { .. } => {}
            KernelEvent::AddressChanged { interface } => {
                self.dirty.host = true;
                if interface == self.reconciler.underlay_index() {
                    self.dirty.underlay = true;
                    // The kernel removes routes with an address without a word for each.
                    self.dirty.vteps.extend(self.reconciler.vteps());
                }
            }
            KernelEvent::RouteChanged => self.dirty.vteps.extend(self.reconciler.vteps()),
            KernelEvent::NeighbourChanged { interface, address } => {
                if interface == self.reconciler.underlay_index() {
                    let behind = self.reconciler.vteps_behind(address);
                    self.dirty.vteps.extend(behind);
                }
                self.dirty.ports.extend(self.reconciler.port_on(interface));
            }
            KernelEvent::Resync => self.mark_all(),
        }
    }

    /// Notes that an interface changed. A name may be new to a number, and a number to a name.
    fn note_link(&mut self, name: &str, index: u32) {
        let options = self.reconciler.options();
        if name == options.underlay.name || index == self.reconciler.underlay_index() {
            self.dirty.underlay = true;
            self.dirty.vteps.extend(self.reconciler.vteps());
        }
        self.dirty.ports.extend(self.reconciler.port_named(name));
        self.dirty.ports.extend(self.reconciler.port_on(index));
    }

    /// Order of change, as at the start: table, kernel, then the workers.
    async fn obey(&mut self, request: Request) {
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
        // Whoever asked may have gone.
        let _ = request.reply.send(result);
    }

    fn look_at_slow_path(&mut self) {
        if self.slow_path.is_some() {
            self.slow_path_at.get_or_insert(Instant::now() + SETTLE);
        }
    }

    fn mark_all(&mut self) {
        self.dirty.underlay = true;
        self.dirty.host = true;
        self.firewall_changed = true;
        self.dirty.ports.extend(self.reconciler.port_ids());
        self.dirty.vteps.extend(self.reconciler.vteps());
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
        }
        let due = self.reconciler.due_ports(now);
        self.dirty.ports.extend(due);
        let dirty = std::mem::take(&mut self.dirty);
        self.keep_slow_path().await;
        if let Err(error) = self.look(dirty).await {
            warn!(%error, "will look again");
            self.resync_at = self.resync_at.min(now + ASK_AGAIN);
        }
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

    /// Looks at what may have changed, the underlay first: routes are judged by it.
    async fn look(&mut self, dirty: Dirty) -> Result<(), KernelError> {
        let kernel = &self.kernel;
        let reconciler = &mut self.reconciler;
        if dirty.host {
            let seen = observe::host(kernel).await?;
            reconciler.observe_host(&seen);
        }
        if dirty.underlay {
            let seen = observe::underlay(kernel, &reconciler.options().underlay).await?;
            reconciler.observe_underlay(&seen, Instant::now());
        }
        for id in dirty.ports {
            let Some(options) = reconciler.port_options(id) else {
                continue;
            };
            let seen = observe::port(kernel, options).await?;
            reconciler.observe_port(id, &seen, Instant::now());
        }
        for vtep in dirty.vteps {
            let seen = observe::vtep(kernel, reconciler.underlay_index(), vtep).await?;
            reconciler.observe_vtep(vtep, &seen, Instant::now());
        }
        Ok(())
    }

    /// Looks at the kernel's path, if it is time.
    async fn keep_slow_path(&mut self) {
        if std::mem::take(&mut self.firewall_changed) {
            // Whatever changes a firewall often is not followed at once.
            self.look_at_slow_path();
            self.look_at_firewall = true;
        }
        let now = Instant::now();
        if self.slow_path_at.is_none_or(|at| at > now) {
            return;
        }
        self.slow_path_at = None;
        let Some(slow_path) = &mut self.slow_path else {
            return;
        };
        let look = std::mem::take(&mut self.look_at_firewall);
        let options = self.reconciler.options();
        if slow_path
            .reconcile(&self.kernel, options, look)
            .await
            .is_err()
        {
            self.slow_path_at = Some(now + ASK_AGAIN);
        }
        self.reconciler.note_slow_path(slow_path.status());
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

/// The next event; for ever pending without a socket, as then the clock drives the agent.
async fn next(events: &mut Option<Events>) -> Option<KernelEvent> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

/// The next change of a firewall; for ever pending without a socket.
async fn next_change(changes: &mut Option<Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

async fn look_at_all(kernel: &Kernel, options: &AgentOptions) -> Result<Observed, KernelError> {
    let underlay = observe::underlay(kernel, &options.underlay).await?;
    let index = underlay.link.as_ref().map_or(0, |link| link.index);
    let mut ports = Vec::with_capacity(options.ports.len());
    for port in &options.ports {
        ports.push(observe::port(kernel, port).await?);
    }
    let mut observed = Observed {
        underlay,
        ports,
        vteps: BTreeMap::new(),
        host: observe::host(kernel).await?,
    };
    for route in &options.routes {
        if let Entry::Vacant(entry) = observed.vteps.entry(route.vtep) {
            entry.insert(observe::vtep(kernel, index, route.vtep).await?);
        }
    }
    Ok(observed)
}
