//! Why an agent cannot start.

use viaduct_fib::{ReaderStuck, UpdateError};

use crate::kernel::KernelError;
use crate::options::OptionsError;
use crate::slow_path::SlowPathError;

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The options contradict themselves.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel's path could not be prepared.
    #[error(transparent)]
    SlowPath(#[from] SlowPathError),
    /// The cluster's prefixes contain what makes nodes reachable.
    #[error("{}", .0.join("; "))]
    Overlaps(Vec<String>),
    /// There is no agent any more.
    #[error("the daemon is stopping")]
    Ended,
    /// The forwarding table refuses the options.
    #[error("cannot build the forwarding table: {0}")]
    Table(#[from] UpdateError),
    /// The forwarding table could not be published.
    #[error(transparent)]
    Stuck(#[from] ReaderStuck),
}
