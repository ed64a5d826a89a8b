//! One pod at full rate takes no more than its share from another.

mod common;

use common::{Testbed, vtep_mac};

/// `greedy` pods send as fast as they can; one sends a steady 500 datagrams a second by the same
/// worker, for some seconds: how many of them are lost, of how many.
fn lost_beside(greedy: u8) -> (u64, u64) {
    let mut bed = Testbed::new();
    let (a, b) = (bed.node(1, 1), bed.node(2, 1));
    let far = bed.pod(&b, "far", 2);
    let modest = bed.pod(&a, "modest", 2);
    let others: Vec<_> = (0..greedy)
        .map(|n| bed.pod(&a, &format!("g{n}"), 10 + n))
        .collect();
    let ra = bed.router(&a, &[&modest], &[(2, &vtep_mac(2))], "count = 1");
    let _rb = bed.router(&b, &[&far], &[(1, &vtep_mac(1))], "count = 1");
    for pod in &others {
        let (did, said) = ra.command(&format!(
            "port add --interface {} --address {}",
            pod.interface,
            pod.v4()
        ));
        assert!(did, "{said}");
    }
    let stream = modest.udp_stream(&far, &far.v4(), 5005, 500);
    let before = (stream.lost(), ra.port("veth-modest", "rx_packets"));
    let floods: Vec<_> = others.iter().map(|pod| pod.flood(&far.v4())).collect();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let flooded: u64 = others
        .iter()
        .map(|pod| ra.port(&pod.interface, "rx_packets") + ra.port(&pod.interface, "kernel_drops"))
        .sum();
    let seen = ra.port("veth-modest", "rx_packets") - before.1;
    drop(floods);
    let kernel = ra.port("veth-modest", "kernel_drops");
    stream.goes_on();
    let lost = stream.lost() - before.0;
    let taken: Vec<u64> = others
        .iter()
        .map(|pod| ra.port(&pod.interface, "rx_packets"))
        .collect();
    println!("of each greedy pod the worker took {taken:?}");
    println!(
        "{greedy} greedy pods: {flooded} packets; the modest one's: {seen}, {lost} lost, {kernel} of them in front of the worker"
    );
    assert!(flooded > 10 * seen, "{flooded} packets beside {seen}");
    (lost, seen)
}

#[test]
fn a_greedy_pod_leaves_another_its_share() {
    let (lost, sent) = lost_beside(1);
    assert!(lost * 20 < sent, "{lost} of {sent}");
}

#[test]
fn greedy_pods_leave_another_its_share() {
    // As many as a test runs of a scripting language can make busy here.
    let (lost, sent) = lost_beside(8);
    assert!(lost * 20 < sent, "{lost} of {sent}");
}
