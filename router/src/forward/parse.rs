//! What a frame says about itself.

use viaduct_encap::ethernet::{self, Ethernet};
use viaduct_encap::{IpPacket, ParseError};
use viaduct_fib::NetworkId;

use super::Stage;
use crate::frame::Frame;
use crate::reason::DropReason;

/// A packet whose headers were read; its frame begins with the IP header.
pub(super) struct Inner {
    pub(super) ip: IpPacket,
    pub(super) ether_type: u16,
    pub(super) network: NetworkId,
}

/// An IP version. What follows parsing is compiled for each by itself: where
/// both came together, all that was read would have to be in memory.
pub(super) trait Version {
    const ETHER_TYPE: u16;
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError>;
}

pub(super) struct V4;
pub(super) struct V6;

impl Version for V4 {
    const ETHER_TYPE: u16 = ethernet::IPV4;

    #[inline(always)]
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError> {
        IpPacket::parse_v4(ip)
    }
}

impl Version for V6 {
    const ETHER_TYPE: u16 = ethernet::IPV6;

    #[inline(always)]
    fn parse(ip: &[u8]) -> Result<IpPacket, ParseError> {
        IpPacket::parse_v6(ip)
    }
}

/// Reads the Ethernet header and leaves the frame behind it.
#[inline(always)]
pub(super) fn link_header(frame: &mut Frame<'_>) -> Stage<Ethernet> {
    let header = Ethernet::parse(frame.packet()).ok_or(DropReason::Malformed)?;
    frame
        .pull(ethernet::HEADER_LEN)
        .ok_or(DropReason::Malformed)?;
    Ok(header)
}

/// Whether a VLAN tag follows the addresses.
#[inline(always)]
pub(super) const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ethernet::VLAN | ethernet::QINQ)
}

/// Takes priority tags off, which name no VLAN (VID 0: IEEE 802.1Q, section 9.6), and gives the type
/// behind them. As many as the XDP program reads past.
#[cold]
pub(super) fn priority_tags(frame: &mut Frame<'_>) -> Stage<u16> {
    const MAX_TAGS: usize = 2;
    for _ in 0..MAX_TAGS {
        let Some(&[t0, t1, k0, k1]) = frame.packet().first_chunk() else {
            return Err(DropReason::Malformed.into());
        };
        if u16::from_be_bytes([t0, t1]) & 0xfff != 0 {
            break;
        }
        frame.pull(4).ok_or(DropReason::Malformed)?;
        let kind = u16::from_be_bytes([k0, k1]);
        if !is_tag(kind) {
            return Ok(kind);
        }
    }
    Err(DropReason::VlanTagged.into())
}

/// Reads the IP packet that the frame begins with, and cuts off Ethernet's
/// padding.
#[inline(always)]
pub(super) fn parse<V: Version>(frame: &mut Frame<'_>, network: NetworkId) -> Stage<Inner> {
    let ip = V::parse(frame.packet()).map_err(unreadable)?;
    if ip.dst.is_multicast() {
        return Err(DropReason::Multicast.into());
    }
    frame.truncate(ip.len);
    Ok(Inner {
        ip,
        ether_type: V::ETHER_TYPE,
        network,
    })
}

fn unreadable(error: ParseError) -> DropReason {
    match error {
        ParseError::NotIp => DropReason::NotIp,
        ParseError::SourceRoute => DropReason::SourceRoute,
        ParseError::BadOption => DropReason::BadOption,
        _ => DropReason::Malformed,
    }
}

/// Reads the IP packet that bytes begin with; its version says what it is.
pub(super) fn parse_ip(bytes: &[u8]) -> Result<IpPacket, ParseError> {
    IpPacket::parse(bytes, ether_type(bytes))
}

fn ether_type(ip: &[u8]) -> u16 {
    match ip.first().map(|b| b >> 4) {
        Some(6) => ethernet::IPV6,
        _ => ethernet::IPV4,
    }
}

/// Reads the IP packet that the frame begins with.
pub(super) fn parse_frame(frame: &mut Frame<'_>, network: NetworkId) -> Stage<Inner> {
    let packet = frame.packet();
    Ok(Inner {
        ip: parse_ip(packet).map_err(unreadable)?,
        ether_type: ether_type(packet),
        network,
    })
}
