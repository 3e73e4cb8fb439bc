//! An OpenPGP message that a passphrase opens, with stock gpg: the outside of a backup of keys.
//!
//! ```text
//! SKESK v4: AES-256, iterated and salted S2K with SHA-256        RFC 9580 5.3.1, 3.7.1.3
//! SEIPD v1: AES-256 in CFB, over 16 random bytes and the last 2 of them again,   5.13.1
//!           a literal data packet, a modification detection code (SHA-1)
//! ```
//!
//! Version 1 of the encrypted packet, as gpg 2.2 does not read version 2. Written here and not by a crate, as the plaintext
//! is keys: it stays in locked memory from end to end, and is 200 lines of format around `aes`, `sha1` and `sha2`.
//!
//! Invariants: the passphrase has 160 random bits, so the count of the S2K is not what protects it; opening hands out
//! nothing before the detection code was held, and takes only what [`seal`] writes.

use crate::master::fill_random;
use crate::{Error, Timestamp};
use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use secret::{Secret, scrubbed};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const BLOCK: usize = 16;
const AES_256: u8 = 9;
const SHA_256: u8 = 8;
const S2K_ITERATED: u8 = 3;
const SALT_BYTES: usize = 8;
/// Coded count 0x60 is 65536 bytes.
const COUNT_CODE: u8 = 0x60;
const COUNT_BYTES: usize = 65_536;
/// New-format packet tags: 0xc0 and the number.
const SKESK: u8 = 0xc3;
const SEIPD: u8 = 0xd2;
const LITERAL: u8 = 0xcb;
const DETECTION: [u8; 2] = [0xd3, 20];
const DETECTION_BYTES: usize = 2 + 20;
/// Version, cipher, S2K kind, hash, salt, count.
const SKESK_BYTES: usize = 4 + SALT_BYTES + 1;
/// Tag and five bytes of length.
const LONG_HEADER: usize = 6;
/// What comes before the first block of content: the random block and its last two bytes.
const PREFIX: usize = BLOCK + 2;

/// Iterated and salted S2K: SHA-256 over salt and passphrase, again and again, [`COUNT_BYTES`] in all.
fn passphrase_key(passphrase: &Secret, salt: &[u8]) -> Result<Secret, Error> {
    Secret::fill_with(32, |key| {
        scrubbed(|| {
            let mut hash = Sha256::new();
            let round = salt.len() + passphrase.len();
            let mut left = COUNT_BYTES.max(round);
            while left > 0 {
                for part in [salt, passphrase.expose()] {
                    let taken = part.len().min(left);
                    hash.update(&part[..taken]);
                    left -= taken;
                }
            }
            key.copy_from_slice(&hash.finalize());
        });
        Ok(())
    })
}

/// CFB over whole bytes, in place, from a zero IV: no resynchronisation, as version 1 of the packet has none.
fn cfb(key: &Secret, data: &mut [u8], encrypt: bool) -> Result<(), Error> {
    scrubbed(|| {
        let cipher = Aes256::new_from_slice(key.expose()).map_err(|_| Error::OutOfBounds {
            field: "the key of AES-256",
            value: 0,
            least: 32,
            most: 32,
        })?;
        let mut register = aes::Block::default();
        for block in data.chunks_mut(BLOCK) {
            cipher.encrypt_block(&mut register);
            for (byte, stream) in block.iter_mut().zip(register.iter_mut()) {
                let before = *byte;
                *byte ^= *stream;
                *stream = if encrypt { *byte } else { before };
            }
        }
        Ok(())
    })
}

fn long_header(tag: u8, len_bytes: usize) -> [u8; LONG_HEADER] {
    let [a, b, c, d] = u32::try_from(len_bytes).unwrap_or(u32::MAX).to_be_bytes();
    [tag, 0xff, a, b, c, d]
}

/// Literal data: binary, a name, a time, the content.
fn literal_head(name: &str, now: Timestamp, len_bytes: usize) -> Vec<u8> {
    let name = &name.as_bytes()[..name.len().min(255)];
    let mut head = long_header(LITERAL, 2 + name.len() + 4 + len_bytes).to_vec();
    head.extend([b'b', u8::try_from(name.len()).unwrap_or(u8::MAX)]);
    head.extend(name);
    head.extend(u32::try_from(now.seconds()).unwrap_or(u32::MAX).to_be_bytes());
    head
}

/// The message that holds `content` as file `name`, for `passphrase`.
pub(crate) fn seal(passphrase: &Secret, name: &str, content: &Secret, now: Timestamp) -> Result<Vec<u8>, Error> {
    let mut random = [0; SALT_BYTES];
    fill_random(&mut random)?;
    let head = literal_head(name, now, content.len());
    let body_bytes = PREFIX + head.len() + content.len() + DETECTION_BYTES;
    let mut body = Secret::fill_with(body_bytes, |body| {
        fill_random(&mut body[..BLOCK])?;
        body.copy_within(BLOCK - 2..BLOCK, BLOCK);
        let content_at = PREFIX + head.len();
        body[PREFIX..content_at].copy_from_slice(&head);
        body[content_at..content_at + content.len()].copy_from_slice(content.expose());
        let code_at = body_bytes - DETECTION_BYTES;
        body[code_at..code_at + 2].copy_from_slice(&DETECTION);
        let code = scrubbed(|| Sha1::digest(&body[..code_at + 2]));
        body[code_at + 2..].copy_from_slice(&code);
        Ok::<_, Error>(())
    })?;
    cfb(&passphrase_key(passphrase, &random)?, body.expose_mut(), true)?;
    let mut message = vec![SKESK, u8::try_from(SKESK_BYTES).unwrap_or(0), 4, AES_256, S2K_ITERATED, SHA_256];
    message.extend(random);
    message.push(COUNT_CODE);
    message.extend(long_header(SEIPD, 1 + body_bytes));
    message.push(1);
    message.extend(body.expose());
    Ok(message)
}

/// The content of a message that [`seal`] wrote; `None` if the passphrase is wrong, the message damaged or another's.
pub(crate) fn open(passphrase: &Secret, message: &[u8]) -> Result<Option<Secret>, Error> {
    let skesk_end = 2 + SKESK_BYTES;
    let body_at = skesk_end + LONG_HEADER + 1;
    let start = [SKESK, u8::try_from(SKESK_BYTES).unwrap_or(0), 4, AES_256, S2K_ITERATED, SHA_256];
    let literal_least = PREFIX + literal_head("", Timestamp::from_seconds(0), 0).len() + DETECTION_BYTES;
    if message.len() < body_at + literal_least || message[..6] != start || message[skesk_end - 1] != COUNT_CODE {
        return Ok(None);
    }
    let (packet, body) = (&message[skesk_end..body_at], &message[body_at..]);
    if packet[..LONG_HEADER] != long_header(SEIPD, 1 + body.len()) || packet[LONG_HEADER] != 1 {
        return Ok(None);
    }
    let key = passphrase_key(passphrase, &message[6..6 + SALT_BYTES])?;
    let mut body = Secret::copy_of(body)?;
    cfb(&key, body.expose_mut(), false)?;
    let (held, code) = body.expose().split_at(body.len() - 20);
    if !bool::from(scrubbed(|| Sha1::digest(held)).ct_eq(code)) || !held.ends_with(&DETECTION) {
        return Ok(None);
    }
    let literal = &held[PREFIX..held.len() - 2];
    let name_bytes = usize::from(literal[LONG_HEADER + 1]);
    let content_at = LONG_HEADER + 2 + name_bytes + 4;
    let fits = literal[..LONG_HEADER] == long_header(LITERAL, literal.len() - LONG_HEADER);
    if !fits || content_at > literal.len() {
        return Ok(None);
    }
    Ok(Some(Secret::copy_of(&literal[content_at..])?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(bytes: &[u8]) -> Secret {
        Secret::copy_of(bytes).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_its_passphrase_alone() {
        for len_bytes in [0, 1, 15, 16, 17, 1000, 100_000] {
            let content = secret(&vec![0x42; len_bytes]);
            let message = seal(&secret(b"pass"), "keys.tar.gz", &content, Timestamp::from_seconds(5)).unwrap();
            let opened = open(&secret(b"pass"), &message).unwrap().unwrap();
            assert!(opened.ct_eq(content.expose()), "{len_bytes}");
            assert!(open(&secret(b"Pass"), &message).unwrap().is_none());
            assert!(len_bytes < 16 || !message.windows(4).any(|window| window == [0x42; 4]));
        }
    }

    #[test]
    fn no_changed_bit_is_let_through() {
        let message = seal(&secret(b"p"), "n", &secret(b"content"), Timestamp::from_seconds(5)).unwrap();
        for at in 0..message.len() * 8 {
            let mut changed = message.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(open(&secret(b"p"), &changed).unwrap().is_none(), "bit {at}");
        }
        for end in 0..message.len() {
            assert!(open(&secret(b"p"), &message[..end]).unwrap().is_none());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nonsense_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&secret(b"p"), &bytes).unwrap().is_none());
        }
    }
}
