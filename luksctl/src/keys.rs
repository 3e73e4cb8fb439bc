//! From key options to a source of passphrases. One run makes at most two: the passphrase that unlocks, and a new one;
//! when both come from standard input they are its first and second line.

use std::io::IsTerminal as _;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use block::Bytes;
use secret::{KeyDescriptor, KeyFile, KeyProvider, KeyRequest, KeySourceError, LineSource, Prompt, Purpose, Secret};

use crate::args::key::{KeyArgs, NewKeyArgs, NewKeyFileArgs};
use crate::failure::Failure;

/// New passphrases shorter than this are warned about.
const SHORT_PASSPHRASE_BYTES: usize = 8;

/// A source of passphrases, chosen by the options and by whether standard input is a terminal.
pub(crate) struct KeySource {
    provider: Box<dyn KeyProvider>,
    interactive: bool,
    /// Typed or a line: the quality of a new passphrase is looked at. Key files are taken as they are.
    typed: bool,
    tries: u32,
}

impl KeySource {
    /// The source of the passphrase that unlocks.
    pub(crate) fn unlocking(args: &KeyArgs, positional: Option<&Path>) -> Result<KeySource, Failure> {
        if positional.is_some() && (args.key_file.is_some() || args.key_fd.is_some()) {
            return Err(Failure::wrong("two key sources are given: KEYFILE after the image, and an option")
                .with_hint("leave one of them out"));
        }
        let path = positional.or(args.key_file.as_deref());
        KeySource::chosen(path, args.key_fd, args.keyfile_offset, args.keyfile_size, args.tries)
    }

    /// The source of a new passphrase, beside one that unlocks and may be asked for `tries` times.
    pub(crate) fn new_beside(
        args: &NewKeyFileArgs,
        positional: Option<&PathBuf>,
        tries: u32,
    ) -> Result<KeySource, Failure> {
        if positional.is_some() && args.new_keyfile.is_some() {
            return Err(Failure::wrong("two new key files are given: one after the image, and --new-keyfile")
                .with_hint("leave one of them out"));
        }
        let path = positional.or(args.new_keyfile.as_ref()).map(PathBuf::as_path);
        KeySource::chosen(path, None, args.new_keyfile_offset, args.new_keyfile_size, tries)
    }

    fn chosen(
        path: Option<&Path>,
        descriptor: Option<RawFd>,
        offset: Option<Bytes>,
        size: Option<Bytes>,
        tries: u32,
    ) -> Result<KeySource, Failure> {
        let terminal = std::io::stdin().is_terminal();
        let dash = path == Some(Path::new("-"));
        if let Some(path) = path.filter(|_| !(dash && terminal)) {
            let size_bytes = size.map(|size| {
                size.to_usize()
                    .ok_or_else(|| Failure::wrong(format!("--keyfile-size {size}: more than memory can hold")))
            });
            let file = KeyFile {
                path: path.to_owned(),
                offset_bytes: offset.map_or(0, Bytes::get),
                size_bytes: size_bytes.transpose()?,
            };
            return Ok(KeySource { provider: Box::new(file), interactive: false, typed: false, tries: 1 });
        }
        if offset.is_some() || (size.is_some() && descriptor.is_none()) {
            return Err(Failure::wrong("--keyfile-size and --keyfile-offset need a key file")
                .with_hint("add --key-file FILE; --key-file - reads standard input to its end"));
        }
        if let Some(number) = descriptor {
            let provider = KeyDescriptor::from_number(number).map_err(|error| Failure::of_key_source(&error))?;
            return Ok(KeySource { provider: Box::new(provider), interactive: false, typed: false, tries: 1 });
        }
        if terminal {
            return Ok(KeySource { provider: Box::new(Prompt::new()), interactive: true, typed: true, tries });
        }
        Ok(KeySource { provider: Box::new(LineSource::new()), interactive: false, typed: true, tries: 1 })
    }

    /// Asks for a new passphrase only once, where there is nobody to be careful for.
    pub(crate) fn asking_once(mut self, once: bool) -> KeySource {
        if once && self.interactive {
            self.provider = Box::new(Prompt::new().asking_once());
        }
        self
    }

    /// How often it is worth asking.
    pub(crate) fn tries(&self) -> u32 {
        if self.interactive { self.tries } else { 1 }
    }

    /// The passphrase for `volume`.
    pub(crate) fn passphrase(&mut self, volume: &str, purpose: Purpose, attempt: u32) -> Result<Secret, Failure> {
        let request = KeyRequest { volume, purpose, attempt };
        answer(volume, self.key_for(&request))
    }

    /// A new passphrase; a person who did not type the same twice is asked again.
    fn typed_alike(&mut self, volume: &str) -> Result<Secret, Failure> {
        let request = KeyRequest { volume, purpose: Purpose::NewPassphrase, attempt: 1 };
        for _ in 1..self.tries() {
            match self.provider.key_for(&request) {
                Err(error @ KeySourceError::Mismatch) => crate::output::words(&format!("luksctl: {error}")),
                other => return answer(volume, other),
            }
        }
        answer(volume, self.provider.key_for(&request))
    }

    /// A new passphrase for `volume`; its quality is looked at when a person typed it.
    pub(crate) fn new_passphrase(&mut self, volume: &str, args: &NewKeyArgs) -> Result<Secret, Failure> {
        let passphrase = self.typed_alike(volume)?;
        if args.force_password {
            return Ok(passphrase);
        }
        if passphrase.is_empty() {
            return Err(Failure::wrong(format!("{volume}: the new passphrase is empty"))
                .with_hint("type one, or add --force-password to take it"));
        }
        if self.typed && passphrase.len() < SHORT_PASSPHRASE_BYTES {
            crate::output::words(&format!(
                "luksctl: warning: the new passphrase is shorter than {SHORT_PASSPHRASE_BYTES} bytes; \
                 `luksctl keyslot change` sets a longer one"
            ));
        }
        Ok(passphrase)
    }
}

fn answer(volume: &str, result: Result<Option<Secret>, KeySourceError>) -> Result<Secret, Failure> {
    match result {
        Ok(Some(secret)) => Ok(secret),
        Ok(None) => Err(Failure::wrong(format!("{volume}: the key source has no passphrase for it"))),
        Err(error) => Err(Failure::of_key_source(&error)),
    }
}

impl KeyProvider for KeySource {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        if request.attempt > 1 {
            crate::output::words("No key available with this passphrase.");
        }
        self.provider.key_for(request)
    }
}
