//! `viaduct`: an overlay router for Kubernetes nodes.
#![forbid(unsafe_code)]

mod allowed;
mod authority;
mod client;
mod daemon;
mod desired;
mod host;
mod learned;
mod options;
mod origins;
mod peers;
mod pktgen;
mod plane;
mod report;
mod server;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use viaduct_config::{Config, RuntimeConfig};
use viaduct_control::gossip;

#[derive(Parser)]
#[command(version, about = "Carries pod traffic between nodes: AF_XDP, VXLAN")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the router until SIGTERM or SIGINT
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// How log lines look; RUST_LOG chooses which
        #[arg(long, value_enum, default_value = "text")]
        log: LogFormat,
    },
    /// Say what `run` would refuse, and touch nothing
    Check {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// What the router is doing
    Status(client::Ask),
    /// What each port has carried
    Ports(client::Ask),
    /// The ways to other nodes: who said them, and since when
    Routes {
        /// Only what has to do with this prefix or address; also what was not taken, and why
        prefix: Option<String>,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Dropped packets, by port and reason
    Drops(client::Ask),
    /// The nodes of the cluster, as gossip knows them
    Peers(client::Ask),
    /// Have all nodes forget one that will not come back, and its routes
    Forget {
        /// The dead node's name
        peer: String,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Tell the other nodes that this one and its pods go for good
    Leave(client::Ask),
    /// The keys that the cluster's nodes share, on this node
    #[command(subcommand)]
    Key(KeyCommand),
    /// This node's name and public key, which is made when there is none
    Identity {
        /// The configuration, TOML
        #[arg(long)]
        config: PathBuf,
    },
    /// The cluster's authority, which says which node has which key
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Add a pod to a running router, or remove one that was added
    #[command(subcommand)]
    Port(PortCommand),
    /// Add a route to a running router, or remove one that was added
    #[command(subcommand)]
    Route(RouteCommand),
    /// Send packets as fast as possible or at a rate, and count what arrives
    Pktgen(pktgen::PktgenArgs),
    /// Remove what a dead router left
    Cleanup(CleanupArgs),
}

/// To change keys without loss: add the new one on all nodes, then use it on all, then remove the
/// old one from all.
#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key, which is printed and nothing else
    New,
    /// Which there are, which is used, and when something came that was sealed with each
    List(client::Ask),
    /// Understand what is sealed with one more
    Add {
        /// Holds the key, 64 hexadecimal digits; - for the standard input
        file: PathBuf,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Seal with this one from now on
    Use {
        /// Its id, as `list` says it
        id: String,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Understand it no more
    Remove {
        /// Its id, as `list` says it
        id: String,
        #[command(flatten)]
        ask: client::Ask,
    },
}

impl KeyCommand {
    fn run(self) -> anyhow::Result<()> {
        let (request, ask) = match self {
            Self::New => {
                println!("{}", gossip::in_hexadecimal(&gossip::random::<32>()?));
                return Ok(());
            }
            Self::List(ask) => ("key list".to_owned(), ask),
            Self::Add { file, ask } => {
                let doing = || format!("cannot read the key from {}", file.display());
                let text = if file.as_os_str() == "-" {
                    std::io::read_to_string(std::io::stdin())
                } else {
                    std::fs::read_to_string(&file)
                };
                let text = text.with_context(doing)?;
                (format!("key add {}", text.trim()), ask)
            }
            Self::Use { id, ask } => (format!("key use {id}"), ask),
            Self::Remove { id, ask } => (format!("key remove {id}"), ask),
        };
        client::show(&request, &ask, report::keys_text)
    }
}

#[derive(Subcommand)]
enum PortCommand {
    /// Until it is removed or the router ends; the keys are those of [[pods]]
    Add {
        /// The host's end of the pod's veth pair
        #[arg(long)]
        interface: String,
        /// An address of the pod; may be given several times
        #[arg(long = "address", required = true)]
        addresses: Vec<String>,
        /// Its name; the interface's if not given
        #[arg(long)]
        name: Option<String>,
        /// Its network, where there are several
        #[arg(long)]
        network: Option<String>,
        /// It has come from another node, with its address
        #[arg(long)]
        moved: bool,
        /// Its MAC; learned if not given
        #[arg(long)]
        mac: Option<String>,
        /// What it may send, in bits a second
        #[arg(long)]
        egress_rate: Option<u64>,
        /// What it may send at once, in bits
        #[arg(long)]
        egress_burst: Option<u64>,
        /// What it may receive, in bits a second
        #[arg(long)]
        ingress_rate: Option<u64>,
        /// What it may receive at once, in bits
        #[arg(long)]
        ingress_burst: Option<u64>,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Remove a pod that was added
    Del {
        /// Its name
        name: String,
        #[command(flatten)]
        ask: client::Ask,
    },
}

impl PortCommand {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add {
                interface,
                addresses,
                name,
                network,
                moved,
                mac,
                egress_rate,
                egress_burst,
                ingress_rate,
                ingress_burst,
                ask,
            } => {
                let entry = json!({
                    "interface": interface, "addresses": addresses, "name": name, "network": network,
                    "mac": mac, "moved": moved,
                    "egress_rate": egress_rate, "egress_burst": egress_burst,
                    "ingress_rate": ingress_rate, "ingress_burst": ingress_burst,
                });
                client::change(&json!({ "add": "port", "entry": entry }), &ask)
            }
            Self::Del { name, ask } => client::change(&json!({ "del": "port", "key": name }), &ask),
        }
    }
}

#[derive(Subcommand)]
enum RouteCommand {
    /// Until it is removed or the router ends; the keys are those of [[routes]]
    Add {
        /// What the other node's pods have their addresses from
        prefix: String,
        /// The other node's underlay address
        #[arg(long)]
        vtep: String,
        /// The other node's VTEP MAC
        #[arg(long)]
        vtep_mac: Option<String>,
        /// The other node's name, instead of its VTEP MAC
        #[arg(long)]
        peer: Option<String>,
        /// Another address of the other node; may be given several times
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// The network, where there are several
        #[arg(long)]
        network: Option<String>,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Remove a route that was added
    Del {
        /// Its prefix
        prefix: String,
        #[command(flatten)]
        ask: client::Ask,
    },
}

impl RouteCommand {
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add {
                prefix,
                vtep,
                vtep_mac,
                peer,
                addresses,
                network,
                ask,
            } => {
                let entry = json!({
                    "prefixes": [prefix], "vtep": vtep, "vtep_mac": vtep_mac, "node": peer, "addresses": addresses,
                    "network": network,
                });
                client::change(&json!({ "add": "route", "entry": entry }), &ask)
            }
            Self::Del { prefix, ask } => {
                client::change(&json!({ "del": "route", "key": prefix }), &ask)
            }
        }
    }
}

#[derive(Args)]
struct CleanupArgs {
    #[command(flatten)]
    router: DeadRouter,
    #[command(flatten)]
    folders: Folders,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct DeadRouter {
    /// Its configuration, TOML
    #[arg(long)]
    config: Option<PathBuf>,
    /// Its node, where the configuration is not at hand
    #[arg(long)]
    node: Option<String>,
}

impl CleanupArgs {
    fn run(self) -> anyhow::Result<()> {
        if let Some(file) = self.router.config {
            let config = Config::load(&file)?;
            let runtime = self.folders.instead_of(config.runtime)?;
            return daemon::cleanup(&runtime, &config.node.name);
        }
        let node = self.router.node.unwrap_or_default();
        anyhow::ensure!(
            viaduct_config::is_node_name(&node),
            "{node:?} is no node name"
        );
        let runtime = self.folders.instead_of(RuntimeConfig::default())?;
        daemon::cleanup(&runtime, &node)
    }
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration, TOML
    #[arg(long)]
    config: PathBuf,
    #[command(flatten)]
    folders: Folders,
}

impl ConfigArgs {
    fn load(self) -> anyhow::Result<Config> {
        let mut config = Config::load(&self.config)?;
        config.runtime = self.folders.instead_of(config.runtime)?;
        Ok(config)
    }
}

#[derive(Args)]
struct Folders {
    /// Folder for socket and lock, instead of `[runtime] directory`
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Folder for pins, instead of `[runtime] bpffs`
    #[arg(long)]
    bpffs: Option<PathBuf>,
}

impl Folders {
    fn instead_of(self, mut runtime: RuntimeConfig) -> anyhow::Result<RuntimeConfig> {
        if let Some(directory) = self.directory {
            runtime.directory = std::path::absolute(directory).context("--directory")?;
        }
        if let Some(bpffs) = self.bpffs {
            runtime.bpffs = std::path::absolute(bpffs).context("--bpffs")?;
        }
        Ok(runtime)
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // No colours into files and journals.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config, log } => {
            log_to_stderr(log);
            let result = config.load().and_then(|c| daemon::run(&c));
            match (result, log) {
                // The last line of a JSON log is JSON, too.
                (Err(e), LogFormat::Json) => {
                    tracing::error!("{e:#}");
                    return ExitCode::FAILURE;
                }
                (result, _) => result,
            }
        }
        Command::Check { config } => config.load().and_then(|c| daemon::check(&c)),
        Command::Key(command) => command.run(),
        Command::Identity { config } => authority::identity(&config),
        Command::Authority(command) => command.run(),
        Command::Port(command) => command.run(),
        Command::Route(command) => command.run(),
        Command::Pktgen(args) => args.run(),
        Command::Cleanup(args) => args.run(),
        Command::Status(ask) => client::show("status", &ask, report::status_text),
        Command::Ports(ask) => client::show("ports", &ask, report::ports_text),
        Command::Routes { prefix, ask } => {
            let request = prefix.map_or("routes".to_owned(), |prefix| format!("routes {prefix}"));
            client::show(&request, &ask, report::routes_text)
        }
        Command::Drops(ask) => client::show("drops", &ask, report::drops_text),
        Command::Peers(ask) => client::show("peers", &ask, report::peers_text),
        Command::Forget { peer, ask } => {
            client::show(&format!("forget {peer}"), &ask, |_| "done\n".to_owned())
        }
        Command::Leave(ask) => client::show("leave", &ask, |_| "done\n".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("viaduct: {e:#}");
            ExitCode::FAILURE
        }
    }
}
