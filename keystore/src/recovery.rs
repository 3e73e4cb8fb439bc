//! [`RecoveryKey`]: 160 random bits that a person can copy from paper, as the passphrase of the backups of keys.
//!
//! ```text
//! 4GJX-09ZK-… nine groups of four: 32 digits of five bits, then 4 digits of check
//! ```
//!
//! The digits are Crockford's base 32 (no I, L, O, U). The check is the first 20 bits of the SHA-256 of the 32 digits in
//! upper case: one wrong digit passes in one of a million cases. Read without regard to case, spaces and hyphens, with I
//! and L as 1 and O as 0. The passphrase of gpg is the text as it is printed, hyphens included.

use crate::Error;
use crate::master::fill_random;
use secret::{Secret, scrubbed};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const KEY_DIGITS: usize = 32;
const CHECK_DIGITS: usize = 4;
const GROUP: usize = 4;
const ALL_DIGITS: usize = KEY_DIGITS + CHECK_DIGITS;
const TEXT_BYTES: usize = ALL_DIGITS + ALL_DIGITS / GROUP - 1;
/// What is typed may have this many bytes, spaces and hyphens included.
const TYPED_BYTES_MAX: usize = 256;

/// A recovery key; its text is a secret.
#[derive(Debug)]
pub struct RecoveryKey(Secret);

impl RecoveryKey {
    /// A new random one.
    ///
    /// # Errors
    /// [`Error::Io`] without randomness, [`Error::Secret`].
    pub fn random() -> Result<RecoveryKey, Error> {
        let digits = Secret::fill_with(KEY_DIGITS, |bytes| {
            fill_random(bytes)?;
            // 256 is a multiple of 32: each digit has the same chance.
            bytes.iter_mut().for_each(|byte| *byte = DIGITS[usize::from(*byte % 32)]);
            Ok::<_, Error>(())
        })?;
        RecoveryKey::of_digits(&digits)
    }

    /// From what was typed, or from [`RecoveryKey::text`].
    ///
    /// # Errors
    /// [`Error::RecoveryKey`] says what is wrong, and no digit of it.
    pub fn parse(typed: &Secret) -> Result<RecoveryKey, Error> {
        let wrong = |problem| Err(Error::RecoveryKey { problem });
        if typed.len() > TYPED_BYTES_MAX {
            return wrong("it is too long");
        }
        let mut digits = Secret::zeroed(ALL_DIGITS)?;
        let mut filled = 0;
        for byte in typed.expose().iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'-') {
            let digit = match byte.to_ascii_uppercase() {
                b'I' | b'L' => b'1',
                b'O' => b'0',
                other => other,
            };
            if !DIGITS.contains(&digit) {
                return wrong("it has a character that no recovery key has");
            }
            let Some(place) = digits.expose_mut().get_mut(filled) else { return wrong("it has too many characters") };
            *place = digit;
            filled += 1;
        }
        if filled < ALL_DIGITS {
            return wrong("it has too few characters");
        }
        let key = RecoveryKey::of_digits(&Secret::copy_of(&digits.expose()[..KEY_DIGITS])?)?;
        let is_right = key.digits_are(digits.expose());
        if is_right { Ok(key) } else { wrong("its last group does not fit the others: a character is wrong") }
    }

    /// The text to print, and the passphrase of gpg.
    pub fn text(&self) -> &Secret {
        &self.0
    }

    /// Whether two are the same.
    pub fn is(&self, other: &RecoveryKey) -> bool {
        self.0.ct_eq(other.0.expose())
    }

    fn of_digits(digits: &Secret) -> Result<RecoveryKey, Error> {
        Ok(RecoveryKey(Secret::fill_with(TEXT_BYTES, |text| {
            scrubbed(|| {
                let hash = Sha256::digest(digits.expose());
                let bits = u32::from_be_bytes([0, hash[0], hash[1], hash[2]]) >> 4;
                let check = (0..CHECK_DIGITS).map(|at| DIGITS[(bits >> (15 - 5 * at) & 31) as usize]);
                let mut all = digits.expose().iter().copied().chain(check);
                for (at, place) in text.iter_mut().enumerate() {
                    *place = if at % (GROUP + 1) == GROUP { b'-' } else { all.next().unwrap_or(b'-') };
                }
            });
            Ok::<_, Error>(())
        })?))
    }

    fn digits_are(&self, digits: &[u8]) -> bool {
        let own = self.0.expose().iter().filter(|byte| **byte != b'-');
        own.zip(digits).fold(1_u8, |same, (own, typed)| same & own.ct_eq(typed).unwrap_u8()) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Result<RecoveryKey, Error> {
        RecoveryKey::parse(&Secret::copy_of(text.as_bytes()).unwrap())
    }

    fn shown(key: &RecoveryKey) -> String {
        String::from_utf8(key.text().expose().to_vec()).unwrap()
    }

    #[test]
    fn nine_groups_of_four_read_back_however_they_are_typed() {
        let key = RecoveryKey::random().unwrap();
        let text = shown(&key);
        assert!(text.len() == 44 && text.split('-').count() == 9 && text.split('-').all(|group| group.len() == 4));
        for variant in [
            text.clone(),
            text.to_lowercase(),
            text.replace('-', " "),
            format!(" {}\n", text.replace('-', "")),
            text.replace('1', "l").replace('0', "o"),
        ] {
            assert!(typed(&variant).unwrap().is(&key), "{variant}");
        }
        assert!(!RecoveryKey::random().unwrap().is(&key));
    }

    /// The check of a known key, so that it never changes: SHA-256 of 32 zeros begins with 84e0c0.
    #[test]
    fn the_check_is_the_start_of_sha_256() {
        let text = format!("{}GKGC", "0000-".repeat(8));
        assert_eq!(shown(&typed(&text).unwrap()), text);
    }

    #[test]
    fn a_wrong_missing_or_swapped_character_is_noticed() {
        let text = shown(&RecoveryKey::random().unwrap());
        for at in (0..text.len()).filter(|at| at % 5 != 4) {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'7' { b'8' } else { b'7' };
            assert!(typed(&String::from_utf8(wrong).unwrap()).is_err(), "{at}");
        }
        for wrong in ["", "0000", &text[1..], &format!("{text}0"), &text.replace('-', "_"), &"0".repeat(300)] {
            let error = typed(wrong).unwrap_err().to_string();
            assert!(error.starts_with("this is no recovery key") && !error.contains(&text[..9]), "{error}");
        }
    }
}
