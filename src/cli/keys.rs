//! `viaduct key`: the keys that the cluster's nodes share.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use viaduct_control::gossip;

use super::client;
use crate::out::say;
use crate::report;

/// To change keys without loss: add the new one on all nodes, then use it on all, then remove the
/// old one from all.
#[derive(Subcommand)]
pub(super) enum KeyCommand {
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
    pub(super) fn run(self) -> anyhow::Result<()> {
        let (request, ask) = match self {
            Self::New => {
                let key = gossip::random::<32>()?;
                return say(&format!("{}\n", gossip::in_hexadecimal(&key)));
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
