//! Who has which of a worker's frames.

use crate::xsk::{Area, FrameId, Xsk};

/// Owner of a frame that is in no ring.
pub(super) const FREE: u16 = u16::MAX;

/// Free frames, and who has the others.
pub(super) struct Pool {
    pub(super) free: Vec<FrameId>,
    /// By frame: [`FREE`], or the port in one of whose rings it is.
    pub(super) owners: Vec<u16>,
}

impl Pool {
    pub(super) fn give(&mut self, frame: FrameId) {
        self.tag(&frame, FREE);
        // Never grows: there are as many places as frames.
        self.free.push(frame);
    }

    /// Takes back the frames whose packets have left.
    pub(super) fn collect(&mut self, from: &mut Xsk, area: &Area) {
        while let Some(frame) = from.complete(area) {
            self.give(frame);
        }
    }

    pub(super) fn tag(&mut self, frame: &FrameId, owner: u16) {
        if let Some(tag) = self.owners.get_mut(frame.index()) {
            *tag = owner;
        }
    }
}
