//! The UDP port of gossip: bound to this node's own address, which may change, be missing, or be taken.
//!
//! What leaves by it has that address as its source, so that routing by source holds for it.

use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tracing::{info, warn};

/// How long it waits before it tries again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Binds, and binds again.
#[derive(Debug)]
pub(super) struct Listener {
    wanted: Option<SocketAddr>,
    socket: Option<UdpSocket>,
    /// The same, to send at once: tokio's would wait until it was told that it can.
    sender: Option<StdSocket>,
    retry_at: Instant,
    wait: Duration,
    problem: Option<String>,
}

impl Listener {
    /// Listens nowhere yet.
    pub(super) fn new() -> Self {
        Self {
            wanted: None,
            socket: None,
            sender: None,
            retry_at: Instant::now(),
            wait: RETRY.0,
            problem: Some("gossip waits for an address of the underlay".to_owned()),
        }
    }

    /// Listens there from now on.
    pub(super) fn listen(&mut self, at: SocketAddr) {
        if self.wanted != Some(at) {
            self.wanted = Some(at);
            (self.socket, self.sender) = (None, None);
            self.wait = RETRY.0;
            self.bind();
        }
    }

    /// Why it does not listen, and what to do.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// When [`retry`](Self::retry) has something to do.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        (self.wanted.is_some() && self.socket.is_none()).then_some(self.retry_at)
    }

    /// Tries again, when it is time.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.retry_at().is_some_and(|at| now >= at) {
            self.bind();
        }
    }

    fn bind(&mut self) {
        let Some(at) = self.wanted else { return };
        let bound = StdSocket::bind(at).and_then(|socket| {
            socket.set_nonblocking(true)?;
            let sender = socket.try_clone()?;
            Ok((UdpSocket::from_std(socket)?, sender))
        });
        match bound {
            Ok((socket, sender)) => {
                if self.problem.take().is_some() {
                    info!(address = %at, "gossip listens");
                }
                (self.socket, self.sender) = (Some(socket), Some(sender));
            }
            Err(error) => {
                let problem = why(at, &error);
                if self.problem.as_ref() != Some(&problem) {
                    warn!("{problem}");
                }
                self.problem = Some(problem);
                self.retry_at = Instant::now() + self.wait;
                self.wait = (self.wait * 2).min(RETRY.1);
            }
        }
    }

    /// The next datagram; waits for ever while there is no socket.
    pub(super) async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match &self.socket {
            Some(socket) => socket.recv_from(buffer).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let none = || io::Error::from(io::ErrorKind::WouldBlock);
        self.socket.as_ref().ok_or_else(none)?.try_recv_from(buffer)
    }

    /// Sends, if there is a socket and it takes it now.
    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        match self
            .sender
            .as_ref()
            .map(|socket| socket.send_to(datagram, to))
        {
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

fn why(at: SocketAddr, error: &io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program has it: stop that program, or set another `port` in [gossip]"
        }
        io::ErrorKind::AddrNotAvailable => "; this node does not have the address now",
        _ => "",
    };
    format!(
        "cannot listen for gossip on UDP port {} of {}: {error}{help}",
        at.port(),
        at.ip()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_tried_again() {
        let other = StdSocket::bind("127.0.0.1:0").expect("a free port");
        let at = other.local_addr().expect("bound");
        let mut listener = Listener::new();
        listener.listen(at);
        let problem = listener.problem().expect("it is taken").to_owned();
        assert!(
            problem.contains(&format!("UDP port {}", at.port())),
            "{problem}"
        );
        assert!(problem.contains("stop that program"), "{problem}");
        assert!(listener.send(b"lost", at).is_ok());
        drop(other);
        let soon = listener.retry_at().expect("it will try");
        let before = soon.checked_sub(Duration::from_millis(1));
        listener.retry(before.expect("the clock has run for a while"));
        assert!(listener.problem().is_some());
        listener.retry(soon);
        assert_eq!((listener.problem(), listener.retry_at()), (None, None));
        listener.send(b"to itself", at).expect("sent");
        let mut buffer = [0; 16];
        let (len, from) = listener.recv_from(&mut buffer).await.expect("received");
        assert_eq!((&buffer[..len], from), (&b"to itself"[..], at));
    }

    #[tokio::test]
    async fn an_address_may_be_missing() {
        let mut listener = Listener::new();
        assert!(listener.problem().is_some() && listener.retry_at().is_none());
        listener.listen("192.0.2.77:7950".parse().expect("one"));
        let problem = listener.problem().expect("not this machine's");
        assert!(problem.contains("does not have the address"), "{problem}");
    }
}
