//! One look at everything that the kernel's path consists of, and what is to be done for it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use tracing::info;

use super::bring_entries::interface_names;
use super::device::Planned;
use super::host_firewall::Probes;
use super::plan::{Devices, PodLink, Underlay};
use super::sysctls::{self, Interfaces};
use super::wanted::Inputs;
use super::{SlowPath, SlowPathError, device, rules};
use crate::kernel::{Kernel, KernelError, LinkInfo, VxlanDevice};
use crate::next_hop::IPV6_MIN_MTU;
use crate::options::{AgentOptions, NetworkOptions, PortOptions, SlowPathOptions};

impl SlowPath {
    /// Does all that is to be done; the problems.
    ///
    /// # Errors
    ///
    /// If there can be no VXLAN device.
    pub(super) async fn bring_about(
        &mut self,
        kernel: &Kernel,
        options: &AgentOptions,
        wanted: &SlowPathOptions,
        network: &NetworkOptions,
    ) -> Result<Vec<String>, SlowPathError> {
        let (links, devices) = kernel.links().await?;
        let options = &*with_own_interfaces(options, &links);
        let Some(underlay) = links.iter().find(|l| l.name == options.underlay.name) else {
            return Ok(vec![format!(
                "there is no underlay {}",
                options.underlay.name
            )]);
        };
        let underlay = Underlay {
            index: underlay.index,
            mtu: underlay.mtu,
        };
        let (planned, mut unfit) =
            device::planned(options, wanted, network, &links, &devices, underlay);
        // While the router runs, one family's device is of use without the other's. A start refuses what
        // contradicts its configuration.
        if (self.starting || planned.is_empty())
            && let Some(error) = unfit.pop()
        {
            return Err(error);
        }
        let names: Vec<&str> = planned.iter().map(|(_, it)| it.name.as_str()).collect();
        self.status.device = (!names.is_empty()).then(|| names.join(" and "));
        self.status.adopted = planned.iter().any(|(_, device)| device.adopted());
        self.nodes.update(&options.routes);
        let table = rules::table(
            options,
            &self.macs,
            &self.nodes,
            network,
            &names,
            wanted.masquerade,
        );
        let probes = Probes::new(options, network, &names);
        if !self.settled {
            // Before anything can come or go by the kernel.
            self.firewall
                .want(table.clone(), probes.clone(), Instant::now());
            if self.starting {
                self.firewall.settle().await;
            }
            if !self.firewall.stands() {
                return Ok(self.firewall.problems());
            }
        }
        let mut indexes = Devices::default();
        for (own, device) in &planned {
            let index = self.bring_device(kernel, device).await?;
            if own.is_ipv4() {
                indexes.v4 = Some(index);
            } else {
                indexes.v6 = Some(index);
            }
        }
        if unfit.is_empty() {
            remove_stale(kernel, &devices, &names).await?;
        }
        let pods = self.pods(options, &links);
        let devices: BTreeSet<u32> = indexes.iter().collect();
        if devices != self.devices {
            self.mirror.distrust();
        }
        self.interfaces = pods.iter().map(|pod| pod.index).collect();
        self.interfaces.extend(&devices);
        self.devices = devices;
        self.by_family = indexes;
        let (mut problems, v6) = self.bring_settings(options, network, &names, &pods);
        self.overlaps.again(options);
        problems.extend(unfit.iter().map(ToString::to_string));
        let small = without_v6(&planned);
        let device_v6 = small.is_none();
        problems.extend(small.filter(|_| v6 && network.overlay_v6().is_some()));
        let overlaps = &self.overlaps.found;
        problems.extend(overlaps.refused.iter().chain(&overlaps.warnings).cloned());
        let changed = self.wanted.update(&Inputs {
            network,
            routes: &options.routes,
            devices: indexes,
            pods: &pods,
            v6,
            device_v6,
            spared: &overlaps.spared,
        });
        self.mirror.look_at(changed);
        problems.extend(self.wanted.conflicts().iter().cloned());
        let mut names = interface_names(&links);
        for (own, device) in &planned {
            names.extend(indexes.like(*own).map(|index| (index, device.name.clone())));
        }
        let devices = self.devices.clone();
        self.bring_entries(kernel, &devices, &names).await?;
        problems.extend(self.refused.values().cloned());
        // What has lost its routes may lose its rules.
        self.firewall.want(table, probes, Instant::now());
        problems.extend(self.firewall.problems());
        self.settled = true;
        Ok(problems)
    }

    /// The pods that the kernel may have to do with: their interfaces are up, and the rules
    /// against what they could forge stand.
    fn pods<'a>(&mut self, options: &'a AgentOptions, links: &[LinkInfo]) -> Vec<PodLink<'a>> {
        let by_name: HashMap<&str, &LinkInfo> =
            links.iter().map(|link| (&*link.name, link)).collect();
        let mut pods = Vec::new();
        for pod in &options.ports {
            let Some(&link) = by_name.get(&*pod.interface) else {
                continue;
            };
            if self.firewall.covers(&pod.interface) {
                self.covered.insert(link.index);
            }
            pods.push((link, pod));
        }
        let there: BTreeSet<u32> = pods.iter().map(|(link, _)| link.index).collect();
        self.covered.retain(|index| there.contains(index));
        pods.retain(|(link, _)| link.up && self.covered.contains(&link.index));
        let of = |(link, pod): (&LinkInfo, &'a _)| PodLink {
            index: link.index,
            pod,
        };
        pods.into_iter().map(of).collect()
    }

    /// Brings the settings about; what is wrong, and whether there is IPv6.
    fn bring_settings(
        &mut self,
        options: &AgentOptions,
        network: &NetworkOptions,
        devices: &[&str],
        pods: &[PodLink<'_>],
    ) -> (Vec<String>, bool) {
        let mut carried = Vec::new();
        let mut others = Vec::new();
        for PodLink { pod, .. } in pods {
            let name = pod.interface.as_str();
            if pod.network == 0 {
                carried.push((name, pod.addresses.iter().any(IpAddr::is_ipv6)));
            } else {
                others.push(name);
            }
        }
        let of = Interfaces {
            underlay: &options.underlay.name,
            devices,
            pods: &carried,
            others: &others,
            v6: network.overlay_v6().is_some(),
        };
        let needs = sysctls::needs(&of, |name| self.settings.original(name));
        let mut problems = self.settings.apply(&needs.set);
        problems.extend(needs.host);
        (problems, needs.v6)
    }
}

/// The options without pods whose name another interface has: nothing of ours is to be on that.
fn with_own_interfaces<'a>(options: &'a AgentOptions, links: &[LinkInfo]) -> Cow<'a, AgentOptions> {
    let named: HashMap<&str, &LinkInfo> = links.iter().map(|link| (&*link.name, link)).collect();
    let foreign = |pod: &PortOptions| {
        let link = named.get(&*pod.interface);
        link.is_some_and(|link| !pod.binding.admits(link))
    };
    if !options.ports.iter().any(foreign) {
        return Cow::Borrowed(options);
    }
    let mut options = options.clone();
    options.ports.retain(|pod| !foreign(pod));
    Cow::Owned(options)
}

/// Removes devices of ours other than these.
async fn remove_stale(
    kernel: &Kernel,
    devices: &[VxlanDevice],
    names: &[&str],
) -> Result<(), KernelError> {
    for stale in devices.iter().filter(|found| found.is_ours()) {
        if !names.contains(&&*stale.link.name) {
            info!(
                device = stale.link.name,
                "removing a VXLAN device that no route needs"
            );
            kernel.remove_link(&stale.link).await?;
        }
    }
    Ok(())
}

/// Why the kernel has no IPv6 on the devices: their MTU is too small for it.
fn without_v6(devices: &[(IpAddr, Planned<'_>)]) -> Option<String> {
    let devices = devices.iter().map(|(_, device)| device);
    let small = devices.min_by_key(|device| device.mtu())?;
    let (name, mtu) = (&small.name, small.mtu());
    (mtu < IPV6_MIN_MTU).then(|| {
        format!(
            "the kernel carries no IPv6 between nodes: {name} has an MTU of {mtu}, and IPv6 needs {IPV6_MIN_MTU}; use links \
             with a larger MTU on the underlay"
        )
    })
}
