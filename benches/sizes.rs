//! The pipeline in memory: the real `forward()` on a real table, batches of 64
//! frames in a UMEM's layout. Times are for one packet.
//!
//! Sizes are those of inner IP packets. Between two batches the headers are put
//! back, untimed and the same bytes for every size; the payload stays as it is.
//! Sizes take turns batch by batch, so that a noisy machine is as noisy for all.
#![allow(
    clippy::cast_precision_loss,
    reason = "sizes and counts far below 2^52"
)]

#[path = "../router/tests/fixture/mod.rs"]
mod fixture;

use std::hint::black_box;
use std::time::{Duration, Instant};

use fixture::{HEADROOM, PORT, chunk, node};
use viaduct_encap::checksum::{fold, pseudo_header};
use viaduct_encap::{IpPacket, ethernet};
use viaduct_fib::{PortId, Reader};
use viaduct_router::{Frame, Tick, Verdict, WorkerState, forward};

const BATCH: usize = 64;
const FRAME_SIZE: usize = 2048;
/// Where the kernel puts a packet: 256 bytes of its own, and our headroom.
const START: usize = 384;
/// Bytes put back between batches: outer and inner headers.
const HEADERS: usize = 128;
const IP_UDP: usize = 28;
const SIZES: [usize; 3] = [64, 512, 1450];
const ROUNDS: usize = 20_000;
/// A case by the size of its packet.
type Make = fn(usize) -> Case;
/// Name, packet by size, and whether its checksum has to be finished.
const CASES: [(&str, Make, bool); 4] = [
    ("encapsulate", encapsulate, false),
    ("encapsulate, partial checksum", encapsulate_partial, true),
    ("decapsulate", decapsulate, false),
    ("local", local, false),
];

/// One packet as a router receives it, and where it comes from.
struct Case {
    packet: Vec<u8>,
    from: PortId,
    verdict: Verdict,
}

fn from_pod(size: usize, dst: [u8; 4]) -> Vec<u8> {
    let (chunk, len) = chunk([10, 244, 1, 2], dst, 64, size - IP_UDP);
    chunk[HEADROOM..HEADROOM + len].to_vec()
}

fn encapsulate(size: usize) -> Case {
    Case {
        packet: from_pod(size, [10, 244, 2, 2]),
        from: PORT,
        verdict: Verdict::Send(PortId::UNDERLAY),
    }
}

/// As the pod's kernel leaves it when it believes that hardware finishes it.
fn encapsulate_partial(size: usize) -> Case {
    let mut case = encapsulate(size);
    let ip = &mut case.packet[ethernet::HEADER_LEN..];
    let p = IpPacket::parse(ip, ethernet::IPV4).expect("a packet");
    let mark = fold(pseudo_header(p.src, p.dst, p.protocol, p.len - p.l4_offset));
    ip[26..28].copy_from_slice(&mark.to_be_bytes());
    case
}

fn decapsulate(size: usize) -> Case {
    let (_other, reader) = node(2, true);
    let (mut chunk, len) = chunk([10, 244, 2, 2], [10, 244, 1, 2], 64, size - IP_UDP);
    let mut frame = Frame::new(&mut chunk, HEADROOM, len).expect("inside");
    forward(
        &reader.load(),
        &mut WorkerState::default(),
        &mut frame,
        PORT,
        Tick(0),
    );
    Case {
        packet: frame.packet().to_vec(),
        from: PortId::UNDERLAY,
        verdict: Verdict::Send(PORT),
    }
}

/// To itself: the shortest way between pods of one node.
fn local(size: usize) -> Case {
    Case {
        packet: from_pod(size, [10, 244, 1, 2]),
        from: PORT,
        verdict: Verdict::Send(PORT),
    }
}

/// A batch of frames with one case's packet, and the times of its batches.
struct Lane {
    size: usize,
    case: Case,
    area: Vec<u8>,
    times: Vec<Duration>,
}

impl Lane {
    fn new(size: usize, case: Make) -> Self {
        let case = case(size);
        let mut area = vec![0u8; BATCH * FRAME_SIZE];
        for chunk in area.chunks_exact_mut(FRAME_SIZE) {
            chunk[START..START + case.packet.len()].copy_from_slice(&case.packet);
        }
        Self {
            size,
            case,
            area,
            times: Vec::with_capacity(ROUNDS),
        }
    }

    /// Forwards one batch, as a worker's turn does.
    fn turn(&mut self, reader: &Reader, state: &mut WorkerState) {
        let packet = &self.case.packet;
        let headers = &packet[..HEADERS.min(packet.len())];
        for chunk in self.area.chunks_exact_mut(FRAME_SIZE) {
            chunk[START..START + headers.len()].copy_from_slice(headers);
        }
        let began = Instant::now();
        let table = reader.load();
        for chunk in self.area.chunks_exact_mut(FRAME_SIZE) {
            let mut frame = Frame::new(chunk, START, packet.len()).expect("inside");
            let verdict = forward(&table, state, &mut frame, self.case.from, Tick(0));
            assert_eq!(black_box(verdict), self.case.verdict);
        }
        self.times.push(began.elapsed());
    }

    /// Nanoseconds a packet, median over batches.
    fn median(&mut self) -> f64 {
        self.times.sort_unstable();
        self.times[self.times.len() / 2].as_secs_f64() * 1e9 / BATCH as f64
    }
}

fn main() {
    let (_publisher, reader) = node(1, true);
    let mut state = WorkerState::default();
    println!(
        "ns a packet, median of {ROUNDS} batches of {BATCH}; inner packets of {SIZES:?} bytes"
    );
    for (name, case, partial) in CASES {
        let mut lanes = SIZES.map(|size| Lane::new(size, case));
        for _ in 0..ROUNDS {
            for lane in &mut lanes {
                lane.turn(&reader, &mut state);
            }
        }
        let medians = lanes.each_mut().map(Lane::median);
        let (small, large) = (medians[0], medians[SIZES.len() - 1]);
        let bytes = (lanes[SIZES.len() - 1].size - lanes[0].size) as f64;
        let note = if partial {
            format!("{:.3} ns a byte", (large - small) / bytes)
        } else {
            format!("largest / smallest = {:.2}", large / small)
        };
        println!(
            "{name:30} {:8.1} {:8.1} {:8.1}   {note}",
            medians[0], medians[1], medians[2]
        );
    }
}
