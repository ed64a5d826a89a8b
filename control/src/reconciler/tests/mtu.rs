//! How long packets may be, and what says so.

use super::*;
use crate::kernel::{PathMtuNews, RouteMtu};

const LIFETIME: Duration = Duration::from_secs(600);

fn seen(bytes: u32, expires: Option<Duration>) -> ObservedVtep {
    ObservedVtep {
        mtu: Some(RouteMtu { bytes, expires }),
        ..vtep(NeighbourState::Valid, mac(0xb2))
    }
}

fn news(mtu: u32) -> PathMtuNews {
    PathMtuNews {
        source: [192, 0, 2, 1].into(),
        destination: VTEP.into(),
        port: 8472,
        vni: Vni::new(1),
        mtu,
    }
}

impl Node {
    fn told(&mut self, news: PathMtuNews) -> bool {
        self.reconciler.note_path_mtu(&news, LIFETIME, self.now)
    }

    /// What the status says: bytes, by what, and what is left for pods.
    fn mtu(&mut self) -> (u16, MtuBy, u16) {
        let state = self.route_state();
        let RouteState::Resolved {
            mtu,
            mtu_by,
            pod_mtu,
            ..
        } = state
        else {
            panic!("{state:?}");
        };
        assert_eq!(self.next_hop(), tunnel_of(0xe0, 0xb2, mtu));
        (mtu, mtu_by, pod_mtu)
    }
}

#[test]
fn the_kernels_word_is_followed_until_it_expires() {
    let mut node = start();
    assert_eq!(node.mtu(), (1500, MtuBy::Interface, 1450));
    node.see_vtep(&seen(1450, None));
    assert_eq!(node.mtu(), (1450, MtuBy::Route, 1400));
    assert!(node.reconciler.due_vteps(node.now + LIFETIME).is_empty());
    node.see_vtep(&seen(1400, Some(1_000 * MS)));
    assert_eq!(node.mtu(), (1400, MtuBy::Path, 1350));
    assert!(node.reconciler.due_vteps(node.now + 1_000 * MS).is_empty());
    node.now += 1_050 * MS;
    assert!(node.reconciler.next_due().unwrap() <= node.now);
    assert_eq!(node.reconciler.due_vteps(node.now), [IpAddr::from(VTEP)]);
    assert!(node.reconciler.due_vteps(node.now).is_empty(), "once");
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu(), (1500, MtuBy::Interface, 1450));
}

#[test]
fn what_a_router_says_counts_where_the_kernel_has_not_learned_it() {
    let mut node = start();
    assert!(node.told(news(1300)));
    // The kernel is asked first.
    assert_eq!(node.mtu(), (1500, MtuBy::Interface, 1450));
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu(), (1300, MtuBy::Path, 1250));
    assert!(!node.told(news(1300)), "known");
    assert!(!node.told(news(1400)), "more than is known");
    node.now += LIFETIME + 50 * MS;
    assert_eq!(node.reconciler.due_vteps(node.now), [IpAddr::from(VTEP)]);
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu(), (1500, MtuBy::Interface, 1450));

    // Where the kernel has learned it, its time counts.
    assert!(node.told(news(1300)));
    node.see_vtep(&seen(1300, Some(1_000 * MS)));
    node.now += 1_050 * MS;
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu(), (1500, MtuBy::Interface, 1450));
}

#[test]
fn another_way_is_not_limited_by_what_was_said_of_the_first() {
    let router: IpAddr = [192, 0, 2, 254].into();
    let mut node = start();
    assert!(node.told(news(1300)));
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu().0, 1300);
    let other = ObservedVtep {
        paths: vec![path(Some(router), NeighbourState::Valid, mac(0xb2))],
        ..vtep(NeighbourState::Valid, mac(0xb2))
    };
    node.see_vtep(&other);
    assert_eq!(node.mtu().0, 1500);
}

#[test]
fn only_words_about_our_packets_are_believed_and_none_is_too_small() {
    let mut node = start();
    for lie in [
        PathMtuNews {
            source: [192, 0, 2, 9].into(),
            ..news(1300)
        },
        PathMtuNews {
            destination: [192, 0, 2, 9].into(),
            ..news(1300)
        },
        PathMtuNews {
            port: 4789,
            ..news(1300)
        },
        PathMtuNews {
            vni: Vni::new(2),
            ..news(1300)
        },
    ] {
        assert!(!node.told(lie), "{lie:?}");
    }
    assert!(node.told(PathMtuNews {
        vni: None,
        ..news(0)
    }));
    node.see_vtep(&vtep(NeighbourState::Valid, mac(0xb2)));
    assert_eq!(node.mtu(), (552, MtuBy::Path, 502));
    let RouteState::Resolved { warning, .. } = node.route_state() else {
        panic!("unresolved");
    };
    let warning = warning.expect("IPv6 does not fit");
    assert!(
        warning.contains("502") && warning.contains("1280"),
        "{warning}"
    );
}
