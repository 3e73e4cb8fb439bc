//! The one error of the block layer: what failed, where, how much of it, and which kind a caller may act on.
//!
//! Invariant: the kind alone decides what an exported device answers ([`BlockErrorKind::errno`]); the source is for people.

use crate::Bytes;
use nix::errno::Errno;
use std::fmt;
use std::io;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockErrorKind {
    /// The medium below is full (ENOSPC, EDQUOT, EFBIG): free space and try again.
    NoSpace,
    /// The medium failed to read or write.
    Io,
    /// The medium is not there any more (removed, shut down, closed).
    Gone,
    /// The volume is suspended and its keys are wiped.
    Suspended,
    /// The data does not match its authentication tag.
    Integrity,
    /// The range ends behind the end of the disk, or its end overflows.
    OutOfRange,
    /// The offset, the length or the buffer is not aligned as the disk needs.
    Unaligned,
    /// The disk is read-only.
    ReadOnly,
    /// The disk cannot do this operation.
    Unsupported,
    /// Somebody else holds the disk.
    Busy,
    /// A file that was to be created is there already.
    Exists,
    /// The system refuses access: permissions.
    Denied,
}

impl BlockErrorKind {
    /// The Linux error number that an exported device answers with.
    pub fn errno(self) -> i32 {
        let errno = match self {
            BlockErrorKind::NoSpace => Errno::ENOSPC,
            BlockErrorKind::Io | BlockErrorKind::Suspended => Errno::EIO,
            BlockErrorKind::Gone => Errno::ENODEV,
            BlockErrorKind::Integrity => Errno::EILSEQ,
            BlockErrorKind::OutOfRange | BlockErrorKind::Unaligned => Errno::EINVAL,
            BlockErrorKind::ReadOnly => Errno::EROFS,
            BlockErrorKind::Unsupported => Errno::EOPNOTSUPP,
            BlockErrorKind::Busy => Errno::EBUSY,
            BlockErrorKind::Exists => Errno::EEXIST,
            BlockErrorKind::Denied => Errno::EACCES,
        };
        errno as i32
    }

    /// The kind that a Linux error number stands for; everything unknown is [`BlockErrorKind::Io`].
    pub fn from_errno(errno: i32) -> BlockErrorKind {
        match Errno::from_raw(errno) {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => BlockErrorKind::NoSpace,
            Errno::ENODEV | Errno::ENXIO | Errno::ENOENT | Errno::ENOMEDIUM | Errno::ESHUTDOWN => BlockErrorKind::Gone,
            Errno::EILSEQ => BlockErrorKind::Integrity,
            Errno::EINVAL => BlockErrorKind::Unaligned,
            Errno::EROFS | Errno::EBADF => BlockErrorKind::ReadOnly,
            Errno::EPERM | Errno::EACCES => BlockErrorKind::Denied,
            Errno::EEXIST => BlockErrorKind::Exists,
            Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY => BlockErrorKind::Unsupported,
            Errno::EBUSY | Errno::EAGAIN | Errno::ETXTBSY => BlockErrorKind::Busy,
            _ => BlockErrorKind::Io,
        }
    }

    fn words(self) -> &'static str {
        match self {
            BlockErrorKind::NoSpace => "no space left below",
            BlockErrorKind::Io => "input/output error",
            BlockErrorKind::Gone => "the disk is gone",
            BlockErrorKind::Suspended => "the volume is suspended",
            BlockErrorKind::Integrity => "the data fails its authentication",
            BlockErrorKind::OutOfRange => "outside the disk",
            BlockErrorKind::Unaligned => "not aligned to the blocks of the disk",
            BlockErrorKind::ReadOnly => "the disk is read-only",
            BlockErrorKind::Unsupported => "not supported by the disk",
            BlockErrorKind::Busy => "in use by somebody else",
            BlockErrorKind::Exists => "there is such a file already",
            BlockErrorKind::Denied => "access is denied",
        }
    }
}

impl fmt::Display for BlockErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// One failed block operation.
#[derive(Debug, thiserror::Error)]
#[error("{op} of {len_bytes} bytes at byte {offset}: {kind}{}", shown(source.as_ref()), offset = offset.0)]
pub struct BlockError {
    /// What a caller may act on.
    pub kind: BlockErrorKind,
    /// The operation: `read`, `write`, `flush`, `open` …
    pub op: &'static str,
    /// Where it began.
    pub offset: Bytes,
    /// How many bytes it covered; 0 where that means nothing.
    pub len_bytes: u64,
    /// What the system said.
    pub source: Option<io::Error>,
}

impl BlockError {
    /// An error without a system error behind it.
    pub fn new(kind: BlockErrorKind, op: &'static str, offset: Bytes, len_bytes: u64) -> BlockError {
        BlockError { kind, op, offset, len_bytes, source: None }
    }

    /// An error of the system; its number decides the kind.
    pub fn from_io(op: &'static str, offset: Bytes, len_bytes: u64, source: io::Error) -> BlockError {
        let kind = match source.raw_os_error() {
            Some(errno) => BlockErrorKind::from_errno(errno),
            None if source.kind() == io::ErrorKind::UnexpectedEof => BlockErrorKind::OutOfRange,
            None => BlockErrorKind::Io,
        };
        BlockError { kind, op, offset, len_bytes, source: Some(source) }
    }

    /// The same error seen from a disk whose byte 0 lies elsewhere.
    pub fn at(mut self, offset: Bytes) -> BlockError {
        self.offset = offset;
        self
    }

    /// A copy for a second waiter: the system error is kept by its number.
    pub fn duplicate(&self) -> BlockError {
        let source = self.source.as_ref().map(|error| match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::from(error.kind()),
        });
        BlockError { kind: self.kind, op: self.op, offset: self.offset, len_bytes: self.len_bytes, source }
    }
}

fn shown(source: Option<&io::Error>) -> String {
    source.map(|error| format!(" ({error})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_medium_is_no_space_and_an_unknown_number_is_io() {
        let full = BlockError::from_io("write", Bytes(4096), 512, io::Error::from_raw_os_error(28));
        assert_eq!(full.kind, BlockErrorKind::NoSpace);
        assert_eq!(full.kind.errno(), 28);
        assert!(full.to_string().starts_with("write of 512 bytes at byte 4096: no space left below ("), "{full}");
        assert_eq!(BlockErrorKind::from_errno(9999), BlockErrorKind::Io);
    }

    #[test]
    fn a_duplicate_says_the_same() {
        let first = BlockError::from_io("flush", Bytes(0), 0, io::Error::from_raw_os_error(5));
        assert_eq!(first.to_string(), first.duplicate().to_string());
    }
}
