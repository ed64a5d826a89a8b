//! `run`, `check` and `cleanup`: the only place where both planes meet.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::future::pending;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use viaduct_config::{Config, OnExit, RuntimeConfig, XdpMode};
use viaduct_control::gossip::{Gossip, KeyFile};
use viaduct_control::kernel::Kernel;
use viaduct_control::{Agent, OwnAddresses, remove_slow_path};
use viaduct_fib::Publisher;
use viaduct_router::{Router, pinned_programs, remove_pins};

use crate::host;
use crate::options::{agent_options, router_options, vni};
use crate::peers;
use crate::plane::{Plane, SharedRouter};
use crate::server::Server;

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("cannot start the control thread")
}

/// Says what [`run`] would refuse.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let kernel = Kernel::open()?;
        let underlay = host::underlay(&kernel, config).await?;
        let mut links = host::pods(&kernel, config).await?;
        links.push(underlay.link);
        // A router that runs, or died, has its programs there by right.
        let own = pinned_programs(&config.runtime.pins(&config.node.name));
        host::no_foreign_xdp(&kernel, &links, &own, Duration::ZERO).await?;
        if let Some(gossip) = &config.gossip {
            KeyFile::read(&gossip.key_file)?;
            peers::certificate(config, gossip)?;
        }
        println!(
            "{}: good; underlay {} {}",
            config.file.display(),
            config.underlay.interface,
            spoken(underlay.addresses)
        );
        Ok(())
    })
}

/// Addresses for people.
fn spoken(addresses: OwnAddresses) -> String {
    let all: Vec<String> = addresses.iter().map(|own| own.to_string()).collect();
    all.join(" ")
}

/// One router a node name: the lock says that it lives.
fn lock(runtime: &RuntimeConfig, node: &str) -> anyhow::Result<File> {
    let path = runtime.lock(node);
    fs::create_dir_all(&runtime.directory)
        .with_context(|| format!("cannot make {}", runtime.directory.display()))?;
    loop {
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "a router for node {node} is running (it holds {}); stop it first",
                    path.display()
                )
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        // A router that ends removes the file: then what we hold is nobody's, and another holds,
        // or will hold, the one of that name.
        let ours = file.metadata().ok().map(|m| m.ino());
        if ours.is_some() && ours == fs::metadata(&path).ok().map(|m| m.ino()) {
            return Ok(file);
        }
    }
}

/// Removes pins, the kernel's path, socket and lock of a router that is not running.
pub(crate) fn cleanup(runtime: &RuntimeConfig, node: &str) -> anyhow::Result<()> {
    let lock = lock(runtime, node)?;
    let pins = runtime.pins(node);
    let removed =
        remove_pins(&pins).with_context(|| format!("cannot remove {}", pins.display()))?;
    let slow_path = self::runtime()?.block_on(async {
        let kernel = Kernel::open()?;
        remove_slow_path(&kernel, runtime.settings(node)).await
    });
    let slow_path = slow_path.context("cannot remove the kernel's path")?;
    forget(runtime, node);
    drop(lock);
    let kernel = if slow_path {
        "; the kernel's VXLAN device, routes, neighbours and firewall table"
    } else {
        ""
    };
    println!("{node}: {removed} XDP links removed{kernel}");
    Ok(())
}

/// Removes the files by which others find a router.
fn forget(runtime: &RuntimeConfig, node: &str) {
    let _ = fs::remove_file(runtime.socket(node));
    let _ = fs::remove_file(runtime.lock(node));
}

/// Runs the router until it is told to stop.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let lock = lock(&config.runtime, &config.node.name)?;
    let result = runtime()?.block_on(serve(config));
    forget(&config.runtime, &config.node.name);
    drop(lock);
    result
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    // Signals are caught from here on, so that none can cut a start in two.
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let kernel = Kernel::open()?;
    let underlay = host::underlay(&kernel, config).await?;
    let mut links = host::pods(&kernel, config).await?;
    links.push(underlay.link.clone());
    let pins = config.runtime.pins(&config.node.name);
    let own = pinned_programs(&pins);
    if !own.is_empty() {
        tracing::warn!(pins = %pins.display(), links = own.len(), "taking over the XDP links of a predecessor");
    }
    host::no_foreign_xdp(&kernel, &links, &own, Duration::from_secs(1)).await?;
    let gossip = peers::start(config, underlay.addresses)?;

    let (publisher, readers) = Publisher::new();
    let mut router = Router::start(router_options(config), &readers)?;
    open_pinholes(&mut router, config)?;

    let router = SharedRouter::new(router);
    let plane = Plane {
        router: router.clone(),
        cluster: config
            .networks
            .first()
            .map(|n| (vni(n.vni), n.cluster_prefixes.clone())),
        host: BTreeSet::new(),
        ports: config.networks.iter().map(|n| n.port).collect(),
        vteps: BTreeSet::new(),
        nodes: BTreeSet::new(),
        expects_native: config.underlay.xdp == XdpMode::Auto,
    };
    let agent = Agent::start(agent_options(config, &underlay), publisher, plane).await?;
    let asked = (agent.status(), agent.handle());
    let handle = gossip.as_ref().map(Gossip::handle);
    let mut server = Server::bind(config, router.clone(), asked, handle, underlay.addresses)?;
    let strangers = router.lock().started();
    if strangers > 0 {
        tracing::info!(
            strangers,
            "removed a predecessor's XDP links from devices that are not ours"
        );
    }
    println!("ready");
    tracing::info!(node = config.node.name, "ready");

    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    // The server never ends by itself.
    let plane = tokio::select! {
        plane = agent.run(stop) => plane,
        never = server.serve() => match never {},
        never = async { match gossip { Some(gossip) => gossip.run().await, None => pending().await } } => match never {},
    };
    if config.slow_path.on_exit == OnExit::FailClosed {
        router.lock().stay_closed();
    }
    drop(plane);
    Ok(())
}

fn open_pinholes(router: &mut Router, config: &Config) -> anyhow::Result<()> {
    for (place, network) in config.networks.iter().enumerate() {
        let vni = vni(network.vni);
        router.add_network(vni, place == 0)?;
        for prefix in &network.cluster_prefixes {
            router.add_cluster_prefix(vni, prefix.network(), prefix.prefix_len(), true)?;
        }
    }
    Ok(())
}
