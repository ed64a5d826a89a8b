//! Small system calls: clock, queue counts, sleeping on descriptors.
#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use crate::tick::Tick;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub(crate) fn now() -> Tick {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes one timespec to a valid pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    Tick(
        t.tv_sec
            .cast_unsigned()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(t.tv_nsec.cast_unsigned()),
    )
}

/// Has this thread's short sleeps end when they are due: the kernel adds 50 us else (prctl(2),
/// `PR_SET_TIMERSLACK`).
pub(crate) fn sleep_exactly() {
    // SAFETY: prctl(2) with PR_SET_TIMERSLACK takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Sleeps for a time below a second, whatever arrives.
pub(crate) fn nap(time: Duration) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    };
    // SAFETY: clock_nanosleep(2) reads one timespec. A signal ends it early, which is no matter.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const time, ptr::null_mut()) };
}

/// The kernel's number of the network namespace that this thread is in, never used twice in a boot.
///
/// # Errors
///
/// If the kernel has none (before Linux 5.14).
pub fn network_namespace() -> io::Result<u64> {
    /// `include/uapi/asm-generic/socket.h`.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = any_socket()?;
    let mut cookie: u64 = 0;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes to `cookie`, which has as many, and the
    // length to `length`; the descriptor is open.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    })?;
    Ok(cookie)
}

/// A socket to ask the kernel about devices with.
fn any_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A request about a device, all zeros but its name.
pub(crate) fn interface_request(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(interface.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    request
}

/// Gives a point-to-point device an address, /32.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let fd = any_socket()?;
    let mut request = interface_request(interface);
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the union holds a sockaddr, of the same size as a sockaddr_in.
    unsafe {
        (&raw mut request.ifr_ifru.ifru_addr)
            .cast::<libc::sockaddr_in>()
            .write_unaligned(address);
    }
    // SAFETY: SIOCSIFADDR reads one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFADDR, &raw mut request) })?;
    Ok(())
}

/// Brings a device up that is as it was made.
pub(crate) fn set_up(interface: &str) -> io::Result<()> {
    let fd = any_socket()?;
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    Ok(())
}

/// Queues of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
}

/// Queues that the device has now (ethtool(8) `-l`).
pub(crate) fn channels(interface: &str) -> io::Result<Channels> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    /// `struct ethtool_channels` of `include/uapi/linux/ethtool.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Answer {
        cmd: u32,
        max: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    let fd = any_socket()?;
    let mut channels = Answer {
        cmd: ETHTOOL_GCHANNELS,
        ..Answer::default()
    };
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL reads the ifreq and writes one ethtool_channels
    // where it points; both outlive the call.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) });
    match result {
        Ok(_) => Ok(Channels {
            rx: (channels.rx + channels.combined).max(1),
            tx: (channels.tx + channels.combined).max(1),
        }),
        // A device without channels has one queue.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Channels { rx: 1, tx: 1 }),
        Err(e) => Err(e),
    }
}

/// Whether a device is an end of a veth pair, as its driver says.
pub(crate) fn is_veth(interface: &str) -> bool {
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo` of `include/uapi/linux/ethtool.h`: 196 bytes.
    #[repr(C)]
    struct Answer {
        cmd: u32,
        driver: [u8; 32],
        rest: [u32; 40],
    }
    let Ok(fd) = any_socket() else {
        return false;
    };
    let mut answer = Answer {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 40],
    };
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_data = (&raw mut answer).cast();
    // SAFETY: SIOCETHTOOL reads the ifreq and writes one ethtool_drvinfo where it points, which
    // is as large as this one; both outlive the call.
    let result = check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) });
    result.is_ok() && answer.driver.starts_with(b"veth\0")
}

/// Turns a device's GRO on or off (ethtool(8), `-K DEV gro`): whether it was on.
pub(crate) fn set_gro(interface: &str, on: bool) -> io::Result<bool> {
    const ETHTOOL_GGRO: u32 = 0x2b;
    const ETHTOOL_SGRO: u32 = 0x2c;
    /// `struct ethtool_value` of `include/uapi/linux/ethtool.h`.
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    let fd = any_socket()?;
    let mut request = interface_request(interface);
    let mut ask = |mut value: Value| -> io::Result<u32> {
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL reads the ifreq, and reads or writes one ethtool_value where it
        // points; both outlive the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
        Ok(value.data)
    };
    let was = ask(Value {
        cmd: ETHTOOL_GGRO,
        data: 0,
    })? != 0;
    if was != on {
        ask(Value {
            cmd: ETHTOOL_SGRO,
            data: u32::from(on),
        })?;
    }
    Ok(was)
}

/// Sleeps until a socket has packets or somebody calls [`wake`](Self::wake).
#[derive(Debug)]
pub(crate) struct Sleeper {
    epoll: OwnedFd,
    event: OwnedFd,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: neither call takes pointers; both descriptors are new.
        let (epoll, event) = unsafe {
            let epoll = OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
            let event = OwnedFd::from_raw_fd(check(libc::eventfd(
                0,
                libc::EFD_CLOEXEC | libc::EFD_NONBLOCK,
            ))?);
            (epoll, event)
        };
        let sleeper = Self { epoll, event };
        sleeper.watch(sleeper.event.as_raw_fd())?;
        Ok(sleeper)
    }

    /// Also wakes for this descriptor, until it is closed or [unwatched](Self::unwatch). No error
    /// when it is watched already.
    pub(crate) fn watch(&self, fd: RawFd) -> io::Result<()> {
        match self.control(libc::EPOLL_CTL_ADD, fd) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// No longer wakes for it.
    pub(crate) fn unwatch(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd)
    }

    fn control(&self, what: libc::c_int, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN.cast_unsigned(),
            u64: u64::try_from(fd).unwrap_or(0),
        };
        // SAFETY: epoll_ctl(2) reads one epoll_event.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), what, fd, &raw mut event) })?;
        Ok(())
    }

    pub(crate) fn wake(&self) {
        let one = 1u64;
        // SAFETY: eventfd(2) reads 8 bytes. A full counter is as good as a wake.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub(crate) fn wait(&self, timeout_ms: i32) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // SAFETY: epoll_wait(2) writes at most 8 events. Errors (EINTR) mean that there is none.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 8, timeout_ms) };
        let event = self.event.as_raw_fd();
        let count = usize::try_from(count).unwrap_or(0);
        let mut woken = events.iter().take(count);
        // Where there are more than fit, the next time has the others.
        if woken.any(|e| i32::try_from(e.u64) == Ok(event)) {
            let mut calls = 0u64;
            // SAFETY: read(2) writes at most 8 bytes. EAGAIN means that nobody called.
            unsafe { libc::read(event, (&raw mut calls).cast(), 8) };
        }
    }
}
