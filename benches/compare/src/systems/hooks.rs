//! Ceilings of hooks: programs in XDP or in tc push, pull and redirect; nothing else sees a packet.

use super::System;
use super::programs::{Programs, TCX, XDP};
use crate::bed::UNDERLAY;
use crate::node::Node;
use crate::plan::Case;

pub(crate) struct Hooks {
    programs: Programs,
}

impl Hooks {
    /// In XDP at all interfaces of the node.
    pub(crate) fn xdp(node: &Node) -> anyhow::Result<Self> {
        let mut programs = Programs::load(XDP, &["push", "pull"])?;
        programs.set_devices(node)?;
        Self::start(node, programs)
    }

    /// In tc (tcx).
    pub(crate) fn tcx(node: &Node) -> anyhow::Result<Self> {
        let mut programs = Programs::load(TCX, &["push", "pull"])?;
        programs.set_interfaces(node)?;
        Self::start(node, programs)
    }

    fn start(node: &Node, mut programs: Programs) -> anyhow::Result<Self> {
        programs.set_headers(node)?;
        let namespace = node.host.namespace();
        programs.attach("pull", UNDERLAY, &namespace)?;
        for pod in &node.pods {
            programs.attach("push", &pod.interface, &namespace)?;
        }
        Ok(Self { programs })
    }
}

impl System for Hooks {
    fn carried(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.programs.count(case)?.0))
    }

    fn carried_bytes(&mut self, case: Case) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.programs.count(case)?.1))
    }
}
