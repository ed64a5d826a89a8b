//! System calls that no library wraps.
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of IP packet that an interface of the thread's namespace takes.
pub(crate) fn mtu(interface: &str) -> io::Result<u32> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.bytes().take(libc::IFNAMSIZ - 1);
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFMTU reads the name and writes an int into the ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFMTU has written this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// Set by the signals that end a program.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(signal: libc::c_int) {
    if signal != libc::SIGURG {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
}

/// From now on SIGINT and SIGTERM end a run, not the program; SIGURG only interrupts system calls.
pub(crate) fn catch_signals() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGURG] {
        // SAFETY: sigaction is plain data; the handler does nothing but store an atomic, which is
        // allowed in one (signal-safety(7)). Without SA_RESTART, system calls return EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupted as *const () as libc::sighandler_t;
            if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Whether a signal has asked for the end.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A thread whose system calls can be interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    process: libc::pid_t,
    id: libc::pid_t,
}

impl Thread {
    pub(crate) fn current() -> Self {
        // SAFETY: neither call takes pointers.
        let (process, id) = unsafe { (libc::getpid(), libc::gettid()) };
        Self { process, id }
    }

    /// Interrupts the system call that the thread is in, if any; no matter if it has ended.
    pub(crate) fn interrupt(self) {
        // SAFETY: tgkill(2) takes no pointers, and sends only to a thread of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.id, libc::SIGURG) };
    }
}
