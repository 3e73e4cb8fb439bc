//! From a LUKS1 header to a LUKS2 one, as cryptsetup makes it: copies of 16 KiB, the old places of the keyslots 28 KiB further
//! on, one digest of 20 bytes, the keyslots area up to the data.

use block::{BlockIo, Bytes};

use crate::backup::read_region;
use crate::binary::{self, BinaryHeader, Position};
use crate::convert::{ConvertObstacle, Converted, LUKS1_AREAS, LUKS1_AREAS_BYTES, SHIFT};
use crate::edit::area;
use crate::env::{Env, Rng};
use crate::error::Error;
use crate::header::Header;
use crate::json::{JsonMap, encode_base64};
use crate::limits::{KEYSLOTS_SIZE_MAX, KEYSLOTS_SIZE_UNIT, METADATA_SIZE_MIN};
use crate::luks1::{Luks1Header, Luks1Slot};
use crate::metadata::config::Config;
use crate::metadata::digest::Digest;
use crate::metadata::keyslot::{Af, Area, Kdf, Keyslot, KeyslotKind, Luks2Slot};
use crate::metadata::segment::{CryptSegment, Segment, SegmentSize};
use crate::metadata::{ById, DigestId, KeyslotId, Metadata, SegmentId};
use crate::write::json_area_of;

/// Sequence number of a converted header, as cryptsetup leaves it.
const CONVERTED_SEQID: u64 = 2;
/// How LUKSMETA's data begins. It stands at a multiple of 4096 bytes behind the keyslots.
const LUKSMETA_MAGIC: &[u8] = b"LUKSMETA";
/// Where the metadata copies end.
const COPIES_END: Bytes = Bytes(2 * METADATA_SIZE_MIN.0);
/// One metadata copy.
const COPY_BYTES: usize = 16 << 10;
const _: () = assert!(COPY_BYTES as u64 == METADATA_SIZE_MIN.0);
const _: () = assert!(COPIES_END.0 - LUKS1_AREAS.0 == SHIFT.0);

/// Whether this header can be converted.
///
/// # Errors
/// [`Error::Convert`], errors of the disk.
pub(super) fn check<D: BlockIo + ?Sized>(disk: &D, header: &Luks1Header) -> Result<(), Error> {
    let cipher = header.cipher();
    if is_null(&cipher) {
        return Err(ConvertObstacle::NullCipher { cipher }.into());
    }
    let available = room(disk, header);
    let needed = new_end(header);
    if needed > available {
        return Err(ConvertObstacle::NoRoom { needed, available }.into());
    }
    let gap = read_region(disk, available)?;
    let start = header.keyslots_end().to_usize().unwrap_or(gap.len()).min(gap.len());
    let found = gap[start..].windows(LUKSMETA_MAGIC.len()).position(|window| window == LUKSMETA_MAGIC);
    if let Some(at) = found {
        return Err(ConvertObstacle::Luksmeta { offset: Bytes::from_len(start + at) }.into());
    }
    metadata(disk, header).map(drop)
}

/// A cipher that encrypts nothing.
pub(super) fn is_null(cipher: &str) -> bool {
    cipher.starts_with("cipher_null") || cipher.starts_with("null")
}

/// What lies before the data: its offset, or the whole of a detached header's device; at most what LUKS2 can use.
fn room<D: BlockIo + ?Sized>(disk: &D, header: &Luks1Header) -> Bytes {
    let size = disk.geometry().size;
    let before = match header.payload_offset() {
        Bytes::ZERO => size,
        offset => offset.min(size),
    };
    before.min(Bytes(COPIES_END.0 + KEYSLOTS_SIZE_MAX.0))
}

/// Where the moved key material ends.
fn new_end(header: &Luks1Header) -> Bytes {
    header.keyslots_end().checked_add(SHIFT).unwrap_or(Bytes(u64::MAX))
}

/// The new start of the device.
pub(super) fn converted<D: BlockIo + ?Sized>(
    disk: &D,
    env: &Env<'_>,
    header: &Luks1Header,
) -> Result<Converted, Error> {
    let created = created(disk, env.rng, header)?;
    // Writers round places up, so what follows the last material moves along.
    let len = new_end(header).round_up(KEYSLOTS_SIZE_UNIT).unwrap_or(new_end(header)).min(room(disk, header));
    let mut new = read_region(disk, len)?;
    let (copies_end, areas) = (2 * COPY_BYTES, LUKS1_AREAS_BYTES);
    let moved = new.len() - copies_end;
    new.copy_within(areas..areas + moved, copies_end);

    let json_area = json_area_of(&created.metadata.to_text(), created.binary.json_size())?;
    let copy = COPY_BYTES;
    let places = [(Position::Primary, 0), (Position::Secondary, copy)];
    for ((position, start), salt) in places.into_iter().zip(created.salts) {
        let salt = salt.unwrap_or(created.binary.salt);
        let mut binary = BinaryHeader { position, hdr_offset: Bytes::from_len(start), salt, ..created.binary.clone() };
        binary.csum = [0; binary::CSUM_LEN];
        binary.csum = binary::checksum(binary.hash()?, &binary.to_bytes(), &json_area);
        new[start..start + areas].copy_from_slice(&binary.to_bytes());
        new[start + areas..start + copy].copy_from_slice(&json_area);
    }
    let end = new.len();
    Ok(Converted { new, stages: vec![copies_end..end, copy..copies_end, 0..512, 512..copy] })
}

/// The new header.
pub(super) fn created<D: BlockIo + ?Sized>(disk: &D, rng: &dyn Rng, header: &Luks1Header) -> Result<Header, Error> {
    let mut created = Header::create(metadata(disk, header)?, rng)?;
    created.binary.seqid = CONVERTED_SEQID;
    created.binary.uuid = header.uuid.as_bytes().to_vec();
    Ok(created)
}

fn metadata<D: BlockIo + ?Sized>(disk: &D, header: &Luks1Header) -> Result<Metadata, Error> {
    let hash = header.hash_spec.to_text().into_owned();
    let keyslots = header.enabled().map(|(id, slot)| Ok((KeyslotId(id), keyslot(header, slot, &hash)?)));
    let keyslots: ById<KeyslotId, Keyslot> = keyslots.collect::<Result<Vec<_>, Error>>()?.into_iter().collect();
    let segment = Segment {
        type_name: "crypt".to_owned(),
        offset: header.payload_offset(),
        size: SegmentSize::Dynamic,
        crypt: Some(CryptSegment {
            iv_tweak: block::Sectors(0),
            encryption: header.cipher(),
            sector_size: 512,
            integrity: None,
        }),
        opal: None,
        flags: Vec::new(),
        extra: JsonMap::new(),
    };
    let digest = Digest {
        type_name: "pbkdf2".to_owned(),
        keyslots: keyslots.ids().collect(),
        segments: vec![SegmentId(0)],
        hash: Some(hash),
        iterations: Some(header.digest_iterations),
        salt: Some(encode_base64(&header.digest_salt)),
        digest: Some(encode_base64(&header.digest)),
        extra: JsonMap::new(),
    };
    let keyslots_size = room(disk, header).0.saturating_sub(COPIES_END.0);
    let keyslots_size = Bytes(keyslots_size / KEYSLOTS_SIZE_UNIT.0 * KEYSLOTS_SIZE_UNIT.0);
    let metadata = Metadata {
        keyslots,
        tokens: ById::new(),
        segments: ById::from_iter([(SegmentId(0), segment)]),
        digests: ById::from_iter([(DigestId(0), digest)]),
        config: Config::new(METADATA_SIZE_MIN, keyslots_size),
        extra: JsonMap::new(),
    };
    let valid = Metadata::parse(&metadata.to_text(), METADATA_SIZE_MIN);
    valid.map_err(|violation| ConvertObstacle::Invalid(violation).into())
}

fn keyslot(header: &Luks1Header, slot: &Luks1Slot, hash: &str) -> Result<Keyslot, Error> {
    let (needed, available) = (new_end(header), Bytes(u64::MAX));
    let no_room = || ConvertObstacle::NoRoom { needed, available };
    let size = area::size_for(header.key_bytes as usize).ok_or_else(no_room)?;
    let offset = header.material_offset(slot).checked_add(SHIFT).ok_or_else(no_room)?;
    let kdf = Kdf::Pbkdf2 { hash: hash.to_owned(), iterations: slot.iterations, salt: encode_base64(&slot.salt) };
    let af = Af { hash: hash.to_owned(), stripes: slot.stripes, extra: JsonMap::new() };
    Ok(Keyslot {
        kind: KeyslotKind::Luks2(Luks2Slot { af, kdf }),
        type_name: "luks2".to_owned(),
        key_size_bytes: header.key_bytes,
        priority: None,
        area: Area {
            type_name: "raw".to_owned(),
            offset,
            size,
            encryption: Some(header.cipher()),
            key_size_bytes: Some(header.key_bytes),
            extra: JsonMap::new(),
        },
        extra: JsonMap::new(),
    })
}
