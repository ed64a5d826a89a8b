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

/// How points differ from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Dimension {
    Base,
    Sizes,
    Flows,
    Routes,
    Pods,
}

impl Dimension {
    pub(crate) const ALL: [Self; 5] = [
        Self::Base,
        Self::Sizes,
        Self::Flows,
        Self::Routes,
        Self::Pods,
    ];
}

/// Other values than the base's.
pub(crate) struct Others<'a> {
    pub(crate) sizes: &'a [Size],
    pub(crate) flows: &'a [u32],
    pub(crate) routes: &'a [u32],
    pub(crate) pods: &'a [u32],
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
    /// 64 bytes, one flow, one route, one pod.
    pub(crate) const fn base(case: Case, source: Source) -> Self {
        Self {
            case,
            source,
            size: Size::Fixed(64),
            flows: 1,
            shape: Shape { pods: 1, routes: 1 },
        }
    }

    /// The points of a case that differ from the base in this dimension; the base itself has both sources.
    pub(crate) fn along(case: Case, dimension: Dimension, others: &Others<'_>) -> Vec<Self> {
        let base = Self::base(case, Source::Skb);
        let with = |flows, pods, routes| Self {
            flows,
            shape: Shape { pods, routes },
            ..base
        };
        let flows = others.flows.iter().copied().max().unwrap_or(1);
        match dimension {
            Dimension::Base => Source::ALL.map(|source| Self::base(case, source)).to_vec(),
            Dimension::Sizes => {
                let sizes = others.sizes.iter();
                sizes.map(|&size| Self { size, ..base }).collect()
            }
            Dimension::Flows => {
                let flows = others.flows.iter();
                flows.map(|&flows| with(flows, 1, 1)).collect()
            }
            // With many flows, each to another prefix: else the table would only be large.
            Dimension::Routes => {
                let routes = others.routes.iter();
                routes.map(|&routes| with(flows, 1, routes)).collect()
            }
            // At least one flow from or to each.
            Dimension::Pods => {
                let pods = others.pods.iter();
                pods.map(|&pods| with(pods, pods, 1)).collect()
            }
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_differ_in_one_dimension() {
        let others = Others {
            sizes: &[Size::Imix],
            flows: &[100, 1000],
            routes: &[10_000],
            pods: &[16, 110],
        };
        let all: Vec<_> = Dimension::ALL
            .iter()
            .flat_map(|d| Point::along(Case::Decap, *d, &others))
            .collect();
        assert_eq!(all.len(), 8);
        assert_eq!(all.iter().filter(|p| p.is_base()).count(), 2);
        let shapes = |p: &Point| (p.flows, p.shape.routes, p.shape.pods);
        assert!(all.iter().any(|p| shapes(p) == (1000, 10_000, 1)));
        assert!(all.iter().any(|p| shapes(p) == (110, 1, 110)));
        assert!(all.iter().all(|p| p.case == Case::Decap));
    }
}
