//! A block device against a model in memory: random writes, and every way of zeroing, punching and discarding, after each
//! of which the whole device must read as the model says. And a tree of files that is the same on every run.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use block::{BlockIo as _, Bytes, Direct, FileDisk, OpenMode};

/// Writes and zeroings of one run.
const ROUNDS: u32 = 120;
/// The tools of [`zero`].
const TOOLS: u64 = 4;
/// The one of them that promises nothing about the bytes afterwards.
const DISCARD: u64 = 2;

/// The next number of a xorshift64 sequence.
pub fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// `count` files of up to 4 KiB in 100 folders below `root`.
///
/// # Panics
/// If one cannot be written.
pub fn make_tree(root: &Path, count: u64) {
    let mut state = 0x5eed_0001;
    for index in 0..count {
        let folder = root.join(format!("folder-{}", index % 100));
        fs::create_dir_all(&folder).unwrap();
        let len = usize::try_from(xorshift(&mut state) % 4096).unwrap();
        let content: Vec<u8> = state.to_le_bytes().iter().copied().cycle().take(len).collect();
        File::create(folder.join(format!("file-{index}"))).unwrap().write_all(&content).unwrap();
    }
}

/// Runs `command` with nothing on its standard input.
///
/// # Panics
/// If it cannot be started.
pub fn try_run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Zeroes or discards a range of `file` with one of four tools; whether the tool said that it did.
///
/// # Panics
/// If a tool fails that must not.
pub fn zero(file: &Path, tool: u64, start: u64, len: u64) -> bool {
    let (start, len) = (start.to_string(), len.to_string());
    let (program, first, must) = match tool {
        0 => ("fallocate", Some("-p"), false),
        1 => ("fallocate", Some("-z"), true),
        DISCARD => ("blkdiscard", None, false),
        // The kernel writes zeros itself where the device cannot.
        _ => ("blkdiscard", Some("-z"), true),
    };
    let mut command = Command::new(program);
    command.args(first).args(["-o", &start, "-l", &len]).arg(file);
    let output = try_run(&mut command);
    assert!(output.status.success() || !must, "{command:?}: {output:?}");
    output.status.success()
}

/// Random writes and zeroings of the first `size` bytes of `device` in units of `block`, held against a model: how many
/// ranges were zeroed, or the first difference.
///
/// # Errors
/// The place, seed and round of the first wrong byte.
///
/// # Panics
/// If the device refuses what it must take.
pub fn compare(device: &Path, size: u64, block: u64, seed: u64) -> Result<u32, String> {
    let mode = OpenMode { read_only: false, direct: Direct::Always, exclusive: false };
    let disk = FileDisk::open(device, &mode).unwrap();
    let mut model = vec![0_u8; usize::try_from(size).unwrap()];
    // What was never written reads as noise.
    disk.write_at(Bytes(0), &model, false).unwrap();
    let mut state = seed;
    let mut zeroed = 0;
    for round in 0..ROUNDS {
        let start = xorshift(&mut state) % (size / block) * block;
        let most = if xorshift(&mut state).is_multiple_of(4) { size / block } else { 64 };
        let len = ((1 + xorshift(&mut state) % most) * block).min(size - start);
        let range = usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
        if xorshift(&mut state).is_multiple_of(2) {
            let word = state.to_le_bytes();
            for (byte, value) in model[range.clone()].iter_mut().zip(word.iter().cycle()) {
                *byte = *value;
            }
            disk.write_at(Bytes(start), &model[range], false).unwrap();
        } else {
            let tool = xorshift(&mut state) % TOOLS;
            if zero(device, tool, start, len) {
                zeroed += 1;
                // A discard may do nothing: the kernel says success where the device refused it. It may not leave noise.
                if tool != DISCARD || !is_unchanged(&disk, &model, &range) {
                    model[range].fill(0);
                }
            }
        }
        let mut seen = vec![0xEE; model.len()];
        disk.read_at(Bytes(0), &mut seen).unwrap();
        let wrong = seen.iter().zip(&model).position(|(seen, expected)| seen != expected);
        if let Some(place) = wrong {
            return Err(format!("byte {place} is wrong (seed {seed:#x}, round {round})"));
        }
    }
    disk.flush().unwrap();
    Ok(zeroed)
}

fn is_unchanged(disk: &FileDisk, model: &[u8], range: &Range<usize>) -> bool {
    let mut seen = vec![0xEE; range.len()];
    disk.read_at(Bytes(range.start as u64), &mut seen).unwrap();
    seen == model[range.clone()]
}
