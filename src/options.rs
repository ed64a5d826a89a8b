//! What the configuration says, as each plane wants to be told.

use std::net::IpAddr;

use viaduct_config::{Config, Mac, OnExit, PodConfig, Polling, RateConfig, RouteConfig, XdpMode};
use viaduct_control::{
    AgentOptions, Binding, NetworkOptions, OwnAddresses, Place, PortOptions, RouteOptions,
    SlowPathOptions, UnderlayOptions,
};
use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Vni, VtepMacs};
use viaduct_fib::{Limits, Rate};
use viaduct_router::{Hook, RouterOptions};

/// The network namespace that this thread is in. Where the kernel cannot number it (before Linux
/// 5.14), all are one.
pub(crate) fn here() -> Place {
    Place::here(viaduct_router::network_namespace().unwrap_or_default())
}

/// The configuration checks that VNIs have 24 bits.
pub(crate) fn vni(number: u32) -> Vni {
    Vni::new(number & 0xff_ffff).expect("masked to 24 bits")
}

fn rate(rate: RateConfig) -> Rate {
    Rate::new(rate.bits_per_second, rate.burst_bits)
}

fn mac(mac: Mac) -> MacAddr {
    MacAddr(mac.0)
}

pub(crate) fn router_options(config: &Config) -> RouterOptions {
    RouterOptions {
        workers: config.workers.count,
        cpus: config.workers.cpus.clone(),
        adaptive: config.workers.polling == Polling::Adaptive,
        gather: config.workers.gather,
        max_ports: config.workers.max_ports,
        flow_cache: config.workers.flow_cache,
        heartbeat_timeout: config.workers.heartbeat_timeout,
        xdp_mode: match config.underlay.xdp {
            XdpMode::Auto => None,
            XdpMode::Native => Some(viaduct_router::XdpMode::Native),
            XdpMode::Generic => Some(viaduct_router::XdpMode::Generic),
        },
        max_queues: config
            .underlay
            .queues
            .map(|q| u32::try_from(q).unwrap_or(u32::MAX)),
        fail_closed: config.slow_path.on_exit == OnExit::FailClosed,
        pins: config.runtime.pins(&config.node.name),
        underlay: hook(config.underlay.hook),
        pods: hook(config.hooks.pods),
        settled: config.hooks.settled,
    }
}

const fn hook(hook: viaduct_config::Hook) -> Hook {
    match hook {
        viaduct_config::Hook::Xdp => Hook::Xdp,
        viaduct_config::Hook::Tc => Hook::Tc,
    }
}

/// A pod of the configuration, as the agent wants it.
pub(crate) fn port_options(pod: &PodConfig) -> PortOptions {
    PortOptions {
        name: pod.name.clone(),
        interface: pod.interface.clone(),
        network: pod.network,
        addresses: pod.addresses.clone(),
        mac: pod.mac.map(mac),
        limits: Limits {
            from_pod: pod.egress.map(rate),
            to_pod: pod.ingress.map(rate),
        },
        binding: Binding::Name,
    }
}

/// A route of the configuration, as the agent wants it.
pub(crate) fn route_options(route: &RouteConfig) -> RouteOptions {
    RouteOptions {
        network: route.network,
        prefixes: route.prefixes.clone(),
        addresses: route.addresses.clone(),
        vtep: route.vtep,
        udp_checksum6: route.udp_checksum6,
        vtep_mac: mac(route.vtep_mac),
    }
}

/// The configuration's networks, as the agent wants them.
pub(crate) fn network_options(config: &Config) -> Vec<NetworkOptions> {
    let networks = config.networks.iter().map(|n| NetworkOptions {
        name: n.name.clone(),
        vni: vni(n.vni),
        udp_port: n.port,
        vtep_macs: VtepMacs {
            v4: mac(n.vtep_mac),
            v6: mac(n.vtep_mac6),
        },
        udp_checksum6: n.udp_checksum6,
        dscp: n.dscp.map_or(Dscp::Copy, Dscp::Fixed),
        pod_prefixes: n.pod_prefixes.clone(),
        cluster_prefixes: n.cluster_prefixes.clone(),
    });
    networks.collect()
}

/// With the configuration's pods and routes, as they are written.
/// The addresses of `gossip.peers`; names are not looked up.
fn peers(config: &Config) -> Vec<IpAddr> {
    let peers = config.gossip.iter().flat_map(|gossip| &gossip.peers);
    peers.filter_map(|(host, _)| host.parse().ok()).collect()
}

pub(crate) fn agent_options(config: &Config) -> AgentOptions {
    let fixed = OwnAddresses {
        v4: config.underlay.address,
        v6: config.underlay.address6,
    };
    AgentOptions {
        underlay: UnderlayOptions {
            name: config.underlay.interface.clone(),
            fixed,
            addresses: fixed,
        },
        networks: network_options(config),
        ports: config.pods.iter().map(port_options).collect(),
        routes: config.routes.iter().map(route_options).collect(),
        peers: peers(config),
        gossip_port: config.gossip.as_ref().map(|gossip| gossip.port),
        max_mtu: viaduct_router::MAX_MTU,
        keep_ports: config.slow_path.on_exit == OnExit::FailClosed,
        slow_path: config.slow_path.enabled.then(|| SlowPathOptions {
            node: config.node.name.clone(),
            device: config.slow_path.device.clone(),
            device6: config.slow_path.device6.clone(),
            masquerade: config.slow_path.masquerade,
            remove_at_end: config.slow_path.on_exit == OnExit::Remove,
            saved: config.runtime.settings(&config.node.name),
            place: here(),
        }),
    }
}
