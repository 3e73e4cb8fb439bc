//! One write in a volatile cache, and how much of it a cut leaves. The model is [`super::PowerCutDisk`]'s.
//!
//! Invariant: what lands is made of whole sectors of [`ATOM_BYTES`].

use super::SplitMix64;
use crate::chunks::Chunks;
use std::sync::Arc;

/// What a medium writes in one piece.
pub(super) const ATOM_BYTES: u64 = 512;

/// A write, a zeroing or a discard since the last honest flush.
#[derive(Clone)]
pub(super) struct Cached {
    pub(super) offset_bytes: u64,
    pub(super) content: Content,
    /// A `fua` write: survives every cut.
    pub(super) forced: bool,
}

#[derive(Clone)]
pub(super) enum Content {
    Data(Arc<[u8]>),
    Zeroes(u64),
}

impl Content {
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Content::Data(data) => data.len() as u64,
            Content::Zeroes(len_bytes) => *len_bytes,
        }
    }
}

/// Lands what one cut keeps of `cached` on `platter`, one of the possible results by `seed`.
pub(super) fn land_sampled(platter: &mut Chunks, cached: &[Cached], seed: u64) {
    let mut random = SplitMix64::new(seed);
    // Some cuts lose nearly all, some nearly nothing: the extremes are where recovery code is wrong.
    let keep_percent = [0, 15, 50, 85, 100].get(index(random.below(5))).copied().unwrap_or(50);
    for cached in cached {
        match random.below(100) {
            _ if cached.forced => cached.land(platter),
            roll if roll < 40 => cached.land_torn(platter, keep_percent, &mut random),
            _ if random.below(100) < keep_percent => cached.land(platter),
            _ => {}
        }
    }
}

impl Cached {
    /// Writes all of it.
    pub(super) fn land(&self, chunks: &mut Chunks) {
        self.land_range(chunks, 0, self.content.len_bytes());
    }

    /// Writes some of its sectors.
    fn land_torn(&self, chunks: &mut Chunks, keep_percent: u64, random: &mut SplitMix64) {
        let len_bytes = self.content.len_bytes();
        // A long zeroing tears into a few hundred runs of sectors, a write at every sector.
        let atom = match self.content {
            Content::Data(_) => ATOM_BYTES,
            Content::Zeroes(_) => (len_bytes / 256).next_multiple_of(ATOM_BYTES).max(ATOM_BYTES),
        };
        let mut at = 0;
        while at < len_bytes {
            let end = (at + atom).min(len_bytes);
            if random.below(100) < keep_percent.clamp(10, 90) {
                self.land_range(chunks, at, end);
            }
            at = end;
        }
    }

    fn land_range(&self, chunks: &mut Chunks, start: u64, end: u64) {
        match &self.content {
            Content::Data(data) => chunks.write(self.offset_bytes + start, &data[index(start)..index(end)]),
            Content::Zeroes(_) => chunks.zero(self.offset_bytes + start, end - start),
        }
    }
}

/// An index into a buffer that is in memory already.
pub(super) fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
