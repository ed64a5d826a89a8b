//! The XDP programs: loading, maps, attaching and pinning.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, PerCpuArray, XskMap};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader, Pod};
use viaduct_encap::Vni;

use crate::attach::{Attachment, remove_folders};
use crate::error::RouterError;
use crate::tick::Tick;

/// XDP mode of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// After the kernel has made an skb.
    Generic,
}

const BEAT_BYTES: usize = 64;
pub(crate) const MAX_WORKERS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Device {
    /// The first slot of the socket map.
    pub(crate) base: u32,
    /// Queues that have an owner.
    pub(crate) queues: u32,
    pub(crate) workers: u32,
    /// A pod's network and MAC.
    pub(crate) vni: u32,
    pub(crate) mac: [u8; 6],
    /// 1: of a network that the kernel does not carry.
    pub(crate) alien: u8,
    pub(crate) zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Vtep {
    address: [u8; 16],
    port: [u8; 2],
    zero: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PodKey {
    vni: u32,
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct PrefixKey {
    vni: [u8; 4],
    address: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SourceKey {
    ifindex: u32,
    address: [u8; 16],
}

// SAFETY: all five are plain data without padding (24, 20, 20, 20 and 20 bytes).
unsafe impl Pod for Device {}
// SAFETY: as above.
unsafe impl Pod for SourceKey {}
// SAFETY: as above.
unsafe impl Pod for Vtep {}
// SAFETY: as above.
unsafe impl Pod for PodKey {}
// SAFETY: as above.
unsafe impl Pod for PrefixKey {}

/// IPv4 addresses are mapped into IPv6 for the maps.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

fn vtep_key(address: IpAddr, port: u16) -> Vtep {
    Vtep {
        address: mapped(address),
        port: port.to_be_bytes(),
        zero: [0; 2],
    }
}

/// `length` counts the bits of `address` in its own family.
fn prefix_key(vni: Vni, address: IpAddr, length: u8) -> Key<PrefixKey> {
    let bits = 32 + u32::from(length) + if address.is_ipv4() { 96 } else { 0 };
    let data = PrefixKey {
        vni: vni.get().to_be_bytes(),
        address: mapped(address),
    };
    Key::new(bits, data)
}

/// The heartbeat map, mapped into memory.
#[derive(Debug)]
struct Heartbeat {
    map: NonNull<libc::c_void>,
}

// SAFETY: the mapping is only read and written as atomics.
unsafe impl Send for Heartbeat {}
// SAFETY: as above.
unsafe impl Sync for Heartbeat {}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; every Beat holds an Arc of it.
        unsafe { libc::munmap(self.map.as_ptr(), BEAT_BYTES * MAX_WORKERS) };
    }
}

/// One worker's place in the heartbeat map.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    map: Arc<Heartbeat>,
    offset: usize,
}

impl Beat {
    fn place(&self) -> &AtomicU64 {
        // SAFETY: the offset is that of an aligned u64 inside the mapping.
        unsafe {
            self.map
                .map
                .byte_add(self.offset)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }

    /// Tells XDP that the worker lives.
    #[inline]
    pub(crate) fn at(&self, tick: Tick) {
        self.place().store(tick.0, Ordering::Relaxed);
    }

    /// When the worker lived last.
    #[inline]
    pub(crate) fn last(&self) -> Tick {
        Tick(self.place().load(Ordering::Relaxed))
    }
}

/// How packets fared at the pinholes, all CPUs and devices together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Given to a worker's socket.
    pub redirected: u64,
    /// Left to the kernel: not ours.
    pub passed: u64,
    /// Left to the kernel: the worker's heartbeat had stopped, or its socket was gone.
    pub stale: u64,
    /// Dropped for the same reason, when nothing may pass unseen.
    pub closed: u64,
    /// Dropped: a pod's packet to the kernel with a source, or a MAC, that is not its own, or a
    /// router's message.
    pub spoofed: u64,
    /// Dropped: a tunnel's packet to the kernel whose inner source is not the sending node's.
    pub unknown_vtep: u64,
    /// Dropped: a pod's packet to the tunnels' port of a node.
    pub tunnel_from_pod: u64,
    /// Dropped: a packet of a network that only workers carry.
    pub no_slow_path: u64,
    /// Dropped: a pod's packet to many, neighbour discovery apart.
    pub multicast: u64,
    /// Dropped: a frame with a VLAN tag.
    pub vlan_tagged: u64,
    /// Dropped: a tunnel's packet with neither IPv4 nor IPv6 inside, or with a part of a header.
    pub malformed: u64,
}

/// The loaded programs, their maps, and their links.
pub(crate) struct Pinholes {
    ebpf: Ebpf,
    heartbeat: Arc<Heartbeat>,
    pub(crate) pins: PathBuf,
    pub(crate) links: std::collections::HashMap<u32, Attachment>,
    /// Without a heartbeat packets are dropped, not left to the kernel.
    pub(crate) fail_closed: bool,
    /// The programs stay attached when this is dropped, if `fail_closed`.
    pub(crate) stays_closed: bool,
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
    /// folder in a BPF filesystem, made if missing.
    pub(crate) fn load(
        pins: &Path,
        slots: u32,
        heartbeat_timeout: Duration,
        fail_closed: bool,
    ) -> Result<Self, RouterError> {
        let loaded = Self::load_into(pins, slots, heartbeat_timeout, fail_closed);
        if loaded.is_err() {
            remove_folders(pins);
        }
        loaded
    }

    fn load_into(
        pins: &Path,
        slots: u32,
        heartbeat_timeout: Duration,
        fail_closed: bool,
    ) -> Result<Self, RouterError> {
        fs::create_dir_all(pins).map_err(|e| {
            RouterError::new(
                format!("cannot make {}", pins.display()),
                format!("{e}; is a BPF filesystem mounted there? (mount -t bpf bpf /sys/fs/bpf)"),
            )
        })?;
        let timeout = u64::try_from(heartbeat_timeout.as_nanos()).unwrap_or(u64::MAX);
        let ebpf = EbpfLoader::new()
            .override_global("heartbeat_timeout_ns", &timeout, true)
            .override_global("fail_closed", &u32::from(fail_closed), true)
            .map_max_entries("xsks", slots)
            .load(aya::include_bytes_aligned!(concat!(
                env!("OUT_DIR"),
                "/pinhole.bpf.o"
            )))
            .map_err(|e| failed("cannot load the XDP programs")(chain(&e)))?;
        let Some(Map::Array(data)) = ebpf.map("heartbeat") else {
            return Err(RouterError::new(
                "cannot load the XDP programs",
                "no heartbeat map",
            ));
        };
        let heartbeat = Arc::new(map_heartbeat(data)?);
        let mut pinholes = Self {
            ebpf,
            heartbeat,
            pins: pins.to_owned(),
            links: std::collections::HashMap::default(),
            fail_closed,
            stays_closed: false,
        };
        for name in ["viaduct_underlay", "viaduct_pod"] {
            pinholes
                .program(name)?
                .load()
                .map_err(|e| failed(format!("cannot load {name}"))(chain(&e)))?;
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

    fn map<'a, M>(&'a mut self, name: &str) -> Result<M, RouterError>
    where
        M: TryFrom<&'a mut Map>,
    {
        let map = self.ebpf.map_mut(name).and_then(|m| M::try_from(m).ok());
        map.ok_or_else(|| {
            RouterError::new(
                format!("cannot use the BPF map {name}"),
                "it is missing or of another type",
            )
        })
    }

    pub(crate) fn beat(&self, worker: usize) -> Beat {
        Beat {
            map: Arc::clone(&self.heartbeat),
            offset: worker.min(MAX_WORKERS - 1) * BEAT_BYTES,
        }
    }

    pub(crate) fn set_socket(&mut self, slot: u32, fd: RawFd) -> Result<(), RouterError> {
        self.map::<XskMap<_>>("xsks")?
            .set(slot, fd, 0)
            .map_err(|e| {
                failed(format!(
                    "cannot put a socket into slot {slot} of the socket map"
                ))(chain(&e))
            })
    }

    /// Tells the programs about a device, before it is attached.
    pub(crate) fn set_device(&mut self, ifindex: u32, device: Device) -> Result<(), RouterError> {
        self.map::<HashMap<_, u32, Device>>("devices")?
            .insert(ifindex, device, 0)
            .map_err(|e| failed(format!("cannot register interface {ifindex}"))(chain(&e)))
    }

    /// What a pod may send from.
    pub(crate) fn set_sources(
        &mut self,
        ifindex: u32,
        addresses: &[IpAddr],
    ) -> Result<(), RouterError> {
        let mut sources = self.map::<HashMap<_, SourceKey, u32>>("sources")?;
        for &address in addresses {
            let key = SourceKey {
                ifindex,
                address: mapped(address),
            };
            sources.insert(key, 1, 0).map_err(|e| {
                failed(format!("cannot note the pod's address {address}"))(chain(&e))
            })?;
        }
        Ok(())
    }

    pub(crate) fn remove_sources(&mut self, ifindex: u32, addresses: &[IpAddr]) {
        if let Ok(mut sources) = self.map::<HashMap<_, SourceKey, u32>>("sources") {
            for &address in addresses {
                let address = mapped(address);
                let _ = sources.remove(&SourceKey { ifindex, address });
            }
        }
    }

    /// One of our networks; `carried` by the kernel, too.
    pub(crate) fn add_network(&mut self, vni: Vni, carried: bool) -> Result<(), RouterError> {
        self.map::<HashMap<_, u32, u32>>("networks")?
            .insert(vni.get(), u32::from(carried), 0)
            .map_err(|e| failed(format!("cannot register network {}", vni.get()))(chain(&e)))
    }

    /// The node that an inner source belongs to; none: it is nobody's.
    pub(crate) fn set_origin(
        &mut self,
        vni: Vni,
        prefix: (IpAddr, u8),
        vtep: Option<IpAddr>,
    ) -> Result<(), RouterError> {
        let (address, length) = prefix;
        let key = prefix_key(vni, address, length);
        let mut origins = self.map::<LpmTrie<_, PrefixKey, [u8; 16]>>("origins")?;
        let done = match vtep {
            Some(vtep) => origins.insert(&key, mapped(vtep), 0),
            None => origins.remove(&key),
        };
        done.map_err(|e| failed(format!("cannot note whose {address}/{length} is"))(chain(&e)))
    }

    /// A place where tunnels end, or ended: pods send nothing there.
    pub(crate) fn set_node(
        &mut self,
        address: IpAddr,
        port: u16,
        there: bool,
    ) -> Result<(), RouterError> {
        let mut nodes = self.map::<HashMap<_, Vtep, u32>>("nodes")?;
        let key = vtep_key(address, port);
        let done = if there {
            nodes.insert(key, 1, 0)
        } else {
            nodes.remove(&key)
        };
        done.map_err(|e| failed(format!("cannot note the node {address}:{port}"))(chain(&e)))
    }

    pub(crate) fn remove_device(&mut self, ifindex: u32) {
        if let Ok(mut devices) = self.map::<HashMap<_, u32, Device>>("devices") {
            let _ = devices.remove(&ifindex);
        }
    }

    pub(crate) fn add_vtep(&mut self, address: IpAddr, port: u16) -> Result<(), RouterError> {
        self.map::<HashMap<_, Vtep, u32>>("vteps")?
            .insert(vtep_key(address, port), 1, 0)
            .map_err(|e| failed(format!("cannot open the pinhole for {address}:{port}"))(chain(&e)))
    }

    pub(crate) fn remove_vtep(&mut self, address: IpAddr, port: u16) -> Result<(), RouterError> {
        self.map::<HashMap<_, Vtep, u32>>("vteps")?
            .remove(&vtep_key(address, port))
            .map_err(|e| {
                failed(format!("cannot close the pinhole for {address}:{port}"))(chain(&e))
            })
    }

    pub(crate) fn add_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        let key = PodKey {
            vni: vni.get(),
            address: mapped(address),
        };
        self.map::<HashMap<_, PodKey, u32>>("pods")?
            .insert(key, 1, 0)
            .map_err(|e| failed(format!("cannot open the pinhole for pod {address}"))(chain(&e)))
    }

    pub(crate) fn remove_pod(&mut self, vni: Vni, address: IpAddr) -> Result<(), RouterError> {
        let key = PodKey {
            vni: vni.get(),
            address: mapped(address),
        };
        self.map::<HashMap<_, PodKey, u32>>("pods")?
            .remove(&key)
            .map_err(|e| failed(format!("cannot close the pinhole for pod {address}"))(chain(&e)))
    }

    /// `length` counts the bits of `address` in its own family.
    pub(crate) fn add_prefix(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
        to_workers: bool,
    ) -> Result<(), RouterError> {
        let key = prefix_key(vni, address, length);
        self.map::<LpmTrie<_, PrefixKey, u32>>("cluster")?
            .insert(&key, u32::from(to_workers), 0)
            .map_err(|e| {
                failed(format!("cannot open the pinhole for {address}/{length}"))(chain(&e))
            })
    }

    pub(crate) fn remove_prefix(
        &mut self,
        vni: Vni,
        address: IpAddr,
        length: u8,
    ) -> Result<(), RouterError> {
        self.map::<LpmTrie<_, PrefixKey, u32>>("cluster")?
            .remove(&prefix_key(vni, address, length))
            .map_err(|e| {
                failed(format!("cannot close the pinhole for {address}/{length}"))(chain(&e))
            })
    }

    pub(crate) fn outcomes(&self) -> Outcomes {
        let read = |index| {
            let map = PerCpuArray::<&MapData, u64>::try_from(self.ebpf.map("outcomes")?).ok()?;
            Some(map.get(&index, 0).ok()?.iter().sum())
        };
        let n = |index| read(index).unwrap_or(0);
        Outcomes {
            redirected: n(0),
            passed: n(1),
            stale: n(2),
            closed: n(3),
            spoofed: n(4),
            unknown_vtep: n(5),
            tunnel_from_pod: n(6),
            no_slow_path: n(7),
            multicast: n(8),
            vlan_tagged: n(9),
            malformed: n(10),
        }
    }
}

impl Drop for Pinholes {
    fn drop(&mut self) {
        self.let_go();
        // Fails while something is in it; then it stays.
        remove_folders(&self.pins);
    }
}

fn map_heartbeat(data: &MapData) -> Result<Heartbeat, RouterError> {
    // SAFETY: mmap(2) of a BPF_F_MMAPABLE array; the result is checked.
    let map = unsafe {
        libc::mmap(
            ptr::null_mut(),
            BEAT_BYTES * MAX_WORKERS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            data.fd().as_fd().as_raw_fd(),
            0,
        )
    };
    let map = NonNull::new(map).filter(|_| map != libc::MAP_FAILED);
    map.map(|map| Heartbeat { map }).ok_or_else(|| {
        RouterError::new(
            "cannot map the heartbeat",
            io::Error::last_os_error().to_string(),
        )
    })
}
