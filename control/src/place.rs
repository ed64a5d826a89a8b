//! Where something of the kernel's was written down: a boot of the machine and a network namespace.

use serde::{Deserialize, Serialize};

/// One network namespace of one boot of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The kernel's name of the boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The kernel's number of the network namespace, never used twice in a boot
    /// (`SO_NETNS_COOKIE`).
    pub namespace: u64,
}

impl Place {
    /// The namespace of this number, in the boot that runs.
    pub fn here(namespace: u64) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
            namespace,
        }
    }
}
