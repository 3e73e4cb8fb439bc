//! [`ChainKey`]: the key of one record, which becomes that of the next.
//!
//! ```text
//! mac(n)  = HMAC-SHA256(k_n, "luksctl audit 1 record\0" || body of record n)
//! k_{n+1} = HMAC-SHA256(k_n, "luksctl audit 1 next\0")
//! chain   = HMAC-SHA256(k_0, "luksctl audit 1 chain\0"), its first 8 bytes: the name that the journal has for the chain
//! ```
//!
//! RFC 2104 with SHA-256, 32-byte keys. Invariant: there is one key at a time, in locked memory; going on overwrites it.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secret::{Secret, scrubbed};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::VolumesError;

/// Length of a key and of a MAC.
pub(crate) const KEY_BYTES: usize = 32;
/// Length of a block of SHA-256, to which HMAC pads its key.
const BLOCK_BYTES: usize = 64;
/// What the MAC of a record begins with.
const RECORD: &[u8] = b"luksctl audit 1 record\0";

/// The key of one record.
pub(crate) struct ChainKey(Secret);

impl ChainKey {
    /// A key from its bytes.
    pub(crate) fn of(bytes: &[u8]) -> Result<ChainKey, VolumesError> {
        if bytes.len() != KEY_BYTES {
            return Err(VolumesError::AuditSeed { len_bytes: bytes.len() });
        }
        Ok(ChainKey(Secret::copy_of(bytes)?))
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.expose()
    }

    fn hmac(&self, label: &[u8], body: &[u8], out: &mut [u8]) {
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        block[..KEY_BYTES].copy_from_slice(self.0.expose());
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        mac.update(label);
        mac.update(body);
        out.copy_from_slice(&mac.finalize().into_bytes());
    }

    /// The MAC of a record.
    pub(crate) fn mac(&self, body: &[u8]) -> [u8; KEY_BYTES] {
        let mut mac = [0; KEY_BYTES];
        scrubbed(|| self.hmac(RECORD, body, &mut mac));
        mac
    }

    /// Becomes the key of the next record; the one before is gone.
    pub(crate) fn advance(&mut self) {
        scrubbed(|| self.step());
    }

    /// Becomes the key of the record so many further on.
    pub(crate) fn advance_by(&mut self, count: u64) {
        scrubbed(|| (0..count).for_each(|_| self.step()));
    }

    /// One step, on a stack that the caller overwrites.
    fn step(&mut self) {
        let mut next = Zeroizing::new([0; KEY_BYTES]);
        self.hmac(b"luksctl audit 1 next\0", &[], &mut *next);
        self.0.expose_mut().copy_from_slice(&*next);
    }

    /// Runs `check` for each of these numbers, in ascending order, with the MAC function of its key; the stack is
    /// overwritten once, at the end.
    pub(crate) fn for_each<T>(
        &mut self,
        numbered: &[(u64, T)],
        mut check: impl FnMut(&T, &dyn Fn(&[u8]) -> [u8; KEY_BYTES]),
    ) {
        scrubbed(|| {
            let mut at = 0;
            for (n, item) in numbered {
                (at..*n).for_each(|_| self.step());
                at = (*n).max(at);
                check(item, &|body| {
                    let mut mac = [0; KEY_BYTES];
                    self.hmac(RECORD, body, &mut mac);
                    mac
                });
            }
        });
    }

    /// The chain's name, of its first key.
    pub(crate) fn chain(&self) -> String {
        let mut name = [0; KEY_BYTES];
        scrubbed(|| self.hmac(b"luksctl audit 1 chain\0", &[], &mut name));
        super::hex(&name[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_on_as_documented() {
        // python3: hmac.new(k, label, "sha256") with k = bytes(32).
        let mut key = ChainKey::of(&[0; 32]).unwrap();
        let first = key.mac(b"body");
        key.advance();
        assert_ne!(key.mac(b"body"), first);
        assert_eq!(super::super::hex(key.bytes()), NEXT_OF_ZEROS);
        assert!(ChainKey::of(&[0; 31]).is_err());
    }

    const NEXT_OF_ZEROS: &str = "d23eecb74e52da4a5c26c84dd27d616aba08446fcf6bc4a6ec6f8fdbaff5c1c1";
}
