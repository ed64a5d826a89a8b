//! The control socket: a client sends one line and gets one line of JSON.
//!
//! Each client has a task of its own, so that none waits for another. A client that sends nothing is
//! closed after [`PATIENCE`], and earlier when its place or its file descriptor is needed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::{self, File};
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How long a client may take to send its request, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are served at a time.
const MAX_CLIENTS: usize = 64;
/// Bytes of a request.
const MAX_REQUEST: u64 = 64 << 10;
/// How long to wait after a failed accept.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How often it is logged at most that clients cannot be accepted.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A client that has sent no request yet, as far as is known.
struct Silent {
    since: Instant,
    /// Tells it to make room. The other end is gone once it has sent its request.
    evict: oneshot::Sender<()>,
}

/// A socket that accepts clients.
pub(crate) struct ControlSocket {
    listener: UnixListener,
    clients: JoinSet<()>,
    /// In the order in which they came; those that have sent their request are removed when a place
    /// is needed.
    silent: VecDeque<Silent>,
    /// A file descriptor that is given up for a client when the process has no other left.
    reserve: Option<File>,
    logged: Option<Instant>,
}

impl ControlSocket {
    /// Listens at `path`, for root alone. The socket of a dead router is replaced: the caller holds
    /// the lock.
    ///
    /// # Errors
    /// When the file cannot be replaced, or nobody can listen there.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let doing = || format!("cannot listen on {}", path.display());
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(doing),
            _ => {}
        }
        let listener = UnixListener::bind(path).with_context(doing)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
        Ok(Self {
            listener,
            clients: JoinSet::new(),
            silent: VecDeque::new(),
            reserve: reserve(),
            logged: None,
        })
    }

    /// Serves clients: `answer` gets each request.
    pub(crate) async fn serve<A, F>(&mut self, answer: A) -> Infallible
    where
        A: Fn(String) -> F,
        F: Future<Output = Value> + Send + 'static,
        A: Clone + Send + 'static,
    {
        loop {
            let (listener, spare) = (&self.listener, &mut self.reserve);
            let accepted = poll_fn(|context| {
                let accepted = listener.poll_accept(context);
                if accepted.is_pending() {
                    // Nobody is waiting for the descriptor.
                    *spare = spare.take().or_else(reserve);
                }
                accepted
            });
            tokio::select! {
                accepted = accepted => match accepted {
                    Ok((stream, _)) => self.admit(stream, answer.clone()),
                    Err(error) => self.not_accepted(&error).await,
                },
                // Its descriptor is free.
                Some(_) = self.clients.join_next() => {}
            }
        }
    }

    fn admit<A, F>(&mut self, stream: UnixStream, answer: A)
    where
        A: Fn(String) -> F + Send + 'static,
        F: Future<Output = Value> + Send + 'static,
    {
        self.silent.retain(|client| !client.evict.is_closed());
        // One that was evicted before still has its task until it is polled: it is not counted.
        if self.clients.len() >= MAX_CLIENTS && !self.evict(Duration::ZERO) {
            tracing::warn!(
                "a client of the control socket was refused: {MAX_CLIENTS} are being served"
            );
            refuse(
                &stream,
                "the router is answering as many clients as it can; try again",
            );
            return;
        }
        let (evict, evicted) = oneshot::channel();
        self.silent.push_back(Silent {
            since: Instant::now(),
            evict,
        });
        self.clients.spawn(attend(stream, evicted, answer));
    }

    /// Closes the client that has been silent for longest, and for so long at least; false when
    /// there is none.
    fn evict(&mut self, least: Duration) -> bool {
        let old = |client: &Silent| client.since.elapsed() >= least;
        while self.silent.front().is_some_and(old) {
            let client = self.silent.pop_front();
            if client.is_some_and(|client| client.evict.send(()).is_ok()) {
                return true;
            }
        }
        false
    }

    /// Accepting failed: mostly because the process, or the machine, has no file descriptor left.
    /// (The kernel says so also when no client is waiting: accept(2) takes the descriptor first.)
    async fn not_accepted(&mut self, error: &io::Error) {
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::warn!(
                "cannot accept clients on the control socket as they come, but one by one: {error}"
            );
        }
        if self.reserve.take().is_some() {
            // The next accept has this one.
            return;
        }
        // A client that stays silent has to give its descriptor to one that asks.
        self.evict(BACK_OFF);
        tokio::select! {
            Some(_) = self.clients.join_next() => {}
            () = tokio::time::sleep(BACK_OFF) => {}
        }
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Serves one client.
async fn attend<A, F>(mut stream: UnixStream, evicted: oneshot::Receiver<()>, answer: A)
where
    A: Fn(String) -> F + Send,
    F: Future<Output = Value> + Send,
{
    let asked = tokio::select! {
        biased;
        asked = tokio::time::timeout(PATIENCE, request(&mut stream)) => asked,
        Ok(()) = evicted => {
            refuse(&stream, "no request came, and others are waiting");
            return;
        }
    };
    let request = match asked {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            tracing::debug!("a client of the control socket went away: {error}");
            refuse(&stream, &format!("no request could be read: {error}"));
            return;
        }
        Err(_) => {
            tracing::debug!("a client of the control socket sent no request");
            refuse(&stream, "no request came in time");
            return;
        }
    };
    let mut reply = answer(request).await.to_string();
    reply.push('\n');
    let told = tokio::time::timeout(PATIENCE, stream.write_all(reply.as_bytes())).await;
    if !matches!(told, Ok(Ok(()))) {
        tracing::debug!("a client of the control socket did not wait for its answer");
    }
}

/// One line, without its end.
async fn request(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    let mut from = BufReader::new(stream.take(MAX_REQUEST));
    from.read_line(&mut line).await?;
    if line.len() as u64 >= MAX_REQUEST && !line.ends_with('\n') {
        let error = format!("it is longer than {MAX_REQUEST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim().to_owned())
}

/// Says why a client is not served, if it can be said at once.
fn refuse(stream: &UnixStream, why: &str) {
    let line = format!("{}\n", json!({ "error": why }));
    let _ = stream.try_write(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    async fn said(stream: &mut UnixStream) -> String {
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line).await;
        line
    }

    async fn ask(path: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        // It may have been refused already.
        let _ = stream.write_all(request.as_bytes()).await;
        said(&mut stream).await
    }

    /// Runs `test` while a socket answers: "wait" when `gate` is opened, all else at once.
    async fn with_socket<T: Future<Output = ()>>(
        test: impl FnOnce(std::path::PathBuf, Arc<Semaphore>) -> T,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.sock");
        let mut socket = ControlSocket::bind(&path).expect("it can be bound");
        let gate = Arc::new(Semaphore::new(0));
        let passing = Arc::clone(&gate);
        let answer = move |request: String| {
            let gate = Arc::clone(&passing);
            async move {
                if request == "wait" {
                    let _ = gate.acquire().await;
                }
                json!({ "asked": request })
            }
        };
        tokio::select! {
            never = socket.serve(answer) => match never {},
            () = test(path, gate) => {}
        }
    }

    const ANSWER: &str = "{\"asked\":\"status\"}\n";

    #[tokio::test]
    async fn silent_and_waiting_clients_keep_nobody_waiting() {
        with_socket(|path, gate| async move {
            let mut silent = Vec::new();
            for n in 0..MAX_CLIENTS / 2 {
                let mut client = UnixStream::connect(&path).await.expect("it listens");
                if n % 2 == 0 {
                    client.write_all(b"half a requ").await.expect("open");
                }
                silent.push(client);
                let mut client = UnixStream::connect(&path).await.expect("it listens");
                client.write_all(b"wait\n").await.expect("open");
                silent.push(client);
            }
            for _ in 0..10 {
                assert_eq!(ask(&path, "status\n").await, ANSWER);
            }
            gate.close();
            for pair in silent.chunks_mut(2).rev().take(3) {
                assert_eq!(said(&mut pair[1]).await, "{\"asked\":\"wait\"}\n");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_busy_is_told_so() {
        with_socket(|path, gate| async move {
            let mut busy = Vec::new();
            for _ in 0..MAX_CLIENTS {
                let mut client = UnixStream::connect(&path).await.expect("it listens");
                client.write_all(b"wait\n").await.expect("open");
                busy.push(client);
            }
            // All of these have been read once one more is refused.
            let refused = loop {
                let said = ask(&path, "status\n").await;
                if said != ANSWER {
                    break said;
                }
            };
            assert!(refused.contains("as many clients as it can"), "{refused}");
            gate.close();
            for client in &mut busy {
                assert_eq!(said(client).await, "{\"asked\":\"wait\"}\n");
            }
            assert_eq!(ask(&path, "status\n").await, ANSWER);
        })
        .await;
    }

    #[tokio::test]
    async fn bad_requests_get_an_error_and_disturb_nobody() {
        with_socket(|path, _| async move {
            let long = "x".repeat(usize::try_from(MAX_REQUEST).expect("small") + 1);
            assert!(ask(&path, &long).await.contains("longer than"));
            let mut binary = UnixStream::connect(&path).await.expect("it listens");
            binary.write_all(b"\xff\xfe\n").await.expect("open");
            assert!(said(&mut binary).await.contains("error"));
            assert_eq!(ask(&path, "status\n").await, ANSWER);
        })
        .await;
    }
}
