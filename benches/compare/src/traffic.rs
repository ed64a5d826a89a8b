//! The generator for a point, on a bed.

use viaduct_encap::Vni;
use viaduct_pktgen::{Hook, Outer, Pktgen, Plan, Traffic};

use crate::bed::{self, Bed, Pod, UNDERLAY};
use crate::plan::{Case, Point};

/// Where packets end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Counted and dropped where they come out of the node.
    Counted,
    /// The far end sends them back; counted at the pod.
    Returned,
    /// Nobody takes them.
    Open,
    /// Counted and dropped where they enter the node: the generator is measured alone.
    Next,
}

pub(crate) fn generator(
    bed: &Bed,
    point: &Point,
    end: End,
    cpu: usize,
    sleepy: bool,
) -> anyhow::Result<Pktgen> {
    let (pods, far) = (bed.pods(), bed.far());
    let pod_ends = || {
        let pods = bed.shape.pods().map(|pod| (pod.interface(), bed.pods()));
        pods.collect::<Vec<_>>()
    };
    let node_ends = || {
        let pods = bed.shape.pods();
        let pods = pods.map(|pod| (pod.host_interface(), bed.node()));
        pods.collect::<Vec<_>>()
    };
    let receivers = match (end, point.case) {
        (End::Next, Case::Encap) => node_ends(),
        (End::Next, Case::Decap) => vec![(UNDERLAY.to_owned(), bed.node())],
        (End::Open, _) => Vec::new(),
        (End::Counted, Case::Encap) => vec![(UNDERLAY.to_owned(), far.clone())],
        (End::Returned, _) | (End::Counted, Case::Decap) => pod_ends(),
    };
    // At pods, systems may redirect past XDP: bpf_redirect_peer.
    let hook = match (end, point.case) {
        (End::Returned, _) | (End::Counted, Case::Decap) => Hook::Tc,
        _ => Hook::Xdp,
    };
    let (interfaces, namespace) = match point.case {
        Case::Encap => (bed.shape.pods().map(Pod::interface).collect(), pods),
        Case::Decap => (vec![UNDERLAY.to_owned()], far),
    };
    Pktgen::new(Plan {
        interfaces,
        namespace,
        receivers,
        hook,
        engine: point.source.engine(),
        traffic: match point.case {
            Case::Encap => from_pods(point),
            Case::Decap => to_pods(point),
        },
        cpu: Some(cpu),
        sleepy,
    })
}

fn from_pods(point: &Point) -> Traffic {
    let destinations = point.flows.min(point.shape.routes);
    Traffic {
        size: point.size,
        flows: point.flows,
        destination: bed::far_pod(0),
        destinations,
        step: 256 * (point.shape.routes / destinations),
        source: None,
        gateway: bed::GATEWAY_MAC,
        outer: None,
    }
}

fn to_pods(point: &Point) -> Traffic {
    Traffic {
        size: point.size,
        flows: point.flows,
        destination: Pod(0).address(),
        destinations: point.shape.pods,
        step: 1,
        source: Some(bed::far_pod(0)),
        gateway: bed::NODE_MAC,
        outer: Some(Outer {
            destination: bed::NODE,
            source: Some(bed::far(0)),
            port: bed::VXLAN_PORT,
            vni: Vni::new(bed::VNI).unwrap_or_else(|| unreachable!("1 is a VNI")),
            inner_source_mac: bed::far_vtep_mac(0),
            inner_destination_mac: bed::VTEP_MAC,
        }),
    }
}
