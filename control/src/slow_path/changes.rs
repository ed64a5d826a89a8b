//! What the kernel announces of firewall tables (`NFNLGRP_NFTABLES`,
//! `linux/netfilter/nfnetlink.h`): whether ours was touched, and by whom.

use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tracing::debug;

use super::table::TABLE;

/// Ends each transaction (`NFT_MSG_NEWGEN`, `linux/netfilter/nf_tables.h`).
const NEW_GENERATION: u8 = 15;
/// The subsystem in the upper byte of a message's type (`NFNL_SUBSYS_NFTABLES`).
const NFTABLES: u8 = 10;
/// `NFTA_GEN_PROC_PID`.
const PROCESS: u16 = 2;
/// The attribute that has the table's name in all messages about what is inside one
/// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, ...).
const TABLE_NAME: u16 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`, in bytes.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// A transaction that has changed some firewall table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Whether our table may have changed, too.
    pub(super) ours: bool,
    /// The process that did it, where the kernel says so.
    pub(super) process: Option<u32>,
}

/// The kernel's announcements, from the time of [`Changes::subscribe`] on.
pub(super) struct Changes {
    socket: TokioSocket,
    /// Whether what has come of a transaction so far is about our table.
    ours: bool,
}

impl Changes {
    /// Listens from now on, in the thread's network namespace.
    pub(super) fn subscribe() -> io::Result<Self> {
        const NFNLGRP_NFTABLES: u32 = 7;
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self {
            socket,
            ours: false,
        })
    }

    /// Waits for the end of the next transaction. Lost messages may be about anything.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Change {
        loop {
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) => {
                    if let Some(change) = self.take(&bytes) {
                        return change;
                    }
                }
                Err(error) => {
                    debug!(%error, "messages of the firewall were lost");
                    // Whatever is wrong with the socket, it must not keep the agent busy.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    self.ours = false;
                    return Change {
                        ours: true,
                        process: None,
                    };
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Option<Change> {
        let mut end: Option<Change> = None;
        for message in messages(bytes) {
            if message.kind == NEW_GENERATION {
                let process = message.attribute(PROCESS);
                let process = process.and_then(|value| value.try_into().ok());
                let process = process.map(u32::from_be_bytes);
                let before = end.map(|end| end.process);
                end = Some(Change {
                    ours: std::mem::take(&mut self.ours) || end.is_some_and(|end| end.ours),
                    // Two transactions in one datagram are one of nobody's.
                    process: process.filter(|_| before.is_none_or(|before| before == process)),
                });
            } else {
                let name = message.attribute(TABLE_NAME);
                self.ours |=
                    name.is_some_and(|name| name.strip_suffix(&[0]) == Some(TABLE.as_bytes()));
            }
        }
        end
    }
}

struct Message<'a> {
    kind: u8,
    attributes: &'a [u8],
}

/// The nftables messages of a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
            let message = bytes.get(..length).filter(|_| length >= HEADER)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            let [kind, subsystem] =
                u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?).to_le_bytes();
            if subsystem == NFTABLES {
                let attributes = message.get(HEADER + GENERIC..).unwrap_or(&[]);
                return Some(Message { kind, attributes });
            }
        }
    })
}

impl Message<'_> {
    /// The value of an attribute.
    fn attribute(&self, wanted: u16) -> Option<&[u8]> {
        let mut rest = self.attributes;
        loop {
            let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
            let value = rest.get(4..length)?;
            if kind == wanted {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut all = u32::try_from(HEADER + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        all.extend(u16::from_le_bytes([kind, NFTABLES]).to_ne_bytes());
        all.extend([0; 10]);
        all.extend(body);
        all
    }

    fn table(datagram: &[u8]) -> Vec<(u8, bool)> {
        let all = messages(datagram);
        all.map(|m| (m.kind, m.attribute(TABLE_NAME) == Some(b"viaduct\0")))
            .collect()
    }

    #[test]
    fn a_message_tells_its_table_and_a_generation_its_process() {
        let mut datagram = message(12, &[(2, b"s\0"), (1, b"viaduct\0")]);
        datagram.extend(message(12, &[(1, b"filter\0")]));
        datagram.extend(message(
            NEW_GENERATION,
            &[(1, &[0; 4]), (PROCESS, &[0, 0, 1, 2])],
        ));
        assert_eq!(
            table(&datagram),
            [(12, true), (12, false), (NEW_GENERATION, false)]
        );
        let last = messages(&datagram).last().unwrap();
        assert_eq!(last.attribute(PROCESS), Some([0, 0, 1, 2].as_slice()));
        assert_eq!(last.attribute(9), None);
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let whole = message(12, &[(1, b"viaduct\0")]);
        for length in 0..whole.len() {
            for message in messages(&whole[..length]) {
                let _ = message.attribute(1);
            }
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
