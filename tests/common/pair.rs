//! Two nodes whose pods speak to each other, and which way they do.

use super::{Daemon, Node, Pod, Setup, Stream, Testbed, vtep_mac, wait_for};

/// Two nodes with a router and a pod each.
pub struct Pair {
    // Dropped in this order: a router's log is in the testbed's folder.
    pub routers: [Daemon; 2],
    pub nodes: [Node; 2],
    pub pods: [Pod; 2],
    pub bed: Testbed,
}

impl Pair {
    pub fn new(setup: &Setup<'_>) -> Self {
        Self::with_queues(setup, 1, 1, |_| {})
    }

    /// With so many queues of the underlay, unless `prepare` changes that before the routers
    /// start, and of each pod.
    pub fn with_queues(setup: &Setup<'_>, underlay: u8, pods: u8, prepare: impl Fn(&Node)) -> Self {
        let mut bed = Testbed::new();
        let (a, b) = (bed.node(1, underlay), bed.node(2, underlay));
        prepare(&a);
        prepare(&b);
        let (web, far) = (
            bed.pod_with_queues(&a, "web", 2, pods),
            bed.pod_with_queues(&b, "web", 2, pods),
        );
        let ra = bed.router_with(&a, &[&web], &[(2, &vtep_mac(2))], setup);
        let rb = bed.router_with(&b, &[&far], &[(1, &vtep_mac(1))], setup);
        for router in [&ra, &rb] {
            wait_for("the way to the other node", || {
                router.ask("routes")["routes"][0]["state"] == "resolved"
            });
        }
        Self {
            bed,
            nodes: [a, b],
            pods: [web, far],
            routers: [ra, rb],
        }
    }

    /// TCP connections between the pods, IPv4 and IPv6, from the first.
    pub fn streams(&self) -> [Stream; 2] {
        let [web, far] = &self.pods;
        [
            web.tcp_stream(far, &far.v4(), 5003),
            web.tcp_stream(far, &far.v6(), 5004),
        ]
    }

    /// Packets that the first node's kernel has put into its VXLAN device.
    pub fn by_kernel(&self) -> u64 {
        let out = self.nodes[0].namespace.run("ip -j -s link show viaduct.1");
        let all: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        all[0]["stats64"]["tx"]["packets"]
            .as_u64()
            .expect("a count")
    }

    pub fn by_worker(&self) -> u64 {
        self.routers[0].port("veth-web", "rx_packets")
    }

    /// The connections go on until so many of their packets were the kernel's, which merges segments: few of its packets can
    /// be many bytes.
    pub fn goes_on_by_kernel(&self, streams: &[Stream]) {
        let before = self.by_kernel();
        wait_for("the kernel to carry them", || {
            for stream in streams {
                stream.goes_on();
            }
            self.by_kernel() > before + 20
        });
    }

    pub fn goes_on_by_worker(&self, streams: &[Stream]) {
        // What the kernel still has to retransmit may come late.
        wait_for("the workers to have them again", || {
            let (kernel, worker) = (self.by_kernel(), self.by_worker());
            for stream in streams {
                stream.goes_on();
            }
            self.by_worker() > worker + 20 && self.by_kernel() == kernel
        });
    }
}
