//! The namespaces of two nodes and their pods; or of pods that are joined by a veth pair each.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use viaduct_encap::MacAddr;

use crate::bed::{GATEWAY_MAC, POD_MTU, UNDERLAY};
use crate::host::{Host, Hosts, run};
use crate::node::{Local, Node, Remote, Vtep};
use crate::plan::Case;
use crate::systems::System;

/// A pod's interface.
const POD: &str = "eth0";
/// The pods' gateway, which exists as a neighbour only.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The two sides: node n is 198.18.0.n, its pods are in 10.244.n.0/24.
#[derive(Clone, Copy)]
pub(super) struct Side(u8);

pub(super) const SIDES: [Side; 2] = [Side(1), Side(2)];

impl Side {
    const fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, self.0)
    }
    const fn mac(self) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, self.0])
    }
    const fn vtep(self) -> Vtep {
        Vtep {
            address: self.node(),
            underlay_mac: self.mac(),
            mac: MacAddr([2, 0, 0, 0, 1, self.0]),
        }
    }
    const fn prefix(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 0)
    }
    pub(super) const fn pod(self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 2 + n)
    }
    const fn pod_mac(self, n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 2 + self.0, n])
    }
    fn remote(self) -> Remote {
        Remote {
            vtep: self.vtep(),
            prefixes: vec![self.prefix()],
        }
    }
}

/// Pods of both sides.
pub(super) fn pods(hosts: &mut Hosts, count: u8) -> anyhow::Result<[Vec<Host>; 2]> {
    let mut pods = [Vec::new(), Vec::new()];
    for (side, pods) in SIDES.iter().zip(&mut pods) {
        for n in 0..count {
            let pod = hosts.add(&format!("pod{}-{n}", side.0))?;
            prepare(&pod)?;
            pods.push(pod);
        }
    }
    Ok(pods)
}

/// Has a pod's sockets find ports, and none of its connections leave TIME_WAIT early.
fn prepare(pod: &Host) -> anyhow::Result<()> {
    let mut command = pod.command("sysctl");
    run(command.args([
        "-qw",
        "net.ipv4.ip_local_port_range=1024 65535",
        "net.ipv4.tcp_max_tw_buckets=1000000",
    ]))?;
    pod.batch("ip", "link set lo up\n")
}

/// Joins the pods of both sides by a veth pair each.
pub(super) fn join(pods: &[Vec<Host>; 2]) -> anyhow::Result<()> {
    for (n, (from, to)) in (0..).zip(pods[0].iter().zip(&pods[1])) {
        from.batch(
            "ip",
            &format!(
                "link add {POD} address {} mtu {POD_MTU} type veth peer name {POD} address {} mtu {POD_MTU} netns {}\n",
                SIDES[0].pod_mac(n),
                SIDES[1].pod_mac(n),
                to.name
            ),
        )?;
        for (pod, side, other) in [(from, SIDES[0], SIDES[1]), (to, SIDES[1], SIDES[0])] {
            pod.batch(
                "ip",
                &format!(
                    "address add {}/32 dev {POD}\nlink set {POD} up\nroute add {}/32 dev {POD}\n",
                    side.pod(n),
                    other.pod(n)
                ),
            )?;
        }
    }
    Ok(())
}

/// Makes two nodes with these pods, and their underlay.
pub(super) fn nodes(hosts: &mut Hosts, pods: &[Vec<Host>; 2]) -> anyhow::Result<Vec<Node>> {
    let nodes = [hosts.add("node1")?, hosts.add("node2")?];
    nodes[0].batch(
        "ip",
        &format!(
            "link add {UNDERLAY} address {} type veth peer name {UNDERLAY} address {} netns {}\n",
            SIDES[0].mac(),
            SIDES[1].mac(),
            nodes[1].name
        ),
    )?;
    let mut all = Vec::new();
    for (place, (host, pods)) in nodes.iter().zip(pods).enumerate() {
        let (side, other) = (SIDES[place], SIDES[1 - place]);
        let mut lines = format!(
            "link set lo up\naddress add {}/16 dev {UNDERLAY}\nlink set {UNDERLAY} up\n\
             neighbour add {} lladdr {} dev {UNDERLAY} nud permanent\n",
            side.node(),
            other.node(),
            other.mac()
        );
        let mut locals = Vec::new();
        for (n, pod) in (0..).zip(pods) {
            let local = Local {
                address: side.pod(n),
                mac: side.pod_mac(n),
                interface: format!("h{n}"),
            };
            writeln!(
                lines,
                "link add {} address {GATEWAY_MAC} mtu {POD_MTU} type veth peer name {POD} address {} mtu {POD_MTU} netns {}\n\
                 link set {} up",
                local.interface, local.mac, pod.name, local.interface
            )?;
            locals.push(local);
        }
        host.batch("ip", &lines)?;
        // As at a NIC; a veth has it only when it is told to.
        host.run(&format!("ethtool -K {UNDERLAY} gro on"))?;
        for (local, pod) in locals.iter().zip(pods) {
            pod.batch(
                "ip",
                &format!(
                    "address add {}/32 dev {POD}\nlink set {POD} up\nroute add {GATEWAY} dev {POD}\n\
                     route add default via {GATEWAY}\n\
                     neighbour add {GATEWAY} lladdr {GATEWAY_MAC} dev {POD} nud permanent\n",
                    local.address
                ),
            )?;
        }
        all.push(Node {
            host: host.clone(),
            name: host.name.clone(),
            folder: hosts.folder.path().to_owned(),
            vtep: side.vtep(),
            prefix: side.prefix(),
            pods: locals,
            others: vec![other.remote()],
        });
    }
    Ok(all)
}

/// Pods that are joined without anything in between: their own interfaces carry.
pub(super) struct Joined(pub(super) Vec<Host>);

impl Joined {
    fn sum(&self, case: Case) -> anyhow::Result<(u64, u64)> {
        let way = match case {
            Case::Encap => "tx",
            Case::Decap => "rx",
        };
        self.0.iter().try_fold((0, 0), |(packets, bytes), pod| {
            let more = pod.counted(POD, way)?;
            Ok((packets + more.0, bytes + more.1))
        })
    }
}

impl System for Joined {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.sum(case)?.0))
    }

    fn carried_bytes(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.sum(case)?.1))
    }
}
