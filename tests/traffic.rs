//! Protocols between pods of two nodes: every byte, both families, all queues.

mod common;

use common::{Daemon, Hooks, Node, Pod, Setup, Testbed, captured, vtep_mac};

/// Two nodes with a pod each.
struct Pair {
    bed: Testbed,
    nodes: [Node; 2],
    pods: [Pod; 2],
}

impl Pair {
    fn new(queues: u8) -> Self {
        let mut bed = Testbed::new();
        let nodes = [bed.node(1, queues), bed.node(2, queues)];
        let pods = [bed.pod(&nodes[0], "web", 2), bed.pod(&nodes[1], "web", 2)];
        Self { bed, nodes, pods }
    }

    fn routers(&self, workers: &str) -> [Daemon; 2] {
        self.routers_with(&Setup {
            workers,
            ..Setup::default()
        })
    }

    fn routers_with(&self, setup: &Setup<'_>) -> [Daemon; 2] {
        let [a, b] = &self.nodes;
        let router = |node, pod, peer| {
            let mac = vtep_mac(peer);
            self.bed.router_with(node, &[pod], &[(peer, &mac)], setup)
        };
        [router(a, &self.pods[0], 2), router(b, &self.pods[1], 1)]
    }
}

/// Every size up to 64, some in between, and the last ones up to `largest`.
fn sizes(largest: usize) -> Vec<usize> {
    let steps = (65..largest - 8).step_by(29);
    (1..=64).chain(steps).chain(largest - 8..=largest).collect()
}

#[test]
fn udp_of_every_size_arrives_byte_for_byte_in_both_directions() {
    let pair = Pair::new(1);
    let routers = pair.routers("count = 1");
    let [web, far] = &pair.pods;
    let mut datagrams = 0;
    // What fits the overlay's MTU of 1450 behind the headers of IP and UDP.
    for (there, back, largest) in [(far.v4(), web.v4(), 1422), (far.v6(), web.v6(), 1402)] {
        let sizes = sizes(largest);
        for (from, to, address) in [(web, far, &there), (far, web, &back)] {
            let answers = from.udp(to, address, &sizes);
            assert_eq!(answers.answered, sizes.len() as u64, "{answers:?}");
            assert!(answers.lost <= 2, "{answers:?}");
            datagrams += 2 * answers.answered;
        }
    }
    for router in &routers {
        let hooks = router.ask("status")["carried"].as_u64().expect("a count");
        let carried = workers(router)[0] + hooks;
        assert!(carried >= datagrams, "{carried} of {datagrams}");
        router.assert_no_drops_of_workers();
    }
}

/// A pod's kernel fragments what is larger than its MTU; later fragments have
/// no ports.
#[test]
fn fragments_of_pods_pass_as_they_are() {
    let pair = Pair::new(2);
    let routers = pair.routers("count = 2");
    let [web, far] = &pair.pods;
    for address in [far.v4(), far.v6()] {
        for size in [1500, 3000, 9000] {
            let answered = web.namespace.ping(&address, 5, size);
            assert_eq!(answered, 5, "{address} with {size} bytes");
        }
    }
    for router in &routers {
        router.assert_no_drops_of_workers();
    }
}

fn workers(router: &Daemon) -> Vec<u64> {
    let status = router.ask("status");
    let workers = status["workers"].as_array().expect("workers");
    let packets = workers.iter().map(|w| w["rx_packets"].as_u64());
    packets.map(|n| n.expect("a number")).collect()
}

/// One way, so that a node's workers receive from one port only: the pods at
/// the sender, the underlay at the receiver.
#[test]
fn many_flows_use_every_queue_of_pod_and_underlay() {
    const FLOWS: u32 = 64;
    const EACH: u32 = 50;
    const ALL: u64 = (FLOWS * EACH) as u64;
    let pair = Pair::new(2);
    let routers = pair.routers_with(&Setup {
        workers: "count = 2",
        hooks: Some(Hooks::Xdp),
        ..Setup::default()
    });
    for (from, address) in [(0, pair.pods[1].v4()), (1, pair.pods[0].v6())] {
        let to = 1 - from;
        let queues = || {
            let mut seen = Vec::new();
            for (node, interface) in [(from, "veth-web"), (to, "eth0")] {
                for queue in 0..2 {
                    seen.push(pair.nodes[node].redirected(interface, queue));
                }
            }
            seen.extend(workers(&routers[from]));
            seen.extend(workers(&routers[to]));
            seen
        };
        let before = queues();
        let flows = pair.pods[from].udp_flows(&pair.pods[to], &address, FLOWS, EACH);
        assert_eq!((u64::from(FLOWS), 0), (flows.flows, flows.bad), "{flows:?}");
        assert!(flows.received >= ALL * 98 / 100, "{flows:?}");
        let carried: Vec<u64> = queues().iter().zip(&before).map(|(a, b)| a - b).collect();
        // Queues of the sender's pod and the receiver's underlay, then workers.
        for (at, n) in carried.iter().enumerate() {
            assert!(*n >= ALL / 8, "number {at} of {carried:?}");
        }
    }
}

/// Linux offers CRC32c to veth as an offload: a pod's packet has a zero field.
/// The kernels here may lack SCTP, so the packets are made by hand.
#[test]
fn sctp_leaves_with_a_good_crc32c_and_a_complete_one_is_not_touched() {
    let pair = Pair::new(1);
    let routers = pair.routers("count = 1");
    let [web, far] = &pair.pods;
    let file = pair.bed.directory.path().join("sctp.pcap");
    let mut capture = far.capture(&file, 6, "sctp");
    let finished = || routers[0].ask("status")["workers"][0]["checksums_finished"].as_u64();
    let before = finished().expect("a number");
    let mut sent = Vec::new();
    let families = [(web.v4(), far.v4()), (web.v6(), far.v6())];
    for (tag, (source, destination)) in (1..).zip(&families) {
        // A wrong one shows that tshark looks, and that nobody mends it.
        for (crc, good) in [("zero", 1), ("right", 1), ("wrong", 0)] {
            let arrives = web.sctp(source, destination, tag, crc);
            sent.push(format!("0x{tag:08x}\t0x{arrives}\t{good}"));
        }
    }
    capture.ended("six SCTP packets");
    assert_eq!(finished(), Some(before + 2), "the zero ones");
    let fields = [
        "sctp.init_initiate_tag",
        "sctp.checksum",
        "sctp.checksum.status",
    ];
    let seen = captured(&file, "sctp", &["sctp.checksum:CRC-32C"], &fields);
    assert_eq!(seen, sent, "tag, CRC32c, whether it is good");
}
