//! Streams that go on while something happens to the routers.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::traffic::{PYTHON, script};
use super::{Pod, wait_for};

/// A stream from one pod to another, until dropped.
pub struct Stream {
    sender: Child,
    receiver: Child,
    last: Arc<Mutex<Vec<u64>>>,
    what: String,
}

impl Pod {
    /// A TCP connection to `address` of `to` whose bytes are compared there.
    pub fn tcp_stream(&self, to: &Pod, address: &str, port: u16) -> Stream {
        self.stream(
            to,
            address,
            &format!("tcp-receive {address} {port}"),
            &format!("tcp-send {address} {port}"),
        )
    }

    /// Numbered datagrams to `address` of `to`, so many a second.
    pub fn udp_stream(&self, to: &Pod, address: &str, port: u16, rate: u32) -> Stream {
        self.stream(
            to,
            address,
            &format!("udp-receive {address} {port}"),
            &format!("udp-send {address} {port} {rate}"),
        )
    }

    fn python(&self, words: &str) -> Command {
        let mut command = self.namespace.command(PYTHON);
        command
            .arg(script("stream.py"))
            .args(words.split_whitespace());
        command
    }

    fn stream(&self, to: &Pod, address: &str, receive: &str, send: &str) -> Stream {
        let mut receiver = to.python(receive);
        let mut receiver = receiver
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut lines = BufReader::new(receiver.stdout.take().expect("piped")).lines();
        let ready = lines.next().and_then(Result::ok);
        assert_eq!(ready.as_deref(), Some("ready"), "{receive}");
        let last = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&last);
        // Ends with the receiver.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let numbers = line.split_whitespace().map(|n| n.parse().unwrap_or(0));
                *sink.lock().expect("no panic") = numbers.collect();
            }
        });
        let sender = self
            .python(send)
            .stdin(Stdio::null())
            .spawn()
            .expect("python3 runs");
        let stream = Stream {
            sender,
            receiver,
            last,
            what: format!("the stream to {address}"),
        };
        stream.goes_on();
        stream
    }
}

impl Stream {
    /// What has arrived: bytes of TCP, or datagrams, the highest number, and how many came behind a higher one.
    pub fn arrived(&self) -> Vec<u64> {
        self.last.lock().expect("no panic").clone()
    }

    /// Waits until something arrives that had not been sent before; how long that took.
    pub fn goes_on(&self) -> Duration {
        let begin = Instant::now();
        let before = self.arrived().first().copied().unwrap_or(0);
        // Beyond what may have been under way.
        wait_for(&self.what, || {
            self.arrived()
                .first()
                .is_some_and(|now| *now > before + 100_000 || self.is_udp() && *now > before + 200)
        });
        begin.elapsed()
    }

    fn is_udp(&self) -> bool {
        self.arrived().len() == 3
    }

    /// Datagrams that came behind one with a higher number.
    pub fn late(&self) -> u64 {
        self.arrived().get(2).copied().unwrap_or(0)
    }

    /// Datagrams that were sent and have not arrived.
    pub fn lost(&self) -> u64 {
        match self.arrived()[..] {
            [received, highest, _] => highest.saturating_sub(received),
            _ => 0,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for child in [&mut self.sender, &mut self.receiver] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
