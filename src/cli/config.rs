//! The configuration, and folders that are given beside it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use viaduct_config::{Config, RuntimeConfig};

#[derive(Args)]
pub(super) struct ConfigArgs {
    /// The configuration, TOML
    #[arg(long)]
    config: PathBuf,
    #[command(flatten)]
    folders: Folders,
}

impl ConfigArgs {
    pub(super) fn load(self) -> anyhow::Result<Config> {
        let mut config = Config::load(&self.config)?;
        config.runtime = self.folders.instead_of(config.runtime)?;
        Ok(config)
    }
}

#[derive(Args)]
pub(super) struct Folders {
    /// Folder for socket and lock, instead of `[runtime] directory`
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Folder for pins, instead of `[runtime] bpffs`
    #[arg(long)]
    bpffs: Option<PathBuf>,
}

impl Folders {
    pub(super) fn instead_of(self, mut runtime: RuntimeConfig) -> anyhow::Result<RuntimeConfig> {
        if let Some(directory) = self.directory {
            runtime.directory = std::path::absolute(directory).context("--directory")?;
        }
        if let Some(bpffs) = self.bpffs {
            runtime.bpffs = std::path::absolute(bpffs).context("--bpffs")?;
        }
        Ok(runtime)
    }
}
