//! Aligned memory for direct I/O, in safe Rust: [`AlignedBuf`] over-allocates and begins at the first aligned byte;
//! [`BufferPool`] keeps such buffers for the next request.
//!
//! Invariants: a buffer never moves or changes its length after it was made; a fresh one is zero, a reused one holds what
//! its last user left; the pool keeps at most [`BufferPool::KEPT`] buffers.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// The alignment every buffer has at least: one page.
pub const BUFFER_ALIGNMENT_BYTES: usize = 4096;

/// A zeroed buffer whose first byte lies at a multiple of [`BUFFER_ALIGNMENT_BYTES`].
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len_bytes: usize,
}

impl AlignedBuf {
    /// `len_bytes` zero bytes, aligned.
    pub fn zeroed(len_bytes: usize) -> AlignedBuf {
        let memory = vec![0; len_bytes + BUFFER_ALIGNMENT_BYTES];
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(BUFFER_ALIGNMENT_BYTES) - address;
        AlignedBuf { memory, start, len_bytes }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len_bytes]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len_bytes]
    }
}

/// Keeps buffers between requests, so that the data path does not allocate.
pub struct BufferPool {
    kept: Mutex<Vec<AlignedBuf>>,
    capacity_bytes: usize,
}

impl BufferPool {
    /// How many idle buffers a pool keeps: as many as there are writers at a time on a busy disk.
    pub const KEPT: usize = 64;

    /// A pool whose buffers hold `capacity_bytes`; longer requests are served by buffers that are not kept.
    pub const fn new(capacity_bytes: usize) -> BufferPool {
        BufferPool { kept: Mutex::new(Vec::new()), capacity_bytes }
    }

    /// Allocates `count` buffers now (at most [`BufferPool::KEPT`]), so that none must be allocated under memory pressure.
    pub fn fill(&self, count: usize) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() < count.min(BufferPool::KEPT) {
            kept.push(AlignedBuf::zeroed(self.capacity_bytes));
        }
    }

    /// A buffer of exactly `len_bytes`, aligned; its content is anything. It goes back to the pool when dropped.
    pub fn take(&self, len_bytes: usize) -> PooledBuf<'_> {
        let idle = if len_bytes <= self.capacity_bytes {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
        } else {
            None
        };
        let buffer = idle.unwrap_or_else(|| AlignedBuf::zeroed(len_bytes.max(self.capacity_bytes)));
        PooledBuf { pool: self, buffer: Some(buffer), len_bytes }
    }
}

/// A buffer on loan from a [`BufferPool`].
pub struct PooledBuf<'a> {
    pool: &'a BufferPool,
    /// `None` only while dropping.
    buffer: Option<AlignedBuf>,
    len_bytes: usize,
}

impl Deref for PooledBuf<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.len_bytes])
    }
}

impl DerefMut for PooledBuf<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut buffer[..self.len_bytes])
    }
}

impl Drop for PooledBuf<'_> {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        let mut kept = self.pool.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.len_bytes == self.pool.capacity_bytes && kept.len() < BufferPool::KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_of_their_length() {
        for len_bytes in [0, 1, 512, 4096, 1_048_577] {
            let buffer = AlignedBuf::zeroed(len_bytes);
            assert_eq!(buffer.as_ptr().addr() % BUFFER_ALIGNMENT_BYTES, 0);
            assert_eq!((buffer.len(), buffer.iter().all(|&byte| byte == 0)), (len_bytes, true));
        }
    }

    #[test]
    fn a_pool_lends_the_same_memory_again_and_never_keeps_long_ones() {
        let pool = BufferPool::new(8192);
        let first = pool.take(512).as_ptr().addr();
        let again = pool.take(8192);
        assert_eq!((again.as_ptr().addr(), again.len()), (first, 8192));
        drop(pool.take(100_000));
        drop(again);
        let kept = pool.kept.lock().unwrap().iter().map(|buffer| buffer.len_bytes).collect::<Vec<_>>();
        assert_eq!(kept, [8192]);
    }
}
