//! What the ciphers touch and what they leave behind: pages without access on both sides of every buffer, and a scan of
//! the dead stack below each call.
//!
//! Linux only: the memory comes from `mmap`, the stack under scan is handed to `pthread_create`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

mod dead_stack;
mod guard;
#[path = "../support/noise.rs"]
mod noise;
mod region;
mod schedule;
mod state;

use dmcrypt::{CipherSpec, Kernel, SectorCipher, SectorSize};
use noise::noise;

const SECTOR_SIZES: [SectorSize; 4] = [SectorSize::S512, SectorSize::S1024, SectorSize::S2048, SectorSize::S4096];

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn built(kernel: Kernel, spec: &str, key: &[u8], sector_size: SectorSize) -> Box<dyn SectorCipher> {
    dmcrypt::build_with(kernel, &CipherSpec::parse(spec).unwrap(), key, sector_size).unwrap()
}
