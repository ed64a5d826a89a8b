//! What is measured: a base point, and points that differ from it in one dimension.

use std::fmt;

use viaduct_pktgen::{Engine, Size};

use crate::bed::Shape;

/// Which way packets go through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Case {
    /// From pods to another node
    Encap,
    /// From another node to pods
    Decap,
}

impl Case {
    pub(crate) const ALL: [Self; 2] = [Self::Encap, Self::Decap];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Encap => "encap",
            Self::Decap => "decap",
        }
    }
}

/// What arrives at the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Source {
    /// Packets of the kernel's kind, as a pod's stack sends them (by AF_XDP)
    Skb,
    /// Frames, as from a NIC (by XDP live frames)
    Frames,
}

impl Source {
    pub(crate) const ALL: [Self; 2] = [Self::Skb, Self::Frames];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Skb => "skb",
            Self::Frames => "frames",
        }
    }

    pub(crate) const fn engine(self) -> Engine {
        match self {
            Self::Skb => Engine::AfXdp,
            Self::Frames => Engine::Frames,
        }
    }
}

/// One point of measurement, for all systems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) case: Case,
    pub(crate) source: Source,
    pub(crate) size: Size,
    pub(crate) flows: u32,
    pub(crate) shape: Shape,
}

impl Point {
    const fn base(case: Case, source: Source) -> Self {
        Self {
            case,
            source,
            size: Size::Fixed(64),
            flows: 1,
            shape: Shape { pods: 1, routes: 1 },
        }
    }

    /// The base points: 64 bytes, one flow, one route, one pod, from both sources.
    pub(crate) fn bases(case: Case) -> Vec<Self> {
        Source::ALL.map(|source| Self::base(case, source)).to_vec()
    }

    /// All points of a case, the base first.
    pub(crate) fn all(case: Case) -> Vec<Self> {
        let base = Self::base(case, Source::Skb);
        let with = |flows, pods, routes| Self {
            flows,
            shape: Shape { pods, routes },
            ..base
        };
        let mut points = Self::bases(case);
        points.extend([
            Self {
                size: Size::Imix,
                ..base
            },
            Self {
                size: Size::Fixed(1400),
                ..base
            },
            with(1000, 1, 1),
            // As many flows, each to another prefix.
            with(1000, 1, 10_000),
            with(16, 16, 1),
            with(110, 110, 1),
        ]);
        points
    }

    /// Only the size, or only the number of flows, ...: two points with the same of these share their namespaces.
    pub(crate) fn is_base(&self) -> bool {
        *self == Self::base(self.case, self.source)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} size {} flows {} routes {} pods {}",
            self.case.name(),
            self.source.name(),
            self.size,
            self.flows,
            self.shape.routes,
            self.shape.pods
        )
    }
}
