//! `format` for LUKS1: a new container with one keyslot.
//!
//! Layout and defaults are those of cryptsetup 2.6.1 and 2.8: key material from sector 8 on, each keyslot rounded up to 8
//! sectors, data at the next MiB, or at 0 with a detached header. [`plan`] touches nothing. [`format()`] writes in this order:
//!
//! 1. the magic of every old header goes, flush;
//! 2. the area of the keyslots is filled with random bytes, the rest before the data zeroed; the second sector of the header
//!    and the key material of the keyslot are written, flush, and the keyslot proven;
//! 3. the first sector with the magic, flush.

use std::fmt;
use std::ops::Range;

use block::{BlockIo, ByteView, Bytes, Geometry, SECTOR_BYTES};
use dmcrypt::CipherSpec;
use secret::Secret;

use crate::area::material_len;
use crate::calibrate::{Effort, KdfChoice, KdfCost, calibrate};
use crate::digest_check::DigestCost;
use crate::edit::NewKeyslot;
use crate::env::Env;
use crate::error::Error;
use crate::format::{NewKdf, key_size, random_uuid, wipe};
use crate::hash::HashAlg;
use crate::kdf::SALT_BYTES;
use crate::limits::Limits;
use crate::luks1::container::check_id;
use crate::luks1::edit::{Staged, uuid_field};
use crate::luks1::header::{DIGEST_BYTES, HEADER_BYTES, KEYSLOTS, Luks1Header, Luks1Slot};
use crate::luks1::load::load_unlocked;
use crate::luks1::text::FixedText;
use crate::metadata::KeyslotId;
use crate::policy::Policy;
use crate::store::{HeaderStore, LockMode};
use crate::unlock;

/// First sector of key material.
const FIRST_SECTOR: u32 = 8;
/// The first sector of the header, which has the magic.
const SECTOR: usize = 512;
/// Key material takes a multiple of so many sectors.
const SLOT_SECTORS: u32 = 8;
/// A data offset that was not asked for is a multiple of this.
const DATA_ALIGNMENT: Bytes = Bytes(1 << 20);

/// What the new container is like. The defaults are those of cryptsetup.
#[derive(Debug, Clone)]
pub struct Luks1FormatParams {
    /// Cipher, in dm-crypt's notation.
    pub cipher: String,
    /// Size of the volume key; 512 for XTS, 256 for other modes if `None`.
    pub key_size_bits: Option<u32>,
    /// Key derivation of the first keyslot: PBKDF2 with `hash`. The cost's key size is set to that of the cipher.
    pub kdf: NewKdf,
    /// How slow the digest of the volume key is to check; as the keyslot if `None`.
    pub digest: Option<DigestCost>,
    /// The hash of everything.
    pub hash: String,
    /// Id of the first keyslot.
    pub keyslot: KeyslotId,
    /// UUID; a random one if `None`.
    pub uuid: Option<String>,
    /// Where data starts on the data device; at the next MiB, or 0 with a detached header, if `None`.
    pub data_offset: Option<Bytes>,
    /// Whether the header lies on a device of its own.
    pub detached: bool,
    /// What the new header must be; anything if `None`. Judged before the first write.
    pub policy: Option<Policy>,
}

impl Default for Luks1FormatParams {
    fn default() -> Luks1FormatParams {
        let hash = HashAlg::Sha256;
        Luks1FormatParams {
            cipher: "aes-xts-plain64".to_owned(),
            key_size_bits: None,
            kdf: NewKdf::Calibrate(KdfChoice::Pbkdf2 { hash }, KdfCost::default()),
            digest: None,
            hash: hash.name().to_owned(),
            keyslot: KeyslotId(0),
            uuid: None,
            data_offset: None,
            detached: false,
            policy: None,
        }
    }
}

/// Everything that `format` will write, except for what is random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks1FormatPlan {
    /// The header without keyslots, digest and UUID.
    pub(super) header: Luks1Header,
    hash: HashAlg,
    uuid: Option<FixedText<40>>,
    /// Size of the volume on the data device as it is now.
    pub data_size: Bytes,
    /// Whether the header lies on a device of its own.
    pub detached: bool,
    /// What is allowed but should be known.
    pub warnings: Vec<String>,
}

impl Luks1FormatPlan {
    /// The header without keyslots, digest and UUID.
    pub fn header(&self) -> &Luks1Header {
        &self.header
    }

    /// The UUID that was asked for.
    pub fn uuid(&self) -> Option<String> {
        self.uuid.map(|uuid| uuid.to_string())
    }

    /// How long the device that holds the header must be: a detached header file is made this long first.
    pub fn header_size(&self) -> Bytes {
        let end = self.header.keyslots_end();
        end.round_up(Bytes(u64::from(SLOT_SECTORS) * SECTOR_BYTES)).unwrap_or(end)
    }
}

impl fmt::Display for Luks1FormatPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.detached { "detached" } else { "at the start of the device" };
        writeln!(f, "header:         LUKS1, {place}, one copy, {KEYSLOTS} keyslots")?;
        writeln!(f, "data offset:    {}", self.header.payload_offset())?;
        writeln!(f, "volume size:    {}", self.data_size)?;
        writeln!(f, "cipher:         {}, key of {} bits", self.header.cipher(), self.header.key_bytes * 8)?;
        writeln!(f, "hash:           {}", self.header.hash_spec)?;
        if let Some(uuid) = &self.uuid {
            writeln!(f, "UUID:           {uuid}")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning:        {warning}"))
    }
}

/// Works out what `format` would write. Touches nothing.
///
/// # Errors
/// [`Error::Parameter`] names the parameter, its value and what it may be; [`Error::DeviceTooSmall`]; cipher and hash
/// names that are not known; [`Error::Luks1KeyslotRange`].
pub fn plan(params: &Luks1FormatParams, data: &Geometry) -> Result<Luks1FormatPlan, Error> {
    let spec = CipherSpec::parse_shorthand(&params.cipher)?;
    if spec.is_kernel_api() {
        // The keyslots have the same cipher, and cryptsetup opens none under a kernel name.
        let allowed = format!("{} in LUKS1", spec.usual());
        return Err(Error::Parameter { parameter: "cipher", value: spec.to_string(), allowed });
    }
    let key_size_bytes = key_size(&spec, params.key_size_bits)?;
    check_id(Some(params.keyslot))?;
    let hash = HashAlg::parse(&params.hash)?;
    if hash.digest_len_bytes() < DIGEST_BYTES {
        return Err(Error::DigestUnusable { digest: None, problem: "its hash is shorter than 20 bytes" });
    }
    let cipher = spec.to_string();
    let (name, mode) = cipher.split_once('-').unwrap_or((&cipher, ""));
    let mut header = Luks1Header {
        cipher_name: text("cipher", name)?,
        cipher_mode: text("cipher", mode)?,
        hash_spec: text("hash", hash.name())?,
        payload_offset_sectors: 0,
        key_bytes: u32::try_from(key_size_bytes).unwrap_or(u32::MAX),
        digest: [0; DIGEST_BYTES],
        digest_salt: [0; SALT_BYTES],
        digest_iterations: 0,
        uuid: FixedText([0; 40]),
        slots: [empty_slot(); KEYSLOTS as usize],
    };
    for (slot, place) in header.slots.iter_mut().zip(standard_sectors(header.key_bytes)) {
        slot.key_material_offset_sectors = place;
    }
    let stride = u64::from(stride_sectors(header.key_bytes));
    let areas_end = Bytes((u64::from(FIRST_SECTOR) + u64::from(KEYSLOTS) * stride) * SECTOR_BYTES);
    header.payload_offset_sectors = payload(params, areas_end)?;
    header.check().map_err(Error::InvalidLuks1)?;
    let (offset, least) = (header.payload_offset(), Bytes(header.payload_offset().0.saturating_add(SECTOR_BYTES)));
    if data.size < least {
        let device = if params.detached { "data device" } else { "device" };
        return Err(Error::DeviceTooSmall { device, size: data.size, needed: least });
    }
    let data_size = Bytes(data.size.0 - offset.0).round_down(Bytes(SECTOR_BYTES));
    let uuid = params.uuid.as_deref().map(uuid_field).transpose()?;
    Ok(Luks1FormatPlan {
        header,
        hash,
        uuid,
        data_size,
        detached: params.detached,
        warnings: warnings(&cipher, data_size),
    })
}

fn warnings(cipher: &str, data_size: Bytes) -> Vec<String> {
    let repeats = cipher.ends_with("-plain") && data_size > Bytes(2 << 40);
    repeats.then(|| format!("{cipher} repeats its IVs every 2 TiB")).into_iter().collect()
}

/// Where each keyslot starts if nobody asks for another place.
pub(super) fn standard_sectors(key_bytes: u32) -> [u32; KEYSLOTS as usize] {
    let stride = stride_sectors(key_bytes);
    let mut places = [FIRST_SECTOR; KEYSLOTS as usize];
    for (id, place) in (0u32..).zip(&mut places) {
        *place = FIRST_SECTOR.saturating_add(stride.saturating_mul(id));
    }
    places
}

fn stride_sectors(key_bytes: u32) -> u32 {
    let material = material_len(key_bytes).map_or(u64::MAX, |len| len.0.div_ceil(SECTOR_BYTES));
    let stride = u32::try_from(material).ok().and_then(|sectors| sectors.checked_next_multiple_of(SLOT_SECTORS));
    stride.unwrap_or(u32::MAX)
}

fn empty_slot() -> Luks1Slot {
    Luks1Slot { enabled: false, iterations: 0, salt: [0; SALT_BYTES], key_material_offset_sectors: 0, stripes: 4000 }
}

fn text(parameter: &'static str, value: &str) -> Result<FixedText<32>, Error> {
    let allowed = || "at most 31 bytes in a LUKS1 header".to_owned();
    FixedText::new(value).ok_or_else(|| Error::Parameter { parameter, value: value.to_owned(), allowed: allowed() })
}

/// The payload offset in sectors.
fn payload(params: &Luks1FormatParams, areas_end: Bytes) -> Result<u32, Error> {
    let offset = match params.data_offset {
        Some(offset) if params.detached && offset == Bytes::ZERO => Bytes::ZERO,
        Some(offset) if offset < areas_end || !offset.is_multiple_of(Bytes(SECTOR_BYTES)) => {
            let allowed = format!("a multiple of 512 bytes, at least {areas_end}: LUKS1 has its keyslots before it");
            return Err(Error::Parameter { parameter: "data offset", value: offset.to_string(), allowed });
        }
        Some(offset) => offset,
        None if params.detached => Bytes::ZERO,
        None => areas_end.round_up(DATA_ALIGNMENT).unwrap_or(areas_end),
    };
    let sectors = u32::try_from(offset.0 / SECTOR_BYTES);
    sectors.map_err(|_| Error::Parameter {
        parameter: "data offset",
        value: offset.to_string(),
        allowed: "less than 2 TiB in a LUKS1 header".to_owned(),
    })
}

/// Makes a new container: header and keyslots on `store`, data on `data`; the same device unless `params.detached`. Whatever
/// `store` held is lost. With a detached header `data` is not written at all, and `store` must be
/// [`Luks1FormatPlan::header_size`] long. Returns the header as read back from the disk.
///
/// # Errors
/// Those of [`plan`] and [`calibrate`] and [`Error::Policy`], before anything is written; errors of the disk;
/// [`Error::NotProven`].
pub fn format<H: HeaderStore, D: BlockIo>(
    store: &H,
    data: &D,
    env: &Env<'_>,
    params: &Luks1FormatParams,
    passphrase: &Secret,
) -> Result<Luks1Header, Error> {
    let plan = plan(params, &data.geometry())?;
    let (size, needed) = (store.geometry().size, plan.header_size());
    if size < needed {
        return Err(Error::DeviceTooSmall { device: "header device", size, needed });
    }
    let limits = Limits::default();
    let mut new = NewKeyslot { id: Some(params.keyslot), ..first_keyslot(env, params, &plan)? };
    new.hash = plan.hash;
    let key = Secret::fill_with(plan.header.key_bytes as usize, |bytes| env.rng.fill(bytes).map_err(Error::from))?;
    let mut header = plan.header.clone();
    header.uuid = match plan.uuid {
        Some(uuid) => uuid,
        None => uuid_field(&random_uuid(env)?)?,
    };
    set_digest(&mut header, env, params, &plan, &key)?;
    let staged = Staged::new(&header, env, &limits, &key, passphrase, &new)?;
    let with_slot = staged.enabled_in(&header);
    if let Some(policy) = &params.policy {
        policy.check_luks1(&with_slot)?;
    }

    let _guard = store.lock(LockMode::Exclusive, limits.lock_wait)?;
    wipe::old_magic(store)?;
    if !plan.detached {
        wipe::foreign_signatures(store, needed)?;
    }
    wipe::areas(store, env, header.material_offset(&header.slots[0]), needed, header.payload_offset().max(needed))?;
    write_part(store, &with_slot, SECTOR..HEADER_BYTES)?;
    staged.write_material(store, &header)?;
    unlock::prove(store, &with_slot.metadata(), staged.id, env, &limits, &key, passphrase)?;
    // The sector with the magic comes last, when all else is durable.
    write_part(store, &with_slot, 0..SECTOR)?;
    store.flush()?;
    load_unlocked(store)
}

fn first_keyslot(env: &Env<'_>, params: &Luks1FormatParams, plan: &Luks1FormatPlan) -> Result<NewKeyslot, Error> {
    let kdf = match &params.kdf {
        NewKdf::Given(kdf) => kdf.clone(),
        NewKdf::Calibrate(choice, cost) => {
            calibrate(env, *choice, &KdfCost { key_size_bytes: plan.header.key_bytes as usize, ..*cost })?
        }
    };
    Ok(NewKeyslot::new(kdf))
}

/// A digest of `key` under a fresh salt.
fn set_digest(
    header: &mut Luks1Header,
    env: &Env<'_>,
    params: &Luks1FormatParams,
    plan: &Luks1FormatPlan,
    key: &Secret,
) -> Result<(), Error> {
    let measured = matches!(params.kdf, NewKdf::Calibrate(_, KdfCost { effort: Effort::IterTime { .. }, .. }));
    let cost = params.digest.unwrap_or(DigestCost::like(measured));
    header.digest_iterations = cost.iterations(env, plan.hash, DIGEST_BYTES)?;
    env.rng.fill(&mut header.digest_salt)?;
    let (salt, iterations, out) = (&header.digest_salt, header.digest_iterations, &mut header.digest);
    secret::scrubbed(|| plan.hash.pbkdf2(key.expose(), salt, iterations, out));
    Ok(())
}

/// Writes a part of the header. The flush is the caller's.
fn write_part<S: BlockIo>(store: &S, header: &Luks1Header, part: Range<usize>) -> Result<(), Error> {
    let (bytes, view) = (header.to_bytes(), ByteView::new(store));
    Ok(view.write(Bytes::from_len(part.start), &bytes[part], false)?)
}
