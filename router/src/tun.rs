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

use crate::error::{RouterError, cause};
use crate::sys::{self, interface_request};

/// What TUN devices are made with.
const DEVICE: &str = "/dev/net/tun";

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
    ///
    /// # Errors
    /// Says what is missing: the device file, the right, or writable settings.
    pub(crate) fn open(pattern: &str, queues: usize) -> Result<Self, RouterError> {
        let (first, name) = open_queue(pattern)?;
        let mut all = vec![first];
        for _ in 1..queues {
            all.push(open_queue(&name)?.0);
        }
        // What is written here has a source behind another device, which the
        // kernel accepts when any device will do (rp_filter 2) and this one has
        // an address (`__fib_validate_source`, net/ipv4/fib_frontend.c).
        set(&name, "rp_filter", "2")?;
        set(&name, "forwarding", "1")?;
        // Where IPv6 is off, or the kernel has no such switch (before Linux 6.17), there is
        // nothing to do.
        for switch in ["forwarding", "force_forwarding"] {
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{switch}"), "1");
        }
        // Nobody listens for what the kernel would say here by itself. Where
        // IPv6 is off there is nothing to switch.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        let up = sys::set_address(&name, ADDRESS).and_then(|()| sys::set_up(&name));
        up.map_err(|e| RouterError::new(format!("cannot set up {name}"), cause(&e, 0)))?;
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

/// Sets an IPv4 setting of the device, unless it has that value.
fn set(device: &str, name: &str, value: &str) -> Result<(), RouterError> {
    let path = format!("/proc/sys/net/ipv4/conf/{device}/{name}");
    if fs::read_to_string(&path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::EROFS) => format!(
                "{e}: mount /proc/sys writable (a container needs its own, or to be privileged)"
            ),
            _ => cause(&e, 0),
        };
        RouterError::new(
            format!("cannot set net.ipv4.conf.{device}.{name} to {value}"),
            why,
        )
    })
}

/// Opens the file that TUN devices are made with.
///
/// # Errors
/// Says what is missing.
fn open_device() -> Result<File, RouterError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE);
    opened.map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::ENOENT) => {
                format!("{e}: load the module (modprobe tun), or give the container the device")
            }
            Some(libc::ENODEV | libc::ENXIO) => format!("{e}: load the module (modprobe tun)"),
            Some(libc::EPERM | libc::EACCES) => {
                format!(
                    "{e}: allow this process the character device 10:200 (device cgroup, file mode)"
                )
            }
            _ => cause(&e, 0),
        };
        RouterError::new(format!("cannot open {DEVICE}"), why)
    })
}

/// Whether a TUN device could be made, as far as can be seen without one.
///
/// # Errors
/// Says what is missing.
pub fn check_tun() -> Result<(), RouterError> {
    open_device().map(drop)
}

/// One more queue of the device, which the first one makes; and the device's name.
fn open_queue(name: &str) -> Result<(File, String), RouterError> {
    let file = open_device()?;
    let made = make_queue(&file, name);
    let name = made.map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::EPERM) => format!("{e}: CAP_NET_ADMIN is needed"),
            _ => cause(&e, 0),
        };
        RouterError::new(format!("cannot make the TUN device {name}"), why)
    })?;
    Ok((file, name))
}

fn make_queue(file: &File, name: &str) -> io::Result<String> {
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
    Ok(name)
}
