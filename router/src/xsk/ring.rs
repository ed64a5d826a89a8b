//! A ring that is shared with the kernel, mapped by ourselves.

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::prefetch;

/// One ring, mapped a second time. `T` is what it holds.
#[derive(Debug)]
pub(super) struct Ring<T> {
    map: NonNull<libc::c_void>,
    map_len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    entries: NonNull<T>,
    pub(super) size: u32,
    /// Our own index: how far we have produced or consumed.
    pub(super) mine: u32,
    /// The kernel's, as last seen.
    pub(super) theirs: u32,
}

// SAFETY: the pointers lead into a mapping that the ring owns; all access is
// through `&mut self`, and the kernel's side is synchronised by atomics.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    pub(super) fn map(
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
    pub(super) fn queued(&mut self) -> u32 {
        self.theirs = self.consumer().load(Ordering::Acquire);
        self.mine.wrapping_sub(self.theirs)
    }

    /// Room for at least one more; looks at the kernel's index only when the
    /// last seen one says full.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        self.mine.wrapping_sub(self.theirs) < self.size || self.queued() < self.size
    }

    /// Writes an entry that [`publish`](Self::publish) will show. Call only
    /// when there is room.
    #[inline]
    pub(super) fn put(&mut self, entry: T) {
        // SAFETY: the slot is ours until its index is published.
        unsafe { self.slot(self.mine).write(entry) };
        self.mine = self.mine.wrapping_add(1);
    }

    #[inline]
    pub(super) fn publish(&mut self) {
        self.publish_to(self.mine);
    }

    /// Shows entries up to this index.
    #[inline]
    pub(super) fn publish_to(&mut self, index: u32) {
        self.producer().store(index, Ordering::Release);
    }

    /// An entry that we have produced, and the kernel has not been shown.
    #[inline]
    pub(super) fn own(&self, index: u32) -> T {
        // SAFETY: what is not published yet is ours, and written.
        unsafe { self.slot(index).read() }
    }

    /// Whether the kernel has produced an entry that we have not taken.
    #[inline]
    pub(super) fn has_more(&mut self) -> bool {
        if self.mine == self.theirs {
            self.theirs = self.producer().load(Ordering::Acquire);
        }
        self.mine != self.theirs
    }

    /// The index up to which the kernel has produced entries, ever, modulo 2^32.
    #[inline]
    pub(super) fn produced(&self) -> u32 {
        self.producer().load(Ordering::Acquire)
    }

    /// The next entry that the kernel has produced.
    #[inline]
    pub(super) fn take(&mut self) -> Option<T> {
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
    pub(super) fn ahead(&self, n: u32) -> Option<T> {
        let known = self.theirs.wrapping_sub(self.mine);
        // SAFETY: as in `take`.
        (n < known).then(|| unsafe { self.slot(self.mine.wrapping_add(n)).read() })
    }

    /// Begins to fetch the entry behind `n` others, whether it is there or not, and goes on.
    #[inline]
    pub(super) fn prefetch(&self, n: u32) {
        prefetch(self.slot(self.mine.wrapping_add(n)).cast());
    }

    #[inline]
    pub(super) fn release(&mut self) {
        self.consumer().store(self.mine, Ordering::Release);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.map.as_ptr(), self.map_len) };
    }
}
