//! [`Secret`]: a key or passphrase of fixed size in pages of its own.
//!
//! Invariants: the bytes live in [`crate::pages`] memory only, from the first byte to the wipe; there is no `Clone`, no
//! `Serialize`, no conversion to text, and `Debug` prints the word `Secret` alone, not even a length.

use crate::SecretError;
use crate::pages::Pages;
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Secret bytes: locked where allowed, left out of core dumps, zero in a child of fork, wiped on drop.
pub struct Secret {
    pages: Pages,
    len_bytes: usize,
}

impl Secret {
    /// `len_bytes` zero bytes.
    ///
    /// # Errors
    /// [`SecretError`] when the memory cannot be had or kept out of core dumps and children.
    pub fn zeroed(len_bytes: usize) -> Result<Secret, SecretError> {
        Ok(Secret { pages: Pages::new(len_bytes)?, len_bytes })
    }

    /// `len_bytes` bytes that `fill` writes in place.
    ///
    /// # Errors
    /// As [`Secret::zeroed`], and what `fill` returns; what it wrote until then is wiped.
    pub fn fill_with<E: From<SecretError>>(
        len_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Secret, E> {
        let mut secret = Secret::zeroed(len_bytes)?;
        fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// A copy of `bytes`, which the caller must wipe.
    ///
    /// # Errors
    /// As [`Secret::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Secret, SecretError> {
        let mut secret = Secret::zeroed(bytes.len())?;
        secret.expose_mut().copy_from_slice(bytes);
        Ok(secret)
    }

    /// The bytes. What is copied from here is no longer looked after.
    pub fn expose(&self) -> &[u8] {
        &self.pages.bytes()[..self.len_bytes]
    }

    /// The bytes, to write into.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.pages.bytes_mut()[..self.len_bytes]
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// The first `len_bytes` bytes; the cut tail is wiped. A longer length changes nothing.
    #[must_use]
    pub fn truncated(mut self, len_bytes: usize) -> Secret {
        if len_bytes < self.len_bytes {
            self.expose_mut()[len_bytes..].zeroize();
            self.len_bytes = len_bytes;
        }
        self
    }

    /// At least `len_bytes` bytes: the old ones, then zeros. The old pages are wiped if the bytes must move.
    pub(crate) fn grown(mut self, len_bytes: usize) -> Result<Secret, SecretError> {
        if len_bytes <= self.pages.usable_bytes() {
            // Bytes behind the length are zero: fresh pages are, and `truncated` wipes.
            self.len_bytes = self.len_bytes.max(len_bytes);
            return Ok(self);
        }
        let mut longer = Secret::zeroed(len_bytes)?;
        longer.expose_mut()[..self.len_bytes].copy_from_slice(self.expose());
        Ok(longer)
    }

    /// Compares in a time that depends on the lengths only.
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        self.expose().ct_eq(other).into()
    }

    /// Whether the bytes cannot be swapped out; false where `RLIMIT_MEMLOCK` is used up.
    pub fn is_locked(&self) -> bool {
        self.pages.is_locked()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::WIPED_ON_DROP;

    /// The `VmFlags` words of the mapping that holds `address`, from /proc/self/smaps.
    fn vm_flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds = range.and_then(|(low, high)| {
                Some((usize::from_str_radix(low, 16).ok()?, usize::from_str_radix(high, 16).ok()?))
            });
            if let Some((low, high)) = bounds {
                inside = (low..high).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        Vec::new()
    }

    #[test]
    fn the_kernel_says_locked_undumped_and_wiped_on_fork() {
        let secret = Secret::copy_of(b"a passphrase").unwrap();
        let flags = vm_flags(secret.expose().as_ptr().addr());
        assert!(secret.is_locked(), "one page fits every RLIMIT_MEMLOCK");
        for flag in ["lo", "dd", "wf", "rd", "wr"] {
            assert!(flags.iter().any(|seen| seen == flag), "{flag} is missing from {flags:?}");
        }
    }

    #[test]
    fn drop_wipes() {
        let secret = Secret::copy_of(&[0xff; 64]).unwrap();
        WIPED_ON_DROP.set(None);
        drop(secret);
        assert_eq!(WIPED_ON_DROP.get(), Some(true));
    }

    #[test]
    fn truncation_wipes_the_tail_in_place() {
        let secret = Secret::copy_of(b"0123456789").unwrap().truncated(4);
        assert_eq!(secret.expose(), b"0123");
        assert!(secret.pages.bytes()[4..].iter().all(|&byte| byte == 0));
        assert_eq!(secret.truncated(400).len(), 4);
    }

    #[test]
    fn growing_keeps_the_bytes_and_adds_zeros() {
        let secret = Secret::copy_of(b"abc").unwrap().grown(10).unwrap();
        assert_eq!(secret.expose(), b"abc\0\0\0\0\0\0\0");
        let secret = secret.grown(5000).unwrap();
        assert_eq!((&secret.expose()[..4], secret.len()), (&b"abc\0"[..], 5000));
    }

    #[test]
    fn a_failed_fill_gives_no_secret_and_wipes() {
        #[derive(Debug, PartialEq)]
        struct Refused;
        impl From<SecretError> for Refused {
            fn from(_: SecretError) -> Refused {
                Refused
            }
        }
        WIPED_ON_DROP.set(None);
        let result = Secret::fill_with(16, |bytes| {
            bytes.fill(1);
            Err(Refused)
        });
        assert_eq!(result.map(|_| ()), Err(Refused));
        assert_eq!(WIPED_ON_DROP.get(), Some(true));
    }

    #[test]
    fn debug_prints_no_byte_and_no_length() {
        let secret = Secret::copy_of(b"hunter2").unwrap();
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret Secret");
    }

    #[test]
    fn equality_is_by_content_and_length() {
        let secret = Secret::copy_of(b"same").unwrap();
        assert!(secret.ct_eq(b"same"));
        assert!(!secret.ct_eq(b"Same") && !secret.ct_eq(b"sam") && !secret.ct_eq(b"samee"));
        assert!(Secret::zeroed(0).unwrap().ct_eq(b"") && Secret::zeroed(0).unwrap().is_empty());
    }
}
