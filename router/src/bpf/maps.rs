//! The maps of the XDP programs, each with its mirror.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use aya::maps::{Map, MapData};
use aya::{Ebpf, Pod};

use super::chain;
use super::keys::{Device, PodKey, PrefixKey, SourceKey, Trunk, Vtep};
use super::mirror::{Mirror, Table};
use crate::error::RouterError;

/// Entries of a map that are read back a second, and as many that are looked at because they may be foreign: about a
/// millisecond of the control thread.
const READ_BACK: usize = 1024;

/// A hash or trie of the kernel's.
#[derive(Debug)]
pub(super) struct Entries<K, V> {
    map: MapData,
    types: PhantomData<(K, V)>,
}

/// A call about one element (`union bpf_attr` of `include/uapi/linux/bpf.h`).
#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    /// Of the value, or of the next key.
    value: u64,
    flags: u64,
}

#[derive(Clone, Copy)]
enum Call {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    NextKey = 4,
}

fn address<T>(of: Option<*const T>) -> u64 {
    of.map_or(0, |pointer| pointer.expose_provenance() as u64)
}

/// A call of bpf(2) about an element of a map.
///
/// # Safety
/// `key` and `value` are null, or point to what the map has as key and value (for [`Call::NextKey`], as key), the second
/// writable unless it is an update.
unsafe fn call<K, V>(
    call: Call,
    map: RawFd,
    key: Option<*const K>,
    value: Option<*const V>,
) -> io::Result<()> {
    let mut element = Element {
        map: map.cast_unsigned(),
        zero: 0,
        key: address(key),
        value: address(value),
        flags: 0,
    };
    // SAFETY: bpf(2) reads so many bytes of the attributes, and what they point to as the caller says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            call as libc::c_long,
            &raw mut element,
            size_of::<Element>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        result => result.map(Some),
    }
}

impl<K: Pod, V: Pod + PartialEq> Table<K, V> for Entries<K, V> {
    fn holds(&mut self, key: &K, value: &V) -> io::Result<bool> {
        let mut found = *value;
        let at = (&raw mut found).cast_const();
        // SAFETY: key and value are as long as the map's (`Mirrored::of`); the value is ours to be written.
        let there = unsafe { call(Call::Lookup, self.fd(), Some(key), Some(at)) };
        Ok(none_if_missing(there)?.is_some() && found == *value)
    }

    fn put(&mut self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: key and value are as long as the map's, and are only read.
        unsafe { call(Call::Update, self.fd(), Some(key), Some(value)) }
    }

    fn delete(&mut self, key: &K) -> io::Result<()> {
        // SAFETY: the key is as long as the map's, and is only read.
        unsafe { call::<K, V>(Call::Delete, self.fd(), Some(key), None) }
    }

    fn next(&self, after: Option<&K>) -> io::Result<Option<K>> {
        let mut next = std::mem::MaybeUninit::<K>::uninit();
        let (after, at) = (
            after.map(|key| &raw const *key),
            next.as_mut_ptr().cast_const(),
        );
        // SAFETY: both keys are as long as the map's; the second is ours to be written.
        let found = unsafe { call(Call::NextKey, self.fd(), after, Some(at)) };
        // SAFETY: without an error the kernel has written the whole key, which any bytes are.
        Ok(none_if_missing(found)?.map(|()| unsafe { next.assume_init() }))
    }
}

/// The sockets, by slot. The kernel does not say which one is in a slot, so they are written again instead of read; that
/// changes nothing where the right one is there.
#[derive(Debug)]
pub(super) struct Slots(Entries<u32, RawFd>);

impl Table<u32, RawFd> for Slots {
    fn holds(&mut self, slot: &u32, socket: &RawFd) -> io::Result<bool> {
        self.0.put(slot, socket).map(|()| true)
    }

    fn put(&mut self, slot: &u32, socket: &RawFd) -> io::Result<()> {
        self.0.put(slot, socket)
    }

    fn delete(&mut self, slot: &u32) -> io::Result<()> {
        self.0.delete(slot)
    }

    /// An array has all its keys, and only sockets of this process can be in it.
    fn next(&self, _: Option<&u32>) -> io::Result<Option<u32>> {
        Ok(None)
    }
}

/// A map with what is wanted of it.
#[derive(Debug)]
pub(super) struct Mirrored<K, V, T> {
    name: &'static str,
    table: T,
    mirror: Mirror<K, V>,
}

/// An array: it has all its keys, and zero stands where nothing is.
#[derive(Debug)]
pub(super) struct Cells<V>(Entries<u32, V>);

impl<V: Pod> Cells<V> {
    pub(super) fn of(ebpf: &mut Ebpf, name: &str) -> Result<Self, RouterError> {
        Entries::of(ebpf, name).map(Self)
    }
}

impl<V: Pod + PartialEq + Default> Table<u32, V> for Cells<V> {
    fn holds(&mut self, key: &u32, value: &V) -> io::Result<bool> {
        self.0.holds(key, value)
    }

    fn put(&mut self, key: &u32, value: &V) -> io::Result<()> {
        self.0.put(key, value)
    }

    fn delete(&mut self, key: &u32) -> io::Result<()> {
        self.0.put(key, &V::default())
    }

    /// What others write where nothing is wanted is not looked for.
    fn next(&self, _after: Option<&u32>) -> io::Result<Option<u32>> {
        Ok(None)
    }
}

pub(super) type Celled<V> = Mirrored<u32, V, Cells<V>>;

pub(super) type Mapped<K, V> = Mirrored<K, V, Entries<K, V>>;

impl<K: Pod, V: Pod> Entries<K, V> {
    /// Takes the map, which has one descriptor.
    pub(super) fn of(ebpf: &mut Ebpf, name: &str) -> Result<Self, RouterError> {
        let doing = || format!("cannot use the BPF map {name}");
        let Some(Map::HashMap(map) | Map::LpmTrie(map) | Map::XskMap(map) | Map::Array(map)) =
            ebpf.take_map(name)
        else {
            let why = "it is missing or of another type";
            return Err(RouterError::new(doing(), why));
        };
        let info = map
            .info()
            .map_err(|e| RouterError::new(doing(), chain(&e)))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(RouterError::new(
                doing(),
                format!("its keys and values have {sizes:?} bytes"),
            ));
        }
        Ok(Self {
            map,
            types: PhantomData,
        })
    }

    fn fd(&self) -> RawFd {
        self.map.fd().as_fd().as_raw_fd()
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone, T: Table<K, V>> Mirrored<K, V, T> {
    pub(super) const fn new(name: &'static str, table: T) -> Self {
        let mirror = Mirror::new();
        Self {
            name,
            table,
            mirror,
        }
    }

    fn failed(&self, doing: impl Display) -> impl FnOnce(io::Error) -> RouterError {
        let problem = self.mirror.state().problem(self.name);
        move |e| RouterError::new(doing.to_string(), problem.unwrap_or_else(|| e.to_string()))
    }

    /// See [`Mirror::set`].
    pub(super) fn set(&mut self, key: K, value: V, doing: impl Display) -> Result<(), RouterError> {
        let done = self.mirror.set(&mut self.table, key, value);
        done.map_err(self.failed(doing))
    }

    /// See [`Mirror::unset`].
    pub(super) fn unset(&mut self, key: &K, doing: impl Display) -> Result<(), RouterError> {
        let done = self.mirror.unset(&mut self.table, key);
        done.map_err(self.failed(doing))
    }

    /// See [`Mirror::replace`].
    pub(super) fn replace(
        &mut self,
        wanted: BTreeMap<K, V>,
        doing: impl Display,
    ) -> Result<(), RouterError> {
        let done = self.mirror.replace(&mut self.table, wanted);
        done.map_err(self.failed(doing))
    }
}

/// A map, whatever it holds.
pub(super) trait Repair {
    fn repair(&mut self) -> usize;
    fn problem(&self) -> Option<String>;
}

impl<K: Ord + Clone, V: PartialEq + Clone, T: Table<K, V>> Repair for Mirrored<K, V, T> {
    fn repair(&mut self) -> usize {
        self.mirror.repair(&mut self.table, READ_BACK)
    }

    fn problem(&self) -> Option<String> {
        self.mirror.state().problem(self.name)
    }
}

/// All maps that the control side writes.
pub(super) struct Maps {
    pub(super) sockets: Mirrored<u32, RawFd, Slots>,
    /// By the device's index.
    pub(super) devices: Mapped<u32, Device>,
    /// What pods may send from.
    pub(super) sources: Mapped<SourceKey, u32>,
    /// Our networks; 1: carried by the kernel, too.
    pub(super) networks: Mapped<u32, u32>,
    /// The node that an inner source belongs to.
    pub(super) origins: Mapped<PrefixKey, [u8; 16]>,
    /// Where tunnels end.
    pub(super) nodes: Mapped<Vtep, u32>,
    /// Where tunnels end that are ours.
    pub(super) vteps: Mapped<Vtep, u32>,
    /// The pods of this node.
    pub(super) pods: Mapped<PodKey, u32>,
    /// Where pods' packets are the workers' (1), and where the kernel's (0).
    pub(super) cluster: Mapped<PrefixKey, u32>,
    /// By worker.
    pub(super) trunks: Mapped<u32, Trunk>,
    /// Slots of the socket map, by the index of the worker's end in its namespace.
    pub(super) trunk_slots: Mapped<u32, u32>,
    /// The kernel's VXLAN devices, by the family of their underlay.
    pub(super) overlays: Mapped<u32, u32>,
}

impl Maps {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, RouterError> {
        Ok(Self {
            sockets: Mirrored::new("xsks", Slots(Entries::of(ebpf, "xsks")?)),
            devices: Mirrored::new("devices", Entries::of(ebpf, "devices")?),
            sources: Mirrored::new("sources", Entries::of(ebpf, "sources")?),
            networks: Mirrored::new("networks", Entries::of(ebpf, "networks")?),
            origins: Mirrored::new("origins", Entries::of(ebpf, "origins")?),
            nodes: Mirrored::new("nodes", Entries::of(ebpf, "nodes")?),
            vteps: Mirrored::new("vteps", Entries::of(ebpf, "vteps")?),
            pods: Mirrored::new("pods", Entries::of(ebpf, "pods")?),
            cluster: Mirrored::new("cluster", Entries::of(ebpf, "cluster")?),
            trunks: Mirrored::new("trunks", Entries::of(ebpf, "trunks")?),
            trunk_slots: Mirrored::new("trunk_slots", Entries::of(ebpf, "trunk_slots")?),
            overlays: Mirrored::new("overlays", Entries::of(ebpf, "overlays")?),
        })
    }

    fn all(&self) -> [&dyn Repair; 12] {
        [
            &self.sockets,
            &self.devices,
            &self.sources,
            &self.networks,
            &self.origins,
            &self.nodes,
            &self.vteps,
            &self.pods,
            &self.cluster,
            &self.trunks,
            &self.trunk_slots,
            &self.overlays,
        ]
    }

    /// Does what could not be done so far, and repairs what somebody else has changed: how many entries.
    pub(super) fn repair(&mut self) -> usize {
        let all: [&mut dyn Repair; 12] = [
            &mut self.sockets,
            &mut self.devices,
            &mut self.sources,
            &mut self.networks,
            &mut self.origins,
            &mut self.nodes,
            &mut self.vteps,
            &mut self.pods,
            &mut self.cluster,
            &mut self.trunks,
            &mut self.trunk_slots,
            &mut self.overlays,
        ];
        all.into_iter().map(Repair::repair).sum()
    }

    /// What is wrong with each map that is not as it is wanted.
    pub(super) fn problems(&self) -> Vec<String> {
        self.all().iter().filter_map(|map| map.problem()).collect()
    }
}
