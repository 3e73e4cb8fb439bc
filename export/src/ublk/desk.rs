//! The requests of one queue between the kernel and the disk: what comes in becomes an operation of the [`BlockQueue`], what
//! comes back becomes the number that the block layer gets.
//!
//! * Each tag has its buffer for ever. It goes with the request and comes back with the answer; nothing is allocated.
//! * A trim is a hint: a disk that gives nothing up keeps its bytes, and the answer is success.
//! * Zeros that must be durable are followed by a flush of their own before they are answered.
//! * What is not asked as offered (longer than a buffer, an unknown operation) is refused, whatever the driver's reason.

use std::collections::VecDeque;

use block::{BlockErrorKind, BlockQueue, Bytes, Completion, Full, IoBuf, QueueOp};
use rustix::io::Errno;

use super::abi::{Descriptor, Operation, REQUEST_MAX_BYTES};

/// What the kernel is told of one request: bytes done, or a negative error number.
pub(super) struct Answer {
    pub(super) tag: u16,
    pub(super) result: i32,
    pub(super) buf: IoBuf,
}

/// What is kept of a request while the disk has it.
#[derive(Default)]
struct Held {
    /// Of a request that moves no data.
    buf: Option<IoBuf>,
    done_bytes: i32,
    is_hint: bool,
    flush_follows: bool,
}

/// The requests that are not with the kernel.
pub(super) struct Desk<Q> {
    queue: Q,
    held: Vec<Held>,
    /// What the queue had no room for yet, oldest first.
    waiting: VecDeque<(u16, QueueOp)>,
    /// Answered without the disk.
    refused: VecDeque<Answer>,
    under_way: usize,
}

impl<Q: BlockQueue> Desk<Q> {
    pub(super) fn new(queue: Q, depth: u16) -> Desk<Q> {
        let tags = usize::from(depth);
        Desk {
            queue,
            held: (0..tags).map(|_| Held::default()).collect(),
            waiting: VecDeque::with_capacity(tags),
            refused: VecDeque::with_capacity(tags),
            under_way: 0,
        }
    }

    pub(super) fn queue(&self) -> &Q {
        &self.queue
    }

    /// Whether every request that came was answered.
    pub(super) fn is_clear(&self) -> bool {
        self.under_way == 0 && self.waiting.is_empty() && self.refused.is_empty()
    }

    /// Takes a request of the kernel with the buffer of its tag.
    pub(super) fn take(&mut self, tag: u16, request: &Descriptor, mut buf: IoBuf) {
        let Some(held) = self.held.get_mut(usize::from(tag)) else {
            return self.refuse(tag, Errno::INVAL, buf);
        };
        let (offset, len) = (Bytes(request.offset_bytes), Bytes(request.len_bytes));
        let moves_data = matches!(request.operation, Operation::Read | Operation::Write);
        let capacity_bytes = buf.capacity_bytes();
        let done_bytes = match usize::try_from(request.len_bytes) {
            Ok(bytes) if moves_data && bytes <= capacity_bytes => {
                buf.set_window(0..bytes);
                i32::try_from(bytes).unwrap_or(0)
            }
            _ if moves_data => return self.refuse(tag, Errno::INVAL, buf),
            _ => 0,
        };
        *held = Held {
            buf: None,
            done_bytes,
            is_hint: request.operation == Operation::Discard,
            flush_follows: request.operation == Operation::WriteZeroes && request.fua,
        };
        let op = match request.operation {
            Operation::Read => QueueOp::Read { offset, buf },
            Operation::Write => QueueOp::Write { offset, buf, fua: request.fua },
            Operation::Flush => held.keep(buf, QueueOp::Flush),
            Operation::Discard => held.keep(buf, QueueOp::Discard { offset, len }),
            Operation::WriteZeroes => held.keep(buf, QueueOp::WriteZeroes { offset, len }),
            Operation::Other(_) => return self.refuse(tag, Errno::OPNOTSUPP, buf),
        };
        self.waiting.push_back((tag, op));
        self.hand_down();
    }

    fn refuse(&mut self, tag: u16, errno: Errno, buf: IoBuf) {
        self.refused.push_back(Answer { tag, result: -errno.raw_os_error(), buf });
    }

    /// Gives the queue what it has room for.
    fn hand_down(&mut self) {
        while self.queue.room() > 0
            && let Some((tag, op)) = self.waiting.pop_front()
        {
            match self.queue.submit(u64::from(tag), op) {
                Ok(()) => self.under_way += 1,
                Err(Full(op)) => {
                    self.waiting.push_front((tag, op));
                    return;
                }
            }
        }
    }

    /// The next answer; `None` when the disk has none now: then its descriptor may be waited for.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.refused.pop_front() {
                return Some(answer);
            }
            self.hand_down();
            let ended = self.queue.complete()?;
            self.under_way = self.under_way.saturating_sub(1);
            if let Some(answer) = self.ended(ended) {
                return Some(answer);
            }
        }
    }

    fn ended(&mut self, ended: Completion) -> Option<Answer> {
        let tag = u16::try_from(ended.tag).ok()?;
        let held = self.held.get_mut(usize::from(tag))?;
        if ended.result.is_ok() && held.flush_follows {
            held.flush_follows = false;
            self.waiting.push_back((tag, QueueOp::Flush));
            return None;
        }
        let result = match ended.result {
            Ok(()) => held.done_bytes,
            Err(error) if held.is_hint && error.kind == BlockErrorKind::Unsupported => 0,
            Err(error) => {
                log::debug!("{error}");
                -error.kind.errno()
            }
        };
        let buf = ended.op.into_buffer().or_else(|| held.buf.take());
        // It came with one, so it has one; a request without an answer would hang its reader for ever.
        Some(Answer { tag, result, buf: buf.unwrap_or_else(|| IoBuf::zeroed(REQUEST_MAX_BYTES as usize)) })
    }
}

impl Held {
    fn keep(&mut self, buf: IoBuf, op: QueueOp) -> QueueOp {
        self.buf = Some(buf);
        op
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::fault::{FaultDisk, Op};
    use block::{BlockIo as _, MemDisk, PreadQueue};

    use super::*;

    type Disk = Arc<FaultDisk<MemDisk>>;

    fn desk(depth: usize) -> (Disk, Desk<PreadQueue<Disk>>) {
        let disk = Arc::new(FaultDisk::new(MemDisk::new(Bytes(1 << 20))));
        let queue = PreadQueue::new(Arc::clone(&disk), depth).unwrap();
        (disk, Desk::new(queue, 4))
    }

    fn request(operation: Operation, fua: bool, offset_bytes: u64, len_bytes: u64) -> Descriptor {
        Descriptor { operation, fua, offset_bytes, len_bytes }
    }

    fn ask(desk: &mut Desk<PreadQueue<Disk>>, tag: u16, request: &Descriptor, fill: u8) -> (i32, IoBuf) {
        let mut buf = IoBuf::zeroed(8192);
        buf.fill(fill);
        desk.take(tag, request, buf);
        let answer = desk.answer().unwrap();
        assert_eq!(answer.tag, tag);
        assert!(desk.is_clear() && desk.answer().is_none());
        (answer.result, answer.buf)
    }

    #[test]
    fn what_was_written_is_read_and_the_answer_is_the_length() {
        let (disk, mut desk) = desk(4);
        assert_eq!(ask(&mut desk, 3, &request(Operation::Write, true, 4096, 4096), 7).0, 4096);
        let (result, buf) = ask(&mut desk, 0, &request(Operation::Read, false, 2048, 4096), 9);
        assert!(result == 4096 && buf[..2048].iter().all(|byte| *byte == 0) && buf[2048..4096] == [7; 2048]);
        assert_eq!(buf.capacity_bytes(), 8192);
        assert_eq!(ask(&mut desk, 1, &request(Operation::Flush, false, 0, 0), 0).0, 0);
        assert_eq!(disk.counts().flushes, 1);
        assert_eq!(ask(&mut desk, 1, &request(Operation::WriteZeroes, false, 4096, 512), 0).0, 0);
        assert_eq!((disk.counts().zeroes, disk.counts().flushes), (1, 1));
    }

    #[test]
    fn durable_zeros_are_flushed_before_they_are_answered() {
        let (disk, mut desk) = desk(4);
        assert_eq!(ask(&mut desk, 2, &request(Operation::WriteZeroes, true, 0, 512), 0).0, 0);
        assert_eq!((disk.counts().zeroes, disk.counts().flushes), (1, 1));
        disk.fail_once(Op::Flush, 1, BlockErrorKind::Io);
        assert_eq!(ask(&mut desk, 2, &request(Operation::WriteZeroes, true, 0, 512), 0).0, -5);
    }

    #[test]
    fn errors_of_the_disk_reach_the_block_layer_by_number_and_the_next_request_is_served() {
        let (disk, mut desk) = desk(4);
        for (op, kind, operation, errno) in [
            (Op::Read, BlockErrorKind::Io, Operation::Read, 5),
            (Op::Write, BlockErrorKind::NoSpace, Operation::Write, 28),
            (Op::Flush, BlockErrorKind::Gone, Operation::Flush, 19),
            (Op::WriteZeroes, BlockErrorKind::Io, Operation::WriteZeroes, 5),
        ] {
            disk.fail_once(op, 1, kind);
            assert_eq!(ask(&mut desk, 0, &request(operation, false, 0, 512), 1).0, -errno, "{operation:?}");
        }
        assert_eq!(ask(&mut desk, 0, &request(Operation::Read, false, 0, 512), 1).0, 512);
    }

    #[test]
    fn a_trim_is_a_hint_and_what_was_not_offered_is_refused() {
        let (disk, mut desk) = desk(4);
        disk.fail_once(Op::Discard, 1, BlockErrorKind::Unsupported);
        assert_eq!(ask(&mut desk, 0, &request(Operation::Discard, false, 0, 512), 0).0, 0);
        disk.fail_once(Op::Discard, 1, BlockErrorKind::Io);
        assert_eq!(ask(&mut desk, 0, &request(Operation::Discard, false, 0, 512), 0).0, -5);
        assert_eq!(ask(&mut desk, 0, &request(Operation::Read, false, 0, 8704), 0).0, -22);
        assert_eq!(ask(&mut desk, 9, &request(Operation::Read, false, 0, 512), 0).0, -22);
        assert_eq!(ask(&mut desk, 1, &request(Operation::Other(4), false, 0, 512), 0).0, -95);
        assert_eq!(ask(&mut desk, 1, &request(Operation::Read, false, 1 << 20, 512), 0).0, -22);
        assert_eq!(disk.geometry().size, Bytes(1 << 20));
    }

    #[test]
    fn more_than_the_queue_takes_waits_and_all_of_it_is_answered() {
        let (_disk, mut desk) = desk(1);
        for tag in 0..4 {
            desk.take(tag, &request(Operation::Write, false, u64::from(tag) * 512, 512), IoBuf::zeroed(8192));
        }
        let tags: Vec<u16> = std::iter::from_fn(|| desk.answer()).map(|answer| answer.tag).collect();
        assert_eq!(tags, [0, 1, 2, 3]);
        assert!(desk.is_clear());
    }
}
