//! [`QueueLane`]: the library's data path as a lane. Over a `luks::VolumeQueue` the cipher runs on the measuring thread, as it does on
//! the thread of a server.

use anyhow::{Context as _, Result, anyhow};
use block::{BlockQueue, Bytes, IoBuf, QueueOp};
use luksbench::lane::Lane;

/// A queue, and a buffer for each slot that is idle.
pub(super) struct QueueLane {
    queue: Box<dyn BlockQueue>,
    idle: Vec<Option<IoBuf>>,
    /// Ended while others were submitted.
    early: Vec<usize>,
}

impl QueueLane {
    pub(super) fn new(mut queue: Box<dyn BlockQueue>, block_bytes: u32, depth: u32) -> QueueLane {
        let idle: Vec<_> = (0..depth.max(1)).map(|_| Some(queue.buffer(block_bytes as usize))).collect();
        QueueLane { queue, early: Vec::with_capacity(idle.len()), idle }
    }

    /// Starts what was submitted, and takes one that has ended.
    fn complete(&mut self) -> Result<Option<usize>> {
        let Some(done) = self.queue.complete() else { return Ok(None) };
        let slot = usize::try_from(done.tag)?;
        done.result?;
        let idle = self.idle.get_mut(slot).context("a completion of nothing")?;
        *idle = done.op.into_buffer();
        Ok(Some(slot))
    }
}

impl Lane for QueueLane {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.idle[slot].as_deref_mut().unwrap_or(&mut [])
    }

    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()> {
        let buf = self.idle[slot].take().context("the slot is in flight")?;
        let offset = Bytes(offset_bytes);
        let op = if write { QueueOp::Write { offset, buf, fua: false } } else { QueueOp::Read { offset, buf } };
        self.queue.submit(slot as u64, op).map_err(|_| anyhow!("a queue with room was full"))?;
        if let Some(ended) = self.complete()? {
            self.early.push(ended);
        }
        Ok(())
    }

    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        let before = ended.len();
        ended.append(&mut self.early);
        loop {
            while let Some(slot) = self.complete()? {
                ended.push(slot);
            }
            if ended.len() > before || self.idle.iter().all(Option::is_some) {
                return Ok(());
            }
            self.queue.wait()?;
        }
    }
}
