//! The `nft` command: one transaction a call, and its JSON is stable (libnftables-json(5)).

use std::collections::VecDeque;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How long one call may take. A call that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes: with 50,000 rules and without elements it is 12 MB,
/// and would take several hundred MB to judge.
const LONGEST: u64 = 8 << 20;
/// How many of our own processes are remembered.
const REMEMBERED: usize = 16;

/// Why a call of `nft` has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NftError {
    #[error("the nft command is missing: install nftables")]
    Missing,
    #[error("the command {0} is missing")]
    NoCommand(&'static str),
    #[error("the command cannot be run: {0}")]
    Failed(String),
    #[error("the command says: {0}")]
    Refused(String),
    #[error("the command has not ended within {} seconds", PATIENCE.as_secs())]
    Slow,
    #[error("the command's answer is longer than {} MB", LONGEST >> 20)]
    Long,
}

/// Calls `nft` in the network namespace of the calling thread, and remembers its processes, by
/// which the kernel's announcements tell our own changes from others'.
#[derive(Clone, Debug, Default)]
pub(super) struct Nft(Arc<Mutex<VecDeque<u32>>>);

impl Nft {
    /// Whether a process was one of ours.
    pub(super) fn is_ours(&self, process: u32) -> bool {
        let ours = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ours.contains(&process)
    }

    fn remember(&self, process: u32) {
        let mut ours = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ours.push_back(process);
        if ours.len() > REMEMBERED {
            ours.pop_front();
        }
    }

    /// Carries out a script, in one transaction.
    pub(super) async fn apply(&self, script: &str) -> Result<(), NftError> {
        self.call(&["-f", "-"], script).await.map(drop)
    }

    /// Our table as the kernel has it, counters apart; none if there is none.
    pub(super) async fn table(&self) -> Result<Option<String>, NftError> {
        let words = ["-s", "list", "table", "inet", super::table::TABLE];
        match self.call(&words, "").await {
            Ok(listing) => Ok(Some(listing)),
            Err(NftError::Refused(said)) if said.contains("No such file") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All tables as JSON, without the elements of sets.
    pub(super) async fn ruleset(&self) -> Result<String, NftError> {
        self.call(&["-j", "-t", "list", "ruleset"], "").await
    }

    /// The tables of iptables-legacy for IPv4 or IPv6, as iptables-save(8) shows them; none if the
    /// kernel has none in this network namespace.
    pub(super) async fn legacy(&self, v4: bool) -> Result<Option<String>, NftError> {
        let (names, command) = if v4 {
            ("ip_tables_names", "iptables-legacy-save")
        } else {
            ("ip6_tables_names", "ip6tables-legacy-save")
        };
        let names = format!("/proc/thread-self/net/{names}");
        if std::fs::read_to_string(names)
            .unwrap_or_default()
            .is_empty()
        {
            return Ok(None);
        }
        let listed = self.timed(command, &[], "").await;
        listed.map(Some).map_err(|error| match error {
            NftError::Missing => NftError::NoCommand(command),
            error => error,
        })
    }

    async fn call(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        self.timed("nft", arguments, input).await
    }

    async fn timed(
        &self,
        command: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, NftError> {
        let call = tokio::time::timeout(PATIENCE, self.run(command, arguments, input));
        call.await.unwrap_or(Err(NftError::Slow))
    }

    async fn run(
        &self,
        command: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, NftError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => NftError::Missing,
            _ => NftError::Failed(error.to_string()),
        };
        let mut child = Command::new(command)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // Before it can have changed anything.
        if let Some(process) = child.id() {
            self.remember(process);
        }
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let complaint = child.stderr.take();
        let told = async {
            if let Some(mut stdin) = stdin {
                // One that ends early says why; that counts.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let said = async {
            let mut said = Vec::new();
            if let Some(stdout) = stdout {
                let mut limited = stdout.take(LONGEST + 1);
                limited.read_to_end(&mut said).await.map_err(failed)?;
            }
            Ok(said)
        };
        let complained = async {
            let mut text = Vec::new();
            if let Some(complaint) = complaint {
                let _ = complaint.take(LONGEST).read_to_end(&mut text).await;
            }
            text
        };
        let ((), said, complaint) = tokio::join!(told, said, complained);
        let said = said?;
        if u64::try_from(said.len()).is_ok_and(|length| length > LONGEST) {
            return Err(NftError::Long);
        }
        let status = child.wait().await.map_err(failed)?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        let complaint = String::from_utf8_lossy(&complaint);
        let first = complaint.lines().find(|line| !line.trim().is_empty());
        let said = first.map_or_else(|| status.to_string(), |line| line.trim().to_owned());
        Err(NftError::Refused(said))
    }
}
