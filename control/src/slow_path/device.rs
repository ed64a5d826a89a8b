//! The VXLAN devices: found, made, adjusted, or adopted.

use std::net::IpAddr;

use tracing::info;

use super::plan::{self, Underlay};
use super::{SlowPath, SlowPathError};
use crate::kernel::{Kernel, KernelError, LinkInfo, LinkState, VxlanDevice, VxlanSettings};
use crate::options::{AgentOptions, NetworkOptions, SlowPathOptions};

/// The least MTU of a device (`ETH_MIN_MTU` of Linux `include/uapi/linux/if_ether.h`).
const LEAST_MTU: u32 = 68;

/// A device as it is to be, and what of it there is.
pub(super) struct Planned<'a> {
    pub(super) name: String,
    settings: VxlanSettings,
    state: LinkState,
    there: There<'a>,
}

enum There<'a> {
    Nothing,
    /// Ours, with these settings or others.
    Ours(&'a VxlanDevice),
    /// Somebody else's that fits.
    Adopted(&'a VxlanDevice),
}

impl<'a> Planned<'a> {
    /// Looks for the device; touches nothing.
    ///
    /// # Errors
    ///
    /// If somebody else's is in the way.
    pub(super) fn new(
        name: &str,
        (settings, state): (VxlanSettings, LinkState),
        links: &[LinkInfo],
        devices: &'a [VxlanDevice],
    ) -> Result<Self, SlowPathError> {
        let v6 = |of: &VxlanSettings| of.local.is_some_and(|local| local.is_ipv6());
        let same = |found: &&VxlanDevice| {
            found.settings.vni == settings.vni
                && found.settings.port == settings.port
                && v6(&found.settings) == v6(&settings)
        };
        let foreign = devices.iter().find(same).filter(|found| !found.is_ours());
        let ours = devices.iter().find(|d| d.is_ours() && d.link.name == name);
        let there = if let Some(found) = foreign {
            let misfits = plan::misfits(found, &settings, state, links);
            if !misfits.is_empty() {
                return Err(SlowPathError::Misfit {
                    device: found.link.name.clone(),
                    vni: settings.vni.get(),
                    port: settings.port,
                    misfits: misfits.join("; "),
                });
            }
            There::Adopted(found)
        } else if let Some(found) = ours {
            There::Ours(found)
        } else if links.iter().any(|link| link.name == name) {
            return Err(SlowPathError::NameTaken {
                device: name.to_owned(),
            });
        } else {
            There::Nothing
        };
        let name = match there {
            There::Adopted(found) => found.link.name.clone(),
            _ => name.to_owned(),
        };
        Ok(Self {
            name,
            settings,
            state,
            there,
        })
    }

    /// The MTU that it has, or is to have.
    pub(super) fn mtu(&self) -> u32 {
        match self.there {
            There::Adopted(found) => found.link.mtu,
            _ => self.state.mtu,
        }
    }

    pub(super) fn adopted(&self) -> bool {
        matches!(self.there, There::Adopted(_))
    }
}

/// The devices that a node is to have and can, one a family, with its underlay address, and why it
/// cannot have the others: somebody else's is in the way. Touches nothing.
pub(super) fn planned<'a>(
    options: &AgentOptions,
    wanted: &SlowPathOptions,
    network: &NetworkOptions,
    links: &[LinkInfo],
    devices: &'a [VxlanDevice],
    underlay: Underlay,
) -> (Vec<(IpAddr, Planned<'a>)>, Vec<SlowPathError>) {
    let (mut planned, mut unfit) = (Vec::new(), Vec::new());
    for own in plan::locals(options) {
        let name = if own.is_ipv4() {
            &wanted.device
        } else {
            &wanted.device6
        };
        let device = plan::device(network, own, underlay);
        match Planned::new(name, device, links, devices) {
            Ok(device) => planned.push((own, device)),
            Err(error) => unfit.push(error),
        }
    }
    (planned, unfit)
}

/// What somebody else has that keeps a node with these options from having its devices.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub(crate) async fn contradiction(
    kernel: &Kernel,
    options: &AgentOptions,
) -> Result<Option<SlowPathError>, KernelError> {
    let (Some(wanted), Some(network)) = (&options.slow_path, plan::network(options)) else {
        return Ok(None);
    };
    let (links, devices) = kernel.links().await?;
    let underlay = links.iter().find(|l| l.name == options.underlay.name);
    let planned = underlay.map(|link| {
        let underlay = Underlay {
            index: link.index,
            mtu: link.mtu,
        };
        planned(options, wanted, network, &links, &devices, underlay)
    });
    Ok(planned.and_then(|(_, unfit)| unfit.into_iter().next()))
}

impl SlowPath {
    /// Makes the device what it is to be; its number.
    pub(super) async fn bring_device(
        &mut self,
        kernel: &Kernel,
        planned: &Planned<'_>,
    ) -> Result<u32, SlowPathError> {
        let (name, state) = (planned.name.as_str(), planned.state);
        if state.mtu < LEAST_MTU && !planned.adopted() {
            return Err(SlowPathError::Mtu {
                device: name.to_owned(),
                mtu: state.mtu,
            });
        }
        match planned.there {
            There::Adopted(found) => {
                if !found.link.up {
                    let as_it_is = LinkState {
                        mtu: found.link.mtu,
                        ..state
                    };
                    kernel.set_link(&found.link, as_it_is).await?;
                }
                return Ok(found.link.index);
            }
            There::Ours(found) if found.settings == planned.settings => {
                if found.owner.as_deref() != Some(&*self.node) {
                    kernel.set_owner(name, &self.node).await?;
                }
                let link = &found.link;
                if link.mac != Some(state.mac) || link.mtu != state.mtu || !link.up {
                    self.repaired(&format!("state of {name}"));
                    set_up(kernel, link, state, &planned.settings).await?;
                }
                return Ok(link.index);
            }
            There::Ours(old) => {
                info!(
                    device = name,
                    "making the VXLAN device anew: it has other settings than it should"
                );
                kernel.remove_link(&old.link).await?;
            }
            There::Nothing => {}
        }
        self.repaired(&format!("VXLAN device {name}"));
        kernel
            .add_vxlan(name, &planned.settings, state, &self.node)
            .await?;
        let made = kernel.link_by_name(name).await?;
        // No address of its own choice: its MAC may be another device's, too.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        set_up(kernel, &made, state, &planned.settings).await?;
        Ok(made.index)
    }
}

/// Sets a device of ours up, which takes its UDP port.
async fn set_up(
    kernel: &Kernel,
    link: &LinkInfo,
    state: LinkState,
    settings: &VxlanSettings,
) -> Result<(), SlowPathError> {
    match kernel.set_link(link, state).await {
        Err(error) if error.is_address_in_use() => Err(SlowPathError::PortTaken {
            device: link.name.clone(),
            port: settings.port,
        }),
        done => Ok(done?),
    }
}
