//! A tar archive in a gzip member, built in locked memory: the inside of a backup of keys.
//!
//! The archive is POSIX ustar (IEEE Std 1003.1-2017, pax, "ustar Interchange Format"), files of mode 0600 only. The gzip
//! member (RFC 1952) holds stored blocks (RFC 1951, 3.2.4): keys do not shrink, and a compressor would copy them around.
//!
//! Invariant: content is in locked memory only; sizes are known before, so nothing moves.

use crate::limits::BACKUP_BYTES_MAX;
use crate::{Error, Timestamp};
use secret::Secret;

const RECORD: usize = 512;
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
const GZIP_TRAILER: usize = 8;
const STORED_MAX: usize = 0xffff;
const STORED_HEADER: usize = 5;
const NAME_MAX: usize = 100;

/// One file of the archive.
pub(crate) struct Entry<'a> {
    pub(crate) name: String,
    pub(crate) content: &'a [u8],
}

fn padded(len_bytes: usize) -> usize {
    len_bytes.div_ceil(RECORD) * RECORD
}

/// The gzipped tar archive of `entries`, all of which bear the time `now`.
pub(crate) fn tarball(entries: &[Entry<'_>], now: Timestamp) -> Result<Secret, Error> {
    let too_large = || Error::TooLarge { file: "the backup of keys".to_owned(), limit_bytes: BACKUP_BYTES_MAX };
    let files: usize = entries.iter().map(|entry| RECORD + padded(entry.content.len())).sum();
    let archive_bytes = files + 2 * RECORD;
    if archive_bytes > BACKUP_BYTES_MAX || entries.iter().any(|entry| entry.name.len() > NAME_MAX) {
        return Err(too_large());
    }
    let mut archive = Secret::zeroed(archive_bytes)?;
    let mut at = 0;
    for entry in entries {
        archive.expose_mut()[at..at + RECORD].copy_from_slice(&header(entry, now));
        at += RECORD;
        archive.expose_mut()[at..at + entry.content.len()].copy_from_slice(entry.content);
        at += padded(entry.content.len());
    }
    gzip(&archive)
}

fn header(entry: &Entry<'_>, now: Timestamp) -> [u8; RECORD] {
    let mut header = [0; RECORD];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, &entry.name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", entry.content.len()));
    // Eleven octal digits last until the year 2242.
    put(136, &format!("{:011o}\0", now.seconds().min(0o777_7777_7777)));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    put(265, "root");
    put(297, "root");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn gzip(content: &Secret) -> Result<Secret, Error> {
    let blocks = content.len().div_ceil(STORED_MAX);
    let len_bytes = GZIP_HEADER.len() + blocks * STORED_HEADER + content.len() + GZIP_TRAILER;
    Secret::fill_with(len_bytes, |out| {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&GZIP_HEADER);
        for (index, part) in content.expose().chunks(STORED_MAX).enumerate() {
            let len = u16::try_from(part.len()).unwrap_or(u16::MAX);
            put(&[u8::from(index + 1 == blocks)]);
            put(&len.to_le_bytes());
            put(&(!len).to_le_bytes());
            put(part);
        }
        put(&crc32fast::hash(content.expose()).to_le_bytes());
        put(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
        Ok(())
    })
}

/// The stored blocks of what [`gzip`] wrote, one after the other; `None` if it is anything else.
fn gunzip(member: &[u8]) -> Result<Option<Secret>, Error> {
    let Some(body) = member.strip_prefix(&GZIP_HEADER) else { return Ok(None) };
    let Some((mut body, trailer)) = body.split_last_chunk::<GZIP_TRAILER>() else { return Ok(None) };
    let mut content = Secret::zeroed(body.len())?;
    let mut filled = 0;
    while let Some((&[last, low, high, ..], rest)) = body.split_first_chunk::<STORED_HEADER>() {
        let len_bytes = usize::from(u16::from_le_bytes([low, high]));
        if last > 1 || len_bytes > rest.len() || (last == 1) != (len_bytes == rest.len()) {
            return Ok(None);
        }
        content.expose_mut()[filled..filled + len_bytes].copy_from_slice(&rest[..len_bytes]);
        filled += len_bytes;
        body = &rest[len_bytes..];
    }
    let content = content.truncated(filled);
    let fits = body.is_empty() && trailer[..4] == crc32fast::hash(content.expose()).to_le_bytes();
    Ok(fits.then_some(content))
}

/// The files of an archive that [`tarball`] made; `None` if it is anything else.
pub(crate) fn entries(archive: &Secret) -> Result<Option<Vec<(String, Secret)>>, Error> {
    let Some(archive) = gunzip(archive.expose())? else { return Ok(None) };
    let mut rest = archive.expose();
    let mut found = Vec::new();
    while let Some((header, behind)) = rest.split_at_checked(RECORD).filter(|(header, _)| header[0] != 0) {
        let text = |from: usize, to: usize| std::str::from_utf8(&header[from..to]).unwrap_or_default();
        let name = text(0, NAME_MAX).trim_end_matches('\0').to_owned();
        let len_bytes = usize::from_str_radix(text(124, 135), 8).ok().filter(|len_bytes| *len_bytes <= behind.len());
        let Some(len_bytes) = len_bytes else { return Ok(None) };
        found.push((name, Secret::copy_of(&behind[..len_bytes])?));
        rest = behind.get(padded(len_bytes)..).unwrap_or_default();
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_takes_out_what_was_put_in() {
        let large: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
        let entries = [
            Entry { name: "data.key".into(), content: &[7; 64] },
            Entry { name: "large".into(), content: &large },
            Entry { name: "empty".into(), content: b"" },
        ];
        let made = tarball(&entries, Timestamp::from_seconds(1_733_054_400)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut tar =
            Command::new("tar").args(["-xzf", "-"]).current_dir(&folder).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(made.expose()).unwrap();
        assert!(tar.wait().unwrap().success());
        for entry in &entries {
            assert_eq!(std::fs::read(folder.path().join(&entry.name)).unwrap(), entry.content);
        }
        let back = super::entries(&made).unwrap().unwrap();
        assert!(back.iter().zip(&entries).all(|(back, entry)| back.0 == entry.name && back.1.ct_eq(entry.content)));
        assert_eq!(back.len(), 3);
        let modified = std::fs::metadata(folder.path().join("data.key")).unwrap().modified().unwrap();
        assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_733_054_400);
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let content = vec![0; BACKUP_BYTES_MAX];
        let entries = [Entry { name: "x".into(), content: &content }];
        assert!(matches!(tarball(&entries, Timestamp::from_seconds(0)), Err(Error::TooLarge { .. })));
    }
}
