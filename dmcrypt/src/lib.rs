//! Userspace dm-crypt: the kernel's cipher strings, IV generators and sector ciphers, pure bytes in, bytes out.
//!
//! A [`CipherSpec`] names cipher, chaining mode and IV generator as dm-crypt does (`aes-xts-plain64`); [`build`] joins
//! it with a key and a sector size into a [`SectorCipher`], which is infallible from then on. No I/O, no allocation
//! after `build`, no state but the round keys, which lie in locked memory and are wiped on drop.
//!
//! AES runs on the kernels of `arch`; Serpent, Twofish and Camellia, for volumes in the wild, on plain code that is many
//! times slower.
//!
//! Sources: Linux `Documentation/admin-guide/device-mapper/dm-crypt.rst`; IEEE 1619-2018 (XTS); NIST SP 800-38A
//! (CBC); FIPS 197 (AES); the other ciphers' in `block_cipher`.
//!
//! ```
//! use dmcrypt::{CipherSpec, SectorSize};
//!
//! let spec = CipherSpec::parse("aes-xts-plain64")?;
//! let cipher = dmcrypt::build(&spec, &[7; 64], SectorSize::S512)?;
//! let mut sectors = vec![0; 4096];
//! cipher.encrypt_in_place(0, &mut sectors);
//! cipher.decrypt_in_place(0, &mut sectors);
//! assert_eq!(sectors, vec![0; 4096]);
//! # Ok::<(), dmcrypt::CipherError>(())
//! ```
#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod arch;
mod block_cipher;
mod cbc;
mod error;
mod iv;
mod kernel;
mod known;
mod lanes;
mod sector;
mod spec;
mod tweak;
mod twofish;
mod wipe;
mod xts;

pub use error::CipherError;
pub use kernel::{Kernel, chosen_kernel, kernel, kernel_and_reason, use_kernel};
pub use sector::{SectorCipher, SectorSize};
pub use spec::{Algorithm, CipherSpec, EssivHash, Iv, Mode};

use crate::twofish::Twofish;
use aes::{Aes128, Aes192, Aes256};
use block_cipher::BlockCipher;
use camellia::{Camellia128, Camellia192, Camellia256};
use serpent::Serpent;

/// Joins a cipher string, a key and a sector size into a cipher that is ready for use.
///
/// `key` is used whole: CBC takes 16, 24 or 32 bytes, XTS twice as many (data key, then tweak key, each half of it).
/// The two halves of an XTS key may be equal. The caller keeps `key` and wipes it; the round keys derived from it live
/// in locked memory of their own.
///
/// # Errors
/// [`CipherError::KeySize`] when the key's length does not fit the string, [`CipherError::Secret`] when there is no
/// memory for the round keys.
pub fn build(spec: &CipherSpec, key: &[u8], sector_size: SectorSize) -> Result<Box<dyn SectorCipher>, CipherError> {
    build_with(kernel(), spec, key, sector_size)
}

/// [`build`] on a kernel of the caller's choice.
///
/// # Errors
/// As [`build`], and [`CipherError::KernelUnavailable`].
pub fn build_with(
    kernel: Kernel,
    spec: &CipherSpec,
    key: &[u8],
    sector_size: SectorSize,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    kernel::check(kernel)?;
    if !spec.key_sizes().contains(&key.len()) {
        return Err(spec.wrong_key_size(key));
    }
    #[cfg(target_arch = "x86_64")]
    if let (Algorithm::Aes, Mode::Xts, 32 | 64) = (spec.algorithm(), spec.mode(), key.len()) {
        use arch::{Xmm, Xts, Ymm, Zmm};
        match (kernel, Zmm::detect(), Ymm::detect(), Xmm::detect()) {
            (Kernel::Vaes512, Some(zmm), _, _) => return Ok(Box::new(Xts::new(zmm, spec, key, sector_size)?)),
            (Kernel::Vaes256, _, Some(ymm), _) => return Ok(Box::new(Xts::new(ymm, spec, key, sector_size)?)),
            (Kernel::AesNi, _, _, Some(xmm)) => return Ok(Box::new(Xts::new(xmm, spec, key, sector_size)?)),
            _ => {}
        }
    }
    let halves = if spec.mode() == Mode::Xts { 2 } else { 1 };
    match (spec.algorithm(), key.len() / halves) {
        (Algorithm::Aes, 16) => chained::<Aes128>(spec, key, sector_size),
        (Algorithm::Aes, 24) => chained::<Aes192>(spec, key, sector_size),
        (Algorithm::Aes, _) => chained::<Aes256>(spec, key, sector_size),
        (Algorithm::Serpent, _) => chained::<Serpent>(spec, key, sector_size),
        (Algorithm::Twofish, _) => chained::<Twofish>(spec, key, sector_size),
        (Algorithm::Camellia, 16) => chained::<Camellia128>(spec, key, sector_size),
        (Algorithm::Camellia, 24) => chained::<Camellia192>(spec, key, sector_size),
        (Algorithm::Camellia, _) => chained::<Camellia256>(spec, key, sector_size),
    }
}

/// The block cipher `C` in the string's mode.
fn chained<C: BlockCipher>(
    spec: &CipherSpec,
    key: &[u8],
    sector_size: SectorSize,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    Ok(match spec.mode() {
        Mode::Xts => Box::new(xts::Xts::<C>::new(spec, key, sector_size)?),
        Mode::Cbc => Box::new(cbc::Cbc::<C>::new(spec, key, sector_size)?),
    })
}
