//! What a configuration asks of this host, looked at without touching it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use viaduct_config::Config;
use viaduct_control::OwnAddresses;
use viaduct_control::kernel::{Kernel, LinkInfo};

/// The underlay, as found.
pub(crate) struct Underlay {
    pub(crate) link: LinkInfo,
    pub(crate) addresses: OwnAddresses,
}

/// Where the configuration says a thing, for messages.
fn place(config: &Config, line: usize) -> String {
    format!("{}:{line}", config.file.display())
}

/// Finds the underlay interface and this node's address on it.
pub(crate) async fn underlay(kernel: &Kernel, config: &Config) -> anyhow::Result<Underlay> {
    let wanted = &config.underlay;
    let at = || place(config, wanted.line);
    let link = kernel
        .link_by_name(&wanted.interface)
        .await
        .with_context(at)?;
    ensure!(
        link.mtu <= viaduct_router::MAX_MTU,
        "{}: {} has an MTU of {}; more than {} does not fit a frame yet",
        at(),
        link.name,
        link.mtu,
        viaduct_router::MAX_MTU
    );
    let addresses = kernel.addresses(link.index).await.with_context(at)?;
    let there: Vec<IpAddr> = addresses.iter().map(IpNet::addr).collect();
    if let Some(missing) = wanted.own_addresses().find(|own| !there.contains(own)) {
        bail!(
            "{}: {} does not have the address {missing}",
            at(),
            link.name
        );
    }
    let fixed = OwnAddresses {
        v4: wanted.address,
        v6: wanted.address6,
    };
    let addresses = OwnAddresses::choose(fixed, OwnAddresses::default(), &there);
    ensure!(
        addresses != OwnAddresses::default(),
        "{}: {} has no address; give it one, or name another interface",
        at(),
        link.name
    );
    let route = config
        .routes
        .iter()
        .find(|route| addresses.like(route.vtep).is_none());
    if let Some(route) = route {
        bail!(
            "{}: {} has no address of the family of {}; give it one, or another vtep",
            place(config, route.line),
            link.name,
            route.vtep
        );
    }
    Ok(Underlay { link, addresses })
}

/// The interfaces of all pods; a missing one is an error with its line.
pub(crate) async fn pods(kernel: &Kernel, config: &Config) -> anyhow::Result<Vec<LinkInfo>> {
    let mut links = Vec::new();
    for pod in &config.pods {
        let link = kernel.link_by_name(&pod.interface).await;
        links.push(link.with_context(|| place(config, pod.line))?);
    }
    Ok(links)
}

/// Refuses devices that carry somebody else's XDP program, none of `own`. One that has just
/// been detached may be seen for a moment.
pub(crate) async fn no_foreign_xdp(
    kernel: &Kernel,
    links: &[LinkInfo],
    own: &[u32],
    patience: Duration,
) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + patience;
    for link in links {
        loop {
            let now = kernel.link_by_name(&link.name).await?;
            let foreign = now.xdp.filter(|xdp| !own.contains(&xdp.program_id));
            let Some(xdp) = foreign else { break };
            if tokio::time::Instant::now() >= until {
                bail!(
                    "cannot attach XDP to {}: another XDP program (id {}) is attached; \
                     detach it (ip link set dev {} xdp off)",
                    link.name,
                    xdp.program_id,
                    link.name
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}
