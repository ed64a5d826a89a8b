//! What outer headers say of quality of service: DSCP as configured, ECN carried through.

mod common;

use common::{Pair, Setup, captured_lengths, wait_for};

/// Pings the far pod with this TOS, IPv4 and IPv6: how many are answered of ten.
fn ping(pair: &Pair, tos: u8) -> u32 {
    let [web, far] = &pair.pods;
    let answered = [far.v4(), far.v6()].map(|address| {
        web.namespace
            .ping_with(&["-Q", &tos.to_string()], &address, 5, 56)
    });
    answered.iter().sum()
}

/// With `dscp` so configured, packets of DSCP 46 and ECT(0) have this outer DSCP, by workers and by
/// the kernel.
fn outer_dscp(configured: &str, over_v6: &[u8], outer: u8) {
    let network = format!("dscp = \"{configured}\"");
    let setup = Setup {
        network: &network,
        over_v6,
        ..Setup::default()
    };
    let mut pair = Pair::new(&setup);
    wait_for("neighbours to know each other", || ping(&pair, 0) == 10);
    // In the outer header, which is the first.
    let right = if over_v6.is_empty() {
        format!("vxlan && ip.dsfield.dscp#1 == {outer} && ip.dsfield.ecn#1 == 2")
    } else {
        format!("vxlan && ipv6.tclass.dscp#1 == {outer} && ipv6.tclass.ecn#1 == 2")
    };
    let about = "vxlan && (icmp.type == 8 || icmpv6.type == 128)";
    let filters = [&*format!("{about} && {right}"), about];
    for path in ["workers", "kernel"] {
        let [marked, all] = captured_lengths(&pair.bed, &pair.nodes[0], filters, || {
            assert_eq!(ping(&pair, 46 << 2 | 2), 10, "{path}");
        });
        assert_eq!((marked.len(), all.len()), (10, 10), "{configured}, {path}");
        if path == "workers" {
            pair.routers[0].kill();
            wait_for("the kernel's path", || ping(&pair, 0) == 10);
        }
    }
}

#[test]
fn dscp_is_copied_fixed_or_cleared() {
    outer_dscp("copy", &[], 46);
    outer_dscp("10", &[], 10);
    outer_dscp("clear", &[], 0);
}

#[test]
fn dscp_over_ipv6() {
    outer_dscp("copy", &[1, 2], 46);
    outer_dscp("10", &[1, 2], 10);
}

/// RFC 6040, section 4.2: the underlay's mark reaches pods that understand it; what cannot carry it
/// is dropped.
#[test]
fn congestion_marks_of_the_underlay_reach_pods() {
    let pair = Pair::new(&Setup::default());
    wait_for("neighbours to know each other", || ping(&pair, 0) == 10);
    let [a, _] = &pair.nodes;
    let [_, far] = &pair.pods;
    a.switch.run("nft add table bridge marks");
    a.switch
        .run("nft add chain bridge marks passing { type filter hook forward priority 0 ; }");
    a.switch
        .run("nft add rule bridge marks passing ip daddr 192.0.2.2 udp dport 8472 ip ecn set ce");
    let file = pair.bed.directory.path().join("far.pcap");
    let marked = "(icmp[0]=8 and ip[1]&3=3) or (icmp6 and ip6[40]=128 and ip6[1]&0x30=0x30)";
    let mut capture = far.capture(&file, 10, marked);
    assert_eq!(ping(&pair, 2), 10, "ECT(0)");
    capture.ended("ten marked packets");
    assert_eq!(pair.routers[1].dropped("congestion-marked"), 0);
    assert_eq!(ping(&pair, 0), 0, "not ECT");
    assert_eq!(pair.routers[1].dropped("congestion-marked"), 10);
}
