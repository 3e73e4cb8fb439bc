//! Asking for a passphrase until it opens a keyslot, as often as a prompt may ask.

use luks::{Error, KeyslotId, Unlock, UnlockRequest, VolumeKey};
use secret::{KeyProvider as _, Purpose, Secret};
use session::SystemEnv;

use crate::exit::{self, Code};
use crate::failure::Failure;
use crate::image::{AnyFileContainer, Image};
use crate::keys::KeySource;

/// What to unlock, and what for.
pub(crate) struct Ask {
    /// Only this keyslot.
    pub(crate) keyslot: Option<u32>,
    /// Which keys count.
    pub(crate) unlock: luks::Purpose,
    /// How a prompt words its question.
    pub(crate) purpose: Purpose,
}

/// Asks `source` until the container accepts a passphrase. Gives the key, and the passphrase for who must keep it.
pub(crate) fn unlock(
    image: &Image,
    container: &impl Unlock,
    ask: &Ask,
    source: &mut KeySource,
) -> Result<(VolumeKey, Secret), Failure> {
    let system = SystemEnv;
    let volume = image.path().display().to_string();
    source.look_for_tokens(image.path(), &container.metadata(), ask.keyslot, ask.unlock)?;
    for attempt in 1.. {
        let passphrase = source.passphrase(&volume, ask.purpose, attempt)?;
        let keyslot = source.keyslot().or(ask.keyslot);
        let request = UnlockRequest { keyslot: keyslot.map(KeyslotId), purpose: ask.unlock };
        let error: Error = match container.unlock(&system.env(), &request, &passphrase) {
            Ok(key) => return Ok((key, passphrase)),
            Err(error) => error,
        };
        if exit::of_luks(&error) != Code::Permission || attempt >= source.tries() {
            return Err(Failure::of_luks(image.path(), error));
        }
    }
    Err(Failure::wrong("asked too often"))
}

/// The container's key as the file of `source` holds it, if a digest accepts it.
pub(crate) fn recognise(
    image: &Image,
    container: &AnyFileContainer,
    purpose: luks::Purpose,
    source: &mut KeySource,
) -> Result<VolumeKey, Failure> {
    let key = source.passphrase(&image.path().display().to_string(), Purpose::Unlock, 1)?;
    container.recognise(purpose, &key).map_err(|error| Failure::of_luks(image.path(), error))
}
