//! A sparse byte array of 64 KiB chunks that are shared until written: the body of the memory disks.
//!
//! Invariants: an absent chunk reads as zeros; a clone costs one pointer per present chunk and shares every byte, and a
//! write to either side copies only the chunks it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes per chunk.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// Sparse, copy-on-write content, addressed by byte.
#[derive(Clone, Default)]
pub(crate) struct Chunks {
    present: BTreeMap<u64, Arc<Vec<u8>>>,
}

/// One chunk's part of a range: chunk number, first byte inside the chunk, length, first byte inside the range.
type Piece = (u64, usize, usize, usize);

fn pieces(offset_bytes: u64, len_bytes: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0_usize;
    std::iter::from_fn(move || {
        if done == len_bytes {
            return None;
        }
        let at = offset_bytes + done as u64;
        let chunk = at / CHUNK_BYTES as u64;
        // The remainder is smaller than a chunk: it fits.
        let inside = usize::try_from(at % CHUNK_BYTES as u64).unwrap_or(0);
        let len = (CHUNK_BYTES - inside).min(len_bytes - done);
        let piece = (chunk, inside, len, done);
        done += len;
        Some(piece)
    })
}

impl Chunks {
    /// Fills `buf`. The caller has checked the range.
    pub(crate) fn read(&self, offset_bytes: u64, buf: &mut [u8]) {
        for (chunk, inside, len, done) in pieces(offset_bytes, buf.len()) {
            let part = &mut buf[done..done + len];
            match self.present.get(&chunk) {
                Some(bytes) => part.copy_from_slice(&bytes[inside..inside + len]),
                None => part.fill(0),
            }
        }
    }

    /// Stores `buf`. The caller has checked the range.
    pub(crate) fn write(&mut self, offset_bytes: u64, buf: &[u8]) {
        for (chunk, inside, len, done) in pieces(offset_bytes, buf.len()) {
            let bytes = self.present.entry(chunk).or_insert_with(|| Arc::new(vec![0; CHUNK_BYTES]));
            Arc::make_mut(bytes)[inside..inside + len].copy_from_slice(&buf[done..done + len]);
        }
    }

    /// Zeroes a range; whole chunks are given back.
    pub(crate) fn zero(&mut self, offset_bytes: u64, len_bytes: u64) {
        let mut done = 0_u64;
        while done < len_bytes {
            let at = offset_bytes + done;
            let chunk = at / CHUNK_BYTES as u64;
            let inside = at % CHUNK_BYTES as u64;
            let len = (CHUNK_BYTES as u64 - inside).min(len_bytes - done);
            if len == CHUNK_BYTES as u64 {
                self.present.remove(&chunk);
            } else if let Some(bytes) = self.present.get_mut(&chunk) {
                let start = usize::try_from(inside).unwrap_or(0);
                let end = start + usize::try_from(len).unwrap_or(0);
                Arc::make_mut(bytes)[start..end].fill(0);
            }
            done += len;
        }
    }

    /// How many bytes of memory the present chunks take, shared ones counted too.
    #[cfg(test)]
    pub(crate) fn present_bytes(&self) -> usize {
        self.present.len() * CHUNK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_shares_until_written_and_zeroed_chunks_are_given_back() {
        let mut live = Chunks::default();
        live.write(CHUNK_BYTES as u64 - 2, &[1, 2, 3, 4]);
        let frozen = live.clone();
        live.write(CHUNK_BYTES as u64, &[9]);
        let mut seen = [0; 4];
        frozen.read(CHUNK_BYTES as u64 - 2, &mut seen);
        assert_eq!(seen, [1, 2, 3, 4]);
        live.read(CHUNK_BYTES as u64 - 2, &mut seen);
        assert_eq!(seen, [1, 2, 9, 4]);
        live.zero(0, 2 * CHUNK_BYTES as u64);
        assert_eq!(live.present_bytes(), 0);
        live.read(CHUNK_BYTES as u64 - 2, &mut seen);
        assert_eq!(seen, [0; 4]);
    }
}
