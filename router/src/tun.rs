//! The way back into the kernel: a TUN device whose packets the kernel takes for
//! received ones. Nothing is read from it.
//!
//! Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::{self, interface_request};

/// Link-local, and known to nobody: the device has to have one.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A TUN device with a queue for each worker; it goes away with its last
/// descriptor, whatever ends the process.
#[derive(Debug)]
pub(crate) struct Tun {
    name: String,
    queues: Vec<File>,
}

impl Tun {
    /// Makes a device; a `%d` in its name becomes the lowest free number.
    pub(crate) fn open(pattern: &str, queues: usize) -> io::Result<Self> {
        let (first, name) = open_queue(pattern)?;
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(open_queue(&name)?.0);
        }
        // What is written here has a source behind another device, which the
        // kernel accepts when any device will do (rp_filter 2) and this one has
        // an address (`__fib_validate_source`, net/ipv4/fib_frontend.c).
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "2")?;
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1")?;
        // Where IPv6 is off, or the kernel has no such switch (before Linux 6.17), there is
        // nothing to do.
        for switch in ["forwarding", "force_forwarding"] {
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{switch}"), "1");
        }
        // Nobody listens for what the kernel would say here by itself. Where
        // IPv6 is off there is nothing to switch.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        sys::set_address(&name, ADDRESS)?;
        sys::set_up(&name)?;
        Ok(Self { name, queues: all })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Has the kernel receive an IP packet by a worker's queue. False when it does not take it.
    pub(crate) fn write(&self, worker: usize, packet: &[u8]) -> bool {
        let queue = self.queues.get(worker);
        queue.is_some_and(|mut queue| queue.write(packet).is_ok())
    }
}

/// One more queue of the device, which the first one makes; and the device's name.
fn open_queue(name: &str) -> io::Result<(File, String)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = interface_request(name);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request
        .ifr_name
        .iter()
        .map(|&c| char::from(c.cast_unsigned()))
        .take_while(|&c| c != '\0')
        .collect();
    Ok((file, name))
}
