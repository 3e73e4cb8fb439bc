//! Key files. Input: `flags`, offset, size (each of the width that the flags say, big-endian), content.
//!
//! Flags: bit 0 a pipe instead of a file; bit 1 a size is demanded; bit 2 offset and size are 64-bit, not 8-bit; bits 3 to 7
//! together a file that goes on with zeros: it is 8 MiB long with a content of one byte, and one byte longer with each
//! further one. Source of the model: luks2-format §11.2.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use secret::{KeyFile, KeySourceError, Secret};

use super::Rules;

/// The most a key file may hold.
const LIMIT: usize = 8 << 20;
/// Flags of a file of about that length; more than one, for it takes long to read.
const NEAR_LIMIT: u8 = 0xf8;
/// What fits a pipe without a reader.
const PIPE_MAX: usize = 4096;

/// What must come out.
#[derive(Debug, PartialEq)]
enum Expected<'a> {
    Key(&'a [u8]),
    TooLarge,
    TooShort { wanted_bytes: u64, got_bytes: u64 },
}

pub(crate) fn run(input: &[u8]) -> Rules {
    let Some((&flags, rest)) = input.split_first() else { return Rules::new() };
    let wide = flags & 4 != 0;
    let Some((offset_bytes, rest)) = number(rest, wide) else { return Rules::new() };
    let Some((size, rest)) = number(rest, wide) else { return Rules::new() };
    let pipe = flags & 1 != 0;
    let mut content = rest[..rest.len().min(PIPE_MAX)].to_vec();
    if flags & NEAR_LIMIT == NEAR_LIMIT && !pipe {
        content.resize(LIMIT - 1 + content.len(), 0);
    }
    let size_bytes = (flags & 2 != 0).then(|| usize::try_from(size).expect("64-bit"));
    let source = if pipe { pipe_with(&content) } else { file_with(&content) };
    let path = format!("/proc/self/fd/{}", source.as_raw_fd()).into();
    check(KeyFile { path, offset_bytes, size_bytes }.read(), &expected(&content, offset_bytes, size_bytes));
    Rules::new()
}

/// A number of 8 or 64 bits and what follows it.
fn number(input: &[u8], wide: bool) -> Option<(u64, &[u8])> {
    if wide {
        let (bytes, rest) = input.split_first_chunk()?;
        return Some((u64::from_be_bytes(*bytes), rest));
    }
    let (byte, rest) = input.split_first()?;
    Some((u64::from(*byte), rest))
}

fn file_with(content: &[u8]) -> OwnedFd {
    let mut file = File::from(rustix::fs::memfd_create("key", MemfdFlags::CLOEXEC).expect("memory file"));
    file.write_all(content).expect("write");
    file.into()
}

/// A pipe that holds `content` and no writer.
fn pipe_with(content: &[u8]) -> OwnedFd {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    File::from(writer).write_all(content).expect("write");
    reader
}

fn expected(content: &[u8], offset_bytes: u64, size_bytes: Option<usize>) -> Expected<'_> {
    let rest = usize::try_from(offset_bytes).ok().and_then(|offset| content.get(offset..));
    let Some(rest) = rest else {
        return Expected::TooShort { wanted_bytes: offset_bytes, got_bytes: content.len() as u64 };
    };
    match size_bytes.filter(|size| *size > 0) {
        Some(size) if size > LIMIT => Expected::TooLarge,
        Some(size) => match rest.get(..size) {
            Some(key) => Expected::Key(key),
            None => Expected::TooShort { wanted_bytes: size as u64, got_bytes: rest.len() as u64 },
        },
        None if rest.len() > LIMIT => Expected::TooLarge,
        None => Expected::Key(rest),
    }
}

fn check(read: Result<Secret, KeySourceError>, expected: &Expected<'_>) {
    match (read, expected) {
        (Ok(key), Expected::Key(bytes)) => assert!(key.expose() == *bytes, "another key of {} bytes", key.len()),
        (Err(KeySourceError::TooLarge { limit_bytes, .. }), Expected::TooLarge) => {
            assert_eq!(limit_bytes, LIMIT);
        }
        (Err(KeySourceError::TooShort { wanted_bytes, got_bytes, .. }), _) => {
            assert_eq!(Expected::TooShort { wanted_bytes, got_bytes }, *expected);
        }
        (Err(error), _) => panic!("{error} instead of {}", kind(expected)),
        (Ok(key), _) => panic!("a key of {} bytes instead of {}", key.len(), kind(expected)),
    }
}

fn kind(expected: &Expected<'_>) -> String {
    match expected {
        Expected::Key(key) => format!("a key of {} bytes", key.len()),
        other => format!("{other:?}"),
    }
}
