//! The XDP programs of pktgen.bpf.c and their maps: the receiver, and the generator of frames.
#![allow(unsafe_code)]

use anyhow::{Context, anyhow, bail};
use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
};
use aya::{Ebpf, EbpfLoader, Pod, TestRun as _};

use crate::Hook;
use crate::namespace::Namespace;
use crate::traffic::{Flow, Header, LENGTHS, Origin, Traffic};

/// Interfaces that one generator may send on.
pub const MOST_INTERFACES: usize = 256;
/// `BUCKETS` of pktgen.bpf.c.
const BUCKETS: u32 = 1184;
const PATTERN: usize = 16;
/// Frames that one turn of the kernel's loop sends.
const BATCH: u32 = 64;
/// `struct generator` of pktgen.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Generator {
    next: u64,
    interval: u64,
    backlog: u64,
    pub(crate) sent: u64,
    pub(crate) bytes: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    flow: u32,
    turn: u32,
    pattern: [u8; PATTERN],
}

/// `struct arrivals` of pktgen.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrivals {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) reordered: u64,
    pub(crate) foreign: u64,
}

// SAFETY: plain data without padding: 7 x 8 + 2 x 4 + 16 bytes.
unsafe impl Pod for Generator {}
// SAFETY: plain data without padding: 4 x 8 bytes.
unsafe impl Pod for Arrivals {}
// SAFETY: plain data without padding: 96 + 2 x 4 bytes.
unsafe impl Pod for Header {}
// SAFETY: plain data without padding: 4 + 4 x 2 + 4 bytes.
unsafe impl Pod for Flow {}

/// Latencies as the receiver has counted them, by bucket.
pub(crate) type Latencies = Vec<u64>;

/// The loaded programs.
pub(crate) struct Programs {
    ebpf: Ebpf,
    links: Vec<FdLink>,
    /// A frame to begin with, as long as the longest.
    frame: Vec<u8>,
}

impl Programs {
    /// Loads them for this traffic; `run` marks its packets.
    pub(crate) fn load(run: u32, traffic: &Traffic, origins: &[Origin]) -> anyhow::Result<Self> {
        let lengths = origins.first().map_or(1, |o| traffic.lengths(o).len());
        debug_assert!(lengths <= LENGTHS);
        let tunnelled = u32::from(traffic.outer.is_some());
        let pattern = traffic.pattern();
        let length = u32::try_from(pattern.len())?;
        let port = traffic.outer.as_ref().map_or(8472, |outer| outer.port);
        let count = u32::try_from(origins.len() * LENGTHS)?;
        let ebpf = EbpfLoader::new()
            .override_global("tunnelled", &tunnelled, true)
            .override_global("flow_count", &traffic.flows, true)
            .override_global("pattern_length", &length, true)
            .override_global("run_id", &run, true)
            .override_global("tunnel_port", &port, true)
            .map_max_entries("flows", traffic.flows)
            .map_max_entries("expected", traffic.flows)
            .map_max_entries("headers", count.max(1))
            .load(aya::include_bytes_aligned!(concat!(
                env!("OUT_DIR"),
                "/pktgen.bpf.o"
            )))
            .context("cannot load the XDP programs: is this root, and a kernel with BTF?")?;
        let mut programs = Self {
            ebpf,
            links: Vec::new(),
            frame: Vec::new(),
        };
        for name in ["generate", "receive"] {
            programs
                .program_mut(name)?
                .load()
                .with_context(|| format!("the kernel refuses the program {name}"))?;
        }
        programs.write_traffic(traffic, origins)?;
        Ok(programs)
    }

    fn write_traffic(&mut self, traffic: &Traffic, origins: &[Origin]) -> anyhow::Result<()> {
        let mut headers: Array<_, Header> = self.map_mut("headers")?.try_into()?;
        let mut longest = 0;
        for (place, origin) in (0u32..).zip(origins) {
            for (at, length) in (0u32..).zip(traffic.lengths(origin)) {
                let header = traffic.header(origin, length);
                longest = longest.max(header.length);
                headers.set(place * u32::try_from(LENGTHS)? + at, header, 0)?;
            }
        }
        self.frame = vec![0; longest as usize];
        let mut flows: Array<_, Flow> = self.map_mut("flows")?.try_into()?;
        let interfaces = u32::try_from(origins.len())?;
        for n in 0..traffic.flows {
            flows.set(n, traffic.flow(n, interfaces.max(1)), 0)?;
        }
        let mut pattern = [0; PATTERN];
        for (at, place) in pattern.iter_mut().zip(traffic.pattern()) {
            *at = u8::try_from(*place)?;
        }
        let mut generators: Array<_, Generator> = self.map_mut("generators")?.try_into()?;
        let generator = Generator {
            pattern,
            ..Generator::default()
        };
        generators.set(0, generator, 0)?;
        Ok(())
    }

    /// Says which interfaces frames are sent on. To be called in their namespace.
    pub(crate) fn set_interfaces(&mut self, origins: &[Origin]) -> anyhow::Result<()> {
        let mut map: DevMap<_> = self.map_mut("interfaces")?.try_into()?;
        for (place, origin) in (0u32..).zip(origins) {
            map.set(place, origin.ifindex, None, 0)
                .with_context(|| format!("{} cannot send frames", origin.name))?;
        }
        Ok(())
    }

    /// Counts and drops what arrives there, until this is dropped.
    pub(crate) fn attach(
        &mut self,
        name: &str,
        namespace: &Namespace,
        hook: Hook,
    ) -> anyhow::Result<()> {
        let link = match hook {
            Hook::Xdp => self.attach_xdp(name, namespace)?,
            // A kernel without tcx has nobody who redirects past XDP.
            Hook::Tc => match self.attach_tc(name, namespace) {
                Ok(link) => link,
                Err(_) => self.attach_xdp(name, namespace)?,
            },
        };
        self.links.push(link);
        Ok(())
    }

    fn attach_tc(&mut self, name: &str, namespace: &Namespace) -> anyhow::Result<FdLink> {
        let program = self.ebpf.program_mut("receive_tc").context("no program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        namespace.with(|| {
            let id = program.attach_with_options(name, TcAttachType::Ingress, first)?;
            Ok(FdLink::try_from(program.take_link(id)?)?)
        })
    }

    fn attach_xdp(&mut self, name: &str, namespace: &Namespace) -> anyhow::Result<FdLink> {
        let program = self.program_mut("receive")?;
        namespace.with(|| {
            let origin = crate::namespace::interface(name)?;
            let mut result = Err(anyhow!("no mode"));
            for mode in [XdpMode::Driver, XdpMode::Skb] {
                let attached = program.attach_to_if_index(origin.ifindex, mode);
                match attached {
                    Ok(id) => return Ok(FdLink::try_from(program.take_link(id)?)?),
                    Err(e) => result = Err(anyhow!(chain(&e))),
                }
            }
            result.with_context(|| {
                format!("cannot receive on {name}: another XDP program may be attached to it")
            })
        })
    }

    /// What the generator has counted since it was loaded.
    pub(crate) fn generator(&self) -> anyhow::Result<Generator> {
        let map: Array<_, Generator> = self.map("generators")?.try_into()?;
        Ok(map.get(&0, 0)?)
    }

    /// Prepares a run: `interval` lies between two frames, 1/256 ns; 0: flat out.
    pub(crate) fn set_interval(&mut self, interval: u64) -> anyhow::Result<()> {
        let generator = Generator {
            next: 0,
            interval,
            backlog: interval.saturating_mul(u64::from(BATCH)),
            first: 0,
            last: 0,
            ..self.generator()?
        };
        let mut map: Array<_, Generator> = self.map_mut("generators")?.try_into()?;
        Ok(map.set(0, generator, 0)?)
    }

    /// Sends frames until the thread is interrupted. To be called in the interfaces' namespace.
    pub(crate) fn generate(&self) -> anyhow::Result<()> {
        let program = self.ebpf.program("generate").context("no program")?;
        let program: &Xdp = program.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat: i32::MAX.cast_unsigned(),
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        match program.test_run(options) {
            Ok(_) => Ok(()),
            Err(e) if chain(&e).contains("os error 4") => Ok(()),
            Err(e) => bail!("the kernel does not send frames: {}", chain(&e)),
        }
    }

    /// What has arrived since the programs were loaded.
    pub(crate) fn arrivals(&self) -> anyhow::Result<Arrivals> {
        let map: PerCpuArray<_, Arrivals> = self.map("arrived")?.try_into()?;
        let mut sum = Arrivals::default();
        for one in map.get(&0, 0)?.iter() {
            sum.packets += one.packets;
            sum.bytes += one.bytes;
            sum.reordered += one.reordered;
            sum.foreign += one.foreign;
        }
        Ok(sum)
    }

    pub(crate) fn latencies(&self) -> anyhow::Result<Latencies> {
        let map: PerCpuArray<_, u64> = self.map("latencies")?.try_into()?;
        let counts = (0..BUCKETS).map(|n| Ok(map.get(&n, 0)?.iter().sum()));
        counts.collect()
    }

    fn map(&self, name: &str) -> anyhow::Result<&aya::maps::Map> {
        self.ebpf.map(name).context("no map")
    }

    fn map_mut(&mut self, name: &str) -> anyhow::Result<&mut aya::maps::Map> {
        self.ebpf.map_mut(name).context("no map")
    }

    fn program_mut(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).context("no program")?;
        Ok(program.try_into()?)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// The middle of a bucket's nanoseconds.
pub(crate) fn nanoseconds(bucket: usize) -> u64 {
    let (bucket, shift) = match bucket as u64 {
        small @ 0..64 => (small, 0),
        large => (large % 32 + 32, large / 32 - 1),
    };
    (bucket << shift) + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the program puts them there.
    fn bucket(value: u64) -> usize {
        let shift = value.max(32).ilog2() - 5;
        usize::try_from(32 * u64::from(shift) + (value >> shift)).unwrap()
    }

    #[test]
    fn a_buckets_middle_is_near_its_values() {
        for value in [0, 1, 31, 32, 63, 64, 65, 1000, 123_456, 5_000_000_000] {
            let middle = nanoseconds(bucket(value));
            assert!(middle.abs_diff(value) <= value / 32, "{value} {middle}");
        }
    }
}
