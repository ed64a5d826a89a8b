//! AF_XDP: the UMEM and its sockets by xsk-rs, the four rings of a socket by
//! code of our own over a second mapping (xsk-rs transmits only from where the
//! kernel put a packet; a router has to move its start).
//!
//! Sources: Documentation/networking/af_xdp.rst, include/uapi/linux/if_xdp.h.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

pub use xsk_rs::Umem;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

use crate::frame::Frame;

/// Bytes kept free in front of every received packet, beside the kernel's own
/// 256 of XDP headroom.
pub(crate) const HEADROOM: u32 = 128;
/// The kernel's own headroom in front of ours (`include/uapi/linux/bpf.h`).
const XDP_PACKET_HEADROOM: u32 = 256;
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

/// The right to use one frame of an [`Area`]. Not `Copy`: it is moved into a
/// ring or back into the pool.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameId(u32);

impl FrameId {
    pub(crate) const fn index(&self) -> usize {
        self.0 as usize
    }
}

/// A received packet: its frame, and where in the area it lies.
#[derive(Debug)]
pub struct Packet {
    pub(crate) frame: FrameId,
    /// Offset from the area's start, bytes.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u32,
}

impl Packet {
    /// Its frame alone, free again.
    pub fn into_frame(self) -> FrameId {
        self.frame
    }

    /// The packet's start went from `before` to `start` within its frame.
    #[inline]
    fn moved(&mut self, before: usize, start: usize, len: usize) {
        self.address = self
            .address
            .wrapping_sub(before as u64)
            .wrapping_add(start as u64);
        self.len = u32::try_from(len).unwrap_or(0);
    }
}

/// A worker's packet memory.
#[derive(Debug)]
pub struct Area {
    umem: Umem,
    base: NonNull<u8>,
    frames: u32,
    frame_size: u32,
    /// Of the frame size, a power of two.
    frame_bits: u32,
}

// SAFETY: `base` points into the mapping that `umem` keeps alive; an Area is
// used by one worker at a time, and the pointer has no thread of its own.
unsafe impl Send for Area {}

impl Area {
    /// Maps `frames` frames of `frame_size` bytes (a power of two) and registers
    /// them. Every socket's fill and completion ring gets `ring` entries.
    ///
    /// # Errors
    /// The kernel's, as when memory may not be locked.
    pub fn new(frames: u32, frame_size: u32, ring: u32) -> io::Result<(Self, Vec<FrameId>)> {
        let size = |n: u32| QueueSize::new(n).map_err(io::Error::other);
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_size).map_err(io::Error::other)?)
            .frame_headroom(HEADROOM)
            .fill_queue_size(size(ring)?)
            .comp_queue_size(size(ring)?)
            .build()
            .map_err(io::Error::other)?;
        let count = NonZeroU32::new(frames).ok_or(io::ErrorKind::InvalidInput)?;
        let (umem, mut descs) = Umem::new(config, count, false).map_err(source_error)?;
        let first = descs.first_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let address = first.addr();
        // SAFETY: the descriptor is this UMEM's, and no ring has it yet.
        let data = unsafe { umem.data_mut(first) }
            .contents()
            .as_ptr()
            .cast_mut();
        // SAFETY: the frame's data lies `address` bytes behind the start of the
        // mapping, so the result is the mapping's first byte.
        let base = NonNull::new(unsafe { data.sub(address) }).ok_or(io::ErrorKind::InvalidData)?;
        let area = Self {
            umem,
            base,
            frames,
            frame_size,
            frame_bits: frame_size.trailing_zeros(),
        };
        Ok((area, (0..frames).map(FrameId).collect()))
    }

    pub(crate) const fn frames(&self) -> u32 {
        self.frames
    }

    /// A handle for binding sockets to this memory.
    pub fn umem(&self) -> Umem {
        self.umem.clone()
    }

    /// The packet in its frame; `None` when it is not inside one, which the
    /// kernel never says.
    #[inline]
    pub(crate) fn frame<'a>(&'a self, packet: &'a mut Packet) -> Option<Frame<'a>> {
        let start = u64::from(packet.frame.0).checked_mul(u64::from(self.frame_size))?;
        let offset = packet.address.checked_sub(start)?;
        // SAFETY: the frame's number is below `frames` (FrameIds are made in
        // `new` and in `packet`, which checks), so the chunk lies inside the
        // mapping; the exclusive borrow of its only FrameId keeps every other
        // reference, and the rings, away from it.
        let chunk = unsafe {
            let at = self.base.as_ptr().add(usize::try_from(start).ok()?);
            std::slice::from_raw_parts_mut(at, self.frame_size as usize)
        };
        Frame::new(chunk, usize::try_from(offset).ok()?, packet.len as usize)
    }

    /// Works on a packet in its frame. `None` when it does not lie inside one,
    /// which the kernel never says.
    #[inline]
    pub fn edit<R>(
        &self,
        packet: &mut Packet,
        work: impl FnOnce(&mut Frame<'_>) -> R,
    ) -> Option<R> {
        let mut frame = self.frame(packet)?;
        let before = frame.start();
        let result = work(&mut frame);
        let (start, len) = (frame.start(), frame.len());
        packet.moved(before, start, len);
        Some(result)
    }

    /// A frame as an empty packet, behind as much headroom as received ones have.
    pub fn empty(&self, frame: FrameId) -> Packet {
        let start = u64::from(frame.0).wrapping_mul(u64::from(self.frame_size));
        Packet {
            address: start.wrapping_add(u64::from(XDP_PACKET_HEADROOM.wrapping_add(HEADROOM))),
            frame,
            len: 0,
        }
    }

    /// The frame of this index, after the socket that had it is closed.
    pub(crate) fn reclaimed(&self, index: usize) -> FrameId {
        FrameId(
            u32::try_from(index)
                .unwrap_or(0)
                .min(self.frames.saturating_sub(1)),
        )
    }

    /// Takes ownership back from a ring's address.
    #[inline]
    fn owned(&self, address: u64) -> Option<FrameId> {
        let index = u32::try_from(address >> self.frame_bits).ok()?;
        (index < self.frames).then_some(FrameId(index))
    }

    /// Begins to fetch the first bytes of a packet, and goes on.
    #[inline]
    fn prefetch(&self, address: u64, underlay: bool) {
        let at = self.base.as_ptr().wrapping_add(address as usize);
        prefetch(at);
        if underlay {
            prefetch(at.wrapping_add(CACHE_LINE));
        }
    }
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

/// One ring, mapped a second time. `T` is what it holds.
#[derive(Debug)]
struct Ring<T> {
    map: NonNull<libc::c_void>,
    map_len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    /// Our own index: how far we have produced or consumed.
    mine: u32,
    /// The kernel's, as last seen.
    theirs: u32,
}

// SAFETY: the pointers lead into a mapping that the ring owns; all access is
// through `&mut self`, and the kernel's side is synchronised by atomics.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    fn map(
        fd: RawFd,
        page_offset: libc::off_t,
        at: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Self> {
        let offset = |o: u64| usize::try_from(o).map_err(io::Error::other);
        let map_len = offset(at.desc)? + size as usize * size_of::<T>();
        // SAFETY: mmap(2) of a socket's ring at the offsets that the kernel
        // gave (XDP_MMAP_OFFSETS); the result is checked.
        let map = unsafe {
            libc::mmap(
                ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                page_offset,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel's offsets lie inside the mapping.
        let (producer, consumer, entries) = unsafe {
            (
                map.byte_add(offset(at.producer)?),
                map.byte_add(offset(at.consumer)?),
                map.byte_add(offset(at.desc)?),
            )
        };
        Ok(Self {
            map,
            map_len,
            producer: producer.cast(),
            consumer: consumer.cast(),
            entries: entries.cast(),
            size,
            mine: 0,
            theirs: 0,
        })
    }

    fn slot(&self, index: u32) -> *mut T {
        // SAFETY: sizes are powers of two, so the masked index is below `size`.
        unsafe {
            self.entries
                .as_ptr()
                .add((index & self.size.wrapping_sub(1)) as usize)
        }
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: aligned, inside the mapping, shared with the kernel as an atomic.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    /// Entries that we have produced and the kernel has not consumed.
    fn queued(&mut self) -> u32 {
        self.theirs = self.consumer().load(Ordering::Acquire);
        self.mine.wrapping_sub(self.theirs)
    }

    /// Room for at least one more; looks at the kernel's index only when the
    /// last seen one says full.
    #[inline]
    fn has_room(&mut self) -> bool {
        self.mine.wrapping_sub(self.theirs) < self.size || self.queued() < self.size
    }

    /// Writes an entry that [`publish`](Self::publish) will show. Call only
    /// when there is room.
    #[inline]
    fn put(&mut self, entry: T) {
        // SAFETY: the slot is ours until its index is published.
        unsafe { self.slot(self.mine).write(entry) };
        self.mine = self.mine.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) {
        self.publish_to(self.mine);
    }

    /// Shows entries up to this index.
    #[inline]
    fn publish_to(&mut self, index: u32) {
        self.producer().store(index, Ordering::Release);
    }

    /// An entry that we have produced, and the kernel has not been shown.
    #[inline]
    fn own(&self, index: u32) -> T {
        // SAFETY: what is not published yet is ours, and written.
        unsafe { self.slot(index).read() }
    }

    /// Whether the kernel has produced an entry that we have not taken.
    #[inline]
    fn has_more(&mut self) -> bool {
        if self.mine == self.theirs {
            self.theirs = self.producer().load(Ordering::Acquire);
        }
        self.mine != self.theirs
    }

    /// The next entry that the kernel has produced.
    #[inline]
    fn take(&mut self) -> Option<T> {
        if !self.has_more() {
            return None;
        }
        // SAFETY: the kernel's index is ahead of ours, so the slot is written
        // and stays so until we release it.
        let entry = unsafe { self.slot(self.mine).read() };
        self.mine = self.mine.wrapping_add(1);
        Some(entry)
    }

    /// The entry that will be taken after `n` others, if it is known to be there.
    #[inline]
    fn ahead(&self, n: u32) -> Option<T> {
        let known = self.theirs.wrapping_sub(self.mine);
        // SAFETY: as in `take`.
        (n < known).then(|| unsafe { self.slot(self.mine.wrapping_add(n)).read() })
    }

    /// Begins to fetch the entry behind `n` others, whether it is there or not, and goes on.
    #[inline]
    fn prefetch(&self, n: u32) {
        prefetch(self.slot(self.mine.wrapping_add(n)).cast());
    }

    #[inline]
    fn release(&mut self) {
        self.consumer().store(self.mine, Ordering::Release);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}

/// What the kernel granted, read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Zero-copy; copy mode otherwise.
    pub zero_copy: bool,
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
    _socket: (TxQueue, RxQueue, FillQueue, CompQueue),
}

impl Xsk {
    /// Binds to a queue of `umem`'s area. `ring` is the area's, `size` that of the receive and
    /// transmit rings; both powers of two. The socket is to be used with that area only.
    ///
    /// # Errors
    /// The kernel's; EBUSY when the queue is another socket's.
    pub fn bind(
        umem: &Umem,
        interface: &str,
        queue: u32,
        ring: u32,
        size: u32,
    ) -> io::Result<Self> {
        let queue_size = QueueSize::new(size).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(queue_size)
            .tx_queue_size(queue_size)
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
        let _ = set_option(fd, XDP_MAX_TX_SKB_BUDGET, size.min(256));
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
            rx: Ring::map(fd, libc::XDP_PGOFF_RX_RING, &at.rx, size)?,
            tx: Ring::map(fd, libc::XDP_PGOFF_TX_RING, &at.tx, size)?,
            fd,
            granted: Granted {
                zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
            },
            in_flight: 0,
            receiving: 0,
            held_from: 0,
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

    /// Gives the slots of received packets back to the kernel.
    #[inline]
    pub fn receive_done(&mut self) {
        self.rx.release();
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
        self.held_from != before && {
            self.kick();
            true
        }
    }

    /// True when packets wait that the kernel has not been shown.
    pub(crate) const fn holds(&self) -> bool {
        self.held_from != self.tx.mine
    }

    /// Shows packets to the kernel, and has it send them.
    fn kick(&mut self) -> bool {
        self.tx.publish_to(self.held_from);
        let waiting = |tx: &mut Ring<libc::xdp_desc>, shown: u32| {
            tx.queued();
            shown != tx.theirs
        };
        // Each call sends at least one budget's worth; more rounds than the
        // ring has batches cannot be needed.
        for _ in 0..self.tx.size / 32 {
            if !waiting(&mut self.tx, self.held_from) {
                return true;
            }
            // SAFETY: sendto(2) without data or address only kicks the ring.
            let sent = unsafe {
                libc::sendto(self.fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0)
            };
            let again =
                sent >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
            if !again {
                break;
            }
        }
        !waiting(&mut self.tx, self.held_from)
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
    pub(crate) const fn receiving(&self) -> u32 {
        self.receiving
    }

    /// Frames that wait in the fill ring.
    #[inline]
    pub fn filled(&mut self) -> u32 {
        self.fill.queued()
    }

    /// Gives a frame for receiving; the ring must have room, which quotas below
    /// its size make sure of.
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
