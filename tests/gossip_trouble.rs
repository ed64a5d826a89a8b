//! What keeps nodes from hearing each other is told, with what mends it.

mod common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::{Daemon, Testbed, wait_for};

fn problems(router: &Daemon) -> String {
    router.ask("peers")["problems"].to_string()
}

/// Waits until `peers` has a problem with these words.
fn says(router: &Daemon, words: &[&str]) {
    let mut said = String::new();
    let what = format!("{} to say {words:?}", router.name);
    wait_for(&what, || {
        said = problems(router);
        words.iter().all(|word| said.contains(word))
    });
    let (_, text) = router.command("peers");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn who_is_heard_and_does_not_hear_is_told_on_both_sides() {
    let mut bed = Testbed::new();
    let nodes = [1, 2].map(|n| bed.node(n, 1));
    let b = &nodes[1].namespace;
    for words in [
        "add table inet cut",
        "add chain inet cut in { type filter hook input priority 0; }",
        "add rule inet cut in ip saddr 192.0.2.1 udp dport 7950 drop",
    ] {
        let done = b.command("nft").arg(words).status().expect("nft runs");
        assert!(done.success(), "{words}");
    }
    let first = bed.gossiping_router(&nodes[0], &[], 2);
    let second = bed.gossiping_router(&nodes[1], &[], 1);
    says(
        &first,
        &[
            &second.name,
            "does not hear this node",
            "open UDP port 7950",
        ],
    );
    says(&second, &["peer 192.0.2.1:7950 has not answered"]);
    b.run("nft delete table inet cut");
    first.knows(&[2]);
    second.knows(&[1]);
    for router in [&first, &second] {
        wait_for("nothing to be wrong", || problems(router) == "[]");
    }
}

/// Its state is lost: name and address are the same, its key is not. Once with another address.
#[test]
fn a_node_that_was_installed_anew_comes_back_by_one_command() {
    for moved in [false, true] {
        let mut bed = Testbed::new();
        let nodes = [1, 2, 3].map(|n| bed.node(n, 1));
        let mut routers = [0, 1, 2].map(|n: usize| bed.gossiping_router(&nodes[n], &[], 1));
        for (router, others) in routers.iter().zip([[2, 3], [1, 3], [1, 2]]) {
            router.knows(&others);
        }
        let name = routers[2].name.clone();
        routers[2].kill();
        // Without its files a start is told from the one before by the clock alone, in whole seconds.
        sleep(Duration::from_millis(1100));
        let state = bed.directory.path().join("state");
        for kind in ["key", "incarnation", "records", "claims"] {
            let _ = fs::remove_file(state.join(format!("{name}.{kind}")));
        }
        if moved {
            nodes[2]
                .namespace
                .run("ip address delete 192.0.2.3/24 dev eth0");
            nodes[2]
                .namespace
                .run("ip address add 192.0.2.33/24 dev eth0");
        }
        routers[2].start();
        let forget = format!("viaduct forget {name}");
        says(
            &routers[0],
            &["the record of", &name, "another key", &forget],
        );
        says(
            &routers[2],
            &["this node's record is refused", "another key", &forget],
        );
        wait_for("its key to be seen as changed", || {
            routers[..2]
                .iter()
                .all(|router| router.peer(&name) == "key changed")
        });
        // On a node that has not told it, too: the state is the cluster's.
        let (did, said) = routers[1].command(&format!("forget {name}"));
        assert!(did, "{said}");
        for router in &routers[..2] {
            wait_for("the new one to answer", || router.peer(&name) == "answers");
        }
        routers[0].knows(&[2, 3]);
        routers[1].knows(&[1, 3]);
        let (did, said) = routers[0].command(&format!("forget {name}"));
        assert!(!did && said.contains("it answers"), "{said}");
        wait_for("the new one to be content", || {
            problems(&routers[2]) == "[]"
        });
    }
}
