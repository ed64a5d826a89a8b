//! The data plane as the control side sees it: workers, links, pinholes.

mod links;

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use viaduct_encap::Vni;
use viaduct_fib::{PortId, ReaderFactory};

use self::links::QUEUES_PER_PORT;
pub use self::links::{Attached, PodSide};
use crate::bpf::{MAX_WORKERS, Outcomes, Pinholes, XdpMode};
use crate::counters::{
    PortTotals, SocketTotals, WorkerCounters, WorkerTotals, port_totals, worker_totals,
};
use crate::error::RouterError;
use crate::limit::Limiter;
use crate::tun::Tun;
use crate::worker::{Mailbox, Message, Reply, Shared, Worker, WorkerParts, mailboxes};
use crate::xsk::{Area, MAX_DEPTH, RingSizes, Umem, Xsk, frames, statistics};

/// Of the socket that has the UMEM and carries nothing.
const ANCHOR: RingSizes = RingSizes {
    area: MAX_DEPTH,
    receive: 64,
    transmit: 64,
};
/// Bytes of a frame: an Ethernet frame of MTU 1500 with room to spare.
const FRAME_SIZE: u32 = 2048;
/// The device through which the kernel gets back what is left to it.
const PUNT_DEVICE: &str = "viaduct%d";
/// How long a device may be busy at the start, with what a predecessor held, and later, when
/// whoever waits for the control thread has to wait, too.
const START_PATIENCE: Duration = Duration::from_secs(1);
const LATER_PATIENCE: Duration = Duration::from_millis(100);
/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

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
}

struct Handle {
    shared: Arc<Shared>,
    umem: Umem,
    /// Keeps the UMEM shareable.
    _anchor: Xsk,
    thread: Option<JoinHandle<()>>,
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
    /// Number of the message to a worker that was sent last.
    asked: u64,
    /// How long to wait for devices that somebody has just let go of.
    busy_patience: Duration,
}

impl Router {
    /// Loads the XDP programs and starts the workers. Nothing is attached yet.
    ///
    /// # Errors
    /// Says what could not be made; nothing stays behind.
    pub fn start(options: RouterOptions, readers: &ReaderFactory) -> Result<Self, RouterError> {
        if options.workers == 0 || options.workers > MAX_WORKERS {
            return Err(RouterError::new(
                "cannot start workers",
                format!("1 to {MAX_WORKERS} are possible"),
            ));
        }
        check_cpus(options.cpus.as_deref().unwrap_or_default())?;
        let ports = options.max_ports + 1;
        let slots = u32::try_from(ports)
            .unwrap_or(u32::MAX)
            .saturating_mul(QUEUES_PER_PORT);
        let pinholes = Pinholes::load(
            &options.pins,
            slots,
            options.heartbeat_timeout,
            options.fail_closed,
        )?;
        let tun = Tun::open(PUNT_DEVICE, options.workers).map_err(|e| {
            RouterError::new(
                "cannot make a TUN device",
                format!("{e}; /dev/net/tun is needed (modprobe tun)"),
            )
        })?;
        let mailboxes = mailboxes(options.workers, FRAME_SIZE as usize)
            .map_err(|e| RouterError::new("cannot prepare the workers", e.to_string()))?;
        let mut router = Self {
            tun: Arc::new(tun),
            limiter: Limiter::new(ports),
            workers: Vec::new(),
            mailboxes,
            ports: vec![None; ports],
            sockets: vec![Vec::new(); ports],
            retired: vec![PortTotals::default(); ports],
            pinholes,
            options,
            asked: 0,
            busy_patience: START_PATIENCE,
        };
        for index in 0..router.options.workers {
            let handle = router.start_worker(index, readers).map_err(|e| {
                RouterError::new(format!("cannot start worker {index}"), e.to_string())
            })?;
            router.workers.push(handle);
        }
        Ok(router)
    }

    fn start_worker(&self, index: usize, readers: &ReaderFactory) -> io::Result<Handle> {
        let ports = self.ports.len();
        let frames = u32::try_from(frames(ports)).map_err(io::Error::other)?;
        let (area, frames) = Area::new(frames, FRAME_SIZE, MAX_DEPTH)?;
        let shared = Arc::new(Shared {
            inbox: ArrayQueue::new(16),
            outbox: ArrayQueue::new(16),
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
            limiter: self.limiter.clone(),
            tun: Arc::clone(&self.tun),
            beats: (0..self.options.workers)
                .map(|worker| self.pinholes.beat(worker))
                .collect(),
            adaptive: self.options.adaptive,
            gather: self.options.gather,
            heartbeat_timeout: self.options.heartbeat_timeout,
        };
        let cpu = self
            .options
            .cpus
            .as_ref()
            .and_then(|c| c.get(index))
            .copied();
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Some(id) = cpu {
                    core_affinity::set_for_current(core_affinity::CoreId { id });
                }
                Worker::new(worker).run();
            })?;
        Ok(Handle {
            shared,
            umem,
            _anchor: anchor,
            thread: Some(thread),
        })
    }

    /// Asks a worker and waits for its answer. An answer to an earlier question, which came too
    /// late, is put right here: a link that was removed is closed, and its frames are taken back.
    fn ask(&mut self, worker: usize, message: Message) -> Result<Reply, RouterError> {
        self.asked += 1;
        let number = self.asked;
        let doing = || format!("cannot reach worker {worker}");
        let handle = self
            .workers
            .get(worker)
            .ok_or_else(|| RouterError::new(doing(), "there is none"))?;
        handle
            .shared
            .inbox
            .push((number, message))
            .map_err(|_| RouterError::new(doing(), "its inbox is full"))?;
        handle.shared.sleeper.wake();
        let patience = Instant::now() + PATIENCE;
        loop {
            let late = Instant::now() >= patience;
            match handle.shared.outbox.pop() {
                Some((answered, reply)) if answered == number => return Ok(reply),
                Some((_, Reply::Removed(Some(link)))) => {
                    let port = link.port;
                    drop(link);
                    // Its own answer is ignored like any other that nobody waits for.
                    let _ = handle.shared.inbox.push((0, Message::Reclaim(port)));
                }
                Some(_) => {}
                None if late => break,
                None => thread::sleep(Duration::from_micros(50)),
            }
        }
        Err(RouterError::new(
            doing(),
            format!("no answer in {PATIENCE:?}"),
        ))
    }

    /// Opens the underlay's pinhole for VXLAN to this address and port.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_vtep(&mut self, address: IpAddr, port: u16) -> Result<(), RouterError> {
        self.pinholes.add_vtep(address, port)
    }

    /// Closes it.
    ///
    /// # Errors
    /// When it was not open.
    pub fn remove_vtep(&mut self, address: IpAddr, port: u16) -> Result<(), RouterError> {
        self.pinholes.remove_vtep(address, port)
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

    /// Says that tunnels end at this address and port, or no longer: the kernel gets no packets
    /// to there from pods.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_node(&mut self, address: IpAddr, port: u16, there: bool) -> Result<(), RouterError> {
        self.pinholes.set_node(address, port, there)
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
    /// When it was not open.
    pub fn expel_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        self.pinholes.remove_pod(vni, address)
    }

    /// Opens the pods' pinholes for a prefix, or (`to_workers` false) leaves an
    /// address inside one to the kernel.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_cluster_prefix(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
        to_workers: bool,
    ) -> Result<(), RouterError> {
        self.pinholes.add_prefix(vni, address, length, to_workers)
    }

    /// Takes back [`add_cluster_prefix`](Self::add_cluster_prefix).
    ///
    /// # Errors
    /// When there was no such prefix.
    pub fn remove_cluster_prefix(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
    ) -> Result<(), RouterError> {
        self.pinholes.remove_prefix(vni, address, length)
    }

    /// Waits until every worker has begun a batch since the call, and then once more, until what
    /// they had handed to each other is sent (at most two seconds).
    pub fn quiesce(&self) {
        let patience = Instant::now() + PATIENCE;
        let rounds = if self.workers.len() > 1 { 2 } else { 1 };
        for worker in self
            .workers
            .iter()
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

    /// From now on nobody is waited for as long as at the start, and what a predecessor left on
    /// other devices is removed: the number of such links is returned.
    pub fn started(&mut self) -> usize {
        self.busy_patience = LATER_PATIENCE;
        self.pinholes.drop_strangers()
    }

    /// With [`RouterOptions::fail_closed`]: when this router is dropped, its programs stay, and
    /// drop what was the workers'.
    pub fn stay_closed(&mut self) {
        self.pinholes.stays_closed = true;
    }

    /// A port's number is nobody's from now on: what it has carried is counted with that of all
    /// others that have gone.
    pub fn retire(&mut self, port: PortId) {
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
    /// XDP first, so that no packet comes any more; then workers and sockets.
    fn drop(&mut self) {
        self.pinholes.let_go();
        self.ports.iter().flatten().for_each(Attached::restore);
        for worker in &self.workers {
            worker.shared.stop.store(true, Ordering::Relaxed);
            worker.shared.sleeper.wake();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
        // What was on its way between them has its count, too.
        for (mailbox, worker) in self.mailboxes.iter().zip(&self.workers) {
            mailbox.abandon(&worker.shared.counters);
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
