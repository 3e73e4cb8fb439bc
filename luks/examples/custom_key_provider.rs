//! A source of keys of one's own: `cargo run -p luks --example custom_key_provider -- IMAGE KEY_FOLDER`.
//!
//! The folder holds one key file per container, named after its UUID. The provider answers `Ok(None)` for a container that
//! it does not know, and the next one is asked; an error stops the search. What it hands out is a [`Secret`]: locked
//! memory that is wiped when it goes.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{FileDisk, OpenMode};
use luks::{Container, KeyslotId, Limits, UnlockRequest};
use secret::{KeyFile, KeyProvider, KeyRequest, KeySourceError, LineSource, Purpose, Secret};

#[path = "support/surroundings.rs"]
mod surroundings;
use surroundings::Machine;

type Failure = Box<dyn std::error::Error>;

/// Key files named after what they open.
pub(crate) struct KeyFolder {
    /// Where they lie.
    pub(crate) folder: PathBuf,
    /// UUID of the container that is about to be unlocked.
    pub(crate) uuid: String,
}

impl KeyProvider for KeyFolder {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        let path = self.folder.join(&self.uuid);
        // The same answer a second time would be as wrong as the first.
        if request.purpose != Purpose::Unlock || request.attempt > 1 || !path.exists() {
            return Ok(None);
        }
        KeyFile::whole(&path).read().map(Some)
    }
}

/// Asks each provider in turn; the keyslot that its key opened.
pub(crate) fn unlock_with(image: &Path, providers: &mut [&mut dyn KeyProvider]) -> Result<Option<KeyslotId>, Failure> {
    let disk = Arc::new(FileDisk::open(image, &OpenMode { read_only: true, ..OpenMode::default() })?);
    let container = Container::open(Arc::clone(&disk), disk, Limits::default())?;
    let machine = Machine::new();
    let request = KeyRequest { volume: &image.to_string_lossy(), purpose: Purpose::Unlock, attempt: 1 };
    for provider in providers {
        let Some(passphrase) = provider.key_for(&request)? else { continue };
        match container.unlock(&machine.env(), &UnlockRequest::default(), &passphrase) {
            Ok(key) => return Ok(key.keyslot()),
            // A wrong key is an answer: the next provider may have the right one.
            Err(luks::Error::NoKey { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[allow(dead_code, reason = "the tests include this file and call the functions above")]
fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: custom_key_provider IMAGE KEY_FOLDER";
    let (image, folder) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let disk = FileDisk::open(&image, &OpenMode { read_only: true, ..OpenMode::default() })?;
    let uuid = luks::load(&disk, &Limits::default())?.uuid();
    match unlock_with(&image, &mut [&mut KeyFolder { folder, uuid }, &mut LineSource::new()])? {
        Some(keyslot) => println!("keyslot {keyslot} opened"),
        None => println!("nobody has a key for it"),
    }
    Ok(())
}
