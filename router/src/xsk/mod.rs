//! AF_XDP: the UMEM and its sockets by xsk-rs, the four rings of a socket by
//! code of our own over a second mapping (xsk-rs transmits only from where the
//! kernel put a packet; a router has to move its start).
//!
//! Sources: Documentation/networking/af_xdp.rst, include/uapi/linux/if_xdp.h.
#![allow(unsafe_code)]

mod area;
mod depth;
mod ring;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

pub use xsk_rs::Umem;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

pub use self::area::{Area, FrameId, Packet};
pub use self::depth::{Depth, Loans, MAX_DEPTH, RESERVE, Visit, frames, share};
use self::ring::Ring;

/// Packets a kernel transmit call may take (Linux 6.18; 32 before).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Bytes.
const CACHE_LINE: usize = 64;

/// Begins to fetch a cache line, and goes on. Where the language has no stable way to say so, it
/// does nothing.
#[inline]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint to the processor, which reads nothing and fails for no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

fn source_error(e: impl std::error::Error) -> io::Error {
    // The cause keeps its number, for those who look at it.
    match e
        .source()
        .and_then(|s| s.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
    {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(e.to_string()),
    }
}

/// What the kernel granted, read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Zero-copy; copy mode otherwise.
    pub zero_copy: bool,
}

/// Entries of a socket's rings, powers of two.
#[derive(Debug, Clone, Copy)]
pub struct RingSizes {
    /// Of fill and completion ring: the area's.
    pub area: u32,
    /// Of the receive ring.
    pub receive: u32,
    /// Of the transmit ring.
    pub transmit: u32,
}

/// One socket: a queue of a device, seen from its worker.
#[derive(Debug)]
pub struct Xsk {
    // Dropped first: rings are unmapped before the socket closes.
    fill: Ring<u64>,
    completion: Ring<u64>,
    rx: Ring<libc::xdp_desc>,
    tx: Ring<libc::xdp_desc>,
    fd: RawFd,
    granted: Granted,
    /// Sent and not yet completed.
    in_flight: u32,
    /// Given for receiving and not yet received.
    receiving: u32,
    /// Index of the first packet in the transmit ring that the kernel has not been shown.
    held_from: u32,
    /// How far the kernel was when it has left some of what it was shown last.
    stuck_at: Option<u32>,
    /// Whether the kernel always tells how far it is: those that know `XDP_MAX_TX_SKB_BUDGET` do. Older ones only when
    /// they have come to an end.
    tells_progress: bool,
    _socket: (TxQueue, RxQueue, FillQueue, CompQueue),
}

impl Xsk {
    /// Binds to a queue of `umem`'s area. The socket is to be used with that area only.
    ///
    /// # Errors
    /// The kernel's; EBUSY when the queue is another socket's.
    pub fn bind(umem: &Umem, interface: &str, queue: u32, sizes: RingSizes) -> io::Result<Self> {
        let RingSizes {
            area: ring,
            receive,
            transmit,
        } = sizes;
        let config = SocketConfig::builder()
            .rx_queue_size(QueueSize::new(receive).map_err(io::Error::other)?)
            .tx_queue_size(QueueSize::new(transmit).map_err(io::Error::other)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            // Copy mode for all: the kernel gives a shared UMEM one mode, that of its first
            // socket, and a veth has no other.
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_COPY)
            .build();
        let name = Interface::new(CString::new(interface)?);
        // SAFETY: libxdp loads no program (INHIBIT_PROG_LOAD), which is what
        // xsk-rs asks for when a UMEM is shared.
        let (tx_q, rx_q, rings) =
            unsafe { Socket::new(config, umem, &name, queue) }.map_err(source_error)?;
        let (fill_q, comp_q) =
            rings.ok_or_else(|| io::Error::other("the queue is bound already"))?;
        let fd = tx_q.fd().as_raw_fd();
        // Older kernels refuse; then 32 packets a call it is.
        let tells_progress = set_option(fd, XDP_MAX_TX_SKB_BUDGET, transmit.min(256)).is_ok();
        let at: libc::xdp_mmap_offsets = get_option(fd, libc::XDP_MMAP_OFFSETS)?;
        let options: libc::xdp_options = get_option(fd, libc::XDP_OPTIONS)?;
        let offset = |o: u64| libc::off_t::try_from(o).map_err(io::Error::other);
        Ok(Self {
            fill: Ring::map(fd, offset(libc::XDP_UMEM_PGOFF_FILL_RING)?, &at.fr, ring)?,
            completion: Ring::map(
                fd,
                offset(libc::XDP_UMEM_PGOFF_COMPLETION_RING)?,
                &at.cr,
                ring,
            )?,
            rx: Ring::map(fd, libc::XDP_PGOFF_RX_RING, &at.rx, receive)?,
            tx: Ring::map(fd, libc::XDP_PGOFF_TX_RING, &at.tx, transmit)?,
            fd,
            granted: Granted {
                zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
            },
            in_flight: 0,
            receiving: 0,
            held_from: 0,
            stuck_at: None,
            tells_progress,
            _socket: (tx_q, rx_q, fill_q, comp_q),
        })
    }

    pub(crate) const fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) const fn granted(&self) -> Granted {
        self.granted
    }

    /// The next received packet.
    #[inline]
    pub fn receive(&mut self, area: &Area) -> Option<Packet> {
        let desc = self.rx.take()?;
        self.receiving = self.receiving.wrapping_sub(1);
        let frame = area.owned(desc.addr)?;
        Some(Packet {
            frame,
            address: desc.addr,
            len: desc.len,
        })
    }

    /// Begins to fetch the headers of the next `count` packets, which another processor has
    /// written: so a batch waits for them together, and not one after the other.
    #[inline]
    pub(crate) fn prefetch(&self, area: &Area, count: u32, tunnelled: bool) {
        for n in 0..count {
            let Some(desc) = self.rx.ahead(n) else {
                return;
            };
            area.prefetch(desc.addr, tunnelled);
        }
        // Descriptors of those behind them.
        for n in (count..count.wrapping_mul(2)).step_by(CACHE_LINE / size_of::<libc::xdp_desc>()) {
            self.rx.prefetch(n);
        }
    }

    /// Whether there is a packet to receive.
    #[inline]
    pub(crate) fn has_received(&mut self) -> bool {
        self.rx.has_more()
    }

    /// How many packets have been received, modulo 2^32.
    pub(crate) const fn taken(&self) -> u32 {
        self.rx.mine
    }

    /// How many packets the kernel has ever put there, modulo 2^32.
    pub(crate) fn come(&self) -> u32 {
        self.rx.produced()
    }

    /// Gives the slots of received packets back to the kernel.
    #[inline]
    pub fn receive_done(&mut self) {
        self.rx.release();
    }

    /// Whether another packet can be queued for transmission.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.tx.has_room()
    }

    /// Queues a packet for transmission.
    ///
    /// # Errors
    /// The packet comes back when the ring is full.
    #[inline]
    pub fn transmit(&mut self, packet: Packet) -> Result<(), Packet> {
        if !self.tx.has_room() {
            return Err(packet);
        }
        self.tx.put(libc::xdp_desc {
            addr: packet.address,
            len: packet.len,
            options: 0,
        });
        self.in_flight = self.in_flight.wrapping_add(1);
        Ok(())
    }

    /// Shows queued packets to the kernel and has it send them. True when all
    /// were taken; otherwise the device is busy: call again.
    pub fn flush(&mut self) -> bool {
        self.held_from = self.tx.mine;
        self.kick()
    }

    /// The same with as many packets as `admit`, asked with their bytes, lets pass; the others
    /// wait. True when there were any.
    pub(crate) fn flush_some(&mut self, mut admit: impl FnMut(usize) -> bool) -> bool {
        let before = self.held_from;
        while self.held_from != self.tx.mine && admit(self.tx.own(self.held_from).len as usize) {
            self.held_from = self.held_from.wrapping_add(1);
        }
        let admitted = self.held_from != before;
        // Also what an earlier call has left.
        if admitted || self.stuck_at.is_some() {
            self.kick();
        }
        admitted
    }

    /// True when packets wait that the kernel has not been shown.
    pub const fn holds(&self) -> bool {
        self.held_from != self.tx.mine
    }

    /// Shows packets to the kernel, and has it send them.
    fn kick(&mut self) -> bool {
        self.tx.publish_to(self.held_from);
        self.tx.queued();
        // Each call sends one budget's worth; more rounds than the ring has batches cannot be needed.
        for _ in 0..self.tx.size / 32 {
            let before = self.tx.theirs;
            if before == self.held_from {
                break;
            }
            // SAFETY: sendto(2) without data or address only kicks the ring.
            let sent = unsafe {
                libc::sendto(self.fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0)
            };
            let again =
                sent >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
            self.tx.queued();
            // Nothing more has left: the device is busy, or the completion ring is full.
            if !again || (self.tells_progress && self.tx.theirs == before) {
                break;
            }
        }
        let sent = self.tx.theirs == self.held_from;
        self.stuck_at = (!sent).then_some(self.tx.theirs);
        sent
    }

    /// Whether the completion ring may have no room for all that is to be sent, so that the kernel would leave some.
    pub(crate) const fn crowded(&self) -> bool {
        self.in_flight > self.completion.size
    }

    /// Whether the kernel has left some of what it was shown last, and has not moved on since it was last asked.
    pub(crate) fn stuck(&self) -> bool {
        self.stuck_at == Some(self.tx.theirs)
    }

    /// True when packets wait in the transmit ring, shown to the kernel or not.
    #[inline]
    pub fn unsent(&mut self) -> bool {
        self.in_flight > 0 && self.tx.queued() > 0
    }

    /// The next frame whose packet has left.
    #[inline]
    pub fn complete(&mut self, area: &Area) -> Option<FrameId> {
        if self.in_flight == 0 {
            return None;
        }
        let address = self.completion.take()?;
        self.in_flight = self.in_flight.wrapping_sub(1);
        self.completion.release();
        area.owned(address)
    }

    /// Frames that the kernel has been given: to fill, or to send.
    pub(crate) fn held(&mut self) -> u32 {
        self.fill.queued().wrapping_add(self.in_flight)
    }

    /// Frames given for receiving: in the fill ring, or received by the kernel and not yet here.
    pub const fn receiving(&self) -> u32 {
        self.receiving
    }

    /// Frames that wait in the fill ring.
    #[inline]
    pub fn filled(&mut self) -> u32 {
        self.fill.queued()
    }

    /// Gives a frame for receiving; the ring must have room, which
    /// [`MAX_DEPTH`] makes sure of.
    #[inline]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the ring owns the frame from here on"
    )]
    pub fn fill(&mut self, area: &Area, frame: FrameId) {
        self.receiving = self.receiving.wrapping_add(1);
        self.fill
            .put(u64::from(frame.0).wrapping_mul(u64::from(area.frame_size)));
    }

    /// Shows the kernel what [`fill`](Self::fill) has given it.
    #[inline]
    pub fn fill_done(&mut self) {
        self.fill.publish();
    }
}

impl AsRawFd for Xsk {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

/// What the kernel counts at a socket (`XDP_STATISTICS`).
pub(crate) fn statistics(fd: RawFd) -> io::Result<libc::xdp_statistics> {
    get_option(fd, libc::XDP_STATISTICS)
}

fn get_option<T>(fd: RawFd, name: libc::c_int) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: getsockopt(2) writes at most `len` bytes; T is one of the
    // kernel's plain structs, for which zeros and any bytes are values.
    unsafe {
        if libc::getsockopt(
            fd,
            libc::SOL_XDP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        ) != 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(value.assume_init())
    }
}

fn set_option(fd: RawFd, name: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: setsockopt(2) reads four bytes.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_XDP, name, (&raw const value).cast(), 4) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
