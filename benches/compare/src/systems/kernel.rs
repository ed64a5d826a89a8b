//! The kernel's VXLAN device, its routes and neighbours, as flannel makes them.

use std::fmt::Write as _;

use super::System;
use crate::bed::{self, UNDERLAY};
use crate::host::Host;
use crate::node::Node;
use crate::plan::Case;

const DEVICE: &str = "flannel.1";

pub(crate) struct Kernel {
    host: Host,
}

/// Makes the VXLAN device, without any other node.
pub(crate) fn device(node: &Node) -> anyhow::Result<()> {
    node.host.batch(
        "ip",
        &format!(
            "link add {DEVICE} address {} mtu {} type vxlan id {} dstport {} local {} dev {UNDERLAY} nolearning\n\
             address add {}/32 dev {DEVICE}\nlink set {DEVICE} up\n",
            node.vtep.mac,
            bed::POD_MTU,
            bed::VNI,
            bed::VXLAN_PORT,
            node.vtep.address,
            node.prefix,
        ),
    )
}

impl Kernel {
    pub(crate) fn start(node: &Node) -> anyhow::Result<Self> {
        node.host.run("sysctl -qw net.ipv4.ip_forward=1")?;
        device(node)?;
        let mut lines = String::new();
        let mut entries = String::new();
        for other in &node.others {
            let mac = other.vtep.mac;
            let Some(via) = other.prefixes.first() else {
                continue;
            };
            for prefix in &other.prefixes {
                writeln!(lines, "route add {prefix}/24 via {via} dev {DEVICE} onlink")?;
            }
            writeln!(
                lines,
                "neighbour add {via} lladdr {mac} dev {DEVICE} nud permanent"
            )?;
            writeln!(
                entries,
                "fdb append {mac} dev {DEVICE} dst {}",
                other.vtep.address
            )?;
        }
        for pod in &node.pods {
            let (address, device, mac) = (pod.address, &pod.interface, pod.mac);
            writeln!(lines, "route add {address}/32 dev {device}")?;
            writeln!(
                lines,
                "neighbour add {address} lladdr {mac} dev {device} nud permanent"
            )?;
        }
        node.host.batch("ip", &lines)?;
        node.host.batch("bridge", &entries)?;
        Ok(Self {
            host: node.host.clone(),
        })
    }

    /// Has receive packet steering take packets to this processor. Else the kernel's work is done where packets come
    /// from: by the sender's processor.
    pub(crate) fn steered(self, node: &Node, cpu: usize) -> anyhow::Result<Self> {
        let mask = format!("{:x}", 1u64 << cpu);
        for device in node.devices() {
            let file = format!("{device}/queues/rx-0/rps_cpus");
            node.host.write_sys(&file, &mask)?;
        }
        Ok(self)
    }

    fn counted(&self, case: Case) -> anyhow::Result<(u64, u64)> {
        let way = match case {
            Case::Encap => "tx",
            Case::Decap => "rx",
        };
        self.host.counted(DEVICE, way)
    }
}

impl System for Kernel {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.counted(case)?.0))
    }

    fn carried_bytes(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.counted(case)?.1))
    }
}
