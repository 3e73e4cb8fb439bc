//! [`VolumeQueue`]: the volume for a thread that owns its requests from arrival to reply: a [`BlockQueue`] of plaintext over one of
//! ciphertext, behind the gate of its [`Volume`].
//!
//! * The cipher runs inline, on the thread that submits and completes. Writes are encrypted from the request's buffer straight
//!   into the buffer that is written, so a request's plaintext stays as it was; reads are decrypted in place, in the buffer
//!   that was read into. Nothing else is copied, and nothing is allocated in steady state.
//! * A piece is encrypted only when the queue below has room for it: full is not failed.
//! * A request runs wholly under one map. While somebody parks the volume there is no room, and what is inside comes to its end;
//!   while the volume is suspended there is no room either, until it is resumed (the queue's waker is used) or told to fail.
//! * Poison, discards, zeroes, read-only and the refusals are those of [`Volume`]; so is the size, which may grow.
//!
//! A request is cut at the borders of segments and after [`CHUNK_BYTES`]. The pieces of a write are under way together; those of
//! a read one after the other, because they share one buffer.
//!
//! Order is promised as little as by [`BlockQueue`]. Requests that are not made of whole logical blocks are `Unaligned`: the
//! larger of the volume's block and of the disk's, as nothing here reads, changes and writes back (`block::ByteView` over the
//! [`Volume`] does).

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{
    BlockError, BlockErrorKind, BlockIo, BlockQueue, Bytes, Completion, Full, Geometry, IoBuf, QueueOp, Waker,
};

use super::lane::{Place, Refused};
use super::{CHUNK_BYTES, SegmentMap, Volume, refusal};

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write { fua: bool },
    WriteZeroes,
    Discard,
    Flush,
}

/// One request, from its submission to its completion.
struct Request {
    tag: u64,
    kind: Kind,
    offset: Bytes,
    len_bytes: u64,
    /// `None` while a read is under way below, and for what has none.
    buf: Option<IoBuf>,
    /// The part of the buffer that is the request.
    window: Range<usize>,
    /// How much of it was handed down.
    sent_bytes: u64,
    /// Where the last piece handed down begins in the request: the one that a read waits for.
    piece_start: u64,
    pieces_below: usize,
    failed: Option<BlockError>,
    /// Whether it is in [`VolumeQueue::unsent`].
    is_unsent: bool,
}

impl Request {
    fn new(tag: u64, op: QueueOp) -> Request {
        let (offset, len_bytes) = op.range();
        let kind = match &op {
            QueueOp::Read { .. } => Kind::Read,
            QueueOp::Write { fua, .. } => Kind::Write { fua: *fua },
            QueueOp::WriteZeroes { .. } => Kind::WriteZeroes,
            QueueOp::Discard { .. } => Kind::Discard,
            QueueOp::Flush => Kind::Flush,
        };
        let buf = op.into_buffer();
        let window = buf.as_ref().map_or(0..0, IoBuf::window);
        Request {
            tag,
            kind,
            offset,
            len_bytes,
            buf,
            window,
            sent_bytes: 0,
            piece_start: 0,
            pieces_below: 0,
            failed: None,
            is_unsent: false,
        }
    }

    fn is_all_sent(&self) -> bool {
        self.failed.is_some() || self.sent_bytes >= self.len_bytes
    }

    /// The operation as it came. A buffer is always back by then; an empty one in its place would be a fault of ours.
    fn into_completion(self) -> Completion {
        let Request { offset, window, .. } = self;
        let len = Bytes(self.len_bytes);
        let whole = |buf: Option<IoBuf>| {
            let mut buf = buf.unwrap_or_else(|| IoBuf::zeroed(0));
            buf.set_window(window);
            buf
        };
        let op = match self.kind {
            Kind::Read => QueueOp::Read { offset, buf: whole(self.buf) },
            Kind::Write { fua } => QueueOp::Write { offset, buf: whole(self.buf), fua },
            Kind::WriteZeroes => QueueOp::WriteZeroes { offset, len },
            Kind::Discard => QueueOp::Discard { offset, len },
            Kind::Flush => QueueOp::Flush,
        };
        Completion { tag: self.tag, op, result: self.failed.map_or(Ok(()), Err) }
    }
}

/// A queue on an unlocked volume over the queue `Q`, which is on the volume's own data device.
pub struct VolumeQueue<D: BlockIo, Q: BlockQueue> {
    volume: Arc<Volume<D>>,
    // Dropped before `place`: the value goes home when nothing is under way any more.
    inner: Q,
    place: Place<SegmentMap>,
    block: Bytes,
    requests: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Requests of which something waits for room below, oldest first.
    unsent: VecDeque<usize>,
    ended: VecDeque<Completion>,
}

impl<D: BlockIo, Q: BlockQueue> VolumeQueue<D, Q> {
    /// A queue on `volume` that works through `inner`, an idle queue on the same data device that nobody else uses. It takes as
    /// many requests as `inner` does operations. Waits while somebody parks the volume.
    pub fn new(volume: Arc<Volume<D>>, inner: Q) -> VolumeQueue<D, Q> {
        let depth = inner.room().max(1);
        let place = volume.gate.join(inner.waker());
        let block = Bytes(u64::from(inner.geometry().logical_block));
        VolumeQueue {
            volume,
            inner,
            place,
            block,
            requests: (0..depth).map(|_| None).collect(),
            free: (0..depth).collect(),
            unsent: VecDeque::with_capacity(depth),
            ended: VecDeque::with_capacity(depth),
        }
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Volume<D>> {
        &self.volume
    }

    /// What can be said against an operation under the map in force.
    fn check(&self, op: &QueueOp) -> Result<(), BlockError> {
        let (offset, len_bytes) = op.range();
        if op.is_change() {
            self.volume.check_writable(op.name(), offset, len_bytes)?;
        }
        match op {
            QueueOp::Flush => return self.volume.check_healthy(op.name(), offset, len_bytes),
            QueueOp::Discard { .. } if !self.volume.discards => return Err(op.error(BlockErrorKind::Unsupported)),
            _ => {}
        }
        if !offset.is_multiple_of(self.block) || !Bytes(len_bytes).is_multiple_of(self.block) {
            return Err(op.error(BlockErrorKind::Unaligned));
        }
        let map = self.place.value().ok_or_else(|| op.error(BlockErrorKind::Suspended))?;
        self.volume.check_range(map, op.name(), offset, len_bytes)
    }

    fn refuse(&mut self, tag: u64, op: QueueOp, error: BlockError) {
        self.ended.push_back(Completion { tag, op, result: Err(error) });
        self.leave_if_idle();
    }

    fn leave_if_idle(&mut self) {
        if self.free.len() == self.requests.len() {
            self.place.leave();
        }
    }

    /// Hands down what there is room for, and ends the request if nothing of it is left.
    fn advance(&mut self, slot: usize) {
        loop {
            let Some(request) = self.requests.get_mut(slot).and_then(Option::as_mut) else { return };
            let is_read_below = request.kind == Kind::Read && request.pieces_below > 0;
            let flush_is_due = request.kind == Kind::Flush && request.sent_bytes == 0 && request.failed.is_none();
            if (request.is_all_sent() && !flush_is_due) || is_read_below {
                break;
            }
            if self.inner.room() == 0 {
                if !request.is_unsent {
                    request.is_unsent = true;
                    self.unsent.push_back(slot);
                }
                return;
            }
            match send_piece(&mut self.inner, self.place.value(), slot, request) {
                Ok(()) => request.pieces_below += 1,
                Err(error) => request.failed = Some(error),
            }
        }
        self.end_if_done(slot);
    }

    fn end_if_done(&mut self, slot: usize) {
        let is_done = |request: &Request| request.is_all_sent() && request.pieces_below == 0;
        let Some(ended) = self.requests.get_mut(slot).and_then(|request| request.take_if(|request| is_done(request)))
        else {
            return;
        };
        self.free.push(slot);
        self.ended.push_back(ended.into_completion());
        self.leave_if_idle();
    }

    /// Takes one completion of the queue below.
    fn piece_ended(&mut self, completion: Completion) {
        let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
        let Some(request) = self.requests.get_mut(slot).and_then(Option::as_mut) else { return };
        request.pieces_below = request.pieces_below.saturating_sub(1);
        let result = match request.kind {
            Kind::Read => completion.result,
            Kind::Flush => flushed(&self.volume, completion.result),
            _ => self.volume.written(completion.result),
        };
        let is_read_well = request.kind == Kind::Read && result.is_ok();
        if let Err(error) = result {
            request.failed.get_or_insert(error);
        }
        if let Some(mut buf) = completion.op.into_buffer() {
            if request.kind == Kind::Read {
                if is_read_well && let Some(map) = self.place.value() {
                    let crypt = map.piece(request.offset.0 + request.piece_start, 1).and_then(|piece| piece.crypt);
                    if let Some((cipher, iv_sector)) = crypt {
                        cipher.decrypt_in_place(iv_sector, &mut buf);
                    }
                }
                request.buf = Some(buf);
            } else {
                self.inner.recycle(buf);
            }
        }
        self.advance(slot);
    }

    /// Hands down what waits for room, oldest first.
    fn send_waiting(&mut self) {
        while self.inner.room() > 0
            && let Some(slot) = self.unsent.pop_front()
        {
            if let Some(request) = self.requests.get_mut(slot).and_then(Option::as_mut) {
                request.is_unsent = false;
            }
            self.advance(slot);
        }
    }
}

/// Hands the next piece of `request` down; the queue below has room.
fn send_piece<Q: BlockQueue>(
    inner: &mut Q,
    map: Option<&SegmentMap>,
    slot: usize,
    request: &mut Request,
) -> Result<(), BlockError> {
    let (at, rest_bytes) = (request.offset.0 + request.sent_bytes, request.len_bytes - request.sent_bytes);
    let nowhere = |kind| refusal(kind, "split", at, rest_bytes);
    if request.kind == Kind::Flush {
        // A flush has no bytes; one is counted so that it is sent once.
        request.sent_bytes = 1;
        return inner.submit(slot as u64, QueueOp::Flush).map_err(|_| nowhere(BlockErrorKind::Busy));
    }
    let map = map.ok_or_else(|| nowhere(BlockErrorKind::Suspended))?;
    let most_bytes = match request.kind {
        Kind::Write { .. } | Kind::WriteZeroes => CHUNK_BYTES as u64,
        _ => u64::MAX,
    };
    let piece = map.piece(at, rest_bytes.min(most_bytes)).ok_or_else(|| nowhere(BlockErrorKind::OutOfRange))?;
    let offset = piece.device_offset;
    let start = usize::try_from(request.sent_bytes).map_err(|_| nowhere(BlockErrorKind::OutOfRange))?;
    let len = usize::try_from(piece.len_bytes);
    let op = match request.kind {
        Kind::Flush => return Err(nowhere(BlockErrorKind::Unsupported)),
        Kind::Discard => QueueOp::Discard { offset, len: Bytes(piece.len_bytes) },
        Kind::Read => {
            let mut buf = request.buf.take().ok_or_else(|| nowhere(BlockErrorKind::Io))?;
            let first = request.window.start + start;
            buf.set_window(first..first + len.map_err(|_| nowhere(BlockErrorKind::OutOfRange))?);
            QueueOp::Read { offset, buf }
        }
        Kind::WriteZeroes => {
            let mut buf = inner.buffer(len.map_err(|_| nowhere(BlockErrorKind::OutOfRange))?);
            buf.fill(0);
            if let Some((cipher, iv_sector)) = piece.crypt {
                cipher.encrypt_in_place(iv_sector, &mut buf);
            }
            QueueOp::Write { offset, buf, fua: false }
        }
        Kind::Write { fua } => {
            let plain = request.buf.as_deref().ok_or_else(|| nowhere(BlockErrorKind::Io))?;
            let len = len.map_err(|_| nowhere(BlockErrorKind::OutOfRange))?;
            let plain = plain.get(start..start + len).ok_or_else(|| nowhere(BlockErrorKind::Io))?;
            let mut buf = inner.buffer(len);
            match piece.crypt {
                Some((cipher, iv_sector)) => cipher.encrypt(iv_sector, plain, &mut buf),
                None => buf.copy_from_slice(plain),
            }
            QueueOp::Write { offset, buf, fua }
        }
    };
    request.piece_start = request.sent_bytes;
    request.sent_bytes += piece.len_bytes;
    let Err(Full(op)) = inner.submit(slot as u64, op) else { return Ok(()) };
    // It had room a moment ago: a queue that says otherwise now breaks its promise, and gets no second piece.
    if request.kind == Kind::Read {
        request.buf = op.into_buffer();
    }
    Err(nowhere(BlockErrorKind::Busy))
}

/// Notes what a flush says about the writes before it.
fn flushed<D: BlockIo>(volume: &Volume<D>, result: Result<(), BlockError>) -> Result<(), BlockError> {
    if result.is_err() {
        volume.poison();
        return result;
    }
    // A write may have been lost while the disk flushed: then this flush vouches for nothing.
    volume.check_healthy("flush", Bytes::ZERO, 0)
}

impl<D: BlockIo, Q: BlockQueue> BlockQueue for VolumeQueue<D, Q> {
    fn geometry(&self) -> Geometry {
        let (volume, below) = (self.volume.geometry(), self.inner.geometry());
        let logical_block = volume.logical_block.max(below.logical_block);
        Geometry {
            size: volume.size.round_down(Bytes(u64::from(logical_block))),
            logical_block,
            physical_block: volume.physical_block.max(logical_block),
            ..volume
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.descriptor()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn room(&self) -> usize {
        if self.place.lane.is_shut() { 0 } else { self.free.len().saturating_sub(self.ended.len()) }
    }

    fn submit(&mut self, tag: u64, op: QueueOp) -> Result<(), Full> {
        if self.free.len() <= self.ended.len() {
            return Err(Full(op));
        }
        match self.place.enter() {
            Ok(()) => {}
            Err(Refused::Shut) => return Err(Full(op)),
            Err(Refused::SentAway) => {
                if op.is_change() {
                    self.volume.refused_writes.store(true, Ordering::SeqCst);
                }
                let error = op.error(BlockErrorKind::Suspended);
                self.refuse(tag, op, error);
                return Ok(());
            }
        }
        if let Err(error) = self.check(&op) {
            self.refuse(tag, op, error);
            return Ok(());
        }
        let Some(slot) = self.free.pop() else { return Err(Full(op)) };
        self.requests[slot] = Some(Request::new(tag, op));
        self.advance(slot);
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        loop {
            self.send_waiting();
            if let Some(completion) = self.ended.pop_front() {
                return Some(completion);
            }
            let piece = self.inner.complete()?;
            self.piece_ended(piece);
        }
    }

    fn wait(&mut self) -> Result<(), BlockError> {
        if self.ended.is_empty() { self.inner.wait() } else { Ok(()) }
    }

    fn buffer(&mut self, len_bytes: usize) -> IoBuf {
        self.inner.buffer(len_bytes)
    }

    fn recycle(&mut self, buf: IoBuf) {
        self.inner.recycle(buf);
    }
}

#[cfg(test)]
mod tests;
