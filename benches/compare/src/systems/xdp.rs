//! The ceiling of another way: XDP programs push, pull and redirect; nothing else sees a packet.

use super::programs::Programs;
use super::{Outer, System};
use crate::bed::{Bed, UNDERLAY};
use crate::plan::Case;

pub(crate) struct XdpOnly {
    programs: Programs,
}

impl XdpOnly {
    pub(crate) fn start(bed: &Bed) -> anyhow::Result<Self> {
        let mut programs = Programs::load(&["push", "pull"])?;
        programs.set_headers(bed, &Outer::new()?)?;
        programs.set_devices(bed)?;
        programs.attach("pull", UNDERLAY, &bed.node())?;
        for pod in bed.shape.pods() {
            programs.attach("push", &pod.host_interface(), &bed.node())?;
        }
        Ok(Self { programs })
    }
}

impl System for XdpOnly {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        self.programs.count(case).map(Some)
    }
}
