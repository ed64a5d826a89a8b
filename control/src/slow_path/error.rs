//! Why the kernel cannot carry the network.

use crate::kernel::KernelError;

/// Why the kernel cannot carry the network.
#[derive(Debug, thiserror::Error)]
pub enum SlowPathError {
    /// Somebody else has a VXLAN device with the network's VNI and port, and it does not fit.
    #[error(
        "cannot use VXLAN device {device}, which has VNI {vni} and port {port} already: {misfits}; \
         correct it, remove it (ip link delete {device}), or choose another VNI or port"
    )]
    Misfit {
        /// Its name.
        device: String,
        /// The network's number on the wire.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// What does not fit.
        misfits: String,
    },
    /// Somebody else has an interface of the device's name.
    #[error(
        "cannot make VXLAN device {device}: another interface has this name; remove that, or set \
         slow_path.device"
    )]
    NameTaken {
        /// The name.
        device: String,
    },
    /// A program has the network's UDP port, or a VXLAN device of another kind.
    #[error(
        "cannot set up VXLAN device {device}: UDP port {port} is taken, so the kernel carries nothing between \
         nodes; stop the program that has it (ss -ulpn), remove a VXLAN device with that port and other options \
         (ip -details link show type vxlan), or set the network's port on all nodes"
    )]
    PortTaken {
        /// The device's name.
        device: String,
        /// The port.
        port: u16,
    },
    /// The underlay leaves no room for packets.
    #[error(
        "cannot set up VXLAN device {device}: the underlay's MTU leaves {mtu} bytes for pods' packets, and an interface \
         has at least 68; set a larger MTU on the underlay"
    )]
    Mtu {
        /// The device's name.
        device: String,
        /// What the underlay leaves, in bytes.
        mtu: u32,
    },
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What else could not be done.
    #[error("cannot prepare the kernel's path: {0}")]
    Problems(String),
}

impl SlowPathError {
    /// Whether the configuration contradicts what others made on the host: then nothing is to be
    /// begun that would break what they carry.
    pub(crate) fn is_contradiction(&self) -> bool {
        matches!(self, Self::Misfit { .. } | Self::NameTaken { .. })
    }
}
