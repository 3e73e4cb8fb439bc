//! The system calls of the doctor that no crate of this workspace wraps. Each asks and changes nothing that outlives the
//! call; none can wait.
//!
//! Sources: io_uring_setup(2), add_key(2), keyctl(2), getrandom(2), adjtimex(2), `include/uapi/linux/dm-ioctl.h`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::answers::MapperDriver;

/// `struct io_uring_params` has 120 bytes.
const RING_PARAMS_WORDS: usize = 15;
/// `KEY_SPEC_THREAD_KEYRING`: ends with this thread.
const THREAD_KEYRING: libc::c_long = -1;
const KEYCTL_READ: libc::c_long = 11;
const KEYCTL_INVALIDATE: libc::c_long = 21;

/// Size of `struct dm_ioctl`: 44 bytes of numbers with padding up to `dev`, name of 128, UUID of 129, 7 to the end.
const MAPPER_HEADER_BYTES: u32 = 312;
const MAPPER_BUFFER_BYTES: u32 = 16 << 10;
/// `_IOWR(0xfd, 0, struct dm_ioctl)`: DM_VERSION.
const DM_VERSION: libc::Ioctl = 0xc138_fd00_u32 as libc::Ioctl;
/// `_IOWR(0xfd, 13, struct dm_ioctl)`: DM_LIST_VERSIONS, which names the targets that are there and loads none.
const DM_LIST_VERSIONS: libc::Ioctl = 0xc138_fd0d_u32 as libc::Ioctl;

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a ring of one entry and closes it.
pub(super) fn io_uring() -> io::Result<()> {
    let mut params = [0_u64; RING_PARAMS_WORDS];
    // SAFETY: the kernel reads and writes 120 bytes at the pointer, which is exactly the array, aligned for u64.
    let descriptor = checked(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) })?;
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor, so it is open and nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

/// Adds a key of type `user` to this thread's keyring, reads it back and invalidates it.
pub(super) fn keyring() -> io::Result<()> {
    const PAYLOAD: &[u8; 8] = b"no key: ";
    // SAFETY: type and description are C strings and the payload is as long as the length says; the kernel only reads.
    let key = checked(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            c"luksctl:doctor".as_ptr(),
            PAYLOAD.as_ptr(),
            PAYLOAD.len(),
            THREAD_KEYRING,
        )
    })?;
    let mut read = [0_u8; PAYLOAD.len()];
    // SAFETY: the kernel writes at most `read.len()` bytes to `read`.
    let got = checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_READ, key, read.as_mut_ptr(), read.len()) });
    // SAFETY: takes a key's number and touches no memory of ours.
    let gone = checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_INVALIDATE, key) });
    got?;
    gone?;
    if &read == PAYLOAD { Ok(()) } else { Err(io::Error::other("the key was read back changed")) }
}

/// Whether randomness can be had without waiting.
pub(super) fn randomness_is_ready() -> bool {
    let mut byte = [0_u8; 1];
    // SAFETY: the kernel writes one byte into an array of one.
    unsafe { libc::getrandom(byte.as_mut_ptr().cast(), byte.len(), libc::GRND_NONBLOCK) == 1 }
}

/// Whether the kernel knows its clock to be synchronised; `None` if it does not say.
pub(super) fn clock_is_synchronised() -> Option<bool> {
    // SAFETY: `timex` is integers, for which all bits zero is a value; with no mode set the kernel changes nothing and
    // only writes into it.
    let (state, clock) = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut clock), clock)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR && clock.status & libc::STA_UNSYNC == 0)
}

/// Asks the device-mapper behind `control` for its version and its targets.
pub(super) fn mapper_driver(control: &File) -> io::Result<MapperDriver> {
    let version = mapper_call(control, DM_VERSION)?;
    let targets = mapper_call(control, DM_LIST_VERSIONS)?;
    Ok(MapperDriver { version: version_at(&version, 0).unwrap_or_default(), targets: parse_targets(&targets) })
}

fn mapper_call(control: &File, request: libc::Ioctl) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; MAPPER_BUFFER_BYTES as usize];
    for (at, value) in [(0, 4), (12, MAPPER_BUFFER_BYTES), (16, MAPPER_HEADER_BYTES)] {
        buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    // SAFETY: the buffer starts with a `struct dm_ioctl` whose data_size is the buffer's length: the kernel reads and writes
    // no further. It copies bytes, so their alignment does not matter.
    checked(unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) }.into())?;
    Ok(buffer)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn version_at(bytes: &[u8], at: usize) -> Option<String> {
    let [major, minor, patch] = [word_at(bytes, at)?, word_at(bytes, at + 4)?, word_at(bytes, at + 8)?];
    Some(format!("{major}.{minor}.{patch}"))
}

/// Names and versions of `struct dm_target_versions`: `next` (bytes to the next one, 0 in the last), three words of
/// version, the name with its zero.
fn parse_targets(reply: &[u8]) -> Vec<(String, String)> {
    let mut targets = Vec::new();
    let Some(mut at) = word_at(reply, 16).map(|start| start as usize) else {
        return targets;
    };
    while let (Some(next), Some(version)) = (word_at(reply, at), version_at(reply, at + 4)) {
        let name = reply.get(at + 16..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        if !name.is_empty() {
            targets.push((String::from_utf8_lossy(name).into_owned(), version));
        }
        // Every step goes forward by at least one record, so it ends with the buffer.
        if (next as usize) < 16 {
            break;
        }
        at += next as usize;
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(records: &[(u32, [u32; 3], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; MAPPER_HEADER_BYTES as usize];
        bytes[16..20].copy_from_slice(&MAPPER_HEADER_BYTES.to_ne_bytes());
        for (next, version, name) in records {
            bytes.extend(next.to_ne_bytes());
            bytes.extend(version.iter().flat_map(|word| word.to_ne_bytes()));
            bytes.extend(*name);
        }
        bytes
    }

    #[test]
    fn targets_are_listed_and_a_crooked_reply_ends() {
        let good = reply(&[(24, [1, 28, 0], b"crypt\0\0\0"), (0, [1, 5, 0], b"linear\0\0")]);
        let expected = [("crypt".to_owned(), "1.28.0".to_owned()), ("linear".to_owned(), "1.5.0".to_owned())];
        assert_eq!(parse_targets(&good), expected);
        for next in [1, 15, u32::MAX, 1 << 20] {
            assert_eq!(parse_targets(&reply(&[(next, [1, 28, 0], b"crypt\0\0\0")])), expected[..1]);
        }
        for cut in 0..good.len() {
            assert!(parse_targets(&good[..cut]).len() <= 2);
        }
    }

    #[test]
    fn the_probes_answer_and_leave_nothing() {
        drop((io_uring(), keyring(), clock_is_synchronised()));
        assert!(randomness_is_ready());
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let rings = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        assert!(!rings.into_iter().any(|target| target.to_string_lossy().contains("io_uring")));
        // An invalidated key (flag `i`) is listed until the kernel's collector comes by.
        let keys = std::fs::read_to_string("/proc/keys").unwrap_or_default();
        let left = |line: &str| {
            line.contains("luksctl:doctor") && line.split_whitespace().nth(1).is_some_and(|flags| !flags.contains('i'))
        };
        assert!(!keys.lines().any(left), "{keys}");
    }
}
