//! Two nodes whose pods speak to each other, and which way they do.

use std::process::Command;

use serde_json::Value;

use super::{Daemon, Hooks, Node, Pod, Setup, Stream, Testbed, must, vtep_mac, wait_for};

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

    /// The connections go on without the first node's router: what is settled by hooks, where they are the usual ones, and by
    /// the kernel otherwise.
    pub fn goes_on_alone(&self, streams: &[Stream]) {
        if Hooks::usual() != Hooks::Settled {
            return self.goes_on_by_kernel(streams);
        }
        wait_for("hooks to carry them", || {
            let (kernel, hooks) = (self.by_kernel(), self.by_hooks());
            for stream in streams {
                stream.goes_on();
            }
            self.by_hooks() > hooks + 20 && self.by_kernel() == kernel
        });
    }

    /// Packets that the hook at the first node's pod has carried, as the kernel's map has them; nobody has to run for it.
    pub fn by_hooks(&self) -> u64 {
        // `FATES` of `router/bpf/settled.h`, for port 1.
        self.carried_at(3)
    }

    /// A count of the map `carried` of the first node's hooks, of all processors.
    fn carried_at(&self, key: u32) -> u64 {
        let bpftool = |words: &[&str]| -> Value {
            let mut bpftool = Command::new("bpftool");
            serde_json::from_str(&must(bpftool.arg("-j").args(words))).expect("JSON")
        };
        let pins = self.bed.pins().join(&self.routers[0].name);
        let program = std::fs::read_dir(pins)
            .expect("pins")
            .map(|pin| {
                bpftool(&[
                    "link",
                    "show",
                    "pinned",
                    &pin.expect("a pin").path().to_string_lossy(),
                ])
            })
            .map(|link| bpftool(&["prog", "show", "id", &link["prog_id"].to_string()]))
            .find(|program| program["name"] == "viaduct_tc_pod")
            .expect("a pod's hook");
        let maps = program["map_ids"].as_array().expect("maps").iter();
        let carried = maps
            .map(ToString::to_string)
            .find(|id| bpftool(&["map", "show", "id", id])["name"] == "carried")
            .expect("the map");
        let [a, b, c, d] = key.to_le_bytes().map(|byte| byte.to_string());
        let found = bpftool(&["map", "lookup", "id", &carried, "key", &a, &b, &c, &d]);
        let processors = found["values"].as_array().expect("values").iter();
        let packets = processors.map(|it| {
            let bytes = it["value"].as_array().expect("bytes").iter().take(8);
            let bytes = bytes.map(|byte| {
                byte.as_str()
                    .and_then(|b| u8::from_str_radix(&b[2..], 16).ok())
            });
            let bytes: Vec<u8> = bytes.map(|byte| byte.expect("a byte")).collect();
            u64::from_le_bytes(bytes.try_into().expect("eight"))
        });
        packets.sum()
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
