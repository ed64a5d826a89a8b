//! What the configuration says, as each plane wants to be told.

use viaduct_config::{Config, Mac, OnExit, Polling, RateConfig, XdpMode};
use viaduct_control::{
    AgentOptions, NetworkOptions, OwnAddresses, PortOptions, RouteOptions, SlowPathOptions,
    UnderlayOptions,
};
use viaduct_encap::ecn::Dscp;
use viaduct_encap::{MacAddr, Vni};
use viaduct_fib::{Limits, Rate};
use viaduct_router::RouterOptions;

use crate::host::Underlay;

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
    }
}

/// The configuration's pods, as the agent wants them.
pub(crate) fn port_options(config: &Config) -> Vec<PortOptions> {
    let ports = config.pods.iter().map(|p| PortOptions {
        name: p.name.clone(),
        interface: p.interface.clone(),
        network: p.network,
        addresses: p.addresses.clone(),
        mac: p.mac.map(mac),
        limits: Limits {
            from_pod: p.egress.map(rate),
            to_pod: p.ingress.map(rate),
        },
    });
    ports.collect()
}

/// The configuration's routes, as the agent wants them.
pub(crate) fn route_options(config: &Config) -> Vec<RouteOptions> {
    let routes = config.routes.iter().map(|r| RouteOptions {
        network: r.network,
        prefixes: r.prefixes.clone(),
        addresses: r.addresses.clone(),
        vtep: r.vtep,
        udp_checksum6: r.udp_checksum6,
        vtep_mac: mac(r.vtep_mac),
    });
    routes.collect()
}

pub(crate) fn agent_options(config: &Config, underlay: &Underlay) -> AgentOptions {
    let networks = config.networks.iter().map(|n| NetworkOptions {
        name: n.name.clone(),
        vni: vni(n.vni),
        udp_port: n.port,
        vtep_mac: mac(n.vtep_mac),
        udp_checksum6: n.udp_checksum6,
        dscp: n.dscp.map_or(Dscp::Copy, Dscp::Fixed),
        pod_prefixes: n.pod_prefixes.clone(),
        cluster_prefixes: n.cluster_prefixes.clone(),
    });
    AgentOptions {
        underlay: UnderlayOptions {
            name: underlay.link.name.clone(),
            fixed: OwnAddresses {
                v4: config.underlay.address,
                v6: config.underlay.address6,
            },
            addresses: underlay.addresses,
        },
        networks: networks.collect(),
        ports: port_options(config),
        routes: route_options(config),
        max_mtu: viaduct_router::MAX_MTU,
        keep_ports: config.slow_path.on_exit == OnExit::FailClosed,
        slow_path: config.slow_path.enabled.then(|| SlowPathOptions {
            device: config.slow_path.device.clone(),
            device6: config.slow_path.device6.clone(),
            masquerade: config.slow_path.masquerade,
            remove_at_end: config.slow_path.on_exit == OnExit::Remove,
            saved: config.runtime.settings(&config.node.name),
        }),
    }
}
