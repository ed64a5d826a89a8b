//! `viaduct`: an overlay router for Kubernetes nodes.
#![forbid(unsafe_code)]
// `println` panics when its reader has gone; `out::say` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod announcer;
mod answers;
mod check;
mod cli;
mod commands;
mod daemon;
mod desired;
mod host;
mod leftovers;
mod limits;
mod locks;
mod merged;
mod options;
mod orchestrator;
mod origins;
mod out;
mod peers;
mod plane;
mod ports;
mod preflight;
mod report;
mod socket;

fn main() -> std::process::ExitCode {
    cli::main()
}
