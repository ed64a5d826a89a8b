//! Keeps our nftables table as it is wanted, and looks at others' tables, without ever making the
//! agent wait: `nft` runs in tasks of its own, and what comes of it comes back as an event.
//!
//! What waits for the table all the same is a pod's way through the kernel: routes to it and
//! forwarding from it are made only when the rules against what it could forge stand
//! ([`Firewall::covers`]). A pod that goes loses its routes before its rules.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::changes::{Change, Changes};
use super::host_firewall::{self, HostFirewall, Listings, Probes};
use super::nft::{Nft, NftError};
use super::table::{self, Listing, Table};

/// How often others' tables are looked at, at most. A look that takes long is taken more seldom
/// still: at most a twentieth of the time.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const LOOK_SHARE: u32 = 20;
/// How soon a table that was refused is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a start or an end waits for the table.
const SETTLE: Duration = Duration::from_secs(10);

/// What comes back of a task, or from the kernel.
pub(crate) struct FirewallEvent(Event);

enum Event {
    Changed(Change),
    Applied(Result<(), NftError>),
    Listed(Result<Option<String>, NftError>),
    Looked(Result<HostFirewall, NftError>),
}

/// What is under way.
struct Applying {
    table: Table,
    whole: bool,
    task: JoinHandle<()>,
}

/// Our table, and what is known of others'.
pub(super) struct Firewall {
    nft: Nft,
    changes: Option<Changes>,
    wanted: Table,
    /// The table as it was written last; none: the kernel may have anything.
    installed: Option<Table>,
    /// Its shape as the kernel lists it.
    shape: Option<String>,
    /// Since it was begun to be written as a whole: how often it was changed by somebody who is not
    /// known as us, how often we wrote, and whether we were seen to change it.
    foreign: u32,
    own: u32,
    own_seen: bool,
    applying: Option<Applying>,
    /// Why the table is not there.
    failure: Option<NftError>,
    try_at: Option<Instant>,
    /// Whether the table is to be compared with what the kernel has; and what of it was written
    /// when that was begun, if it is under way.
    verify: bool,
    verifying: Option<u64>,
    writes: u64,
    look: bool,
    looking: Option<Instant>,
    look_at: Option<Instant>,
    probes: Probes,
    host: HostFirewall,
    done: (
        mpsc::UnboundedSender<FirewallEvent>,
        mpsc::UnboundedReceiver<FirewallEvent>,
    ),
}

impl std::fmt::Debug for Firewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Firewall").finish_non_exhaustive()
    }
}

impl Firewall {
    pub(super) fn new() -> Self {
        Self {
            nft: Nft::default(),
            changes: Changes::subscribe().ok(),
            wanted: Table::default(),
            installed: None,
            shape: None,
            foreign: 0,
            own: 0,
            own_seen: false,
            applying: None,
            failure: None,
            try_at: None,
            verify: false,
            verifying: None,
            writes: 0,
            look: true,
            looking: None,
            look_at: None,
            probes: Probes::default(),
            host: HostFirewall::default(),
            done: mpsc::unbounded_channel(),
        }
    }

    /// The next that happened. Cancel-safe.
    pub(super) async fn next(&mut self) -> FirewallEvent {
        let changes = &mut self.changes;
        tokio::select! {
            // What somebody changed is known before a listing that has it.
            biased;
            change = async {
                match changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            } => FirewallEvent(Event::Changed(change)),
            Some(event) = self.done.1.recv() => event,
        }
    }

    /// Takes note of it. Whether the kernel's path is to be looked at, and how soon: changes of
    /// others' come many at once.
    pub(super) fn note(&mut self, event: FirewallEvent) -> Option<Soon> {
        match event.0 {
            Event::Changed(change) => return self.note_change(change),
            Event::Applied(result) => self.applied(result),
            Event::Listed(result) => self.listed(result),
            Event::Looked(result) => self.looked(result),
        }
        Some(Soon::Now)
    }

    fn note_change(&mut self, change: Change) -> Option<Soon> {
        if change
            .process
            .is_some_and(|process| self.nft.is_ours(process))
        {
            self.own_seen = true;
            return None;
        }
        if change.ours {
            self.verify = true;
            self.foreign += 1;
        }
        self.look = true;
        Some(Soon::Later)
    }

    /// Has everything compared again: events may have been lost.
    pub(super) fn check_again(&mut self) {
        self.verify = true;
        self.look = true;
    }

    /// Says what the table is to be, and begins what is to be done.
    pub(super) fn want(&mut self, table: Table, probes: Probes, now: Instant) {
        self.wanted = table;
        self.probes = probes;
        self.write(now);
        if self.applying.is_none() && self.installed.is_some() {
            self.begin_verifying();
        }
        self.begin_looking(now);
    }

    fn write(&mut self, now: Instant) {
        let same = self.installed.as_ref() == Some(&self.wanted);
        if same || self.applying.is_some() || self.try_at.is_some_and(|at| now < at) {
            return;
        }
        let part = self.installed.as_ref();
        let part = part.and_then(|there| self.wanted.script_from(there));
        let whole = part.is_none();
        let script = part.unwrap_or_else(|| self.wanted.script());
        self.writes += 1;
        if whole {
            (self.foreign, self.own, self.own_seen) = (0, 0, false);
        }
        self.own += 1;
        self.applying = Some(Applying {
            table: self.wanted.clone(),
            whole,
            task: self.spawn(|nft| async move { Event::Applied(nft.apply(&script).await) }),
        });
    }

    fn begin_verifying(&mut self) {
        if !self.verify || self.verifying.is_some() {
            return;
        }
        self.verify = false;
        self.verifying = Some(self.writes);
        self.spawn(|nft| async move { Event::Listed(nft.table().await) });
    }

    fn begin_looking(&mut self, now: Instant) {
        // All tables of a busy host are long: not at each of others' changes.
        let too_soon = self.look_at.is_some_and(|at| now < at);
        if !self.look || self.looking.is_some() || too_soon {
            return;
        }
        self.look = false;
        self.looking = Some(now);
        let probes = self.probes.clone();
        self.spawn(|nft| async move { Event::Looked(look(nft, probes).await) });
    }

    fn spawn<F>(&self, work: impl FnOnce(Nft) -> F) -> JoinHandle<()>
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let done = self.done.0.clone();
        let work = work(self.nft.clone());
        tokio::spawn(async move {
            // The agent may have ended.
            let _ = done.send(FirewallEvent(work.await));
        })
    }

    fn applied(&mut self, result: Result<(), NftError>) {
        let Some(applying) = self.applying.take() else {
            return;
        };
        match result {
            Ok(()) => {
                self.installed = Some(applying.table);
                self.failure = None;
                self.try_at = None;
                if applying.whole {
                    info!("wrote the firewall table");
                    self.shape = None;
                    self.verify = true;
                }
            }
            // Somebody may have removed the table, or an element.
            Err(error) if !applying.whole => {
                debug!(%error, "the firewall table is not as it was written");
                self.installed = None;
            }
            Err(error) => {
                self.installed = None;
                self.failure = Some(error);
                self.try_at = Some(Instant::now() + AGAIN);
            }
        }
    }

    fn listed(&mut self, result: Result<Option<String>, NftError>) {
        let begun = self.verifying.take();
        let listing = match result {
            Ok(listing) => Listing::parse(&listing.unwrap_or_default()),
            Err(error) => {
                debug!(%error, "cannot compare the firewall table");
                return;
            }
        };
        let Some(installed) = &self.installed else {
            return;
        };
        if begun != Some(self.writes) || self.applying.is_some() {
            // Of some time between two writes.
            self.verify = true;
            return;
        }
        if self.shape.is_none() && self.is_touched() {
            // Nobody knows what it was before.
            self.installed = None;
            return;
        }
        let shape = self.shape.get_or_insert_with(|| listing.shape.clone());
        if *shape != listing.shape || !installed.has_elements_of(&listing) {
            info!("the firewall table was changed by somebody else");
            self.installed = None;
        }
    }

    /// Whether somebody else has changed the table since it was written. Where our own process has
    /// another number for the kernel than for us (a container, a script around nft), as many changes
    /// are our own as we wrote.
    fn is_touched(&self) -> bool {
        self.foreign > if self.own_seen { 0 } else { self.own }
    }

    fn looked(&mut self, result: Result<HostFirewall, NftError>) {
        let now = Instant::now();
        let took = self
            .looking
            .take()
            .map_or(Duration::ZERO, |begun| now - begun);
        self.look_at = Some(now + LOOK_INTERVAL.max(took * LOOK_SHARE));
        match result {
            Ok(host) => self.host = host,
            Err(error) => {
                self.host = HostFirewall {
                    problems: Vec::new(),
                    notes: vec![format!(
                        "cannot look at the host's firewall rules: {error}; whether they stop packets \
                         between nodes is not known"
                    )],
                };
            }
        }
    }

    /// Whether the rules for a pod's interface stand. Without `nft` there are none for any, and a
    /// problem says so.
    pub(super) fn covers(&self, interface: &str) -> bool {
        let installed = self.installed.as_ref();
        self.failure.is_some() || installed.is_some_and(|it| super::guard::covers(it, interface))
    }

    /// Whether there is a table, as it is wanted or as it was wanted before, or there can be none.
    pub(super) fn stands(&self) -> bool {
        self.failure.is_some() || self.installed.is_some()
    }

    /// Whether all that is wanted stands, or cannot be had.
    pub(super) fn is_settled(&self) -> bool {
        self.applying.is_none()
            && (self.failure.is_some() || self.installed.as_ref() == Some(&self.wanted))
    }

    /// What is wrong, in sentences.
    pub(super) fn problems(&self) -> Vec<String> {
        let failure = self.failure.as_ref().map(|error| {
            format!(
                "no firewall table: {error}; nothing stops forged packets on the kernel's path, and \
                 flows that the kernel translates (services, host ports) may break"
            )
        });
        failure
            .into_iter()
            .chain(self.host.problems.iter().cloned())
            .collect()
    }

    /// What is as it may be, and good to know.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        self.host.notes.iter().cloned()
    }

    /// When there is something to do though nothing happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let look = self.look_at.filter(|_| self.look && self.looking.is_none());
        self.try_at.into_iter().chain(look).min()
    }

    /// Waits until the table is as wanted, or cannot be had, and no longer than ten seconds.
    pub(super) async fn settle(&mut self) {
        let until = tokio::time::Instant::now() + SETTLE;
        while !self.is_settled() {
            let Ok(event) = tokio::time::timeout_at(until, self.next()).await else {
                return;
            };
            self.note(event);
            self.write(Instant::now());
        }
    }

    /// Removes the table.
    pub(super) async fn remove(mut self) -> Result<(), String> {
        // What is under way would write it anew.
        if let Some(applying) = self.applying.take() {
            let _ = tokio::time::timeout(SETTLE, applying.task).await;
        }
        let removed = self.nft.apply(&table::removal()).await;
        removed.map_err(|error| error.to_string())
    }
}

/// Lists all rules, and judges them.
async fn look(nft: Nft, probes: Probes) -> Result<HostFirewall, NftError> {
    let rules = match nft.ruleset().await {
        Ok(text) => Some(text),
        Err(NftError::Missing) => None,
        Err(error) => return Err(error),
    };
    let (v4, v6) = (nft.legacy(true).await, nft.legacy(false).await);
    let mut unseen = Vec::new();
    let mut seen = |legacy: Result<Option<String>, NftError>| {
        legacy.unwrap_or_else(|error| {
            unseen.push(format!(
                "iptables-legacy has rules that cannot be looked at: {error}; whether they stop packets \
                 between nodes is not known"
            ));
            None
        })
    };
    let listings = Listings {
        nft: rules,
        legacy: [seen(v4), seen(v6)],
    };
    // Megabytes of text keep a thread busy.
    let judged =
        tokio::task::spawn_blocking(move || host_firewall::judge(&listings, &probes)).await;
    let mut found = judged.map_err(|error| NftError::Failed(error.to_string()))?;
    unseen.dedup();
    found.notes.extend(unseen);
    Ok(found)
}

/// How soon the kernel's path is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Soon {
    /// At once.
    Now,
    /// When more of the kind may have come.
    Later,
}
