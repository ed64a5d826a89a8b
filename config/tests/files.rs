//! What can be wrong with the file as a whole, and what a sound one gives.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viaduct_config::{
    Config, Hook, MAX_FILE_BYTES, Polling, Position, RuntimeConfig, XdpMode, derive_vtep_mac,
};

fn error(path: &Path) -> (Option<Position>, String) {
    let errors = Config::load(path).expect_err("an unusable file was accepted");
    let only = errors.iter().next().unwrap();
    assert_eq!((errors.iter().len(), &only.file), (1, &path.to_owned()));
    assert!(
        errors
            .to_string()
            .starts_with(&format!("{}:", path.display())),
        "{errors}"
    );
    (only.position, only.message.clone())
}

#[test]
fn unusable_files() {
    let directory = tempfile::tempdir().unwrap();
    let (position, message) = error(&directory.path().join("missing.toml"));
    assert!(
        position.is_none()
            && message.contains("No such file")
            && message.contains("check the path"),
        "{message}"
    );

    let (_, message) = error(directory.path());
    assert!(
        message.contains("directory") && message.contains("give a file inside it"),
        "{message}"
    );

    let latin = directory.path().join("latin.toml");
    fs::write(&latin, b"[node]\nname = \"caf\xe9\"").unwrap();
    let (position, message) = error(&latin);
    assert_eq!(
        position,
        Some(Position {
            line: 2,
            column: 12
        })
    );
    assert!(message.contains("UTF-8"), "{message}");

    let large = directory.path().join("large.toml");
    fs::File::create(&large)
        .unwrap()
        .set_len(MAX_FILE_BYTES + 1)
        .unwrap();
    let (_, message) = error(&large);
    assert!(message.contains("16 MiB"), "{message}");
    // A device has no size to look at.
    assert!(error(Path::new("/dev/zero")).1.contains("16 MiB"));
}

#[test]
fn defaults_and_places() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(
        b"[node]\nname = 'node-a'\n[underlay]\ninterface = 'eth0'\n\
          [[networks]]\nname = 'n'\nvni = 7\npod_prefixes = ['10.1.0.0/24']\ncluster_prefixes = ['10.1.0.0/16']\n\
          [[pods]]\naddresses = ['10.1.0.2']\ninterface = 'veth-x'\n\
          [[routes]]\nprefixes = ['10.1.1.0/24']\nvtep = '192.0.2.2'\nnode = 'node-b'\n",
    )
    .unwrap();
    let config = Config::load(file.path()).unwrap();
    assert_eq!(config.file, file.path());
    assert_eq!(
        (
            config.underlay.xdp,
            config.underlay.address,
            config.underlay.queues
        ),
        (XdpMode::Auto, None, None)
    );
    assert_eq!((config.workers.count, &config.workers.cpus), (1, &None));
    assert_eq!(
        (config.workers.polling, config.workers.max_ports),
        (Polling::Adaptive, 110)
    );
    assert_eq!(config.workers.heartbeat_timeout, Duration::from_millis(500));
    assert_eq!(config.workers.gather, Duration::from_micros(25));
    assert_eq!(config.runtime, RuntimeConfig::default());
    assert_eq!(
        (config.networks[0].port, config.networks[0].vtep_mac),
        (8472, derive_vtep_mac("node-a", 7))
    );
    assert_eq!(config.networks[0].vtep_mac6, config.networks[0].vtep_mac);
    assert_eq!(
        (
            config.pods[0].name.as_str(),
            config.pods[0].network,
            config.pods[0].mac
        ),
        ("veth-x", 0, None)
    );
    assert_eq!(config.routes[0].vtep_mac, derive_vtep_mac("node-b", 7));
    let lines = [
        config.underlay.line,
        config.networks[0].line,
        config.pods[0].line,
        config.routes[0].line,
    ];
    assert_eq!(lines, [4, 6, 12, 15]);
}

#[test]
fn paths_of_a_node_are_its_own() {
    let runtime = RuntimeConfig::default();
    assert_eq!(
        runtime.socket("a.b"),
        PathBuf::from("/run/viaduct/a.b.sock")
    );
    assert_eq!(runtime.lock("a.b"), PathBuf::from("/run/viaduct/a.b.lock"));
    assert_eq!(
        runtime.pins("a.b"),
        PathBuf::from("/sys/fs/bpf/viaduct/a_b")
    );
}

/// The cost does not grow with the product of pod prefixes and routes: that would take minutes here.
#[test]
fn many_routes_are_checked_in_reasonable_time() {
    use std::fmt::Write as _;
    let mut text = String::from(
        "[node]\nname='a'\n[underlay]\ninterface='e'\n[[networks]]\nname='n'\nvni=1\ncluster_prefixes=['10.0.0.0/8']\n\
         pod_prefixes=[",
    );
    for index in 0..20_000 {
        write!(text, "'10.{}.{}.0/26',", index >> 8, index & 255).unwrap();
    }
    text.push_str("]\n[[routes]]\nvtep='192.0.2.2'\nnode='b'\nprefixes=[");
    for index in 0..20_000 {
        write!(text, "'10.{}.{}.0/24',", index >> 8, index & 255).unwrap();
    }
    text.push_str("]\n");
    let began = std::time::Instant::now();
    let errors = Config::parse(&text, "large").unwrap_err();
    assert_eq!(errors.iter().len(), 20_000);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

/// This node's MAC in packets over one family may be another node's in packets over the other.
#[test]
fn a_route_is_compared_with_the_own_mac_of_its_family() {
    let with = |vtep: &str, mac: &str| {
        let text = format!(
            "node.name = 'a'\nunderlay.interface = 'eth0'\n\
             networks = [{{name = 'n', vni = 1, pod_prefixes = ['10.1.0.0/16'], cluster_prefixes = ['10.0.0.0/8'],\
             vtep_mac = '02:00:00:00:00:04', vtep_mac6 = '02:00:00:00:00:06'}}]\n\
             routes = [{{vtep = '{vtep}', vtep_mac = '{mac}', prefixes = ['10.2.0.0/16']}}]\n"
        );
        Config::parse(&text, "own.toml").map_err(|errors| format!("{errors:?}"))
    };
    let (four, six) = ("02:00:00:00:00:04", "02:00:00:00:00:06");
    for (vtep, own, others) in [("192.0.2.2", four, six), ("fd00:99::2", six, four)] {
        let refused = with(vtep, own).expect_err("this node's own");
        assert!(refused.contains("own VTEP MAC"), "{refused}");
        let config = with(vtep, others).expect("another node's");
        assert_eq!(config.networks[0].vtep_mac.to_string(), four);
        assert_eq!(config.networks[0].vtep_mac6.to_string(), six);
    }
}

/// Keys that are about XDP speak for the underlay's hook; without them it is for the kernel to say.
#[test]
fn keys_about_xdp_speak_for_the_hook() {
    let hook = |keys: &str| {
        let text = format!(
            "[node]\nname = 'node-a'\n[underlay]\ninterface = 'eth0'\n{keys}\n\
             [[networks]]\nname = 'n'\nvni = 7\npod_prefixes = ['10.1.0.0/24']\ncluster_prefixes = ['10.1.0.0/16']\n"
        );
        Config::parse(&text, "test.toml").unwrap().underlay.hook
    };
    assert_eq!(hook(""), None);
    assert_eq!(hook("hook = 'tc'"), Some(Hook::Tc));
    for keys in ["hook = 'xdp'", "xdp = 'generic'", "queues = 2"] {
        assert_eq!(hook(keys), Some(Hook::Xdp), "{keys}");
    }
}
