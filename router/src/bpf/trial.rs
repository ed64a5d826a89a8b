//! The hooks' programs on trial: frames that nobody has sent, for tests and the fuzzer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions};
use viaduct_fib::PortId;

use super::keys::{PrefixKey, Vtep};
use super::maps::{Entries, Mapped, Mirrored};
use super::{ClusterPrefix, Load, Settled, chain, classifier, failed, places};
use crate::error::RouterError;

/// The longest frame that comes out of [`Trial::frame`], in bytes.
const LONGEST: usize = 4096;
/// What a program gives for a packet that it sends on (`TC_ACT_REDIRECT` of `linux/pkt_cls.h`).
const REDIRECT: u32 = 7;
/// What it gives for one that it hands over (`TCX_NEXT`).
const HAND_OVER: u32 = u32::MAX;

/// What a hook does with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It sends it on by this port, as this frame.
    Carried(PortId, Vec<u8>),
    /// It leaves it to the next tier, as it came.
    HandedOver,
    /// It drops it.
    Dropped,
}

/// The programs, attached to nothing, and what they find settled.
pub struct Trial {
    ebpf: Ebpf,
    vteps: Mapped<Vtep, u32>,
    cluster: Mapped<PrefixKey, u32>,
    /// What they find settled.
    pub settled: Settled,
}

impl Trial {
    /// Loads the programs, with nothing settled; `alone`: as if their router had ended, which they do not know otherwise.
    ///
    /// # Errors
    /// When the kernel refuses them, with its verifier's log.
    pub fn load(alone: bool) -> Result<Self, RouterError> {
        // There is no worker, and no heartbeat.
        let longest = i64::MAX.unsigned_abs();
        let mut ebpf = Load {
            slots: 1,
            workers: 1,
            heartbeat_timeout_ns: if alone { 0 } else { longest },
            fail_closed: false,
            settled: true,
            reads_kernel: false,
        }
        .load()?;
        for name in ["viaduct_tc_pod", "viaduct_tc_underlay"] {
            let loaded = classifier(&mut ebpf, name)?.load();
            loaded.map_err(|e| failed(format!("cannot load {name}"))(chain(&e)))?;
        }
        Ok(Self {
            vteps: Mirrored::new("vteps", Entries::of(&mut ebpf, "vteps")?),
            cluster: Mirrored::new("cluster", Entries::of(&mut ebpf, "cluster")?),
            settled: Settled::of(&mut ebpf)?,
            ebpf,
        })
    }

    /// Says where tunnels end here: address and UDP port.
    ///
    /// # Errors
    /// When an entry cannot be written.
    pub fn set_vteps(
        &mut self,
        vteps: impl Iterator<Item = (IpAddr, u16)>,
    ) -> Result<(), RouterError> {
        let doing = "cannot note this node's VTEPs";
        self.vteps.replace(places(vteps), doing)
    }

    /// Says which prefixes are the cluster's.
    ///
    /// # Errors
    /// When an entry cannot be written.
    pub fn set_cluster(
        &mut self,
        cluster: impl Iterator<Item = ClusterPrefix>,
    ) -> Result<(), RouterError> {
        let doing = "cannot note the cluster's prefixes";
        let wanted = cluster.map(ClusterPrefix::entry).collect();
        self.cluster.replace(wanted, doing)?;
        self.settled.begin_generation()
    }

    /// Gives a frame to the program of the underlay, or of pods, as if it had come from the loopback
    /// interface of this thread's namespace, and says what became of it. The same program decides
    /// that runs for packets (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// When the kernel does not run it: a frame without a whole Ethernet header, for one.
    pub fn frame(&mut self, from_pod: bool, frame: &[u8]) -> Result<Tried, RouterError> {
        let name = if from_pod {
            "viaduct_tc_pod"
        } else {
            "viaduct_tc_underlay"
        };
        let before = self.sent()?;
        let mut out = vec![0; LONGEST];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let run = classifier(&mut self.ebpf, name)?.test_run(options);
        let run = run.map_err(|e| failed(format!("cannot try a frame with {name}"))(chain(&e)))?;
        match run.return_value {
            HAND_OVER => Ok(Tried::HandedOver),
            REDIRECT => {
                let after = self.sent()?;
                let port = after.iter().find(|(id, sent)| before.get(id) != Some(sent));
                let port = port.map(|(id, _)| *id).ok_or_else(|| {
                    RouterError::new(
                        format!("cannot try a frame with {name}"),
                        "it is not counted",
                    )
                })?;
                out.truncate(usize::try_from(run.data_size_out).unwrap_or(LONGEST));
                Ok(Tried::Carried(port, out))
            }
            _ => Ok(Tried::Dropped),
        }
    }

    fn sent(&self) -> Result<BTreeMap<PortId, u64>, RouterError> {
        let ports = self.settled.ports();
        ports
            .map(|id| Ok((id, self.settled.carried(id)?.tx_packets)))
            .collect()
    }
}
