//! Traffic between pods whose every byte is compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Namespace, Node, Pod, Process, Testbed, must, text, wait_for};

impl Pod {
    /// Sends `bytes` of a pattern over TCP to `address` of `to` and has them
    /// compared there.
    pub fn tcp(&self, to: &Pod, address: &str, bytes: usize) {
        let data = std::env::temp_dir().join(format!("{}-data", self.namespace.name));
        let pattern: Vec<u8> = (0..bytes)
            .map(|i| ((i * 2_654_435_761) >> 7) as u8)
            .collect();
        fs::write(&data, &pattern).expect("data is written");
        let family = if address.contains(':') {
            "TCP6"
        } else {
            "TCP4"
        };
        let listen = format!("{family}-LISTEN:5000,reuseaddr");
        let sink = data.with_extension("received");
        let file = fs::File::create(&sink).expect("a file for what arrives");
        let mut server = to.namespace.command("timeout");
        server
            .args(["30", "socat", "-u", &listen, "STDOUT"])
            .stdout(file);
        let mut server = server.spawn().expect("socat runs");
        let target = if address.contains(':') {
            format!("TCP6:[{address}]:5000")
        } else {
            format!("TCP4:{address}:5000")
        };
        let source = format!("FILE:{}", data.display());
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let sent: Output = self
                .namespace
                .command("timeout")
                .args(["30", "socat", "-u", &source, &target])
                .output()
                .expect("socat runs");
            if sent.status.success() {
                break;
            }
            assert!(
                Instant::now() < until,
                "tcp to {address}: {}",
                text(&sent.stderr)
            );
            sleep(Duration::from_millis(50));
        }
        let _ = server.wait();
        let received = fs::read(&sink).expect("what arrived");
        let _ = fs::remove_file(&sink);
        let _ = fs::remove_file(&data);
        assert!(
            received == pattern,
            "tcp to {address}: {} of {bytes} bytes, or not the same",
            received.len()
        );
    }
}

/// Debian's own; a version manager's shim in `PATH` would not be the program.
pub const PYTHON: &str = "/usr/bin/python3";
const PORT: &str = "5001";

pub fn script(name: &str) -> String {
    format!("{}/tests/common/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What came of datagrams that were sent one by one.
#[derive(Debug)]
pub struct Answers {
    pub answered: u64,
    pub lost: u64,
}

/// What came of datagrams of many flows.
#[derive(Debug)]
pub struct OneWay {
    pub received: u64,
    pub flows: u64,
    /// Datagrams whose bytes were not those that were sent.
    pub bad: u64,
}

impl Pod {
    fn udp_server(&self, words: &str) -> Process {
        let mut server = self
            .namespace
            .spawn(&format!("{PYTHON} {} {words}", script("udp.py")));
        assert_eq!(server.line(), "ready", "udp.py {words}");
        server
    }

    fn udp_client(&self, words: &str) -> String {
        self.namespace
            .run(&format!("{PYTHON} {} {words}", script("udp.py")))
    }

    /// Sends datagrams with as many bytes of a pattern to `address` of `to` and
    /// compares the answers; a lost one is sent again, three times at most.
    pub fn udp(&self, to: &Pod, address: &str, sizes: &[usize]) -> Answers {
        self.udp_answers(to, address, sizes, "")
    }

    /// The same, with datagrams that routers may cut into fragments.
    pub fn udp_cut(&self, to: &Pod, address: &str, sizes: &[usize]) -> Answers {
        self.udp_answers(to, address, sizes, "-cut")
    }

    fn udp_answers(&self, to: &Pod, address: &str, sizes: &[usize], how: &str) -> Answers {
        let _server = to.udp_server(&format!("echo{how} {address} {PORT}"));
        let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        let said = self.udp_client(&format!("ask{how} {address} {PORT} {}", sizes.join(" ")));
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let number = |name: &str| said[name].as_u64().expect("a number");
        Answers {
            answered: number("answered"),
            lost: number("lost"),
        }
    }

    /// Sends `each` datagrams from each of `flows` ports, one way.
    pub fn udp_flows(&self, to: &Pod, address: &str, flows: u32, each: u32) -> OneWay {
        let mut server = to.udp_server(&format!("count {address} {PORT} {}", flows * each));
        self.udp_client(&format!("send {address} {PORT} {flows} {each}"));
        let (said, status) = server.finish();
        assert!(status.success(), "udp.py count: {status}");
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let number = |name: &str| said[name].as_u64().expect("a number");
        OneWay {
            received: number("received"),
            flows: number("flows"),
            bad: number("bad"),
        }
    }

    /// Sends datagrams from as many ports to whoever may be there, until dropped.
    pub fn udp_flood(&self, address: &str, flows: u32) -> Process {
        let words = format!("send {address} {PORT} {flows} 1000000");
        self.namespace
            .spawn(&format!("{PYTHON} {} {words}", script("udp.py")))
    }

    /// Sends so many datagrams at once to whoever may be there.
    pub fn udp_burst(&self, address: &str, datagrams: u32) {
        self.udp_client(&format!("send {address} {PORT} 1 {datagrams}"));
    }

    /// Sends datagrams of 64 bytes as fast as it can, until dropped.
    pub fn flood(&self, address: &str) -> Process {
        self.namespace
            .spawn(&format!("{PYTHON} {} flood {address}", script("udp.py")))
    }

    /// Sends an SCTP INIT whose CRC32c is `zero`, `right` or `wrong`; returns
    /// the one that has to arrive, in hex as on the wire.
    pub fn sctp(&self, source: &str, destination: &str, tag: u32, crc: &str) -> String {
        self.namespace
            .run(&format!(
                "{PYTHON} {} {source} {destination} {tag} {crc}",
                script("sctp.py")
            ))
            .trim()
            .to_owned()
    }

    /// [`Namespace::capture`] at the pod's interface.
    pub fn capture(&self, file: &Path, packets: usize, filter: &str) -> Process {
        self.namespace.capture("eth0", file, packets, filter)
    }
}

impl Namespace {
    /// Begins to capture `packets` that match `filter` at an interface;
    /// the process ends by itself after that many.
    pub fn capture(&self, interface: &str, file: &Path, packets: usize, filter: &str) -> Process {
        let mut command = self.command("tcpdump");
        command
            .args(["-U", "-i", interface, "-c", &packets.to_string(), "-w"])
            .arg(file)
            .args(filter.split_whitespace())
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let process = Process::start(command);
        wait_for("the capture to begin", || file.exists());
        process
    }
}

/// Fields of the captured packets that match `filter`, one packet a line.
pub fn captured(file: &Path, filter: &str, options: &[&str], fields: &[&str]) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    tshark
        .arg("-r")
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    // VXLAN at Linux's port, too.
    tshark.args(["-d", "udp.port==8472,vxlan"]);
    for option in options {
        tshark.args(["-o", option]);
    }
    for field in fields {
        tshark.args(["-e", field]);
    }
    must(&mut tshark).lines().map(str::to_owned).collect()
}

/// Captures the underlay at a node's port of the switch while `work` is done; what tshark makes of
/// the filters: the length in bytes of each packet that matches one.
///
/// What hooks carry stays merged, so that one captured packet may hold 64 KiB of a stream: count
/// bytes where streams were sent, and packets only of pings and datagrams.
pub fn captured_lengths<const N: usize>(
    bed: &Testbed,
    node: &Node,
    filters: [&str; N],
    work: impl FnOnce(),
) -> [Vec<usize>; N] {
    let underlay = (&node.switch, node.switch_port.as_str());
    let capture = capture(bed, underlay, (&node.namespace, "eth0"), work);
    filters.map(|filter| {
        let mut tshark = Command::new("tshark");
        let words = "-d udp.port==8472,vxlan -d tcp.port==5000,data -d udp.port==5001,data -o udp.check_checksum:TRUE -o ip.check_checksum:TRUE";
        tshark.args(words.split_whitespace()).arg("-r").arg(&capture).args(["-Y", filter]);
        tshark.args(["-T", "fields", "-e", "frame.len"]);
        let lengths = must(&mut tshark);
        lengths.lines().map(|length| length.parse().expect("a length")).collect()
    })
}

/// Captures an interface while `work` is done, to a file in the format of libpcap. What is sent by the other end comes there.
pub fn capture(
    bed: &Testbed,
    (namespace, interface): (&Namespace, &str),
    (other, other_end): (&Namespace, &str),
    work: impl FnOnce(),
) -> PathBuf {
    let capture = bed.directory.path().join("capture.pcap");
    let _ = fs::remove_file(&capture);
    let mut tcpdump = namespace.command("tcpdump");
    // Its buffer has a place of the longest packet's length for each packet: the usual 2 MB have few.
    tcpdump
        .args(["-U", "--immediate-mode", "-s", "65600", "-B", "65536"])
        .args(["-i", interface, "-w"])
        .arg(&capture)
        .stderr(Stdio::piped());
    let tcpdump = tcpdump.spawn().expect("tcpdump runs");
    wait_for("the capture to begin", || capture.exists());
    work();
    // A signal ends tcpdump at once, whatever it has not read yet: a last frame shows that it has.
    let end = "import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); \
               s.bind((sys.argv[1], 0)); \
               s.send(bytes(12) + b\"\\x88\\xb5end of the capture\" + bytes(40))";
    must(other.command("python3").args(["-c", end, other_end]));
    wait_for("the capture to have all", || {
        let file = fs::read(&capture).unwrap_or_default();
        file.windows(18).any(|part| part == b"end of the capture")
    });
    must(Command::new("kill").arg(tcpdump.id().to_string()));
    let said = tcpdump.wait_with_output().expect("tcpdump ends").stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
    capture
}
