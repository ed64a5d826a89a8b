//! How a frame on the trunk says whose it is: in its source MAC.

use viaduct_encap::ethernet;
use viaduct_fib::{Fib, PortId};

/// What the source MAC begins with: locally administered, unicast.
const OURS: [u8; 3] = [0x02, 0x76, 0x64];
/// The byte behind it: whether the pod's own MAC stood there, or another.
const OWN: u8 = 1;

fn source(frame: &mut [u8]) -> Option<&mut [u8; 6]> {
    frame.get_mut(6..ethernet::HEADER_LEN)?.first_chunk_mut()
}

/// The port that a hook got this frame from. The pod's own MAC is put back as its source, if it was
/// there; another that was is not known any more, only that it was another.
pub(crate) fn arrive(frame: &mut [u8], table: &Fib) -> Option<PortId> {
    let source = source(frame)?;
    let [a, b, c, own, high, low] = *source;
    if [a, b, c] != OURS {
        return None;
    }
    let id = PortId(u16::from_be_bytes([high, low]));
    if own == OWN
        && let Some(port) = table.port(id)
    {
        *source = port.mac.0;
    }
    Some(id)
}

/// Says which port a frame is for. The hook puts the right source back.
pub(crate) fn leave(frame: &mut [u8], to: PortId) {
    if let Some(source) = source(frame) {
        let [a, b, c] = OURS;
        let [high, low] = to.0.to_be_bytes();
        *source = [a, b, c, OWN, high, low];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_where_it_comes_from() {
        let (publisher, _) = viaduct_fib::Publisher::new();
        let mut frame = [0; 60];
        assert_eq!(arrive(&mut frame, publisher.fib()), None);
        leave(&mut frame, PortId(515));
        assert_eq!(frame.get(6..12), Some(&[2, 0x76, 0x64, 1, 2, 3][..]));
        assert_eq!(arrive(&mut frame, publisher.fib()), Some(PortId(515)));
        assert_eq!(arrive(&mut frame[..11], publisher.fib()), None);
    }
}
