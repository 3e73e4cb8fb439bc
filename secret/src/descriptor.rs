//! Keys from descriptors: [`KeyDescriptor`] reads one to its end, [`LineSource`] reads lines of standard input.
//!
//! Invariant: a `LineSource` never reads past the newline of the line it returns, so several questions in one run, and the
//! program after us, get one line each.

use crate::reading::{KEY_LIMIT_BYTES, Source};
use crate::{KeyProvider, KeyRequest, KeySourceError, Secret};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use std::os::fd::{AsFd, OwnedFd};

/// A descriptor that another program has put a key into; read to its end, once.
pub struct KeyDescriptor {
    fd: Option<OwnedFd>,
}

impl KeyDescriptor {
    /// The key is what `fd` holds.
    pub fn new(fd: OwnedFd) -> KeyDescriptor {
        KeyDescriptor { fd: Some(fd) }
    }

    /// The key is in descriptor `number` of this process (`--key-fd 3`), which stays open; this makes a second descriptor
    /// for it.
    ///
    /// # Errors
    /// [`KeySourceError::Io`] when there is no such descriptor.
    pub fn from_number(number: i32) -> Result<KeyDescriptor, KeySourceError> {
        let duplicated = match number {
            0 => std::io::stdin().as_fd().try_clone_to_owned(),
            // Safe Rust has no way from a number to a descriptor; the kernel has two.
            1.. => duplicate(number).map_err(std::io::Error::from),
            // rustix asserts that a number is none of the special ones.
            _ => Err(Errno::BADF.into()),
        };
        let fd =
            duplicated.map_err(|source| KeySourceError::Io { what: format!("file descriptor {number}"), source })?;
        Ok(KeyDescriptor::new(fd))
    }
}

/// `pidfd_getfd` on ourselves (Linux 5.6) shares the file position; where a container forbids it, reopening by /proc does
/// for pipes and files.
fn duplicate(number: i32) -> rustix::io::Result<OwnedFd> {
    let ourselves = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    ourselves.and_then(|pidfd| rustix::process::pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())).or_else(|_| {
        rustix::fs::open(format!("/proc/self/fd/{number}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })
}

impl KeyProvider for KeyDescriptor {
    /// The key at the first call, `None` afterwards. An empty descriptor is [`KeySourceError::Nothing`]: its writer died.
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        let Some(fd) = self.fd.take() else { return Ok(None) };
        let key = Source::new(&fd, "the key descriptor").to_end(KEY_LIMIT_BYTES)?;
        if key.is_empty() { Err(KeySourceError::Nothing) } else { Ok(Some(key)) }
    }
}

/// Standard input, one line per question, without the newline.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineSource;

impl LineSource {
    /// Lines of standard input.
    pub const fn new() -> LineSource {
        LineSource
    }
}

impl KeyProvider for LineSource {
    fn key_for(&mut self, _request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        Source::new(&std::io::stdin(), "standard input").line(KEY_LIMIT_BYTES).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Purpose;
    use crate::reading::pipe_with;
    use std::os::fd::AsRawFd;

    const REQUEST: KeyRequest<'static> = KeyRequest { volume: "disk.img", purpose: Purpose::Unlock, attempt: 1 };

    #[test]
    fn a_descriptor_is_read_to_its_end_once() {
        let mut descriptor = KeyDescriptor::new(pipe_with(b"key\nwith newline\n"));
        assert_eq!(descriptor.key_for(&REQUEST).unwrap().unwrap().expose(), b"key\nwith newline\n");
        assert!(descriptor.key_for(&REQUEST).unwrap().is_none());
    }

    #[test]
    fn an_empty_descriptor_is_nothing() {
        let error = KeyDescriptor::new(pipe_with(b"")).key_for(&REQUEST).unwrap_err();
        assert_eq!(error.to_string(), "Nothing to read on input.");
    }

    #[test]
    fn a_number_becomes_a_descriptor() {
        let pipe = pipe_with(b"by number");
        let mut descriptor = KeyDescriptor::from_number(pipe.as_raw_fd()).unwrap();
        assert_eq!(descriptor.key_for(&REQUEST).unwrap().unwrap().expose(), b"by number");
        assert!(matches!(KeyDescriptor::from_number(987_654), Err(KeySourceError::Io { .. })));
        assert!(matches!(KeyDescriptor::from_number(-1), Err(KeySourceError::Io { .. })));
    }
}
