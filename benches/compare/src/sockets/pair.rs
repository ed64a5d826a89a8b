//! One system between two nodes, and what is measured of it between their pods' sockets.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::measure::{COLD, COST, DATAGRAM, Measure, P99, Reading, SENT, SENT_AGAIN};
use super::{cold, exchange, hosts, iperf};
use crate::bed::{POD_MTU, UNDERLAY};
use crate::cpu;
use crate::host::{Host, Hosts};
use crate::measure::Astray;
use crate::plan::Case;
use crate::systems::{self, Kind, System};

/// A measurement of TCP takes whole seconds.
const LEAST: Duration = Duration::from_secs(1);
/// Carried packets and bytes may be less than those delivered by what is on its way while a system is asked, in 1,000, and
/// by the first packets of a system that has slept.
const TOLERANCE: u64 = 10;
const FIRST_PACKETS: u64 = 64;
/// Packets of a connection in each direction at least: SYN, data, FIN.
const OF_A_CONNECTION: u64 = 3;

/// What must have gone this way at least.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    packets: u64,
    bytes: u64,
}

/// From the first pods to the second ones, and back.
type Ways = [Count; 2];

/// Ends when dropped.
pub(crate) struct Pair {
    // In the order in which they end.
    _server: iperf::Server,
    /// The same system at both nodes.
    systems: Vec<Box<dyn System>>,
    nodes: Vec<Host>,
    /// Of both sides.
    pods: [Vec<Host>; 2],
    /// Whether the underlay has tso and gso.
    offloads: bool,
    kind: Kind,
    _hosts: Hosts,
}

impl Pair {
    /// With pods for so many cold transfers.
    pub(crate) fn start(kind: Kind, transfers: u32, viaduct: &Path) -> anyhow::Result<Self> {
        let count = u8::try_from(transfers)
            .ok()
            .filter(|count| (1..=200).contains(count))
            .with_context(|| format!("{transfers} repeats: 1 to 200 are possible"))?;
        let mut all = Hosts::new()?;
        let pods = hosts::pods(&mut all, count)?;
        let (nodes, systems) = if kind == Kind::None {
            hosts::join(&pods)?;
            let ends = pods.clone().map(|pods| Box::new(hosts::Joined(pods)) as _);
            (Vec::new(), ends.into())
        } else {
            let nodes = hosts::nodes(&mut all, &pods)?;
            let started: anyhow::Result<Vec<_>> = nodes
                .iter()
                .map(|node| systems::start_at(kind, node, viaduct))
                .collect();
            let nodes = nodes.into_iter().map(|node| node.host);
            (nodes.collect(), started?)
        };
        let log = all.folder.path().join("iperf3.log");
        let pair = Self {
            _server: iperf::Server::start(&pods[1][0], &log)?,
            systems,
            nodes,
            pods,
            offloads: true,
            kind,
            _hosts: all,
        };
        for n in 0..usize::from(count) {
            pair.meet(n)?;
        }
        pair.pause(true)?;
        Ok(pair)
    }

    pub(crate) fn has_underlay(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// One measurement; cold transfers are of pods that have not been used in another round.
    pub(crate) fn measured(
        &mut self,
        measure: Measure,
        round: u32,
        time: Duration,
    ) -> anyhow::Result<Reading> {
        self.set_offloads(measure.offloads())?;
        self.pause(false)?;
        let result = self.awake(measure, round, time);
        self.pause(true)?;
        result
    }

    fn awake(&mut self, measure: Measure, round: u32, time: Duration) -> anyhow::Result<Reading> {
        let n = match measure {
            Measure::Cold => usize::try_from(round)?,
            _ => 0,
        };
        self.meet(n)?;
        let before = self.carried()?;
        let (reading, least) = self.measure(measure, n, round, time)?;
        self.check_carrier(before, least)?;
        Ok(reading)
    }

    /// The measurement, and what must have been carried for that.
    fn measure(
        &self,
        measure: Measure,
        n: usize,
        round: u32,
        time: Duration,
    ) -> anyhow::Result<(Reading, Ways)> {
        let ends = exchange::Ends {
            from: self.pods[0][n].namespace(),
            to: self.pods[1][n].namespace(),
            address: address(n),
        };
        let there = |count| [count, Count::default()];
        let packets = |packets| Count { packets, bytes: 0 };
        match measure {
            Measure::Cold => {
                let (from, to) = (&self.pods[0][n], &self.pods[1][n]);
                let reading = cold::transfer(from, to, ends.address)?;
                let bytes = u64::try_from(COLD)?;
                Ok((reading, there(Count { packets: 0, bytes })))
            }
            Measure::Tcp1 | Measure::Tcp1Plain => self.throughput(1, time),
            Measure::Tcp8 | Measure::Tcp8Plain => self.throughput(8, time),
            Measure::Requests => {
                let mut trips = exchange::requests(&ends, time)?;
                let count = packets(u64::try_from(trips.len())?);
                let mut part = |part| exchange::percentile(&mut trips, part).context("no trip");
                let reading = Reading {
                    value: part(0.5)?,
                    beside: vec![(P99.name, part(0.99)?)],
                };
                Ok((reading, [count; 2]))
            }
            Measure::Connections => {
                let opened = exchange::connections(&ends, round, time)?;
                let reading = Reading {
                    value: f64::from(opened.connections) / opened.time.as_secs_f64(),
                    beside: Vec::new(),
                };
                let least = packets(u64::from(opened.connections) * OF_A_CONNECTION);
                Ok((reading, [least; 2]))
            }
            Measure::Datagrams => {
                let delivered = exchange::datagrams(&ends, time)?;
                ensure!(delivered.received > 0, "no datagram was delivered");
                let by_second = |count: u64| {
                    #[expect(clippy::cast_precision_loss, reason = "a rate")]
                    let count = count as f64;
                    count / delivered.time.as_secs_f64()
                };
                let reading = Reading {
                    value: by_second(delivered.received),
                    beside: vec![(SENT.name, by_second(delivered.sent))],
                };
                let least = Count {
                    packets: delivered.received,
                    bytes: delivered.received * u64::try_from(DATAGRAM)?,
                };
                Ok((reading, there(least)))
            }
        }
    }

    fn throughput(&self, flows: u32, time: Duration) -> anyhow::Result<(Reading, Ways)> {
        let seconds = time.max(LEAST).as_secs_f64().ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some seconds"
        )]
        let whole = seconds as u64;
        // Watched within the transfer: neither its begin nor its end counts.
        let watched = Duration::from_secs(whole).saturating_sub(cpu::MARGIN * 2);
        let (processors, sent) = cpu::watched(watched, || {
            iperf::send(&self.pods[0][0], address(0), flows, whole)
        })?;
        ensure!(sent.bytes_per_s > 0.0, "nothing was delivered");
        let reading = Reading {
            value: sent.bytes_per_s * 8e-9,
            beside: vec![
                (COST.name, processors / sent.bytes_per_s * 1e9),
                (SENT_AGAIN.name, sent.sent_again),
            ],
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "some gigabytes"
        )]
        let bytes = sent.bytes as u64;
        Ok((reading, [Count { packets: 0, bytes }, Count::default()]))
    }

    /// Has both pods of a pair know their ways, and a system that has slept wake up.
    fn meet(&self, n: usize) -> anyhow::Result<()> {
        let ping = format!("ping -n -q -c 1 -W 1 {}", address(n));
        let mut result = Ok(String::new());
        for _ in 0..10 {
            result = self.pods[0][n].run(&ping);
            if result.is_ok() {
                return Ok(());
            }
            if viaduct_pktgen::is_interrupted() {
                bail!("interrupted");
            }
        }
        result.map(|_| ()).context("the pods do not meet")
    }

    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        self.systems
            .iter()
            .try_for_each(|system| system.pause(pause))
    }

    /// Switches segmentation offload at both ends of the underlay, and looks whether it is so.
    fn set_offloads(&mut self, on: bool) -> anyhow::Result<()> {
        if on == self.offloads || self.nodes.is_empty() {
            return Ok(());
        }
        let state = if on { "on" } else { "off" };
        for node in &self.nodes {
            node.run(&format!("ethtool -K {UNDERLAY} tso {state} gso {state}"))?;
            // An XDP program at the other end keeps it off; the kernel's device has none.
            if !on || self.kind == Kind::Kernel {
                let shown = node.run(&format!("ethtool -k {UNDERLAY}"))?;
                let line = format!("tcp-segmentation-offload: {state}");
                ensure!(
                    shown.lines().any(|shown| shown.starts_with(&line)),
                    "the underlay's tso does not go {state}"
                );
            }
        }
        self.offloads = on;
        Ok(())
    }

    /// What the systems say to have carried: into the tunnel and out of it, there and back.
    fn carried(&mut self) -> anyhow::Result<[[Count; 2]; 2]> {
        let mut ways = [[Count::default(); 2]; 2];
        for (way, count) in ways.iter_mut().enumerate() {
            let steps = [(way, Case::Encap), (1 - way, Case::Decap)];
            for ((node, case), count) in steps.into_iter().zip(count) {
                let system = &mut self.systems[node];
                let none = "it does not count what it carries";
                count.packets = system.carried(case)?.context(none)?;
                count.bytes = system.carried_bytes(case)?.context(none)?;
            }
        }
        Ok(ways)
    }

    fn check_carrier(&mut self, before: [[Count; 2]; 2], least: Ways) -> anyhow::Result<()> {
        let after = self.carried()?;
        for ((before, after), least) in before.iter().zip(&after).zip(least) {
            for (before, after) in before.iter().zip(after) {
                let packets = after.packets.saturating_sub(before.packets);
                let bytes = after.bytes.saturating_sub(before.bytes);
                enough(packets, least.packets, 1, "packets")?;
                enough(bytes, least.bytes, u64::from(POD_MTU), "bytes")?;
            }
        }
        Ok(())
    }
}

/// Of the `n`th pod of the second node.
fn address(n: usize) -> Ipv4Addr {
    hosts::SIDES[1].pod(u8::try_from(n).unwrap_or(0))
}

/// Delivered packets must be the system's work, not somebody else's.
fn enough(carried: u64, delivered: u64, unit: u64, what: &str) -> anyhow::Result<()> {
    let tolerated = delivered * TOLERANCE / 1000 + FIRST_PACKETS * unit;
    if carried + tolerated < delivered {
        bail!(Astray(format!(
            "something else carried {} of {delivered} {what}: the system has counted {carried}",
            delivered - carried
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_something_else_carried_is_an_error_of_its_own() {
        enough(990_000, 1_000_000, 1, "packets").expect("within the tolerance");
        enough(0, 64, 1, "packets").expect("the first ones");
        let error = enough(900_000, 1_000_000, 1, "packets").expect_err("too few");
        assert!(error.is::<Astray>());
        assert!(
            error.to_string().contains("100000 of 1000000 packets"),
            "{error}"
        );
    }
}
