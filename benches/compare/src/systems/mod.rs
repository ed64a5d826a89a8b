//! What is compared.

mod bare;
mod kernel;
mod ovs;
mod programs;
mod viaduct;
mod xdp;

use std::path::PathBuf;

use anyhow::bail;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use viaduct_encap::{Tunnel, TunnelParams, Vni, ethernet};

use crate::bed::{self, Bed};
use crate::plan::{Case, Source};

pub(crate) use programs::Reflector;

/// Bytes that are pushed in front of a pod's packet.
pub(crate) const OUTER_LEN: usize = 50;
/// With its Ethernet header, which is another one in the tunnel.
pub(crate) const PUSHED_LEN: usize = 64;

/// The systems, in the order of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Kind {
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
    /// This router
    Viaduct,
    /// This router with busy polling, at the base points only
    ViaductBusy,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Kernel,
        Self::KernelRps,
        Self::Ovs,
        Self::Bare,
        Self::Xdp,
        Self::Viaduct,
        Self::ViaductBusy,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::KernelRps => "kernel-rps",
            Self::Ovs => "ovs",
            Self::Bare => "bare",
            Self::Xdp => "xdp",
            Self::Viaduct => "viaduct",
            Self::ViaductBusy => "viaduct-busy",
        }
    }

    /// A variant of another, to be compared at the base points only.
    pub(crate) const fn is_variant(self) -> bool {
        matches!(self, Self::KernelRps | Self::ViaductBusy)
    }

    /// Threads that forward packets and do nothing else; what has none works in the kernel's softirqs.
    pub(crate) const fn workers(self) -> Option<u32> {
        match self {
            Self::Kernel | Self::KernelRps | Self::Xdp => None,
            Self::Ovs | Self::Bare | Self::Viaduct | Self::ViaductBusy => Some(1),
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

pub(crate) fn start(kind: Kind, bed: &Bed, setup: &Setup) -> anyhow::Result<Box<dyn System>> {
    Ok(match kind {
        Kind::Kernel => Box::new(kernel::Kernel::start(bed, setup, false)?),
        Kind::KernelRps => Box::new(kernel::Kernel::start(bed, setup, true)?),
        Kind::Ovs => Box::new(ovs::OpenVswitch::start(bed, setup)?),
        Kind::Bare => Box::new(bare::Bare::start(bed, setup)?),
        Kind::Xdp => Box::new(xdp::XdpOnly::start(bed)?),
        Kind::Viaduct => Box::new(viaduct::Viaduct::start(bed, setup, "adaptive")?),
        Kind::ViaductBusy => Box::new(viaduct::Viaduct::start(bed, setup, "busy")?),
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
    pub(crate) fn new() -> anyhow::Result<Self> {
        let Some(vni) = Vni::new(bed::VNI) else {
            bail!("no VNI")
        };
        let tunnel = Tunnel::new(&TunnelParams {
            outer_source_mac: bed::NODE_MAC,
            outer_destination_mac: bed::FAR_MAC,
            source: bed::NODE.into(),
            destination: bed::far(0).into(),
            udp_port: bed::VXLAN_PORT,
            udp_checksum6: false,
            vni,
            inner_source_mac: bed::VTEP_MAC,
            inner_destination_mac: bed::far_vtep_mac(0),
            hop_limit: 64,
            dscp: viaduct_encap::ecn::Dscp::default(),
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
