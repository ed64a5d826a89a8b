//! How often the same is logged.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often a refusal from one source is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Sources of which it is remembered when they were last logged.
const MAX_LOGGED: usize = 1024;

/// When something was last logged of whom.
#[derive(Default)]
pub(super) struct Log(HashMap<IpAddr, Instant>);

impl Log {
    /// Whether something may be said of it now.
    pub(super) fn may(&mut self, of: IpAddr, now: Instant) -> bool {
        if self.0.len() >= MAX_LOGGED {
            self.0
                .retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        }
        match self.0.get(&of) {
            Some(at) if now.duration_since(*at) < LOG_INTERVAL => false,
            // Of so many that some would be forgotten, nothing more is said for now.
            None if self.0.len() >= MAX_LOGGED => false,
            _ => {
                self.0.insert(of, now);
                true
            }
        }
    }
}
