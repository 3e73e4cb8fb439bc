//! Every bound on what is read from a store or asked of it.

/// Bytes of a volume's key: as long as the key of aes-xts-plain64, and more than PBKDF2 keeps.
pub const VOLUME_KEY_BYTES: usize = 64;
/// The most a sealed file may hold.
pub const SEALED_BYTES_MAX: usize = 64 << 10;
/// The least a master secret must have.
pub const MASTER_BYTES_MIN: usize = 32;
/// The most a master secret may have.
pub const MASTER_BYTES_MAX: usize = 8 << 10;
/// The most `key_metadata.json` may have.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// Keys in a store.
pub const KEYS_MAX: usize = 256;
/// Generations of a key that the metadata keeps; wiped ones beyond [`WIPED_KEPT`] are forgotten.
pub const GENERATIONS_MAX: usize = 128;
/// Wiped generations that the metadata keeps per key.
pub const WIPED_KEPT: usize = 16;
/// Small values in a store.
pub const VALUES_MAX: usize = 1024;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Files that a folder may hold before it is not listed any more.
pub const FOLDER_FILES_MAX: usize = 100_000;
/// Days of a policy: a hundred years.
pub const DAYS_MAX: u32 = 36_525;
/// Turns that one rotation may take, each of them a step of its journal.
pub const ROTATION_TURNS_MAX: u32 = 32;
/// Argon2id for a master passphrase: memory at most, in KiB.
pub const ARGON2_MEMORY_KIB_MAX: u32 = 4 << 20;
/// Argon2id for a master passphrase: passes at most.
pub const ARGON2_PASSES_MAX: u32 = 64;
/// Argon2id for a master passphrase: lanes at most.
pub const ARGON2_LANES_MAX: u32 = 16;
/// The most a backup of keys may hold before it is encrypted.
pub const BACKUP_BYTES_MAX: usize = 16 << 20;

/// IEEE 1619 gives the security of XTS for at most 2⁴⁴ blocks of 16 bytes under one key: 256 TiB.
pub const IEEE_1619_BYTES_MAX: u128 = 1 << 48;
