//! The file as written: every value optional and with its place, so that `validate` can report all that is missing or
//! wrong in one go. Only unknown keys and wrong types are left to serde.

use serde::Deserialize;
use toml::Spanned;

pub(crate) type Text = Spanned<String>;
pub(crate) type Number = Spanned<i64>;
pub(crate) type List<T> = Spanned<Vec<Spanned<T>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Root {
    pub(crate) node: Option<Spanned<Node>>,
    pub(crate) underlay: Option<Spanned<Underlay>>,
    #[serde(default)]
    pub(crate) workers: Workers,
    #[serde(default)]
    pub(crate) hooks: Hooks,
    #[serde(default)]
    pub(crate) runtime: Runtime,
    #[serde(default)]
    pub(crate) slow_path: SlowPath,
    pub(crate) gossip: Option<Spanned<Gossip>>,
    #[serde(default)]
    pub(crate) networks: Vec<Spanned<Network>>,
    #[serde(default)]
    pub(crate) pods: Vec<Spanned<Pod>>,
    #[serde(default)]
    pub(crate) routes: Vec<Spanned<Route>>,
    #[serde(default)]
    pub(crate) delegations: Vec<Spanned<Delegation>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Node {
    pub(crate) name: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Underlay {
    pub(crate) interface: Option<Text>,
    pub(crate) address: Option<Text>,
    pub(crate) address6: Option<Text>,
    pub(crate) hook: Option<Text>,
    pub(crate) xdp: Option<Text>,
    pub(crate) queues: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Workers {
    pub(crate) count: Option<Number>,
    pub(crate) cpus: Option<List<i64>>,
    pub(crate) polling: Option<Text>,
    pub(crate) gather_us: Option<Number>,
    pub(crate) max_ports: Option<Number>,
    pub(crate) flow_cache: Option<Number>,
    pub(crate) heartbeat_timeout_ms: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Hooks {
    pub(crate) pods: Option<Text>,
    pub(crate) settled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Runtime {
    pub(crate) directory: Option<Text>,
    pub(crate) bpffs: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct SlowPath {
    pub(crate) enabled: Option<bool>,
    pub(crate) device: Option<Text>,
    pub(crate) device6: Option<Text>,
    pub(crate) masquerade: Option<bool>,
    pub(crate) on_exit: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Gossip {
    pub(crate) cluster: Option<Text>,
    pub(crate) key_file: Option<Text>,
    pub(crate) peers: Option<List<String>>,
    pub(crate) port: Option<Number>,
    pub(crate) state: Option<Text>,
    pub(crate) trust: Option<Text>,
    pub(crate) authority: Option<Text>,
    pub(crate) certificate: Option<Text>,
    pub(crate) allowed_prefixes: Option<List<String>>,
    pub(crate) allowed_addresses: Option<List<String>>,
    pub(crate) probe_interval_ms: Option<Number>,
    pub(crate) probe_timeout_ms: Option<Number>,
    pub(crate) suspicion_ms: Option<Number>,
    #[serde(default)]
    pub(crate) nodes: Vec<Spanned<GossipNode>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct GossipNode {
    pub(crate) name: Option<Text>,
    pub(crate) key: Option<Text>,
    pub(crate) allowed_prefixes: Option<List<String>>,
    pub(crate) allowed_addresses: Option<List<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Delegation {
    pub(crate) network: Option<Text>,
    pub(crate) prefix: Option<Text>,
    pub(crate) node: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Network {
    pub(crate) name: Option<Text>,
    pub(crate) vni: Option<Number>,
    pub(crate) port: Option<Number>,
    pub(crate) vtep_mac: Option<Text>,
    pub(crate) vtep_mac6: Option<Text>,
    pub(crate) udp_checksum6: Option<Text>,
    pub(crate) dscp: Option<Text>,
    pub(crate) pod_prefixes: Option<List<String>>,
    pub(crate) cluster_prefixes: Option<List<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Pod {
    pub(crate) name: Option<Text>,
    pub(crate) interface: Option<Text>,
    pub(crate) network: Option<Text>,
    pub(crate) addresses: Option<List<String>>,
    pub(crate) mac: Option<Text>,
    #[serde(default)]
    pub(crate) moved: bool,
    pub(crate) egress_rate: Option<Number>,
    pub(crate) egress_burst: Option<Number>,
    pub(crate) ingress_rate: Option<Number>,
    pub(crate) ingress_burst: Option<Number>,
    pub(crate) attach: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct Route {
    pub(crate) network: Option<Text>,
    pub(crate) prefixes: Option<List<String>>,
    pub(crate) addresses: Option<List<String>>,
    pub(crate) vtep: Option<Text>,
    pub(crate) udp_checksum6: Option<Text>,
    pub(crate) vtep_mac: Option<Text>,
    pub(crate) node: Option<Text>,
}
