//! The kernel's VXLAN device, its routes and neighbours, as flannel makes them.

use std::fmt::Write as _;

use super::{Setup, System};
use crate::bed::{self, Bed, UNDERLAY};
use crate::plan::{Case, Source};

const DEVICE: &str = "flannel.1";

pub(crate) struct Kernel {
    /// Asks the device's counters.
    command: Vec<String>,
}

impl Kernel {
    /// `steered`: has receive packet steering take packets to the processor where others poll. Else the kernel's work is
    /// done where packets come from: by the sender's processor.
    pub(crate) fn start(bed: &Bed, setup: &Setup, steered: bool) -> anyhow::Result<Self> {
        bed.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let mut lines = format!(
            "link add {DEVICE} address {} mtu {} type vxlan id {} dstport {} local {} dev {UNDERLAY} nolearning\n\
             address add 10.244.1.0/32 dev {DEVICE}\nlink set {DEVICE} up\n",
            bed::VTEP_MAC,
            bed::POD_MTU,
            bed::VNI,
            bed::VXLAN_PORT,
            bed::NODE,
        );
        let mut entries = String::new();
        for node in 0..bed.shape.nodes() {
            let (via, mac) = (bed::prefix(node), bed::far_vtep_mac(node));
            for n in bed.shape.prefixes_of(node) {
                let prefix = bed::prefix(n);
                writeln!(lines, "route add {prefix}/24 via {via} dev {DEVICE} onlink")?;
            }
            writeln!(
                lines,
                "neighbour add {via} lladdr {mac} dev {DEVICE} nud permanent"
            )?;
            writeln!(
                entries,
                "fdb append {mac} dev {DEVICE} dst {}",
                bed::far(node)
            )?;
        }
        for pod in bed.shape.pods() {
            let (address, device) = (pod.address(), pod.host_interface());
            writeln!(lines, "route add {address}/32 dev {device}")?;
            let mac = pod.mac();
            writeln!(
                lines,
                "neighbour add {address} lladdr {mac} dev {device} nud permanent"
            )?;
        }
        bed.batch("ip", &lines)?;
        bed.batch("bridge", &entries)?;
        let devices = bed.shape.pods().map(bed::Pod::host_interface);
        for device in devices.chain([UNDERLAY.to_owned()]) {
            if setup.source == Source::Frames {
                bed.run(&format!("ethtool -K {device} gro on"))?;
            }
            if steered {
                let mask = format!("{:x}", 1u64 << setup.cpu);
                bed.write_sys(&format!("{device}/queues/rx-0/rps_cpus"), &mask)?;
            }
        }
        Ok(Self {
            command: bed.words(&format!("ip -json -stats link show {DEVICE}")),
        })
    }
}

impl System for Kernel {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        let text = bed::run_words(&self.command)?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let way = match case {
            Case::Encap => "tx",
            Case::Decap => "rx",
        };
        Ok(all[0]["stats64"][way]["packets"].as_u64())
    }
}
