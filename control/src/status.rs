//! What the agent is doing now, as plain data.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use tokio::sync::watch;
use viaduct_encap::MacAddr;

/// What the agent is doing now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// This node's pods, by number.
    pub ports: Vec<PortStatus>,
    /// The ways to other nodes, in the order of the options.
    pub routes: RouteList,
    /// The epoch of the forwarding table that was published last.
    pub epoch: u64,
    /// The underlay interface's name: the configured one, unless it was renamed since the start.
    pub underlay_interface: String,
    /// This node's addresses on the underlay.
    pub underlay_addresses: Vec<IpAddr>,
    /// Why the underlay cannot be used; none if it can.
    pub underlay_problem: Option<String>,
    /// The kernel's path; none if there is to be none.
    pub slow_path: Option<SlowPathStatus>,
}

/// The state of the kernel's path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlowPathStatus {
    /// The VXLAN device.
    pub device: Option<String>,
    /// Whether it was there before.
    pub adopted: bool,
    /// What is wrong, in sentences.
    pub problems: Vec<String>,
    /// What is as it may be, and good to know, in sentences.
    pub notes: Vec<String>,
    /// How many things have been added since all was there for the first time: new pods' and
    /// routes', and what somebody else had removed.
    pub added: u64,
}

/// A pod's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortStatus {
    /// Its port's number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// The host's end of its veth pair.
    pub interface: String,
    /// The name that the interface is configured with, if it was renamed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
    /// Its network's name.
    pub network: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC, where it is known.
    #[serde(serialize_with = "optional_text")]
    pub mac: Option<MacAddr>,
    /// Whether the workers carry its packets.
    #[serde(flatten)]
    pub state: PortState,
    /// The number of the interface that the workers are attached to.
    pub attached_index: Option<u32>,
}

/// Whether the workers carry a pod's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum PortState {
    /// They do.
    Up,
    /// They do not.
    Down {
        /// Why not.
        reason: String,
    },
}

/// The ways to other nodes' prefixes. Copies share what they show: a change of one node's way
/// costs the same however many prefixes there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteList(Arc<Vec<NodeRoutes>>);

/// One of the wanted routes, with its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRoutes {
    pub(crate) route: Arc<NodeRoute>,
    pub(crate) state: Arc<RouteState>,
}

/// What is wanted of a route.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodeRoute {
    /// The network's name.
    pub(crate) network: String,
    pub(crate) prefixes: Vec<IpNet>,
    pub(crate) vtep: IpAddr,
    pub(crate) vtep_mac: MacAddr,
    /// The tunnel's number.
    pub(crate) tunnel: u32,
}

impl RouteList {
    pub(crate) fn new(entries: &Arc<Vec<NodeRoutes>>) -> Self {
        Self(Arc::clone(entries))
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|entry| entry.route.prefixes.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first of them.
    pub fn first(&self) -> Option<RouteStatus> {
        self.iter().next()
    }

    /// One after another.
    pub fn iter(&self) -> impl Iterator<Item = RouteStatus> {
        self.0.iter().flat_map(|NodeRoutes { route, state }| {
            route.prefixes.iter().map(|&prefix| RouteStatus {
                network: route.network.clone(),
                prefix,
                vtep: route.vtep,
                vtep_mac: route.vtep_mac,
                tunnel: route.tunnel,
                state: RouteState::clone(state),
            })
        })
    }
}

impl Serialize for RouteList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// The state of the way to one prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// The network's name.
    pub network: String,
    /// The prefix.
    pub prefix: IpNet,
    /// The other node's underlay address.
    pub vtep: IpAddr,
    /// The other node's VTEP MAC.
    #[serde(serialize_with = "text")]
    pub vtep_mac: MacAddr,
    /// The tunnel's number.
    pub tunnel: u32,
    /// Whether packets can be sent there.
    #[serde(flatten)]
    pub state: RouteState,
}

/// Whether packets can be sent to a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum RouteState {
    /// They can.
    Resolved {
        /// Where outer frames go first; of several, each flow takes one.
        next_hops: Vec<NextHopStatus>,
        /// The longest outer packet, in bytes, that the way takes.
        mtu: u16,
        /// What limits it.
        mtu_by: MtuBy,
        /// The longest packet of a pod, in bytes, that fits into one.
        pod_mtu: u16,
        /// What is wrong with the way, in a sentence; none if nothing is.
        #[serde(skip_serializing_if = "Option::is_none")]
        warning: Option<String>,
    },
    /// They are dropped.
    Unresolved {
        /// Why.
        reason: String,
    },
}

/// What limits the length of outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MtuBy {
    /// The underlay interface's MTU.
    Interface,
    /// The route's metric (`ip route ... mtu`).
    Route,
    /// What a router on the way has answered (path MTU discovery).
    Path,
}

/// A first hop on the underlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextHopStatus {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    #[serde(serialize_with = "text")]
    pub mac: MacAddr,
    /// Its share of the flows, as against that of the others.
    pub weight: u16,
}

/// Where to read the agent's status, from any thread.
#[derive(Clone, Debug)]
pub struct StatusHandle(watch::Receiver<Arc<AgentStatus>>);

impl StatusHandle {
    pub(crate) fn new(receiver: watch::Receiver<Arc<AgentStatus>>) -> Self {
        Self(receiver)
    }

    /// The status now, or as it was last if the agent has ended.
    pub fn get(&self) -> Arc<AgentStatus> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until the status differs from what this handle has seen by this call before; false
    /// if the agent has ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

fn text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "the signature is serde's")]
fn optional_text<S: Serializer>(
    value: &Option<impl Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_flat_objects() {
        let port = PortStatus {
            id: 1,
            name: "a".into(),
            interface: "pod-a".into(),
            renamed_from: None,
            network: "default".into(),
            addresses: vec!["10.42.1.10".parse().unwrap()],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            state: PortState::Down {
                reason: "gone".into(),
            },
            attached_index: None,
        };
        let json = serde_json::to_value(&port).unwrap();
        assert_eq!(json["state"], "down");
        assert_eq!(json["reason"], "gone");
        assert_eq!(json["mac"], "02:00:00:00:00:01");
        let route = RouteStatus {
            network: "default".into(),
            prefix: "10.42.2.0/24".parse().unwrap(),
            vtep: [192, 0, 2, 2].into(),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            tunnel: 0,
            state: RouteState::Resolved {
                next_hops: vec![NextHopStatus {
                    address: "192.0.2.2".parse().unwrap(),
                    mac: MacAddr([2, 0, 0, 0, 0, 3]),
                    weight: 1,
                }],
                mtu: 1400,
                mtu_by: MtuBy::Path,
                pod_mtu: 1350,
                warning: None,
            },
        };
        let json = serde_json::to_value(&route).unwrap();
        assert_eq!(json["state"], "resolved");
        assert_eq!(json["next_hops"][0]["address"], "192.0.2.2");
        assert_eq!(json["next_hops"][0]["mac"], "02:00:00:00:00:03");
        assert_eq!(json["mtu"], 1400);
        assert_eq!(json["mtu_by"], "path");
    }
}
