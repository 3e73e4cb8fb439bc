//! From key options to a source of passphrases. One run makes at most two: the passphrase that unlocks, and a new one;
//! when both come from standard input they are its first and second line.

use std::io::IsTerminal as _;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use block::Bytes;
use luks::Metadata;
use secret::{KeyDescriptor, KeyFile, KeyProvider, KeyRequest, KeySourceError, LineSource, Prompt, Purpose, Secret};

use crate::args::key::{KeyArgs, NewKeyArgs, NewKeyFileArgs};
use crate::args::token::TokenArgs;
use crate::exit::Code;
use crate::failure::Failure;
use crate::token_keys::TokenKeys;

/// New passphrases shorter than this are warned about.
const SHORT_PASSPHRASE_BYTES: usize = 8;

/// A source of passphrases, chosen by the options and by whether standard input is a terminal.
pub(crate) struct KeySource {
    provider: Box<dyn KeyProvider>,
    interactive: bool,
    /// Typed or a line: the quality of a new passphrase is looked at. Key files are taken as they are.
    typed: bool,
    tries: u32,
    /// Tokens that are tried before the provider is.
    tokens: Option<TokenKeys>,
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

    /// The source of a volume key: all of the file.
    pub(crate) fn volume_key(path: &Path) -> Result<KeySource, Failure> {
        KeySource::chosen(Some(path), None, None, None, 1)
    }

    /// Has tokens tried first, unless a key file was given and no token asked for.
    pub(crate) fn after_tokens(mut self, tokens: &TokenArgs, key: &KeyArgs) -> KeySource {
        let other_source = key.key_file.is_some() || key.key_fd.is_some();
        if tokens.is_given() || !other_source {
            self.tokens = Some(TokenKeys::new(tokens));
        }
        self
    }

    /// Whether tokens are to be tried.
    pub(crate) fn tries_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Reads the keys of the container's tokens, where tokens are to be tried. An error if only they may unlock and none can.
    pub(crate) fn look_for_tokens(
        &mut self,
        image: &Path,
        metadata: &Metadata,
        keyslot: Option<u32>,
        purpose: luks::Purpose,
    ) -> Result<(), Failure> {
        let Some(tokens) = &mut self.tokens else { return Ok(()) };
        tokens.look(metadata, keyslot, purpose);
        if tokens.only() && tokens.len() == 0 {
            // As in cryptsetup: a key that is missing is no permission, a token that is missing is a wrong parameter.
            let code = if tokens.were_promising() { Code::Permission } else { Code::Wrong };
            return Err(Failure::new(code, format!("{}: No usable token is available.", image.display()))
                .with_hint(format!("`luksctl token list {}`; `keyctl list @s` shows the keyring", image.display())));
        }
        Ok(())
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
            return Ok(KeySource {
                provider: Box::new(file),
                interactive: false,
                typed: false,
                tries: 1,
                tokens: None,
            });
        }
        if offset.is_some() || (size.is_some() && descriptor.is_none()) {
            return Err(Failure::wrong("--keyfile-size and --keyfile-offset need a key file")
                .with_hint("add --key-file FILE; --key-file - reads standard input to its end"));
        }
        if let Some(number) = descriptor {
            let provider = KeyDescriptor::from_number(number).map_err(|error| Failure::of_key_source(&error))?;
            return Ok(KeySource {
                provider: Box::new(provider),
                interactive: false,
                typed: false,
                tries: 1,
                tokens: None,
            });
        }
        if terminal {
            return Ok(KeySource {
                provider: Box::new(Prompt::new()),
                interactive: true,
                typed: true,
                tries,
                tokens: None,
            });
        }
        Ok(KeySource { provider: Box::new(LineSource::new()), interactive: false, typed: true, tries: 1, tokens: None })
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
        let asking = if self.interactive { self.tries } else { 1 };
        match &self.tokens {
            None => asking,
            Some(tokens) if tokens.only() => tokens.len().saturating_add(tokens.answered()),
            Some(tokens) => asking.saturating_add(tokens.len()).saturating_add(tokens.answered()),
        }
    }

    /// The passphrase for `volume`.
    pub(crate) fn passphrase(&mut self, volume: &str, purpose: Purpose, attempt: u32) -> Result<Secret, Failure> {
        let request = KeyRequest { volume, purpose, attempt };
        answer(volume, self.key_for(&request))
    }

    /// A new passphrase; a person who did not type the same twice is asked again.
    fn typed_alike(&mut self, volume: &str) -> Result<Secret, Failure> {
        let request = KeyRequest { volume, purpose: Purpose::NewPassphrase, attempt: 1 };
        for _ in 1..if self.interactive { self.tries } else { 1 } {
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
        let mut attempt = request.attempt;
        if let Some(tokens) = &mut self.tokens {
            if let Some(passphrase) = tokens.next() {
                return Ok(Some(passphrase));
            }
            if tokens.only() {
                return Ok(None);
            }
            attempt = attempt.saturating_sub(tokens.answered()).max(1);
        }
        if attempt > 1 {
            crate::output::words("No key available with this passphrase.");
        }
        self.provider.key_for(&KeyRequest { attempt, ..*request })
    }

    fn keyslot(&self) -> Option<u32> {
        self.tokens.as_ref().and_then(TokenKeys::keyslot)
    }
}
