//! The command line.

mod authority;
mod changes;
mod cleanup;
mod client;
mod config;
mod keys;
mod log;
mod pktgen;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::changes::{PortCommand, RouteCommand};
use self::cleanup::CleanupArgs;
use self::client::Ask;
use self::config::ConfigArgs;
use self::keys::KeyCommand;
use self::log::{LogFormat, log_to_stderr};
use crate::out::complain;
use crate::{daemon, report};

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
    /// Whether the router is ready, and what it is doing; exits with 1 when it is not ready
    ///
    /// Exit codes of all commands: 0 done, 1 failed or refused, 2 no such command, 3 no router is running. With --json,
    /// status exits with 0 whenever the router answers: programs read "ready".
    #[command(verbatim_doc_comment)]
    Status(Ask),
    /// What each port has carried
    Ports(Ask),
    /// The ways to other nodes: who said them, and since when
    Routes {
        /// Only what has to do with this prefix or address; also what was not taken, and why
        prefix: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Dropped packets, by port and reason
    Drops(Ask),
    /// The nodes of the cluster, as gossip knows them
    Peers(Ask),
    /// Have all nodes forget one that will not come back, and its routes
    Forget {
        /// The dead node's name
        peer: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Tell the other nodes that this one and its pods go for good
    Leave(Ask),
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

/// What `viaduct status` says by its exit code when the router is not ready; also any failure.
const FAILED: u8 = 1;
/// There is no router to ask. (2 is a command line that is no command.)
const NOT_RUNNING: u8 = 3;

/// Runs the command that the process was given.
pub(crate) fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("viaduct: {error:#}"));
            let not_running = error.downcast_ref::<client::NotRunning>().is_some();
            ExitCode::from(if not_running { NOT_RUNNING } else { FAILED })
        }
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run { config, log } => return run(config, log),
            Self::Status(ask) => return status(&ask),
            Self::Check { config } => crate::check::check(&config.load()?),
            Self::Key(command) => command.run(),
            Self::Identity { config } => authority::identity(&config),
            Self::Authority(command) => command.run(),
            Self::Port(command) => command.run(),
            Self::Route(command) => command.run(),
            Self::Pktgen(args) => args.run(),
            Self::Cleanup(args) => args.run(),
            Self::Ports(ask) => client::show("ports", &ask, report::ports_text),
            Self::Routes { prefix, ask } => {
                let request =
                    prefix.map_or("routes".to_owned(), |prefix| format!("routes {prefix}"));
                client::show(&request, &ask, report::routes_text)
            }
            Self::Drops(ask) => client::show("drops", &ask, report::drops_text),
            Self::Peers(ask) => client::show("peers", &ask, report::peers_text),
            Self::Forget { peer, ask } => {
                client::show(&format!("forget {peer}"), &ask, |_| "done\n".to_owned())
            }
            Self::Leave(ask) => client::show("leave", &ask, |_| "done\n".to_owned()),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

fn run(config: ConfigArgs, log: LogFormat) -> anyhow::Result<ExitCode> {
    log_to_stderr(log);
    match (config.load().and_then(|c| daemon::run(&c)), log) {
        // The last line of a JSON log is JSON, too.
        (Err(e), LogFormat::Json) => {
            tracing::error!("{e:#}");
            Ok(ExitCode::from(FAILED))
        }
        (result, _) => result.map(|()| ExitCode::SUCCESS),
    }
}

/// For people, and for scripts that look at the exit code; programs read `ready`.
fn status(ask: &Ask) -> anyhow::Result<ExitCode> {
    let reply = ask.exchange("status")?;
    client::print(&reply, ask, report::status_text)?;
    let ready = ask.json() || reply["ready"] == true;
    Ok(ExitCode::from(if ready { 0 } else { FAILED }))
}
