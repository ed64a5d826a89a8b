//! The data plane as the control side sees it: workers, links, pinholes.

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

use crate::bpf::{MAX_WORKERS, Outcomes, Pinholes, XdpMode};
use crate::counters::{
    PortTotals, SocketTotals, WorkerCounters, WorkerTotals, port_totals, worker_totals,
};
use crate::error::RouterError;
use crate::sys::{self, Channels};
use crate::tun::Tun;
use crate::worker::{
    Link, MIN_QUOTA, Mailbox, Message, RESERVE, Reply, Shared, Worker, WorkerParts, mailboxes,
};
use crate::xsk::{Area, Granted, Umem, Xsk, statistics};

/// Slots of the socket map for each port.
const QUEUES_PER_PORT: u32 = 64;
/// Entries of every fill and completion ring.
const RING: u32 = 2048;
/// Entries of receive and transmit rings: the underlay's, and a pod's.
const UNDERLAY_RING: u32 = 2048;
const POD_RING: u32 = 512;
/// Bytes of a frame: an Ethernet frame of MTU 1500 with room to spare.
const FRAME_SIZE: u32 = 2048;
/// The largest MTU whose packets fit a frame behind 384 bytes of headroom.
pub const MAX_MTU: u32 = 1600;
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
    /// The most pod ports at a time.
    pub max_ports: usize,
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

/// What a port got from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The device.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Where its XDP program runs.
    pub mode: XdpMode,
    /// Zero-copy, as read back from the sockets.
    pub zero_copy: bool,
    /// Receive queues, all owned by workers.
    pub queues: u32,
}

struct Handle {
    shared: Arc<Shared>,
    umem: Umem,
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
        let tun = Tun::open(PUNT_DEVICE).map_err(|e| {
            RouterError::new(
                "cannot make a TUN device",
                format!("{e}; /dev/net/tun is needed (modprobe tun)"),
            )
        })?;
        let mailboxes = mailboxes(options.workers, FRAME_SIZE as usize)
            .map_err(|e| RouterError::new("cannot prepare the workers", e.to_string()))?;
        let mut router = Self {
            tun: Arc::new(tun),
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
        let frames = (RESERVE + RING as usize + ports * MIN_QUOTA).next_power_of_two();
        let frames = u32::try_from(frames).map_err(io::Error::other)?;
        let (area, frames) = Area::new(frames, FRAME_SIZE, RING)?;
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
        let worker = WorkerParts {
            index,
            shared: Arc::clone(&shared),
            mailboxes: Arc::clone(&self.mailboxes),
            reader: readers.reader(),
            area,
            frames,
            ports,
            tun: Arc::clone(&self.tun),
            beats: (0..self.options.workers)
                .map(|worker| self.pinholes.beat(worker))
                .collect(),
            adaptive: self.options.adaptive,
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
            thread: Some(thread),
        })
    }

    /// Binds sockets to every queue of a device, gives them to the workers and
    /// attaches XDP. `vni` is that of a pod's network; the underlay has none and
    /// has to be first.
    ///
    /// # Errors
    /// Says what refused; the device is as it was.
    pub fn attach(
        &mut self,
        port: PortId,
        interface: &str,
        ifindex: u32,
        vni: Option<Vni>,
    ) -> Result<Attached, RouterError> {
        let doing = || format!("cannot attach {interface}");
        let place = usize::from(port.0);
        match self.ports.get(place) {
            None => {
                let why = format!(
                    "there are {} ports already; raise workers.max_ports",
                    self.options.max_ports
                );
                return Err(RouterError::new(doing(), why));
            }
            Some(Some(other)) => {
                return Err(RouterError::new(
                    doing(),
                    format!("{port} is taken by {}", other.interface),
                ));
            }
            Some(None) => {}
        }
        let channels = self.queues(interface, vni.is_none())?;
        let queues = channels.rx;
        let base = u32::from(port.0).saturating_mul(QUEUES_PER_PORT);
        let mut links = self.bind(port, interface, channels, vni.is_none())?;
        let zero_copy = links
            .iter()
            .flat_map(|l| &l.queues)
            .all(|x| x.granted() == Granted { zero_copy: true });
        self.register(base, queues, ifindex, vni, &links)?;
        if let Some(sockets) = self.sockets.get_mut(place) {
            sockets.extend(links.iter().flat_map(|l| &l.queues).map(Xsk::fd));
        }
        for (index, link) in links.drain(..).enumerate() {
            let given = self.give(index, link);
            if let Err(e) = given {
                self.withdraw(port, ifindex);
                return Err(e);
            }
        }
        let program = if vni.is_some() {
            "viaduct_pod"
        } else {
            "viaduct_underlay"
        };
        let mode = match self.pinholes.attach(
            program,
            interface,
            ifindex,
            self.options.xdp_mode,
            self.busy_patience,
        ) {
            Ok(mode) => mode,
            Err(e) => {
                self.withdraw(port, ifindex);
                return Err(e);
            }
        };
        let attached = Attached {
            interface: interface.to_owned(),
            ifindex,
            mode,
            zero_copy,
            queues,
        };
        if let Some(p) = self.ports.get_mut(place) {
            *p = Some(attached.clone());
        }
        Ok(attached)
    }

    /// The device's queues, each of which some worker can own.
    fn queues(&self, interface: &str, underlay: bool) -> Result<Channels, RouterError> {
        let doing = || format!("cannot own the queues of {interface}");
        let channels =
            sys::channels(interface).map_err(|e| RouterError::new(doing(), e.to_string()))?;
        let queues = channels.rx;
        let most = self
            .options
            .max_queues
            .filter(|_| underlay)
            .unwrap_or(QUEUES_PER_PORT)
            .min(QUEUES_PER_PORT);
        if queues > most {
            let why = format!(
                "it has {queues} receive queues and at most {most} would have an owner; the others would take the slow path \
                 unseen. Lower them (ethtool -L {interface}) or raise underlay.queues"
            );
            return Err(RouterError::new(doing(), why));
        }
        Ok(channels)
    }

    /// One link for each worker, with the queues that it owns. Workers that own none which can
    /// send are spread over those that do, and always over the same: a flow keeps its order.
    fn bind(
        &self,
        port: PortId,
        interface: &str,
        channels: Channels,
        underlay: bool,
    ) -> Result<Vec<Box<Link>>, RouterError> {
        let size = if underlay { UNDERLAY_RING } else { POD_RING };
        let mut links = Vec::new();
        let sending = channels.rx.min(channels.tx).max(1) as usize;
        for (index, worker) in self.workers.iter().enumerate() {
            let own = (0..channels.rx).filter(|q| *q as usize % self.workers.len() == index);
            // The kernel sends nothing from a socket on a queue that the device only receives on.
            let senders = own.clone().filter(|q| *q < channels.tx).count();
            let sockets = own.map(|queue| {
                bind_patiently(&worker.umem, interface, queue, size, self.busy_patience).map_err(
                    |e| {
                        RouterError::new(
                            format!("cannot bind AF_XDP to queue {queue} of {interface}"),
                            e.to_string(),
                        )
                    },
                )
            });
            links.push(Box::new(Link {
                port,
                queues: sockets.collect::<Result<_, _>>()?,
                senders,
                via: index % sending,
            }));
        }
        Ok(links)
    }

    /// Puts the sockets into the socket map, and wakes their workers for them.
    fn register(
        &mut self,
        base: u32,
        queues: u32,
        ifindex: u32,
        vni: Option<Vni>,
        links: &[Box<Link>],
    ) -> Result<(), RouterError> {
        let workers = u32::try_from(self.workers.len()).unwrap_or(1);
        for (index, (link, worker)) in (0u32..).zip(links.iter().zip(&self.workers)) {
            for (nth, xsk) in (0u32..).zip(&link.queues) {
                self.pinholes
                    .set_socket(base + index + nth * workers, xsk.fd())?;
                worker.shared.sleeper.watch(xsk.fd()).map_err(|e| {
                    RouterError::new("cannot watch an AF_XDP socket", e.to_string())
                })?;
            }
        }
        self.pinholes
            .set_device(ifindex, base, queues, workers, vni.map_or(0, Vni::get))
    }

    fn give(&mut self, worker: usize, link: Box<Link>) -> Result<(), RouterError> {
        match self.ask(worker, Message::Add(link))? {
            Reply::Added => Ok(()),
            other => Err(unexpected(worker, &other)),
        }
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

    /// Has the workers finish the port's packets, closes its sockets, gets its frames back and
    /// detaches XDP.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub fn detach(&mut self, port: PortId) -> Result<(), RouterError> {
        let Some(attached) = self
            .ports
            .get_mut(usize::from(port.0))
            .and_then(Option::take)
        else {
            return Ok(());
        };
        // First the programs leave the device's packets to the kernel, then the workers finish
        // what they have, then the device is let go: nothing is lost on the way.
        self.withdraw(port, attached.ifindex);
        self.pinholes.detach(attached.ifindex);
        Ok(())
    }

    fn withdraw(&mut self, port: PortId, ifindex: u32) {
        if let Some(sockets) = self.sockets.get_mut(usize::from(port.0)) {
            sockets.clear();
        }
        self.pinholes.remove_device(ifindex);
        // Those that hand over before those that send for them: what is handed over is sent.
        for worker in (0..self.workers.len()).rev() {
            // The sockets are closed here, then their frames can be counted back.
            if let Ok(Reply::Removed(link)) = self.ask(worker, Message::Remove(port)) {
                drop(link);
                let _ = self.ask(worker, Message::Reclaim(port));
            }
        }
    }

    /// Opens the underlay's pinhole for VXLAN to this address and port.
    ///
    /// # Errors
    /// When the map is full.
    pub fn add_vtep(&mut self, address: IpAddr, port: u16) -> Result<(), RouterError> {
        self.pinholes.add_vtep(address, port)
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

fn unexpected(worker: usize, reply: &Reply) -> RouterError {
    RouterError::new(
        format!("worker {worker} gave a wrong answer"),
        format!("{reply:?}"),
    )
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

/// A queue is busy for some milliseconds after its last socket closed.
fn bind_patiently(
    umem: &Umem,
    interface: &str,
    queue: u32,
    size: u32,
    patience: Duration,
) -> io::Result<Xsk> {
    let mut wait = Duration::from_millis(16);
    loop {
        match Xsk::bind(umem, interface, queue, RING, size) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && wait < patience => {
                thread::sleep(wait);
                wait *= 2;
            }
            result => return result,
        }
    }
}
