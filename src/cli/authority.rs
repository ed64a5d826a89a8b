//! Who has which key: what a node says of itself, and what the cluster's authority signs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Subcommand;
use ipnet::IpNet;
use viaduct_config::Config;
use viaduct_control::gossip::{
    self, Certificate, Claimed, hexadecimal, in_hexadecimal, key_from, own_key, public,
};

use crate::out::say;

/// The authority's key signs for nodes wherever it is kept: no node needs it.
#[derive(Subcommand)]
pub(crate) enum AuthorityCommand {
    /// Make an authority: its key goes into the file, its public key is printed
    New {
        /// Where its key is to be
        key: PathBuf,
    },
    /// Print a node's certificate
    Sign {
        /// Holds the authority's key
        #[arg(long)]
        key: PathBuf,
        /// The cluster's name
        #[arg(long)]
        cluster: String,
        /// What the node may announce, and nobody else; may be given several times
        #[arg(long = "prefix")]
        prefixes: Vec<IpNet>,
        /// Addresses that the node may have beside the one of its gossip, and nobody else; an address or
        /// a prefix, may be given several times
        #[arg(long = "address", value_parser = address)]
        addresses: Vec<IpNet>,
        /// The node's name, as `viaduct identity` says it
        node: String,
        /// The node's public key, as `viaduct identity` says it
        public: String,
    },
}

impl AuthorityCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::New { key } => {
                ensure!(!key.exists(), "{} is there already", key.display());
                let made = key_from(&key, true)?;
                say(&format!("{}\n", in_hexadecimal(&public(&made))))?;
            }
            Self::Sign {
                key,
                cluster,
                prefixes,
                addresses,
                node,
                public,
            } => {
                let authority = key_from(&key, false)?;
                let public = hexadecimal(&public).context(
                    "the public key is 64 hexadecimal digits, as `viaduct identity` says it",
                )?;
                if let Some(prefix) = prefixes.iter().chain(&addresses).find(|p| p.trunc() != **p) {
                    anyhow::bail!("{prefix} has host bits set; write {}", prefix.trunc());
                }
                let claim = Claimed {
                    name: node,
                    key: public,
                    issued: gossip::seconds(),
                    prefixes: (!prefixes.is_empty()).then_some(prefixes),
                    addresses: (!addresses.is_empty()).then_some(addresses),
                };
                let certificate = Certificate::new(claim, &cluster, &authority)?;
                say(&format!("{}\n", certificate.to_text()))?;
            }
        }
        Ok(())
    }
}

/// An address, or a prefix of them.
fn address(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let found = address.or_else(|_| text.parse::<IpNet>());
    found.map_err(|_| "give an address or a prefix, like 192.0.2.2 or fd00:99::/64".to_owned())
}

/// Prints a node's name and public key.
pub(crate) fn identity(config: &Path) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let gossip = config.gossip.as_ref();
    let gossip = gossip.context("this node does not gossip: its configuration has no [gossip]")?;
    let key = own_key(&gossip.state, &config.node.name)?;
    say(&format!(
        "{} {}\n",
        config.node.name,
        in_hexadecimal(&public(&key))
    ))
}
