//! Many changes at once, while packets flow.

mod common;

use std::time::{Duration, Instant};

use common::{Setup, Testbed, vtep_mac, wait_for};

/// Changes that are made at once.
const CHANGES: u32 = 100_000;
/// Datagrams a second.
const RATE: u32 = 10_000;

/// In a network that the kernel does not carry, so that the workers' tables are all there is to change.
#[test]
#[ignore = "a measurement: ./dev bench burst"]
fn a_hundred_thousand_routes_come_and_go() {
    let setup = Setup {
        more: "[[networks]]\nname = \"wide\"\nvni = 2\npod_prefixes = [\"10.95.0.0/24\"]\n\
               cluster_prefixes = [\"10.95.0.0/16\", \"10.96.0.0/11\"]\n",
        ..Setup::default()
    };
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let pods = [0, 1].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let routers = [(0, 2), (1, 1)].map(|(n, peer): (usize, u8)| {
        bed.router_with(&nodes[n], &[&pods[n]], &[(peer, &vtep_mac(peer))], &setup)
    });
    let stream = pods[0].udp_stream(&pods[1], &pods[1].v4(), 5005, RATE);
    std::thread::sleep(Duration::from_secs(2));
    let before = stream.lost();
    let prefixes = (0..CHANGES).map(|n| {
        let [_, high, middle, low] = (n * 4).to_be_bytes();
        format!("\"10.{}.{middle}.{low}/30\"", 96 + high)
    });
    let prefixes = prefixes.collect::<Vec<_>>().join(",");
    let text = format!(
        "[[routes]]\nnetwork = \"wide\"\nprefixes = [{prefixes}]\nvtep = \"192.0.2.2\"\nvtep_mac = \"{}\"\n",
        vtep_mac(2)
    );
    let mut last = stream.arrived()[0];
    for (what, add, count) in [("come", true, CHANGES + 2), ("gone", false, 2)] {
        let begin = Instant::now();
        routers[0].reload(|before| {
            if add {
                before + &text
            } else {
                before.replace(&text, "")
            }
        });
        wait_for("all of them", || {
            routers[0].ask("status")["routes"] == count
        });
        println!(
            "{CHANGES} routes have {what} after {} ms; lost so far: {}",
            begin.elapsed().as_millis(),
            stream.lost() - before
        );
        stream.goes_on();
        let now = stream.arrived()[0];
        println!("{} datagrams meanwhile", now - last);
        last = now;
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stream.lost() - before, 0, "datagrams");
}
