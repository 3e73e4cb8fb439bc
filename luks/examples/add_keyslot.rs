//! Gives a container another passphrase: `cargo run -p luks --example add_keyslot -- IMAGE`, the old passphrase and the new
//! one as two lines on standard input.
//!
//! The new keyslot is read back from the disk and opened before the function returns. Cryptsetup may work on the same
//! image at the same time: both take the same lock, and an edit of a header that changed meanwhile is refused.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{FileDisk, OpenMode};
use luks::calibrate::{KdfChoice, KdfCost, calibrate};
use luks::{Container, KeyslotId, Limits, NewKeyslot, UnlockRequest};
use secret::{KeyProvider as _, KeyRequest, LineSource, Purpose, Secret};

#[path = "support/surroundings.rs"]
mod surroundings;
use surroundings::Machine;

type Failure = Box<dyn std::error::Error>;

/// Adds a keyslot in which `new` opens what `existing` opens; its number. `cost` is what one guess shall cost.
pub(crate) fn add_keyslot(image: &Path, existing: &Secret, new: &Secret, cost: &KdfCost) -> Result<KeyslotId, Failure> {
    let disk = Arc::new(FileDisk::open(image, &OpenMode::default())?);
    let mut container = Container::open(Arc::clone(&disk), disk, Limits::default())?;
    let machine = Machine::new();
    let key = container.unlock(&machine.env(), &UnlockRequest::default(), existing)?;
    let kdf = calibrate(&machine.env(), KdfChoice::Argon2id, cost)?;
    Ok(container.keyslot_add(&machine.env(), &key, new, &NewKeyslot::new(kdf))?)
}

#[allow(dead_code, reason = "the tests include this file and call the function above")]
fn main() -> Result<(), Failure> {
    let image = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: add_keyslot IMAGE < TWO_LINES")?);
    let mut lines = LineSource::new();
    let mut line = |purpose| {
        let request = KeyRequest { volume: &image.to_string_lossy(), purpose, attempt: 1 };
        lines.key_for(&request)?.ok_or_else(|| Failure::from("no passphrase on standard input"))
    };
    let (existing, new) = (line(Purpose::ExistingPassphrase)?, line(Purpose::NewPassphrase)?);
    println!("keyslot {}", add_keyslot(&image, &existing, &new, &KdfCost::default())?);
    Ok(())
}
