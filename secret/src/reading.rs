//! Reading from a descriptor straight into a [`Secret`]: the loops behind every plain key source.
//!
//! Invariants: no byte of a key passes through memory that is not a `Secret`; nothing is read ahead, so what follows a line
//! is left for the next reader; every loop ends at a limit.

use crate::{KeySourceError, Secret};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// The most a key file, a descriptor or a line may hold: 8 MiB, as cryptsetup's default.
pub const KEY_LIMIT_BYTES: usize = 8 << 20;

/// Size of the first buffer for a source of unknown length.
const FIRST_BYTES: usize = 4096;

/// One descriptor with the name that errors call it by.
pub(crate) struct Source<'a> {
    fd: BorrowedFd<'a>,
    what: &'a str,
}

impl<'a> Source<'a> {
    pub(crate) fn new<F: AsFd>(fd: &'a F, what: &'a str) -> Source<'a> {
        Source { fd: fd.as_fd(), what }
    }

    /// One read; 0 is the end. Waits where the descriptor is non-blocking.
    fn read(&self, buf: &mut [u8]) -> Result<usize, KeySourceError> {
        loop {
            match rustix::io::read(self.fd, &mut *buf) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // An error here shows itself at the next read.
                    let _ = poll(&mut [PollFd::from_borrowed_fd(self.fd, PollFlags::IN)], None);
                }
                Err(errno) => return Err(self.failed(errno)),
            }
        }
    }

    pub(crate) fn failed(&self, errno: Errno) -> KeySourceError {
        KeySourceError::Io { what: self.what.to_owned(), source: errno.into() }
    }

    fn too_large(&self, limit_bytes: usize) -> KeySourceError {
        KeySourceError::TooLarge { what: self.what.to_owned(), limit_bytes }
    }

    /// Reads until `buf` is full or the source ends; how much that was.
    fn fill(&self, buf: &mut [u8]) -> Result<usize, KeySourceError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read(&mut buf[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Everything to the end, at most `limit_bytes`.
    pub(crate) fn to_end(&self, limit_bytes: usize) -> Result<Secret, KeySourceError> {
        let mut secret = Secret::zeroed(FIRST_BYTES.min(limit_bytes + 1))?;
        let mut filled = 0;
        loop {
            filled += self.fill(&mut secret.expose_mut()[filled..])?;
            if filled > limit_bytes {
                return Err(self.too_large(limit_bytes));
            }
            if filled < secret.len() {
                return Ok(secret.truncated(filled));
            }
            // One byte more than the limit shows that there is too much.
            let longer = (secret.len() * 2).min(limit_bytes + 1);
            secret = secret.grown(longer)?;
        }
    }

    /// Exactly `len_bytes` bytes; what follows them is not read.
    pub(crate) fn exactly(&self, len_bytes: usize, limit_bytes: usize) -> Result<Secret, KeySourceError> {
        if len_bytes > limit_bytes {
            return Err(self.too_large(limit_bytes));
        }
        let mut secret = Secret::zeroed(len_bytes)?;
        let got = self.fill(secret.expose_mut())?;
        if got < len_bytes {
            return Err(self.too_short(len_bytes as u64, got as u64));
        }
        Ok(secret)
    }

    pub(crate) fn too_short(&self, wanted_bytes: u64, got_bytes: u64) -> KeySourceError {
        KeySourceError::TooShort { what: self.what.to_owned(), wanted_bytes, got_bytes }
    }

    /// Reads `count_bytes` bytes and wipes them.
    pub(crate) fn skip(&self, count_bytes: u64) -> Result<(), KeySourceError> {
        let mut passed = Secret::zeroed(FIRST_BYTES)?;
        let mut done = 0;
        while done < count_bytes {
            let part = usize::try_from(count_bytes - done).unwrap_or(usize::MAX).min(FIRST_BYTES);
            match self.fill(&mut passed.expose_mut()[..part])? {
                0 => return Err(self.too_short(count_bytes, done)),
                count => done += count as u64,
            }
        }
        Ok(())
    }

    /// One line without its newline, byte by byte; a last line needs no newline. Zero bytes before the end of the source
    /// are [`KeySourceError::Nothing`].
    pub(crate) fn line(&self, limit_bytes: usize) -> Result<Secret, KeySourceError> {
        let mut secret = Secret::zeroed(FIRST_BYTES.min(limit_bytes + 1))?;
        let mut filled = 0;
        loop {
            if filled == secret.len() {
                let longer = (secret.len() * 2).min(limit_bytes + 1);
                secret = secret.grown(longer)?;
            }
            let slot = &mut secret.expose_mut()[filled..=filled];
            match self.read(slot)? {
                0 if filled == 0 => return Err(KeySourceError::Nothing),
                0 => return Ok(secret.truncated(filled)),
                _ if slot[0] == b'\n' => return Ok(secret.truncated(filled)),
                _ if filled == limit_bytes => return Err(self.too_large(limit_bytes)),
                _ => filled += 1,
            }
        }
    }
}

/// A pipe that holds `content` and is closed at its other end; for tests.
#[cfg(test)]
pub(crate) fn pipe_with(content: &[u8]) -> std::os::fd::OwnedFd {
    let Ok((reader, writer)) = rustix::pipe::pipe() else { panic!("no pipe") };
    let content = content.to_vec();
    std::thread::spawn(move || std::io::Write::write_all(&mut std::fs::File::from(writer), &content));
    reader
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line_of(content: &[u8], limit_bytes: usize) -> Result<Vec<u8>, KeySourceError> {
        let pipe = pipe_with(content);
        Source::new(&pipe, "a pipe").line(limit_bytes).map(|secret| secret.expose().to_vec())
    }

    #[test]
    fn lines_end_at_a_newline_or_at_the_end() {
        assert_eq!(line_of(b"one\ntwo\n", 100).unwrap(), b"one");
        assert_eq!(line_of(b"one", 100).unwrap(), b"one");
        assert_eq!(line_of(b"\n", 100).unwrap(), b"");
        assert_eq!(line_of(b"a\0b\r\n", 100).unwrap(), b"a\0b\r");
        assert!(matches!(line_of(b"", 100), Err(KeySourceError::Nothing)));
    }

    #[test]
    fn two_readers_get_one_line_each() {
        let pipe = pipe_with(b"old\nnew\n");
        let source = Source::new(&pipe, "a pipe");
        assert_eq!(source.line(100).unwrap().expose(), b"old");
        assert_eq!(source.line(100).unwrap().expose(), b"new");
        assert!(matches!(source.line(100), Err(KeySourceError::Nothing)));
    }

    #[test]
    fn limits_are_inclusive_and_hold_across_the_growing_buffer() {
        for limit_bytes in [0, 1, 4095, 4096, 4097, 10_000] {
            let exact = vec![b'x'; limit_bytes];
            let more = vec![b'x'; limit_bytes + 1];
            let too_large =
                |error| matches!(error, Some(KeySourceError::TooLarge { limit_bytes: l, .. }) if l == limit_bytes);
            let pipe = pipe_with(&exact);
            assert_eq!(Source::new(&pipe, "p").to_end(limit_bytes).unwrap().len(), limit_bytes);
            let pipe = pipe_with(&more);
            assert!(too_large(Source::new(&pipe, "p").to_end(limit_bytes).err()));
            if limit_bytes > 0 {
                assert_eq!(line_of(&exact, limit_bytes).unwrap().len(), limit_bytes);
            }
            assert!(too_large(line_of(&more, limit_bytes).err()));
        }
    }

    #[test]
    fn a_non_blocking_source_is_waited_for() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::File::from(writer).write_all(b"late\n")
        });
        assert_eq!(Source::new(&reader, "p").line(100).unwrap().expose(), b"late");
        late.join().unwrap().unwrap();
    }
}
