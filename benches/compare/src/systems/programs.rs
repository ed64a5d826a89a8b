//! The programs of xdp.bpf.c and tcx.bpf.c.

use std::os::fd::AsRawFd as _;

use anyhow::{Context, anyhow, bail};
use aya::maps::{Array, DevMap, HashMap, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, Program, TcAttachType, XdpMode};
use aya::{Ebpf, EbpfLoader};
use viaduct_pktgen::Namespace;

use super::{OUTER_LEN, Outer};
use crate::bed::{Bed, GATEWAY_MAC, MOST_PODS, UNDERLAY};
use crate::node::Node;
use crate::plan::Case;

/// `MAX_PODS` of compare.h: behind the pods' places is the underlay's.
pub(crate) const UNDERLAY_PLACE: u32 = 128;
const _: () = assert!(MOST_PODS <= UNDERLAY_PLACE && OUTER_LEN == 50);

/// The compiled files.
pub(crate) const XDP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.bpf.o"));
pub(crate) const TCX: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcx.bpf.o"));

/// Loaded programs and where they are attached.
pub(crate) struct Programs {
    ebpf: Ebpf,
    links: Vec<FdLink>,
}

impl Programs {
    /// A file's programs, with these ready to be attached.
    pub(crate) fn load(file: &[u8], names: &[&str]) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .load(file)
            .context("cannot load the BPF programs: is this root, and a kernel with BTF?")?;
        for name in names {
            let loaded = match program(&mut ebpf, name)? {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => bail!("{name} is neither for XDP nor for tc"),
            };
            loaded.with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        Ok(Self {
            ebpf,
            links: Vec::new(),
        })
    }

    /// To what arrives at an interface (XDP in native mode, tcx), until this is dropped.
    pub(crate) fn attach(
        &mut self,
        name: &str,
        interface: &str,
        namespace: &Namespace,
    ) -> anyhow::Result<()> {
        let program = program(&mut self.ebpf, name)?;
        let link = namespace
            .with(|| match program {
                Program::Xdp(program) => {
                    let id = program.attach(interface, XdpMode::Driver)?;
                    Ok(FdLink::try_from(program.take_link(id)?)?)
                }
                Program::SchedClassifier(program) => {
                    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                    let ingress = TcAttachType::Ingress;
                    let id = program
                        .attach_with_options(interface, ingress, order)
                        .context("tcx needs Linux 6.6")?;
                    Ok(FdLink::try_from(program.take_link(id)?)?)
                }
                _ => bail!("it is neither for XDP nor for tc"),
            })
            .with_context(|| format!("cannot attach {name} to {interface}"))?;
        self.links.push(link);
        Ok(())
    }

    /// What is pushed, and by pod the addresses of what is delivered.
    pub(crate) fn set_headers(&mut self, node: &Node) -> anyhow::Result<()> {
        let other = node.others.first().context("there is no other node")?;
        let outer = Outer::new(&node.vtep, &other.vtep)?;
        let mut value = [0; 68];
        value[..outer.bytes.len()].copy_from_slice(&outer.bytes);
        // The program adds words as they lie in memory.
        value[64..].copy_from_slice(&u32::from(outer.sum.to_be()).to_ne_bytes());
        let mut outers: Array<_, [u8; 68]> = self.map("outers")?.try_into()?;
        outers.set(0, value, 0)?;
        let mut pods: Array<_, [u8; 12]> = self.map("pods")?.try_into()?;
        for (place, pod) in (0..).zip(&node.pods) {
            let mut addresses = [0; 12];
            addresses[..6].copy_from_slice(&pod.mac.0);
            addresses[6..].copy_from_slice(&GATEWAY_MAC.0);
            pods.set(place, addresses, 0)?;
        }
        Ok(())
    }

    /// Where packets are redirected to: the pods, and the underlay.
    pub(crate) fn set_devices(&mut self, node: &Node) -> anyhow::Result<()> {
        let mut devices: DevMap<_> = self.map("devices")?.try_into()?;
        for (place, interface) in places(node) {
            // A map's device is one of the setting thread's namespace.
            node.host
                .namespace()
                .with(|| Ok(devices.set(place, index(&interface)?, None, 0)?))
                .with_context(|| format!("cannot redirect to {interface}"))?;
        }
        Ok(())
    }

    /// The same for tc, which redirects to any interface by its number.
    pub(crate) fn set_interfaces(&mut self, node: &Node) -> anyhow::Result<()> {
        let mut interfaces: Array<_, u32> = self.map("interfaces")?.try_into()?;
        for (place, interface) in places(node) {
            let number = node.host.namespace().with(|| index(&interface))?;
            interfaces.set(place, number, 0)?;
        }
        Ok(())
    }

    /// An interface's packets go to this socket.
    pub(crate) fn set_socket(
        &mut self,
        place: u32,
        ifindex: u32,
        socket: &viaduct_router::xsk::Xsk,
    ) -> anyhow::Result<()> {
        let mut sockets: XskMap<_> = self.map("sockets")?.try_into()?;
        sockets.set(place, socket.as_raw_fd(), 0)?;
        let mut slots: HashMap<_, u32, u32> = self.map("slots")?.try_into()?;
        Ok(slots.insert(ifindex, place, 0)?)
    }

    /// Packets that were sent on, and their bytes.
    pub(crate) fn count(&self, case: Case) -> anyhow::Result<(u64, u64)> {
        let map = self.ebpf.map("counts").context("no map")?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        let place = match case {
            Case::Encap => 0,
            Case::Decap => 1,
        };
        let sum = |place| -> anyhow::Result<u64> { Ok(map.get(&place, 0)?.iter().sum()) };
        Ok((sum(place)?, sum(place + 2)?))
    }

    fn map(&mut self, name: &str) -> anyhow::Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).context("no map")
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name).context("no program")
}

/// The node's interfaces, with their places in maps.
pub(crate) fn places(node: &Node) -> Vec<(u32, String)> {
    let pods = node.pods.iter().map(|pod| pod.interface.clone());
    (0..)
        .zip(pods)
        .chain([(UNDERLAY_PLACE, UNDERLAY.to_owned())])
        .collect()
}

/// The index of an interface of the thread's namespace.
pub(crate) fn index(interface: &str) -> anyhow::Result<u32> {
    match nix::net::if_::if_nametoindex(interface) {
        Ok(index) => Ok(index),
        Err(e) => bail!(anyhow!("there is no interface {interface}: {e}")),
    }
}

/// A far end that sends back what it is sent.
pub(crate) struct Reflector {
    _programs: Programs,
}

impl Reflector {
    pub(crate) fn start(bed: &Bed) -> anyhow::Result<Self> {
        let mut programs = Programs::load(XDP, &["reflect"])?;
        programs.attach("reflect", UNDERLAY, &bed.far())?;
        Ok(Self {
            _programs: programs,
        })
    }
}
