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
    pub routes: Vec<RouteStatus>,
    /// The epoch of the forwarding table that was published last.
    pub epoch: u64,
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
    /// How many things have been added since all was there for the first time: new pods' and
    /// routes', and what somebody else had removed.
    pub added: u64,
    /// The firewall rules that are wanted.
    #[serde(skip)]
    pub(crate) ruleset: String,
    /// What others' firewall rules were found to do.
    #[serde(skip)]
    pub(crate) obstacles: Vec<String>,
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
    },
    /// They are dropped.
    Unresolved {
        /// Why.
        reason: String,
    },
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
            },
        };
        let json = serde_json::to_value(&route).unwrap();
        assert_eq!(json["state"], "resolved");
        assert_eq!(json["next_hops"][0]["address"], "192.0.2.2");
        assert_eq!(json["next_hops"][0]["mac"], "02:00:00:00:00:03");
    }
}
