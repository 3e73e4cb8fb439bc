//! The binary area of a keyslot: the split volume key, encrypted under the key that the passphrase gave.
//!
//! ```text
//! area.offset  ┬ key_size × 4000 bytes of stripes ┬ zeros to a multiple of 512 ┬ (unused up to area.size)
//!              └─── sectors 0, 1, … of area.encryption, always 512 bytes, IV counted from 0 ───┘
//! ```
//!
//! Invariants: the number of stripes is 4000 whatever the metadata says; nothing is read past the keyslots area or the
//! device; nothing is written past `area.size`; all lengths are held against [`Limits`] before memory is taken.
//! Source: luks2-format §3.1–3.3.

use block::{BlockIo, ByteView, Bytes, SECTOR_BYTES};
use dmcrypt::{CipherError, CipherSpec, SectorSize};
use secret::{Secret, scrubbed};

use crate::af;
use crate::env::Env;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::limits::Limits;
use crate::metadata::Metadata;
use crate::metadata::keyslot::{Area, Keyslot};

/// How much of an area is overwritten per write.
const WIPE_CHUNK_BYTES: usize = 1 << 20;

/// Bytes that the split form of a key takes on disk, whole sectors.
pub(crate) fn material_len(key_size_bytes: u32) -> Option<Bytes> {
    let len = Bytes(u64::from(key_size_bytes)).checked_mul(af::STRIPES as u64)?;
    len.round_up(Bytes(SECTOR_BYTES))
}

/// A keyslot's area after every check that needs no I/O: where it is, how long, and under which cipher.
pub(crate) struct AreaLayout {
    offset: Bytes,
    len_bytes: usize,
    declared: Bytes,
    key_size_bytes: usize,
    area_key_size_bytes: usize,
    spec: CipherSpec,
    af_hash: HashAlg,
}

impl AreaLayout {
    /// Checks what the metadata says of a passphrase slot's area.
    ///
    /// # Errors
    /// [`Error::KeyslotArea`] for lengths and bounds, [`Error::UnknownHash`], [`Error::Cipher`] for a cipher or its key
    /// size, [`Error::KeyslotType`] when it is no passphrase slot.
    pub(crate) fn of(metadata: &Metadata, keyslot: &Keyslot, limits: &Limits) -> Result<AreaLayout, Error> {
        let Some(slot) = keyslot.luks2() else {
            return Err(Error::KeyslotType { type_name: keyslot.type_name.clone() });
        };
        let area = &keyslot.area;
        let refuse = |problem| Error::KeyslotArea { offset: area.offset, size: area.size, problem };
        if keyslot.key_size_bytes == 0 || keyslot.key_size_bytes > limits.key_bytes {
            return Err(refuse("key size is 0 or over the limit"));
        }
        let len = material_len(keyslot.key_size_bytes).filter(|len| len.0 <= limits.keyslot_area_bytes);
        let len = len.ok_or_else(|| refuse("over the limit"))?;
        let end = area.offset.checked_add(len);
        if end.is_none_or(|end| end > metadata.config.keyslots_end()) {
            return Err(refuse("4000 stripes reach past the end of the keyslots area"));
        }
        let (Some(encryption), Some(area_key_size_bytes)) = (&area.encryption, area.key_size_bytes) else {
            return Err(refuse("no cipher or key size"));
        };
        let spec = CipherSpec::parse(encryption)?;
        let (area_key_size_bytes, allowed) = (area_key_size_bytes as usize, spec.key_sizes());
        if !allowed.contains(&area_key_size_bytes) {
            let got_bytes = area_key_size_bytes;
            return Err(CipherError::KeySize { spec: encryption.clone(), got_bytes, allowed }.into());
        }
        Ok(AreaLayout {
            offset: area.offset,
            len_bytes: len.to_usize().ok_or_else(|| refuse("over the limit"))?,
            declared: area.size,
            key_size_bytes: keyslot.key_size_bytes as usize,
            area_key_size_bytes,
            spec,
            af_hash: HashAlg::parse(&slot.af.hash)?,
        })
    }

    /// Length of the key that the KDF has to give for this area.
    pub(crate) fn area_key_size_bytes(&self) -> usize {
        self.area_key_size_bytes
    }

    /// Reads the area as it stands on the disk, still encrypted.
    pub(crate) fn read<D: BlockIo + ?Sized>(&self, disk: &D) -> Result<Secret, Error> {
        let size = disk.geometry().size;
        let end = self.offset.checked_add(Bytes::from_len(self.len_bytes));
        if end.is_none_or(|end| end > size) {
            let problem = "reaches past the end of the device";
            return Err(Error::KeyslotArea { offset: self.offset, size: self.declared, problem });
        }
        Secret::fill_with(self.len_bytes, |buf| Ok(ByteView::new(disk).read(self.offset, buf)?))
    }

    /// Decrypts what [`read`](Self::read) gave and merges the stripes: a candidate key, which only a digest can accept.
    pub(crate) fn open(&self, area_key: &Secret, mut material: Secret) -> Result<Secret, Error> {
        let cipher = dmcrypt::build(&self.spec, area_key.expose(), SectorSize::S512)?;
        scrubbed(|| cipher.decrypt_in_place(0, material.expose_mut()));
        af::merge(self.af_hash, self.key_size_bytes, material.expose())
    }

    /// Splits and encrypts `key`: the bytes to write at the area's offset, which fit its declared size.
    pub(crate) fn seal(&self, env: &Env<'_>, area_key: &Secret, key: &Secret) -> Result<Secret, Error> {
        let refuse = |problem| Error::KeyslotArea { offset: self.offset, size: self.declared, problem };
        if Bytes::from_len(self.len_bytes) > self.declared {
            return Err(refuse("too small for 4000 stripes"));
        }
        if key.len() != self.key_size_bytes {
            return Err(Error::KeySize { expected_bytes: self.key_size_bytes, got_bytes: key.len() });
        }
        let cipher = dmcrypt::build(&self.spec, area_key.expose(), SectorSize::S512)?;
        let stripes = af::split(self.af_hash, key, env.rng)?;
        Secret::fill_with(self.len_bytes, |material| {
            material[..stripes.len()].copy_from_slice(stripes.expose());
            scrubbed(|| cipher.encrypt_in_place(0, material));
            Ok(())
        })
    }

    /// Writes what [`seal`](Self::seal) gave and makes it durable.
    pub(crate) fn write<D: BlockIo + ?Sized>(&self, disk: &D, sealed: &Secret) -> Result<(), Error> {
        disk.write_at(self.offset, sealed.expose(), false)?;
        Ok(disk.flush()?)
    }
}

/// Overwrites a whole area and makes that durable, so that the key in it is gone: first its first sector with zeros, which
/// alone kills the key, then, once that is durable, everything behind it with random bytes.
///
/// The zeros are a mark. Noise cannot be told from key material, so a wipe that is cut short before the header forgets the
/// keyslot would leave a dead keyslot that nobody can tell from a good one; [`crate::check`] finds this mark instead.
///
/// # Errors
/// [`Error::Env`], or [`Error::Block`] when a write or the flush fails: the key may then still be there.
pub(crate) fn wipe_area<D: BlockIo + ?Sized>(disk: &D, env: &Env<'_>, area: &Area) -> Result<(), Error> {
    mark_area(disk, area)?;
    disk.flush()?;
    fill_marked(disk, env, area)?;
    Ok(disk.flush()?)
}

/// The first half of [`wipe_area`]: zeros in the first sector. The flush is the caller's.
pub(crate) fn mark_area<D: BlockIo + ?Sized>(disk: &D, area: &Area) -> Result<(), Error> {
    let zeros = vec![0; mark_of(area).to_usize().unwrap_or_default()];
    Ok(ByteView::new(disk).write(area.offset, &zeros, false)?)
}

/// The second half of [`wipe_area`]: random bytes behind the mark. The flush is the caller's.
pub(crate) fn fill_marked<D: BlockIo + ?Sized>(disk: &D, env: &Env<'_>, area: &Area) -> Result<(), Error> {
    let mark = mark_of(area);
    let problem = "reaches past the end of the device";
    let rest =
        area.offset.checked_add(mark).ok_or(Error::KeyslotArea { offset: area.offset, size: area.size, problem })?;
    fill_random(disk, env, rest, Bytes(area.size.0 - mark.0))
}

fn mark_of(area: &Area) -> Bytes {
    Bytes(area.size.0.min(SECTOR_BYTES))
}

/// Overwrites a range with random bytes, without a flush. Metadata may name a range that is not made of whole blocks.
pub(crate) fn fill_random<D: BlockIo + ?Sized>(
    disk: &D,
    env: &Env<'_>,
    offset: Bytes,
    size: Bytes,
) -> Result<(), Error> {
    let view = ByteView::new(disk);
    let mut noise = vec![0; size.to_usize().map_or(WIPE_CHUNK_BYTES, |size| size.min(WIPE_CHUNK_BYTES))];
    let mut done = Bytes::ZERO;
    while let Some(left) = size.checked_sub(done).filter(|left| *left > Bytes::ZERO) {
        let len_bytes = left.to_usize().map_or(noise.len(), |left| left.min(noise.len()));
        let problem = "reaches past the end of the device";
        let at = offset.checked_add(done).ok_or(Error::KeyslotArea { offset, size, problem })?;
        env.rng.fill(&mut noise[..len_bytes])?;
        view.write(at, &noise[..len_bytes], false)?;
        done = Bytes(done.0 + len_bytes as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::fixed::FixedEnv;
    use block::MemDisk;

    #[test]
    fn a_wiped_area_is_noise_and_its_neighbours_are_untouched() {
        let disk = MemDisk::new(Bytes(64 << 10));
        disk.write_at(Bytes(0), &vec![0xaa; 64 << 10], false).expect("fill");
        let fixed = FixedEnv::new(1, 0);
        fill_random(&disk, &fixed.env(), Bytes(4096 + 100), Bytes(8192)).expect("wipe");
        let mut bytes = vec![0u8; 64 << 10];
        disk.read_at(Bytes(0), &mut bytes).expect("read");
        let (start, end) = (4096 + 100, 4096 + 100 + 8192);
        assert!(bytes[..start].iter().chain(&bytes[end..]).all(|byte| *byte == 0xaa));
        assert!(bytes[start..end].chunks(64).all(|chunk| chunk.iter().any(|byte| *byte != 0xaa)));
    }
}
