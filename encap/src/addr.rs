//! Link-layer addresses and VXLAN network identifiers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An Ethernet MAC address, 6 bytes in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All zeros: the address of nobody.
    pub const ZERO: Self = Self([0; 6]);
    /// All ones: every station of the segment.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// True for group addresses, broadcast among them (IEEE 802, I/G bit).
    pub const fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a MAC address is six hexadecimal bytes with colons, like 02:00:5e:10:00:01")
    }
}

impl std::error::Error for ParseMacError {}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        parts
            .next()
            .is_none()
            .then_some(Self(bytes))
            .ok_or(ParseMacError)
    }
}

/// A VTEP's MACs, by the family of the underlay: flannel's two devices have one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtepMacs {
    /// In packets over IPv4.
    pub v4: MacAddr,
    /// In packets over IPv6.
    pub v6: MacAddr,
}

impl VtepMacs {
    /// One for both.
    pub const fn both(mac: MacAddr) -> Self {
        Self { v4: mac, v6: mac }
    }

    /// That of packets over the family of this address.
    #[inline]
    pub const fn over(self, underlay: IpAddr) -> MacAddr {
        match underlay {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// A VXLAN network identifier, 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Vni(u32);

impl Vni {
    /// The VNI of this number, `None` above 24 bits.
    pub const fn new(vni: u32) -> Option<Self> {
        if vni < 1 << 24 { Some(Self(vni)) } else { None }
    }

    /// The number, below 2^24.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// From the three bytes of the header, in network order.
    pub const fn from_bytes(bytes: [u8; 3]) -> Self {
        let [a, b, c] = bytes;
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    /// The three bytes of the header, in network order.
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mac_text_round_trips(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddr(bytes).to_string().parse(), Ok(MacAddr(bytes)));
        }

        #[test]
        fn any_text_is_a_mac_or_an_error(text in ".{0,24}") {
            let _ = text.parse::<MacAddr>();
        }

        #[test]
        fn vni_bytes_round_trip(bytes: [u8; 3]) {
            prop_assert_eq!(Vni::from_bytes(bytes).to_bytes(), bytes);
        }
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert!(Vni::new(0xff_ffff).is_some());
        assert!(Vni::new(0x100_0000).is_none());
    }
}
