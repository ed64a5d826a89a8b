//! The data plane's side of the seam.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use left_right::{ReadGuard, ReadHandle, ReadHandleFactory, WriteHandle};

use crate::Fib;
use crate::publisher::Operation;

/// Both copies of the table. Readers own a share, so that a table outlives its [`Publisher`]:
/// when the control plane is gone, packets go the last known way.
///
/// [`Publisher`]: crate::Publisher
pub(crate) type Tables = Arc<Mutex<WriteHandle<Fib, Operation>>>;

/// Makes a [`Reader`] for each worker.
#[derive(Clone)]
pub struct ReaderFactory {
    handles: ReadHandleFactory<Fib>,
    tables: Tables,
}

/// One worker's access to the published tables. It can be sent to the worker's thread, but not
/// shared between threads.
///
/// The tables are freed with the last of publisher, factory and readers: to have that happen
/// outside the workers, keep one of the others until they have ended.
pub struct Reader {
    // Dropped before the tables, which wait for their readers.
    handle: ReadHandle<Fib>,
    _tables: Tables,
}

/// One published table, unchanging while it is held.
///
/// Take it once per batch and drop it after the batch. While it is held the publisher can publish
/// once more, then it has to wait: so never hold it while waiting for work, and drop it before
/// the next one is taken.
pub struct Snapshot<'a>(ReadGuard<'a, Fib>);

impl ReaderFactory {
    pub(crate) fn new(handles: ReadHandleFactory<Fib>, tables: Tables) -> Self {
        Self { handles, tables }
    }

    /// A reader for one more worker. It allocates and takes a lock, so this is for start-up.
    pub fn reader(&self) -> Reader {
        Reader {
            handle: self.handles.handle(),
            _tables: Arc::clone(&self.tables),
        }
    }
}

impl Reader {
    /// The table as it was last published. Takes two atomic operations of the worker's own cache
    /// line; never waits, allocates or frees.
    #[inline]
    #[expect(
        clippy::expect_used,
        reason = "the tables end with their last owner, and this reader is one"
    )]
    pub fn load(&self) -> Snapshot<'_> {
        Snapshot(self.handle.enter().expect("a reader owns its tables"))
    }
}

impl Deref for Snapshot<'_> {
    type Target = Fib;

    #[inline]
    fn deref(&self) -> &Fib {
        &self.0
    }
}

impl fmt::Debug for ReaderFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderFactory").finish_non_exhaustive()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl fmt::Debug for Snapshot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}
