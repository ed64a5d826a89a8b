//! A decoder that shares no code with the router. It panics at what is not valid.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Slice, Ipv4HeaderSlice, Ipv6HeaderSlice, SlicedPacket, TransportSlice,
};

/// What the headers of an Ethernet frame with an IP packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Ethernet destination.
    pub to_mac: [u8; 6],
    /// Ethernet source.
    pub from_mac: [u8; 6],
    /// IP source.
    pub src: IpAddr,
    /// IP destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of IP header, IPv4 options included, IPv6 extension headers not.
    pub header_len: usize,
}

/// An Ethernet frame with an IP packet that fills it, headers sound. What the pod has put behind
/// the IP headers is its own affair.
pub fn ip_frame(frame: &[u8]) -> Decoded {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).expect("an Ethernet frame");
    let payload = ethernet.payload().payload;
    let (src, dst, hop_limit, header_len) = match ethernet.ether_type() {
        EtherType::IPV4 => {
            let header = Ipv4HeaderSlice::from_slice(payload).expect("valid for etherparse");
            // etherparse would leave the reserved flag out of the sum (RFC 791, section 3.1).
            let words = header.slice().chunks(2);
            let sum = words.fold(0, |sum, word| {
                sum + u64::from(word[0]) * 256 + u64::from(word[1])
            });
            assert_eq!(sum % 0xffff, 0, "header checksum");
            assert_eq!(usize::from(header.total_len()), payload.len());
            (
                header.source().into(),
                header.destination().into(),
                header.ttl(),
                header.slice().len(),
            )
        }
        EtherType::IPV6 => {
            // Its extension headers are for the receiver; etherparse also reads what stands behind
            // a later fragment's header as such, which is payload.
            let header = Ipv6HeaderSlice::from_slice(payload).expect("valid for etherparse");
            assert_eq!(usize::from(header.payload_length()), payload.len() - 40);
            (
                header.source().into(),
                header.destination().into(),
                header.hop_limit(),
                40,
            )
        }
        other => panic!("{other:?} was sent"),
    };
    Decoded {
        to_mac: ethernet.destination(),
        from_mac: ethernet.source(),
        src,
        dst,
        hop_limit,
        header_len,
    }
}

/// Checks a packet for the underlay: outer headers sound, TTL 64, UDP to 8472 without a checksum,
/// VXLAN with VNI 1 (RFC 7348, section 5). Gives the outer headers and the inner frame.
pub fn tunnel(frame: &[u8]) -> (Decoded, &[u8]) {
    let outer = ip_frame(frame);
    assert_eq!(outer.hop_limit, 64, "the outer TTL is our own");
    let sliced = SlicedPacket::from_ethernet(frame).expect("checked");
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP: {sliced:?}");
    };
    assert_eq!((udp.destination_port(), udp.checksum()), (8472, 0));
    assert!(udp.source_port() >= 49152, "an ephemeral port");
    let inner = udp.payload();
    assert_eq!(inner[..8], [8, 0, 0, 0, 0, 0, 1, 0], "VXLAN");
    (outer, &inner[8..])
}
