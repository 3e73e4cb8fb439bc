//! Fixed newstyle haggling: from the greeting to the first request, on anything that reads and writes.
//!
//! * Bounded: at most [`OPTIONS_MAX`] options of at most [`OPTION_MAX_BYTES`]; nothing is allocated by what a client claims
//!   beyond that. The time is bounded by whoever makes the stream.
//! * What breaks the rules of one option is refused and the haggling goes on; what is no option ends the connection.
//! * There is no encryption on a Unix socket: STARTTLS is refused by policy, and a client that insists leaves. Over TCP nothing is
//!   said before it: what a client asks for in the clear is answered with ERR_TLS_REQD.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

use super::codec::{
    EXPORT_NAME_PADDING_BYTES, Fields, MAX_PAYLOAD_BYTES, NO_ZEROES, OPTION_BYTES, OptionHead, greeting, info, option,
    option_reply, reply,
};
use super::served_disk::ServedDisk;
use super::{ConnectionError, Export};

/// Options that one client may send.
const OPTIONS_MAX: usize = 256;
/// Options that a client may send before it asks for TLS.
#[cfg(feature = "tls")]
const CLEAR_OPTIONS_MAX: usize = 16;
/// Longest data of an option: far more than a name and every context.
const OPTION_MAX_BYTES: u32 = 64 << 10;
/// Longest name in NBD.
pub(super) const NAME_MAX_BYTES: usize = 4096;
/// The one metadata context.
const ALLOCATION: &[u8] = b"base:allocation";
const BASE: &[u8] = b"base:";
/// The number that stands for it in replies.
pub(super) const ALLOCATION_ID: u32 = 1;

/// What client and server agreed on.
#[derive(Clone)]
pub(super) struct Agreed {
    pub(super) disk: Arc<ServedDisk>,
    /// Its name, as configured.
    pub(super) name: String,
    /// What the client was told; requests end there.
    pub(super) size_bytes: u64,
    /// Reads are answered in chunks.
    pub(super) structured: bool,
    /// BLOCK_STATUS may be asked for.
    pub(super) allocation: bool,
}

/// How the haggling of one connection stands.
struct Haggling<'a, S, A> {
    stream: &'a mut S,
    exports: &'a [Export],
    admit: A,
    no_zeroes: bool,
    structured: bool,
    /// The export that the metadata context was set for.
    context_of: Option<Vec<u8>>,
}

/// Haggles until the client has an export (`Some`) or wants none. `admit` may turn it away; it is asked right before the export
/// is handed over.
pub(super) fn haggle<S: Read + Write>(
    stream: &mut S,
    exports: &[Export],
    admit: impl FnMut(&Agreed) -> bool,
) -> Result<Option<Agreed>, ConnectionError> {
    match greet(stream)? {
        Some(no_zeroes) => haggle_on(stream, exports, admit, no_zeroes),
        None => Ok(None),
    }
}

/// Greets; whether the client wants no padding, or `None` if it has gone.
fn greet<S: Read + Write>(stream: &mut S) -> Result<Option<bool>, ConnectionError> {
    stream.write_all(&greeting())?;
    stream.flush()?;
    let mut flags = [0; 4];
    match stream.read_exact(&mut flags) {
        // It only looked whether somebody listens.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let flags = u32::from_be_bytes(flags);
    if flags & !0b11 != 0 {
        return Err(ConnectionError::Garbage(format!("it sent unknown handshake flags {flags:#x}")));
    }
    Ok(Some(flags & u32::from(NO_ZEROES) != 0))
}

/// Greets and waits until the client asks for TLS, which is to begin after this; what [`haggle_on`] needs to know, or `None` if it
/// has gone.
#[cfg(feature = "tls")]
pub(super) fn demand_tls<S: Read + Write>(stream: &mut S) -> Result<Option<bool>, ConnectionError> {
    let Some(no_zeroes) = greet(stream)? else {
        return Ok(None);
    };
    for _ in 0..CLEAR_OPTIONS_MAX {
        let Some((option, data)) = take_option(stream)? else {
            return Ok(None);
        };
        let (kind, words) = match option {
            option::STARTTLS if data.is_empty() => (reply::ACK, ""),
            option::STARTTLS => (reply::ERR_INVALID, "it takes no data"),
            option::ABORT => (reply::ACK, ""),
            // There is no other way to say no to it.
            option::EXPORT_NAME => return Err(ConnectionError::Garbage("it wants an export without TLS".to_owned())),
            _ => (reply::ERR_TLS_REQD, "TLS comes first"),
        };
        // Our own words.
        stream.write_all(&option_reply(option, kind, u32::try_from(words.len()).unwrap_or(u32::MAX)))?;
        stream.write_all(words.as_bytes())?;
        stream.flush()?;
        match (option, kind) {
            (option::STARTTLS, reply::ACK) => return Ok(Some(no_zeroes)),
            (option::ABORT, _) => return Ok(None),
            _ => {}
        }
    }
    Err(ConnectionError::Garbage(format!("it sent {CLEAR_OPTIONS_MAX} options and none of them asks for TLS")))
}

/// As [`haggle`], after the greeting.
pub(super) fn haggle_on<S: Read + Write>(
    stream: &mut S,
    exports: &[Export],
    admit: impl FnMut(&Agreed) -> bool,
    no_zeroes: bool,
) -> Result<Option<Agreed>, ConnectionError> {
    let mut haggling = Haggling { stream, exports, admit, no_zeroes, structured: false, context_of: None };
    for _ in 0..OPTIONS_MAX {
        match haggling.option()? {
            Step::On => {}
            Step::Agreed(agreed) => return Ok(Some(*agreed)),
            Step::Ended => return Ok(None),
        }
    }
    Err(ConnectionError::Garbage(format!("it sent {OPTIONS_MAX} options and still wants no export")))
}

/// The next option and its data; `None` if the client has gone.
fn take_option<S: Read>(stream: &mut S) -> Result<Option<(u32, Vec<u8>)>, ConnectionError> {
    let mut head = [0; OPTION_BYTES];
    match stream.read_exact(&mut head) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let Some(head) = OptionHead::parse(&head) else {
        return Err(ConnectionError::Garbage("it sent something else than an option".to_owned()));
    };
    if head.len_bytes > OPTION_MAX_BYTES {
        let what = format!("option {} claims {} bytes of data", head.option, head.len_bytes);
        return Err(ConnectionError::Garbage(what));
    }
    let mut data = vec![0; head.len_bytes as usize];
    stream.read_exact(&mut data)?;
    Ok(Some((head.option, data)))
}

enum Step {
    On,
    Agreed(Box<Agreed>),
    Ended,
}

impl<S: Read + Write, A: FnMut(&Agreed) -> bool> Haggling<'_, S, A> {
    fn option(&mut self) -> Result<Step, ConnectionError> {
        let Some((option, data)) = take_option(self.stream)? else {
            return Ok(Step::Ended);
        };
        match option {
            option::EXPORT_NAME => return self.export_name(&data),
            option::ABORT => {
                // It may have gone already.
                let _ = self.reply(option, reply::ACK, &[]);
                return Ok(Step::Ended);
            }
            option::LIST => self.list(&data)?,
            option::STARTTLS => {
                self.refuse(option, reply::ERR_POLICY, "there is no TLS on a Unix socket, and none in TLS")?
            }
            option::INFO | option::GO => return self.info_or_go(option, &data),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, reply::ACK, &[])?;
            }
            option::STRUCTURED_REPLY => self.refuse(option, reply::ERR_INVALID, "it takes no data")?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, &data)?,
            other => self.refuse(other, reply::ERR_UNSUPPORTED, "this option is not known")?,
        }
        Ok(Step::On)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), ConnectionError> {
        // Our own data: names and words, far below 4 GiB.
        let len_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.stream.write_all(&option_reply(option, kind, len_bytes))?;
        self.stream.write_all(data)?;
        Ok(self.stream.flush()?)
    }

    fn refuse(&mut self, option: u32, kind: u32, words: &str) -> Result<(), ConnectionError> {
        log::debug!("option {option} refused: {words}");
        self.reply(option, kind, words.as_bytes())
    }

    /// The export of that name; the empty name is the first one.
    fn find(&self, name: &[u8]) -> Option<&Export> {
        match name {
            b"" => self.exports.first(),
            _ => self.exports.iter().find(|export| export.name.as_bytes() == name),
        }
    }

    fn agreed(&self, export: &Export, name: &[u8]) -> Agreed {
        Agreed {
            disk: Arc::clone(&export.disk),
            name: export.name.clone(),
            size_bytes: export.disk.size_bytes(),
            structured: self.structured,
            // Contexts belong to the name that they were asked for with.
            allocation: self.context_of.as_deref() == Some(name),
        }
    }

    /// The oldest way to begin; there is no way to say no but to hang up.
    fn export_name(&mut self, name: &[u8]) -> Result<Step, ConnectionError> {
        let Some(export) = self.find(name) else {
            return Err(ConnectionError::UnknownExport(shown(name)));
        };
        let agreed = self.agreed(export, name);
        if !(self.admit)(&agreed) {
            return Err(ConnectionError::Closing);
        }
        let flags = agreed.disk.flags(self.structured);
        self.stream.write_all(&agreed.size_bytes.to_be_bytes())?;
        self.stream.write_all(&flags.to_be_bytes())?;
        if !self.no_zeroes {
            self.stream.write_all(&[0; EXPORT_NAME_PADDING_BYTES])?;
        }
        self.stream.flush()?;
        Ok(Step::Agreed(Box::new(agreed)))
    }

    fn list(&mut self, data: &[u8]) -> Result<(), ConnectionError> {
        if !data.is_empty() {
            return self.refuse(option::LIST, reply::ERR_INVALID, "it takes no data");
        }
        for export in self.exports {
            let mut told = u32::try_from(export.name.len()).unwrap_or(0).to_be_bytes().to_vec();
            told.extend_from_slice(export.name.as_bytes());
            self.reply(option::LIST, reply::SERVER, &told)?;
        }
        self.reply(option::LIST, reply::ACK, &[])
    }

    fn info_or_go(&mut self, option: u32, data: &[u8]) -> Result<Step, ConnectionError> {
        let Some((name, wanted)) = parse_info(data) else {
            self.refuse(option, reply::ERR_INVALID, "its lengths do not add up")?;
            return Ok(Step::On);
        };
        if name.len() > NAME_MAX_BYTES {
            self.refuse(option, reply::ERR_TOO_BIG, "no export has so long a name")?;
            return Ok(Step::On);
        }
        let Some(export) = self.find(name) else {
            self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name")?;
            return Ok(Step::On);
        };
        let agreed = self.agreed(export, name);
        let description = export.description.clone();
        if option == option::GO && !(self.admit)(&agreed) {
            self.refuse(option, reply::ERR_SHUTDOWN, "the server is closing")?;
            return Ok(Step::On);
        }
        let mut told = info::EXPORT.to_be_bytes().to_vec();
        told.extend_from_slice(&agreed.size_bytes.to_be_bytes());
        told.extend_from_slice(&agreed.disk.flags(self.structured).to_be_bytes());
        self.reply(option, reply::INFO, &told)?;
        for kind in [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE] {
            if !wanted.contains(&kind) {
                continue;
            }
            let mut told = kind.to_be_bytes().to_vec();
            match kind {
                info::NAME => told.extend_from_slice(agreed.name.as_bytes()),
                info::DESCRIPTION => told.extend_from_slice(description.as_bytes()),
                _ => {
                    for bytes in [1, agreed.disk.preferred_bytes(), MAX_PAYLOAD_BYTES] {
                        told.extend_from_slice(&bytes.to_be_bytes());
                    }
                }
            }
            self.reply(option, reply::INFO, &told)?;
        }
        self.reply(option, reply::ACK, &[])?;
        Ok(if option == option::GO { Step::Agreed(Box::new(agreed)) } else { Step::On })
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), ConnectionError> {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            self.context_of = None;
        }
        if !self.structured {
            return self.refuse(option, reply::ERR_INVALID, "it needs structured replies first");
        }
        let Some((name, queries)) = parse_meta_context(data) else {
            return self.refuse(option, reply::ERR_INVALID, "its lengths do not add up");
        };
        if self.find(name).is_none() {
            return self.refuse(option, reply::ERR_UNKNOWN, "there is no export of that name");
        }
        let matches = if sets {
            queries.contains(&ALLOCATION)
        } else {
            queries.is_empty() || queries.iter().any(|query| [BASE, ALLOCATION].contains(query))
        };
        if matches {
            let id = if sets { ALLOCATION_ID } else { 0 };
            let mut told = id.to_be_bytes().to_vec();
            told.extend_from_slice(ALLOCATION);
            self.reply(option, reply::META_CONTEXT, &told)?;
            if sets {
                self.context_of = Some(name.to_vec());
            }
        }
        self.reply(option, reply::ACK, &[])
    }
}

/// The name and the kinds of information of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let mut wanted = Vec::new();
    for _ in 0..count {
        wanted.push(fields.u16()?);
    }
    fields.is_empty().then_some((name, wanted))
}

/// The name and the queries of LIST_META_CONTEXT and SET_META_CONTEXT.
fn parse_meta_context(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    // Each takes four bytes at least, so the data ends the loop, whatever the count claims.
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.is_empty().then_some((name, queries))
}

/// A client's bytes, fit for a log.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(100).flat_map(char::escape_default).collect()
}
