//! A worker's turns, whole and on real sockets, neither allocate nor free.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use common::{Namespace, Testbed};
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{Network, NetworkId, Port, PortId, Publisher, ReaderFactory, Update};
use viaduct_router::{ClusterPrefix, Hook, InTc, PodSide, Router, RouterOptions, WorkerTotals};

/// Calls of all threads: the test's own sleeps while workers are counted.
static CALLS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PINS: &str = "VIADUCT_TEST_PINS";
const MACS: &str = "VIADUCT_TEST_MACS";
const WORKERS: &str = "VIADUCT_TEST_WORKERS";
/// Set where hooks are in tc.
const TC: &str = "VIADUCT_TEST_TC";
const PODS: [&str; 2] = ["veth-web", "veth-dns"];

fn mac(namespace: &Namespace) -> String {
    let link = namespace.run("ip -j link show eth0");
    let link: serde_json::Value = serde_json::from_str(&link).expect("JSON");
    link[0]["address"].as_str().expect("a MAC").to_owned()
}

#[test]
fn turns_under_traffic_neither_allocate_nor_free() {
    turns_under_traffic(1, Hook::Xdp);
}

#[test]
fn turns_on_the_trunk_neither_allocate_nor_free() {
    turns_under_traffic(2, Hook::Tc);
}

/// The first pod has a queue for each worker, the second pod and the underlay only one.
#[test]
fn turns_that_hand_packets_over_neither_allocate_nor_free() {
    turns_under_traffic(2, Hook::Xdp);
}

/// What pods send to: their interfaces at the node.
const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 3, 1]);

/// Runs the workers in a process of its own, inside the node's namespace, with
/// traffic from its pods: plain, too short-lived (ICMP errors), to nowhere
/// (punts), and of many flows.
fn turns_under_traffic(workers: u8, hook: Hook) {
    let mut bed = Testbed::new();
    let a = bed.node(1, 1);
    let web = bed.pod_with_queues(&a, "web", 2, workers);
    let dns = bed.pod(&a, "dns", 3);
    for pod in PODS {
        a.namespace
            .run(&format!("ip link set {pod} address {GATEWAY}"));
    }
    let mut command = a.namespace.command("timeout");
    command
        .arg("60")
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "counted_turns", "--ignored", "--nocapture"])
        .env(PINS, bed.pins())
        .env(WORKERS, workers.to_string())
        .env(
            MACS,
            format!("{} {}", mac(&web.namespace), mac(&dns.namespace)),
        )
        .stdin(Stdio::null());
    if hook == Hook::Tc {
        command.env(TC, "1");
    }
    let inner = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let inner = inner.expect("the test runs again");
    let mut pings: Vec<_> = ["10.244.1.3", "-t 1 10.244.1.3", "10.244.9.9"]
        .into_iter()
        .map(|to| {
            let mut ping = web.namespace.command("ping");
            let words = format!("-q -i 0.01 -c 2000 {to}");
            ping.args(words.split_whitespace())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            ping.spawn().expect("ping runs")
        })
        .collect();
    let _flows = web.udp_flood(&dns.v4(), 16);
    let output = inner.wait_with_output().expect("the test ends");
    for ping in &mut pings {
        let _ = ping.kill();
        let _ = ping.wait();
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// A router with both pods.
fn router(readers: &ReaderFactory, macs: &[MacAddr]) -> Router {
    let workers = std::env::var(WORKERS).expect("run by another test");
    let workers: usize = workers.parse().expect("a number");
    let in_tc = std::env::var_os(TC).is_some();
    let (underlay, tc) = if in_tc {
        (Hook::Tc, InTc::ToWorkers)
    } else {
        (Hook::Xdp, InTc::Nothing)
    };
    let options = RouterOptions {
        underlay,
        tc,
        workers,
        cpus: None,
        adaptive: true,
        gather: Duration::from_micros(25),
        max_ports: 2,
        flow_cache: 1024,
        heartbeat_timeout: Duration::from_millis(500),
        xdp_mode: None,
        max_queues: None,
        fail_closed: false,
        pins: std::env::var_os(PINS).expect("run by another test").into(),
    };
    let mut router = Router::start(options, readers).expect("a router");
    let vni = Vni::new(1).expect("a VNI");
    router
        .set_cluster(std::iter::once(&ClusterPrefix {
            vni,
            address: [10, 244, 0, 0].into(),
            length: 16,
            to_workers: true,
        }))
        .expect("a prefix");
    let index = |name: &str| {
        let output = Command::new("ip")
            .args(["-j", "link", "show", name])
            .output();
        let links: serde_json::Value =
            serde_json::from_slice(&output.expect("ip runs").stdout).expect("JSON");
        u32::try_from(links[0]["ifindex"].as_u64().expect("an index")).expect("small")
    };
    router
        .attach(PortId::UNDERLAY, "eth0", index("eth0"), None)
        .expect("the underlay");
    for (n, name) in (1u16..).zip(PODS) {
        let pod = PodSide {
            sockets: !in_tc,
            vni,
            mac: macs[usize::from(n) - 1],
            addresses: vec![[10, 244, 1, 1 + u8::try_from(n).expect("small")].into()],
            carried: true,
        };
        router
            .attach(PortId(n), name, index(name), Some(pod))
            .expect("a pod");
    }
    router
}

/// Not by itself: [`turns_under_traffic`] runs it.
#[test]
#[ignore = "needs the namespace and the traffic of another test"]
fn counted_turns() {
    let macs = std::env::var(MACS).expect("run by another test");
    let macs: Vec<MacAddr> = macs.split(' ').map(|m| m.parse().expect("a MAC")).collect();
    let (mut publisher, readers) = Publisher::new();
    let network = NetworkId(0);
    publisher
        .apply(Update::PutNetwork {
            id: network,
            network: Network {
                vni: Vni::new(1).expect("a VNI"),
                udp_port: 8472,
                vtep_macs: VtepMacs::both(MacAddr([2, 0, 0, 0, 1, 1])),
                overlay_v4: Some([10, 244, 1, 0].into()),
                overlay_v6: None,
            },
        })
        .expect("a network");
    for (n, mac) in (1u16..).zip(&macs) {
        let id = PortId(n);
        let port = Port {
            network,
            mac: *mac,
            gateway_mac: GATEWAY,
            mtu: 1450,
            identity: 0,
            limits: viaduct_fib::Limits::default(),
        };
        let address = IpAddr::from([10, 244, 1, 1 + u8::try_from(n).expect("small")]);
        for update in [
            Update::PutPort { id, port },
            Update::PutLocal {
                network,
                address,
                port: id,
            },
        ] {
            publisher.apply(update).expect("a port");
        }
    }
    publisher.publish().expect("published");

    let router = router(&readers, &macs);
    let seen = |router: &Router| {
        let web = router.port_totals(PortId(1));
        let totals = router.worker_totals();
        let sum = |of: fn(&WorkerTotals) -> u64| totals.iter().map(of).sum::<u64>();
        let punts: u64 = web.punts.iter().map(|(_, n)| n).sum();
        let handed = (sum(|w| w.handed_over), sum(|w| w.taken_over));
        (web.rx_packets, sum(|w| w.icmp_errors), punts, handed)
    };
    sleep(Duration::from_secs(1));
    let began = seen(&router);
    let before = CALLS.load(Ordering::Relaxed);
    sleep(Duration::from_secs(3));
    let calls = CALLS.load(Ordering::Relaxed) - before;
    let ended = seen(&router);
    assert!(ended.0 > began.0 + 100, "packets: {began:?} {ended:?}");
    assert!(ended.1 > began.1 + 20, "ICMP errors: {began:?} {ended:?}");
    assert!(ended.2 > began.2 + 20, "punts: {began:?} {ended:?}");
    // Over the trunk every worker sends to every port itself.
    if router.worker_totals().len() > 1 && std::env::var_os(TC).is_none() {
        let (began, ended) = (began.3, ended.3);
        assert!(ended.0 > began.0 + 100, "handed over: {began:?} {ended:?}");
        assert!(ended.1 > began.1 + 100, "taken over: {began:?} {ended:?}");
    }
    assert_eq!(calls, 0, "calls of the allocator");
}
