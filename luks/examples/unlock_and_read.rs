//! Unlocks a container and reads its plaintext, in this process and without root:
//! `cargo run -p luks --example unlock_and_read -- IMAGE < PASSPHRASE`; prints the first 512 bytes in hexadecimal.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{BlockIo as _, Bytes, FileDisk, OpenMode};
use luks::{Container, Limits, UnlockRequest};
use secret::{KeyProvider as _, KeyRequest, LineSource, Purpose, Secret};

#[path = "support/surroundings.rs"]
mod surroundings;
use surroundings::Machine;

type Failure = Box<dyn std::error::Error>;

/// The first sector of the volume.
pub(crate) fn first_sector(image: &Path, passphrase: &Secret) -> Result<[u8; 512], Failure> {
    let disk = Arc::new(FileDisk::open(image, &OpenMode { read_only: true, ..OpenMode::default() })?);
    // The header and the data are on one device here; a detached header is another store.
    let container = Container::open(Arc::clone(&disk), disk, Limits::default())?;
    let machine = Machine::new();
    let key = container.unlock(&machine.env(), &UnlockRequest::default(), passphrase)?;
    // A volume is one more block device: everything that takes a `BlockIo` takes it.
    let volume = container.into_volume(&key, true)?;
    let mut block = vec![0; volume.geometry().logical_block as usize];
    volume.read_at(Bytes(0), &mut block)?;
    Ok(*block.first_chunk().ok_or("a block of less than 512 bytes")?)
}

#[allow(dead_code, reason = "the tests include this file and call the function above")]
fn main() -> Result<(), Failure> {
    let image = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: unlock_and_read IMAGE < PASSPHRASE")?);
    let request = KeyRequest { volume: &image.to_string_lossy(), purpose: Purpose::Unlock, attempt: 1 };
    let passphrase = LineSource::new().key_for(&request)?.ok_or("no passphrase on standard input")?;
    for line in first_sector(&image, &passphrase)?.chunks(32) {
        println!("{}", line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
    Ok(())
}
