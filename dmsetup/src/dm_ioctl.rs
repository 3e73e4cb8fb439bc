//! The device-mapper ioctls that the `devicemapper` crate cannot be used for, with a buffer that is wiped.
//!
//! * Remove and resume: the crate waits for udev without end when `/run/udev/control` exists but nobody serves it, and
//!   takes no cookie from its caller.
//! * Table status: the crate neither asks the kernel to wipe its copy (`DM_SECURE_DATA_FLAG`) nor wipes its own, and a
//!   table that another tool made may hold a key.
//! * The list of names: the crate gives none of them if one is not ASCII.
//!
//! Bytes of `struct dm_ioctl`: 0 version (three u32), 12 data size, 16 data start, 20 target count, 24 open count,
//! 28 flags, 32 event number, 36 padding, 40 device (u64), 48 name (128), 176 uuid (129), 305 to 312 unused; the data
//! follows. Bytes of `struct dm_target_spec`: 0 first sector (u64), 8 length (u64), 16 status, 20 next (u32, from the
//! start of the data), 24 type (16), then its text. Bytes of `struct dm_name_list`: 0 device (u64, 0 for none), 8 next (u32,
//! from its own start; 0 for the last), 12 the name. Native byte order.
//! Source: `include/uapi/linux/dm-ioctl.h`, `drivers/md/dm-ioctl.c`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zeroize::Zeroizing;

const DM_LIST_DEVICES: u8 = 2;
const DM_DEV_REMOVE: u8 = 4;
const DM_DEV_SUSPEND: u8 = 6;
const DM_TABLE_STATUS: u8 = 12;

const FLAG_STATUS_TABLE: u32 = 1 << 4;
const FLAG_BUFFER_FULL: u32 = 1 << 8;
const FLAG_SKIP_LOCKFS: u32 = 1 << 10;
const FLAG_NOFLUSH: u32 = 1 << 11;
const FLAG_QUERY_INACTIVE_TABLE: u32 = 1 << 12;
const FLAG_UEVENT_GENERATED: u32 = 1 << 13;
const FLAG_SECURE_DATA: u32 = 1 << 15;
const FLAG_DEFERRED_REMOVE: u32 = 1 << 17;

const AT_DATA_SIZE: usize = 12;
const AT_DATA_START: usize = 16;
const AT_TARGET_COUNT: usize = 20;
const AT_FLAGS: usize = 28;
const AT_EVENT_NUMBER: usize = 32;
const AT_NAME: usize = 48;
const NAME_BYTES: usize = 128;
/// `sizeof(struct dm_ioctl)`.
const HEADER_BYTES: usize = 312;
/// `sizeof(struct dm_target_spec)`.
const TARGET_BYTES: usize = 40;
/// Where the name stands in `struct dm_name_list`.
const NAME_AT: usize = 12;
/// Room for data at first; doubled while the kernel says it is too little.
const FIRST_DATA_BYTES: usize = 16 << 10;
const MAX_DATA_BYTES: usize = 16 << 20;

/// One target of a table, its text in memory that is wiped.
pub(crate) struct RawTarget {
    /// First sector.
    pub(crate) start_sectors: u64,
    /// Length.
    pub(crate) len_sectors: u64,
    /// Kind: `crypt`, `linear`, ...
    pub(crate) kind: String,
    /// Parameters or status; may hold another tool's key.
    pub(crate) text: Zeroizing<String>,
}

/// What to read of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Query {
    /// The table in use.
    Live,
    /// The table that was loaded and not yet resumed.
    Inactive,
    /// The targets' status.
    Status,
}

/// Removes a mapping; with `deferred` when its last user closes it. Whether an event for udev was sent.
pub(crate) fn remove(control: BorrowedFd<'_>, name: &str, deferred: bool, event_number: u32) -> io::Result<bool> {
    let flags = if deferred { FLAG_DEFERRED_REMOVE } else { 0 };
    let buffer = call(control, DM_DEV_REMOVE, name, flags, event_number, 0)?;
    Ok(word(&buffer, AT_FLAGS)? & FLAG_UEVENT_GENERATED != 0)
}

/// Resumes a mapping with the table loaded last. Whether an event for udev was sent. `flush` and `lock_fs` hold for the
/// short suspend that a change of the table takes.
pub(crate) fn resume(
    control: BorrowedFd<'_>,
    name: &str,
    flush: bool,
    lock_fs: bool,
    event_number: u32,
) -> io::Result<bool> {
    let flags = if flush { 0 } else { FLAG_NOFLUSH } | if lock_fs { 0 } else { FLAG_SKIP_LOCKFS };
    let buffer = call(control, DM_DEV_SUSPEND, name, flags, event_number, 0)?;
    Ok(word(&buffer, AT_FLAGS)? & FLAG_UEVENT_GENERATED != 0)
}

/// The targets of a mapping.
pub(crate) fn targets(control: BorrowedFd<'_>, name: &str, query: Query) -> io::Result<Vec<RawTarget>> {
    let flags = match query {
        Query::Live => FLAG_STATUS_TABLE | FLAG_NOFLUSH,
        Query::Inactive => FLAG_STATUS_TABLE | FLAG_NOFLUSH | FLAG_QUERY_INACTIVE_TABLE,
        Query::Status => FLAG_NOFLUSH,
    };
    parse_targets(&answer_of(control, DM_TABLE_STATUS, name, flags | FLAG_SECURE_DATA)?)
}

/// The names of all mappings, whatever bytes they have.
pub(crate) fn names(control: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    parse_names(&answer_of(control, DM_LIST_DEVICES, "", 0)?)
}

/// The answer to an ioctl whose length is not known before.
fn answer_of(control: BorrowedFd<'_>, command: u8, name: &str, flags: u32) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut data_bytes = FIRST_DATA_BYTES;
    loop {
        let buffer = call(control, command, name, flags, 0, data_bytes)?;
        if word(&buffer, AT_FLAGS)? & FLAG_BUFFER_FULL == 0 {
            return Ok(buffer);
        }
        data_bytes *= 2;
        if data_bytes > MAX_DATA_BYTES {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer does not follow <linux/dm-ioctl.h>")
}

fn word(buffer: &[u8], at: usize) -> io::Result<u32> {
    let bytes = buffer.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(invalid)?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn long(buffer: &[u8], at: usize) -> io::Result<u64> {
    let bytes = buffer.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or_else(invalid)?;
    Ok(u64::from_ne_bytes(*bytes))
}

fn index(number: u32) -> io::Result<usize> {
    usize::try_from(number).map_err(|_| invalid())
}

/// The text that ends with a zero byte.
fn text(bytes: &[u8]) -> io::Result<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(invalid)?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| invalid())
}

/// What follows the header.
fn data_of(buffer: &[u8]) -> io::Result<&[u8]> {
    let start = index(word(buffer, AT_DATA_START)?)?;
    let end = index(word(buffer, AT_DATA_SIZE)?)?.min(buffer.len());
    buffer.get(start..end.max(start)).ok_or_else(invalid)
}

fn parse_names(buffer: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut rest = data_of(buffer)?;
    let mut found = Vec::new();
    while !rest.is_empty() && long(rest, 0)? != 0 {
        let name = rest.get(NAME_AT..).ok_or_else(invalid)?;
        let end = name.iter().position(|byte| *byte == 0).ok_or_else(invalid)?;
        found.push(name[..end].to_vec());
        match index(word(rest, 8)?)? {
            0 => break,
            next => rest = rest.get(next..).ok_or_else(invalid)?,
        }
    }
    Ok(found)
}

fn parse_targets(buffer: &[u8]) -> io::Result<Vec<RawTarget>> {
    let count = word(buffer, AT_TARGET_COUNT)?;
    let data = data_of(buffer)?;
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = data.get(at..).filter(|spec| spec.len() > TARGET_BYTES).ok_or_else(invalid)?;
        found.push(RawTarget {
            start_sectors: long(spec, 0)?,
            len_sectors: long(spec, 8)?,
            kind: text(&spec[24..TARGET_BYTES])?.to_owned(),
            text: Zeroizing::new(text(&spec[TARGET_BYTES..])?.to_owned()),
        });
        at = index(word(spec, 20)?)?;
    }
    Ok(found)
}

/// One ioctl on the mapping `name` with room for `data_bytes` of answer. The buffer is wiped when it is dropped.
fn call(
    control: BorrowedFd<'_>,
    command: u8,
    name: &str,
    flags: u32,
    event_number: u32,
    data_bytes: usize,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(vec![0_u8; HEADER_BYTES + data_bytes]);
    let size = u32::try_from(buffer.len()).map_err(|_| invalid())?;
    let mut put = |at: usize, number: u32| buffer[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    put(0, 4); // interface 4.0.0: all that these calls need
    put(AT_DATA_SIZE, size);
    put(AT_DATA_START, 312);
    put(AT_FLAGS, flags);
    put(AT_EVENT_NUMBER, event_number);
    if name.len() >= NAME_BYTES {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    buffer[AT_NAME..AT_NAME + name.len()].copy_from_slice(name.as_bytes());
    // _IOWR(0xfd, command, struct dm_ioctl)
    let request = 0xc138_fd00_u32 | u32::from(command);
    // SAFETY: every device-mapper ioctl reads and writes one `struct dm_ioctl` and the data behind it, `data_size` bytes
    // in all. The buffer has exactly that many bytes, is exclusively borrowed for the call, and every byte pattern is a
    // valid one. The descriptor is open for the whole call.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(buffer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of the kernel with this many targets and this data.
    fn answer_with(count: usize, data: Vec<u8>) -> Vec<u8> {
        let mut buffer = vec![0_u8; HEADER_BYTES];
        let size = u32::try_from(HEADER_BYTES + data.len()).unwrap();
        buffer[AT_DATA_SIZE..][..4].copy_from_slice(&size.to_ne_bytes());
        buffer[AT_DATA_START..][..4].copy_from_slice(&312_u32.to_ne_bytes());
        buffer[AT_TARGET_COUNT..][..4].copy_from_slice(&u32::try_from(count).unwrap().to_ne_bytes());
        buffer.extend(data);
        buffer
    }

    fn answer(targets: &[(u64, u64, &str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (start, len, kind, params) in targets {
            let mut spec = vec![0_u8; TARGET_BYTES];
            spec[0..8].copy_from_slice(&start.to_ne_bytes());
            spec[8..16].copy_from_slice(&len.to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec.extend_from_slice(params.as_bytes());
            spec.push(0);
            spec.resize(spec.len().next_multiple_of(8), 0);
            let next = u32::try_from(data.len() + spec.len()).unwrap();
            spec[20..24].copy_from_slice(&next.to_ne_bytes());
            data.extend(spec);
        }
        answer_with(targets.len(), data)
    }

    #[test]
    fn names_are_read_whatever_bytes_they_have() {
        let names: [&[u8]; 3] = [b"plain", b"\xff\x1b[2J", "ü b".as_bytes()];
        let mut data = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let mut entry = (number as u64 + 1).to_ne_bytes().to_vec();
            entry.extend([0; 4]);
            entry.extend_from_slice(name);
            entry.resize((entry.len() + 9).next_multiple_of(8), 0);
            let next = if number + 1 == names.len() { 0 } else { u32::try_from(entry.len()).unwrap() };
            entry[8..12].copy_from_slice(&next.to_ne_bytes());
            data.extend(entry);
        }
        let whole = answer_with(0, data);
        assert_eq!(parse_names(&whole).unwrap(), names);
        assert_eq!(parse_names(&answer_with(0, vec![0; 16])).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(parse_names(&answer_with(0, Vec::new())).unwrap(), Vec::<Vec<u8>>::new());
        let mut twisted = whole;
        twisted[HEADER_BYTES + 8..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(parse_names(&twisted).is_err());
    }

    #[test]
    fn targets_are_read_one_after_the_other() {
        let buffer = answer(&[(0, 8, "crypt", "aes - 0 7:0 0"), (8, 16, "linear", "7:1 0")]);
        let targets = parse_targets(&buffer).unwrap();
        let read: Vec<_> =
            targets.iter().map(|t| (t.start_sectors, t.len_sectors, t.kind.as_str(), t.text.as_str())).collect();
        assert_eq!(read, [(0, 8, "crypt", "aes - 0 7:0 0"), (8, 16, "linear", "7:1 0")]);
        assert!(parse_targets(&answer(&[])).unwrap().is_empty());
    }

    #[test]
    fn a_cut_or_twisted_answer_is_an_error() {
        let whole = answer(&[(0, 8, "crypt", "aes - 0 7:0 0"), (8, 16, "linear", "7:1 0")]);
        for cut in 0..whole.len() - 3 {
            assert!(parse_targets(&whole[..cut]).is_err(), "{cut}");
        }
        for at in [AT_TARGET_COUNT, AT_DATA_START, HEADER_BYTES + 20] {
            let mut twisted = whole.clone();
            twisted[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
            assert!(parse_targets(&twisted).is_err(), "{at}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_device_mapper_gives_the_systems_error() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let error = remove(null.as_fd(), "x", false, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
