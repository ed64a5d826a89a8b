//! What is counted, by name, and the run of one case below callgrind.

use std::hint::black_box;

use crate::lane::{self, Case, Flows, Lane};
use crate::ring::{self, Ring};

/// The function within which callgrind counts.
pub(crate) const COUNTED: &str = "*counts::cases::counted*";
/// Batches that are counted.
const BATCHES: u32 = 64;
/// Batches before those.
const WARM: u32 = 4;
/// Packets that are counted.
pub(crate) const PACKETS: u32 = BATCHES * BATCH;
const BATCH: u32 = 64;
const _: () = assert!(lane::BATCH == BATCH as usize && ring::BATCH == BATCH as usize);

const ROUTES: [u32; 2] = [10, 10_000];
const SIZES: [usize; 2] = [64, 1450];

/// What can be counted.
#[derive(Clone, Copy)]
enum What {
    Pipeline(Case, usize, u32, Flows),
    HandOff(usize),
}

impl What {
    /// As in the criterion benches.
    fn name(self) -> String {
        match self {
            Self::Pipeline(case, size, routes, flows) => {
                format!("{case:?} {size} B, {routes} routes, {flows:?}").to_lowercase()
            }
            Self::HandOff(size) => format!("hand-off {size} B").to_lowercase(),
        }
    }
}

/// A batch with all that it needs.
enum Subject {
    Lane(Box<Lane>),
    Ring(Ring),
}

impl Subject {
    fn new(what: What) -> Self {
        match what {
            What::Pipeline(case, size, routes, flows) => {
                let most = (WARM + BATCHES) * BATCH;
                Self::Lane(Box::new(Lane::with(case, size, routes, flows, most)))
            }
            What::HandOff(size) => Self::Ring(Ring::new(size)),
        }
    }

    /// What is between two batches, not counted.
    fn prepare(&mut self) {
        if let Self::Lane(lane) = self {
            lane.restore();
        }
    }

    fn work(&mut self) {
        match self {
            Self::Lane(lane) => lane.forward(),
            Self::Ring(ring) => ring.pass(),
        }
    }
}

/// Callgrind knows it by its name.
#[inline(never)]
fn counted(subject: &mut Subject) {
    subject.work();
    // So that the work is no jump out of this function, but a call.
    black_box(subject);
}

fn all() -> Vec<What> {
    let mut all = Vec::new();
    for case in [Case::Encapsulate, Case::Decapsulate] {
        for size in SIZES {
            for routes in ROUTES {
                for flows in [Flows::Hot, Flows::Random] {
                    all.push(What::Pipeline(case, size, routes, flows));
                }
            }
        }
    }
    for case in [Case::EncapsulatePartial, Case::Local, Case::Drop] {
        for size in SIZES {
            all.push(What::Pipeline(case, size, 10, Flows::Hot));
        }
    }
    all.extend(SIZES.map(What::HandOff));
    all
}

/// The names of all cases.
pub(crate) fn names() -> Vec<String> {
    all().into_iter().map(What::name).collect()
}

/// Runs one case; who calls it counts. False when there is no such case.
pub(crate) fn run(name: &str) -> bool {
    let Some(what) = all().into_iter().find(|w| w.name() == name) else {
        return false;
    };
    let mut subject = Subject::new(what);
    for _ in 0..WARM {
        subject.prepare();
        subject.work();
    }
    for _ in 0..BATCHES {
        subject.prepare();
        counted(&mut subject);
    }
    true
}
