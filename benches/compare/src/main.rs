//! `viaduct-compare`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match viaduct_compare::run(&viaduct_compare::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("viaduct-compare: {e:#}");
            ExitCode::FAILURE
        }
    }
}
