//! What the chaining modes need of a block cipher: blocks of 16 bytes, and a sibling for ESSIV.
//!
//! | cipher | crate | keys in bytes | standard |
//! |---|---|---|---|
//! | AES | `aes` | 16, 24, 32: one type each | FIPS 197 |
//! | Serpent | `serpent` | 16, 24, 32 | R. Anderson, E. Biham, L. Knudsen, "Serpent", NESSIE |
//! | Twofish | ours | 16, 24, 32 | B. Schneier et al., "Twofish: A 128-Bit Block Cipher" |
//! | Camellia | `camellia` | 16, 24, 32: one type each | RFC 3713 |
//!
//! Invariant: all of them wipe their round keys on drop (feature `zeroize` of the crates).

use aes::{Aes128, Aes192, Aes256, Aes256Enc};
use camellia::{Camellia128, Camellia192, Camellia256};
use cipher::consts::U16;
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};
use serpent::Serpent;
use zeroize::ZeroizeOnDrop;

use crate::twofish::Twofish;

/// A block cipher under one key.
pub(crate) trait BlockCipher:
    KeyInit
    + BlockCipherEncrypt
    + BlockCipherDecrypt
    + BlockSizeUser<BlockSize = U16>
    + ZeroizeOnDrop
    + Send
    + Sync
    + 'static
{
    /// The same cipher for keys of 32 bytes: what ESSIV with SHA-256 encrypts the sector number with.
    type Essiv: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + ZeroizeOnDrop + Send + Sync + 'static;
}

/// `C` under a key whose length was checked before. No `Result` with a cipher in it leaves this function: moving one goes
/// through registers that nobody wipes.
#[inline(always)]
pub(crate) fn keyed<C: KeyInit>(key: &[u8]) -> C {
    match C::new_from_slice(key) {
        Ok(cipher) => cipher,
        Err(_) => unreachable!("a key of {} bytes passed the check of its length", key.len()),
    }
}

impl BlockCipher for Aes128 {
    type Essiv = Aes256Enc;
}

impl BlockCipher for Aes192 {
    type Essiv = Aes256Enc;
}

impl BlockCipher for Aes256 {
    type Essiv = Aes256Enc;
}

impl BlockCipher for Serpent {
    type Essiv = Serpent;
}

impl BlockCipher for Twofish {
    type Essiv = Twofish;
}

impl BlockCipher for Camellia128 {
    type Essiv = Camellia256;
}

impl BlockCipher for Camellia192 {
    type Essiv = Camellia256;
}

impl BlockCipher for Camellia256 {
    type Essiv = Camellia256;
}
