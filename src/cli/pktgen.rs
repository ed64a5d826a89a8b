//! `viaduct pktgen`: generates packets, counts them where they come out.

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use viaduct_encap::{MacAddr, Vni};
use viaduct_pktgen::{
    Engine, Found, Hook, Limits, Namespace, Outcome, Outer, Pktgen, Plan, Size, Traffic, Trial,
    search,
};

use crate::out::say;

/// Loss that PDR allows.
const PDR_LOSS: f64 = 0.005;

/// UDP over IPv4, sent only on the interfaces that are named. Rates are of packets; lengths are of frames without
/// Ethernet's checksum, in a tunnel of the inner ones.
#[derive(clap::Args)]
pub(crate) struct PktgenArgs {
    /// Send once, or search for the highest rate without loss (NDR) and with at most 0.5 % (PDR)
    #[arg(value_enum, default_value = "run")]
    what: What,
    /// The interface to send on; several take turns, flow by flow
    #[arg(long = "interface", required = true)]
    interfaces: Vec<String>,
    /// Where it is: a name of `ip netns`, or a path
    #[arg(long)]
    netns: Option<String>,
    /// The interface where packets arrive in the end: they are counted and dropped there
    #[arg(long)]
    receive: Option<String>,
    /// Where that is
    #[arg(long)]
    receive_netns: Option<String>,
    /// Where they are counted there
    #[arg(long, value_enum, default_value = "xdp")]
    receive_hook: HookName,
    /// How to send
    #[arg(long, value_enum, default_value = "frames")]
    engine: EngineName,
    /// MAC that frames are sent to: the next router's
    #[arg(long)]
    gateway: MacAddr,
    /// Source address, if not the interface's
    #[arg(long)]
    source: Option<Ipv4Addr>,
    /// The first flow's destination
    #[arg(long)]
    destination: Ipv4Addr,
    /// How many destinations flows have
    #[arg(long, default_value_t = 1)]
    destinations: u32,
    /// Distance between two destinations
    #[arg(long, default_value_t = 1)]
    step: u32,
    /// Flows, which differ in addresses and ports and take turns
    #[arg(long, default_value_t = 1)]
    flows: u32,
    /// Bytes of a frame, or imix
    #[arg(long, default_value = "64")]
    size: Size,
    /// Packets a second; as many as possible if not given. The highest that a search tries
    #[arg(long)]
    rate: Option<u64>,
    /// Seconds; of a search, those of a trial that counts
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// How often to search
    #[arg(long, default_value_t = 1)]
    repeats: u32,
    /// The processor to send from
    #[arg(long)]
    cpu: Option<usize>,
    /// Wrap all in VXLAN, to this node
    #[arg(long, requires_all = ["vtep_mac", "peer_vtep_mac"])]
    tunnel: Option<Ipv4Addr>,
    /// Outer source address, if not the interface's
    #[arg(long, requires = "tunnel")]
    tunnel_source: Option<Ipv4Addr>,
    /// VXLAN's UDP port
    #[arg(long, default_value_t = 8472)]
    tunnel_port: u16,
    /// VXLAN's network
    #[arg(long, default_value_t = 1)]
    vni: u32,
    /// MAC of the sending VTEP
    #[arg(long, requires = "tunnel")]
    vtep_mac: Option<MacAddr>,
    /// MAC of the receiving VTEP
    #[arg(long, requires = "tunnel")]
    peer_vtep_mac: Option<MacAddr>,
    /// Answer for programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum HookName {
    /// Before the kernel has done anything; what a router's hook in tc delivers to a pod is not seen there
    Xdp,
    /// Behind that, where all comes by (Linux 6.6)
    Tc,
}

impl From<HookName> for Hook {
    fn from(name: HookName) -> Self {
        match name {
            HookName::Tc => Self::Tc,
            HookName::Xdp => Self::Xdp,
        }
    }
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum What {
    Run,
    Search,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum EngineName {
    /// XDP live frames: what arrives at a veth's other end is a frame, as from a NIC
    Frames,
    /// AF_XDP: what arrives is an skb, as from a pod
    AfXdp,
}

impl PktgenArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        let outer = match (self.tunnel, self.vtep_mac, self.peer_vtep_mac) {
            (Some(destination), Some(inner_source_mac), Some(inner_destination_mac)) => {
                let vni = Vni::new(self.vni).with_context(|| format!("no VNI: {}", self.vni))?;
                Some(Outer {
                    destination,
                    source: self.tunnel_source,
                    port: self.tunnel_port,
                    vni,
                    inner_source_mac,
                    inner_destination_mac,
                })
            }
            _ => None,
        };
        let receiver = self.receive.clone();
        Ok(Plan {
            interfaces: self.interfaces.clone(),
            namespace: Namespace::new(self.netns.as_deref()),
            receivers: receiver
                .map(|name| (name, Namespace::new(self.receive_netns.as_deref())))
                .into_iter()
                .collect(),
            hook: self.receive_hook.into(),
            engine: match self.engine {
                EngineName::Frames => Engine::Frames,
                EngineName::AfXdp => Engine::AfXdp,
            },
            traffic: Traffic {
                size: self.size,
                flows: self.flows,
                destination: self.destination,
                destinations: self.destinations,
                step: self.step,
                source: self.source,
                gateway: self.gateway,
                outer,
            },
            cpu: self.cpu,
            sleepy: false,
        })
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        ensure!(
            (0.01..=86_400.0).contains(&self.duration),
            "a duration of {} seconds: 0.01 to 86400 are possible",
            self.duration
        );
        ensure!(self.rate != Some(0), "a rate of 0 sends nothing");
        ensure!(
            (1..=1000).contains(&self.repeats),
            "1 to 1000 repeats are possible"
        );
        let mut pktgen = Pktgen::new(self.plan()?)?;
        let duration = Duration::from_secs_f64(self.duration);
        let value = match self.what {
            What::Run => {
                let outcome = once(&mut pktgen, self.rate, duration)?;
                if !self.json {
                    say(&outcome.to_text())?;
                }
                outcome.to_json()
            }
            What::Search => {
                ensure!(
                    self.receive.is_some(),
                    "a search needs --receive: what is lost is known there"
                );
                self.search(&mut pktgen, duration)?
            }
        };
        if self.json {
            say(&format!("{value:#}\n"))?;
        }
        Ok(())
    }

    fn search(&self, pktgen: &mut Pktgen, trial: Duration) -> anyhow::Result<Value> {
        let most = match self.rate {
            Some(rate) => rate,
            None => highest(pktgen, trial)?,
        };
        let mut all = [Vec::new(), Vec::new()];
        for _ in 0..self.repeats {
            for (found, loss) in all.iter_mut().zip([0.0, PDR_LOSS]) {
                let limits = Limits {
                    loss,
                    least: (most / 1000).max(1),
                    most,
                    precision: 0.01,
                    trial,
                };
                found.push(search(&limits, |rate, duration| {
                    one_trial(pktgen, rate, duration)
                })?);
            }
        }
        let [ndr, pdr] = all.map(|found| Repeated::new(&found));
        if !self.json {
            say(&format!("NDR  {ndr}\nPDR  {pdr}\n"))?;
        }
        Ok(json!({"ndr": ndr.to_json(), "pdr": pdr.to_json()}))
    }
}

/// A little more than what arrives when as much as possible is sent: no loss-free rate is above it.
fn highest(pktgen: &mut Pktgen, trial: Duration) -> anyhow::Result<u64> {
    let outcome = once(pktgen, None, trial / 4)?;
    let arrives = outcome.counted.received_rate();
    ensure!(
        arrives > 0.0,
        "nothing arrives:\n{}",
        outcome.to_text().trim_end()
    );
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate"
    )]
    let highest = (arrives * 1.2) as u64;
    Ok(highest.max(1000))
}

fn one_trial(pktgen: &mut Pktgen, rate: u64, duration: Duration) -> anyhow::Result<Trial> {
    let outcome = once(pktgen, Some(rate), duration)?;
    if outcome.interrupted {
        bail!("ended by a signal");
    }
    Ok(Trial {
        sent_rate: outcome.counted.sent_rate(),
        loss: outcome.loss(),
        fell_short: outcome.fell_short(),
    })
}

/// With a line that says how it goes, where somebody looks.
fn once(pktgen: &mut Pktgen, rate: Option<u64>, duration: Duration) -> anyhow::Result<Outcome> {
    let mut err = std::io::stderr();
    let shown = err.is_terminal();
    let outcome = pktgen.run(rate, duration, |progress| {
        if shown {
            let _ = write!(err, "\r{progress}, lost {:<12}", progress.lost());
            let _ = err.flush();
        }
    });
    if shown {
        let _ = write!(err, "\r{:80}\r", "");
    }
    outcome
}

/// What several searches found: the median, and how far they are apart.
struct Repeated {
    /// In order; those that found nothing are not among them.
    rates: Vec<f64>,
    nothing: usize,
    generator_limited: bool,
}

impl Repeated {
    fn new(found: &[Found]) -> Self {
        let mut rates: Vec<_> = found.iter().filter_map(|f| f.rate).collect();
        rates.sort_unstable_by(f64::total_cmp);
        Self {
            nothing: found.len() - rates.len(),
            rates,
            generator_limited: found.iter().any(|f| f.generator_limited),
        }
    }

    fn median(&self) -> Option<f64> {
        self.rates.get(self.rates.len() / 2).copied()
    }

    fn to_json(&self) -> Value {
        json!({
            "packets_per_s": self.median(),
            "least": self.rates.first(),
            "most": self.rates.last(),
            "repeats": self.rates.len() + self.nothing,
            "without_result": self.nothing,
            "generator_limited": self.generator_limited,
        })
    }
}

impl std::fmt::Display for Repeated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.median(), &self.rates[..]) {
            (Some(median), [least, .., most]) => {
                write!(f, "{median:.0} packets/s, {least:.0} to {most:.0}")?;
            }
            (Some(rate), _) => write!(f, "{rate:.0} packets/s")?,
            (None, _) => write!(f, "none: packets are lost at any rate that was tried")?,
        }
        if self.generator_limited {
            write!(
                f,
                ", which is all that was sent: the true rate may be higher"
            )?;
        }
        if self.nothing > 0 && !self.rates.is_empty() {
            write!(f, "; {} searches found none", self.nothing)?;
        }
        Ok(())
    }
}
