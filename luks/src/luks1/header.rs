//! The LUKS1 header, as it stands at the start of the device. Source: LUKS1 on-disk format specification, figure 1 and 2.
//!
//! Integers are big-endian; offsets are in sectors of 512 bytes.
//!
//! ```text
//!   0  magic            6   "LUKS\xba\xbe"
//!   6  version          2   1
//!   8  cipher_name     32   NUL-terminated, "aes"
//!  40  cipher_mode     32   NUL-terminated, "xts-plain64"
//!  72  hash_spec       32   NUL-terminated: of PBKDF2, of the anti-forensic splitter and of the digest
//! 104  payload_offset   4   sectors; 0 with a detached header
//! 108  key_bytes        4   length of the volume key
//! 112  mk_digest       20   PBKDF2(volume key, mk_digest_salt, mk_digest_iter), 20 bytes whatever the hash is
//! 132  mk_digest_salt  32
//! 164  mk_digest_iter   4
//! 168  uuid            40   36 characters and NULs
//! 208  keyslot 0…7     48 each:
//!        0  active               4   00ac71f3 enabled, 0000dead disabled
//!        4  iterations           4   of PBKDF2
//!        8  salt                32
//!       40  key_material_offset  4   sectors
//!       44  stripes              4   4000
//! 592  end
//! ```
//!
//! The header lies in two sectors. Keyslots 0 to 5 are in the first, keyslot 7 in the second, and the border goes through
//! the salt of keyslot 6: what that means for the order of writes is in [`super::write`].

use block::{Bytes, SECTOR_BYTES};

use crate::area::material_len;
use crate::luks1::text::FixedText;
use crate::rule::{Rule, Violation};

/// Length of the header.
pub const HEADER_BYTES: usize = 592;
/// Number of keyslots.
pub const KEYSLOTS: u32 = 8;
/// Length of the digest of the volume key.
pub const DIGEST_BYTES: usize = 20;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const NAME_LEN: usize = 32;
pub(super) const SALT_LEN: usize = 32;
const UUID_LEN: usize = 40;

const VERSION_AT: usize = MAGIC.len();
const CIPHER_NAME_AT: usize = VERSION_AT + 2;
const CIPHER_MODE_AT: usize = CIPHER_NAME_AT + NAME_LEN;
const HASH_SPEC_AT: usize = CIPHER_MODE_AT + NAME_LEN;
const PAYLOAD_OFFSET_AT: usize = HASH_SPEC_AT + NAME_LEN;
const KEY_BYTES_AT: usize = PAYLOAD_OFFSET_AT + 4;
const DIGEST_AT: usize = KEY_BYTES_AT + 4;
const DIGEST_SALT_AT: usize = DIGEST_AT + DIGEST_BYTES;
const DIGEST_ITERATIONS_AT: usize = DIGEST_SALT_AT + SALT_LEN;
const UUID_AT: usize = DIGEST_ITERATIONS_AT + 4;
const SLOTS_AT: usize = UUID_AT + UUID_LEN;

const SLOT_ITERATIONS_AT: usize = 4;
const SLOT_SALT_AT: usize = SLOT_ITERATIONS_AT + 4;
const SLOT_OFFSET_AT: usize = SLOT_SALT_AT + SALT_LEN;
const SLOT_STRIPES_AT: usize = SLOT_OFFSET_AT + 4;
pub(super) const SLOT_BYTES: usize = SLOT_STRIPES_AT + 4;
/// The salt of keyslot 0.
pub(super) const SLOT_SALTS_AT: usize = SLOTS_AT + SLOT_SALT_AT;
const _: () = assert!(SLOTS_AT + KEYSLOTS as usize * SLOT_BYTES == HEADER_BYTES);

/// One of the eight keyslots. A disabled one has a place too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Luks1Slot {
    /// Whether it holds a key.
    pub enabled: bool,
    /// PBKDF2 iterations.
    pub iterations: u32,
    /// Salt of PBKDF2.
    pub salt: [u8; SALT_LEN],
    /// Where its key material starts.
    pub key_material_offset_sectors: u32,
    /// Stripes of the anti-forensic splitter: 4000.
    pub stripes: u32,
}

/// The header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Luks1Header {
    /// The cipher: `aes`.
    pub cipher_name: FixedText<NAME_LEN>,
    /// Mode and IV generator: `xts-plain64`.
    pub cipher_mode: FixedText<NAME_LEN>,
    /// The hash of everything here: `sha256`.
    pub hash_spec: FixedText<NAME_LEN>,
    /// Where data starts on the data device; 0 with a detached header.
    pub payload_offset_sectors: u32,
    /// Length of the volume key.
    pub key_bytes: u32,
    /// Digest of the volume key.
    pub digest: [u8; DIGEST_BYTES],
    /// Salt of the digest.
    pub digest_salt: [u8; SALT_LEN],
    /// PBKDF2 iterations of the digest.
    pub digest_iterations: u32,
    /// UUID.
    pub uuid: FixedText<UUID_LEN>,
    /// Keyslots 0 to 7.
    pub slots: [Luks1Slot; KEYSLOTS as usize],
}

impl Luks1Header {
    /// Reads a header and holds it against every rule that needs no device.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Luks1Header, Violation> {
        let header = Luks1Header::parse_unchecked(bytes)?;
        header.check()?;
        Ok(header)
    }

    /// The same without the rules across fields: magic, version and states alone are looked at.
    pub(super) fn parse_unchecked(bytes: &[u8; HEADER_BYTES]) -> Result<Luks1Header, Violation> {
        let magic: [u8; MAGIC.len()] = field(bytes, 0);
        if magic != MAGIC {
            return Err(Violation::new(Rule::Luks1Magic, "", magic.escape_ascii()));
        }
        let version = u16::from_be_bytes(field(bytes, VERSION_AT));
        if version != VERSION {
            return Err(Violation::new(Rule::Luks1Version, "", version));
        }
        let mut slots = Vec::with_capacity(KEYSLOTS as usize);
        for id in 0..KEYSLOTS as usize {
            slots.push(parse_slot(bytes, id)?);
        }
        let Ok(slots) = slots.try_into() else {
            // Eight were pushed.
            return Err(Violation::missing(Rule::Luks1SlotState, "keyslots"));
        };
        Ok(Luks1Header {
            cipher_name: FixedText(field(bytes, CIPHER_NAME_AT)),
            cipher_mode: FixedText(field(bytes, CIPHER_MODE_AT)),
            hash_spec: FixedText(field(bytes, HASH_SPEC_AT)),
            payload_offset_sectors: number(bytes, PAYLOAD_OFFSET_AT),
            key_bytes: number(bytes, KEY_BYTES_AT),
            digest: field(bytes, DIGEST_AT),
            digest_salt: field(bytes, DIGEST_SALT_AT),
            digest_iterations: number(bytes, DIGEST_ITERATIONS_AT),
            uuid: FixedText(field(bytes, UUID_AT)),
            slots,
        })
    }

    /// The header as it stands on disk. Rules are not looked at: [`check`](Self::check) does that.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, VERSION_AT, &VERSION.to_be_bytes());
        put(&mut bytes, CIPHER_NAME_AT, self.cipher_name.field());
        put(&mut bytes, CIPHER_MODE_AT, self.cipher_mode.field());
        put(&mut bytes, HASH_SPEC_AT, self.hash_spec.field());
        put(&mut bytes, PAYLOAD_OFFSET_AT, &self.payload_offset_sectors.to_be_bytes());
        put(&mut bytes, KEY_BYTES_AT, &self.key_bytes.to_be_bytes());
        put(&mut bytes, DIGEST_AT, &self.digest);
        put(&mut bytes, DIGEST_SALT_AT, &self.digest_salt);
        put(&mut bytes, DIGEST_ITERATIONS_AT, &self.digest_iterations.to_be_bytes());
        put(&mut bytes, UUID_AT, self.uuid.field());
        for (id, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + id * SLOT_BYTES;
            let state = if slot.enabled { ENABLED } else { DISABLED };
            put(&mut bytes, at, &state.to_be_bytes());
            put(&mut bytes, at + SLOT_ITERATIONS_AT, &slot.iterations.to_be_bytes());
            put(&mut bytes, at + SLOT_SALT_AT, &slot.salt);
            put(&mut bytes, at + SLOT_OFFSET_AT, &slot.key_material_offset_sectors.to_be_bytes());
            put(&mut bytes, at + SLOT_STRIPES_AT, &slot.stripes.to_be_bytes());
        }
        bytes
    }

    /// The cipher in dm-crypt's notation: `aes-xts-plain64`.
    pub fn cipher(&self) -> String {
        match (self.cipher_name.as_bytes(), self.cipher_mode.as_bytes()) {
            (_, b"") => self.cipher_name.to_string(),
            _ => format!("{}-{}", self.cipher_name, self.cipher_mode),
        }
    }

    /// Where data starts on the data device.
    pub fn payload_offset(&self) -> Bytes {
        Bytes(u64::from(self.payload_offset_sectors) * SECTOR_BYTES)
    }

    /// Bytes of key material in each keyslot, whole sectors.
    pub fn material_size(&self) -> Bytes {
        material_len(self.key_bytes).unwrap_or(Bytes(u64::MAX))
    }

    /// Where the key material of a keyslot starts.
    pub fn material_offset(&self, slot: &Luks1Slot) -> Bytes {
        Bytes(u64::from(slot.key_material_offset_sectors) * SECTOR_BYTES)
    }

    /// The end of the last keyslot's key material, enabled or not: so long is what belongs to the header.
    pub fn keyslots_end(&self) -> Bytes {
        let last = self.slots.iter().map(|slot| self.material_offset(slot)).max().unwrap_or_default();
        Bytes(last.0.saturating_add(self.material_size().0))
    }

    /// Ids and contents of the keyslots that hold a key.
    pub fn enabled(&self) -> impl Iterator<Item = (u32, &Luks1Slot)> {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.enabled)
    }
}

fn parse_slot(bytes: &[u8; HEADER_BYTES], id: usize) -> Result<Luks1Slot, Violation> {
    let raw = RawSlot::of(bytes, id);
    let enabled = match raw.state {
        ENABLED => true,
        DISABLED => false,
        other => {
            return Err(Violation::new(Rule::Luks1SlotState, format!("keyslots.{id}"), format_args!("{other:08x}")));
        }
    };
    let at = SLOTS_AT + id * SLOT_BYTES;
    Ok(Luks1Slot {
        enabled,
        iterations: raw.iterations,
        salt: raw.salt,
        key_material_offset_sectors: number(bytes, at + SLOT_OFFSET_AT),
        stripes: raw.stripes,
    })
}

/// What stands on the disk for a keyslot, broken or not.
pub(super) struct RawSlot {
    pub(super) state: u32,
    pub(super) stripes: u32,
    iterations: u32,
    salt: [u8; SALT_LEN],
}

impl RawSlot {
    /// Reads keyslot `id`, which is one of the eight.
    pub(super) fn of(bytes: &[u8; HEADER_BYTES], id: usize) -> RawSlot {
        let at = SLOTS_AT + id * SLOT_BYTES;
        RawSlot {
            state: number(bytes, at),
            stripes: number(bytes, at + SLOT_STRIPES_AT),
            iterations: number(bytes, at + SLOT_ITERATIONS_AT),
            salt: field(bytes, at + SLOT_SALT_AT),
        }
    }

    /// Gives a state that is none the one that the other fields tell of; says whether the keyslot is enabled.
    pub(super) fn mend_state(&mut self) -> bool {
        if !matches!(self.state, ENABLED | DISABLED) {
            let held_a_key = self.iterations != 0 && self.salt != [0; SALT_LEN];
            self.state = if held_a_key { ENABLED } else { DISABLED };
        }
        self.state == ENABLED
    }

    /// Writes state and stripes back to where they were read.
    pub(super) fn put(&self, bytes: &mut [u8; HEADER_BYTES], id: usize) {
        let at = SLOTS_AT + id * SLOT_BYTES;
        put(bytes, at, &self.state.to_be_bytes());
        put(bytes, at + SLOT_STRIPES_AT, &self.stripes.to_be_bytes());
    }
}

/// `N` bytes at `at`; all constants lie inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn number(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

fn put(bytes: &mut [u8; HEADER_BYTES], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
