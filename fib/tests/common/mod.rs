//! Entries that several tests need.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::net::{IpAddr, Ipv4Addr};

use viaduct_encap::{MacAddr, Tunnel, TunnelParams, Vni, VtepMacs};
use viaduct_fib::{Network, NetworkId, NextHop, NextHopState, Port, PortId, TunnelId, Update};

pub(crate) fn vni(number: u32) -> Vni {
    Vni::new(number).expect("a VNI has 24 bits")
}

pub(crate) fn network(vni_number: u32) -> Network {
    Network {
        vni: vni(vni_number),
        udp_port: 8472,
        vtep_macs: VtepMacs::both(MacAddr([2, 0, 0, 0, 0, 1])),
        overlay_v4: Some(Ipv4Addr::new(10, 244, 0, 0)),
        overlay_v6: None,
    }
}

pub(crate) fn port(network: u16, identity: u32) -> Port {
    Port {
        network: NetworkId(network),
        mac: MacAddr([2, 0, 0, 0, 1, 1]),
        gateway_mac: MacAddr([2, 0, 0, 0, 1, 2]),
        mtu: 1450,
        identity,
        limits: viaduct_fib::Limits::default(),
    }
}

/// A next hop to the node `192.0.2.node`.
pub(crate) fn next_hop(node: u8) -> NextHop {
    let destination = Ipv4Addr::new(192, 0, 2, node);
    NextHop {
        vtep: destination.into(),
        state: NextHopState::Resolved(Tunnel::new(&TunnelParams {
            outer_source_mac: MacAddr([2, 0, 0, 0, 2, 0]),
            outer_destination_mac: MacAddr([2, 0, 0, 0, 2, node]),
            source: Ipv4Addr::new(192, 0, 2, 0).into(),
            destination: destination.into(),
            udp_port: 8472,
            udp_checksum6: false,
            vni: vni(1),
            inner_source_mac: MacAddr([2, 0, 0, 0, 3, 0]),
            inner_destination_mac: MacAddr([2, 0, 0, 0, 3, node]),
            hop_limit: 64,
            dscp: viaduct_encap::ecn::Dscp::default(),
            mtu: 1500,
        })),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn put_network(id: u16, vni_number: u32) -> Update {
    Update::PutNetwork {
        id: NetworkId(id),
        network: network(vni_number),
    }
}

pub(crate) fn put_port(id: u16, network: u16) -> Update {
    Update::PutPort {
        id: PortId(id),
        port: port(network, 0),
    }
}

pub(crate) fn put_local(network: u16, address: &str, port: u16) -> Update {
    Update::PutLocal {
        network: NetworkId(network),
        address: ip(address),
        port: PortId(port),
    }
}

pub(crate) fn remove_local(network: u16, address: &str) -> Update {
    Update::RemoveLocal {
        network: NetworkId(network),
        address: ip(address),
    }
}

pub(crate) fn put_next_hop(tunnel: u32, node: u8) -> Update {
    Update::PutNextHop {
        tunnel: TunnelId(tunnel),
        next_hop: next_hop(node),
    }
}

pub(crate) fn put_remote(network: u16, prefix: &str, tunnel: u32) -> Update {
    Update::PutRemote {
        network: NetworkId(network),
        prefix: prefix.parse().expect("a prefix"),
        tunnel: TunnelId(tunnel),
    }
}

pub(crate) fn remove_remote(network: u16, prefix: &str) -> Update {
    Update::RemoveRemote {
        network: NetworkId(network),
        prefix: prefix.parse().expect("a prefix"),
    }
}
