//! Makes a container in a new file of 64 MiB: `cargo run -p luks --example create -- IMAGE < PASSPHRASE`.
//!
//! Nothing says LUKS on the disk before a keyslot was seen to open: a crash on the way leaves no half a container.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::path::{Path, PathBuf};

use block::{Bytes, FileDisk, OpenMode};
use luks::calibrate::{KdfChoice, KdfCost};
use luks::format::NewKdf;
use luks::{FormatParams, Header};
use secret::{KeyProvider as _, KeyRequest, LineSource, Purpose, Secret};

#[path = "support/surroundings.rs"]
mod surroundings;
use surroundings::Machine;

type Failure = Box<dyn std::error::Error>;

/// Makes the container; its header. `cost` is what one guess of the passphrase shall cost: the default is measured on this
/// machine, 2 s of Argon2id.
pub(crate) fn create(image: &Path, size: Bytes, passphrase: &Secret, cost: KdfCost) -> Result<Header, Failure> {
    let disk = FileDisk::create_new(image, &OpenMode::default())?;
    disk.set_len(size)?;
    let params = FormatParams {
        label: Some("made by an example".to_owned()),
        kdf: NewKdf::Calibrate(KdfChoice::Argon2id, cost),
        ..FormatParams::default()
    };
    let machine = Machine::new();
    let header = luks::format::format(&disk, &disk, &machine.env(), &params, passphrase)?;
    // The file's name is as durable as its content.
    disk.sync_name()?;
    Ok(header)
}

#[allow(dead_code, reason = "the tests include this file and call the function above")]
fn main() -> Result<(), Failure> {
    let image = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: create IMAGE < PASSPHRASE")?);
    let request = KeyRequest { volume: &image.to_string_lossy(), purpose: Purpose::NewPassphrase, attempt: 1 };
    let passphrase = LineSource::new().key_for(&request)?.ok_or("no passphrase on standard input")?;
    println!("{}", create(&image, Bytes(64 << 20), &passphrase, KdfCost::default())?.uuid());
    Ok(())
}
