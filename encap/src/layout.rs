//! Where fields are: bytes from the start of their header, and where headers are in a tunnel
//! packet.
//!
//! ```text
//!  0          14      34    42      50         64      over IPv4
//!  0          14      54    62      70         84      over IPv6
//!  +----------+-------+-----+-------+----------+-----------------
//!  | Ethernet |  IP   | UDP | VXLAN | Ethernet | inner IP packet
//!  +----------+-------+-----+-------+----------+-----------------
//!   outer                            inner
//! ```

/// Ethernet II.
pub mod ethernet {
    /// Where the `EtherType` is.
    pub const TYPE: usize = 12;
}

/// IPv4 (RFC 791, section 3.1).
pub mod ipv4 {
    /// Bytes of a header without options.
    pub const HEADER_LEN: usize = 20;
    /// The same as lengths in headers are.
    pub const LEN: u16 = 20;
    /// Version and header length of one without options.
    pub const PLAIN: u8 = 0x45;
    /// Type of service: DSCP and ECN.
    pub const TOS: usize = 1;
    /// Length of the packet.
    pub const TOTAL_LEN: usize = 2;
    /// Flags and the fragment's offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol number.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: usize = 10;
    /// Source address; the destination's follows.
    pub const SOURCE: usize = 12;
}

/// IPv6 (RFC 8200, section 3).
pub mod ipv6 {
    /// Bytes of the fixed header.
    pub const HEADER_LEN: usize = 40;
    /// Length of what follows the header.
    pub const PAYLOAD_LEN: usize = 4;
    /// Source address; the destination's follows.
    pub const SOURCE: usize = 8;
}

/// UDP (RFC 768).
pub mod udp {
    /// Bytes of the header.
    pub const HEADER_LEN: usize = 8;
    /// Source port.
    pub const SOURCE: usize = 0;
    /// Destination port.
    pub const DESTINATION: usize = 2;
    /// Length of header and payload.
    pub const LENGTH: usize = 4;
    /// Checksum.
    pub const CHECKSUM: usize = 6;
}

/// TCP (RFC 9293, section 3.1).
pub mod tcp {
    /// Checksum.
    pub const CHECKSUM: usize = 16;
}

/// A tunnel packet over IPv4 without options.
pub mod over_v4 {
    use super::{ipv4, udp};
    use crate::{ethernet, vxlan};

    /// Outer IP header.
    pub const IP: usize = ethernet::HEADER_LEN;
    /// Outer UDP header.
    pub const UDP: usize = IP + ipv4::HEADER_LEN;
    /// VXLAN header.
    pub const VXLAN: usize = UDP + udp::HEADER_LEN;
    /// Inner Ethernet header.
    pub const INNER: usize = VXLAN + vxlan::HEADER_LEN;
    /// Inner IP packet.
    pub const PACKET: usize = INNER + ethernet::HEADER_LEN;
}

/// A tunnel packet over IPv6 without extension headers.
pub mod over_v6 {
    use super::{ipv6, udp};
    use crate::{ethernet, vxlan};

    /// Outer IP header.
    pub const IP: usize = ethernet::HEADER_LEN;
    /// Outer UDP header.
    pub const UDP: usize = IP + ipv6::HEADER_LEN;
    /// VXLAN header.
    pub const VXLAN: usize = UDP + udp::HEADER_LEN;
    /// Inner Ethernet header.
    pub const INNER: usize = VXLAN + vxlan::HEADER_LEN;
    /// Inner IP packet.
    pub const PACKET: usize = INNER + ethernet::HEADER_LEN;
}
