//! The client's side: one request after the other, through a file, a block device or an NBD socket.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use block::AlignedBuf;

/// O_DIRECT of Linux on x86-64 and aarch64; rustix knows it for every machine.
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

/// One connection to an export.
pub(super) trait Client {
    /// Size of what is exported, in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buf` from `offset_bytes`.
    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()>;
    /// Writes `buf` at `offset_bytes`.
    fn write(&mut self, offset_bytes: u64, buf: &[u8]) -> Result<()>;
}

/// A file below FUSE or a block device, past the page cache.
pub(super) struct FileClient {
    file: File,
    size_bytes: u64,
}

impl FileClient {
    pub(super) fn open(path: &Path, size_bytes: u64) -> Result<FileClient> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(DIRECT).open(path);
        Ok(FileClient { file: file.with_context(|| path.display().to_string())?, size_bytes })
    }
}

impl Client for FileClient {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(buf, offset_bytes)?)
    }

    fn write(&mut self, offset_bytes: u64, buf: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(buf, offset_bytes)?)
    }
}

/// How the requests of one piece are measured.
#[derive(Clone, Copy)]
pub(super) struct Measure {
    /// Least time for one piece.
    pub(super) piece: Duration,
    /// Which request's time counts, of all in order of their times: 50 for the median.
    pub(super) percentile: u8,
}

impl Measure {
    /// Bytes per second of calls of `request_bytes`, one after the other.
    pub(super) fn rate(self, request_bytes: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
        let mut times_ns = Vec::with_capacity(1 << 16);
        let began = Instant::now();
        let mut at = began;
        while at - began < self.piece {
            call()?;
            let now = Instant::now();
            times_ns.push((now - at).as_nanos());
            at = now;
        }
        times_ns.sort_unstable();
        let place = (times_ns.len() - 1) * usize::from(self.percentile) / 100;
        let time_ns = times_ns.get(place).copied().unwrap_or(1).max(1);
        Ok(request_bytes as f64 * 1e9 / time_ns as f64)
    }
}

/// The rate of requests one after the other. Large ones go in order, small ones to and fro.
pub(super) fn pass(client: &mut dyn Client, write: bool, request_bytes: usize, measure: Measure) -> Result<f64> {
    let mut buf = AlignedBuf::zeroed(request_bytes);
    let count = (client.size_bytes() / request_bytes as u64).max(1);
    // An odd step meets every request of a count that is a power of two, in an order that no read-ahead guesses.
    let step = if request_bytes >= 1 << 20 { 1 } else { (count / 8 * 5) | 1 };
    let mut at = 0;
    measure.rate(request_bytes, || {
        let offset_bytes = at * request_bytes as u64;
        at = (at + step) % count;
        if write { client.write(offset_bytes, &buf) } else { client.read(offset_bytes, &mut buf) }
    })
}
