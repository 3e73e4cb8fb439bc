//! What `format` will write, worked out from the parameters and the devices' geometry without touching them.
//!
//! Defaults are those of cryptsetup 2.8 (luks2-format §3.5, §5): cipher aes-xts-plain64 with a 512-bit key, metadata copies
//! of 16 KiB, header and keyslots in the first 16 MiB, data from there on (from 0 with a detached header), data offset a
//! multiple of 1 MiB. Sector size: the physical block of the data device, at most 4096, and 512 where the size of the data
//! is no multiple of it.

use std::fmt;

use block::{Bytes, Geometry};
use dmcrypt::{CipherSpec, Mode, SectorSize};

use crate::edit::area;
use crate::edit::keyslot::CIPHER_DEFAULT;
use crate::edit::names;
use crate::error::Error;
use crate::format::FormatParams;
use crate::hash::HashAlg;
use crate::limits::{KEYSLOTS, KEYSLOTS_SIZE_MAX, KEYSLOTS_SIZE_UNIT, METADATA_SIZE_MIN, METADATA_SIZES};

/// Where data starts unless said otherwise; header and keyslots fill what is before it.
pub const HEADER_SIZE_DEFAULT: Bytes = Bytes(16 << 20);
/// A data offset that was not asked for is a multiple of this.
const DATA_ALIGNMENT: Bytes = Bytes(1 << 20);
/// A data offset that was asked for is a multiple of this.
const DATA_OFFSET_UNIT: Bytes = Bytes(4096);
/// Below this room for keyslots few of them fit; cryptsetup warns there too.
const KEYSLOTS_SIZE_SMALL: Bytes = Bytes((4 << 20) - (32 << 10));
/// Volume key of XTS and of other modes unless said otherwise, in bits.
const KEY_SIZE_XTS_BITS: u32 = 512;
const KEY_SIZE_OTHER_BITS: u32 = 256;

/// Everything that `format` will write, except for what is random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatPlan {
    /// Cipher of the data, in dm-crypt's notation.
    pub cipher: String,
    /// Size of the volume key.
    pub key_size_bytes: usize,
    /// Encryption sector size.
    pub sector_size: SectorSize,
    /// Size of one metadata copy.
    pub metadata_size: Bytes,
    /// Size of the keyslots area, which follows both copies.
    pub keyslots_size: Bytes,
    /// Where data starts on the data device.
    pub data_offset: Bytes,
    /// Size of the volume on the data device as it is now.
    pub data_size: Bytes,
    /// Whether the header lies on a device of its own.
    pub detached: bool,
    /// Cipher of the keyslot area and size of its key in bytes.
    pub keyslot_encryption: (String, usize),
    /// Hash of the anti-forensic splitter and of the digest.
    pub hash: HashAlg,
    /// Label.
    pub label: Option<String>,
    /// Subsystem.
    pub subsystem: Option<String>,
    /// UUID; `None` is a random one.
    pub uuid: Option<String>,
    /// What is allowed but should be known.
    pub warnings: Vec<String>,
}

impl FormatPlan {
    /// How long the device that holds the header must be: a detached header file is made this long first.
    pub fn header_size(&self) -> Bytes {
        Bytes(2 * self.metadata_size.0 + self.keyslots_size.0)
    }

    /// How many keyslots fit the keyslots area.
    pub fn keyslot_room(&self) -> u64 {
        area::size_for(self.key_size_bytes).map_or(0, |size| self.keyslots_size.0 / size.0.max(1))
    }
}

impl fmt::Display for FormatPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = if self.detached { "detached" } else { "at the start of the device" };
        writeln!(f, "header:         {header}, two copies of {}", self.metadata_size)?;
        writeln!(f, "keyslots area:  {}, room for {} keyslots", self.keyslots_size, self.keyslot_room().min(32))?;
        writeln!(f, "data offset:    {}", self.data_offset)?;
        writeln!(f, "volume size:    {}", self.data_size)?;
        writeln!(f, "cipher:         {}, key of {} bits", self.cipher, self.key_size_bytes * 8)?;
        writeln!(f, "sector size:    {} bytes", self.sector_size.bytes())?;
        let (cipher, key_size_bytes) = &self.keyslot_encryption;
        writeln!(f, "keyslot cipher: {cipher}, key of {} bits", key_size_bytes * 8)?;
        writeln!(f, "hash:           {}", self.hash.name())?;
        for (name, value) in [("label", &self.label), ("subsystem", &self.subsystem), ("UUID", &self.uuid)] {
            if let Some(value) = value {
                writeln!(f, "{:<15} {value}", format!("{name}:"))?;
            }
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning:        {warning}"))
    }
}

/// Works out what `format` would write. Touches nothing.
///
/// `header` is the geometry of the device that holds the header, `data` that of the data device; the same one unless
/// `params.detached`.
///
/// # Errors
/// [`Error::Parameter`] names the parameter, its value and what it may be; [`Error::DeviceTooSmall`]; cipher and hash
/// names that are not known; [`Error::KeyslotRange`].
pub fn plan(params: &FormatParams, header: &Geometry, data: &Geometry) -> Result<FormatPlan, Error> {
    let spec = CipherSpec::parse_shorthand(&params.cipher)?;
    let key_size_bytes = key_size(&spec, params.key_size_bits)?;
    if params.keyslot.0 >= KEYSLOTS {
        return Err(Error::KeyslotRange { keyslot: params.keyslot });
    }
    let mut warnings = Vec::new();
    let layout = Layout::of(params, &mut warnings)?;
    let header_size = Bytes(layout.metadata_size.0 * 2 + layout.keyslots_size.0);
    if !params.detached {
        check_room("device", header.size, header_size)?;
    }
    let data_size = data.size.checked_sub(layout.data_offset).unwrap_or_default();
    let sector_size = sector_size(params.sector_size, data, data_size)?;
    let least = Bytes(layout.data_offset.0.saturating_add(u64::from(sector_size.bytes())));
    check_room(if params.detached { "data device" } else { "device" }, data.size, least)?;
    let slot_size = area::size_for(key_size_bytes).unwrap_or(Bytes(u64::MAX));
    if layout.keyslots_size < slot_size {
        let allowed = format!("at least {slot_size} for one keyslot of a {}-bit key", key_size_bytes * 8);
        return Err(bad("keyslots area size", layout.keyslots_size, allowed));
    }
    let keyslot_encryption = match &params.keyslot_encryption {
        Some((cipher, bits)) => keyslot_cipher(cipher, *bits)?,
        // cryptsetup opens no keyslot under a kernel name.
        None if spec.is_kernel_api() => (CIPHER_DEFAULT.0.to_owned(), CIPHER_DEFAULT.1 as usize),
        None => (spec.to_string(), key_size_bytes),
    };
    Ok(FormatPlan {
        cipher: spec.to_string(),
        key_size_bytes,
        sector_size,
        metadata_size: layout.metadata_size,
        keyslots_size: layout.keyslots_size,
        data_offset: layout.data_offset,
        data_size: data_size.round_down(Bytes(u64::from(sector_size.bytes()))),
        detached: params.detached,
        keyslot_encryption,
        hash: HashAlg::parse(&params.hash)?,
        label: params.label.as_deref().map(|label| names::checked("label", label)).transpose()?,
        subsystem: params.subsystem.as_deref().map(|name| names::checked("subsystem", name)).transpose()?,
        uuid: params.uuid.as_deref().map(names::checked_uuid).transpose()?,
        warnings,
    })
}

/// Sizes of the parts of the header and where data starts.
struct Layout {
    metadata_size: Bytes,
    keyslots_size: Bytes,
    data_offset: Bytes,
}

impl Layout {
    fn of(params: &FormatParams, warnings: &mut Vec<String>) -> Result<Layout, Error> {
        let metadata_size = params.metadata_size.unwrap_or(METADATA_SIZE_MIN);
        if !METADATA_SIZES.contains(&metadata_size) {
            return Err(bad("metadata size", metadata_size, "16, 32, 64, 128, 256, 512 KiB, 1, 2 or 4 MiB".into()));
        }
        let copies = Bytes(metadata_size.0 * 2);
        let room = match params.data_offset {
            Some(offset) if offset != Bytes(0) || !params.detached => Some(room_before(offset, copies)?),
            _ => None,
        };
        let default = room.unwrap_or(Bytes(HEADER_SIZE_DEFAULT.0 - copies.0)).min(KEYSLOTS_SIZE_MAX);
        let keyslots_size = params.keyslots_size.unwrap_or(default);
        if !keyslots_size.is_multiple_of(KEYSLOTS_SIZE_UNIT)
            || keyslots_size.0 == 0
            || keyslots_size > KEYSLOTS_SIZE_MAX
        {
            let allowed = "a multiple of 4 KiB, at most 128 MiB".into();
            return Err(bad("keyslots area size", keyslots_size, allowed));
        }
        if let Some(room) = room.filter(|room| *room < keyslots_size) {
            let allowed = format!("at most {room} before the data offset");
            return Err(bad("keyslots area size", keyslots_size, allowed));
        }
        if keyslots_size < KEYSLOTS_SIZE_SMALL {
            warnings.push(format!("the keyslots area of {keyslots_size} has room for few keyslots"));
        }
        let header_size = Bytes(copies.0 + keyslots_size.0);
        let data_offset = match params.data_offset {
            Some(offset) => offset,
            None if params.detached => Bytes(0),
            None => header_size.round_up(DATA_ALIGNMENT).unwrap_or(header_size),
        };
        Ok(Layout { metadata_size, keyslots_size, data_offset })
    }
}

/// Room for keyslots before a data offset that was asked for.
fn room_before(offset: Bytes, copies: Bytes) -> Result<Bytes, Error> {
    if !offset.is_multiple_of(DATA_OFFSET_UNIT) {
        return Err(bad("data offset", offset, "a multiple of 4096 bytes".into()));
    }
    match offset.checked_sub(copies) {
        Some(room) if room.0 > 0 => Ok(room),
        _ => Err(bad("data offset", offset, format!("more than both metadata copies, {copies}"))),
    }
}

/// Length in bytes of a volume key that was asked for, or the default.
pub(crate) fn key_size(spec: &CipherSpec, bits: Option<u32>) -> Result<usize, Error> {
    let default = if spec.mode() == Mode::Xts { KEY_SIZE_XTS_BITS } else { KEY_SIZE_OTHER_BITS };
    checked_key_size("key size", spec, bits.unwrap_or(default))
}

fn checked_key_size(parameter: &'static str, spec: &CipherSpec, bits: u32) -> Result<usize, Error> {
    let found = spec.key_sizes().iter().find(|bytes| **bytes * 8 == bits as usize);
    found.copied().ok_or_else(|| {
        let allowed: Vec<String> = spec.key_sizes().iter().map(|bytes| (bytes * 8).to_string()).collect();
        bad(parameter, format!("{bits} bits"), format!("{} bits for {spec}", allowed.join(" or ")))
    })
}

fn keyslot_cipher(cipher: &str, bits: u32) -> Result<(String, usize), Error> {
    let spec = CipherSpec::parse_shorthand(cipher)?;
    if spec.is_kernel_api() {
        return Err(bad("keyslot cipher", spec, format!("{}: keyslots take no capi: names", spec.usual())));
    }
    let key_size_bytes = checked_key_size("keyslot key size", &spec, bits)?;
    Ok((spec.to_string(), key_size_bytes))
}

fn sector_size(asked: Option<u32>, data: &Geometry, data_size: Bytes) -> Result<SectorSize, Error> {
    let Some(asked) = asked else {
        let block = data.logical_block.max(data.physical_block).min(4096);
        let whole = |size: &SectorSize| data_size.is_multiple_of(Bytes(u64::from(size.bytes())));
        return Ok(SectorSize::try_from(block).ok().filter(whole).unwrap_or(SectorSize::S512));
    };
    let Ok(size) = SectorSize::try_from(asked) else {
        return Err(bad("sector size", format!("{asked} bytes"), "512, 1024, 2048 or 4096 bytes".into()));
    };
    if !data_size.is_multiple_of(Bytes(u64::from(asked))) {
        let allowed = format!("a divisor of the {data_size} of data on this device");
        return Err(bad("sector size", format!("{asked} bytes"), allowed));
    }
    Ok(size)
}

fn check_room(device: &'static str, size: Bytes, needed: Bytes) -> Result<(), Error> {
    if size < needed { Err(Error::DeviceTooSmall { device, size, needed }) } else { Ok(()) }
}

fn bad(parameter: &'static str, value: impl ToString, allowed: String) -> Error {
    Error::Parameter { parameter, value: value.to_string(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(size: u64, physical_block: u32) -> Geometry {
        Geometry { size: Bytes(size), logical_block: 512, physical_block, memory_alignment: 512, read_only: false }
    }

    fn planned(params: &FormatParams, size: u64) -> Result<FormatPlan, Error> {
        let geometry = geometry(size, 4096);
        plan(params, &geometry, &geometry)
    }

    fn params() -> FormatParams {
        FormatParams::default()
    }

    const MIB: u64 = 1 << 20;

    /// Pairs of options and results that `cryptsetup luksFormat` was seen to give.
    #[test]
    fn geometry_is_that_of_cryptsetup() {
        let cases = [
            (None, None, None, 16 * MIB, 16_744_448),
            (None, Some(256 << 10), None, MIB, 262_144),
            (Some(4 * MIB), None, None, 16 * MIB, 8 * MIB),
            (Some(4 * MIB), Some(16 * MIB), None, 24 * MIB, 16 * MIB),
            (None, Some(20 * MIB), None, 21 * MIB, 20 * MIB),
            (None, None, Some(MIB), MIB, 1_015_808),
            (None, Some(256 << 10), Some(4 * MIB), 4 * MIB, 262_144),
            (None, None, Some(400_000 * 512), 400_000 * 512, 128 * MIB),
        ];
        for (metadata, keyslots, offset, data_offset, keyslots_size) in cases {
            let params = FormatParams {
                metadata_size: metadata.map(Bytes),
                keyslots_size: keyslots.map(Bytes),
                data_offset: offset.map(Bytes),
                ..params()
            };
            let plan = planned(&params, 512 * MIB).expect("plan");
            assert_eq!((plan.data_offset.0, plan.keyslots_size.0), (data_offset, keyslots_size), "{params:?}");
        }
        let detached = FormatParams { detached: true, ..params() };
        let plan = plan(&detached, &geometry(0, 4096), &geometry(64 * MIB, 512)).expect("plan");
        assert_eq!((plan.data_offset.0, plan.header_size().0), (0, 16 * MIB));
        assert_eq!(plan.sector_size, SectorSize::S512);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name_and_value() {
        let refused = |params: FormatParams, size: u64| planned(&params, size).expect_err("refused").to_string();
        let cases = [
            (FormatParams { data_offset: Some(Bytes(63 * 512)), ..params() }, "data offset", "31.5 KiB"),
            (FormatParams { data_offset: Some(Bytes(32768)), ..params() }, "data offset", "32 KiB"),
            (FormatParams { keyslots_size: Some(Bytes(4096)), ..params() }, "keyslots area size", "4 KiB"),
            (FormatParams { keyslots_size: Some(Bytes(1_000_000)), ..params() }, "keyslots area size", "1000000"),
            (FormatParams { keyslots_size: Some(Bytes(129 * MIB)), ..params() }, "keyslots area size", "129 MiB"),
            (FormatParams { metadata_size: Some(Bytes(100 << 10)), ..params() }, "metadata size", "100 KiB"),
            (FormatParams { sector_size: Some(1000), ..params() }, "sector size", "1000 bytes"),
            (FormatParams { key_size_bits: Some(320), ..params() }, "key size", "320 bits"),
            (FormatParams { label: Some("x".repeat(48)), ..params() }, "label", "48"),
            (FormatParams { uuid: Some("foo".into()), ..params() }, "UUID", "foo"),
        ];
        for (params, parameter, value) in cases {
            let message = refused(params, 64 * MIB);
            assert!(message.contains(parameter) && message.contains(value), "{message}");
        }
        let small = refused(params(), 16 * MIB);
        assert!(small.contains("16 MiB") && small.contains("16781312"), "{small}");
        let misaligned = refused(FormatParams { sector_size: Some(4096), ..params() }, 32 * MIB + 512);
        assert!(misaligned.contains("sector size"), "{misaligned}");
    }

    #[test]
    fn the_sector_size_follows_the_device_and_falls_back() {
        let at = |size, block| {
            let geometry = geometry(size, block);
            plan(&params(), &geometry, &geometry).expect("plan").sector_size
        };
        assert_eq!(at(64 * MIB, 4096), SectorSize::S4096);
        assert_eq!(at(64 * MIB, 512), SectorSize::S512);
        assert_eq!(at(64 * MIB, 65536), SectorSize::S4096);
        assert_eq!(at(32 * MIB + 512, 4096), SectorSize::S512);
    }

    #[test]
    fn a_plan_reads_as_text() {
        let params = FormatParams { label: Some("data".into()), ..params() };
        let text = planned(&params, 64 * MIB).expect("plan").to_string();
        for part in ["aes-xts-plain64, key of 512 bits", "16 MiB", "label:          data", "room for 32 keyslots"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
