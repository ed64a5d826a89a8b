//! The control plane's side of the seam.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use left_right::Absorb;

use crate::reader::{ReaderFactory, Tables};
use crate::{Fib, Update, UpdateError};

/// How long [`Publisher::publish`] waits for a reader. A batch takes microseconds; this leaves
/// room for a worker that has lost its CPU for a while.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long to sleep between two looks at the readers.
const PAUSE: Duration = Duration::from_micros(50);

/// The one writer of the forwarding table.
///
/// Updates are staged by [`apply`](Self::apply) and become visible together by
/// [`publish`](Self::publish). The publisher keeps a table of its own, with what is staged, to
/// check updates against: three copies in all.
///
/// An update takes constant time, but now and then a hash table grows: one update then costs as
/// much as that table holds. Only the publisher's thread pays for that. It is also where
/// everything that was removed is freed.
///
/// Dropping the publisher leaves the last published table with the readers.
pub struct Publisher {
    tables: Tables,
    /// The table with all staged updates.
    next: Fib,
    /// Applied to `next`, but not handed over for publication.
    staged: Vec<Update>,
    /// The epoch that readers who come now see.
    published: u64,
    /// No reader sees an older epoch any more.
    quiesced: u64,
}

/// A publication has not happened, because a reader has not let go of an old table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot publish forwarding table {epoch}: a worker has used a table older than {published} \
     for more than {} ms; the changes are kept, publish again, and restart the daemon if \
     this persists",
    PATIENCE.as_millis()
)]
pub struct ReaderStuck {
    /// The epoch that was to be published.
    pub epoch: u64,
    /// The epoch that readers go on seeing.
    pub published: u64,
}

/// What is done to each of the two copies.
pub(crate) enum Operation {
    /// A change of entries.
    Update(Update),
    /// The end of the changes for an epoch.
    Epoch(u64),
}

impl Absorb<Operation> for Fib {
    fn absorb_first(&mut self, operation: &mut Operation, _: &Self) {
        match operation {
            Operation::Update(update) => self.apply(update),
            Operation::Epoch(epoch) => self.epoch = *epoch,
        }
    }

    fn sync_with(&mut self, first: &Self) {
        self.clone_from(first);
    }
}

impl Publisher {
    /// An empty table of epoch 0, and the source of its readers.
    pub fn new() -> (Self, ReaderFactory) {
        let (mut write, read) = left_right::new::<Fib, Operation>();
        // The first two publications copy the whole table: done here, while it is empty.
        write.publish();
        write.publish();
        let tables = Arc::new(Mutex::new(write));
        let factory = ReaderFactory::new(read.factory(), Arc::clone(&tables));
        let publisher = Self {
            tables,
            next: Fib::default(),
            staged: Vec::new(),
            published: 0,
            quiesced: 0,
        };
        (publisher, factory)
    }

    /// Stages an update: readers see it after the next [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// If the update contradicts what is in the table or staged. It has no effect then; what was
    /// staged before stays staged.
    pub fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        self.next.check(&update)?;
        self.next.apply(&update);
        self.staged.push(update);
        Ok(())
    }

    /// Stages all of these updates, in this order, or none of them.
    ///
    /// # Errors
    ///
    /// If one of them contradicts what is in the table, staged, or made by those before it. None of
    /// them has an effect then.
    pub fn apply_all(
        &mut self,
        updates: impl IntoIterator<Item = Update>,
    ) -> Result<(), UpdateError> {
        let mut undo = Vec::new();
        let before = self.staged.len();
        for update in updates {
            let inverse = self.next.inverse(&update);
            match self.apply(update) {
                Ok(()) => undo.push(inverse),
                Err(error) => {
                    for inverse in undo.iter().rev() {
                        self.next.apply(inverse);
                    }
                    self.staged.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Makes all staged updates visible at once, and returns the epoch that has them. Without any
    /// staged this is the current epoch, and nothing happens.
    ///
    /// This never holds up a reader. It may have to wait, by sleeping, until every reader has
    /// let go of what the publication before the last one left: usually all have long done so.
    ///
    /// # Errors
    ///
    /// If a reader does not let go for 100 ms. The updates stay staged, and the next call tries
    /// again.
    pub fn publish(&mut self) -> Result<u64, ReaderStuck> {
        self.hand_over();
        let start = Instant::now();
        while self.published < self.next.epoch {
            if self.try_swap() {
                break;
            }
            if start.elapsed() >= PATIENCE {
                return Err(ReaderStuck {
                    epoch: self.next.epoch,
                    published: self.published,
                });
            }
            thread::sleep(PAUSE);
        }
        Ok(self.published)
    }

    /// Whether all readers have let go of all tables older than `epoch`, so that what only these
    /// named can be freed or used anew. Never waits: call it again a little later if it is false.
    ///
    /// It also frees what had been removed from those tables, and completes a publication that
    /// had failed. It does not publish what was staged since.
    pub fn quiesced(&mut self, epoch: u64) -> bool {
        if self.quiesced < epoch && self.published >= epoch {
            self.try_swap();
        }
        self.quiesced >= epoch
    }

    /// The table as the next publication will show it, with all staged updates. Its epoch is
    /// the last one that [`publish`](Self::publish) was called for.
    pub fn fib(&self) -> &Fib {
        &self.next
    }

    /// Turns what is staged into the changes of one more epoch, or of the one that is waiting.
    fn hand_over(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let staged = mem::take(&mut self.staged);
        let mut operations: Vec<_> = staged.into_iter().map(Operation::Update).collect();
        if self.next.epoch == self.published {
            self.next.epoch += 1;
            operations.push(Operation::Epoch(self.next.epoch));
        }
        // Only the publisher ever locks this, so it neither waits nor finds it poisoned.
        let mut write = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        write.extend(operations);
    }

    /// Brings the copy that no reader uses up to date and gives it to the readers; false if a
    /// reader still uses it.
    fn try_swap(&mut self) -> bool {
        let mut write = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !write.try_publish() {
            return false;
        }
        // Whoever was reading used the other copy, which has the epoch published before.
        self.quiesced = self.published;
        self.published = self.next.epoch;
        true
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("published", &self.published)
            .field("quiesced", &self.quiesced)
            .field("staged", &self.staged.len())
            .finish_non_exhaustive()
    }
}
