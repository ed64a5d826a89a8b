//! What an agent would find now, without one: the same looks and the same judgements, and nothing
//! is changed.

use std::net::IpAddr;

use crate::kernel::{Kernel, KernelError, LinkInfo};
use crate::next_hop::{IPV6_MIN_MTU, Unresolved, overlay_mtu};
use crate::observe;
use crate::options::{AgentOptions, OwnAddresses, RouteOptions};
use crate::reconciler;
use crate::slow_path::device;

/// What an agent with the same options would find.
#[derive(Clone, Debug, Default)]
pub struct Preview {
    /// This node's addresses on the underlay; fixed ones also if they are not there.
    pub addresses: OwnAddresses,
    /// The underlay interface, where there is one.
    pub underlay: Option<LinkInfo>,
    /// Why the underlay cannot be used.
    pub underlay_problem: Option<String>,
    /// Pods' interfaces that are there, in the order of the options.
    pub ports: Vec<Option<LinkInfo>>,
    /// What is wrong with the underlay's MTU: the workers carry what fits, the kernel less.
    pub mtu_problem: Option<String>,
    /// Why pods would be down, by their place in the options.
    pub port_problems: Vec<(usize, String)>,
    /// What is wrong with routes, by their place in the options.
    pub route_problems: Vec<(usize, String)>,
    /// What somebody else has that the kernel's path cannot be beside.
    pub contradiction: Option<String>,
}

/// Looks at the underlay, the pods and the routes.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub async fn preview(kernel: &Kernel, options: &AgentOptions) -> Result<Preview, KernelError> {
    let mut preview = Preview::default();
    let wanted = &options.underlay;
    let underlay = observe::underlay(kernel, wanted, 0).await?;
    let there = &underlay.addresses;
    let chosen = OwnAddresses::choose(wanted.fixed, wanted.addresses, there);
    preview.addresses = chosen.or(wanted.addresses);
    let problem = match &underlay.link {
        None => Some(Unresolved::UnderlayGone),
        Some(link) => reconciler::is_fit(link, options.longest(wanted.sockets))
            .and_then(|()| reconciler::can_send(link).map(drop))
            .err(),
    };
    let problem = problem.or_else(|| {
        let none = chosen == OwnAddresses::default();
        none.then(|| reconciler::no_address(preview.addresses, there))
    });
    preview.underlay_problem = problem.map(|problem| problem.to_string());
    preview.underlay = underlay.link;
    preview.mtu_problem = mtu_problem(&preview, options);
    for (place, port) in options.ports.iter().enumerate() {
        let seen = observe::port(kernel, port, 0).await?;
        if let Err(reason) = reconciler::can_come_up(&seen, options.longest(port.sockets)) {
            preview.port_problems.push((place, reason.to_string()));
        }
        preview.ports.push(seen.link);
    }
    let host = observe::host(kernel).await?;
    for (place, route) in options.routes.iter().enumerate() {
        if let Some(problem) = route_problem(route, preview.addresses, &host) {
            preview.route_problems.push((place, problem));
        }
    }
    let mut options = options.clone();
    options.underlay.addresses = preview.addresses;
    let contradiction = device::contradiction(kernel, &options).await?;
    preview.contradiction = contradiction.map(|error| error.to_string());
    Ok(preview)
}

/// What the underlay's MTU leaves too little for.
fn mtu_problem(preview: &Preview, options: &AgentOptions) -> Option<String> {
    let link = preview.underlay.as_ref()?;
    let left = preview
        .addresses
        .iter()
        .map(|own| overlay_mtu(link.mtu, own));
    let left = left.min()?;
    let mut networks = options.networks.iter();
    let six = networks.any(|network| network.overlay_v6().is_some());
    (six && u32::from(left) < IPV6_MIN_MTU).then(|| {
        format!(
            "an MTU of {} leaves {left} bytes for pods' packets, and IPv6 needs {IPV6_MIN_MTU}: the kernel carries no IPv6 \
             between nodes, and the workers only short packets; set a larger MTU",
            link.mtu
        )
    })
}

/// Why no packet could ever take a route, as far as this node's addresses say.
fn route_problem(route: &RouteOptions, own: OwnAddresses, host: &[IpAddr]) -> Option<String> {
    let vtep = route.vtep;
    if host.contains(&vtep) {
        return Some(format!(
            "{vtep} is this host's own address: a route leads to another node"
        ));
    }
    if own.like(vtep).is_none() {
        return Some(format!(
            "the underlay has no address of the family of {vtep}; give it one, or name another vtep"
        ));
    }
    None
}
