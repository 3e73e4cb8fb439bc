//! Userspace dm-crypt: the kernel's cipher strings, IV generators and sector ciphers, pure bytes in, bytes out.
//!
//! A [`CipherSpec`] names cipher, chaining mode and IV generator as dm-crypt does (`aes-xts-plain64`); [`build`] joins
//! it with a key and a sector size into a [`SectorCipher`], which is infallible from then on. No I/O, no allocation
//! after `build`, no state but the round keys, which lie in locked memory and are wiped on drop.
//!
//! Sources: Linux `Documentation/admin-guide/device-mapper/dm-crypt.rst`; IEEE 1619-2018 (XTS-AES); NIST SP 800-38A
//! (CBC); FIPS 197 (AES).
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
mod cbc;
mod error;
mod iv;
mod kernel;
mod lanes;
mod sector;
mod spec;
mod tweak;
mod wipe;
mod xts;

pub use error::CipherError;
pub use kernel::{Kernel, chosen_kernel, kernel, kernel_and_reason, use_kernel};
pub use sector::{SectorCipher, SectorSize};
pub use spec::{CipherSpec, EssivHash, Iv, Mode};

use aes::{Aes128, Aes192, Aes256};

/// Joins a cipher string, a key and a sector size into a cipher that is ready for use.
///
/// `key` is used whole: XTS takes 32 or 64 bytes (data key, then tweak key, each half of it), CBC takes 16, 24 or 32.
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
    let iv = spec.iv();
    #[cfg(target_arch = "x86_64")]
    if let (Mode::Xts, 32 | 64) = (spec.mode(), key.len()) {
        use arch::{Xmm, Xts, Ymm, Zmm};
        match (kernel, Zmm::detect(), Ymm::detect(), Xmm::detect()) {
            (Kernel::Vaes512, Some(zmm), _, _) => return Ok(Box::new(Xts::new(zmm, key, iv, sector_size)?)),
            (Kernel::Vaes256, _, Some(ymm), _) => return Ok(Box::new(Xts::new(ymm, key, iv, sector_size)?)),
            (Kernel::AesNi, _, _, Some(xmm)) => return Ok(Box::new(Xts::new(xmm, key, iv, sector_size)?)),
            _ => {}
        }
    }
    Ok(match (spec.mode(), key.len()) {
        (Mode::Xts, 32) => Box::new(xts::Xts::<Aes128>::new(key, iv, sector_size)?),
        (Mode::Xts, 64) => Box::new(xts::Xts::<Aes256>::new(key, iv, sector_size)?),
        (Mode::Cbc, 16) => Box::new(cbc::Cbc::<Aes128>::new(key, iv, sector_size)?),
        (Mode::Cbc, 24) => Box::new(cbc::Cbc::<Aes192>::new(key, iv, sector_size)?),
        (Mode::Cbc, 32) => Box::new(cbc::Cbc::<Aes256>::new(key, iv, sector_size)?),
        (Mode::Xts | Mode::Cbc, got_bytes) => {
            return Err(CipherError::KeySize { spec: spec.to_string(), got_bytes, allowed: spec.key_sizes() });
        }
    })
}
