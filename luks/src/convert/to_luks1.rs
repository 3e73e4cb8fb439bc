//! From a LUKS2 header to a LUKS1 one, where that can say the same: one plain segment, one digest, up to eight PBKDF2 keyslots
//! on the places that LUKS1 has.

use block::{BlockIo, Bytes, SECTOR_BYTES};

use crate::af::STRIPES;
use crate::backup::read_region;
use crate::convert::to_luks2::is_null;
use crate::convert::{ConvertObstacle, Converted, LUKS1_AREAS, LUKS1_AREAS_BYTES, SHIFT, SHIFT_BYTES};
use crate::edit::area;
use crate::env::Env;
use crate::error::Error;
use crate::header::Header;
use crate::json::decode_base64;
use crate::limits::{KEYSLOTS_SIZE_UNIT, METADATA_SIZE_MIN};
use crate::luks1::{DIGEST_BYTES, FixedText, HEADER_BYTES, KEYSLOTS, Luks1Header, Luks1Slot};
use crate::metadata::digest::Digest;
use crate::metadata::keyslot::{Kdf, Keyslot};
use crate::metadata::segment::{CryptSegment, SegmentSize};
use crate::metadata::{DigestId, KeyslotId, Metadata, SegmentId};

/// Stripes as a LUKS1 header names them.
const STRIPES_WRITTEN: u32 = 4000;
const _: () = assert!(STRIPES_WRITTEN as usize == STRIPES);

/// What a LUKS1 header has no place for.
pub(super) fn lost(header: &Header) -> Vec<String> {
    let metadata = header.metadata();
    let mut lost = Vec::new();
    if !header.binary().label.is_empty() {
        lost.push(format!("the label {:?}", header.label()));
    }
    if !header.binary().subsystem.is_empty() {
        lost.push(format!("the subsystem {:?}", header.subsystem()));
    }
    if !metadata.config.flags.is_empty() {
        lost.push(format!("the flags {}", metadata.config.flags.join(", ")));
    }
    for (id, keyslot) in metadata.keyslots.iter() {
        if keyslot.priority.is_some() {
            lost.push(format!("the priority of keyslot {id}"));
        }
    }
    lost
}

/// The new start of the device.
pub(super) fn converted<D: BlockIo + ?Sized>(disk: &D, env: &Env<'_>, header: &Header) -> Result<Converted, Error> {
    let luks1 = new_header(disk, header)?;
    // Writers round places up, so what follows the last material moves along.
    let end = luks1.keyslots_end().round_up(KEYSLOTS_SIZE_UNIT).unwrap_or(luks1.keyslots_end());
    let len = end.checked_add(SHIFT).unwrap_or(end).min(room(disk, &luks1));
    let mut new = read_region(disk, len)?;
    let (areas, shift) = (LUKS1_AREAS_BYTES, SHIFT_BYTES);
    let old_areas = (areas + shift).min(new.len());
    let moved = new.len() - old_areas;
    new.copy_within(old_areas.., areas);
    // The last piece would stand there twice.
    let tail = areas + moved;
    env.rng.fill(&mut new[tail..])?;
    new[..areas].fill(0);
    new[..HEADER_BYTES].copy_from_slice(&luks1.to_bytes());
    let end = end.to_usize().unwrap_or(new.len()).min(new.len());
    let len_bytes = new.len();
    Ok(Converted { new, stages: vec![areas..end, 512..areas, 0..512, end..len_bytes] })
}

/// What lies before the data, or the whole of a detached header's device.
fn room<D: BlockIo + ?Sized>(disk: &D, header: &Luks1Header) -> Bytes {
    let size = disk.geometry().size;
    match header.payload_offset() {
        Bytes::ZERO => size,
        offset => offset.min(size),
    }
}

/// The new header.
///
/// # Errors
/// [`Error::Convert`] if this one cannot be converted.
pub(super) fn new_header<D: BlockIo + ?Sized>(disk: &D, header: &Header) -> Result<Luks1Header, Error> {
    let metadata = header.metadata();
    if header.metadata_size() != METADATA_SIZE_MIN {
        return Err(ConvertObstacle::MetadataSize { size: header.metadata_size() }.into());
    }
    if !metadata.config.mandatory.is_empty() {
        return Err(ConvertObstacle::Requirements { names: metadata.config.mandatory.join(", ") }.into());
    }
    if !metadata.tokens.is_empty() {
        return Err(ConvertObstacle::Tokens { count: metadata.tokens.len() }.into());
    }
    let (offset, crypt) = segment(metadata)?;
    let (digest_id, digest) = digest(metadata)?;
    let refused = |what: &str| ConvertObstacle::Digest { what: what.to_owned() };
    let hash = digest.hash.as_deref().ok_or_else(|| refused("it names no hash"))?;
    let value = digest.digest.as_deref().and_then(decode_base64);
    let value = value.filter(|value| value.len() >= DIGEST_BYTES);
    let value = value.ok_or_else(|| refused("it is shorter than 20 bytes"))?;
    let too_long = |what: &str| ConvertObstacle::Segment { what: format!("the {what} is too long") };
    let (name, mode) = crypt.encryption.split_once('-').unwrap_or((crypt.encryption.as_str(), ""));
    let key_bytes = key_bytes(metadata)?;
    let luks1 = Luks1Header {
        cipher_name: FixedText::new(name).ok_or_else(|| too_long("name of the cipher"))?,
        cipher_mode: FixedText::new(mode).ok_or_else(|| too_long("name of the cipher's mode"))?,
        hash_spec: FixedText::new(hash).ok_or_else(|| refused("the name of its hash is too long"))?,
        payload_offset_sectors: offset,
        key_bytes,
        digest: *value.first_chunk().ok_or_else(|| refused("it is shorter than 20 bytes"))?,
        digest_salt: salt(digest.salt.as_deref()).ok_or_else(|| refused("its salt has not 32 bytes"))?,
        digest_iterations: digest.iterations.ok_or_else(|| refused("it has no iterations"))?,
        uuid: FixedText::new(&header.uuid()).ok_or_else(|| too_long("UUID"))?,
        slots: slots(metadata, digest_id, crypt, hash, key_bytes)?,
    };
    luks1.check().map_err(ConvertObstacle::Invalid)?;
    let (needed, available) = (luks1.keyslots_end(), room(disk, &luks1));
    if needed > available {
        return Err(ConvertObstacle::NoRoom { needed, available }.into());
    }
    Ok(luks1)
}

/// The one segment, and its offset in sectors.
fn segment(metadata: &Metadata) -> Result<(u32, &CryptSegment), ConvertObstacle> {
    let refused = |what: String| ConvertObstacle::Segment { what };
    let segment = match metadata.segments.get(SegmentId(0)) {
        Some(segment) if metadata.segments.len() == 1 => segment,
        _ => return Err(refused(format!("it has {} segments", metadata.segments.len()))),
    };
    let Some(crypt) = segment.crypt.as_ref().filter(|_| segment.type_name == "crypt") else {
        return Err(refused(format!("its segment is of type {}", segment.type_name)));
    };
    if crypt.sector_size != 512 {
        return Err(refused(format!("its sectors have {} bytes, LUKS1 knows 512 only", crypt.sector_size)));
    }
    if crypt.integrity.is_some() {
        return Err(refused("it is authenticated".to_owned()));
    }
    if segment.size != SegmentSize::Dynamic {
        return Err(refused("it ends before the device does".to_owned()));
    }
    if is_null(&crypt.encryption) {
        return Err(ConvertObstacle::NullCipher { cipher: crypt.encryption.clone() });
    }
    if crypt.encryption.starts_with("capi:") {
        return Err(refused(format!("its cipher is written {}", crypt.encryption)));
    }
    let sectors = u32::try_from(segment.offset.0 / SECTOR_BYTES);
    let sectors = sectors.map_err(|_| refused(format!("it starts at byte {}", segment.offset.0)))?;
    Ok((sectors, crypt))
}

fn digest(metadata: &Metadata) -> Result<(DigestId, &Digest), ConvertObstacle> {
    let mut digests = metadata.digests.iter();
    match (digests.next(), digests.next()) {
        (Some((_, digest)), None) if digest.type_name != "pbkdf2" => {
            Err(ConvertObstacle::Digest { what: format!("it is of type {}", digest.type_name) })
        }
        (Some(only), None) => Ok(only),
        _ => Err(ConvertObstacle::Digest { what: format!("there are {}", metadata.digests.len()) }),
    }
}

/// The size of the volume key, which only keyslots name.
fn key_bytes(metadata: &Metadata) -> Result<u32, ConvertObstacle> {
    let first = metadata.keyslots.iter().next();
    let what = || "no keyslot is left to say how long the volume key is".to_owned();
    first.map(|(_, keyslot)| keyslot.key_size_bytes).ok_or_else(|| ConvertObstacle::Digest { what: what() })
}

/// The eight keyslots: those there are keep number and place, the others get the places that are left, in order.
fn slots(
    metadata: &Metadata,
    digest: DigestId,
    crypt: &CryptSegment,
    hash: &str,
    key_bytes: u32,
) -> Result<[Luks1Slot; KEYSLOTS as usize], ConvertObstacle> {
    let too_long = || ConvertObstacle::Digest { what: format!("its key has {key_bytes} bytes") };
    let place_size = area::size_for(key_bytes as usize).ok_or_else(too_long)?;
    let mut places: Vec<Bytes> = (0..u64::from(KEYSLOTS)).map(|at| Bytes(LUKS1_AREAS.0 + at * place_size.0)).collect();
    let mut found = Vec::new();
    for (id, keyslot) in metadata.keyslots.iter() {
        let bound = metadata.digests.get(digest).is_some_and(|digest| digest.keyslots.contains(&id));
        let slot = slot(keyslot, bound, crypt, hash, key_bytes)
            .and_then(|(iterations, salt)| {
                let place = keyslot.area.offset.checked_sub(SHIFT);
                let at = places.iter().position(|free| Some(*free) == place);
                let at = at.filter(|_| keyslot.area.size == place_size);
                at.map(|at| (iterations, salt, places.remove(at))).ok_or_else(|| {
                    format!(
                        "its area, {} bytes at {}, is on no place of LUKS1",
                        keyslot.area.size.0, keyslot.area.offset.0
                    )
                })
            })
            .and_then(|slot| if id.0 < KEYSLOTS { Ok(slot) } else { Err("LUKS1 has keyslots 0 to 7".to_owned()) })
            .map_err(|what| ConvertObstacle::Keyslot { keyslot: id, what })?;
        found.push((id, slot));
    }
    let mut left = places.into_iter();
    let mut slots = Vec::with_capacity(KEYSLOTS as usize);
    for id in 0..KEYSLOTS {
        let taken = found.iter().find(|(taken, _)| *taken == KeyslotId(id));
        let (enabled, iterations, salt, place) = match taken {
            Some((_, (iterations, salt, place))) => (true, *iterations, *salt, *place),
            None => (false, 0, [0; 32], left.next().unwrap_or(LUKS1_AREAS)),
        };
        let key_material_offset_sectors = u32::try_from(place.0 / SECTOR_BYTES).map_err(|_| too_long())?;
        slots.push(Luks1Slot { enabled, iterations, salt, key_material_offset_sectors, stripes: STRIPES_WRITTEN });
    }
    slots.try_into().map_err(|_| too_long())
}

/// Iterations and salt of a keyslot that LUKS1 can have.
fn slot(
    keyslot: &Keyslot,
    bound: bool,
    crypt: &CryptSegment,
    hash: &str,
    key_bytes: u32,
) -> Result<(u32, [u8; 32]), String> {
    let Some(luks2) = keyslot.luks2() else { return Err(format!("it is of type {}", keyslot.type_name)) };
    if !bound {
        return Err("it does not open the data".to_owned());
    }
    let Kdf::Pbkdf2 { hash: kdf_hash, iterations, salt: text } = &luks2.kdf else {
        return Err(format!("its key derivation is {}, LUKS1 knows pbkdf2 only", luks2.kdf.type_name()));
    };
    if kdf_hash != hash || luks2.af.hash != hash {
        return Err(format!("its hashes are {kdf_hash} and {}, the digest's is {hash}", luks2.af.hash));
    }
    if luks2.af.stripes != STRIPES_WRITTEN {
        return Err(format!("it has {} stripes", luks2.af.stripes));
    }
    if keyslot.key_size_bytes != key_bytes || keyslot.area.key_size_bytes != Some(key_bytes) {
        return Err("the sizes of its keys differ".to_owned());
    }
    if keyslot.area.encryption.as_deref() != Some(crypt.encryption.as_str()) {
        let cipher = keyslot.area.encryption.as_deref().unwrap_or("missing");
        return Err(format!("its cipher is {cipher}, that of the data {}", crypt.encryption));
    }
    let salt = salt(Some(text)).ok_or_else(|| "its salt has not 32 bytes".to_owned())?;
    Ok((*iterations, salt))
}

fn salt(text: Option<&str>) -> Option<[u8; 32]> {
    decode_base64(text?)?.try_into().ok()
}
