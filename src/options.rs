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
use viaduct_router::{Hook, InTc, RouterOptions};

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
        tc: in_tc(config),
    }
}

/// Where packets are looked at first: where nothing is said, in tc if the kernel has what that needs.
fn hook(said: Option<viaduct_config::Hook>) -> Hook {
    match said {
        Some(viaduct_config::Hook::Xdp) => Hook::Xdp,
        None if !viaduct_router::has_tcx() => Hook::Xdp,
        Some(viaduct_config::Hook::Tc) | None => Hook::Tc,
    }
}

/// What hooks in tc do, of which there may be none.
pub(crate) fn in_tc(config: &Config) -> InTc {
    let hooks = [config.underlay.hook, config.hooks.pods].map(hook);
    match config.hooks.settled {
        _ if !hooks.contains(&Hook::Tc) => InTc::Nothing,
        true => InTc::Settled,
        false => InTc::ToWorkers,
    }
}

/// A pod of the configuration, as the agent wants it; `usual`: where pods' packets are looked at that do not say.
pub(crate) fn port_options(pod: &PodConfig, usual: Option<viaduct_config::Hook>) -> PortOptions {
    let limited = pod.egress.is_some() || pod.ingress.is_some();
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
        // Workers measure a rate at queues of the pod's own.
        sockets: limited || hook(pod.attach.or(usual)) == Hook::Xdp,
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

/// The configuration's pods, as the agent wants them.
fn ports(config: &Config) -> Vec<PortOptions> {
    let pods = config.pods.iter();
    pods.map(|pod| port_options(pod, config.hooks.pods))
        .collect()
}

/// The addresses of `gossip.peers`; names are not looked up.
fn peers(config: &Config) -> Vec<IpAddr> {
    let peers = config.gossip.iter().flat_map(|gossip| &gossip.peers);
    peers.filter_map(|(host, _)| host.parse().ok()).collect()
}

/// With the configuration's pods and routes, as they are written.
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
            sockets: hook(config.underlay.hook) == Hook::Xdp,
        },
        networks: network_options(config),
        ports: ports(config),
        routes: config.routes.iter().map(route_options).collect(),
        peers: peers(config),
        gossip_port: config.gossip.as_ref().map(|gossip| gossip.port),
        max_mtu: viaduct_router::MAX_MTU,
        keep_ports: config.slow_path.on_exit != OnExit::Remove,
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
