//! What a configuration asks of this host, looked at without touching it: what stands in the way,
//! each thing with what to do.

use std::fmt;

use viaduct_config::Config;
use viaduct_control::kernel::{Kernel, LinkInfo};
use viaduct_control::{Preview, preview};
use viaduct_router::pinned_programs;

use crate::options::agent_options;
use crate::ports::is_udp_port_taken;

/// Something that is not as the configuration wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Whether a router would refuse to start; otherwise it starts, says so in its status, and does
    /// what is missing once it can.
    pub(crate) refused: bool,
    /// What it is, and what to do.
    pub(crate) text: String,
}

impl Finding {
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self {
            refused: true,
            text: text.into(),
        }
    }

    pub(crate) fn problem(text: impl Into<String>) -> Self {
        Self {
            refused: false,
            text: text.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.refused { "error" } else { "warning" };
        write!(f, "{kind}: {}", self.text)
    }
}

/// Where the configuration says a thing.
fn place(config: &Config, line: usize) -> String {
    match line {
        0 => "added by command".to_owned(),
        line => format!("{}:{line}", config.file.display()),
    }
}

/// What is wrong with the interfaces and routes that the configuration names; also what was seen.
pub(crate) async fn interfaces(
    kernel: &Kernel,
    config: &Config,
) -> anyhow::Result<(Preview, Vec<Finding>)> {
    let seen = preview(kernel, &agent_options(config)).await?;
    let mut findings = Vec::new();
    let mut problem = |line: usize, text: String| {
        findings.push(Finding::problem(format!("{}: {text}", place(config, line))));
    };
    let underlay = &config.underlay;
    if let Some(reason) = &seen.underlay_problem {
        problem(
            underlay.line,
            format!("underlay {}: {reason}", underlay.interface),
        );
    }
    if let Some(reason) = &seen.mtu_problem {
        problem(
            underlay.line,
            format!("underlay {}: {reason}", underlay.interface),
        );
    }
    for (pod, reason) in &seen.port_problems {
        let pod = &config.pods[*pod];
        problem(
            pod.line,
            format!("pod {} on {}: {reason}", pod.name, pod.interface),
        );
    }
    for (route, reason) in &seen.route_problems {
        problem(config.routes[*route].line, reason.clone());
    }
    findings.extend(seen.contradiction.as_ref().map(Finding::refused));
    findings.extend(taken_port(kernel, config).await?);
    // A router that runs, or died, has its programs there by right.
    let own = pinned_programs(&config.runtime.pins(&config.node.name));
    for link in seen.ports.iter().chain([&seen.underlay]).flatten() {
        if let Some(text) = foreign_xdp(link, &own) {
            findings.push(Finding::problem(text));
        }
    }
    Ok((seen, findings))
}

/// Whether a program has the UDP port that the kernel's VXLAN device needs. Those of VXLAN devices
/// look the same, and share it.
async fn taken_port(kernel: &Kernel, config: &Config) -> anyhow::Result<Option<Finding>> {
    let network = config.networks.first();
    let Some(network) = network.filter(|it| config.slow_path.enabled && is_udp_port_taken(it.port))
    else {
        return Ok(None);
    };
    let (_, devices) = kernel.links().await?;
    let mut devices = devices.iter();
    let shared = devices.any(|device| device.settings.port == network.port && device.link.up);
    Ok((!shared).then(|| {
        let (name, port) = (&network.name, network.port);
        Finding::problem(format!(
            "UDP port {port} is taken, which the kernel's VXLAN device of network {name} needs: stop the program that has \
             it (ss -ulpn), or set the network's port on all nodes"
        ))
    }))
}

/// Whether a device carries somebody else's XDP program, none of `own`.
fn foreign_xdp(link: &LinkInfo, own: &[u32]) -> Option<String> {
    let xdp = link.xdp.filter(|xdp| !own.contains(&xdp.program_id))?;
    let name = &link.name;
    Some(format!(
        "cannot attach XDP to {name}: another XDP program (id {}) is attached; detach it \
         (ip link set dev {name} xdp off)",
        xdp.program_id
    ))
}
