//! Why a packet was dropped: one enum for counters, status and documentation.

macro_rules! reasons {
    ($($name:ident $label:literal $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $text] $name,)* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// A short name that stays the same from version to version.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// One sentence for an operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    Malformed "malformed" "The packet's headers are cut short or contradict each other.",
    NotIp "not-ip" "The frame carries neither IPv4 nor IPv6.",
    VlanTagged "vlan-tagged" "A pod sent a frame with a VLAN tag.",
    ForeignMac "foreign-mac" "A pod sent a frame that is not addressed to this node.",
    SourceRoute "source-route" "The packet has an IPv4 source route.",
    BadOption "bad-option" "An IP option is malformed, or unknown and not to be passed over.",
    Multicast "multicast" "Multicast and broadcast are not carried between pods.",
    SpoofedSource "spoofed-source" "A pod sent a packet whose source is not one of its addresses.",
    SpoofedMac "spoofed-mac" "A pod sent a frame whose source is not its MAC.",
    RateFromPod "rate-from-pod" "The pod sent more than its egress rate, by several workers at once.",
    RateToPod "rate-to-pod" "More came for the pod than its ingress rate, and than what may wait for it.",
    HopLimitExceeded "hop-limit-exceeded" "The TTL or hop limit ran out at this node.",
    NoRoute "no-route" "No node is known to have the destination.",
    NextHopUnresolved "next-hop-unresolved" "The way to the destination's node is not resolved yet.",
    TooBig "too-big" "The packet is larger than the overlay's MTU.",
    NoHeadroom "no-headroom" "The frame has no room for the outer header.",
    BadOuter "bad-outer" "The packet from the underlay is not valid VXLAN, or uses an extension of it (GBP, GPE).",
    BadOuterChecksum "bad-outer-checksum" "The outer UDP checksum is wrong.",
    UnknownVni "unknown-vni" "The packet's VNI belongs to no network here.",
    WrongVtepMac "wrong-vtep-mac" "The inner frame is not addressed to this node's VTEP MAC.",
    UnknownVtep "unknown-vtep" "The inner source does not belong to the sending node.",
    NotLocal "not-local" "The encapsulated packet's destination is not a pod of this node.",
    CongestionMarked "congestion-marked" "The underlay marked congestion on a packet that cannot carry the mark (RFC 6040).",
    UnknownPort "unknown-port" "The port that the packet came from or goes to has just been removed.",
    ExceptionOverload "exception-overload" "More packets at once needed special treatment than a worker works off in a turn.",
    NoFrame "no-frame" "No free frame was left for a fragment, or for a packet that another worker handed over.",
    HandoffFull "handoff-full" "Too many packets were on their way to the worker that sends on the outgoing port.",
    PuntFailed "punt-failed" "The kernel did not take a packet that was left to it.",
    TxRingFull "tx-ring-full" "The transmit ring of the outgoing port is full.",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}
