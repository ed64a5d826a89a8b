//! `viaduct-compare`: see the library.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    viaduct_compare::run(&viaduct_compare::Options::parse())
}
