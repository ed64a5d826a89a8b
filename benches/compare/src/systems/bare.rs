//! The ceiling of Viaduct's way: AF_XDP sockets with the same rings, batches and options, one thread that polls them,
//! and nothing done to packets but a fixed header pushed or pulled.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use viaduct_router::Frame;
use viaduct_router::xsk::{
    Area, Depth, FrameId, Loans, MAX_DEPTH, Packet, RESERVE, RingSizes, Umem, Visit, Xsk, frames,
    share,
};

use super::programs::{Programs, UNDERLAY_PLACE, XDP, index, places};
use super::{OUTER_LEN, Outer, Setup, System};
use crate::bed::{self, Bed, GATEWAY_MAC, MOST_PODS, Pod};
use crate::plan::Case;

// As in the router: `router/src/router`, `router/src/worker`.
const FRAME_SIZE: u32 = 2048;
const UNDERLAY_RING: u32 = 2048;
const POD_RING: u32 = 512;
const BATCH: usize = 64;
const SPREAD_BATCH: usize = 512;
const PER_CALL: usize = 8;
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread and its owner share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    paused: AtomicBool,
    /// Sent into the tunnel, and out of it.
    sent: [AtomicU64; 2],
}

/// The running forwarder.
pub(crate) struct Bare {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    // Behind the thread: detached when that has ended.
    _programs: Programs,
}

impl Bare {
    pub(crate) fn start(bed: &Bed, setup: &Setup) -> anyhow::Result<Self> {
        let pods = usize::try_from(MOST_PODS)?;
        let frames = u32::try_from(frames(pods))?;
        // In the node's namespace: the UMEM's own socket looks for its interface where it was made.
        let (area, free) = bed
            .node()
            .with(|| Ok(Area::new(frames, FRAME_SIZE, MAX_DEPTH)?))
            .context("no packet memory")?;
        let mut programs = Programs::load(XDP, &["to_socket"])?;
        let mut links = Vec::new();
        for (place, interface) in places(&bed.as_node()) {
            let underlay = place == UNDERLAY_PLACE;
            let transmit = if underlay { UNDERLAY_RING } else { POD_RING };
            let (umem, name) = (area.umem(), &interface);
            let (socket, ifindex) = bed
                .node()
                .with(|| {
                    let socket = bind(&umem, name, transmit)?;
                    Ok((socket, index(name)?))
                })
                .with_context(|| format!("cannot bind to {interface}"))?;
            programs.set_socket(place, ifindex, &socket)?;
            programs.attach("to_socket", &interface, &bed.node())?;
            links.push(Link {
                socket,
                depth: Depth::new(underlay, share(pods), 1),
            });
        }
        let macs = bed.shape.pods().map(ethernet).collect();
        let forwarder = Forwarder {
            area,
            free,
            links,
            pods: macs,
            outer: Outer::new(&bed::NODE_VTEP, &bed::far_vtep(0))?,
            loans: Loans::new(),
            began: Instant::now(),
        };
        let shared = Arc::new(Shared::default());
        let (seen, cpu) = (Arc::clone(&shared), setup.cpu);
        let thread = std::thread::Builder::new()
            .name("bare".to_owned())
            .spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
                forwarder.run(&seen);
            })
            .map_err(|e| anyhow!("no thread: {e}"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            _programs: programs,
        })
    }
}

impl System for Bare {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        let sent = &self.shared.sent[usize::from(case == Case::Decap)];
        Ok(Some(sent.load(Ordering::Relaxed)))
    }

    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        self.shared.paused.store(pause, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As the router does it: what was closed just now may hold a queue for some milliseconds more.
fn bind(umem: &Umem, interface: &str, transmit: u32) -> anyhow::Result<Xsk> {
    let sizes = RingSizes {
        area: MAX_DEPTH,
        receive: MAX_DEPTH,
        transmit,
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match Xsk::bind(umem, interface, 0, sizes) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return Ok(result?),
        }
    }
}

/// The Ethernet addresses of what is delivered to a pod.
fn ethernet(pod: Pod) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&pod.mac().0);
    bytes[6..].copy_from_slice(&GATEWAY_MAC.0);
    bytes
}

struct Link {
    socket: Xsk,
    depth: Depth,
}

struct Forwarder {
    area: Area,
    free: Vec<FrameId>,
    /// The pods', and behind them the underlay's.
    links: Vec<Link>,
    pods: Vec<[u8; 12]>,
    outer: Outer,
    loans: Loans,
    began: Instant,
}

impl Forwarder {
    fn run(mut self, shared: &Shared) {
        while !shared.stop.load(Ordering::Relaxed) {
            if shared.paused.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let mut sent = [0; 2];
            let now = self.began.elapsed();
            for link in 0..self.links.len() {
                self.serve(link, now, &mut sent);
            }
            for (total, sent) in shared.sent.iter().zip(sent) {
                if sent > 0 {
                    total.fetch_add(sent, Ordering::Relaxed);
                }
            }
            for link in &mut self.links {
                if link.socket.unsent() {
                    link.socket.flush();
                }
            }
        }
    }

    fn serve(&mut self, at: usize, now: Duration, sent: &mut [u64; 2]) {
        let underlay = self.links.len() - 1;
        self.collect(at);
        let (mut received, mut destinations, mut drained) = (0, 0, false);
        let most = if at == underlay { SPREAD_BATCH } else { BATCH };
        while received < BATCH.max(destinations * PER_CALL).min(most) {
            let Some(mut packet) = self.links[at].socket.receive(&self.area) else {
                drained = true;
                break;
            };
            received += 1;
            let to = if at == underlay {
                self.pull(&mut packet)
            } else {
                let outer = &self.outer;
                let pushed = self.area.edit(&mut packet, |frame| push(frame, outer));
                pushed.flatten().map(|()| underlay)
            };
            let Some(to) = to else {
                self.free.push(packet.into_frame());
                continue;
            };
            let first = !self.links[to].socket.holds();
            if !self.links[to].socket.has_room() {
                self.collect(to);
                self.links[to].socket.flush();
            }
            match self.links[to].socket.transmit(packet) {
                Ok(()) => {
                    destinations += usize::from(first);
                    sent[usize::from(at == underlay)] += 1;
                }
                Err(packet) => self.free.push(packet.into_frame()),
            }
        }
        self.refill(at, received > 0, drained, now);
    }

    fn collect(&mut self, at: usize) {
        while let Some(frame) = self.links[at].socket.complete(&self.area) {
            self.free.push(frame);
        }
    }

    /// Which pod it is for, by the inner destination's last byte.
    fn pull(&self, packet: &mut Packet) -> Option<usize> {
        let pods = &self.pods;
        let pulled = self.area.edit(packet, |frame| {
            frame.pull(OUTER_LEN)?;
            let packet = frame.packet();
            let place = usize::from(packet.get(33)?.checked_sub(2)?);
            let addresses = pods.get(place)?;
            packet.get_mut(..12)?.copy_from_slice(addresses);
            Some(place)
        });
        pulled.flatten()
    }

    fn refill(&mut self, at: usize, received: bool, drained: bool, now: Duration) {
        let Link { socket, depth } = &mut self.links[at];
        if received {
            socket.receive_done();
        }
        let visit = Visit {
            now: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            drained,
            limited: None,
            filled: socket.filled(),
            receiving: socket.receiving(),
        };
        let missing = depth.missing(&visit, &mut self.loans);
        if missing == 0 {
            return;
        }
        for _ in 0..missing {
            if socket.receiving() >= depth.own() && self.free.len() <= RESERVE {
                break;
            }
            let Some(frame) = self.free.pop() else {
                break;
            };
            socket.fill(&self.area, frame);
        }
        depth.topped_up(socket.filled(), socket.receiving(), &mut self.loans);
        socket.fill_done();
    }
}

fn push(frame: &mut Frame<'_>, outer: &Outer) -> Option<()> {
    frame.push(OUTER_LEN)?;
    outer.write(frame.packet());
    Some(())
}
