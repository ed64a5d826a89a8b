//! The programs of XDP and tc: loading, maps, attaching and pinning.
#![allow(unsafe_code)]

mod heartbeat;
mod keys;
mod link;
mod maps;
mod mirror;
mod outcomes;
mod settled;
mod trial;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::Map;
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Btf, Ebpf, EbpfLoader};
use viaduct_encap::Vni;

pub(crate) use self::heartbeat::{Beat, MAX_WORKERS};
use self::heartbeat::{Heartbeat, map_heartbeat};
pub(crate) use self::keys::{Device, Trunk};
use self::keys::{PodKey, PrefixKey, SourceKey, Vtep, mapped, prefix_key, vtep_key};
pub(crate) use self::link::device_of;
use self::maps::Maps;
pub use self::outcomes::Outcomes;
pub use self::settled::{Carried, Settled};
pub use self::trial::{Trial, Tried};
use crate::attach::Attachment;
use crate::error::RouterError;
use crate::pins::remove_folders;

/// Numbers of ports that the programs' maps have room for, as `router/bpf/settled.h` has it.
const MAX_PORTS: u32 = 4096;

/// XDP mode of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// After the kernel has made an skb.
    Generic,
}

/// How the programs are loaded.
struct Load {
    /// Size of the socket map.
    slots: u32,
    workers: u32,
    heartbeat_timeout_ns: u64,
    fail_closed: bool,
    settled: bool,
    reads_kernel: bool,
}

impl Load {
    fn load(&self) -> Result<Ebpf, RouterError> {
        EbpfLoader::new()
            .override_global("heartbeat_timeout_ns", &self.heartbeat_timeout_ns, true)
            .override_global("fail_closed", &u32::from(self.fail_closed), true)
            .override_global("settled", &u32::from(self.settled), true)
            .override_global("reads_kernel", &u32::from(self.reads_kernel), true)
            .map_max_entries("xsks", self.slots)
            .map_max_entries("port_used", self.workers.saturating_mul(MAX_PORTS))
            .load(aya::include_bytes_aligned!(concat!(
                env!("OUT_DIR"),
                "/hooks.bpf.o"
            )))
            .map_err(|e| failed("cannot load the BPF programs")(chain(&e)))
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, RouterError> {
    let program = ebpf.program_mut(name).and_then(|p| p.try_into().ok());
    program.ok_or_else(|| {
        RouterError::new(
            format!("cannot find the tc program {name}"),
            "the object lacks it",
        )
    })
}

/// The loaded programs, their maps, and their links.
pub(crate) struct Pinholes {
    ebpf: Ebpf,
    maps: Maps,
    pub(crate) settled: Settled,
    heartbeat: Arc<Heartbeat>,
    pub(crate) pins: PathBuf,
    pub(crate) links: std::collections::HashMap<u32, Attachment>,
    /// The programs stay attached when this is dropped.
    pub(crate) stays: bool,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(String) -> RouterError {
    let doing = doing.into();
    move |cause| RouterError::new(doing, cause)
}

pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Pinholes {
    /// Loads the programs. `slots` is the size of the socket map; `pins` a
    /// folder in a BPF filesystem, made if missing. Without `settled`, hooks carry nothing themselves.
    pub(crate) fn load(
        pins: &Path,
        slots: u32,
        workers: u32,
        heartbeat_timeout: Duration,
        fail_closed: bool,
        settled: bool,
    ) -> Result<Self, RouterError> {
        // Without BTF, or where the kernel lets no program read its memory (lockdown), VLAN tags that
        // are beside packets are not seen in XDP.
        let reads_kernel = Btf::from_sys_fs().is_ok();
        let load = |reads_kernel| {
            let load = Load {
                slots,
                workers,
                heartbeat_timeout_ns: u64::try_from(heartbeat_timeout.as_nanos())
                    .unwrap_or(u64::MAX),
                fail_closed,
                settled,
                reads_kernel,
            };
            Self::load_into(pins, &load)
        };
        let mut loaded = load(reads_kernel);
        if loaded.is_err() && reads_kernel {
            loaded = load(false);
        }
        if loaded.is_err() {
            remove_folders(pins);
        }
        loaded
    }

    fn load_into(pins: &Path, load: &Load) -> Result<Self, RouterError> {
        fs::create_dir_all(pins).map_err(|e| {
            RouterError::new(
                format!("cannot make {}", pins.display()),
                format!("{e}; is a BPF filesystem mounted there? (mount -t bpf bpf /sys/fs/bpf)"),
            )
        })?;
        let mut ebpf = load.load()?;
        let Some(Map::Array(data)) = ebpf.map("heartbeat") else {
            return Err(RouterError::new(
                "cannot load the BPF programs",
                "no heartbeat map",
            ));
        };
        let heartbeat = Arc::new(map_heartbeat(data)?);
        let mut pinholes = Self {
            maps: Maps::of(&mut ebpf)?,
            settled: Settled::of(&mut ebpf)?,
            ebpf,
            heartbeat,
            pins: pins.to_owned(),
            links: std::collections::HashMap::default(),
            stays: false,
        };
        for (name, program) in pinholes.ebpf.programs_mut() {
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => Ok(()),
            };
            loaded.map_err(|e| failed(format!("cannot load {name}"))(chain(&e)))?;
        }
        // The programs' alone: they need no descriptor any more.
        for own in ["known", "merged_at", "given", "trunk_used", "port_used"] {
            drop(pinholes.ebpf.take_map(own));
        }
        Ok(pinholes)
    }

    pub(crate) fn program(&mut self, name: &str) -> Result<&mut Xdp, RouterError> {
        let program = self.ebpf.program_mut(name);
        program.and_then(|p| p.try_into().ok()).ok_or_else(|| {
            RouterError::new(
                format!("cannot find the XDP program {name}"),
                "the object lacks it",
            )
        })
    }

    pub(crate) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, RouterError> {
        classifier(&mut self.ebpf, name)
    }

    pub(crate) fn beat(&self, worker: usize) -> Beat {
        Beat::new(&self.heartbeat, worker)
    }

    /// Does what could not be done so far in the programs' maps, and repairs what somebody else has changed there: how
    /// many entries.
    pub(crate) fn repair(&mut self) -> usize {
        self.maps.repair() + self.settled.repair()
    }

    /// What is wrong with the programs' maps.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.maps.problems();
        problems.extend(self.settled.problems());
        problems
    }

    pub(crate) fn set_socket(&mut self, slot: u32, fd: RawFd) -> Result<(), RouterError> {
        let doing = format_args!("cannot put a socket into slot {slot} of the socket map");
        self.maps.sockets.set(slot, fd, doing)
    }

    /// Takes a socket out, before it is closed: its number may be another's then.
    pub(crate) fn remove_socket(&mut self, slot: u32) {
        let _ = self.maps.sockets.unset(&slot, "");
    }

    /// Tells the programs about a worker's trunk, whose own end has the index `inner` in its namespace.
    pub(crate) fn set_trunk(
        &mut self,
        worker: usize,
        trunk: Trunk,
        inner: u32,
    ) -> Result<(), RouterError> {
        let doing = format_args!("cannot register the trunk of worker {worker}");
        let number = u32::try_from(worker).unwrap_or(u32::MAX);
        self.maps.trunk_slots.set(inner, trunk.slot, doing)?;
        self.maps.trunks.set(number, trunk, doing)
    }

    /// Says which VXLAN device of the kernel takes packets over IPv4 (0) and over IPv6 (1) apart; 0: none.
    pub(crate) fn set_overlay(&mut self, family: u32, ifindex: u32) -> Result<(), RouterError> {
        let doing = "cannot note the kernel's VXLAN device";
        match ifindex {
            0 => self.maps.overlays.unset(&family, doing),
            _ => self.maps.overlays.set(family, ifindex, doing),
        }
    }

    /// Tells the programs about a device, before it is attached.
    pub(crate) fn set_device(
        &mut self,
        (name, ifindex): (&str, u32),
        device: Device,
    ) -> Result<(), RouterError> {
        let doing = format_args!("cannot tell the XDP programs about {name}");
        self.maps.devices.set(ifindex, device, doing)
    }

    /// What fails is tried again.
    pub(crate) fn remove_device(&mut self, ifindex: u32) {
        let _ = self.maps.devices.unset(&ifindex, "");
    }

    /// What a pod may send from.
    pub(crate) fn set_sources(
        &mut self,
        ifindex: u32,
        addresses: &[IpAddr],
    ) -> Result<(), RouterError> {
        for &address in addresses {
            let key = SourceKey {
                ifindex,
                address: mapped(address),
            };
            let doing = format_args!("cannot note the pod's address {address}");
            self.maps.sources.set(key, 1, doing)?;
        }
        Ok(())
    }

    /// What fails is tried again.
    pub(crate) fn remove_sources(&mut self, ifindex: u32, addresses: &[IpAddr]) {
        for &address in addresses {
            let address = mapped(address);
            let _ = self.maps.sources.unset(&SourceKey { ifindex, address }, "");
        }
    }

    /// One of our networks; `carried` by the kernel, too.
    pub(crate) fn add_network(&mut self, vni: Vni, carried: bool) -> Result<(), RouterError> {
        let doing = format_args!("cannot register network {}", vni.get());
        self.maps.networks.set(vni.get(), u32::from(carried), doing)
    }

    /// The node that an inner source belongs to; none: it is nobody's.
    pub(crate) fn set_origin(
        &mut self,
        vni: Vni,
        (address, length): (IpAddr, u8),
        vtep: Option<IpAddr>,
    ) -> Result<(), RouterError> {
        let key = prefix_key(vni, address, length);
        let doing = format_args!("cannot note whose {address}/{length} is");
        match vtep {
            Some(vtep) => self.maps.origins.set(key, mapped(vtep), doing),
            None => self.maps.origins.unset(&key, doing),
        }
    }

    /// The places where tunnels end: pods send nothing there.
    pub(crate) fn set_nodes(
        &mut self,
        nodes: impl Iterator<Item = (IpAddr, u16)>,
    ) -> Result<(), RouterError> {
        let doing = "cannot note all nodes, to which pods may send no tunnel packets";
        self.maps.nodes.replace(places(nodes), doing)
    }

    /// The places where our tunnels end.
    pub(crate) fn set_vteps(
        &mut self,
        vteps: impl Iterator<Item = (IpAddr, u16)>,
    ) -> Result<(), RouterError> {
        let doing = "cannot open the pinholes for all of this node's addresses";
        self.maps.vteps.replace(places(vteps), doing)
    }

    pub(crate) fn add_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        let doing = format_args!("cannot open the pinhole for pod {address}");
        self.maps.pods.set(pod_key(vni, address), 1, doing)
    }

    pub(crate) fn remove_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        let doing = format_args!("cannot close the pinhole for pod {address}");
        self.maps.pods.unset(&pod_key(vni, address), doing)
    }

    /// Where pods' packets are the workers'.
    pub(crate) fn set_cluster<'a>(
        &mut self,
        prefixes: impl Iterator<Item = &'a ClusterPrefix>,
    ) -> Result<(), RouterError> {
        let wanted = prefixes.map(|it| it.entry()).collect();
        let doing = "cannot open the pods' pinholes for all of the cluster's prefixes";
        let done = self.maps.cluster.replace(wanted, doing);
        done.and(self.settled.begin_generation())
    }
}

/// A prefix of the cluster, or an address inside one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterPrefix {
    /// Its network's.
    pub vni: Vni,
    /// Its first address.
    pub address: IpAddr,
    /// Bits of the address, in its own family.
    pub length: u8,
    /// Whether pods' packets to there are the workers'; the kernel's otherwise.
    pub to_workers: bool,
}

impl ClusterPrefix {
    fn entry(self) -> (PrefixKey, u32) {
        let key = prefix_key(self.vni, self.address, self.length);
        (key, u32::from(self.to_workers))
    }
}

fn pod_key(vni: Vni, address: IpAddr) -> PodKey {
    PodKey {
        vni: vni.get(),
        address: mapped(address),
    }
}

fn places(all: impl Iterator<Item = (IpAddr, u16)>) -> BTreeMap<Vtep, u32> {
    all.map(|(address, port)| (vtep_key(address, port), 1))
        .collect()
}

impl Drop for Pinholes {
    fn drop(&mut self) {
        self.let_go();
        // Fails while something is in it; then it stays.
        remove_folders(&self.pins);
    }
}
