//! A node whose key is believed announces what is others': their VTEPs, pods and prefixes. Packets go where they
//! went before, and nothing comes in with others' sources.
//!
//! The liar is a router of its own, whose pod has the address of another node's pod, and a process that gossips in
//! its place.

mod common;

use std::env;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use common::{
    Authority, CLUSTER, Daemon, Ears, Namespace, Node, Pod, Process, Setup, Signee, Testbed,
    vtep_mac, wait_for, write_key,
};
use serde_json::{Value, json};
use viaduct_control::gossip::{
    Announcement, Certificate, Claim, Detection, Gossip, GossipOptions, NetworkPart, Trust,
    in_hexadecimal, own_key, public, seconds,
};
use viaduct_encap::MacAddr;

const LIE: &str = "VIADUCT_TEST_LIE";
/// The liar's own addresses, the owner's pod and node, the hearer's pod and node, and a pod that nobody has.
const VTEPS: [&str; 11] = [
    "192.0.2.3",
    "fd00:99::3",
    "10.244.2.2",
    "fd00:10:244:2::2",
    "192.0.2.2",
    "fd00:99::2",
    "10.244.1.2",
    "fd00:10:244:1::2",
    "192.0.2.1",
    "fd00:99::1",
    "10.244.9.9",
];
/// The liar's own come first.
const PREFIXES: [&str; 9] = [
    "10.244.3.0/24",
    "fd00:10:244:3::/64",
    "10.244.2.0/24",
    "10.244.2.2/32",
    "fd00:10:244:2::/64",
    "fd00:10:244:2::2/128",
    "10.244.1.0/24",
    "fd00:10:244:1::2/128",
    "203.0.113.0/24",
];
const MOVED: [&str; 4] = [
    "10.244.2.2/32",
    "fd00:10:244:2::2/128",
    "10.244.1.2/32",
    "fd00:10:244:1::2/128",
];

/// The lie as a record has it; all claims are this old, in seconds since 1970.
fn lie(since: u64) -> Announcement {
    let claim = |prefix: &str| Claim {
        prefix: prefix.parse().expect("a prefix"),
        since,
    };
    let mac: MacAddr = vtep_mac(3).parse().expect("a MAC");
    Announcement {
        gossip: SocketAddr::new([192, 0, 2, 3].into(), 7950),
        vteps: VTEPS
            .map(|vtep| vtep.parse::<IpAddr>().expect("an address"))
            .into(),
        networks: vec![NetworkPart {
            vni: 1,
            port: 8472,
            mac: mac.0,
            mac6: mac.0,
            prefixes: PREFIXES.map(claim).into(),
            moved: MOVED.map(|prefix| prefix.parse().expect("a prefix")).into(),
            delegated: Vec::new(),
        }],
    }
}

/// The liar's gossip, until its input ends.
#[test]
#[ignore = "run by the other tests of this file"]
fn the_liar() {
    let Ok(said) = env::var(LIE) else { return };
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let text = |what: &str| said[what].as_str().expect("a text").to_owned();
    let certificate = said["certificate"].as_str();
    let gossip = Gossip::start(GossipOptions {
        node: text("node"),
        port: 7950,
        cluster: CLUSTER.0.to_owned(),
        key_file: text("key_file").into(),
        state: text("state").into(),
        peers: vec![("192.0.2.1".to_owned(), 7950)],
        detection: Detection::default(),
        trust: Trust::FirstSight,
        certificate: certificate.map(|text| Certificate::from_text(text).expect("a certificate")),
        announcement: Some(lie(said["since"].as_u64().expect("seconds"))),
    });
    let gossip = gossip.expect("it starts");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    std::thread::spawn(move || runtime.expect("a runtime").block_on(gossip.run()));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// The hearer (node 1), the owner (node 2) and the liar (node 3), a pod each.
struct Site {
    hearer: Daemon,
    owner: Daemon,
    liar: Daemon,
    _gossip: Process,
    pods: [Pod; 3],
    /// In the liar's node, with the addresses of the owner's pod.
    twin: Pod,
    nodes: [Node; 3],
    _bed: Testbed,
}

/// How the liar's key is believed.
enum Belief {
    FirstSight,
    Certified,
}

impl Site {
    fn new(belief: &Belief) -> Self {
        let mut bed = Testbed::new();
        let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
        let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
        let twin = Pod {
            namespace: bed.namespace("twin"),
            interface: "veth-twin".to_owned(),
            n: 2,
            host: 2,
            queues: 1,
            classic: false,
        };
        twin.plug(&nodes[2]);
        let authority = Authority::new(&bed, "authority.key");
        let certificate = |n: u8, signee: &Signee| {
            let options = [
                "--prefix".to_owned(),
                format!("10.244.{n}.0/24"),
                "--prefix".to_owned(),
                format!("fd00:10:244:{n}::/64"),
                "--address".to_owned(),
                format!("192.0.2.{n}"),
                "--address".to_owned(),
                format!("fd00:99::{n}"),
            ];
            authority.sign(signee, &options.each_ref().map(|word| &word[..]))
        };
        let table = match belief {
            // Members may have addresses of both families.
            Belief::FirstSight => bed.trusting(
                1,
                "trust = \"first-sight\"\nallowed_addresses = [\"fd00:99::/64\"]",
            ),
            Belief::Certified => {
                for (n, node) in (1..).zip(&nodes[..2]) {
                    let signee = bed.identity(node);
                    let file = bed.certificate(&signee.name);
                    std::fs::write(file, certificate(n, &signee)).expect("written");
                }
                authority.table(&bed, 1)
            }
        };
        let setup = Setup {
            more: &table,
            ..Setup::default()
        };
        let [hearer, owner] =
            [0, 1].map(|n: usize| bed.router_with(&nodes[n], &[&pods[n]], &[], &setup));
        hearer.knows(&[2]);
        owner.knows(&[1]);

        let more = format!(
            "[[pods]]\nnetwork = \"default\"\ninterface = \"veth-twin\"\nmoved = true\naddresses = [\"{}\", \"{}\"]\n",
            twin.v4(),
            twin.v6()
        );
        let setup = Setup {
            more: &more,
            ..Setup::default()
        };
        let peers = [(1, &vtep_mac(1)[..]), (2, &vtep_mac(2))];
        let liar = bed.router_with(&nodes[2], &[&pods[2]], &peers, &setup);
        let state = bed.directory.path().join("liar");
        let key = own_key(&state, &liar.name).expect("a key");
        let signee = Signee {
            name: liar.name.clone(),
            key: in_hexadecimal(&public(&key)),
        };
        // At first sight a member is believed how old its claims are, up to a day: there it says the truth.
        let (certificate, since) = match belief {
            Belief::FirstSight => (None, seconds()),
            Belief::Certified => (Some(certificate(3, &signee)), 0),
        };
        let certificate = certificate.as_deref();
        let gossip = start(
            &nodes[2].namespace,
            &state,
            &signee.name,
            certificate,
            since,
        );
        hearer.knows(&[2, 3]);
        Self {
            hearer,
            owner,
            liar,
            _gossip: gossip,
            pods,
            twin,
            nodes,
            _bed: bed,
        }
    }

    /// The liar's own pod is reached; the owner's and the hearer's are where they were; and the hearer takes nothing
    /// from the liar that has others' sources.
    fn holds(&self, when: &str) {
        let [web, owned, honest] = &self.pods;
        let hear = |pod: &Pod| pod.namespace.hear(&[&pod.v4(), &pod.v6()]);
        let [at_web, at_owned, at_honest] = [web, owned, honest].map(hear);
        let at_twin = hear(&self.twin);
        for v6 in [false, true] {
            let address = |pod: &Pod| if v6 { pod.v6() } else { pod.v4() };
            let say = |from: &Pod, to: &Pod, word: &str| {
                let (source, target) = (address(from), address(to));
                (from.namespace).forge(&format!("say {source} {target} {word}-{v6}"));
            };
            self.attack(&address(web), v6);
            // Twice as the owner's pod: from the liar's node, and from where it belongs.
            say(&self.twin, web, "forged-twin");
            say(owned, web, "owner");
            say(honest, web, "liar");
            say(web, owned, "to-owner");
            say(web, honest, "to-liar");
        }
        let both = |word: &str| [format!("{word}-false"), format!("{word}-true")];
        let only = |ears: &Ears, words: &[String]| {
            let others = ears.until(words);
            assert!(others.is_empty(), "{when}: {others:?}");
        };
        only(&at_owned, &both("to-owner"));
        only(&at_honest, &both("to-liar"));
        only(&at_web, &[both("owner"), both("liar")].concat());
        assert_eq!(at_twin.take(), Vec::<String>::new(), "{when}");
    }

    /// Packets from the liar's VTEPs with the sources that it has claimed.
    fn attack(&self, target: &str, v6: bool) {
        let mac = vtep_mac(1);
        let outer = [("192.0.2.3", "192.0.2.1"), ("fd00:99::3", "fd00:99::1")];
        let claimed = VTEPS[2..].iter().chain(&["10.244.2.9", "fd00:10:244:2::9"]);
        for source in claimed.filter(|source| source.contains(':') == v6) {
            for (from, to) in outer {
                let words = format!("tunnel {from} {to} {mac} 1 {source} {target} forged-{source}");
                self.nodes[2].namespace.forge(&words);
            }
        }
    }

    /// Waits until a node's `peers` names what of the liar's record it does not use, and that it says why.
    fn tells(&self, router: &Daemon, refused: &[(&str, &str)]) {
        let name = &self.liar.name;
        let mut missing = Vec::new();
        wait_for("what is not used to be told", || {
            let said = router.ask("peers")["unused"].clone();
            let said = said.as_array().expect("a list");
            let has = |(what, why): &&(&str, &str)| {
                said.iter().any(|one| {
                    one["node"] == **name
                        && one["what"] == *what
                        && one["why"].as_str().expect("a reason").contains(why)
                })
            };
            missing = refused.iter().filter(|one| !has(one)).collect();
            missing.is_empty()
        });
        let (did, text) = router.command("peers");
        for (what, _) in refused {
            let line = |line: &str| line.contains(name) && line.contains(what);
            assert!(did && text.lines().any(line), "{what}: {text}");
        }
    }
}

/// Starts the liar's gossip in its node's namespace.
fn start(
    at: &Namespace,
    state: &Path,
    node: &str,
    certificate: Option<&str>,
    since: u64,
) -> Process {
    let key_file = state.join("cluster.gossip");
    write_key(&key_file, &CLUSTER.1.repeat(32));
    let said = json!({
        "node": node, "key_file": key_file, "state": state, "certificate": certificate, "since": since,
    });
    let this = env::current_exe().expect("this test's program");
    let mut command = at.command(this.to_str().expect("a path"));
    command
        .args(["--exact", "the_liar", "--ignored", "--nocapture"])
        .env(LIE, said.to_string())
        .stdin(Stdio::piped());
    Process::start(command)
}

/// What of the lie cannot be, whoever believes what.
const IMPOSSIBLE: [(&str, &str); 7] = [
    ("10.244.2.2", "inside the cluster prefix 10.244.0.0/16"),
    ("fd00:10:244:2::2", "inside the cluster prefix"),
    ("10.244.1.2", "inside the cluster prefix"),
    ("10.244.9.9", "inside the cluster prefix"),
    ("192.0.2.1", "this node's own address"),
    ("fd00:99::1", "this node's own address"),
    ("203.0.113.0/24", "outside the cluster's prefixes"),
];

fn attacked(belief: &Belief, refused: &[(&str, &str)]) {
    let mut site = Site::new(belief);
    site.tells(&site.hearer, &IMPOSSIBLE);
    site.tells(&site.hearer, refused);
    site.holds("running");
    assert!(site.hearer.dropped("unknown-vtep") > 0);
    for (address, owner) in [
        ("10.244.2.2", &site.owner.name),
        ("fd00:10:244:2::2", &site.owner.name),
        ("10.244.3.2", &site.liar.name),
    ] {
        let (_, said) = site.hearer.command(&format!("routes {address}"));
        let used = said.lines().find(|line| line.contains("gossip"));
        assert!(used.is_some_and(|line| line.contains(owner)), "{said}");
    }
    site.hearer.kill();
    site.holds("by the kernel");
    site.hearer.start();
    site.hearer.knows(&[2, 3]);
    site.tells(&site.hearer, refused);
    site.holds("after a restart");
}

/// A careless operator has copied addresses and prefixes of others: who came first keeps them.
#[test]
fn a_believed_node_takes_nothing_that_others_had_first() {
    attacked(
        &Belief::FirstSight,
        &[
            ("192.0.2.2", "nothing shows that it is the node's"),
            ("fd00:99::2", "-2's address"),
            ("10.244.2.0/24", "overlaps it, and goes before"),
            ("10.244.2.2/32", "overlaps it, and goes before"),
            ("fd00:10:244:2::/64", "overlaps it, and goes before"),
            ("10.244.1.0/24", "of this node overlaps it"),
        ],
    );
}

/// A stolen node says that it has had all of it since 1970; the authority has not allowed it.
#[test]
fn a_certified_node_takes_nothing_that_is_allowed_to_others() {
    attacked(
        &Belief::Certified,
        &[
            ("192.0.2.2", "it is allowed to"),
            ("fd00:99::2", "it is allowed to"),
            ("10.244.2.0/24", "outside what is allowed to"),
            ("10.244.2.2/32", "outside what is allowed to"),
            ("fd00:10:244:2::2/128", "outside what is allowed to"),
            ("10.244.1.0/24", "outside what is allowed to"),
        ],
    );
}
