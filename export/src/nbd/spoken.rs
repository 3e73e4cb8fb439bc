//! A whole conversation on one thread, over anything that reads and writes: the same haggling and the same requests as over a
//! socket, one after the other. For tests and for the fuzzer.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use super::handshake::haggle;
use super::requests::{LongRead, Replies, answer, take};
use super::{Export, NbdDisk};

struct Spoken<'a, W>(RefCell<&'a mut W>);

impl<W: Write> Replies for Spoken<'_, W> {
    fn send(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut out = self.0.borrow_mut();
        out.write_all(head)?;
        out.write_all(body)
    }
}

/// Both directions of a conversation as one stream.
struct Both<'a, R, W>(&'a mut R, &'a mut W);

impl<R: Read, W> Read for Both<'_, R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R, W: Write> Write for Both<'_, R, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Serves `disks` to one client that sends `input` and takes `output`, with a buffer of `buffer_bytes` (at least 1), until it
/// ends or breaks the protocol; `Err` says in words why the server hung up.
///
/// # Errors
/// What a server would write into its log.
pub fn speak<R: Read, W: Write>(
    disks: Vec<NbdDisk>,
    input: &mut R,
    output: &mut W,
    buffer_bytes: usize,
) -> Result<(), String> {
    let exports: Vec<Export> = disks.into_iter().map(Export::new).collect();
    super::check_names(&exports).map_err(|error| error.to_string())?;
    let agreed = haggle(&mut Both(input, output), &exports, |_| true).map_err(|error| error.to_string())?;
    let Some(agreed) = agreed else {
        return Ok(());
    };
    let mut buffer = block::AlignedBuf::zeroed(buffer_bytes.max(1));
    let long_read = LongRead::default();
    let replies = Spoken(RefCell::new(output));
    while let Some(taken) = take(input, &agreed, &mut buffer).map_err(|error| error.to_string())? {
        answer(&taken, &agreed, &mut buffer, &long_read, &replies, &|| false).map_err(|error| error.to_string())?;
    }
    Ok(())
}
