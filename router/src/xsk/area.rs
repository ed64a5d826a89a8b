//! A worker's packet memory: the UMEM, its frames, and packets in them.

use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;

use xsk_rs::Umem;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use super::{CACHE_LINE, prefetch, source_error};
use crate::frame::Frame;

/// Bytes kept free in front of every received packet, beside the kernel's own
/// 256 of XDP headroom.
const HEADROOM: u32 = 128;
/// The kernel's own headroom in front of ours (`include/uapi/linux/bpf.h`).
const XDP_PACKET_HEADROOM: u32 = 256;

/// The right to use one frame of an [`Area`]. Not `Copy`: it is moved into a
/// ring or back into the pool.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameId(pub(super) u32);

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
    pub(super) frame_size: u32,
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
    pub(super) fn owned(&self, address: u64) -> Option<FrameId> {
        let index = u32::try_from(address >> self.frame_bits).ok()?;
        (index < self.frames).then_some(FrameId(index))
    }

    /// Begins to fetch the first bytes of a packet, and goes on.
    #[inline]
    pub(super) fn prefetch(&self, address: u64, underlay: bool) {
        let Ok(address) = usize::try_from(address) else {
            return;
        };
        let at = self.base.as_ptr().wrapping_add(address);
        prefetch(at);
        if underlay {
            prefetch(at.wrapping_add(CACHE_LINE));
        }
    }
}
