//! What the kernel is asked for before a decision, and nothing else.

use std::net::IpAddr;

use tracing::debug;
use viaduct_encap::MacAddr;

use crate::kernel::{
    InterfaceAddress, Kernel, KernelError, LinkInfo, Neighbour, RouteMtu, RouteTo, UdpFlow, XdpMode,
};
use crate::options::{PortOptions, UnderlayOptions};

/// What is to be seen of the underlay interface.
#[derive(Clone, Debug)]
pub(crate) struct ObservedUnderlay {
    /// The interface of the underlay's name, or the one that had it; none if there is none.
    pub(crate) link: Option<LinkInfo>,
    /// All its addresses.
    pub(crate) addresses: Vec<InterfaceAddress>,
}

/// What is to be seen of a pod's interface.
#[derive(Clone, Debug)]
pub(crate) struct ObservedPort {
    /// The interface of the port's name, or the one that had it; none if there is none.
    pub(crate) link: Option<LinkInfo>,
    /// The pod's MAC, where it can be found out.
    pub(crate) mac: Option<MacAddr>,
    /// Whether the pod has XDP in the driver of its end of the veth pair.
    pub(crate) own_xdp: bool,
}

/// What is to be seen of the way to another node.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObservedVtep {
    /// The ways there, of which each flow takes one.
    pub(crate) paths: Vec<ObservedPath>,
    /// All interfaces that the route names, usable or not, by number.
    pub(crate) interfaces: Vec<u32>,
    /// What the kernel knows of the longest packet on the way.
    pub(crate) mtu: Option<RouteMtu>,
}

/// One of the ways to another node.
#[derive(Clone, Debug)]
pub(crate) struct ObservedPath {
    /// What the kernel's routes say.
    pub(crate) route: RouteTo,
    /// The interface's name, if it is not the underlay.
    pub(crate) name: Option<String>,
    /// The first neighbour on that way, if it is by the underlay.
    pub(crate) neighbour: Option<Neighbour>,
}

/// Looks at the underlay. `followed` is the number of the interface that was the underlay when it
/// was looked at last, 0: none.
pub(crate) async fn underlay(
    kernel: &Kernel,
    options: &UnderlayOptions,
    followed: u32,
) -> Result<ObservedUnderlay, KernelError> {
    let Some(link) = link(kernel, &options.name, followed).await? else {
        return Ok(ObservedUnderlay {
            link: None,
            addresses: Vec::new(),
        });
    };
    Ok(ObservedUnderlay {
        addresses: kernel.addresses(link.index).await?,
        link: Some(link),
    })
}

/// Looks at a pod's interface; `followed` as for the underlay.
pub(crate) async fn port(
    kernel: &Kernel,
    options: &PortOptions,
    followed: u32,
) -> Result<ObservedPort, KernelError> {
    let Some(link) = link(kernel, &options.interface, followed).await? else {
        return Ok(ObservedPort {
            link: None,
            mac: None,
            own_xdp: false,
        });
    };
    let peer = kernel.peer(&link).await.unwrap_or_else(|error| {
        debug!(pod = %options.name, %error, "the other end of its veth cannot be seen");
        None
    });
    let own_xdp = peer.as_ref().and_then(|peer| peer.xdp);
    let own_xdp = own_xdp.is_some_and(|xdp| xdp.mode == XdpMode::Native);
    let mac = match options.mac.or_else(|| peer.and_then(|peer| peer.mac)) {
        Some(known) => Some(known),
        None => pod_mac(kernel, options, &link).await?,
    };
    Ok(ObservedPort {
        link: Some(link),
        mac,
        own_xdp,
    })
}

/// All of this host's addresses.
pub(crate) async fn host(kernel: &Kernel) -> Result<Vec<IpAddr>, KernelError> {
    let all = kernel.all_addresses().await?;
    Ok(all.into_iter().map(|entry| entry.address.addr()).collect())
}

/// The way that the outer packets of `flow` take.
pub(crate) async fn vtep(
    kernel: &Kernel,
    underlay: u32,
    flow: &UdpFlow,
) -> Result<ObservedVtep, KernelError> {
    let routes = kernel.routes_of(flow).await?;
    let mut paths = Vec::with_capacity(routes.ways.len());
    for route in routes.ways {
        let (mut name, mut neighbour) = (None, None);
        if route.interface == underlay {
            let first = route.gateway.unwrap_or(flow.destination);
            neighbour = kernel.neighbour(underlay, first).await?;
        } else {
            let link = {
                let what = format!("the interface of the route to {}", flow.destination);
                kernel.link_by_index(route.interface, &what).await?
            };
            name = link.map(|link| link.name);
        }
        paths.push(ObservedPath {
            route,
            name,
            neighbour,
        });
    }
    Ok(ObservedVtep {
        paths,
        interfaces: routes.interfaces,
        mtu: routes.mtu,
    })
}

/// The interface that is followed, whatever its name is now; without it, the one of this name.
async fn link(kernel: &Kernel, name: &str, followed: u32) -> Result<Option<LinkInfo>, KernelError> {
    if followed != 0
        && let Some(link) = kernel
            .link_by_index(followed, &format!("interface {name}"))
            .await?
    {
        return Ok(Some(link));
    }
    match kernel.link_by_name(name).await {
        Ok(link) => Ok(Some(link)),
        Err(KernelError::NoSuchInterface { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The MAC of a pod whose end of the veth pair cannot be seen: of whoever answers for the pod's address; if nobody has yet, they
/// are asked, for the next time.
async fn pod_mac(
    kernel: &Kernel,
    options: &PortOptions,
    link: &LinkInfo,
) -> Result<Option<MacAddr>, KernelError> {
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
