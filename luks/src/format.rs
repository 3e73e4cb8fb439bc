//! `format`: a new LUKS2 container with one keyslot.
//!
//! [`plan`] works everything out and touches nothing. [`format()`] then writes in an order in which a crash, a full disk or an
//! error leaves either no LUKS magic at all or a valid header with a keyslot that was seen to open:
//!
//! 1. the magic of every old header goes, flush;
//! 2. the header area is zeroed, the keyslots area filled with random bytes, old signatures behind them go; both JSON areas
//!    and the keyslot's area are written, flush; the keyslot is proven by unlocking it from the disk;
//! 3. both binary headers, which alone carry the magic, flush.
//!
//! Each of the three flushes is needed, and no more are: docs/crash-safety.md.
//!
//! The sequence number is 3, as after `cryptsetup luksFormat`, which writes the header twice. Sources: luks2-format §1.6, §5.

mod plan;
pub(crate) mod wipe;

use block::{BlockIo, Bytes};
use secret::Secret;

use crate::binary::{self, BinaryHeader, Position};
use crate::calibrate::{Effort, KdfChoice, KdfCost, calibrate};
use crate::digest_check::{DigestCost, make_digest};
use crate::edit::{NewKeyslot, Staged};
use crate::env::Env;
use crate::error::Error;
use crate::header::{Header, load_unlocked};
use crate::json::JsonMap;
use crate::kdf::KdfParams;
use crate::limits::{BINARY_HEADER, Limits};
use crate::metadata::config::Config;
use crate::metadata::segment::{CryptSegment, Segment, SegmentSize};
use crate::metadata::{ById, DigestId, KeyslotId, Metadata, SegmentId};
use crate::policy::Policy;
use crate::store::{HeaderStore, LockMode};
use crate::unlock;
use crate::volume_key;
use crate::write;

pub(crate) use plan::key_size;
pub use plan::{FormatPlan, HEADER_SIZE_DEFAULT, plan};

/// Sequence number of a header as `format` leaves it.
const FORMATTED_SEQID: u64 = 3;

/// Key derivation of the first keyslot.
#[derive(Debug, Clone)]
pub enum NewKdf {
    /// Found by [`calibrate`]; the cost's key size is set to that of the keyslot's cipher.
    Calibrate(KdfChoice, KdfCost),
    /// As given, for a machine-made key.
    Given(KdfParams),
}

/// What the new container is like. The defaults are those of cryptsetup 2.8.
#[derive(Debug, Clone)]
pub struct FormatParams {
    /// Cipher of the data, in dm-crypt's notation.
    pub cipher: String,
    /// Size of the volume key; 512 for XTS, 256 for other modes if `None`.
    pub key_size_bits: Option<u32>,
    /// Encryption sector size in bytes; chosen from the data device if `None`.
    pub sector_size: Option<u32>,
    /// Key derivation of the first keyslot.
    pub kdf: NewKdf,
    /// How slow the digest of the volume key is to check; as the keyslot if `None`: measured where that is measured,
    /// minimal where its cost is forced or given.
    pub digest: Option<DigestCost>,
    /// Hash of the anti-forensic splitter and the digest.
    pub hash: String,
    /// Id of the first keyslot.
    pub keyslot: KeyslotId,
    /// Cipher of the keyslot area and size of its key in bits; those of the data if `None`.
    pub keyslot_encryption: Option<(String, u32)>,
    /// Label, at most 47 bytes.
    pub label: Option<String>,
    /// Subsystem, at most 47 bytes.
    pub subsystem: Option<String>,
    /// UUID; a random one if `None`.
    pub uuid: Option<String>,
    /// Size of one metadata copy; 16 KiB if `None`.
    pub metadata_size: Option<Bytes>,
    /// Size of the keyslots area; what is left of the first 16 MiB, or before the data offset, if `None`.
    pub keyslots_size: Option<Bytes>,
    /// Where data starts on the data device; behind the header, or 0 with a detached one, if `None`.
    pub data_offset: Option<Bytes>,
    /// Whether the header lies on a device of its own.
    pub detached: bool,
    /// What the new header must be; anything if `None`. Judged before the first write.
    pub policy: Option<Policy>,
}

impl Default for FormatParams {
    fn default() -> FormatParams {
        FormatParams {
            cipher: "aes-xts-plain64".to_owned(),
            key_size_bits: None,
            sector_size: None,
            kdf: NewKdf::Calibrate(KdfChoice::Argon2id, KdfCost::default()),
            digest: None,
            hash: "sha256".to_owned(),
            keyslot: KeyslotId(0),
            keyslot_encryption: None,
            label: None,
            subsystem: None,
            uuid: None,
            metadata_size: None,
            keyslots_size: None,
            data_offset: None,
            detached: false,
            policy: None,
        }
    }
}

/// Makes a new container: header and keyslots on `store`, data on `data`; the same device unless `params.detached`. Whatever
/// `store` held is lost. With a detached header `data` is not written at all, and `store` must be
/// [`FormatPlan::header_size`] long. Returns the header as read back from the disk.
///
/// # Errors
/// Those of [`plan`] and [`calibrate`] and [`Error::Policy`], before anything is written; errors of the disk; [`Error::NotProven`].
pub fn format<H: HeaderStore, D: BlockIo>(
    store: &H,
    data: &D,
    env: &Env<'_>,
    params: &FormatParams,
    passphrase: &Secret,
) -> Result<Header, Error> {
    let plan = plan(params, &store.geometry(), &data.geometry())?;
    let key = Secret::fill_with(plan.key_size_bytes, |bytes| env.rng.fill(bytes).map_err(Error::from))?;
    format_with_key(store, data, env, params, passphrase, key)
}

/// As [`format()`], with a volume key that the caller has: `key` encrypts the data, as in another container or a backup of one.
/// Whoever else has it reads this container, too.
///
/// # Errors
/// As [`format()`]; [`Error::KeySize`] if it is not as long as `params` says.
pub fn format_with_key<H: HeaderStore, D: BlockIo>(
    store: &H,
    data: &D,
    env: &Env<'_>,
    params: &FormatParams,
    passphrase: &Secret,
    key: Secret,
) -> Result<Header, Error> {
    let plan = plan(params, &store.geometry(), &data.geometry())?;
    if key.len() != plan.key_size_bytes {
        return Err(Error::KeySize { expected_bytes: plan.key_size_bytes, got_bytes: key.len() });
    }
    let (size, needed) = (store.geometry().size, plan.header_size());
    if size < needed {
        return Err(Error::DeviceTooSmall { device: "header device", size, needed });
    }
    let limits = Limits::default();
    let new = first_keyslot(env, params, &plan)?;
    let metadata = first_metadata(env, params, &plan, &key)?;
    let key = volume_key::verify(&metadata, &limits, DigestId(0), key)?;
    let staged = Staged::new(&metadata, env, &limits, &key, passphrase, &new)?;
    let mut header = Header::create(staged.metadata.clone(), env.rng)?;
    header.binary.seqid = FORMATTED_SEQID;
    header.binary.uuid = match &plan.uuid {
        Some(uuid) => uuid.clone(),
        None => random_uuid(env)?,
    }
    .into_bytes();
    header.binary.label = plan.label.clone().unwrap_or_default().into_bytes();
    header.binary.subsystem = plan.subsystem.clone().unwrap_or_default().into_bytes();
    if let Some(policy) = &params.policy {
        policy.check(&header)?;
    }

    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    wipe::old_magic(store)?;
    wipe::header_area(store, env, &plan)?;
    let json_area = write_json(store, &header)?;
    staged.write_area(store)?;
    unlock::prove(store, &staged.metadata, staged.id, env, &limits, key.secret(), passphrase)?;
    write_magic(store, &header, &json_area)?;
    load_unlocked(store, &limits)
}

fn first_keyslot(env: &Env<'_>, params: &FormatParams, plan: &FormatPlan) -> Result<NewKeyslot, Error> {
    let (cipher, key_size_bytes) = &plan.keyslot_encryption;
    let kdf = match &params.kdf {
        NewKdf::Given(kdf) => kdf.clone(),
        NewKdf::Calibrate(choice, cost) => {
            calibrate(env, *choice, &KdfCost { key_size_bytes: *key_size_bytes, ..*cost })?
        }
    };
    // At most 64: a key size of a known cipher.
    let area_key_size_bytes = u32::try_from(*key_size_bytes).unwrap_or(u32::MAX);
    Ok(NewKeyslot {
        id: Some(params.keyslot),
        kdf,
        hash: plan.hash,
        encryption: Some((cipher.clone(), area_key_size_bytes)),
        priority: None,
        name: None,
    })
}

/// The metadata without a keyslot: one segment, one digest of the volume key.
fn first_metadata(env: &Env<'_>, params: &FormatParams, plan: &FormatPlan, key: &Secret) -> Result<Metadata, Error> {
    let measured = matches!(params.kdf, NewKdf::Calibrate(_, KdfCost { effort: Effort::IterTime { .. }, .. }));
    let cost = params.digest.unwrap_or(DigestCost::like(measured));
    let mut digest = make_digest(env, cost, plan.hash, key)?;
    digest.segments.push(SegmentId(0));
    let segment = Segment {
        type_name: "crypt".to_owned(),
        offset: plan.data_offset,
        size: SegmentSize::Dynamic,
        crypt: Some(CryptSegment {
            iv_tweak: block::Sectors(0),
            encryption: plan.cipher.clone(),
            sector_size: plan.sector_size.bytes(),
            integrity: None,
        }),
        opal: None,
        flags: Vec::new(),
        extra: JsonMap::new(),
    };
    Ok(Metadata {
        keyslots: ById::new(),
        tokens: ById::new(),
        segments: ById::from_iter([(SegmentId(0), segment)]),
        digests: ById::from_iter([(DigestId(0), digest)]),
        config: Config::new(plan.metadata_size, plan.keyslots_size),
        extra: JsonMap::new(),
    })
}

pub(crate) fn random_uuid(env: &Env<'_>) -> Result<String, Error> {
    let mut bytes = [0u8; 16];
    env.rng.fill(&mut bytes)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string())
}

/// Writes both JSON areas, which are nothing yet without their binary headers. The flush is the caller's.
fn write_json<S: BlockIo>(store: &S, header: &Header) -> Result<Vec<u8>, Error> {
    let json_area = write::json_area_of(&header.metadata.to_text(), header.binary.json_size())?;
    for copy in [Bytes(0), header.metadata_size()] {
        store.write_at(Bytes(copy.0 + BINARY_HEADER as u64), &json_area, false)?;
    }
    Ok(json_area)
}

/// The first write of the binary headers: they carry the magic and come last, when all that they speak of is durable.
fn write_magic<S: BlockIo>(store: &S, header: &Header, json_area: &[u8]) -> Result<(), Error> {
    let [first_salt, second_salt] = header.salts.map(|salt| salt.unwrap_or(header.binary.salt));
    let size = header.metadata_size();
    for (position, hdr_offset, salt) in
        [(Position::Secondary, size, second_salt), (Position::Primary, Bytes(0), first_salt)]
    {
        let mut copy = BinaryHeader { position, hdr_offset, salt, ..header.binary.clone() };
        copy.csum = [0; binary::CSUM_LEN];
        copy.csum = binary::checksum(copy.hash()?, &copy.to_bytes(), json_area);
        store.write_at(hdr_offset, &copy.to_bytes(), false)?;
    }
    Ok(store.flush()?)
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
