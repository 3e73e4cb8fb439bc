//! What the ciphers touch and what they leave behind: pages without access on both sides of every buffer, and a scan of
//! the dead stack below each call.
//!
//! Linux only: the memory comes from `mmap`, the stack under scan is handed to `pthread_create`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod dead_stack;
mod guard;
mod region;
mod schedule;

use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};

const SECTOR_SIZES: [SectorSize; 4] = [SectorSize::S512, SectorSize::S1024, SectorSize::S2048, SectorSize::S4096];

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn built(kernel: Kernel, spec: &str, key: &[u8], sector_size: SectorSize) -> Box<dyn SectorCipher> {
    dmcrypt::build_with(kernel, &CipherSpec::parse(spec).unwrap(), key, sector_size).unwrap()
}

/// xorshift64: no two blocks alike, and no zeros to speak of.
fn noise(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len_bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
