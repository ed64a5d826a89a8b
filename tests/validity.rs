//! What comes in a tunnel from a node that is known, and is odd: RFC 7348 says what of it counts.

mod common;

use common::{Daemon, Hooks, Node, Pair, Setup, vtep_mac, wait_for};

/// Kinds that arrive; forge.py says what each is.
const SOUND: [&str; 5] = ["plain", "right-sum", "unsummed", "options", "padded"];
/// Kinds that do not, and where each is counted: by the XDP program, by a worker, or as left to the
/// kernel, which has its own way to count them.
const ODD: [(&str, Place); 14] = [
    ("flag", Worker("bad-outer")),
    ("gbp", Worker("bad-outer")),
    ("gpe", Worker("bad-outer")),
    ("reserved-flag", Worker("bad-outer")),
    ("reserved-byte", Worker("bad-outer")),
    ("wrong-sum", Worker("bad-outer-checksum")),
    // Another's network may use the same port.
    ("vni", Xdp("passed")),
    // Too short for a frame inside.
    ("header", Xdp("passed")),
    ("runt", Xdp("passed")),
    ("ip", Xdp("malformed")),
    ("long", Worker("malformed")),
    ("sum", Worker("malformed")),
    ("vlan", Xdp("vlan_tagged")),
    ("mac", Worker("wrong-vtep-mac")),
];

#[derive(Clone, Copy, Debug)]
enum Place {
    Xdp(&'static str),
    Worker(&'static str),
    /// A count of UDP's in the node's kernel.
    Kernel(&'static str),
}
use Place::{Kernel, Worker, Xdp};

impl Place {
    /// Hooks that settle leave checksums to the kernel's VXLAN device.
    fn in_this_tier(self) -> Self {
        match self {
            Worker("bad-outer-checksum") if Hooks::usual() == Hooks::Settled => {
                Kernel("InCsumErrors")
            }
            other => other,
        }
    }

    fn count(self, router: &Daemon, node: &Node) -> u64 {
        match self {
            Kernel(name) => node.udp_count(name),
            Xdp(name) => router.ask("status")["xdp"][name].as_u64().expect(name),
            Worker(reason) => router.dropped(reason),
        }
    }
}

#[test]
fn odd_tunnel_packets_are_dropped_and_sound_ones_delivered() {
    let pair = Pair::new(&Setup::default());
    let ([web, far], [a, b]) = (&pair.pods, &pair.nodes);
    let router = &pair.routers[0];
    let ears = web.namespace.hear(&[&web.v4(), &web.v6()]);
    let received = || router.port("underlay", "rx_packets");
    let mac = vtep_mac(1);
    let mut words = Vec::new();
    for (from, to) in [(far.v4(), web.v4()), (far.v6(), web.v6())] {
        let send = |kind: &str| {
            let word = format!("{kind}-{to}");
            b.namespace.forge(&format!(
                "odd {kind} 192.0.2.2 192.0.2.1 {mac} 1 {from} {to} {word}"
            ));
            word
        };
        for (kind, place) in ODD {
            // IPv6 has no header checksum.
            if kind == "sum" && to.contains(':') {
                continue;
            }
            let place = place.in_this_tier();
            let before = place.count(router, a);
            send(kind);
            wait_for(&format!("{kind} at {place:?}"), || {
                place.count(router, a) > before
            });
        }
        let before = received();
        words.extend(SOUND.map(send));
        wait_for("the sound at the worker", || {
            received() >= before + SOUND.len() as u64
        });
    }
    let others = ears.until(&words);
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn options_and_extension_headers_pass_between_pods() {
    let pair = Pair::new(&Setup::default());
    let [web, far] = &pair.pods;
    let ears = far.namespace.hear(&[&far.v4(), &far.v6()]);
    let carried = || pair.routers[0].port("veth-web", "rx_packets");
    let before = carried();
    for (from, to) in [(web.v4(), far.v4()), (web.v6(), far.v6())] {
        web.namespace
            .forge(&format!("optioned {from} {to} with-{to}"));
    }
    let words = [far.v4(), far.v6()].map(|to| format!("with-{to}"));
    assert!(ears.until(&words).is_empty());
    wait_for("the worker's counts", || carried() >= before + 2);
}
