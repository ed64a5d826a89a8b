//! Certificates that are old: how long they count, and how a node comes to a later one while it runs.

mod common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::{Authority, Daemon, Node, Pod, Setup, Signee, Testbed, wait_for};
use viaduct_control::gossip::{Certificate, Claimed, hexadecimal, key_from};

const V4: &str = "10.244.2.0/24";
const V6: &str = "fd00:10:244:2::/64";
const REPLACED: &str = "its certificate was replaced by a later one";

/// Two nodes with a pod each; the second one's certificate is the test's.
struct Site {
    first: Daemon,
    second: Daemon,
    pods: [Pod; 2],
    ids: [Signee; 2],
    authority: Authority,
    bed: Testbed,
}

impl Site {
    /// `sign` makes the second node's certificate.
    fn new(sign: impl Fn(&Testbed, &Authority, &Signee) -> String) -> Self {
        let mut bed = Testbed::new();
        let nodes: [Node; 2] = [1, 2].map(|n| bed.node(n, 1));
        let pods = [0, 1].map(|n: usize| bed.pod(&nodes[n], "web", 2));
        let authority = Authority::new(&bed, "authority.key");
        let ids = [0, 1].map(|n: usize| bed.identity(&nodes[n]));
        let first = authority.sign(&ids[0], &[]);
        fs::write(bed.certificate(&ids[0].name), first).expect("written");
        let second = sign(&bed, &authority, &ids[1]);
        fs::write(bed.certificate(&ids[1].name), second).expect("written");
        let table = authority.table(&bed, 1);
        let setup = Setup {
            more: &table,
            ..Setup::default()
        };
        let [first, second] =
            [0, 1].map(|n: usize| bed.router_with(&nodes[n], &[&pods[n]], &[], &setup));
        first.knows(&[2]);
        second.knows(&[1]);
        Self {
            first,
            second,
            pods,
            ids,
            authority,
            bed,
        }
    }

    /// Gives the second node a certificate while it runs.
    fn renew(&self, certificate: &str) {
        fs::write(self.bed.certificate(&self.ids[1].name), certificate).expect("written");
        self.second.signal("-HUP");
    }

    fn reached(&self) {
        let [one, other] = &self.pods;
        for (from, to) in [(one, other), (other, one)] {
            for address in [to.v4(), to.v6()] {
                wait_for(&address, || from.namespace.ping(&address, 1, 56) == 1);
            }
        }
    }
}

/// A certificate for both prefixes that was issued at this second, as the command would have made it then.
fn issued(bed: &Testbed, node: &Signee, seconds: u64) -> String {
    let file = bed.directory.path().join("authority.key");
    let key = key_from(&file, false).expect("the authority's key");
    let claim = Claimed {
        name: node.name.clone(),
        key: hexadecimal(&node.key).expect("a key"),
        issued: seconds,
        prefixes: Some(
            [V4, V6]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .into(),
        ),
        addresses: None,
    };
    let certificate = Certificate::new(claim, "test", &key).expect("signed");
    certificate.to_text()
}

/// Problems of a router with these words.
fn has_problem(router: &Daemon, what: &str, words: &[&str]) -> bool {
    let said = router.ask(what)["problems"].clone();
    let mut said = said
        .as_array()
        .expect("a list")
        .iter()
        .map(ToString::to_string);
    said.any(|problem| words.iter().all(|word| problem.contains(word)))
}

/// One of 1970 counts, since none expires; a later one replaces it, and the earlier one does not come back while the
/// node runs.
#[test]
fn a_certificate_counts_until_a_later_one_is_seen() {
    let site = Site::new(|bed, _, node| issued(bed, node, 1));
    site.reached();
    let old = fs::read_to_string(site.bed.certificate(&site.ids[1].name)).expect("there");
    let later = site.authority.sign(&site.ids[1], &["--prefix", V4]);
    site.renew(&later);
    wait_for("what the later one allows", || site.first.ways() == [V4]);
    site.renew(&old);
    wait_for("the earlier one to be refused at home", || {
        let log = site.second.log();
        log.contains("the node's certificate was not read again") && log.contains(REPLACED)
    });
    // What the node says otherwise is heard all the same.
    let name = &site.ids[1].name;
    let change = || {
        let peers = site.first.ask("peers")["peers"].clone();
        let mut peers = peers.as_array().expect("peers").clone().into_iter();
        let peer = peers.find(|peer| peer["node"] == **name).expect("known");
        peer["change"].as_u64().expect("a number")
    };
    let before = change();
    let delegation = format!(
        "\n[[delegations]]\nnetwork = \"default\"\nprefix = \"10.244.2.9/32\"\nnode = \"{}\"\n",
        site.ids[0].name
    );
    site.second.reload(|text| text + &delegation);
    wait_for("another change to be heard", || change() > before);
    assert_eq!(site.first.ways(), [V4]);
    assert_eq!(site.first.peer(name), "answers");
    assert!(!has_problem(&site.first, "peers", &[REPLACED]));
    sleep(Duration::from_millis(1100));
    let both = site
        .authority
        .sign(&site.ids[1], &["--prefix", V4, "--prefix", V6]);
    site.renew(&both);
    site.first.knows(&[2]);
    site.reached();
}

/// A node that is started with a certificate from a backup: the others keep what it said before, both sides say what is
/// wrong, and a new certificate is taken without a restart.
#[test]
fn an_older_certificate_takes_no_route_away() {
    let mut site =
        Site::new(|_, authority, node| authority.sign(node, &["--prefix", V4, "--prefix", V6]));
    site.second.kill();
    let backup = issued(&site.bed, &site.ids[1], 1);
    fs::write(site.bed.certificate(&site.ids[1].name), backup).expect("written");
    site.second.start();
    let name = site.ids[1].name.clone();
    wait_for("the others to say so", || {
        has_problem(&site.first, "peers", &[&name, REPLACED])
    });
    let own = [
        "this node's record is refused by",
        REPLACED,
        "authority sign",
    ];
    wait_for("the node to say so itself", || {
        has_problem(&site.second, "status", &own)
    });
    assert_eq!(site.second.ask("status")["ready"], false);
    let count = site.first.ask("peers")["records_refused"]["old-certificate"].clone();
    assert!(count.as_u64() > Some(0), "{count}");
    site.first.knows(&[2]);
    site.reached();
    sleep(Duration::from_millis(1100));
    let renewed = site
        .authority
        .sign(&site.ids[1], &["--prefix", V4, "--prefix", V6]);
    site.renew(&renewed);
    wait_for("nothing to be wrong", || {
        let ready = site.second.ask("status")["ready"] == true;
        ready && !has_problem(&site.first, "peers", &[REPLACED])
    });
    assert_eq!(site.first.peer(&name), "answers");
    site.first.knows(&[2]);
}
