//! Sending by AF_XDP: what arrives at a veth's other end is an skb, as from a pod.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use viaduct_router::xsk::{Area, FrameId, RingSizes, Xsk};

use crate::traffic::{Flow, Header, Origin, STAMP_LEN, Traffic};

const FRAME_SIZE: u32 = 2048;
/// Entries of a transmit ring.
const RING: u32 = 512;
/// Packets between two looks at the clock and the rings.
const BATCH: usize = 64;
/// The same for each interface, flat out: else many of them would mean a system call for each packet, which is not what
/// a busy pod does.
const PER_INTERFACE: usize = 16;
/// Batches that a sleepy generator may make up for.
const SLEEPY_BATCHES: u64 = 4;
/// How long a sleepy generator sleeps at most.
const LONGEST_PAUSE: Duration = Duration::from_micros(500);
/// How long frames may take to come back in the end, and a queue to be free in the beginning.
const PATIENCE: Duration = Duration::from_millis(200);

/// Nanoseconds of `CLOCK_MONOTONIC`, which is `bpf_ktime_get_ns`.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    time.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

/// What was sent, to be read while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) packets: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) first: AtomicU64,
    pub(crate) last: AtomicU64,
}

/// Sockets on the first queue of each interface, and the frames to send.
pub(crate) struct Sockets {
    area: Area,
    free: Vec<FrameId>,
    queues: Vec<Xsk>,
    /// By interface: one for each length.
    headers: Vec<Vec<Header>>,
    flows: Vec<Flow>,
    pattern: &'static [usize],
    header_len: usize,
    inner: usize,
    run: u32,
    flow: usize,
    turn: usize,
}

impl Sockets {
    /// Binds them. To be called in the interfaces' namespace.
    pub(crate) fn bind(run: u32, traffic: &Traffic, origins: &[Origin]) -> anyhow::Result<Self> {
        let count = u32::try_from(origins.len())?;
        let frames = (count * RING).max(1024).next_power_of_two();
        let (area, free) = Area::new(frames, FRAME_SIZE, RING).context("no packet memory")?;
        let mut queues = Vec::with_capacity(origins.len());
        for origin in origins {
            let socket = bind(&area, &origin.name);
            queues.push(socket.with_context(|| {
                format!(
                    "cannot send on {}: is another program bound to it?",
                    origin.name
                )
            })?);
        }
        let header = |origin: &Origin| {
            let lengths = traffic.lengths(origin).into_iter();
            lengths
                .map(|length| traffic.header(origin, length))
                .collect()
        };
        Ok(Self {
            area,
            free,
            queues,
            headers: origins.iter().map(header).collect(),
            flows: (0..traffic.flows).map(|n| traffic.flow(n, count)).collect(),
            pattern: traffic.pattern(),
            header_len: traffic.header_len(),
            inner: traffic.inner(),
            run,
            flow: 0,
            turn: 0,
        })
    }

    /// Sends until told to stop, a packet each `interval` (1/256 ns; 0: flat out).
    pub(crate) fn generate(&mut self, interval: u64, sleepy: bool, stop: &AtomicBool, sent: &Sent) {
        // Whoever sleeps may oversleep.
        let batches = if sleepy { SLEEPY_BATCHES } else { 1 };
        let backlog = interval.saturating_mul(BATCH as u64 * batches);
        let most = match interval {
            0 => BATCH.max(PER_INTERFACE * self.queues.len()),
            _ => BATCH,
        };
        let mut next = 0;
        sent.first.store(0, Ordering::Relaxed);
        while !stop.load(Ordering::Relaxed) {
            self.collect();
            let time = now();
            next = next.max((time << 8).saturating_sub(backlog));
            let due = (time << 8).saturating_sub(next).checked_div(interval);
            let count = due.unwrap_or(u64::MAX).min(most as u64);
            next += count * interval;
            let (mut packets, mut bytes) = (0, 0);
            for _ in 0..count {
                let Some(length) = self.send() else {
                    break;
                };
                packets += 1;
                bytes += u64::from(length);
            }
            // Also what an earlier call left, when the socket had as much under way as it may.
            for socket in self
                .queues
                .iter_mut()
                .filter_map(|s| s.unsent().then_some(s))
            {
                socket.flush();
            }
            if packets == 0 {
                if sleepy {
                    std::thread::sleep(pause(interval));
                } else {
                    std::hint::spin_loop();
                }
                continue;
            }
            if sent.first.load(Ordering::Relaxed) == 0 {
                sent.first.store(time, Ordering::Relaxed);
            }
            sent.last.store(now(), Ordering::Relaxed);
            sent.packets.fetch_add(packets, Ordering::Relaxed);
            sent.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.finish();
    }

    /// Everything in the rings leaves.
    fn finish(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.queues.iter_mut().any(Xsk::unsent) && Instant::now() < until {
            for socket in &mut self.queues {
                socket.flush();
            }
            self.collect();
        }
    }

    fn collect(&mut self) {
        for socket in &mut self.queues {
            while let Some(frame) = socket.complete(&self.area) {
                self.free.push(frame);
            }
        }
    }

    /// Puts the next packet into its interface's ring; its length. `None` when there is no room, or no frame.
    fn send(&mut self) -> Option<u32> {
        let number = self.flow;
        let flow = self.flows.get_mut(number)?;
        let interface = usize::from(flow.interface);
        let header = &self.headers.get(interface)?[self.pattern[self.turn]];
        let socket = self.queues.get_mut(interface)?;
        let mut packet = self.area.empty(self.free.pop()?);
        let (inner, header_len, run) = (self.inner, self.header_len, self.run);
        let placed = self.area.edit(&mut packet, |frame| {
            let length = usize::try_from(header.length).ok()?;
            frame.place(frame.start(), length)?;
            write(frame.packet(), header, flow, inner, header_len);
            let stamp = frame.packet().get_mut(header_len..header_len + STAMP_LEN)?;
            stamp[..4].copy_from_slice(&run.to_ne_bytes());
            stamp[4..8].copy_from_slice(&u32::try_from(number).ok()?.to_ne_bytes());
            stamp[8..12].copy_from_slice(&flow.sequence.to_ne_bytes());
            stamp[12..].copy_from_slice(&now().to_ne_bytes());
            Some(())
        });
        debug_assert!(placed.flatten().is_some(), "a frame holds every packet");
        if let Err(packet) = socket.transmit(packet) {
            self.free.push(packet.into_frame());
            return None;
        }
        flow.sequence = flow.sequence.wrapping_add(1);
        self.flow = (number + 1) % self.flows.len();
        self.turn = (self.turn + 1) % self.pattern.len();
        Some(header.length)
    }
}

/// A socket that is closed holds its queue for some milliseconds more: there may have been one just now.
fn bind(area: &Area, interface: &str) -> io::Result<Xsk> {
    let sizes = RingSizes {
        area: RING,
        receive: RING,
        transmit: RING,
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match Xsk::bind(&area.umem(), interface, 0, sizes) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Half of what a batch takes at this interval (1/256 ns): what is missed meanwhile is made up for.
fn pause(interval: u64) -> Duration {
    Duration::from_nanos(interval.saturating_mul(BATCH as u64 / 2) >> 8).min(LONGEST_PAUSE)
}

/// The headers of a flow's packet, as `generate` of pktgen.bpf.c writes them.
fn write(packet: &mut [u8], header: &Header, flow: &Flow, inner: usize, len: usize) {
    packet[..len].copy_from_slice(&header.bytes[..len]);
    let ip = inner + 14;
    packet[ip + 16..ip + 20].copy_from_slice(&flow.destination);
    let [a, b, c, d] = flow.destination;
    let words = [[a, b], [c, d]].map(|word| u32::from(u16::from_ne_bytes(word)));
    let sum = u64::from(header.sum) + u64::from(words[0]) + u64::from(words[1]);
    let checksum = !viaduct_encap::checksum::fold(sum);
    packet[ip + 10..ip + 12].copy_from_slice(&checksum.to_ne_bytes());
    packet[ip + 20..ip + 22].copy_from_slice(&flow.source_port);
    packet[ip + 22..ip + 24].copy_from_slice(&flow.destination_port);
    if inner > 0 {
        packet[34..36].copy_from_slice(&flow.outer_port);
    }
}
