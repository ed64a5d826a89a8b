//! `viaduct check`: what a start would find, without one.

use anyhow::bail;
use viaduct_config::{Config, Trust};
use viaduct_control::gossip::{KeyFile, key_from};
use viaduct_control::kernel::Kernel;
use viaduct_control::{Overlaps, OwnAddresses, Preview};

use crate::daemon::runtime;
use crate::host::{self, Finding};
use crate::locks;
use crate::options::agent_options;
use crate::out::say;
use crate::peers;
use crate::preflight;

/// Says all that [`run`](crate::daemon::run) would refuse, or report as a problem.
///
/// # Errors
/// When it would refuse anything.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let node = &config.node.name;
        let running = locks::is_running(&config.runtime, node);
        let mut findings = preflight::findings(config, running);
        findings.extend(other_router(node).map(Finding::refused));
        let refused = |error: anyhow::Error| Finding::refused(format!("{error:#}"));
        findings.extend(keys(config).err().map(refused));
        let mut addresses = OwnAddresses::default();
        match interfaces(config).await {
            Ok((seen, found)) => {
                addresses = seen.addresses;
                findings.extend(found);
            }
            Err(error) => findings.push(refused(error)),
        }
        findings.sort_by_key(|finding| !finding.refused);
        for finding in &findings {
            say(&format!("{finding}\n"))?;
        }
        let refused = findings.iter().filter(|finding| finding.refused).count();
        let file = config.file.display();
        if refused > 0 {
            bail!("{file}: a router would refuse to start: errors above: {refused}");
        }
        let what = match findings.len() {
            0 => "good".to_owned(),
            warnings => format!("a router would start; warnings above: {warnings}"),
        };
        say(&format!(
            "{file}: {what}; underlay {} {}\n",
            config.underlay.interface,
            spoken(addresses)
        ))
    })
}

async fn interfaces(config: &Config) -> anyhow::Result<(Preview, Vec<Finding>)> {
    let kernel = Kernel::open()?;
    let (seen, mut findings) = host::interfaces(&kernel, config).await?;
    let overlaps = Overlaps::find(&kernel, &agent_options(config)).await?;
    findings.extend(overlaps.refused.into_iter().map(Finding::refused));
    findings.extend(overlaps.warnings.into_iter().map(Finding::problem));
    Ok((seen, findings))
}

/// Why there cannot be one more router in this network namespace.
fn other_router(node: &str) -> Option<String> {
    let holder = locks::holder().filter(|holder| holder != node)?;
    Some(locks::taken(&holder))
}

/// Whether the keys that gossip needs are sound. A start makes the node's own if it is missing.
fn keys(config: &Config) -> anyhow::Result<()> {
    let Some(gossip) = &config.gossip else {
        return Ok(());
    };
    KeyFile::read(&gossip.key_file)?;
    let own = gossip.state.join(format!("{}.key", config.node.name));
    if own.exists() {
        key_from(&own, false)?;
        peers::certificate(config, gossip)?;
    } else if gossip.trust != Trust::FirstSight {
        bail!(
            "the other nodes have to know this one's key, and {} is missing: `viaduct identity` makes and shows it",
            own.display()
        );
    }
    Ok(())
}

/// Addresses for people.
fn spoken(addresses: OwnAddresses) -> String {
    let all: Vec<String> = addresses.iter().map(|own| own.to_string()).collect();
    all.join(" ")
}
