//! The data plane as the control side sees it: workers, links, pinholes.

mod links;
mod trunks;
mod workers;

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::FdLink;
use crossbeam::queue::ArrayQueue;
use viaduct_encap::Vni;
use viaduct_fib::{PortId, ReaderFactory, Update};

use self::links::QUEUES_PER_PORT;
pub use self::links::{Attached, Hook, PodSide};
use self::workers::{Handle, MESSAGES, PATIENCE};
pub use self::workers::{Liveness, WorkerHealth};
use crate::bpf::{Carried, ClusterPrefix, MAX_WORKERS, Outcomes, Pinholes, XdpMode};
use crate::counters::{
    PortTotals, SocketTotals, WorkerCounters, WorkerTotals, port_totals, worker_totals,
};
use crate::error::{RouterError, cause};
use crate::limit::Limiter;
use crate::trunk::Outer;
use crate::tun::Tun;
use crate::worker::{Mailbox, Shared, WorkerParts, mailboxes};
use crate::xsk::{Area, MAX_DEPTH, RingSizes, Xsk, frames, statistics};

/// Of the socket that has the UMEM and carries nothing.
const ANCHOR: RingSizes = RingSizes {
    area: MAX_DEPTH,
    receive: 64,
    transmit: 64,
};
/// Bytes of a frame: an Ethernet frame of MTU 1500 with room to spare.
const FRAME_SIZE: u32 = 2048;
/// What a worker needs to remember a flow, bytes.
const FLOW_BYTES: u64 = 128;
/// What the kernel keeps at each queue for each frame of the UMEM, bytes (`struct xdp_buff_xsk`,
/// Linux `include/net/xsk_buff_pool.h`).
const QUEUE_BYTES_PER_FRAME: u64 = 128;
/// The device through which the kernel gets back what is left to it.
const PUNT_DEVICE: &str = "viaduct%d";
/// How long a device may be busy at the start, with what a predecessor held, and later, when
/// whoever waits for the control thread has to wait, too.
const START_PATIENCE: Duration = Duration::from_secs(1);
const LATER_PATIENCE: Duration = Duration::from_millis(100);

/// How a router is built.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// Worker threads, 1 to 64.
    pub workers: usize,
    /// A CPU for each worker; not pinned without.
    pub cpus: Option<Vec<usize>>,
    /// Sleep when there is nothing to do; poll always otherwise.
    pub adaptive: bool,
    /// While packets come fast, an adaptive worker that has none lets them gather for so long, below
    /// a second; zero: it is woken for each.
    pub gather: Duration,
    /// The most pod ports at a time.
    pub max_ports: usize,
    /// Flows that each worker remembers, 128 bytes each; 0: none.
    pub flow_cache: usize,
    /// XDP falls back to the kernel when a worker was silent for so long.
    pub heartbeat_timeout: Duration,
    /// `None`: native where the driver has it, generic else.
    pub xdp_mode: Option<XdpMode>,
    /// Refuse an underlay with more receive queues.
    pub max_queues: Option<u32>,
    /// Drop what is the workers' while they are gone, instead of leaving it to the kernel.
    pub fail_closed: bool,
    /// Folder in a BPF filesystem for the links' pins.
    pub pins: PathBuf,
    /// Where the underlay's packets are looked at first.
    pub underlay: Hook,
    /// What hooks in tc do.
    pub tc: InTc,
}

/// What hooks in tc do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InTc {
    /// There are none: workers have no trunks.
    Nothing,
    /// They give all that is the workers' to them.
    ToWorkers,
    /// They carry what is settled themselves.
    Settled,
}

impl RouterOptions {
    /// Whether a router can be built so on this machine.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), RouterError> {
        if self.workers == 0 || self.workers > MAX_WORKERS {
            return Err(RouterError::new(
                "cannot start workers",
                format!("1 to {MAX_WORKERS} are possible"),
            ));
        }
        check_cpus(self.cpus.as_deref().unwrap_or_default())
    }

    /// Memory of one worker's frames, which it has from its start to its end, and which counts as
    /// locked; bytes.
    pub fn frame_bytes(&self) -> u64 {
        (frames(self.max_ports) as u64).saturating_mul(FRAME_SIZE.into())
    }

    /// Memory that a router needs when `pods` pods of one queue each are attached, in bytes: all
    /// workers' frames and flows, and what the kernel keeps for each queue of a device.
    pub fn memory(&self, pods: usize) -> u64 {
        let workers = self.workers as u64;
        let flows = (self.flow_cache as u64).saturating_mul(FLOW_BYTES);
        let own = workers.saturating_mul(self.frame_bytes().saturating_add(flows));
        // Each worker's own socket, and one queue of the underlay.
        let queues = workers.saturating_add(pods as u64).saturating_add(1);
        let frames = self.frame_bytes() / u64::from(FRAME_SIZE);
        own.saturating_add(queues.saturating_mul(frames.saturating_mul(QUEUE_BYTES_PER_FRAME)))
    }
}

/// A running data plane.
pub struct Router {
    options: RouterOptions,
    pinholes: Pinholes,
    workers: Vec<Handle>,
    /// By worker.
    mailboxes: Arc<[Mailbox]>,
    ports: Vec<Option<Attached>>,
    /// By port: its sockets, which stay open until the port is withdrawn.
    sockets: Vec<Vec<RawFd>>,
    tun: Arc<Tun>,
    limiter: Limiter,
    /// By port: what others have carried that had its number.
    retired: Vec<PortTotals>,
    /// By port: the same, by hooks.
    retired_carried: Vec<Carried>,
    /// How long to wait for devices that somebody has just let go of.
    busy_patience: Duration,
    /// The kernel's VXLAN devices, over IPv4 and IPv6.
    overlay: [Option<u32>; 2],
    /// The programs at the trunks' ends, and the trunks.
    trunks: Vec<([FdLink; 2], Outer)>,
}

impl Router {
    /// Loads the XDP programs and starts the workers. Nothing is attached yet.
    ///
    /// # Errors
    /// Says what could not be made; nothing stays behind.
    pub fn start(options: RouterOptions, readers: &ReaderFactory) -> Result<Self, RouterError> {
        options.check()?;
        // The underlay's, and the trunk's.
        let ports = options.max_ports + 2;
        let slots = u32::try_from(ports)
            .unwrap_or(u32::MAX)
            .saturating_mul(QUEUES_PER_PORT);
        let pinholes = Pinholes::load(
            &options.pins,
            slots,
            u32::try_from(options.workers).unwrap_or(u32::MAX),
            options.heartbeat_timeout,
            options.fail_closed,
            options.tc == InTc::Settled,
        )?;
        let tun = Tun::open(PUNT_DEVICE, options.workers)?;
        let mailboxes = mailboxes(options.workers, FRAME_SIZE as usize)
            .map_err(|e| RouterError::new("cannot prepare the workers", cause(&e, 0)))?;
        let mut router = Self {
            tun: Arc::new(tun),
            limiter: Limiter::new(ports),
            workers: Vec::new(),
            mailboxes,
            ports: vec![None; ports],
            sockets: vec![Vec::new(); ports],
            retired: vec![PortTotals::default(); ports],
            retired_carried: vec![Carried::default(); ports],
            pinholes,
            options,
            busy_patience: START_PATIENCE,
            overlay: [None; 2],
            trunks: Vec::new(),
        };
        for index in 0..router.options.workers {
            let handle = router.start_worker(index, readers).map_err(|e| {
                let frames = router.options.frame_bytes();
                RouterError::new(format!("cannot start worker {index}"), cause(&e, frames))
            })?;
            router.workers.push(handle);
        }
        router.workers.iter().for_each(Handle::wait_for_life);
        if router.options.tc != InTc::Nothing {
            router.make_trunks()?;
        }
        Ok(router)
    }

    fn start_worker(&self, index: usize, readers: &ReaderFactory) -> io::Result<Handle> {
        let ports = self.ports.len();
        let frames = u32::try_from(frames(self.options.max_ports)).map_err(io::Error::other)?;
        let (area, frames) = Area::new(frames, FRAME_SIZE, MAX_DEPTH)?;
        let shared = Arc::new(Shared {
            inbox: ArrayQueue::new(MESSAGES),
            // Each message has an answer, and more may be sent before the first of them is taken.
            outbox: ArrayQueue::new(16 * MESSAGES),
            panic: OnceLock::new(),
            counters: WorkerCounters::new(ports, u64::from(area.frames())),
            sleeper: self
                .mailboxes
                .get(index)
                .map(Mailbox::sleeper)
                .ok_or(io::ErrorKind::InvalidInput)?,
            stop: AtomicBool::new(false),
        });
        let umem = area.umem();
        // The first socket has the UMEM itself, and the others share it only while that one is
        // bound: so it is bound to a device that stays.
        let own_queue = u32::try_from(index).map_err(io::Error::other)?;
        let anchor = Xsk::bind(&umem, self.tun.name(), own_queue, ANCHOR)?;
        let worker = WorkerParts {
            index,
            shared: Arc::clone(&shared),
            mailboxes: Arc::clone(&self.mailboxes),
            reader: readers.reader(),
            area,
            frames,
            ports,
            flows: self.options.flow_cache,
            limiter: self.limiter.for_worker(),
            tun: Arc::clone(&self.tun),
            beats: (0..self.options.workers)
                .map(|worker| self.pinholes.beat(worker))
                .collect(),
            adaptive: self.options.adaptive,
            gather: self.options.gather,
            heartbeat_timeout: self.options.heartbeat_timeout,
        };
        let cpus = self.options.cpus.as_ref();
        let cpu = cpus.and_then(|cpus| cpus.get(index)).copied();
        Handle::start(worker, umem, anchor, cpu)
    }

    /// What is to be done now and then, once a second: late answers of workers are taken, and maps of the XDP programs
    /// are repaired that somebody else has changed, or that could not be written. Returns how many entries somebody else had
    /// changed.
    pub fn maintain(&mut self) -> usize {
        #[cfg(debug_assertions)]
        self.provoke();
        self.workers.iter_mut().for_each(Handle::settle);
        self.pinholes.repair()
    }

    /// What is wrong with the XDP programs' maps.
    pub fn problems(&self) -> Vec<String> {
        self.pinholes.problems()
    }

    /// How each worker fares.
    pub fn health(&self) -> Vec<WorkerHealth> {
        let timeout = self.options.heartbeat_timeout;
        self.workers.iter().map(|w| w.health(timeout)).collect()
    }

    /// For tests: a worker panics whose number is in the file of this node's name in the folder that `VIADUCT_TEST_PANIC`
    /// names. Releases have no such thing.
    #[cfg(debug_assertions)]
    fn provoke(&mut self) {
        let folder = std::env::var_os("VIADUCT_TEST_PANIC").map(PathBuf::from);
        let (Some(folder), Some(node)) = (folder, self.options.pins.file_name()) else {
            return;
        };
        let file = folder.join(node);
        let number = std::fs::read_to_string(&file).ok();
        let number = number.and_then(|text| text.trim().parse::<usize>().ok());
        if let Some(worker) = number.and_then(|number| self.workers.get_mut(number)) {
            let _ = std::fs::remove_file(&file);
            worker.provoke();
        }
    }

    /// Opens the underlay's pinholes for VXLAN to these addresses and ports, and closes all others.
    ///
    /// # Errors
    /// When some could not be opened or closed: that is tried again by [`maintain`](Self::maintain).
    pub fn set_vteps(
        &mut self,
        vteps: impl Iterator<Item = (IpAddr, u16)>,
    ) -> Result<(), RouterError> {
        self.pinholes.set_vteps(vteps)
    }

    /// Registers a network; `carried` by the kernel, too. Packets of others are the kernel's.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_network(&mut self, vni: Vni, carried: bool) -> Result<(), RouterError> {
        self.pinholes.add_network(vni, carried)
    }

    /// Says which node a prefix (address and length) of a network belongs to, none if to nobody:
    /// from others the kernel gets no packets with such inner sources.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_origin(
        &mut self,
        vni: Vni,
        prefix: (IpAddr, u8),
        vtep: Option<IpAddr>,
    ) -> Result<(), RouterError> {
        self.pinholes.set_origin(vni, prefix, vtep)
    }

    /// Says that tunnels end at these addresses and ports, and nowhere else: the kernel gets no packets to there from
    /// pods.
    ///
    /// # Errors
    /// When some could not be noted: that is tried again by [`maintain`](Self::maintain).
    pub fn set_nodes(
        &mut self,
        nodes: impl Iterator<Item = (IpAddr, u16)>,
    ) -> Result<(), RouterError> {
        self.pinholes.set_nodes(nodes)
    }

    /// Opens the underlay's pinhole for a pod.
    ///
    /// # Errors
    /// When the map is full.
    pub fn admit_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        self.pinholes.add_pod(vni, address)
    }

    /// Closes the underlay's pinhole for a pod.
    ///
    /// # Errors
    /// When it may still be open: closing it is tried again by [`maintain`](Self::maintain).
    pub fn expel_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        self.pinholes.remove_pod(vni, address)
    }

    /// Opens the pods' pinholes for these prefixes, except for addresses inside them that are left to the kernel, and
    /// closes all others.
    ///
    /// # Errors
    /// When some could not be opened or closed: that is tried again by [`maintain`](Self::maintain).
    pub fn set_cluster<'a>(
        &mut self,
        prefixes: impl Iterator<Item = &'a ClusterPrefix>,
    ) -> Result<(), RouterError> {
        self.pinholes.set_cluster(prefixes)
    }

    /// Waits until every worker has begun a batch since the call, and then once more, until what
    /// they had handed to each other is sent (at most two seconds).
    pub fn quiesce(&self) {
        let patience = Instant::now() + PATIENCE;
        let rounds = if self.workers.len() > 1 { 2 } else { 1 };
        for worker in self
            .workers
            .iter()
            .filter(|worker| worker.may_answer())
            .cycle()
            .take(rounds * self.workers.len())
        {
            let turns = || worker_totals(&worker.shared.counters).turns;
            let before = turns();
            worker.shared.sleeper.wake();
            // The turn under way when we looked may have loaded the old table.
            while turns() < before + 2 && Instant::now() < patience {
                worker.shared.sleeper.wake();
                thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Ends the start, when all is attached and settled: hooks of a predecessor, which went on so far, go by what this
    /// router has told its own. What the predecessor left on other devices is removed. Returned are the number of such
    /// links, and what could not be taken over.
    pub fn started(&mut self) -> (usize, Vec<RouterError>) {
        // From now on nobody is waited for as long as at the start.
        self.busy_patience = LATER_PATIENCE;
        let failed = self.pinholes.take_over();
        (self.pinholes.remove_foreign(), failed)
    }

    /// Has the hooks stay when this router is dropped: they go on with what is settled. Workers send what they have, and the
    /// kernel gets from now on what they would have got; with [`RouterOptions::fail_closed`] nobody does.
    pub fn leave_hooks(&mut self) {
        self.pinholes.stays = true;
        if self.options.fail_closed {
            return;
        }
        let ports = (0u16..).map(PortId).zip(self.ports.clone());
        for (port, attached) in ports {
            // What a hook still gives to a worker, because its entry could not be changed, is lost with the worker.
            let closed = attached.map_or(Ok(()), |it| self.set_device(port, &it, false));
            drop(closed);
        }
        // With the underlay they finish what has come from pods, too. Those that hand over before those that send for them.
        for worker in self.workers.iter_mut().rev() {
            worker.take_back(PortId::UNDERLAY, "the underlay", 0);
        }
    }

    /// Takes all hooks away, those of a predecessor that this router has taken over among them.
    pub fn remove_hooks(&mut self) {
        self.pinholes.detach_all();
    }

    /// A port's number is nobody's from now on: what it has carried is counted with that of all
    /// others that have gone.
    pub fn retire(&mut self, port: PortId) {
        let carried = self.raw_carried(port);
        if let Some(base) = self.retired_carried.get_mut(usize::from(port.0)) {
            *base = carried;
        }
        let totals = self.raw_totals(port);
        if let Some(base) = self.retired.get_mut(usize::from(port.0)) {
            *base = totals;
        }
    }

    /// What all ports have carried that have gone for good.
    pub fn retired_totals(&self) -> PortTotals {
        let mut sum = PortTotals::default();
        for totals in &self.retired {
            sum.plus(totals);
        }
        sum
    }

    /// What a port has carried since the start, or since its number was another's.
    pub fn port_totals(&self, port: PortId) -> PortTotals {
        let totals = self.raw_totals(port);
        match self.retired.get(usize::from(port.0)) {
            Some(base) => totals.since(base),
            None => totals,
        }
    }

    fn raw_totals(&self, port: PortId) -> PortTotals {
        port_totals(
            self.workers.iter().map(|w| &w.shared.counters),
            usize::from(port.0),
        )
    }

    /// What the kernel counted at a port's sockets since it was attached.
    pub fn socket_totals(&self, port: PortId) -> SocketTotals {
        let mut totals = SocketTotals::default();
        let sockets = self.sockets.get(usize::from(port.0));
        for s in sockets
            .into_iter()
            .flatten()
            .filter_map(|fd| statistics(*fd).ok())
        {
            totals.rx_dropped += s.rx_dropped;
            totals.rx_ring_full += s.rx_ring_full;
            totals.fill_ring_empty += s.rx_fill_ring_empty_descs;
            totals.invalid_descriptors += s.rx_invalid_descs + s.tx_invalid_descs;
        }
        totals
    }

    /// What each worker has done.
    pub fn worker_totals(&self) -> Vec<WorkerTotals> {
        self.workers
            .iter()
            .map(|w| worker_totals(&w.shared.counters))
            .collect()
    }

    /// Hands over what a change of the forwarding table is about; before the table takes it.
    ///
    /// # Errors
    /// When an entry cannot be removed, so that the table must not change yet, or hooks and workers contradict each
    /// other until [`maintain`](Self::maintain) has removed it.
    pub fn withdraw_settled(&mut self, update: &Update) -> Result<(), RouterError> {
        self.pinholes.settled.withdraw(update)
    }

    /// Settles what a change of the forwarding table is about, which has taken it.
    ///
    /// # Errors
    /// When an entry cannot be written: workers carry what is not settled, and [`maintain`](Self::maintain) tries again.
    pub fn settle(&mut self, update: &Update) -> Result<(), RouterError> {
        self.pinholes.settled.apply(update)
    }

    /// What hooks have carried from and to a port, since the start or since its number was another's; nothing when the kernel
    /// does not say.
    pub fn carried(&self, port: PortId) -> Carried {
        let base = self.retired_carried.get(usize::from(port.0));
        let base = base.copied().unwrap_or_default();
        self.raw_carried(port).since(base)
    }

    fn raw_carried(&self, port: PortId) -> Carried {
        self.pinholes.settled.carried(port).unwrap_or_default()
    }

    /// Packets that hooks have carried, from wherever they came.
    pub fn carried_by_all(&self) -> u64 {
        let ports = (0u16..).map(PortId).take(self.ports.len());
        ports.map(|port| self.raw_carried(port).rx_packets).sum()
    }

    /// What hooks have carried of all ports that have gone for good.
    pub fn retired_carried(&self) -> Carried {
        let mut sum = Carried::default();
        for carried in &self.retired_carried {
            sum = sum.plus(*carried);
        }
        sum
    }

    /// What the pinholes did.
    pub fn outcomes(&self) -> Outcomes {
        self.pinholes.outcomes()
    }

    /// What a port got from the kernel, while it is attached.
    pub fn attached(&self, port: PortId) -> Option<&Attached> {
        self.ports.get(usize::from(port.0))?.as_ref()
    }
}

impl Drop for Router {
    /// Hooks first, so that no packet comes any more; then workers and sockets. Hooks of a predecessor stay, unless
    /// [`remove_hooks`](Router::remove_hooks) was called: a start that fails leaves what there was.
    fn drop(&mut self) {
        self.pinholes.let_go();
        self.ports.iter().flatten().for_each(Attached::restore);
        for worker in &self.workers {
            worker.shared.stop.store(true, Ordering::Relaxed);
            worker.shared.sleeper.wake();
        }
        let counters: Vec<_> = self.workers.iter().map(|w| Arc::clone(&w.shared)).collect();
        self.workers.drain(..).for_each(Handle::join);
        // What was on its way between them has its count, too.
        for (mailbox, worker) in self.mailboxes.iter().zip(&counters) {
            mailbox.abandon(&worker.counters);
        }
    }
}

fn check_cpus(wanted: &[usize]) -> Result<(), RouterError> {
    let online = core_affinity::get_core_ids().unwrap_or_default();
    match wanted
        .iter()
        .find(|cpu| !online.iter().any(|c| c.id == **cpu))
    {
        Some(cpu) => Err(RouterError::new(
            format!("cannot pin a worker to CPU {cpu}"),
            "this process may not run there; see workers.cpus",
        )),
        None => Ok(()),
    }
}
