//! What is measured between sockets, and how it is shown.

/// Bytes of a cold transfer.
pub(crate) const COLD: usize = 1_000_000;
/// Bytes of payload of a datagram.
pub(crate) const DATAGRAM: usize = 64;

/// The measures, in the order of reports. Cold transfers come first: pods have not been used by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measure {
    /// The first TCP transfer between two pods, of 1 MB
    Cold,
    /// TCP, one flow
    #[value(name = "tcp-1")]
    Tcp1,
    /// TCP, eight flows
    #[value(name = "tcp-8")]
    Tcp8,
    /// TCP, one flow, over an underlay without tso and gso
    #[value(name = "tcp-1-plain")]
    Tcp1Plain,
    /// TCP, eight flows, over an underlay without tso and gso
    #[value(name = "tcp-8-plain")]
    Tcp8Plain,
    /// TCP requests and responses of 1 byte, one after the other on one connection
    Requests,
    /// New TCP connections, one byte each way
    Connections,
    /// UDP datagrams of 64 bytes
    Datagrams,
}

/// How the figures of all rounds become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Median,
    Total,
}

/// A figure beside a measure's value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// At the head of its column.
    pub(crate) head: &'static str,
    pub(crate) decimals: usize,
    pub(crate) sum: Sum,
}

/// Processor time of the whole machine for a byte of payload.
pub(crate) const COST: Beside = Beside {
    name: "cpu_ns_per_byte",
    head: "CPU ns/B",
    decimals: 3,
    sum: Sum::Median,
};
pub(crate) const SENT_AGAIN: Beside = Beside {
    name: "segments_sent_again",
    head: "sent again",
    decimals: 0,
    sum: Sum::Total,
};
/// Segments that were sent again and have not come twice.
pub(crate) const LOST: Beside = Beside {
    name: "segments_lost",
    head: "lost",
    decimals: 0,
    sum: Sum::Total,
};
pub(crate) const P99: Beside = Beside {
    name: "us_p99",
    head: "p99",
    decimals: 1,
    sum: Sum::Median,
};
pub(crate) const SENT: Beside = Beside {
    name: "sent_per_s",
    head: "sent/s",
    decimals: 0,
    sum: Sum::Median,
};

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) value: f64,
    /// By name: what belongs to it.
    pub(crate) beside: Vec<(&'static str, f64)>,
}

impl Measure {
    pub(crate) const ALL: [Self; 8] = [
        Self::Cold,
        Self::Tcp1,
        Self::Tcp8,
        Self::Tcp1Plain,
        Self::Tcp8Plain,
        Self::Requests,
        Self::Connections,
        Self::Datagrams,
    ];
    /// The most telling ones.
    pub(crate) const SHORT: [Self; 6] = [
        Self::Cold,
        Self::Tcp1,
        Self::Tcp1Plain,
        Self::Requests,
        Self::Connections,
        Self::Datagrams,
    ];

    /// How the command line and the report call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Tcp1 => "tcp-1",
            Self::Tcp8 => "tcp-8",
            Self::Tcp1Plain => "tcp-1-plain",
            Self::Tcp8Plain => "tcp-8-plain",
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Datagrams => "datagrams",
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Cold => "first TCP transfer between two pods, 1 MB, until the answer",
            Self::Tcp1 => "TCP, 1 flow, underlay with tso and gso",
            Self::Tcp8 => "TCP, 8 flows, underlay with tso and gso",
            Self::Tcp1Plain => "TCP, 1 flow, underlay without tso and gso",
            Self::Tcp8Plain => "TCP, 8 flows, underlay without tso and gso",
            Self::Requests => "TCP request and response of 1 byte, round trip",
            Self::Connections => {
                "new TCP connections: open, 1 byte each way, close; 4 clients and servers"
            }
            Self::Datagrams => "UDP, 64 bytes of payload, delivered to the receiving socket",
        }
    }

    /// The name of its value in the report, which is its unit.
    pub(crate) const fn value(self) -> &'static str {
        match self {
            Self::Cold => "ms",
            Self::Tcp1 | Self::Tcp8 | Self::Tcp1Plain | Self::Tcp8Plain => "gbit_per_s",
            Self::Requests => "us_p50",
            Self::Connections => "connections_per_s",
            Self::Datagrams => "delivered_per_s",
        }
    }

    /// For people, with how many digits behind the point.
    pub(crate) const fn unit(self) -> (&'static str, usize) {
        match self {
            Self::Cold => ("ms", 2),
            Self::Tcp1 | Self::Tcp8 | Self::Tcp1Plain | Self::Tcp8Plain => ("Gbit/s", 2),
            Self::Requests => ("us, p50", 1),
            Self::Connections => ("connections/s", 0),
            Self::Datagrams => ("datagrams/s", 0),
        }
    }

    pub(crate) const fn beside(self) -> &'static [Beside] {
        match self {
            Self::Cold => &[SENT_AGAIN, LOST],
            Self::Tcp1 | Self::Tcp8 | Self::Tcp1Plain | Self::Tcp8Plain => &[COST, SENT_AGAIN],
            Self::Requests => &[P99],
            Self::Connections => &[],
            Self::Datagrams => &[SENT],
        }
    }

    /// Whether the underlay cuts segments (tso) itself, or has the kernel do so in front of it.
    pub(crate) const fn offloads(self) -> bool {
        !matches!(self, Self::Tcp1Plain | Self::Tcp8Plain)
    }

    /// Why it means nothing where pods are joined without an underlay, if so.
    pub(crate) const fn is_not_for(self, underlay: bool) -> Option<&'static str> {
        if underlay || self.offloads() {
            None
        } else {
            Some("there is no underlay between these pods")
        }
    }
}
