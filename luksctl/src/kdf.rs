//! From the cost options to a new keyslot's parameters; measures the machine where no cost is forced.

use luks::calibrate::{Effort, KdfChoice, KdfCost, calibrate};
use luks::digest_check::DigestCost;
use luks::env::Env;
use luks::{AnyContainer, HashAlg, KdfParams, KeyslotId, NewKeyslot};

use crate::args::kdf::{KdfArgs, Pbkdf};
use crate::image::AnyFileContainer;
use crate::progress::Progress;

/// Measures or checks what a new keyslot will cost.
pub(crate) fn params(args: &KdfArgs, key_size_bytes: usize, env: &Env<'_>) -> Result<KdfParams, luks::Error> {
    let choice = match args.pbkdf.unwrap_or(Pbkdf::Argon2id) {
        Pbkdf::Pbkdf2 => KdfChoice::Pbkdf2 { hash: HashAlg::parse(args.hash())? },
        Pbkdf::Argon2i => KdfChoice::Argon2i,
        Pbkdf::Argon2id => KdfChoice::Argon2id,
    };
    let mut cost =
        KdfCost { memory_kib: args.pbkdf_memory, parallel: args.pbkdf_parallel, key_size_bytes, ..KdfCost::default() };
    if let Some(target_ms) = args.iter_time {
        cost.effort = Effort::IterTime { target_ms };
    }
    if let Some(iterations) = args.pbkdf_force_iterations {
        cost.effort = Effort::Forced { iterations };
    }
    let _progress = matches!(cost.effort, Effort::IterTime { .. })
        .then(|| Progress::waiting("measuring what unlocking costs on this machine"));
    calibrate(env, choice, &cost)
}

/// A new keyslot as the options describe it, at `id` or at the lowest free one.
pub(crate) fn new_keyslot(args: &KdfArgs, id: Option<u32>, env: &Env<'_>) -> Result<NewKeyslot, luks::Error> {
    let encryption = keyslot_encryption(args);
    let key_size_bytes = encryption.as_ref().map_or(KdfCost::default().key_size_bytes, |(_, bits)| *bits as usize / 8);
    let kdf = params(args, key_size_bytes, env)?;
    let mut new = NewKeyslot::new(kdf);
    new.id = id.map(KeyslotId);
    new.hash = HashAlg::parse(args.hash())?;
    new.encryption = encryption.map(|(cipher, bits)| (cipher, bits / 8));
    Ok(new)
}

/// The same for `container`: LUKS1 leaves no choice but the cost.
pub(crate) fn new_keyslot_for(
    container: &AnyFileContainer,
    args: &KdfArgs,
    id: Option<u32>,
    env: &Env<'_>,
) -> Result<NewKeyslot, luks::Error> {
    match container {
        AnyContainer::Luks1(container) => {
            let header = container.header();
            let args = of_luks1(args, &header.hash_spec.to_text())?;
            let kdf = params(&args, header.key_bytes as usize, env)?;
            Ok(NewKeyslot { id: id.map(KeyslotId), ..NewKeyslot::new(kdf) })
        }
        AnyContainer::Luks2(_) => new_keyslot(args, id, env),
    }
}

/// The options as a LUKS1 header with `hash` allows them.
///
/// # Errors
/// [`luks::Error::Luks1Has`] names what was asked for and cannot be.
pub(crate) fn of_luks1(args: &KdfArgs, hash: &str) -> Result<KdfArgs, luks::Error> {
    let no = |no| Err(luks::Error::Luks1Has { no });
    if args.keyslot_cipher.is_some() {
        return no("keyslot ciphers of their own");
    }
    if !matches!(args.pbkdf, None | Some(Pbkdf::Pbkdf2)) {
        return no("key derivation but PBKDF2");
    }
    if args.hash.as_deref().is_some_and(|asked| !asked.eq_ignore_ascii_case(hash)) {
        return no("hash for a keyslot but that of its header");
    }
    Ok(KdfArgs { pbkdf: Some(Pbkdf::Pbkdf2), hash: Some(hash.to_owned()), ..args.clone() })
}

/// How slow the digest of a new key is to check: as its keyslot is made.
pub(crate) fn digest_cost(args: &KdfArgs) -> DigestCost {
    match args.pbkdf_force_iterations {
        None => DigestCost::Measured,
        Some(_) => DigestCost::Minimal,
    }
}

/// Cipher and key size in bits of the keyslot area, where both are given.
pub(crate) fn keyslot_encryption(args: &KdfArgs) -> Option<(String, u32)> {
    args.keyslot_cipher.clone().zip(args.keyslot_key_size)
}
