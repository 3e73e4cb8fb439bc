//! The rules for LUKS1 headers, held against the real cryptsetup: both accept and refuse the same bytes.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "../../luks/tests/luks1/image.rs"]
mod image;

use std::path::Path;
use std::process::{Command, Stdio};

use block::{BlockIo, Bytes, MemDisk};
use image::{Vector, vectors};
use luks::luks1::load_unlocked;
use promises::skip::needs_programs;

fn block_of(vector: &Vector) -> Vec<u8> {
    let mut block = vector.header();
    block.resize(1024, 0);
    block
}

fn we_accept(vector: &Vector) -> bool {
    let disk = MemDisk::new(Bytes(u64::from(vector.device_sectors) * 512));
    disk.write_at(Bytes(0), &block_of(vector), false).expect("write");
    load_unlocked(&disk).is_ok()
}

fn cryptsetup_accepts(folder: &Path, vector: &Vector) -> bool {
    let path = folder.join("vector.img");
    std::fs::write(&path, block_of(vector)).expect("write image");
    let file = std::fs::File::options().write(true).open(&path).expect("open image");
    file.set_len(u64::from(vector.device_sectors) * 512).expect("grow image");
    let mut command = Command::new("cryptsetup");
    command.args(["luksDump", "--type", "luks1", "--disable-locks"]).arg(&path).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("run cryptsetup").success()
}

#[test]
fn cryptsetup_judges_each_vector_alike() {
    if !needs_programs("cryptsetup_judges_each_vector_alike", &["cryptsetup"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut differ = Vec::new();
    for vector in vectors() {
        let (ours, theirs) = (we_accept(&vector), cryptsetup_accepts(folder.path(), &vector));
        if ours != (vector.rule == "valid") || theirs != (ours || vector.stricter) {
            differ.push(format!("{}, {}: we accept {ours}, cryptsetup {theirs}", vector.rule, vector.what));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
