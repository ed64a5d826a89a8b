//! Making veth pairs by rtnetlink (Linux `include/uapi/linux/rtnetlink.h`, `if_link.h`, `veth.h`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// The longest IP packet on the trunk: with the Ethernet header, what fits a frame.
const MTU: u32 = 1650;
/// Of messages that ask for an acknowledgement.
const ACKED: u16 = flags(libc::NLM_F_REQUEST | libc::NLM_F_ACK);
const NEW: u16 = ACKED | flags(libc::NLM_F_CREATE | libc::NLM_F_EXCL);
const HEADER: usize = 16;
const IFINFO: usize = 16;
/// `VETH_INFO_PEER`.
const PEER: u16 = 1;
const UP: u32 = libc::IFF_UP as u32;

/// A pair of interfaces, by index; each counts in its own namespace.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The hooks' end, where the caller is.
    pub(crate) outer: Outer,
    /// The worker's.
    pub(crate) inner: u32,
}

/// The hooks' end of a pair, which is removed with this. The kernel would remove it, too, but some time after the process
/// has ended.
#[derive(Debug)]
pub(crate) struct Outer(u32);

impl Outer {
    pub(crate) const fn index(&self) -> u32 {
        self.0
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        // Whatever is wrong, it goes with the process.
        let remove = Message::new(libc::RTM_DELLINK, ACKED, self.0, 0);
        let _ = rtnetlink().and_then(|mut socket| remove.send(&mut socket));
    }
}

/// The namespace that the hooks are in, and the one of the workers' ends, seen from a thread that is in the second.
pub(crate) struct Ends {
    home: File,
    away: Socket,
}

impl Ends {
    /// Moves this thread into a network namespace of its own.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn enter() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let away = rtnetlink()?;
        Ok(Self { home, away })
    }

    /// Moves the thread back.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn leave(self) -> io::Result<()> {
        Ok(setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a message's flags have 16 bits (struct nlmsghdr)"
)]
const fn flags(flags: libc::c_int) -> u16 {
    flags as u16
}

fn rtnetlink() -> io::Result<Socket> {
    let protocol = Protocol::from(libc::NETLINK_ROUTE);
    Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))
}

/// Makes a pair whose inner end, `name`, is in this thread's namespace, up.
///
/// # Errors
/// The kernel's.
pub(crate) fn pair(ends: &mut Ends, name: &str) -> io::Result<Pair> {
    let make = Message::new(libc::RTM_NEWLINK, NEW, 0, 0)
        .attribute(libc::IFLA_IFNAME, &text(name))
        .attribute(libc::IFLA_MTU, &MTU.to_ne_bytes())
        .nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, &text("veth"))
                .nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest(PEER, |peer| {
                        peer.bytes(&ifinfo(0, 0)).outer(ends.home.as_fd())
                    })
                })
        });
    make.send(&mut ends.away)?;
    let inner = nix::net::if_::if_nametoindex(name)?;
    Message::new(libc::RTM_SETLINK, ACKED, inner, UP).send(&mut ends.away)?;
    let outer = other_end(&mut ends.away, inner)?;
    let outer = Outer(outer);
    Ok(Pair { outer, inner })
}

/// The index that the other end of a pair has in its namespace.
fn other_end(socket: &mut Socket, index: u32) -> io::Result<u32> {
    let request = flags(libc::NLM_F_REQUEST);
    let answer = Message::new(libc::RTM_GETLINK, request, index, 0).ask(socket)?;
    let mut rest = answer.get(HEADER + IFINFO..).unwrap_or_default();
    while let Some(&[l0, l1, k0, k1]) = rest.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length).unwrap_or_default();
        if u16::from_ne_bytes([k0, k1]) == libc::IFLA_LINK
            && let Some(&index) = value.first_chunk()
        {
            return Ok(u32::from_ne_bytes(index));
        }
        rest = rest
            .get(length.max(4).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Err(io::Error::other(
        "the kernel does not say which is its other end",
    ))
}

/// Brings an interface of this thread's namespace up, without IPv6: nothing but hooks uses it.
///
/// # Errors
/// The kernel's.
pub(crate) fn bring_up(index: u32) -> io::Result<String> {
    let name = nix::net::if_::if_indextoname(index)?;
    let name = name.to_string_lossy().into_owned();
    // Where there is no IPv6, there is no such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    Message::new(libc::RTM_SETLINK, ACKED, index, UP).send(&mut rtnetlink()?)?;
    Ok(name)
}

fn text(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

/// `struct ifinfomsg`; all flags that are set are meant.
fn ifinfo(index: u32, flags: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    for (to, word) in bytes.chunks_exact_mut(4).skip(1).zip([index, flags, flags]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A message to rtnetlink.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, index: u32, link_flags: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence and sender: there is one message at a time.
        bytes.extend([0; 8]);
        Self(bytes).bytes(&ifinfo(index, link_flags))
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        self.nest(kind, |inside| inside.bytes(value))
    }

    fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        let mut all = inside(self);
        let length = all.0.len().saturating_sub(at);
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        if let Some(place) = all.0.get_mut(at..).and_then(|it| it.first_chunk_mut()) {
            *place = length.to_ne_bytes();
        }
        let padded = all.0.len().next_multiple_of(4);
        all.0.resize(padded, 0);
        all
    }

    /// What the hooks' end is: in another namespace, with a name that is free there.
    fn outer(self, home: BorrowedFd<'_>) -> Self {
        self.attribute(libc::IFLA_IFNAME, &text("viaduct-t%d"))
            .attribute(libc::IFLA_MTU, &MTU.to_ne_bytes())
            .attribute(libc::IFLA_NET_NS_FD, &home.as_raw_fd().to_ne_bytes())
    }

    /// Sends it, and reads the first answer.
    fn ask(mut self, socket: &mut Socket) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.0.first_chunk_mut() {
            *place = length.to_ne_bytes();
        }
        socket.write_all(&self.0)?;
        let mut answer = vec![0; 8192];
        let read = socket.read(&mut answer)?;
        answer.truncate(read);
        let kind = answer.get(4..).and_then(|it| it.first_chunk());
        let error = answer.get(HEADER..).and_then(|it| it.first_chunk());
        match (kind, error) {
            (Some(&kind), Some(&error))
                if i32::from(u16::from_ne_bytes(kind)) == libc::NLMSG_ERROR =>
            {
                match i32::from_ne_bytes(error) {
                    0 => Ok(answer),
                    error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                }
            }
            _ => Ok(answer),
        }
    }

    fn send(self, socket: &mut Socket) -> io::Result<()> {
        self.ask(socket).map(drop)
    }
}
