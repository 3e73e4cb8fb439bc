//! A client of the fixed newstyle handshake with simple replies, one request at a time: what a benchmark of a server needs.
//!
//! Source: the NBD project's `doc/proto.md`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::clients::Client;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
/// Both sides: fixed newstyle, and no zeros after the answer to the option.
const FLAGS: u32 = 0b11;
const OPT_EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
/// magic, flags, type, cookie, offset, length.
pub(crate) const REQUEST_BYTES: usize = 4 + 2 + 2 + 8 + 8 + 4;
/// magic, error, cookie.
pub(crate) const REPLY_BYTES: usize = 4 + 4 + 8;

/// A connection to the default export of a server.
pub(super) struct NbdClient {
    stream: UnixStream,
    size_bytes: u64,
    cookie: u64,
}

impl NbdClient {
    pub(super) fn connect(socket: &Path) -> Result<NbdClient> {
        let (stream, size_bytes) = shake_hands(socket)?;
        Ok(NbdClient { stream, size_bytes, cookie: 0 })
    }

    fn header(&mut self, command: u16, offset_bytes: u64, len_bytes: usize) -> Result<[u8; REQUEST_BYTES]> {
        self.cookie += 1;
        request(command, self.cookie, offset_bytes, len_bytes)
    }

    fn take_reply(&mut self) -> Result<()> {
        let mut reply = [0; REPLY_BYTES];
        self.stream.read_exact(&mut reply)?;
        ensure!(answered(&reply)? == self.cookie, "the server answers something else");
        Ok(())
    }
}

/// A connection to the default export of the server, and its size in bytes.
pub(crate) fn shake_hands(socket: &Path) -> Result<(UnixStream, u64)> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(greeting.starts_with(GREETING), "this is no NBD server");
    stream.write_all(&FLAGS.to_be_bytes())?;
    // The default export: an empty name.
    stream.write_all(OPTION_MAGIC)?;
    stream.write_all(&OPT_EXPORT_NAME.to_be_bytes())?;
    stream.write_all(&0_u32.to_be_bytes())?;
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let mut flags = [0; 2];
    stream.read_exact(&mut flags)?;
    Ok((stream, u64::from_be_bytes(size)))
}

/// The bytes of a request.
pub(crate) fn request(command: u16, cookie: u64, offset_bytes: u64, len_bytes: usize) -> Result<[u8; REQUEST_BYTES]> {
    let mut header = [0; REQUEST_BYTES];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[6..8].copy_from_slice(&command.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset_bytes.to_be_bytes());
    header[24..].copy_from_slice(&u32::try_from(len_bytes)?.to_be_bytes());
    Ok(header)
}

/// The cookie of the request that a reply answers.
pub(crate) fn answered(reply: &[u8; REPLY_BYTES]) -> Result<u64> {
    let [magic, error] = [0, 4].map(|at| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]));
    ensure!(magic == REPLY_MAGIC, "the server answers something else");
    if error != 0 {
        bail!("the server answers with error {error}");
    }
    let mut cookie = [0; 8];
    cookie.copy_from_slice(&reply[8..]);
    Ok(u64::from_be_bytes(cookie))
}

impl Client for NbdClient {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let header = self.header(CMD_READ, offset_bytes, buf.len())?;
        self.stream.write_all(&header)?;
        self.take_reply()?;
        Ok(self.stream.read_exact(buf)?)
    }

    fn write(&mut self, offset_bytes: u64, buf: &[u8]) -> Result<()> {
        let header = self.header(CMD_WRITE, offset_bytes, buf.len())?;
        self.stream.write_all(&header)?;
        self.stream.write_all(buf)?;
        self.take_reply()
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // The server sees the end of the connection otherwise.
        if let Ok(header) = self.header(CMD_DISC, 0, 0) {
            let _ = self.stream.write_all(&header);
        }
    }
}
