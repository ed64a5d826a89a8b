//! Whether workers and the XDP programs' maps do what they should.

use std::time::Duration;

use serde_json::{Value, json};
use viaduct_fib::PortId;
use viaduct_router::{Liveness, Router, WorkerHealth};

use super::View;
use super::problems::Problem;

/// What is wrong with them. The node is ready when the workers' heartbeats are fresh, their threads are there and routes
/// are learned. A map that is full concerns single entries.
pub(super) fn problems(view: &View<'_>) -> Vec<Problem> {
    let router = view.router.lock();
    let workers = router.health();
    let maps = router.problems();
    drop(router);
    let silent = (0..)
        .zip(&workers)
        .filter_map(|(index, worker)| worker_problem(index, worker));
    let mut all: Vec<_> = silent
        .map(|text| Problem::serious("worker", text, None))
        .collect();
    if view.learning {
        let text = "no other node has been heard of since the start".to_owned();
        all.push(Problem::serious("gossip", text, None));
    }
    let maps = maps.into_iter();
    all.extend(maps.map(|text| Problem::minor("worker", text, None)));
    all
}

/// Why not all of a port's packets are the workers', as far as that is the workers' doing.
pub(super) fn port_problem(
    router: &Router,
    workers: &[WorkerHealth],
    port: PortId,
) -> Option<String> {
    let attached = router.attached(port)?;
    // Queue q belongs to worker q modulo their number. With a hook in tc a flow may be any worker's.
    let queues = match attached.mode {
        Some(_) => usize::try_from(attached.queues).unwrap_or(0),
        None => workers.len(),
    };
    let mut owners = (0..).zip(workers).take(queues);
    owners.find_map(|(index, worker)| worker_problem(index, worker))
}

fn worker_problem(index: usize, worker: &WorkerHealth) -> Option<String> {
    match (worker.state, worker.heartbeat_age) {
        (Liveness::Alive, _) => None,
        (Liveness::Ended, _) => Some(format!(
            "worker {index} has panicked: {}",
            worker.panic.as_deref().unwrap_or("it said nothing")
        )),
        (Liveness::Silent, None) => Some(format!(
            "worker {index} shows no life, or waits for a worker that does not: the kernel carries its packets"
        )),
        (Liveness::Silent, Some(age)) => Some(format!(
            "worker {index} has shown no life for {:.1} s: the kernel carries its packets",
            age.as_secs_f64()
        )),
    }
}

/// A worker's health as JSON.
pub(super) fn worker(worker: &WorkerHealth) -> Value {
    let state = match worker.state {
        Liveness::Alive => "alive",
        Liveness::Silent => "silent",
        Liveness::Ended => "ended",
    };
    let age = worker.heartbeat_age.as_ref().map(Duration::as_millis);
    json!({
        "state": state,
        "heartbeat_age_ms": age.and_then(|ms| u64::try_from(ms).ok()),
        "panic": worker.panic,
    })
}
