//! What an NBD client may send. Input: `flags`, then the client's bytes.
//!
//! Flags: bit 0 a read-only export; bit 1 the handshake is said beforehand (structured replies, the allocation context, GO), so
//! that all bytes are requests. The promise: whatever comes, the server says its greeting, keeps to its memory, and leaves a disk
//! that does not depend on the size of its buffer (unless the client broke off in a write); a read-only disk stays as it was.

use std::sync::Arc;

use block::{BlockIo, Bytes, MemDisk};
use export::nbd::{NbdDisk, speak};

use super::Rules;

const DISK_BYTES: usize = 64 << 10;
/// Bytes of a client that are read.
const INPUT_MAX: usize = 256 << 10;
/// Longest answer to the shortest request, and the greeting. A read of the whole disk comes in chunks of a small buffer.
const ANSWER_MAX: usize = 2 * DISK_BYTES;

pub(crate) fn run(input: &[u8]) -> Rules {
    let Some((&flags, rest)) = input.split_first() else { return Rules::new() };
    let rest = &rest[..rest.len().min(INPUT_MAX)];
    let said = if flags & 2 == 0 { rest.to_vec() } else { [&handshake(), rest].concat() };
    let read_only = flags & 1 != 0;
    let (short, ended_short) = conversation(&said, read_only, 700);
    let (long, ended_long) = conversation(&said, read_only, DISK_BYTES);
    assert_eq!(ended_short, ended_long);
    // A write that broke off was never answered: how much of it arrived is anybody's guess.
    assert!(short == long || ended_long.is_err(), "the disk depends on the buffer");
    assert!(!read_only || long == fresh(), "a read-only disk changed");
    Rules::new()
}

/// The disk after a conversation, and how that ended.
fn conversation(said: &[u8], read_only: bool, buffer_bytes: usize) -> (Vec<u8>, Result<(), String>) {
    let disk = Arc::new(MemDisk::from_bytes(&fresh()));
    let served = |name: &str| NbdDisk {
        name: name.to_owned(),
        description: "fuzzed".to_owned(),
        disk: Arc::clone(&disk) as Arc<dyn BlockIo>,
        read_only,
    };
    let mut output = Vec::new();
    let ended = speak(vec![served("disk")], &mut &*said, &mut output, buffer_bytes);
    assert!(output.starts_with(b"NBDMAGICIHAVEOPT"));
    assert!(output.len() <= (said.len() / 16 + 2) * ANSWER_MAX, "{} bytes for {}", output.len(), said.len());
    let mut content = vec![0; DISK_BYTES];
    disk.read_at(Bytes(0), &mut content).expect("memory");
    (content, ended)
}

/// A disk that is not empty.
fn fresh() -> Vec<u8> {
    (0..DISK_BYTES).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect()
}

/// What a client says until it has the export.
fn handshake() -> Vec<u8> {
    const CONTEXT: &[u8] = b"base:allocation";
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("short").to_be_bytes();
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length, data].concat()
    };
    let contexts = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15][..], CONTEXT].concat();
    [&[0, 0, 0, 3][..], &option(8, &[]), &option(10, &contexts), &option(7, &[0; 6])].concat()
}
