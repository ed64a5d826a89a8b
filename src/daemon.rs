//! `run`: the only place where both planes meet.

use std::future::pending;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use viaduct_config::{Config, NetworkConfig, OnExit, XdpMode};
use viaduct_control::gossip::Gossip;
use viaduct_control::kernel::Kernel;
use viaduct_control::{Agent, Leftovers, has_slow_path, note_place, preview};
use viaduct_fib::Publisher;
use viaduct_router::{ClusterPrefix, InTc, Liveness, Router, pinned_programs};

use crate::answers::Answers;
use crate::desired::Desired;
use crate::host::Finding;
use crate::limits;
use crate::locks::{NamespaceLock, forget, is_running, lock};
use crate::merged::Merged;
use crate::options::{agent_options, here, in_tc, router_options, vni};
use crate::orchestrator::Orchestrator;
use crate::out::say;
use crate::peers;
use crate::plane::{Plane, SharedRouter};
use crate::preflight;
use crate::socket::ControlSocket;

/// How long the end of a start that was told to stop may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether all workers' threads are there.
const LOOK_AT_WORKERS: Duration = Duration::from_millis(250);

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("cannot start the control thread")
}

/// Runs the router until it is told to stop.
///
/// # Errors
/// What it refuses: then the host is as it was.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        // Signals are caught from here on, so that none can cut a start in two.
        let mut stop = Stop::catch()?;
        let hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        limits::raise();
        let node = &config.node.name;
        let running = is_running(&config.runtime, node);
        refuse(&preflight::findings(config, running))?;
        let _lock = lock(&config.runtime, node)?;
        let result = Box::pin(serve(config, &mut stop, hang_up)).await;
        forget(&config.runtime, node);
        // Says of which namespace the hooks are that are left.
        let pins = config.runtime.pins(node);
        if !config.slow_path.enabled && pinned_programs(&pins).is_empty() {
            let _ = std::fs::remove_file(config.runtime.settings(node));
        }
        result
    })
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
        })
    }

    /// Waits for one of them.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }
}

/// Refuses what cannot work, all of it at once, and says what will be reported as a problem.
fn refuse(findings: &[Finding]) -> anyhow::Result<()> {
    for problem in findings.iter().filter(|finding| !finding.refused) {
        tracing::warn!("{}", problem.text);
    }
    let refused: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.refused)
        .map(|finding| finding.text.as_str())
        .collect();
    ensure!(refused.is_empty(), refused.join("\n"));
    Ok(())
}

async fn serve(config: &Config, stop: &mut Stop, hang_up: Signal) -> anyhow::Result<()> {
    log_panics();
    let _namespace = NamespaceLock::take(&config.node.name)?;
    let kernel = Kernel::open()?;
    let desired = Desired::at_start(config);
    let mut options = agent_options(config);
    let addresses = preview(&kernel, &options).await?.addresses;
    let pins = config.runtime.pins(&config.node.name);
    let inherited = pinned_programs(&pins).len();
    if inherited > 0 {
        tracing::info!(pins = %pins.display(), links = inherited, "taking over the BPF links of a predecessor");
    }
    if !config.slow_path.enabled {
        // The pins are of this network namespace; nothing else would say so.
        let file = config.runtime.settings(&config.node.name);
        note_place(&file, here()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let gossip = peers::start(desired.config(), addresses)?;

    let (publisher, readers) = Publisher::new();
    let mut router = Router::start(router_options(config), &readers)?;
    open_pinholes(&mut router, config)?;

    let router = SharedRouter::new(router);
    let plane = Plane {
        router: router.clone(),
        cluster: cluster_prefixes(config),
        host: config.networks.first().map(|n| vni(n.vni)),
        ports: config.networks.iter().map(|n| n.port).collect(),
        problems: Vec::new(),
        settles: in_tc(config) != InTc::Nothing,
        expects_native: config.underlay.xdp == XdpMode::Auto,
    };
    // What other nodes said last is known before they say it again.
    let nodes = gossip.as_ref().map(|gossip| gossip.handle().nodes());
    let nodes = nodes.as_ref().map(|nodes| nodes.borrow().clone());
    let merged = Merged::of(&desired, addresses, nodes.as_ref());
    merged.log_news(&Merged::default());
    options.ports.clone_from(&merged.wanted.ports);
    options.routes.clone_from(&merged.wanted.routes);
    // Before the pods take what files there are.
    let mut socket = ControlSocket::bind(&config.runtime.socket(&config.node.name))?;
    let left = has_slow_path(&kernel).await?;
    let agent = tokio::select! {
        biased;
        () = stop.wait() => None,
        agent = Agent::start(options, publisher, plane) => Some(agent?),
    };
    let Some(agent) = agent else {
        return abandon(config, &kernel, router, left).await;
    };
    let asked = (agent.status(), agent.handle());
    let handle = gossip.as_ref().map(Gossip::handle);
    let (mut orchestrator, changes) =
        Orchestrator::new(desired, asked, handle.clone(), addresses, merged, hang_up);
    let answers = Answers {
        router: router.clone(),
        agent: agent.status(),
        orchestrator: changes,
        gossip: handle,
        started: Instant::now(),
    };
    let (foreign, failed) = router.lock().started();
    for error in failed {
        tracing::error!(%error, "a predecessor's hook goes on there with what it knew");
    }
    if foreign > 0 {
        tracing::info!(
            foreign,
            "removed a predecessor's BPF links from devices that are not ours"
        );
    }
    // Nobody has to read it.
    let _ = say("ready\n");
    tracing::info!(node = config.node.name, "ready");

    let mut failure = None;
    let stop = async {
        tokio::select! {
            () = stop.wait() => {}
            why = failed_worker(&router) => failure = Some(why),
        }
    };
    // Only the agent ends by itself.
    let plane = tokio::select! {
        plane = agent.run(stop) => plane,
        never = orchestrator.run() => match never {},
        never = socket.serve(move |request| answers.clone().answer(request)) => match never {},
        never = async { match gossip { Some(gossip) => gossip.run().await, None => pending().await } } => match never {},
    };
    match config.slow_path.on_exit {
        OnExit::Remove => router.lock().remove_hooks(),
        OnExit::Kernel | OnExit::FailClosed => router.lock().leave_hooks(),
    }
    drop(plane);
    match failure {
        Some(why) => bail!(
            "{why}; the process ends, so that what supervises it starts it again: until then the kernel carries what it can"
        ),
        None => Ok(()),
    }
}

/// Waits until a worker's thread has ended, which it does only when it has panicked.
async fn failed_worker(router: &SharedRouter) -> String {
    loop {
        tokio::time::sleep(LOOK_AT_WORKERS).await;
        let health = router.lock().health();
        let mut workers = health.iter().enumerate();
        if let Some((worker, it)) = workers.find(|(_, it)| it.state == Liveness::Ended) {
            let text = it.panic.as_deref().unwrap_or("it said nothing");
            return format!("worker {worker} has panicked: {text}");
        }
    }
}

/// Has a panic of any thread in the log, with its message and its place.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}");
    }));
}

/// Ends a start that was told to stop: the host is as it was, or as a predecessor had left it.
async fn abandon(
    config: &Config,
    kernel: &Kernel,
    router: SharedRouter,
    left: bool,
) -> anyhow::Result<()> {
    drop(router);
    if !left {
        let saved = config.runtime.settings(&config.node.name);
        let doing = "cannot remove what was made of the kernel's path";
        let removed = async {
            let node = &config.node.name;
            let made = Leftovers::find(kernel, node, &saved, here()).await?;
            made.remove(kernel).await
        };
        let removed = timeout(PATIENCE, removed).await;
        removed.context(doing)?.context(doing)?;
    }
    Ok(())
}

fn open_pinholes(router: &mut Router, config: &Config) -> anyhow::Result<()> {
    for (place, network) in config.networks.iter().enumerate() {
        router.add_network(vni(network.vni), place == 0)?;
    }
    router.set_cluster(cluster_prefixes(config).iter())?;
    Ok(())
}

fn cluster_prefixes(config: &Config) -> Vec<ClusterPrefix> {
    let of = |network: &NetworkConfig| {
        let vni = vni(network.vni);
        let prefixes = network.cluster_prefixes.iter();
        let prefixes = prefixes.map(move |prefix| ClusterPrefix {
            vni,
            address: prefix.network(),
            length: prefix.prefix_len(),
            to_workers: true,
        });
        prefixes.collect::<Vec<_>>()
    };
    config.networks.iter().flat_map(of).collect()
}
