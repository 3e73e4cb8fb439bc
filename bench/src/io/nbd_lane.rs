//! [`NbdLane`]: many requests in flight on one NBD connection, replies in any order.
//!
//! The socket never blocks: while the server takes no more, its replies are read, so that neither side waits for the other. Only one request
//! or reply is under way on the wire in each direction.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use block::AlignedBuf;
use luksbench::lane::Lane;
use rustix::event::{PollFd, PollFlags, poll};

use crate::exports::nbd_client::{
    CMD_DISC, CMD_READ, CMD_WRITE, REPLY_BYTES, REQUEST_BYTES, answered, request, shake_hands,
};

struct Slot {
    buffer: AlignedBuf,
    write: bool,
    in_flight: bool,
}

/// What is being sent: a header, and for a write the slot's buffer.
struct Sending {
    slot: usize,
    header: [u8; REQUEST_BYTES],
    sent_bytes: usize,
}

/// What is being received.
struct Receiving {
    reply: [u8; REPLY_BYTES],
    reply_bytes: usize,
    /// Of a read whose reply is whole: its slot, and how much of its data is there.
    data: Option<(usize, usize)>,
}

/// A connection.
pub(super) struct NbdLane {
    stream: UnixStream,
    slots: Vec<Slot>,
    sending: VecDeque<Sending>,
    receiving: Receiving,
    in_flight: usize,
}

impl NbdLane {
    pub(super) fn connect(socket: &Path, block_bytes: u32, depth: u32) -> Result<NbdLane> {
        let (stream, _) = shake_hands(socket)?;
        stream.set_nonblocking(true)?;
        let slot = |_| Slot { buffer: AlignedBuf::zeroed(block_bytes as usize), write: false, in_flight: false };
        let slots: Vec<Slot> = (0..depth.max(1)).map(slot).collect();
        let sending = VecDeque::with_capacity(slots.len());
        let receiving = Receiving { reply: [0; REPLY_BYTES], reply_bytes: 0, data: None };
        Ok(NbdLane { stream, slots, sending, receiving, in_flight: 0 })
    }

    /// Sends as much as the socket takes.
    fn send(&mut self) -> Result<()> {
        while let Some(sending) = self.sending.front_mut() {
            let slot = &self.slots[sending.slot];
            let payload: &[u8] = if slot.write { &slot.buffer } else { &[] };
            let rest = sending.sent_bytes.checked_sub(REQUEST_BYTES);
            let parts = [
                io::IoSlice::new(sending.header.get(sending.sent_bytes..).unwrap_or(&[])),
                io::IoSlice::new(payload.get(rest.unwrap_or(0)..).unwrap_or(&[])),
            ];
            match self.stream.write_vectored(&parts) {
                Ok(0) => bail!("the server takes no more"),
                Ok(count) => sending.sent_bytes += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("sending a request"),
            }
            if sending.sent_bytes == REQUEST_BYTES + payload.len() {
                self.sending.pop_front();
            }
        }
        Ok(())
    }

    /// Receives as much as there is.
    fn receive(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        while self.in_flight > 0 {
            let receiving = &mut self.receiving;
            let part = match receiving.data {
                None => &mut receiving.reply[receiving.reply_bytes..],
                Some((slot, bytes)) => &mut self.slots[slot].buffer[bytes..],
            };
            let count = match self.stream.read(part) {
                Ok(0) => bail!("the server has ended the connection"),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("receiving a reply"),
            };
            let whole = match &mut receiving.data {
                Some((slot, bytes)) => {
                    *bytes += count;
                    (*bytes == self.slots[*slot].buffer.len()).then_some(*slot)
                }
                None => {
                    receiving.reply_bytes += count;
                    if receiving.reply_bytes < REPLY_BYTES {
                        continue;
                    }
                    let slot = usize::try_from(answered(&receiving.reply)?)?;
                    let known = self.slots.get(slot).filter(|slot| slot.in_flight);
                    if known.context("the server answers what was not asked")?.write {
                        Some(slot)
                    } else {
                        receiving.data = Some((slot, 0));
                        None
                    }
                }
            };
            if let Some(slot) = whole {
                (receiving.reply_bytes, receiving.data) = (0, None);
                self.slots[slot].in_flight = false;
                self.in_flight -= 1;
                ended.push(slot);
            }
        }
        Ok(())
    }
}

impl Lane for NbdLane {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        &mut self.slots[slot].buffer
    }

    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()> {
        let taken = &mut self.slots[slot];
        ensure!(!taken.in_flight, "slot {slot} is in flight");
        (taken.write, taken.in_flight) = (write, true);
        let command = if write { CMD_WRITE } else { CMD_READ };
        let header = request(command, slot as u64, offset_bytes, taken.buffer.len())?;
        self.in_flight += 1;
        self.sending.push_back(Sending { slot, header, sent_bytes: 0 });
        self.send()
    }

    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        let before = ended.len();
        loop {
            self.send()?;
            self.receive(ended)?;
            if ended.len() > before || self.in_flight == 0 {
                return Ok(());
            }
            let wanted = if self.sending.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            match poll(&mut [PollFd::new(&self.stream, wanted)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno)).context("waiting for the server"),
            }
        }
    }
}

impl Drop for NbdLane {
    fn drop(&mut self) {
        // The server sees the end of the connection otherwise.
        if let Ok(header) = request(CMD_DISC, 0, 0, 0)
            && self.sending.is_empty()
        {
            let _ = self.stream.write_all(&header);
        }
    }
}
