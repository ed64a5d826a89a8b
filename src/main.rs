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
use viaduct_config::Config;

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
    Cleanup {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration, TOML
    #[arg(long)]
    config: PathBuf,
    /// Folder for socket and lock, instead of `[runtime] directory`
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Folder for pins, instead of `[runtime] bpffs`
    #[arg(long)]
    bpffs: Option<PathBuf>,
}

impl ConfigArgs {
    fn load(self) -> anyhow::Result<Config> {
        let mut config = Config::load(&self.config)?;
        if let Some(directory) = self.directory {
            config.runtime.directory = std::path::absolute(directory).context("--directory")?;
        }
        if let Some(bpffs) = self.bpffs {
            config.runtime.bpffs = std::path::absolute(bpffs).context("--bpffs")?;
        }
        Ok(config)
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
        Command::Cleanup { config } => config.load().and_then(|c| daemon::cleanup(&c)),
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
