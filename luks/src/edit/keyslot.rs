//! Keyslots in the metadata: a new one prepared, one taken out, two that change ids. No I/O except for the prepared area.

use std::collections::BTreeSet;

use block::{BlockIo, Bytes};
use dmcrypt::CipherSpec;
use secret::Secret;

use crate::af::STRIPES;
use crate::area::AreaLayout;
use crate::edit::{LastSlot, NewKeyslot, area};
use crate::env::Env;
use crate::error::Error;
use crate::json::JsonMap;
use crate::limits::{KEYSLOTS, Limits};
use crate::metadata::keyslot::{Af, Area, Keyslot, KeyslotKind, Luks2Slot};
use crate::metadata::slot_name::SlotName;
use crate::metadata::{DigestId, KeyslotId, Metadata, slot_name};
use crate::unlock::derive_area_key;
use crate::volume_key::VolumeKey;

/// Stripes as the metadata names them; readers always use [`STRIPES`].
const STRIPES_WRITTEN: u32 = 4000;
const _: () = assert!(STRIPES_WRITTEN as usize == STRIPES);
/// Keyslot cipher where that of the data cannot serve (luks2-format §3.4).
/// Cipher and key length in bytes of a keyslot area, where those of the data cannot serve.
pub(crate) const CIPHER_DEFAULT: (&str, u32) = ("aes-xts-plain64", 64);

/// A new keyslot, worked out and encrypted, not yet written.
pub(crate) struct Staged {
    /// Its id.
    pub(crate) id: KeyslotId,
    /// The metadata with it.
    pub(crate) metadata: Metadata,
    layout: AreaLayout,
    sealed: Secret,
}

impl Staged {
    /// Prepares a keyslot for `key` under `passphrase`. Derives a key, and so takes its time; writes nothing.
    pub(crate) fn new(
        metadata: &Metadata,
        env: &Env<'_>,
        limits: &Limits,
        key: &VolumeKey,
        passphrase: &Secret,
        parameters: &NewKeyslot,
    ) -> Result<Staged, Error> {
        let id = free_id(metadata, parameters.id)?;
        let keyslot = describe(metadata, env, key, parameters)?;
        let mut metadata = metadata.clone();
        bind(&mut metadata, key.digest(), id)?;
        metadata.keyslots.insert(id, keyslot.clone());
        if let Some(name) = &parameters.name {
            name.check()?;
            SlotName::put(&mut metadata, id, Some(name))?;
        }
        check_text(&metadata)?;
        Staged::seal(id, metadata, &keyslot, env, limits, key, passphrase)
    }

    /// Prepares a keyslot that takes the place of `id`: same id, same area, same digest.
    pub(crate) fn over(
        metadata: &Metadata,
        env: &Env<'_>,
        limits: &Limits,
        key: &VolumeKey,
        passphrase: &Secret,
        id: KeyslotId,
        parameters: &NewKeyslot,
    ) -> Result<Staged, Error> {
        let old = metadata.keyslots.get(id).ok_or(Error::KeyslotMissing { keyslot: id })?;
        let described = describe_at(metadata, env, key, parameters, (old.area.offset, old.area.size))?;
        let keyslot = Keyslot { priority: parameters.priority.or(old.priority), extra: old.extra.clone(), ..described };
        let mut metadata = metadata.clone();
        metadata.keyslots.insert(id, keyslot.clone());
        check_text(&metadata)?;
        Staged::seal(id, metadata, &keyslot, env, limits, key, passphrase)
    }

    fn seal(
        id: KeyslotId,
        metadata: Metadata,
        keyslot: &Keyslot,
        env: &Env<'_>,
        limits: &Limits,
        key: &VolumeKey,
        passphrase: &Secret,
    ) -> Result<Staged, Error> {
        let layout = AreaLayout::of(&metadata, keyslot, limits)?;
        let area_key = derive_area_key(env, limits, keyslot, &layout, passphrase)?;
        let sealed = layout.seal(env, &area_key, key.secret())?;
        Ok(Staged { id, metadata, layout, sealed })
    }

    /// Writes the area and flushes; the header does not name it yet.
    pub(crate) fn write_area<S: BlockIo>(&self, store: &S) -> Result<(), Error> {
        self.layout.write(store, &self.sealed)
    }

    /// Gives the new keyslot to every token that `from` has.
    pub(crate) fn copy_tokens(&mut self, from: KeyslotId) {
        for (_, token) in self.metadata.tokens.iter_mut() {
            if token.keyslots.contains(&from) {
                token.keyslots.push(self.id);
            }
        }
    }
}

fn free_id(metadata: &Metadata, wanted: Option<KeyslotId>) -> Result<KeyslotId, Error> {
    match wanted {
        Some(id) if id.0 >= KEYSLOTS => Err(Error::KeyslotRange { keyslot: id }),
        Some(id) if metadata.keyslots.contains(id) => Err(Error::KeyslotInUse { keyslot: id }),
        Some(id) => Ok(id),
        None => metadata.keyslots.first_free(KEYSLOTS).ok_or(Error::NoFreeKeyslot { max: KEYSLOTS }),
    }
}

/// The keyslot's metadata, with an area of its own and a fresh salt.
fn describe(metadata: &Metadata, env: &Env<'_>, key: &VolumeKey, parameters: &NewKeyslot) -> Result<Keyslot, Error> {
    let size = area::size_for(key.len_bytes()).ok_or_else(|| too_long(key))?;
    describe_at(metadata, env, key, parameters, (area::allocate(metadata, size)?, size))
}

/// As [`describe`], in the area at this offset and of this size.
fn describe_at(
    metadata: &Metadata,
    env: &Env<'_>,
    key: &VolumeKey,
    parameters: &NewKeyslot,
    (offset, size): (Bytes, Bytes),
) -> Result<Keyslot, Error> {
    let key_size_bytes = u32::try_from(key.len_bytes()).map_err(|_| too_long(key))?;
    let (encryption, area_key_size_bytes) = match &parameters.encryption {
        Some(chosen) => chosen.clone(),
        None => default_cipher(metadata, key.digest(), key_size_bytes),
    };
    Ok(Keyslot {
        kind: KeyslotKind::Luks2(Luks2Slot {
            af: Af { hash: parameters.hash.name().to_owned(), stripes: STRIPES_WRITTEN, extra: JsonMap::new() },
            kdf: parameters.kdf.kdf(env)?,
        }),
        type_name: "luks2".to_owned(),
        key_size_bytes,
        priority: parameters.priority,
        area: Area {
            type_name: "raw".to_owned(),
            offset,
            size,
            encryption: Some(encryption),
            key_size_bytes: Some(area_key_size_bytes),
            extra: JsonMap::new(),
        },
        extra: JsonMap::new(),
    })
}

fn too_long(key: &VolumeKey) -> Error {
    Error::KeySize { expected_bytes: CIPHER_DEFAULT.1 as usize, got_bytes: key.len_bytes() }
}

/// Cipher and key length of the data, unless they cannot serve a keyslot.
fn default_cipher(metadata: &Metadata, digest: DigestId, key_size_bytes: u32) -> (String, u32) {
    let segments = metadata.digests.get(digest).map(|digest| digest.segments.as_slice()).unwrap_or_default();
    let crypt = segments.iter().filter_map(|id| metadata.segments.get(*id)?.crypt.as_ref());
    let usable = |encryption: &str| {
        CipherSpec::parse(encryption)
            .is_ok_and(|spec| !spec.is_kernel_api() && spec.key_sizes().contains(&(key_size_bytes as usize)))
    };
    match crypt.filter(|crypt| crypt.integrity.is_none()).find(|crypt| usable(&crypt.encryption)) {
        Some(crypt) => (crypt.encryption.clone(), key_size_bytes),
        None => (CIPHER_DEFAULT.0.to_owned(), CIPHER_DEFAULT.1),
    }
}

fn bind(metadata: &mut Metadata, digest: DigestId, id: KeyslotId) -> Result<(), Error> {
    let digest = metadata.digests.get_mut(digest).ok_or(Error::DigestMissing { digest })?;
    digest.keyslots.push(id);
    Ok(())
}

/// The text still fits the JSON area with its NUL: known before anything is written.
pub(crate) fn check_text(metadata: &Metadata) -> Result<(), Error> {
    let needed = Bytes::from_len(metadata.to_text().len() + 1);
    let available = metadata.config.json_size;
    if needed > available { Err(Error::JsonFull { needed, available }) } else { Ok(()) }
}

/// Takes the keyslot out of the metadata, the digests and the tokens.
pub(crate) fn take_out(metadata: &mut Metadata, id: KeyslotId) -> Option<Keyslot> {
    let gone = metadata.keyslots.remove(id)?;
    for (_, digest) in metadata.digests.iter_mut() {
        digest.keyslots.retain(|listed| *listed != id);
    }
    for (_, token) in metadata.tokens.iter_mut() {
        token.keyslots.retain(|listed| *listed != id);
    }
    // A name without a keyslot names nothing.
    metadata.tokens.retain(|_, token| token.type_name != slot_name::TYPE || !token.keyslots.is_empty());
    Some(gone)
}

/// Exchanges the ids of two keyslots, so that what was `first` is found under `second`. Digests hold both and tokens name
/// ids, which is what they shall go on doing.
pub(crate) fn swap(metadata: &mut Metadata, first: KeyslotId, second: KeyslotId) {
    let (Some(one), Some(two)) = (metadata.keyslots.get(first).cloned(), metadata.keyslots.get(second).cloned()) else {
        return;
    };
    metadata.keyslots.insert(first, two);
    metadata.keyslots.insert(second, one);
}

/// Whether the keyslot is there and may go.
pub(crate) fn check_removable(metadata: &Metadata, id: KeyslotId, last: LastSlot) -> Result<(), Error> {
    if !metadata.keyslots.contains(id) {
        return Err(Error::KeyslotMissing { keyslot: id });
    }
    let opening: BTreeSet<KeyslotId> = metadata
        .digests
        .iter()
        .filter(|(_, digest)| !digest.segments.is_empty())
        .flat_map(|(_, digest)| digest.keyslots.iter().copied())
        .filter(|slot| metadata.keyslots.get(*slot).is_some_and(|slot| slot.luks2().is_some()))
        .collect();
    if last == LastSlot::Refuse && opening.len() == 1 && opening.contains(&id) {
        return Err(Error::LastKeyslot { keyslot: id });
    }
    Ok(())
}
