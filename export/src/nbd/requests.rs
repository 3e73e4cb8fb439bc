//! One request of the transmission phase: taken off the stream, held against the rules, carried out, answered.
//!
//! * What comes after the header of a WRITE is taken off the stream whatever the verdict, so the next request is found. A longer
//!   payload than [`MAX_PAYLOAD_BYTES`] ends the connection.
//! * Memory: a request uses its thread's buffer and goes through it in pieces; nothing is allocated. Only a READ without
//!   structured replies that is longer than the buffer needs more, for its error must be told before its first byte: the
//!   connection's [`LongRead`], which keeps what an ordinary client asks for.
//! * Bytes go from the socket into the buffer and from there to the disk, and back: nothing is copied here.
//! * A success is sent after the disk said so, never before.

use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};

use super::ConnectionError;
use super::codec::{
    Command, MAX_PAYLOAD_BYTES, NbdError, REQUEST_BYTES, Request, data_chunk, error_chunk, flag, simple_reply,
    status_chunk,
};
use super::handshake::{ALLOCATION_ID, Agreed};

/// Bytes of a thread's buffer; a structured READ is answered in chunks of this.
pub(super) const BUFFER_BYTES: usize = 1 << 20;
/// Most that a connection keeps for long reads between two of them: the largest request of the kernel's client.
const LONG_KEPT_BYTES: usize = 4 << 20;
/// base:allocation of everything: data, and no hole. Below a cipher a hole would not read as zeros.
const DATA: u32 = 0;

/// Memory of one connection for a READ that is longer than a buffer; such reads go one at a time.
#[derive(Default)]
pub(super) struct LongRead(Mutex<Vec<u8>>);

/// Where replies go. Each call is one reply or chunk, whole, never mixed with another thread's.
pub(super) trait Replies {
    /// Sends `head`, then `body`.
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()>;
}

/// A request off the stream, with the last piece of its payload in the buffer.
pub(super) struct Taken {
    request: Request,
    /// Refused already, or broken in an earlier piece.
    verdict: Result<(), NbdError>,
    piece_offset: u64,
    piece_len_bytes: usize,
}

/// Takes the next request. `None` if the client is done: it said so, or it hung up between two requests.
pub(super) fn take<R: Read>(
    input: &mut R,
    agreed: &Agreed,
    buffer: &mut [u8],
) -> Result<Option<Taken>, ConnectionError> {
    let mut head = [0; REQUEST_BYTES];
    let mut there = 0;
    while there < REQUEST_BYTES {
        match input.read(&mut head[there..]) {
            Ok(0) if there == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(count) => there += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(request) = Request::parse(&head) else {
        return Err(ConnectionError::Garbage("it sent something else than a request".to_owned()));
    };
    let verdict = check(&request, agreed, buffer.len());
    let mut taken = Taken { request, verdict, piece_offset: request.offset, piece_len_bytes: 0 };
    match request.command {
        Command::Disconnect => return Ok(None),
        Command::Write => take_payload(input, agreed, buffer, &mut taken)?,
        _ => {}
    }
    Ok(Some(taken))
}

/// Takes the payload of a WRITE. All but its last piece is written here; in practice there is one piece.
fn take_payload<R: Read>(
    input: &mut R,
    agreed: &Agreed,
    buffer: &mut [u8],
    taken: &mut Taken,
) -> Result<(), ConnectionError> {
    let request = taken.request;
    if request.len_bytes > MAX_PAYLOAD_BYTES {
        let what = format!("it wants to write {} bytes at once", request.len_bytes);
        return Err(ConnectionError::Garbage(what));
    }
    let mut left = request.len_bytes as usize;
    while left > 0 {
        let piece = left.min(buffer.len());
        input.read_exact(&mut buffer[..piece])?;
        left -= piece;
        if left == 0 {
            taken.piece_len_bytes = piece;
        } else if taken.verdict.is_ok() {
            taken.verdict = agreed.disk.write(taken.piece_offset, &mut buffer[..piece], request.has(flag::FUA));
            taken.piece_offset += piece as u64;
        }
    }
    Ok(())
}

/// The rules: what the protocol demands and what this export told the client that it can do.
fn check(request: &Request, agreed: &Agreed, buffer_bytes: usize) -> Result<(), NbdError> {
    let command = request.command;
    if let Command::Other(number) = command {
        log::debug!("command {number} is not known");
        return Err(NbdError::Inval);
    }
    if request.flags & !command.flags() != 0 || request.has(flag::DF) && !agreed.structured {
        return Err(NbdError::Inval);
    }
    if matches!(command, Command::Flush | Command::Disconnect) {
        return Ok(());
    }
    if command.writes() && agreed.disk.is_read_only() {
        return Err(NbdError::Perm);
    }
    if command == Command::Trim && !agreed.disk.trims() {
        return Err(NbdError::Inval);
    }
    if request.len_bytes == 0 || command == Command::BlockStatus && !agreed.allocation {
        return Err(NbdError::Inval);
    }
    let fits = request.offset.checked_add(u64::from(request.len_bytes)).is_some_and(|end| end <= agreed.size_bytes);
    if !fits {
        let grows = matches!(command, Command::Write | Command::WriteZeroes);
        return Err(if grows { NbdError::NoSpc } else { NbdError::Inval });
    }
    if command == Command::Read && request.len_bytes > MAX_PAYLOAD_BYTES {
        return Err(NbdError::Inval);
    }
    if request.has(flag::DF) && request.len_bytes as usize > buffer_bytes && command == Command::Read {
        return Err(NbdError::Overflow);
    }
    if request.has(flag::FAST_ZERO) && command == Command::WriteZeroes {
        // Zeros are encrypted and written like any data: the client does better not to write them first.
        return Err(NbdError::NotSup);
    }
    Ok(())
}

/// Carries a request out and answers it. `long_read` is the connection's.
pub(super) fn answer(
    taken: &Taken,
    agreed: &Agreed,
    buffer: &mut [u8],
    long_read: &LongRead,
    replies: &impl Replies,
    is_over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let request = &taken.request;
    let len_bytes = u64::from(request.len_bytes);
    let disk = &agreed.disk;
    let done = match (taken.verdict, request.command) {
        (Err(error), _) => Err(error),
        (Ok(()), Command::Read) => return read(request, agreed, buffer, long_read, replies),
        (Ok(()), Command::BlockStatus) => {
            let chunk = status_chunk(request.cookie, ALLOCATION_ID, request.len_bytes, DATA);
            return replies.send(&chunk, &[]);
        }
        (Ok(()), Command::Write) => {
            disk.write(taken.piece_offset, &mut buffer[..taken.piece_len_bytes], request.has(flag::FUA))
        }
        (Ok(()), Command::Flush) => disk.flush(),
        (Ok(()), Command::Trim) => {
            disk.trim(request.offset, len_bytes).and_then(|()| flush_if(request.has(flag::FUA), agreed))
        }
        (Ok(()), Command::WriteZeroes) => disk
            .write_zeroes(request.offset, len_bytes, request.has(flag::NO_HOLE), buffer, is_over)
            .and_then(|()| flush_if(request.has(flag::FUA), agreed)),
        (Ok(()), Command::Disconnect | Command::Other(_)) => Err(NbdError::Inval),
    };
    let needs_chunk = matches!(request.command, Command::Read | Command::BlockStatus) && agreed.structured;
    match done {
        Err(error) if needs_chunk => send_error(request.cookie, error, None, replies),
        done => replies.send(&simple_reply(request.cookie, done.err()), &[]),
    }
}

fn flush_if(fua: bool, agreed: &Agreed) -> Result<(), NbdError> {
    if fua { agreed.disk.flush() } else { Ok(()) }
}

fn send_error(cookie: u64, error: NbdError, offset: Option<u64>, replies: &impl Replies) -> io::Result<()> {
    let mut tail = error.words().as_bytes().to_vec();
    tail.extend(offset.iter().flat_map(|offset| offset.to_be_bytes()));
    replies.send(&error_chunk(cookie, error, offset.is_some()), &tail)
}

fn read(
    request: &Request,
    agreed: &Agreed,
    buffer: &mut [u8],
    long_read: &LongRead,
    replies: &impl Replies,
) -> io::Result<()> {
    let len_bytes = request.len_bytes as usize;
    if agreed.structured {
        return read_in_chunks(request, agreed, buffer, replies);
    }
    let answer = |bytes: &mut [u8]| match agreed.disk.read(request.offset, bytes) {
        Ok(()) => replies.send(&simple_reply(request.cookie, None), bytes),
        Err(error) => replies.send(&simple_reply(request.cookie, Some(error)), &[]),
    };
    if len_bytes <= buffer.len() {
        return answer(&mut buffer[..len_bytes]);
    }
    let mut long = long_read.0.lock().unwrap_or_else(PoisonError::into_inner);
    if long.len() < len_bytes {
        let missing = len_bytes - long.len();
        if long.try_reserve_exact(missing).is_err() {
            return replies.send(&simple_reply(request.cookie, Some(NbdError::NoMem)), &[]);
        }
        long.resize(len_bytes, 0);
    }
    let answered = answer(&mut long[..len_bytes]);
    if long.len() > LONG_KEPT_BYTES {
        *long = Vec::new();
    }
    answered
}

fn read_in_chunks(request: &Request, agreed: &Agreed, buffer: &mut [u8], replies: &impl Replies) -> io::Result<()> {
    let end = request.offset + u64::from(request.len_bytes);
    let mut at = request.offset;
    while at < end {
        let piece = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        if let Err(error) = agreed.disk.read(at, &mut buffer[..piece]) {
            return send_error(request.cookie, error, Some(at), replies);
        }
        let after = at + piece as u64;
        // At most the buffer, which is far below 4 GiB.
        let told = u32::try_from(piece).unwrap_or(u32::MAX);
        replies.send(&data_chunk(request.cookie, after == end, at, told), &buffer[..piece])?;
        at = after;
    }
    Ok(())
}
