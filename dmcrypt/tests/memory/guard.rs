//! No byte is read or written outside of source and destination.
//!
//! Each buffer lies flush against a page without access, before it or behind it, so that a kernel that reaches too far
//! ends the process with SIGSEGV; on the side away from that page the bytes must stay what they were.

use std::process::Command;

use dmcrypt::{Kernel, SectorCipher};

use super::region::Region;
use super::{SECTOR_SIZES, available, built, noise};

const MAX_COUNT: usize = 40;
const UNTOUCHED: u8 = 0xa5;
/// Bytes looked at on the open side.
const MARGIN_BYTES: usize = 256;

/// Which end of its region a buffer touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Start,
    End,
}

impl Flush {
    fn range(self, region_bytes: usize, len_bytes: usize) -> std::ops::Range<usize> {
        match self {
            Flush::Start => 0..len_bytes,
            Flush::End => region_bytes - len_bytes..region_bytes,
        }
    }

    /// Where nothing may be written.
    fn margin(self, region_bytes: usize, len_bytes: usize) -> std::ops::Range<usize> {
        let range = self.range(region_bytes, len_bytes);
        match self {
            Flush::Start => range.end..(range.end + MARGIN_BYTES).min(region_bytes),
            Flush::End => range.start.saturating_sub(MARGIN_BYTES)..range.start,
        }
    }
}

/// Source and destination, each with both kinds of neighbour.
struct Buffers {
    source: Region,
    target: Region,
}

impl Buffers {
    fn new(len_bytes: usize) -> Buffers {
        Buffers { source: Region::new(len_bytes), target: Region::new(len_bytes) }
    }

    /// All four calls on runs of `len_bytes`; what came out equals what a call on ordinary memory gives.
    fn check(&mut self, cipher: &dyn SectorCipher, plain: &[u8], ends: [Flush; 2], what: &str) {
        let len_bytes = plain.len();
        let mut encrypted = plain.to_vec();
        cipher.encrypt_in_place(7, &mut encrypted);
        let (source, target) = (self.source.bytes(), self.target.bytes());
        let (source_margin, target_margin) =
            (ends[0].margin(source.len(), len_bytes), ends[1].margin(target.len(), len_bytes));
        source[source_margin.clone()].fill(UNTOUCHED);
        target[target_margin.clone()].fill(UNTOUCHED);
        let in_source = ends[0].range(source.len(), len_bytes);
        let in_target = ends[1].range(target.len(), len_bytes);

        source[in_source.clone()].copy_from_slice(plain);
        cipher.encrypt(7, &source[in_source.clone()], &mut target[in_target.clone()]);
        assert!(target[in_target.clone()] == encrypted, "{what}: encrypt");
        assert!(source[in_source.clone()] == *plain, "{what}: encrypt changed its source");
        cipher.decrypt(7, &target[in_target.clone()], &mut source[in_source.clone()]);
        assert!(source[in_source.clone()] == *plain, "{what}: decrypt");
        cipher.encrypt_in_place(7, &mut source[in_source.clone()]);
        assert!(source[in_source.clone()] == encrypted, "{what}: encrypt_in_place");
        cipher.decrypt_in_place(7, &mut target[in_target.clone()]);
        assert!(target[in_target] == *plain, "{what}: decrypt_in_place");

        assert!(source[source_margin].iter().all(|&byte| byte == UNTOUCHED), "{what}: wrote beside the source");
        assert!(target[target_margin].iter().all(|&byte| byte == UNTOUCHED), "{what}: wrote beside the target");
    }
}

fn check_kernel(kernel: Kernel, spec: &str, key_bytes: usize) {
    for sector_size in SECTOR_SIZES {
        let sector_bytes = sector_size.bytes() as usize;
        let mut buffers = Buffers::new(MAX_COUNT * sector_bytes);
        let cipher = built(kernel, spec, &noise(3, key_bytes), sector_size);
        let plain = noise(5, MAX_COUNT * sector_bytes);
        for count in 1..=MAX_COUNT {
            for ends in [[Flush::Start, Flush::End], [Flush::End, Flush::Start], [Flush::Start; 2], [Flush::End; 2]] {
                let what = format!("{kernel}, {spec}, {count} sectors of {sector_bytes} bytes, {ends:?}");
                buffers.check(cipher.as_ref(), &plain[..count * sector_bytes], ends, &what);
            }
        }
    }
}

#[test]
fn xts_stays_inside_its_buffers() {
    for kernel in available() {
        for (spec, key_bytes) in [("aes-xts-plain64", 32), ("aes-xts-plain64", 64), ("aes-xts-essiv:sha256", 64)] {
            check_kernel(kernel, spec, key_bytes);
        }
    }
}

#[test]
fn cbc_stays_inside_its_buffers() {
    for (spec, key_bytes) in [("aes-cbc-plain64", 16), ("aes-cbc-plain", 24), ("aes-cbc-essiv:sha256", 32)] {
        check_kernel(Kernel::Portable, spec, key_bytes);
    }
}

#[test]
fn the_ciphers_beside_aes_stay_inside_their_buffers() {
    for (spec, key_bytes) in [
        ("serpent-xts-plain64", 64),
        ("twofish-cbc-essiv:sha256", 16),
        ("camellia-xts-plain", 48),
        ("camellia-cbc-plain64", 24),
    ] {
        check_kernel(Kernel::Portable, spec, key_bytes);
    }
}

/// Names the place that the copy of this process below is to read.
const TOUCH: &str = "DMCRYPT_TOUCH_OFFSET";
const SURVIVED: &str = "that byte can be read";

#[test]
fn the_guards_are_guards() {
    let mut region = Region::new(1);
    let len_bytes = isize::try_from(region.bytes().len()).unwrap();
    if let Ok(offset) = std::env::var(TOUCH) {
        println!("byte {}: {SURVIVED}", region.read_at(offset.parse().unwrap()));
        return;
    }
    for (offset, there) in [(-1, false), (0, true), (len_bytes - 1, true), (len_bytes, false)] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "guard::the_guards_are_guards", "--nocapture"])
            .env(TOUCH, offset.to_string())
            .output()
            .unwrap();
        assert_eq!(output.status.success(), there, "offset {offset}: {}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stdout).contains(SURVIVED), there, "offset {offset}");
    }
}
