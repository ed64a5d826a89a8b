//! What sockets exchange, by threads of this program: no packaged tool of Debian's measures single round trips, new
//! connections or delivered datagrams (netperf, which does, is not in its main archive).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use viaduct_pktgen::Namespace;

use super::measure::DATAGRAM;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ports of round trips and of datagrams.
const PORT: u16 = 7001;
/// Clients of new connections, each with a server of its own.
const CLIENTS: u16 = 4;
/// The first port of these servers, and how many ports there may be.
const FIRST_PORT: u16 = 20_000;
const MOST_PORTS: u32 = 40_000;
/// Connections to a port: few of the 64,000 that a client could have until the first leaves TIME_WAIT, so that it finds a
/// port of its own at once.
const PER_PORT: u32 = 5_000;
/// Connections a second and client that there are ports for.
const FASTEST: u32 = 25_000;
/// After so long connections have left TIME_WAIT (a minute), so that they cannot be counted.
const COUNTABLE: Duration = Duration::from_secs(30);

/// Two pods.
pub(crate) struct Ends {
    pub(crate) from: Namespace,
    pub(crate) to: Namespace,
    /// Of the second.
    pub(crate) address: Ipv4Addr,
}

impl Ends {
    fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        let listener = self.to.with(|| {
            let address = SocketAddrV4::new(self.address, port);
            TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
        })?;
        // Accepted sockets have it from their listener.
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&listener, sockopt::ReceiveTimeout, &patience)?;
        Ok(listener)
    }

    /// To be called in the first pod's namespace.
    fn connect(&self, port: u16) -> anyhow::Result<TcpStream> {
        let address = SocketAddrV4::new(self.address, port);
        let stream = TcpStream::connect_timeout(&address.into(), PATIENCE)
            .with_context(|| format!("cannot connect to {address}"))?;
        Ok(stream)
    }
}

fn joined<R>(thread: ScopedJoinHandle<'_, anyhow::Result<R>>) -> anyhow::Result<R> {
    let ended = thread.join();
    ended.map_err(|_| anyhow!("a thread has panicked"))?
}

/// Round trips of 1 byte on one connection, one after the other, for some time.
pub(crate) fn requests(ends: &Ends, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let listener = ends.listen(PORT)?;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> anyhow::Result<()> {
            let (mut stream, _) = listener.accept().context("no request")?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let client = scope.spawn(|| {
            ends.from.enter()?;
            ask(ends.connect(PORT)?, time)
        });
        let trips = joined(client)?;
        joined(server)?;
        Ok(trips)
    })
}

fn ask(mut stream: TcpStream, time: Duration) -> anyhow::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut trips = Vec::with_capacity(1 << 16);
    let (begin, mut byte) = (Instant::now(), [0]);
    let mut last = begin;
    while last - begin < time {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("no response")?;
        let now = Instant::now();
        trips.push(now - last);
        last = now;
    }
    Ok(trips)
}

/// What part of all trips was at most as long as the result, in microseconds.
pub(crate) fn percentile(trips: &mut [Duration], part: f64) -> Option<f64> {
    trips.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place among some ten thousands"
    )]
    let place = (trips.len() as f64 * part) as usize;
    let trip = trips.get(place).or(trips.last())?;
    Some(trip.as_secs_f64() * 1e6)
}

/// New connections that were answered, and how long that took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) connections: u32,
    pub(crate) time: Duration,
}

/// Ports of one client for one measurement.
fn ports_each(time: Duration) -> u32 {
    let connections = time.as_secs_f64() * f64::from(FASTEST);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 300: a minute's"
    )]
    let ports = (connections / f64::from(PER_PORT)).ceil() as u32;
    ports.max(1)
}

/// A server's ports: other ones in each round, since the connections of the last one are in TIME_WAIT still.
fn ports(round: u32, client: u16, time: Duration) -> impl Iterator<Item = u16> {
    let each = ports_each(time);
    let first = (round * u32::from(CLIENTS) + u32::from(client)) * each;
    (first..first + each).map(|n| FIRST_PORT + u16::try_from(n % MOST_PORTS).unwrap_or(0))
}

/// Opens connections, sends a byte each way, and closes, with [`CLIENTS`] clients. The client closes first, so that each
/// connection ends in TIME_WAIT at its side, and is not reset.
pub(crate) fn connections(ends: &Ends, round: u32, time: Duration) -> anyhow::Result<Opened> {
    let mut listeners = Vec::new();
    for client in 0..CLIENTS {
        let ports = ports(round, client, time);
        let of_one: anyhow::Result<Vec<_>> = ports.map(|port| ends.listen(port)).collect();
        listeners.push(of_one?);
    }
    let before = waiting(&ends.from)?;
    let opened = thread::scope(|scope| {
        let servers: Vec<_> = listeners
            .iter()
            .map(|listeners| scope.spawn(|| serve(listeners)))
            .collect();
        let begin = Instant::now();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    ends.from.enter()?;
                    open(ends, ports(round, client, time), begin, time)
                })
            })
            .collect();
        let mut all = Opened {
            connections: 0,
            time: Duration::ZERO,
        };
        for client in clients {
            let one = joined(client)?;
            all.connections += one.connections;
            all.time = all.time.max(one.time);
        }
        servers.into_iter().try_for_each(joined)?;
        anyhow::Ok(all)
    })?;
    let waiting = waiting(&ends.from)?.saturating_sub(before);
    ensure!(
        time > COUNTABLE || waiting >= opened.connections / 10 * 9,
        "of {} connections only {waiting} are in TIME_WAIT: the kernel has cut others short",
        opened.connections
    );
    Ok(opened)
}

fn open(
    ends: &Ends,
    ports: impl Iterator<Item = u16>,
    begin: Instant,
    time: Duration,
) -> anyhow::Result<Opened> {
    let mut opened = Opened {
        connections: 0,
        time: Duration::ZERO,
    };
    for port in ports {
        for _ in 0..PER_PORT {
            opened.time = begin.elapsed();
            if opened.time >= time {
                // A connection without a request tells the server that this is the end.
                drop(ends.connect(port)?);
                return Ok(opened);
            }
            let mut stream = ends.connect(port)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut byte = [0];
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte).context("no response")?;
            opened.connections += 1;
        }
    }
    opened.time = begin.elapsed();
    Ok(opened)
}

fn serve(listeners: &[TcpListener]) -> anyhow::Result<()> {
    for listener in listeners {
        for _ in 0..PER_PORT {
            let (mut stream, _) = listener.accept().context("no connection")?;
            let mut byte = [0];
            if stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            stream.write_all(&byte)?;
            // Until the client has closed.
            let _ = stream.read(&mut byte)?;
        }
    }
    Ok(())
}

/// Connections of a namespace in TIME_WAIT.
fn waiting(namespace: &Namespace) -> anyhow::Result<u32> {
    namespace.with(|| {
        // Unlike /proc/net, of the thread's namespace.
        let text = fs::read_to_string("/proc/thread-self/net/sockstat")?;
        parse_waiting(&text).context("the kernel does not count connections in TIME_WAIT")
    })
}

fn parse_waiting(sockstat: &str) -> Option<u32> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// Datagrams that were sent, and that the receiving socket's reader got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) time: Duration,
}

/// Sends datagrams as fast as one thread can, one a system call; another reads.
pub(crate) fn datagrams(ends: &Ends, time: Duration) -> anyhow::Result<Delivered> {
    let address = SocketAddrV4::new(ends.address, PORT);
    let sink = ends.to.with(|| Ok(UdpSocket::bind(address)?))?;
    let sender = ends.from.with(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        Ok(socket)
    })?;
    // When nothing has come for so long after the end, all has.
    sink.set_read_timeout(Some(Duration::from_millis(200)))?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> anyhow::Result<u64> {
            let (mut received, mut data) = (0, [0; 2 * DATAGRAM]);
            loop {
                match sink.recv(&mut data) {
                    Ok(length) => received += u64::from(length == DATAGRAM),
                    // A timeout, or a signal.
                    Err(_) if ended.load(Ordering::Acquire) => return Ok(received),
                    Err(_) => {}
                }
            }
        });
        let sent = flood(&sender, time);
        let time = sent.as_ref().map_or(Duration::ZERO, |(_, time)| *time);
        ended.store(true, Ordering::Release);
        let received = joined(reader)?;
        let (sent, _) = sent.context("cannot send datagrams")?;
        Ok(Delivered {
            sent,
            received,
            time,
        })
    })
}

fn flood(socket: &UdpSocket, time: Duration) -> std::io::Result<(u64, Duration)> {
    let (begin, mut sent) = (Instant::now(), 0);
    loop {
        // The clock is looked at now and then.
        for _ in 0..16 {
            socket.send(&[0; DATAGRAM])?;
            sent += 1;
        }
        let passed = begin.elapsed();
        if passed >= time {
            return Ok((sent, passed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_trips() {
        let mut trips: Vec<_> = (1..=1000).rev().map(Duration::from_micros).collect();
        let near = |value: Option<f64>, expected: f64| {
            value.is_some_and(|value| (value - expected).abs() < 1e-6)
        };
        assert!(near(percentile(&mut trips, 0.5), 501.0));
        assert!(near(percentile(&mut trips, 0.99), 991.0));
        assert!(near(percentile(&mut trips, 1.0), 1000.0));
        assert!(percentile(&mut [], 0.5).is_none());
    }

    #[test]
    fn no_port_is_used_twice_within_a_minute() {
        for time in [0.05, 0.5, 3.0].map(Duration::from_secs_f64) {
            let all: Vec<_> = (0..20)
                .flat_map(|round| (0..CLIENTS).map(move |client| (round, client)))
                .flat_map(|(round, client)| ports(round, client, time))
                .collect();
            let different: std::collections::BTreeSet<_> = all.iter().collect();
            assert_eq!(all.len(), different.len(), "{time:?}");
            assert!(all.iter().all(|port| *port >= FIRST_PORT));
        }
        let last = ports(1000, 3, Duration::from_secs(60));
        assert!(last.count() >= 250, "a minute's");
    }

    #[test]
    fn connections_in_time_wait_are_read() {
        let text =
            "sockets: used 3\nTCP: inuse 3 orphan 0 tw 8123 alloc 7 mem 0\nUDP: inuse 1 mem 0\n";
        assert_eq!(parse_waiting(text), Some(8123));
        assert_eq!(parse_waiting("TCP: inuse 3\n"), None);
        assert_eq!(parse_waiting("UDP: tw 1\n"), None);
    }
}
