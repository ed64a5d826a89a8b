//! A packet in its frame: headers are pushed and pulled by moving the start.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// The largest MTU whose packets fit a frame behind 384 bytes of headroom.
pub const MAX_MTU: u32 = 1600;

/// One packet in the frame that the kernel wrote it to. Bytes in front of the
/// packet are headroom.
pub struct Frame<'a> {
    chunk: &'a mut [u8],
    start: usize,
    len: usize,
}

impl<'a> Frame<'a> {
    /// A packet of `len` bytes at `start` of `chunk`; `None` when it does not
    /// lie inside.
    #[inline]
    pub fn new(chunk: &'a mut [u8], start: usize, len: usize) -> Option<Self> {
        (start.checked_add(len)? <= chunk.len()).then_some(Self { chunk, start, len })
    }

    /// The packet.
    #[inline]
    pub fn packet(&mut self) -> &mut [u8] {
        let packet = self.chunk.get_mut(self.start..);
        let packet = packet.and_then(|packet| packet.get_mut(..self.len));
        packet.unwrap_or_default()
    }

    /// Bytes from the chunk's start to the packet.
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Bytes of the packet.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True when no byte is left.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole chunk, headroom and packet and what is behind.
    pub fn chunk(&mut self) -> &mut [u8] {
        self.chunk
    }

    /// Bytes from the packet's start to the chunk's end.
    pub fn room(&mut self) -> &mut [u8] {
        self.chunk.get_mut(self.start..).unwrap_or_default()
    }

    /// The packet is now the `len` bytes at `start` of the chunk, which are returned; `None`, and
    /// nothing changes, when they do not lie inside.
    #[inline]
    pub fn place(&mut self, start: usize, len: usize) -> Option<&mut [u8]> {
        let packet = self.chunk.get_mut(start..)?.get_mut(..len)?;
        (self.start, self.len) = (start, len);
        Some(packet)
    }

    /// Adds `bytes` of headroom to the packet's front; `None`, and nothing
    /// changes, when there is not so much.
    #[inline]
    pub fn push(&mut self, bytes: usize) -> Option<()> {
        self.start = self.start.checked_sub(bytes)?;
        self.len = self.len.checked_add(bytes)?;
        Some(())
    }

    /// Takes `bytes` from the packet's front; `None`, and nothing changes,
    /// when it is shorter.
    #[inline]
    pub fn pull(&mut self, bytes: usize) -> Option<()> {
        self.len = self.len.checked_sub(bytes)?;
        self.start = self.start.checked_add(bytes)?;
        Some(())
    }

    /// Cuts the packet's end off behind `len` bytes.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}
