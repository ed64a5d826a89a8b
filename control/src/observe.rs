//! What the kernel is asked for before a decision, and nothing else.

use std::net::IpAddr;

use ipnet::IpNet;

use tracing::debug;
use viaduct_encap::MacAddr;

use crate::kernel::{Kernel, KernelError, LinkInfo, Neighbour, RouteTo};
use crate::options::{PortOptions, UnderlayOptions};

/// What is to be seen of the underlay interface.
#[derive(Clone, Debug)]
pub(crate) struct ObservedUnderlay {
    /// The interface of the underlay's name; none if there is none.
    pub(crate) link: Option<LinkInfo>,
    /// All its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What is to be seen of a pod's interface.
#[derive(Clone, Debug)]
pub(crate) struct ObservedPort {
    /// The interface of the port's name; none if there is none.
    pub(crate) link: Option<LinkInfo>,
    /// The pod's MAC, where it can be found out.
    pub(crate) mac: Option<MacAddr>,
}

/// What is to be seen of the way to another node.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObservedVtep {
    /// The ways there, of which each flow takes one.
    pub(crate) paths: Vec<ObservedPath>,
}

/// One of the ways to another node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObservedPath {
    /// What the kernel's routes say.
    pub(crate) route: RouteTo,
    /// The first neighbour on that way, if it is by the underlay.
    pub(crate) neighbour: Option<Neighbour>,
}

pub(crate) async fn underlay(
    kernel: &Kernel,
    options: &UnderlayOptions,
) -> Result<ObservedUnderlay, KernelError> {
    let Some(link) = link(kernel, &options.name).await? else {
        return Ok(ObservedUnderlay {
            link: None,
            addresses: Vec::new(),
        });
    };
    let addresses = kernel.addresses(link.index).await?;
    Ok(ObservedUnderlay {
        addresses: addresses.iter().map(IpNet::addr).collect(),
        link: Some(link),
    })
}

pub(crate) async fn port(
    kernel: &Kernel,
    options: &PortOptions,
) -> Result<ObservedPort, KernelError> {
    let Some(link) = link(kernel, &options.interface).await? else {
        return Ok(ObservedPort {
            link: None,
            mac: None,
        });
    };
    let mac = match options.mac {
        Some(given) => Some(given),
        None => pod_mac(kernel, options, &link).await?,
    };
    Ok(ObservedPort {
        link: Some(link),
        mac,
    })
}

/// All of this host's addresses.
pub(crate) async fn host(kernel: &Kernel) -> Result<Vec<IpAddr>, KernelError> {
    let all = kernel.all_addresses().await?;
    Ok(all.into_iter().map(|entry| entry.address.addr()).collect())
}

pub(crate) async fn vtep(
    kernel: &Kernel,
    underlay: u32,
    vtep: IpAddr,
) -> Result<ObservedVtep, KernelError> {
    let mut paths = Vec::new();
    for route in kernel.routes_to(vtep).await? {
        let neighbour = if route.interface == underlay {
            let first = route.gateway.unwrap_or(vtep);
            kernel.neighbour(underlay, first).await?
        } else {
            None
        };
        paths.push(ObservedPath { route, neighbour });
    }
    Ok(ObservedVtep { paths })
}

async fn link(kernel: &Kernel, name: &str) -> Result<Option<LinkInfo>, KernelError> {
    match kernel.link_by_name(name).await {
        Ok(link) => Ok(Some(link)),
        Err(KernelError::NoSuchInterface { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The veth's other end knows best. Where that cannot be seen, whoever answers for the pod's
/// address; if nobody has yet, they are asked, for the next time.
async fn pod_mac(
    kernel: &Kernel,
    options: &PortOptions,
    link: &LinkInfo,
) -> Result<Option<MacAddr>, KernelError> {
    match kernel.peer_mac(link).await {
        Ok(Some(mac)) => return Ok(Some(mac)),
        Ok(None) => {}
        Err(error) => debug!(pod = %options.name, %error, "asking the neighbour table instead"),
    }
    for &address in &options.addresses {
        let neighbour = kernel.neighbour(link.index, address).await?;
        if let Some(mac) = neighbour.and_then(|known| known.usable_mac()) {
            return Ok(Some(mac));
        }
    }
    for &address in &options.addresses {
        if let Err(error) = kernel.probe(link.index, address).await {
            debug!(pod = %options.name, %error, "the pod cannot be asked for its MAC");
        }
    }
    Ok(None)
}
