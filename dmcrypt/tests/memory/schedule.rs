//! AES key schedules written from the standard, apart from the code under test, and what XTS derives from them.
//!
//! Source: FIPS 197, 5.2 (expansion) and 5.3.5 (the inverse cipher's keys); IEEE 1619-2018, 5.2 (tweaks).

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};

pub(crate) type Block = [u8; 16];

/// a·b in AES's field of 256 elements.
fn product(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0);
    for bit in 0..8 {
        if b >> bit & 1 == 1 {
            product ^= a;
        }
        a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1b };
    }
    product
}

/// The S-box: the inverse, then the affine map.
fn substituted(byte: u8) -> u8 {
    let inverse = (1..=u8::MAX).find(|&candidate| product(byte, candidate) == 1).unwrap_or(0);
    (1..5).fold(inverse ^ 0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// Round keys for encryption.
pub(crate) fn encrypting(key: &[u8]) -> Vec<Block> {
    let key_words = key.len() / 4;
    let mut words: Vec<[u8; 4]> = key.as_chunks::<4>().0.to_vec();
    let mut round_constant = 1;
    for at in key_words..4 * (key_words + 7) {
        let mut next = words[at - 1];
        if at % key_words == 0 {
            next.rotate_left(1);
            next = next.map(substituted);
            next[0] ^= round_constant;
            round_constant = product(round_constant, 2);
        } else if key_words == 8 && at % 8 == 4 {
            next = next.map(substituted);
        }
        let before = words[at - key_words];
        words.push(std::array::from_fn(|i| next[i] ^ before[i]));
    }
    words.as_flattened().as_chunks::<16>().0.to_vec()
}

/// InvMixColumns of one round key.
fn unmixed(key: &Block) -> Block {
    std::array::from_fn(|at| {
        let column = &key[at / 4 * 4..][..4];
        let row = at % 4;
        [14, 11, 13, 9].iter().enumerate().fold(0, |sum, (i, &by)| sum ^ product(column[(row + i) % 4], by))
    })
}

/// Round keys as the equivalent inverse cipher uses them, in the order of encryption.
pub(crate) fn decrypting(key: &[u8]) -> Vec<Block> {
    let keys = encrypting(key);
    let last = keys.len() - 1;
    let middle = |at: usize| at != 0 && at != last;
    keys.iter().enumerate().map(|(at, key)| if middle(at) { unmixed(key) } else { *key }).collect()
}

/// AES of one block.
pub(crate) fn encrypted(key: &[u8], block: Block) -> Block {
    let mut block = block.into();
    match key.len() {
        16 => Aes128::new_from_slice(key).unwrap().encrypt_block(&mut block),
        24 => Aes192::new_from_slice(key).unwrap().encrypt_block(&mut block),
        _ => Aes256::new_from_slice(key).unwrap().encrypt_block(&mut block),
    }
    block.into()
}

/// T·x.
pub(crate) fn doubled(tweak: Block) -> Block {
    let tweak = u128::from_le_bytes(tweak);
    ((tweak << 1) ^ ((tweak >> 127) * 0x87)).to_le_bytes()
}

pub(crate) fn xor(a: Block, b: Block) -> Block {
    std::array::from_fn(|i| a[i] ^ b[i])
}

#[test]
fn vectors_of_fips_197() {
    let hex = |block: &Block| block.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let counting: Vec<u8> = (0..32).collect();
    // Appendix C.1 and C.3: the last round keys, and the first inner round key of the inverse cipher.
    assert_eq!(hex(&encrypting(&counting[..16])[10]), "13111d7fe3944a17f307a78b4d2b30c5");
    assert_eq!(hex(&decrypting(&counting[..16])[9]), "13aa29be9c8faff6f770f58000f7bf03");
    assert_eq!(hex(&encrypting(&counting)[14]), "24fc79ccbf0979e9371ac23c6d68de36");
    assert_eq!(encrypting(&counting[..24]).len(), 13);
}
