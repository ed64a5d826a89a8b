//! The workers' signs of life, in memory that they share with the XDP programs.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;

use crate::error::RouterError;
use crate::tick::Tick;

/// Bytes of a worker's place: a cache line, `struct beat` of `router/bpf/rules.h`.
const BEAT_BYTES: usize = 64;
/// Where in it the round of its trunk stands.
const ROUND: usize = 8;
pub(crate) const MAX_WORKERS: usize = 64;

/// The heartbeat map, mapped into memory.
#[derive(Debug)]
pub(super) struct Heartbeat {
    map: NonNull<libc::c_void>,
}

// SAFETY: the mapping is only read and written as atomics.
unsafe impl Send for Heartbeat {}
// SAFETY: as above.
unsafe impl Sync for Heartbeat {}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; every Beat holds an Arc of it.
        unsafe { libc::munmap(self.map.as_ptr(), BEAT_BYTES * MAX_WORKERS) };
    }
}

/// One worker's place in the heartbeat map.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    map: Arc<Heartbeat>,
    offset: usize,
}

impl Beat {
    pub(super) fn new(map: &Arc<Heartbeat>, worker: usize) -> Self {
        Self {
            map: Arc::clone(map),
            offset: worker.min(MAX_WORKERS - 1) * BEAT_BYTES,
        }
    }

    fn place(&self) -> &AtomicU64 {
        // SAFETY: the offset is that of an aligned u64 inside the mapping.
        unsafe {
            self.map
                .map
                .byte_add(self.offset)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }

    /// Tells the hooks that the worker lives.
    #[inline]
    pub(crate) fn at(&self, tick: Tick) {
        self.place().store(tick.0, Ordering::Relaxed);
    }

    /// Begins a round of the worker's trunk: what ports have taken of its places before is free again.
    #[inline]
    pub(crate) fn begin_round(&self, number: u32) {
        // SAFETY: behind the u64 of the worker's place, inside the mapping, aligned, and only used as an atomic.
        let round = unsafe {
            let at = self.map.map.byte_add(self.offset + ROUND);
            at.cast::<AtomicU32>().as_ref()
        };
        round.store(number, Ordering::Relaxed);
    }

    /// When the worker lived last.
    #[inline]
    pub(crate) fn last(&self) -> Tick {
        Tick(self.place().load(Ordering::Relaxed))
    }
}

pub(super) fn map_heartbeat(data: &MapData) -> Result<Heartbeat, RouterError> {
    // SAFETY: mmap(2) of a BPF_F_MMAPABLE array; the result is checked.
    let map = unsafe {
        libc::mmap(
            ptr::null_mut(),
            BEAT_BYTES * MAX_WORKERS,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            data.fd().as_fd().as_raw_fd(),
            0,
        )
    };
    let map = NonNull::new(map).filter(|_| map != libc::MAP_FAILED);
    map.map(|map| Heartbeat { map }).ok_or_else(|| {
        RouterError::new(
            "cannot map the heartbeat",
            io::Error::last_os_error().to_string(),
        )
    })
}
