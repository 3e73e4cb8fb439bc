//! PBKDF2 (RFC 8018 §5.2) into secret memory.
//!
//! The chaining values pass over the stack, so the work runs under [`scrubbed`].

use secret::{Secret, scrubbed};

use super::within;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::limits::Limits;

/// Holds the iterations that a header demands against the caller's bound.
pub(crate) fn check(limits: &Limits, iterations: u32) -> Result<(), Error> {
    within("iterations", u64::from(iterations), 1, u64::from(limits.kdf_iterations))
}

/// Derives `out_len_bytes` bytes. The caller has checked the cost.
pub(crate) fn derive(
    hash: HashAlg,
    iterations: u32,
    salt: &[u8],
    passphrase: &Secret,
    out_len_bytes: usize,
) -> Result<Secret, Error> {
    Secret::fill_with(out_len_bytes, |out| {
        scrubbed(|| hash.pbkdf2(passphrase.expose(), salt, iterations, out));
        Ok(())
    })
}
