//! The hand-off between workers in memory: both ends on one thread, and frames to copy from and to.

use std::hint::black_box;

use viaduct_router::HandoffPair;

/// Packets that cross at once.
pub(crate) const BATCH: usize = 64;
const FRAME_SIZE: usize = 2048;
/// Where the kernel puts a packet: 256 bytes of its own, and our headroom.
const START: usize = 384;

/// A batch of packets, the hand-off, and the frames that they end in.
pub(crate) struct Ring {
    pair: HandoffPair,
    from: Vec<u8>,
    to: Vec<u8>,
    len: usize,
}

impl Ring {
    /// Packets of `len` bytes, at most 1664.
    pub(crate) fn new(len: usize) -> Self {
        let from: Vec<u8> = (0..=u8::MAX).cycle().take(BATCH * FRAME_SIZE).collect();
        let mut ring = Self {
            pair: HandoffPair::new(FRAME_SIZE).expect("mailboxes"),
            from,
            to: vec![0; BATCH * FRAME_SIZE],
            len,
        };
        ring.pass();
        let frames = ring.from.chunks_exact(FRAME_SIZE);
        for (from, to) in frames.zip(ring.to.chunks_exact(FRAME_SIZE)) {
            assert_eq!(from[START..][..len], to[..len], "a packet crossed whole");
        }
        ring
    }

    /// Has the batch cross: given, taken, and the buffers brought back.
    pub(crate) fn pass(&mut self) {
        let len = self.len;
        let packets = self.from.chunks_exact(FRAME_SIZE);
        let packets = packets.map(|frame| &frame[START..START + len]);
        let passed = self
            .pair
            .pass(packets, self.to.chunks_exact_mut(FRAME_SIZE));
        assert_eq!(black_box(passed), BATCH);
    }
}
