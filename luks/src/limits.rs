//! Every bound on what an image or a caller may ask for, in one place.
//!
//! A header is hostile input: its numbers are compared with these bounds before memory is taken or work begins.
//! The format's own constants stand here too, so that a size is written down once.

use std::time::Duration;

use block::Bytes;

/// Length of one binary header (LUKS2 specification, section 3.1).
pub const BINARY_HEADER: usize = 4096;
/// The part of the binary header that carries data.
pub const BINARY_HEADER_USED: usize = 512;
/// The nine sizes one metadata copy may have: binary header and JSON area together.
pub const METADATA_SIZES: [Bytes; 9] = [
    Bytes(0x4000),
    Bytes(0x8000),
    Bytes(0x1_0000),
    Bytes(0x2_0000),
    Bytes(0x4_0000),
    Bytes(0x8_0000),
    Bytes(0x10_0000),
    Bytes(0x20_0000),
    Bytes(0x40_0000),
];
/// Smallest metadata copy.
pub const METADATA_SIZE_MIN: Bytes = METADATA_SIZES[0];
/// Largest metadata copy.
pub const METADATA_SIZE_MAX: Bytes = METADATA_SIZES[8];
/// Largest keyslots area.
pub const KEYSLOTS_SIZE_MAX: Bytes = Bytes(128 << 20);
/// The keyslots area is a multiple of this.
pub const KEYSLOTS_SIZE_UNIT: Bytes = Bytes(4096);
/// Levels of nesting that JSON metadata may have.
pub const JSON_DEPTH: usize = 32;
/// Keyslots have ids 0–31.
pub const KEYSLOTS: u32 = 32;
/// Tokens have ids 0–31.
pub const TOKENS: u32 = 32;
/// Segments have ids 0–31.
pub const SEGMENTS: u32 = 32;
/// New digests get ids 0–7.
pub const DIGESTS: u32 = 8;

/// Largest volume key of a LUKS1 header, as that of LUKS2 by default.
pub const LUKS1_KEY_BYTES_MAX: u32 = 512;

/// PBKDF2 iterations that are done for a header without being asked to, and the most that a new keyslot gets: 2^30. A machine
/// that does 10 million a second takes 107 s for them, fifty times cryptsetup's target; and some minutes are the most that
/// one lying keyslot may cost.
pub const PBKDF2_ITERATIONS_MAX: u32 = 1 << 30;

/// Most damaged stretches of keyslot areas that one look lists.
pub const AREA_FINDINGS_MAX: usize = 1024;

/// Bounds that a caller may move. The defaults open every image that cryptsetup makes and stop a hostile header
/// from costing more than a strong machine can give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most memory one Argon2 derivation may ask for, in KiB. Default 4 GiB, the most that cryptsetup writes.
    pub kdf_memory_kib: u32,
    /// Most passes of one Argon2 derivation.
    pub kdf_time: u32,
    /// Most lanes of one Argon2 derivation.
    pub kdf_lanes: u32,
    /// Most PBKDF2 iterations of one derivation. Default [`PBKDF2_ITERATIONS_MAX`].
    pub kdf_iterations: u32,
    /// Most Argon2 work of one derivation: memory × passes, in KiB.
    pub kdf_total_work_kib: u64,
    /// Largest JSON area that is read.
    pub json_bytes: u64,
    /// Largest volume key.
    pub key_bytes: u32,
    /// Largest keyslot area that is read into memory.
    pub keyslot_area_bytes: u64,
    /// How long to wait for the metadata lock.
    pub lock_wait: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            kdf_memory_kib: 4 << 20,
            kdf_time: 10_000,
            kdf_lanes: 64,
            kdf_iterations: PBKDF2_ITERATIONS_MAX,
            kdf_total_work_kib: 1 << 32,
            json_bytes: METADATA_SIZE_MAX.0,
            key_bytes: 512,
            keyslot_area_bytes: 4 << 20,
            lock_wait: Duration::from_secs(10),
        }
    }
}
