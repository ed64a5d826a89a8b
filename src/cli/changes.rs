//! `viaduct port` and `viaduct route`: changes of a running router.

use clap::Subcommand;
use serde_json::json;

use super::client;

#[derive(Subcommand)]
pub(super) enum PortCommand {
    /// Until it is removed, also after a restart of the router; the keys are those of [[pods]]
    Add {
        /// The host's end of the pod's veth pair
        #[arg(long)]
        interface: String,
        /// An address of the pod; may be given several times
        #[arg(long = "address", required = true)]
        addresses: Vec<String>,
        /// Its name; the interface's if not given
        #[arg(long)]
        name: Option<String>,
        /// Its network, where there are several
        #[arg(long)]
        network: Option<String>,
        /// It has come from another node, with its address
        #[arg(long)]
        moved: bool,
        /// Its MAC; learned if not given
        #[arg(long)]
        mac: Option<String>,
        /// What it may send, in bits a second
        #[arg(long)]
        egress_rate: Option<u64>,
        /// What it may send at once, in bits
        #[arg(long)]
        egress_burst: Option<u64>,
        /// What it may receive, in bits a second
        #[arg(long)]
        ingress_rate: Option<u64>,
        /// What it may receive at once, in bits
        #[arg(long)]
        ingress_burst: Option<u64>,
        /// Where its packets are looked at first: tc or xsk; as hooks.pods says if not given
        #[arg(long)]
        attach: Option<String>,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Remove a pod that was added
    Del {
        /// Its name
        name: String,
        #[command(flatten)]
        ask: client::Ask,
    },
}

impl PortCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add {
                interface,
                addresses,
                name,
                network,
                moved,
                mac,
                egress_rate,
                egress_burst,
                ingress_rate,
                ingress_burst,
                attach,
                ask,
            } => {
                let entry = json!({
                    "interface": interface, "addresses": addresses, "name": name, "network": network,
                    "mac": mac, "moved": moved,
                    "egress_rate": egress_rate, "egress_burst": egress_burst,
                    "ingress_rate": ingress_rate, "ingress_burst": ingress_burst,
                    "attach": attach,
                });
                client::change(&json!({ "add": "port", "entry": entry }), &ask)
            }
            Self::Del { name, ask } => client::change(&json!({ "del": "port", "key": name }), &ask),
        }
    }
}

#[derive(Subcommand)]
pub(super) enum RouteCommand {
    /// Until it is removed, also after a restart of the router; the keys are those of [[routes]]
    Add {
        /// What the other node's pods have their addresses from
        prefix: String,
        /// The other node's underlay address
        #[arg(long)]
        vtep: String,
        /// The other node's VTEP MAC
        #[arg(long)]
        vtep_mac: Option<String>,
        /// The other node's name, instead of its VTEP MAC
        #[arg(long)]
        peer: Option<String>,
        /// Another address of the other node; may be given several times
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// The network, where there are several
        #[arg(long)]
        network: Option<String>,
        #[command(flatten)]
        ask: client::Ask,
    },
    /// Remove a route that was added
    Del {
        /// Its prefix
        prefix: String,
        #[command(flatten)]
        ask: client::Ask,
    },
}

impl RouteCommand {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add {
                prefix,
                vtep,
                vtep_mac,
                peer,
                addresses,
                network,
                ask,
            } => {
                let entry = json!({
                    "prefixes": [prefix], "vtep": vtep, "vtep_mac": vtep_mac, "node": peer, "addresses": addresses,
                    "network": network,
                });
                client::change(&json!({ "add": "route", "entry": entry }), &ask)
            }
            Self::Del { prefix, ask } => {
                client::change(&json!({ "del": "route", "key": prefix }), &ask)
            }
        }
    }
}
