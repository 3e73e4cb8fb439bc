//! The numbers and the byte layouts of the NBD protocol: pure functions, no I/O, nothing allocated from input.
//!
//! All integers are big-endian.
//!
//! ```text
//! request           magic 25609513 | flags u16 | command u16 | cookie u64 | offset u64 | length u32 | (WRITE: payload)
//! simple reply      magic 67446698 | error u32 | cookie u64 | (READ: payload)
//! structured chunk  magic 668e33ef | flags u16 | type u16 | cookie u64 | length u32 | payload
//! option            magic IHAVEOPT | option u32 | length u32 | data
//! option reply      magic 3e889045565a9 | option u32 | type u32 | length u32 | data
//! ```
//!
//! Source: `doc/proto.md` of the NBD project (github.com/NetworkBlockDevice/nbd).

/// First eight bytes that a server sends.
pub(super) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Opens the server's greeting and every option of a client.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same in both directions.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

/// Length of a request without its payload.
pub(super) const REQUEST_BYTES: usize = 28;
/// Length of an option without its data.
pub(super) const OPTION_BYTES: usize = 16;
/// Zeros after the answer to EXPORT_NAME, unless NO_ZEROES was agreed.
pub(super) const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Longest payload of a request or a reply that this server takes part in; also what it announces.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 32 << 20;

/// What a client may ask for while it haggles.
pub(super) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Types of answers to options.
pub(super) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUPPORTED: u32 = ERROR + 1;
    pub(crate) const ERR_POLICY: u32 = ERROR + 2;
    pub(crate) const ERR_INVALID: u32 = ERROR + 3;
    #[cfg(feature = "tls")]
    pub(crate) const ERR_TLS_REQD: u32 = ERROR + 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR + 9;
}

/// Kinds of information about an export.
pub(super) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod transmission {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub(super) mod flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured chunks.
pub(super) mod chunk {
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
    pub(crate) const ERROR_OFFSET: u16 = (1 << 15) + 2;
    /// The flag of the last chunk of a reply.
    pub(crate) const DONE: u16 = 1;
}

/// Error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NbdError {
    /// The export is read-only.
    Perm = 1,
    /// The disk failed.
    Io = 5,
    /// No memory for the request.
    NoMem = 12,
    /// The request breaks a rule.
    Inval = 22,
    /// No room: behind the end, or the medium below is full.
    NoSpc = 28,
    /// Not possible in one piece.
    Overflow = 75,
    /// Not possible.
    NotSup = 95,
    /// The server ends.
    Shutdown = 108,
}

impl NbdError {
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    /// What a person at the client may read.
    pub(super) fn words(self) -> &'static str {
        match self {
            NbdError::Perm => "the export is read-only",
            NbdError::Io => "input/output error of the disk below",
            NbdError::NoMem => "no memory for so large a request",
            NbdError::Inval => "the request breaks a rule of the protocol or of this export",
            NbdError::NoSpc => "behind the end of the export, or no space left below",
            NbdError::Overflow => "too long for one piece",
            NbdError::NotSup => "not supported",
            NbdError::Shutdown => "the server is shutting down",
        }
    }
}

/// What a client asks for in transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
    /// CACHE, RESIZE and what came later: not announced, so refused.
    Other(u16),
}

impl Command {
    fn of(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Other(other),
        }
    }

    /// The flags that may come with it.
    pub(super) fn flags(self) -> u16 {
        match self {
            // FUA is a promise that costs nothing where nothing is written.
            Command::Read => flag::DF | flag::FUA,
            Command::Write | Command::Trim | Command::Flush => flag::FUA,
            Command::WriteZeroes => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            Command::BlockStatus => flag::REQ_ONE | flag::FUA,
            Command::Disconnect | Command::Other(_) => u16::MAX,
        }
    }

    /// Whether it changes the disk.
    pub(super) fn writes(self) -> bool {
        matches!(self, Command::Write | Command::Trim | Command::WriteZeroes)
    }
}

/// One request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: Command,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len_bytes: u32,
}

impl Request {
    /// `None` if these bytes are no request.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: fields.u16()?,
            command: Command::of(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len_bytes: fields.u32()?,
        })
    }

    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The head of one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHead {
    pub(super) option: u32,
    pub(super) len_bytes: u32,
}

impl OptionHead {
    /// `None` if these bytes are no option.
    pub(super) fn parse(bytes: &[u8; OPTION_BYTES]) -> Option<OptionHead> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHead { option: fields.u32()?, len_bytes: fields.u32()? })
    }
}

/// Takes integers and strings off the front of bytes that somebody else wrote.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length and so many bytes.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let len_bytes = usize::try_from(self.u32()?).ok()?;
        let (first, rest) = self.0.split_at_checked(len_bytes)?;
        self.0 = rest;
        Some(first)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes put together from parts whose lengths add up to `N`.
fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut all = [0; N];
    let mut at = 0;
    for part in parts {
        all[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    debug_assert_eq!(at, N, "a layout without holes");
    all
}

/// The greeting of a server.
pub(super) fn greeting() -> [u8; 18] {
    let flags = FIXED_NEWSTYLE | NO_ZEROES;
    joined(&[&SERVER_MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()])
}

/// The head of an answer to an option.
pub(super) fn option_reply(option: u32, kind: u32, data_len_bytes: u32) -> [u8; 20] {
    joined(&[
        &OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &data_len_bytes.to_be_bytes(),
    ])
}

/// A simple reply, before the payload of a READ. No error is 0.
pub(super) fn simple_reply(cookie: u64, error: Option<NbdError>) -> [u8; 16] {
    let number = error.map_or(0, NbdError::number);
    joined(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &number.to_be_bytes(), &cookie.to_be_bytes()])
}

fn chunk_head(cookie: u64, kind: u16, done: bool, len_bytes: u32) -> [u8; 20] {
    let flags = if done { chunk::DONE } else { 0 };
    joined(&[
        &CHUNK_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len_bytes.to_be_bytes(),
    ])
}

/// The head of a chunk that carries `data_len_bytes` bytes from `offset`; at most [`MAX_PAYLOAD_BYTES`] of them.
pub(super) fn data_chunk(cookie: u64, done: bool, offset: u64, data_len_bytes: u32) -> [u8; 28] {
    joined(&[&chunk_head(cookie, chunk::OFFSET_DATA, done, data_len_bytes + 8), &offset.to_be_bytes()])
}

/// A chunk with one extent of the context `context`.
pub(super) fn status_chunk(cookie: u64, context: u32, extent_len_bytes: u32, status: u32) -> [u8; 32] {
    joined(&[
        &chunk_head(cookie, chunk::BLOCK_STATUS, true, 12),
        &context.to_be_bytes(),
        &extent_len_bytes.to_be_bytes(),
        &status.to_be_bytes(),
    ])
}

/// The head of a last chunk that tells an error, before its words and, if there is an `offset`, that offset.
pub(super) fn error_chunk(cookie: u64, error: NbdError, has_offset: bool) -> [u8; 26] {
    // The words are ours, and short.
    let words = u16::try_from(error.words().len()).unwrap_or(0);
    let (kind, offset_len_bytes) = if has_offset { (chunk::ERROR_OFFSET, 8) } else { (chunk::ERROR, 0) };
    let len_bytes = 6 + u32::from(words) + offset_len_bytes;
    joined(&[&chunk_head(cookie, kind, true, len_bytes), &error.number().to_be_bytes(), &words.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_field_by_field_and_garbage_is_none() {
        let mut bytes: [u8; REQUEST_BYTES] = joined(&[
            &[0x25, 0x60, 0x95, 0x13],
            &[0, 1, 0, 6],
            &7u64.to_be_bytes(),
            &(1u64 << 40).to_be_bytes(),
            &4096u32.to_be_bytes(),
        ]);
        let request = Request::parse(&bytes).unwrap();
        let expected =
            Request { flags: flag::FUA, command: Command::WriteZeroes, cookie: 7, offset: 1 << 40, len_bytes: 4096 };
        assert_eq!(request, expected);
        bytes[0] = 0;
        assert_eq!(Request::parse(&bytes), None);
    }

    #[test]
    fn lengths_that_lie_take_nothing() {
        let mut fields = Fields(&[0, 0, 0, 9, b'a', b'b']);
        assert_eq!(fields.string(), None);
        let mut fields = Fields(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(fields.string(), None);
        let mut fields = Fields(&[0, 0, 0, 2, b'a', b'b', 1]);
        assert_eq!(fields.string(), Some(&b"ab"[..]));
        assert_eq!((fields.u16(), fields.is_empty()), (None, false));
    }

    #[test]
    fn every_head_tells_the_length_of_what_follows() {
        for (error, has_offset) in [(NbdError::Io, true), (NbdError::Shutdown, false)] {
            let head = error_chunk(3, error, has_offset);
            let told = u32::from_be_bytes(head[16..20].try_into().unwrap());
            let follows = 6 + error.words().len() + if has_offset { 8 } else { 0 };
            assert_eq!(told as usize, follows);
        }
        assert_eq!(&data_chunk(1, true, 5, 100)[16..20], &108u32.to_be_bytes());
        assert_eq!(&greeting()[..16], b"NBDMAGICIHAVEOPT");
    }
}
