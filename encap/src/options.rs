//! Options of IPv4 and of IPv6's hop-by-hop header, as a Linux host checks them before it forwards
//! a packet (`net/ipv4/ip_options.c`, `net/ipv6/exthdrs.c`). What a worker passed on and a kernel did
//! not would work only as long as the workers do.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use crate::ParseError;

/// IPv4 options (RFC 791, section 3.1; RFC 2113).
mod v4 {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    pub(super) const RECORD_ROUTE: u8 = 7;
    pub(super) const TIMESTAMP: u8 = 68;
    pub(super) const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub(super) const STRICT_SOURCE_ROUTE: u8 = 137;
    pub(super) const CIPSO: u8 = 134;
    pub(super) const ROUTER_ALERT: u8 = 148;
}

/// IPv6 options (RFC 8200, section 4.2; RFC 2675; RFC 2711; RFC 5570; RFC 9486).
mod v6 {
    pub(super) const PAD_1: u8 = 0;
    pub(super) const PAD_N: u8 = 1;
    pub(super) const ROUTER_ALERT: u8 = 5;
    pub(super) const CALIPSO: u8 = 7;
    /// What a host does that does not know an option: not zero, then it drops the packet.
    pub(super) const ACTION: u8 = 0xc0;
}

/// Options of one hop-by-hop header, padding aside (`net.ipv6.max_hbh_opts_number`).
const MAX_HOP_OPTIONS: usize = 8;
/// Bytes of padding in a row: more is no alignment (RFC 4942, section 2.1.9.5).
const MAX_PADDING: usize = 7;

/// The options of an IPv4 header.
///
/// # Errors
/// [`ParseError::SourceRoute`], and [`ParseError::BadOption`] for lengths and pointers that are wrong.
pub(crate) fn check_v4(options: &[u8]) -> Result<(), ParseError> {
    let mut rest = options;
    let mut seen = [false; 3];
    while let Some((&kind, behind)) = rest.split_first() {
        match kind {
            v4::END => return Ok(()),
            v4::NOTHING => {
                rest = behind;
                continue;
            }
            _ => {}
        }
        let length = usize::from(*behind.first().ok_or(ParseError::BadOption)?);
        let (option, behind) = rest
            .split_at_checked(length)
            .filter(|_| length >= 2)
            .ok_or(ParseError::BadOption)?;
        rest = behind;
        let once = match kind {
            v4::LOOSE_SOURCE_ROUTE | v4::STRICT_SOURCE_ROUTE => {
                return Err(ParseError::SourceRoute);
            }
            v4::RECORD_ROUTE => record_is_right(option, 4, 3).then_some(0),
            v4::TIMESTAMP => timestamp_is_right(option).then_some(1),
            v4::CIPSO => Some(2),
            v4::ROUTER_ALERT if length < 4 => None,
            _ => continue,
        };
        let before = seen.get_mut(once.ok_or(ParseError::BadOption)?);
        if before.is_some_and(|seen| std::mem::replace(seen, true)) {
            return Err(ParseError::BadOption);
        }
    }
    Ok(())
}

/// A pointer of at least `first`, and behind it `room` further bytes or nothing.
fn record_is_right(option: &[u8], first: u8, room: usize) -> bool {
    let Some(&pointer) = option.get(2) else {
        return false;
    };
    let at = usize::from(pointer);
    pointer >= first && (at > option.len() || at.saturating_add(room) <= option.len())
}

fn timestamp_is_right(option: &[u8]) -> bool {
    let (Some(&pointer), Some(&flags)) = (option.get(2), option.get(3)) else {
        return false;
    };
    if usize::from(pointer) > option.len() {
        // Full; how many had no room is counted to fifteen.
        return pointer >= 5 && flags >> 4 != 15;
    }
    let room = match flags & 0xf {
        1 | 3 => 7,
        _ => 3,
    };
    record_is_right(option, 5, room)
}

/// The options of a hop-by-hop header.
///
/// # Errors
/// [`ParseError::BadOption`] for lengths and padding that are wrong, for more than eight, and for what
/// is not known and whose type says that the packet is to be dropped then.
pub(crate) fn check_hop_by_hop(options: &[u8]) -> Result<(), ParseError> {
    let (mut rest, mut padding, mut count) = (options, 0usize, 0usize);
    while let Some((&kind, behind)) = rest.split_first() {
        if kind == v6::PAD_1 {
            padding = padding.saturating_add(1);
            rest = behind;
        } else {
            let length = usize::from(*behind.first().ok_or(ParseError::BadOption)?);
            let data = behind
                .get(1..)
                .and_then(|data| data.split_at_checked(length));
            let (data, behind) = data.ok_or(ParseError::BadOption)?;
            rest = behind;
            if kind == v6::PAD_N {
                padding = padding.saturating_add(length).saturating_add(2);
                if data.iter().any(|byte| *byte != 0) {
                    return Err(ParseError::BadOption);
                }
            } else {
                padding = 0;
                count = count.saturating_add(1);
                // A jumbogram (194) is longer than a frame is.
                let refused = match kind {
                    v6::ROUTER_ALERT => length != 2,
                    v6::CALIPSO => length < 8,
                    _ => kind & v6::ACTION != 0,
                };
                if refused {
                    return Err(ParseError::BadOption);
                }
            }
        }
        if padding > MAX_PADDING || count > MAX_HOP_OPTIONS {
            return Err(ParseError::BadOption);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (check_v4(&bytes), check_hop_by_hop(&bytes));
        }
    }

    #[test]
    fn v4_options_are_judged_as_the_kernel_does() {
        for good in [
            &[][..],
            &[1, 1, 1, 1],
            &[0, 9, 9, 9],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[7, 7, 8, 0, 0, 0, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[148, 4, 0, 0],
            &[200, 4, 0, 0],
        ] {
            assert_eq!(check_v4(good), Ok(()), "{good:?}");
        }
        for bad in [
            &[7][..],
            &[200, 1, 0, 0],
            &[200, 0, 0, 0],
            &[200, 5, 0, 0],
            &[7, 7, 3, 0, 0, 0, 0, 0],
            &[7, 7, 5, 0, 0, 0, 0, 0],
            &[7, 3, 4, 7, 3, 4, 0, 0],
            &[68, 8, 4, 0, 0, 0, 0, 0],
            &[68, 8, 5, 1, 0, 0, 0, 0],
            &[68, 4, 5, 0xf0],
            &[148, 3, 0, 0],
        ] {
            assert_eq!(check_v4(bad), Err(ParseError::BadOption), "{bad:?}");
        }
        for kind in [131, 137] {
            let route = [kind, 7, 4, 10, 0, 0, 1, 0];
            assert_eq!(check_v4(&route), Err(ParseError::SourceRoute));
        }
    }

    #[test]
    fn hop_by_hop_options_are_judged_as_the_kernel_does() {
        for good in [
            &[1, 4, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 0, 0],
            &[5, 2, 0, 0, 0, 0],
            &[0x1e, 2, 9, 9, 1, 0],
        ] {
            assert_eq!(check_hop_by_hop(good), Ok(()), "{good:?}");
        }
        for bad in [
            &[1][..],
            &[1, 5, 0, 0, 0, 0],
            &[1, 4, 0, 0, 0, 1],
            &[0; 8],
            &[5, 1, 0, 1, 1, 0],
            &[0x5e, 4, 0, 0, 0, 0],
            &[0x9e, 4, 0, 0, 0, 0],
            &[0xde, 4, 0, 0, 0, 0],
            &[194, 4, 0, 1, 0, 0],
            &[
                0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0,
            ],
        ] {
            assert_eq!(check_hop_by_hop(bad), Err(ParseError::BadOption), "{bad:?}");
        }
    }
}
