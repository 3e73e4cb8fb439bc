//! Asking for a passphrase until it opens a keyslot, as often as a prompt may ask.

use luks::{Error, KeyslotId, Unlock, UnlockRequest, VolumeKey};
use secret::{Purpose, Secret};
use session::SystemEnv;

use crate::exit::{self, Code};
use crate::failure::Failure;
use crate::image::Image;
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
    let request = UnlockRequest { keyslot: ask.keyslot.map(KeyslotId), purpose: ask.unlock };
    for attempt in 1.. {
        let passphrase = source.passphrase(&volume, ask.purpose, attempt)?;
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
