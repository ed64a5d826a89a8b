//! `viaduct`: an overlay router for Kubernetes nodes.
#![forbid(unsafe_code)]

mod client;
mod daemon;
mod host;
mod plane;
mod report;
mod server;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use viaduct_config::{Config, RuntimeConfig};

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
    /// The ways to other nodes
    Routes(client::Ask),
    /// Dropped packets, by port and reason
    Drops(client::Ask),
    /// Remove what a dead router left
    Cleanup(CleanupArgs),
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
        Command::Cleanup(args) => args.run(),
        Command::Status(ask) => client::show("status", &ask, report::status_text),
        Command::Ports(ask) => client::show("ports", &ask, report::ports_text),
        Command::Routes(ask) => client::show("routes", &ask, report::routes_text),
        Command::Drops(ask) => client::show("drops", &ask, report::drops_text),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("viaduct: {e:#}");
            ExitCode::FAILURE
        }
    }
}
