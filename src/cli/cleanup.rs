//! `viaduct cleanup`.

use std::path::PathBuf;

use clap::Args;
use viaduct_config::{Config, RuntimeConfig};

use super::config::Folders;
use crate::leftovers;

#[derive(Args)]
pub(super) struct CleanupArgs {
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
    pub(super) fn run(self) -> anyhow::Result<()> {
        if let Some(file) = self.router.config {
            let config = Config::load(&file)?;
            let runtime = self.folders.instead_of(config.runtime)?;
            return leftovers::cleanup(&runtime, &config.node.name);
        }
        let node = self.router.node.unwrap_or_default();
        anyhow::ensure!(
            viaduct_config::is_node_name(&node),
            "{node:?} is no node name"
        );
        let runtime = self.folders.instead_of(RuntimeConfig::default())?;
        leftovers::cleanup(&runtime, &node)
    }
}
