//! What nodes say of themselves: many prefixes, pods that move, one prefix twice.

mod common;

use std::fs;
use std::time::Duration;

use common::{CLUSTER, Daemon, Setup, Testbed, wait_for};

#[test]
fn a_node_with_many_prefixes_says_them_in_parts() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let first = bed.gossiping_router(&nodes[0], &[], 1);
    let mut second = bed.gossiping_router(&nodes[1], &[], 1);
    first.knows(&[2]);
    second.stop();
    let file = second.file.clone();
    let text = fs::read_to_string(&file).expect("its configuration");
    let more = (0..400).map(|n| format!("\"10.244.{}.{}/30\", ", 128 + n / 64, n % 64 * 4));
    let more = more.collect::<Vec<_>>().concat();
    let many = text.replace("pod_prefixes = [", &format!("pod_prefixes = [{more}"));
    fs::write(&file, many).expect("written");
    second.start();
    wait_for("all of its prefixes", || first.ways().len() == 402);
    let said = first.ask("peers");
    let known = said["peers"]
        .as_array()
        .expect("peers")
        .iter()
        .find(|p| p["node"] == second.name);
    let prefixes = known.expect("known")["prefixes"]
        .as_array()
        .expect("a list")
        .len();
    assert_eq!(prefixes, 402);
    // It returns with others, which replace them.
    second.kill();
    fs::write(&file, text).expect("written");
    second.start();
    first.knows(&[2]);
}

#[test]
fn a_pod_that_moves_is_reached_where_it_is() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let pods = [0, 1, 2].map(|n: usize| bed.pod(&nodes[n], "web", 2));
    let mover = bed.pod(&nodes[0], "mov", 9);
    let first = bed.gossiping_router(&nodes[0], &[&pods[0], &mover], 1);
    let others = [1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[&pods[n]], 1));
    first.knows(&[2, 3]);
    others[0].knows(&[1, 3]);
    others[1].knows(&[1, 2]);
    let reached = |by: &str| {
        for pod in &pods {
            for address in [mover.v4(), mover.v6()] {
                let came = pod.namespace.ping(&address, 5, 56);
                assert_eq!(came, 5, "{by}: {address} from {}", pod.v4());
            }
            assert_eq!(
                mover.namespace.ping(&pod.v4(), 5, 56),
                5,
                "{by}: to {}",
                pod.v4()
            );
        }
    };
    reached("at home");

    nodes[0].namespace.run("ip link del veth-mov");
    mover.plug(&nodes[1]);
    let add = format!(
        "port add --interface veth-mov --moved --address {} --address {}",
        mover.v4(),
        mover.v6()
    );
    let (did, said) = others[0].command(&add.replace("--moved ", ""));
    assert!(!did && said.contains("`moved = true`"), "{said}");
    let (did, said) = others[0].command(&add);
    assert!(did, "{said}");
    let asked = format!("routes {}", mover.v4());
    wait_for("its claim to be heard", || {
        others[1].command(&asked).1.contains("has not delegated it")
    });
    let pod = format!(
        "[[pods]]\nnetwork = \"default\"\ninterface = \"veth-mov\"\naddresses = [\"{}\", \"{}\"]\n",
        mover.v4(),
        mover.v6()
    );
    let singles = [format!("{}/32", mover.v4()), format!("{}/128", mover.v6())];
    let delegations = singles.each_ref().map(|prefix| {
        format!(
            "[[delegations]]\nprefix = \"{prefix}\"\nnode = \"{}\"\n",
            others[0].name
        )
    });
    let delegations = delegations.concat();
    first.reload(|text| {
        assert!(text.contains(&pod), "{text}");
        text.replace(&pod, "") + &delegations
    });
    for router in [&first, &others[1]] {
        wait_for("the way to the pod's new place", || {
            singles.iter().all(|prefix| router.ways().contains(prefix))
        });
    }
    reached("moved");

    // And back.
    nodes[1].namespace.run("ip link del veth-mov");
    let (did, said) = others[0].command("port del veth-mov");
    assert!(did, "{said}");
    mover.plug(&nodes[0]);
    first.reload(|text| text.replace(&delegations, &pod));
    others[1].knows(&[1, 2]);
    first.knows(&[2, 3]);
    reached("back");
}

/// All nodes send to the one that was first; both are told.
#[test]
fn of_two_nodes_with_one_prefix_the_first_has_it() {
    let mut bed = Testbed::new();
    let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
    let start = |n: usize, more: &str| {
        let gossip = bed.gossip(1, CLUSTER);
        let network = if more.is_empty() {
            String::new()
        } else {
            more.to_owned()
        };
        let setup = Setup {
            more: &gossip,
            ..Setup::default()
        };
        let mut router = bed.router_with(&nodes[n], &[], &[], &setup);
        if !network.is_empty() {
            router.stop();
            let file = router.file.clone();
            let text = fs::read_to_string(&file).expect("its configuration");
            let text = text.replace("pod_prefixes = [", &format!("pod_prefixes = [{network}, "));
            fs::write(&file, text).expect("written");
            router.start();
        }
        router
    };
    // The name that comes first claims it later.
    let second = start(1, "\"10.244.77.0/24\"");
    std::thread::sleep(Duration::from_secs(2));
    let first = start(0, "\"10.244.77.0/25\"");
    let third = start(2, "");
    wait_for("the first claim", || {
        third.ways().contains(&"10.244.77.0/24".to_owned())
            && third
                .command("routes 10.244.77.7")
                .1
                .contains("goes before")
    });
    assert!(!third.ways().contains(&"10.244.77.0/25".to_owned()));
    wait_for("the later one to be told", || {
        first
            .log()
            .contains("other nodes send its packets there, not here")
    });
    wait_for("the earlier one to be told", || {
        second.log().contains("overlaps it, and goes before")
    });
    for (router, count) in [(&first, 2), (&second, 1), (&third, 1)] {
        let said = router.ask("status")["not_used"].clone();
        assert_eq!(said, count, "{}", router.name);
    }
    // And so it stays: nobody takes turns, or says it again and again.
    let all = [&first, &second, &third];
    let told = || all.map(|router| router.log().matches("10.244.77.0").count());
    std::thread::sleep(Duration::from_secs(2));
    let (ways, before) = (all.map(Daemon::ways), told());
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(all.map(Daemon::ways), ways);
    }
    assert_eq!(told(), before);
}
