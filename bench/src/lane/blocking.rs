//! [`BlockingLane`]: pread and pwrite, for machines where io_uring is denied. Its requests go one after the other, whatever the
//! depth: callers say so.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::Result;
use block::AlignedBuf;

use super::Lane;

/// Blocking calls on a file or device.
pub struct BlockingLane {
    file: Arc<File>,
    /// Where offset 0 lies.
    start_bytes: u64,
    buffers: Vec<AlignedBuf>,
    waiting: VecDeque<(usize, bool, u64)>,
}

impl BlockingLane {
    /// Requests of `block_bytes` on `file`.
    #[must_use]
    pub fn new(file: Arc<File>, start_bytes: u64, block_bytes: u32, depth: u32) -> BlockingLane {
        let buffers: Vec<AlignedBuf> = (0..depth.max(1)).map(|_| AlignedBuf::zeroed(block_bytes as usize)).collect();
        BlockingLane { file, start_bytes, waiting: VecDeque::with_capacity(buffers.len()), buffers }
    }
}

impl Lane for BlockingLane {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        &mut self.buffers[slot]
    }

    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()> {
        self.waiting.push_back((slot, write, self.start_bytes + offset_bytes));
        Ok(())
    }

    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        let Some((slot, write, offset_bytes)) = self.waiting.pop_front() else { return Ok(()) };
        let buffer = &mut self.buffers[slot];
        if write {
            self.file.write_all_at(buffer, offset_bytes)?;
        } else {
            self.file.read_exact_at(buffer, offset_bytes)?;
        }
        ended.push(slot);
        Ok(())
    }
}
