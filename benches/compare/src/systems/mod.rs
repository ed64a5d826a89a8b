//! What is compared.

mod bare;
mod hooks;
mod kernel;
mod ovs;
mod programs;
mod variant;
mod viaduct;

use std::path::{Path, PathBuf};

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use viaduct_encap::{Tunnel, TunnelParams, Vni, ethernet};

use crate::bed::{self, Bed};
use crate::node::{Node, Vtep};
use crate::plan::{Case, Source};

pub(crate) use programs::Reflector;
pub(crate) use variant::Variant;

/// Bytes that are pushed in front of a pod's packet.
pub(crate) const OUTER_LEN: usize = 50;
/// With its Ethernet header, which is another one in the tunnel.
pub(crate) const PUSHED_LEN: usize = 64;

/// The systems, in the order of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Pods that are joined by a bare veth pair: the limit of all, between sockets only
    None,
    /// The kernel's VXLAN device, as flannel sets it up
    Kernel,
    /// The same with receive packet steering, at the base points only
    KernelRps,
    /// Open vSwitch's userspace datapath, with AF_XDP ports
    Ovs,
    /// An AF_XDP forwarder that only pushes and pulls a fixed header
    Bare,
    /// Push and pull in XDP, with redirect
    Xdp,
    /// Push and pull in tc hooks, with redirect
    Tcx,
    /// This router
    Viaduct,
    /// This router with AF_XDP sockets at pods and underlay
    ViaductXsk,
    /// The same with busy polling, at the base points only
    ViaductBusy,
    /// This router with another configuration
    #[value(skip)]
    Variant(&'static Variant),
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::None,
        Self::Kernel,
        Self::KernelRps,
        Self::Ovs,
        Self::Bare,
        Self::Xdp,
        Self::Tcx,
        Self::Viaduct,
        Self::ViaductXsk,
        Self::ViaductBusy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kernel => "kernel",
            Self::KernelRps => "kernel-rps",
            Self::Ovs => "ovs",
            Self::Bare => "bare",
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Viaduct => "viaduct",
            Self::ViaductXsk => "viaduct-xsk",
            Self::ViaductBusy => "viaduct-busy",
            Self::Variant(variant) => &variant.name,
        }
    }

    /// A variant of another, to be compared at the base points only.
    pub(crate) const fn is_variant(self) -> bool {
        matches!(self, Self::KernelRps | Self::ViaductBusy)
    }

    /// Whether frames of a generator are sent through it.
    pub(crate) const fn carries_frames(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether it works behind XDP, on the kernel's own packets.
    const fn is_in_the_stack(self) -> bool {
        matches!(
            self,
            Self::Kernel | Self::KernelRps | Self::Tcx | Self::Viaduct
        )
    }

    /// Whether it joins the sockets of pods.
    pub(crate) const fn joins_sockets(self) -> bool {
        matches!(
            self,
            Self::None
                | Self::Kernel
                | Self::Tcx
                | Self::Viaduct
                | Self::ViaductXsk
                | Self::Variant(_)
        )
    }

    /// Threads that forward packets and do nothing else; what has none works in the kernel's softirqs.
    pub(crate) const fn workers(self) -> Option<u32> {
        match self {
            // A variant's configuration says how many; hooks carry without.
            Self::None
            | Self::Kernel
            | Self::KernelRps
            | Self::Xdp
            | Self::Tcx
            | Self::Viaduct
            | Self::Variant(_) => None,
            Self::Ovs | Self::Bare | Self::ViaductXsk | Self::ViaductBusy => Some(1),
        }
    }
}

/// How systems are run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The router's program.
    pub(crate) viaduct: PathBuf,
    /// Where systems work that may choose.
    pub(crate) cpu: usize,
    /// Where the generator works.
    pub(crate) generator_cpu: usize,
    /// Which way packets come.
    pub(crate) source: Source,
}

/// A running system. Ends when dropped.
pub(crate) trait System {
    /// Packets that it says it has sent on, this way; none when it does not count.
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>>;

    /// The same in bytes, of IP packets at least; none when it does not count them.
    fn carried_bytes(&mut self, _case: Case) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether counting takes seconds.
    fn counts_slowly(&self) -> bool {
        false
    }

    /// What was not its doing although it runs, if anything: packets that something else carried.
    fn others(&mut self) -> anyhow::Result<u64> {
        Ok(0)
    }

    /// Uses no processor until it is to go on.
    fn pause(&self, _pause: bool) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The configuration with sockets.
const XSK: &str = "underlay.hook = \"xdp\"\nhooks.pods = \"xsk\"";
/// The busy router's, beside that.
const BUSY: &str = "workers.polling = \"busy\"";

pub(crate) fn start(kind: Kind, bed: &Bed, setup: &Setup) -> anyhow::Result<Box<dyn System>> {
    let node = bed.as_node();
    if setup.source == Source::Frames && kind.is_in_the_stack() {
        node.take_frames()?;
    }
    let kernel = || kernel::Kernel::start(&node);
    let viaduct = |extra: &[&str]| {
        let cpus = format!("workers.cpus = [{}]", setup.cpu);
        let extra = [&[&*cpus], extra].concat();
        viaduct::Viaduct::start(&node, &setup.viaduct, &extra)
    };
    Ok(match kind {
        Kind::None => bail!("nothing carries frames there"),
        Kind::Kernel => Box::new(kernel()?),
        Kind::KernelRps => Box::new(kernel()?.steered(&node, setup.cpu)?),
        Kind::Ovs => Box::new(ovs::OpenVswitch::start(bed, setup)?),
        Kind::Bare => Box::new(bare::Bare::start(bed, setup)?),
        Kind::Xdp => Box::new(hooks::Hooks::xdp(&node)?),
        Kind::Tcx => Box::new(hooks::Hooks::tcx(&node)?),
        Kind::Viaduct => Box::new(viaduct(&[])?),
        Kind::ViaductXsk => Box::new(viaduct(&[XSK])?),
        Kind::ViaductBusy => Box::new(viaduct(&[XSK, BUSY])?),
        Kind::Variant(variant) => Box::new(viaduct(&[&variant.toml])?),
    })
}

/// Starts a system at one of two nodes, with whatever processors it may choose itself.
pub(crate) fn start_at(kind: Kind, node: &Node, viaduct: &Path) -> anyhow::Result<Box<dyn System>> {
    let router = |extra: &[&str]| viaduct::Viaduct::start(node, viaduct, extra);
    Ok(match kind {
        Kind::Kernel => Box::new(kernel::Kernel::start(node)?),
        Kind::Tcx => {
            // As on a node of flannel's: with its socket there, the underlay's GRO merges what is in tunnels.
            kernel::device(node)?;
            Box::new(hooks::Hooks::tcx(node)?)
        }
        Kind::Viaduct => Box::new(router(&[])?),
        Kind::ViaductXsk => Box::new(router(&[XSK])?),
        Kind::Variant(variant) => Box::new(router(&[&variant.toml])?),
        _ => bail!("{} joins no sockets", kind.name()),
    })
}

/// Stops a process, or has it go on.
fn stop_process(pid: u32, stop: bool) -> anyhow::Result<()> {
    let signal = if stop {
        Signal::SIGSTOP
    } else {
        Signal::SIGCONT
    };
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

/// What the ceilings push: to the first other node, whatever the destination.
pub(crate) struct Outer {
    pub(crate) bytes: [u8; PUSHED_LEN],
    /// Of the outer IPv4 header, without its length; in memory's order.
    pub(crate) sum: u16,
}

impl Outer {
    pub(crate) fn new(from: &Vtep, to: &Vtep) -> anyhow::Result<Self> {
        let Some(vni) = Vni::new(bed::VNI) else {
            bail!("no VNI")
        };
        let tunnel = Tunnel::new(&TunnelParams {
            outer_source_mac: from.underlay_mac,
            outer_destination_mac: to.underlay_mac,
            source: from.address.into(),
            destination: to.address.into(),
            udp_port: bed::VXLAN_PORT,
            udp_checksum6: false,
            vni,
            inner_source_mac: from.mac,
            inner_destination_mac: to.mac,
            hop_limit: 64,
            dscp: viaduct_encap::ecn::Dscp::default(),
            mtu: 1500,
        });
        let mut bytes = [0; PUSHED_LEN];
        if tunnel.write(&mut bytes, ethernet::IPV4, 0, 0).is_err() {
            bail!("a header is too long");
        }
        // Any entropy will do: 49152, the first ephemeral port.
        bytes[34..36].copy_from_slice(&0xc000u16.to_be_bytes());
        // Without what differs: length and checksum.
        bytes[16..18].fill(0);
        bytes[24..26].fill(0);
        let sum = viaduct_encap::checksum::fold(viaduct_encap::checksum::sum(&bytes[14..34]));
        Ok(Self { bytes, sum })
    }

    /// Puts it in front of a packet that has room for it, `frame` being both.
    pub(crate) fn write(&self, frame: &mut [u8]) {
        let Some(length) = u16::try_from(frame.len())
            .ok()
            .and_then(|l| l.checked_sub(14))
        else {
            return;
        };
        let Some((header, _)) = frame.split_first_chunk_mut::<PUSHED_LEN>() else {
            return;
        };
        *header = self.bytes;
        header[16..18].copy_from_slice(&length.to_be_bytes());
        let sum = viaduct_encap::checksum::fold(u64::from(self.sum) + u64::from(length));
        header[24..26].copy_from_slice(&(!sum).to_be_bytes());
        header[38..40].copy_from_slice(&(length - 20).to_be_bytes());
    }
}
