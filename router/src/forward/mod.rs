//! From a received frame to a verdict. Reads no clock and does no I/O, so that
//! tests, benches and the workers run the same code.
#![allow(
    clippy::inline_always,
    reason = "a call between stages copies what was parsed, at a third of a packet's time (./dev bench)"
)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod from_pod;
mod from_underlay;
mod originate;
mod parse;
mod route;

use std::marker::PhantomData;

use viaduct_encap::icmp::IcmpError;
use viaduct_fib::{Fib, NetworkId, PortId};

pub(crate) use self::originate::complete;
pub use self::originate::{answer, originate, prepare_fragments};
use crate::flows::{Flows, FromPod, FromUnderlay, Looked, Side};
use crate::frame::Frame;
use crate::limit::Limiter;
use crate::reason::DropReason;
use crate::tick::Tick;

/// The network that the kernel carries too (flannel's way): the first one.
/// A miss in any other is a drop.
pub const DEFAULT_NETWORK: NetworkId = NetworkId(0);

/// What a worker remembers between packets.
#[derive(Debug, Default)]
pub struct WorkerState {
    /// Transport checksums that were finished here.
    pub checksums_finished: u64,
    /// Packets that went through all stages: nothing was known of their flows.
    pub staged: u64,
    flows: Flows,
    /// What limited ports have had, shared with other workers.
    limiter: Limiter,
}

impl WorkerState {
    /// With a cache of so many flows, rounded up to a power of two (128 bytes each); none, if 0.
    ///
    /// What is cached is of one table, told by its epoch: use a state with one
    /// [`Reader`](viaduct_fib::Reader)'s tables only.
    pub fn new(flows: usize) -> Self {
        Self {
            flows: Flows::new(flows),
            ..Self::default()
        }
    }

    /// As [`new`](Self::new), with the rates that all workers share.
    pub(crate) fn with_limiter(flows: usize, limiter: Limiter) -> Self {
        Self {
            limiter,
            ..Self::new(flows)
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Transmit on this port.
    Send(PortId),
    /// Leave to the kernel, and why. The frame begins with the IP header, and
    /// nothing in the packet has changed.
    Punt(DropReason),
    /// To be worked off outside the hot loop; the frame as with `Punt`.
    Exception(Exception),
    /// Count and release.
    Drop(DropReason),
}

/// What takes more than a few header fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// Cut into IPv4 fragments of at most `mtu` bytes each.
    Fragment {
        /// The packet's network.
        network: NetworkId,
        /// Bytes of IP packet that the way takes.
        mtu: u16,
    },
    /// Drop for `reason`, and tell the sender.
    IcmpError {
        /// The packet's network.
        network: NetworkId,
        /// What the sender is told.
        error: IcmpError,
        /// What the drop is counted as.
        reason: DropReason,
    },
}

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// A stage passes on a value or ends with the frame's verdict.
type Stage<T> = Result<T, Verdict>;

/// Decides about one frame and rewrites it in place.
///
/// Stages, from a pod: parse, source check, [service translation, egress policy],
/// route, encapsulate. From the underlay: outer check, decapsulate,
/// [un-translate, ingress policy], deliver. Those in brackets are empty today.
/// What they have decided for a flow is done to its next packets without them.
#[inline]
pub fn forward(
    fib: &Fib,
    state: &mut WorkerState,
    frame: &mut Frame<'_>,
    ingress: PortId,
    tick: Tick,
) -> Verdict {
    if ingress == PortId::UNDERLAY {
        one(&mut underlay_pipeline(fib, state, tick), frame)
    } else {
        one(&mut pod_pipeline(fib, state, ingress, tick), frame)
    }
}

fn one<S: Side>(pipeline: &mut Pipeline<'_, S>, frame: &mut Frame<'_>) -> Verdict {
    let prefetched = pipeline.prefetch(frame);
    pipeline.forward(frame, prefetched)
}

/// [`forward`] for a batch of frames from one side, by one table and at one time.
pub struct Pipeline<'a, S> {
    fib: &'a Fib,
    state: &'a mut WorkerState,
    ingress: PortId,
    tick: Tick,
    _side: PhantomData<S>,
}

/// For frames from a pod.
pub fn pod_pipeline<'a>(
    fib: &'a Fib,
    state: &'a mut WorkerState,
    ingress: PortId,
    tick: Tick,
) -> Pipeline<'a, FromPod> {
    Pipeline::new(fib, state, ingress, tick)
}

/// For frames from the underlay.
pub fn underlay_pipeline<'a>(
    fib: &'a Fib,
    state: &'a mut WorkerState,
    tick: Tick,
) -> Pipeline<'a, FromUnderlay> {
    Pipeline::new(fib, state, PortId::UNDERLAY, tick)
}

impl<'a, S: Side> Pipeline<'a, S> {
    #[inline(always)]
    fn new(fib: &'a Fib, state: &'a mut WorkerState, ingress: PortId, tick: Tick) -> Self {
        state.flows.follow(fib.epoch());
        Self {
            fib,
            state,
            ingress,
            tick,
            _side: PhantomData,
        }
    }

    /// Looks the flow of a frame up and begins to fetch what is known of it. Done for a whole
    /// batch before the first of it is forwarded, it makes the batch wait for memory once.
    #[inline(always)]
    pub fn prefetch(&mut self, frame: &mut Frame<'_>) -> Prefetched {
        Prefetched(self.state.flows.look_up::<S>(frame.packet()))
    }

    /// Decides about a frame that was [`prefetch`](Self::prefetch)ed and has not changed since.
    #[inline(always)]
    pub fn forward(&mut self, frame: &mut Frame<'_>, prefetched: Prefetched) -> Verdict {
        let finished = &mut self.state.checksums_finished;
        let flows = &self.state.flows;
        match flows.answer::<S>(prefetched.0, frame, self.ingress, finished) {
            Some(egress) => Verdict::Send(egress),
            None => self.stages(frame, prefetched.0),
        }
    }

    /// All stages, for a packet whose flow is not known, or that is not as its flow's others.
    #[inline(never)]
    fn stages(&mut self, frame: &mut Frame<'_>, looked: Looked) -> Verdict {
        let (fib, ingress, tick) = (self.fib, self.ingress, self.tick);
        let state = &mut *self.state;
        let key = state.flows.key::<S>(frame.packet(), ingress);
        if let Some(key) = &key {
            let finished = &mut state.checksums_finished;
            let egress = state.flows.answer_other::<S>(looked, key, frame, finished);
            if let Some(egress) = egress {
                return Verdict::Send(egress);
            }
        }
        state.staged = state.staged.wrapping_add(1);
        let result = if S::UNDERLAY {
            from_underlay::decide(fib, state, frame)
        } else {
            from_pod::decide(fib, state, frame, ingress, tick)
        };
        match result {
            Ok(decision) => {
                if let Some(key) = key {
                    state
                        .flows
                        .learn::<S>(looked, key, decision, frame.packet());
                }
                Verdict::Send(decision.egress)
            }
            Err(verdict) => verdict,
        }
    }
}

/// A frame whose flow was looked up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefetched(Looked);
