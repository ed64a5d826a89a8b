//! The peers of the configuration: where their names lead, and whether they have ever answered.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tokio::net::lookup_host;
use tokio::task::JoinSet;

/// A peer of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// A name or an address.
    pub host: String,
    /// Its UDP port.
    pub port: u16,
    /// Where that is, as far as it is known.
    pub addresses: Vec<SocketAddr>,
    /// Since when it is asked.
    pub since: Instant,
    /// When something that was sealed well came from there last.
    pub heard: Option<Instant>,
    /// What went wrong last: a name without an address, or a datagram that could not be sent.
    pub error: Option<String>,
}

type Found = Result<Vec<SocketAddr>, String>;

/// What is known of each peer.
#[derive(Default)]
pub(super) struct Peers {
    list: Vec<PeerStatus>,
    /// Look-ups under way. Each waits for its own answer only, on a thread that may wait.
    looking: JoinSet<(String, u16, Found)>,
}

impl Peers {
    pub(super) fn new(peers: Vec<(String, u16)>) -> Self {
        let mut all = Self::default();
        all.set(peers);
        all
    }

    /// Asks these from now on. What is known of those that stay is kept.
    pub(super) fn set(&mut self, peers: Vec<(String, u16)>) {
        let before = std::mem::take(&mut self.list);
        for (host, port) in peers {
            let known = before.iter().find(|p| p.host == host && p.port == port);
            let address = host.parse::<IpAddr>().ok();
            self.list.push(known.cloned().unwrap_or_else(|| PeerStatus {
                addresses: address.map(|ip| (ip, port).into()).into_iter().collect(),
                host,
                port,
                since: Instant::now(),
                heard: None,
                error: None,
            }));
        }
        self.looking = JoinSet::new();
    }

    /// Begins to look all names up that are not being looked up.
    pub(super) fn look_up(&mut self) {
        if !self.looking.is_empty() {
            return;
        }
        for peer in &self.list {
            if peer.host.parse::<IpAddr>().is_ok() {
                continue;
            }
            let (host, port) = (peer.host.clone(), peer.port);
            self.looking.spawn(async move {
                let found = lookup_host((&host[..], port)).await;
                let found = found
                    .map(Iterator::collect)
                    .map_err(|error| error.to_string());
                (host, port, found)
            });
        }
    }

    /// Waits until a look-up has ended; for ever, when there is none.
    pub(super) async fn found(&mut self) {
        let Some(ended) = self.looking.join_next().await else {
            return std::future::pending().await;
        };
        // Those of an earlier list were aborted.
        let Ok((host, port, found)) = ended else {
            return;
        };
        for peer in &mut self.list {
            if peer.host == host && peer.port == port {
                match &found {
                    Ok(addresses) => {
                        peer.addresses.clone_from(addresses);
                        peer.error = None;
                    }
                    Err(error) => peer.error = Some(format!("cannot look its name up: {error}")),
                }
            }
        }
    }

    /// All addresses.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.list
            .iter()
            .flat_map(|p| p.addresses.iter().copied())
            .collect()
    }

    /// Whether some have no address.
    pub(super) fn some_missing(&self) -> bool {
        self.list.iter().any(|peer| peer.addresses.is_empty())
    }

    /// A datagram to an address was sent, or was not.
    pub(super) fn sent(&mut self, to: SocketAddr, result: &std::io::Result<()>) {
        for peer in &mut self.list {
            if peer.addresses.contains(&to) {
                let error = result.as_ref().err();
                peer.error = error.map(|error| format!("cannot send to {to}: {error}"));
            }
        }
    }

    /// As they are, with when each was heard.
    pub(super) fn status(&self, heard: impl Fn(SocketAddr) -> Option<Instant>) -> Vec<PeerStatus> {
        let mut all = self.list.clone();
        for peer in &mut all {
            peer.heard = peer.addresses.iter().filter_map(|at| heard(*at)).max();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_each_by_itself() {
        let list = |hosts: &[&str]| {
            hosts
                .iter()
                .map(|h| ((*h).to_owned(), 9))
                .collect::<Vec<_>>()
        };
        let mut peers = Peers::new(list(&["127.0.0.1", "localhost", "nowhere.invalid"]));
        let first: SocketAddr = ([127, 0, 0, 1], 9).into();
        assert_eq!(peers.addresses(), [first]);
        peers.look_up();
        peers.found().await;
        peers.found().await;
        assert!(peers.addresses().len() >= 2 && peers.some_missing());
        let status = peers.status(|at| (at == first).then(Instant::now));
        assert!(status[0].heard.is_some() && status[2].heard.is_none());
        let error = status[2].error.as_deref().expect("no address");
        assert!(error.contains("cannot look its name up"), "{error}");
        // What is known of one that stays is kept.
        peers.set(list(&["localhost"]));
        assert_eq!(peers.addresses(), status[1].addresses);
        let full = Err(std::io::Error::from_raw_os_error(90));
        peers.sent(status[1].addresses[0], &full);
        assert!(peers.status(|_| None)[0].error.is_some());
        peers.sent(status[1].addresses[0], &Ok(()));
        assert_eq!(peers.status(|_| None)[0].error, None);
    }
}
