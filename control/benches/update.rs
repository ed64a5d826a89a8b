//! What one change costs the control plane where 1,000 nodes have 10,000 prefixes: processor time
//! of the thread that has the agent and its netlink sockets, and of the programs that it starts
//! (`nft`). Once without the kernel's path, and once with it: then the kernel really has all
//! entries. Needs root: it makes network namespaces.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code)]
mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use common::Namespace;
use ipnet::{IpNet, Ipv4Net};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use viaduct_control::kernel::{Entry, Kernel, LinkInfo};
use viaduct_control::{
    Agent, AgentHandle, AgentOptions, DataPlane, DataPlaneError, NetworkOptions, OwnAddresses,
    Place, PodSide, RouteOptions, SlowPathOptions, StatusHandle, UnderlayOptions,
};
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{PortId, Publisher};

const NODES: u16 = 1_000;
const PREFIXES: u16 = 10;
/// Changes of each kind, without the kernel's path and with it.
const CHANGES: u32 = 100;
const CHANGES_OF_PATH: u32 = 20;
/// How long the kernel's path is followed after a change: its own events come back within 100 ms.
const FOLLOW: Duration = Duration::from_millis(400);

/// A data plane that takes everything.
struct Nothing;

impl DataPlane for Nothing {
    fn attach_underlay(&mut self, _: &LinkInfo) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn detach_underlay(&mut self) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn underlay_fits(&self) -> bool {
        true
    }
    fn set_own_addresses(&mut self, _: OwnAddresses) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn forget_port(&mut self, _: PortId) {}
    fn set_port_mac(&mut self, _: PortId, _: MacAddr) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn set_origin(&mut self, _: Vni, _: IpNet, _: Option<IpAddr>) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn set_nodes(&mut self, _: &BTreeSet<IpAddr>) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn attach_port(
        &mut self,
        _: PortId,
        _: PodSide<'_>,
        _: &LinkInfo,
    ) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn detach_port(&mut self, _: PortId) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn admit_pod(&mut self, _: Vni, _: IpAddr) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn expel_pod(&mut self, _: Vni, _: IpAddr) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn set_host_addresses(&mut self, _: &[IpAddr]) -> Result<(), DataPlaneError> {
        Ok(())
    }
    fn quiesce(&mut self) {}
}

/// The n-th other node.
fn vtep(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// The route to it: ten of its prefixes, of 28 bits each.
fn route(n: u16) -> RouteOptions {
    let prefix = |k: u16| {
        let index = u32::from(n) * u32::from(PREFIXES) + u32::from(k);
        let address = Ipv4Addr::from((10 << 24) + (index << 4));
        Ipv4Net::new(address, 28).expect("a length").into()
    };
    let [high, low] = n.to_be_bytes();
    RouteOptions {
        network: 0,
        prefixes: (0..PREFIXES).map(prefix).collect(),
        addresses: Vec::new(),
        vtep: vtep(n).into(),
        udp_checksum6: false,
        vtep_mac: MacAddr([2, 0, 0, 1, high, low]),
    }
}

fn options() -> AgentOptions {
    AgentOptions {
        underlay: UnderlayOptions {
            name: "eth1".into(),
            fixed: OwnAddresses::default(),
            addresses: OwnAddresses {
                v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
                v6: None,
            },
            sockets: true,
        },
        networks: vec![NetworkOptions {
            name: "default".into(),
            vni: Vni::new(1).expect("a VNI"),
            udp_port: 8472,
            vtep_macs: VtepMacs::both(MacAddr([2, 0, 0, 0, 9, 1])),
            udp_checksum6: false,
            dscp: viaduct_encap::ecn::Dscp::default(),
            pod_prefixes: vec!["11.0.0.0/24".parse().expect("a prefix")],
            cluster_prefixes: vec!["10.0.0.0/7".parse().expect("a prefix")],
        }],
        ports: Vec::new(),
        routes: (1..=NODES).map(route).collect(),
        peers: Vec::new(),
        gossip_port: None,
        max_mtu: 1600,
        keep_ports: false,
        slow_path: None,
    }
}

/// Of this thread, which has the agent.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.expect("Linux has it").into()
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Changes of the kernel's tables by `ip`, one at a time, with time to follow each.
async fn by_kernel(site: &Namespace, what: &str, change: impl Fn(u32) -> String) {
    settle().await;
    let before = processor_time();
    let mut others = Duration::ZERO;
    for n in 0..CHANGES {
        // Starting a program is no part of it.
        let start = processor_time();
        site.ip(&change(n));
        others += processor_time().saturating_sub(start);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    settle().await;
    let before = before + others;
    show(what, processor_time().saturating_sub(before));
}

fn show(what: &str, spent: Duration) {
    let each = spent.as_secs_f64() * 1e6 / f64::from(CHANGES);
    println!("{each:9.0}  {what}");
}

/// Of programs that have ended.
fn time_of_programs() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("Linux has it");
    let of = |time: TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(micros.unsigned_abs())
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// A list of wanted routes, changed in one way or not, in turn.
fn wanted(
    all: &[RouteOptions],
    n: u32,
    change: impl Fn(&mut Vec<RouteOptions>),
) -> Vec<RouteOptions> {
    let mut wanted = all.to_vec();
    if n.is_multiple_of(2) {
        change(&mut wanted);
    }
    wanted
}

/// The changes that are asked for.
type Change = (&'static str, fn(&mut Vec<RouteOptions>));
const REQUESTS: [Change; 3] = [
    ("a prefix of a node comes or goes, by request", |routes| {
        routes[500].prefixes.pop();
    }),
    (
        "a node with its prefixes comes or goes, by request",
        |routes| {
            routes.push(route(NODES + 1));
        },
    ),
    ("a node gets another address, by request", |routes| {
        routes[500].vtep = vtep(NODES + 2).into();
    }),
];

async fn measure(site: &Namespace, handle: &AgentHandle, status: &StatusHandle) {
    println!(
        "microseconds of processor for one change, of {CHANGES}; {NODES} nodes, {} prefixes",
        status.get().routes.len()
    );
    settle().await;
    let before = processor_time();
    settle().await;
    let idle = processor_time().saturating_sub(before);
    println!("{:9.0}  nothing, for 200 ms", idle.as_secs_f64() * 1e6);

    let all = options().routes;
    for (what, change) in REQUESTS {
        let mut spent = Duration::ZERO;
        for n in 0..CHANGES {
            let wanted = wanted(&all, n, change);
            let before = processor_time();
            handle.reconfigure(Vec::new(), wanted).await.expect("sound");
            spent += processor_time().saturating_sub(before);
        }
        show(what, spent);
    }

    by_kernel(site, "the kernel's route to one node changes", |n| {
        let gateway = 2 + n % 2;
        format!("route replace 198.18.1.1/32 via 192.0.2.{gateway}")
    })
    .await;
    by_kernel(
        site,
        "a route of the kernel that concerns no node changes",
        |n| format!("route replace 203.0.113.{n}/32 via 192.0.2.2 table 100"),
    )
    .await;
    by_kernel(
        site,
        "a neighbour of the underlay that no node is behind changes",
        |n| {
            let mac = n % 2;
            format!(
                "neighbour replace 192.0.2.9 lladdr 02:00:00:00:00:0{mac} dev eth1 nud permanent"
            )
        },
    )
    .await;
    by_kernel(site, "the kernel's route to all nodes changes", |n| {
        let gateway = 2 + n % 2;
        format!("route replace 198.18.0.0/15 via 192.0.2.{gateway}")
    })
    .await;
}

/// What the kernel has of the path.
async fn entries(kernel: &Kernel) -> usize {
    let all = kernel.entries(&BTreeSet::new()).await.expect("a list");
    let route = |entry: &&Entry| matches!(entry, Entry::Route { .. });
    all.keys().filter(route).count()
}

/// Follows the agent, and shows what it spent beside the programs that it started.
async fn follow(what: &str, changes: u32, mut change: impl AsyncFnMut(u32)) {
    tokio::time::sleep(FOLLOW).await;
    let (mut spent, mut programs) = (Duration::ZERO, Duration::ZERO);
    for n in 0..changes {
        let (thread, others) = (processor_time(), time_of_programs());
        change(n).await;
        tokio::time::sleep(FOLLOW).await;
        spent += processor_time().saturating_sub(thread);
        programs += time_of_programs().saturating_sub(others);
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(changes);
    println!("{:9.0} {:9.0}  {what}", each(spent), each(programs));
}

async fn measure_path(site: &Namespace, handle: &AgentHandle) {
    let kernel = Kernel::open().expect("a socket");
    let mut routes = 0;
    while routes < usize::from(NODES * PREFIXES) {
        tokio::time::sleep(FOLLOW).await;
        routes = entries(&kernel).await;
    }
    println!(
        "\nwith the kernel's path, which has {routes} routes: microseconds of the agent, and of the \
         programs that it starts, for one change and {FOLLOW:?} after it, of {CHANGES_OF_PATH}"
    );
    // Whoever starts looks at all again several times.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = processor_time();
    entries(&kernel).await;
    let reading = processor_time().saturating_sub(before);
    println!(
        "{:9.0} {:>9}  reading all entries once",
        reading.as_secs_f64() * 1e6,
        ""
    );
    follow("nothing", CHANGES_OF_PATH, async |_| {}).await;
    let all = options().routes;
    for (what, change) in REQUESTS {
        follow(what, CHANGES_OF_PATH, async |n| {
            let wanted = wanted(&all, n, change);
            handle.reconfigure(Vec::new(), wanted).await.expect("sound");
        })
        .await;
    }
    follow(
        "somebody removes a route of ours",
        CHANGES_OF_PATH,
        async |n| {
            let node = u16::try_from(n).expect("few") + 1;
            site.ip(&format!("route del {}", route(node).prefixes[0]));
        },
    )
    .await;
    let all = usize::from(NODES * PREFIXES);
    common::eventually("all routes are back", async || {
        (entries(&kernel).await >= all).then_some(())
    })
    .await;
    follow(
        "a route that is not ours comes or goes",
        CHANGES_OF_PATH,
        async |n| {
            let verb = if n.is_multiple_of(2) { "add" } else { "del" };
            site.ip(&format!("route {verb} 10.200.0.0/24 via 192.0.2.2"));
        },
    )
    .await;
}

/// Runs an agent with these options while it is measured.
fn with_agent(
    options: AgentOptions,
    work: impl AsyncFnOnce(&AgentHandle, &StatusHandle) + Send,
    site: &Namespace,
) {
    site.run(async move || {
        let (publisher, _readers) = Publisher::new();
        let agent = Agent::start(options, publisher, Nothing).await;
        let agent = agent.expect("it starts");
        let (handle, status) = (agent.handle(), agent.status());
        let (stop, stopped) = oneshot::channel::<()>();
        let run = agent.run(async {
            let _ = stopped.await;
        });
        let measured = async {
            work(&handle, &status).await;
            let _ = stop.send(());
        };
        tokio::join!(run, measured);
    });
}

fn main() {
    let site = Namespace::new("site");
    let peer = Namespace::new("peer");
    site.connect("eth1", &peer, "eth1");
    site.ip("address add 192.0.2.1/24 dev eth1");
    for n in [2, 3] {
        let to = format!("192.0.2.{n} lladdr 02:00:00:00:01:0{n} dev eth1 nud permanent");
        site.ip(&format!("neighbour add {to}"));
    }
    site.ip("route add 198.18.0.0/15 via 192.0.2.2");
    with_agent(
        options(),
        async |handle, status| measure(&site, handle, status).await,
        &site,
    );
    let saved = std::env::temp_dir().join(format!("viaduct-bench-{}", std::process::id()));
    let path = SlowPathOptions {
        node: "bench".into(),
        device: "viaduct.1".into(),
        device6: "viaduct6.1".into(),
        masquerade: false,
        remove_at_end: true,
        saved: saved.clone(),
        place: Place::here(0),
    };
    let options = AgentOptions {
        slow_path: Some(path),
        ..options()
    };
    with_agent(
        options,
        async |handle, _| measure_path(&site, handle).await,
        &site,
    );
    let _ = std::fs::remove_file(saved);
}
