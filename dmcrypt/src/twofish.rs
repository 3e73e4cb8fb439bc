//! Twofish with full keying: g(X) as four lookups in tables that are made of the key.
//!
//! One round takes (a, b, c, d) to (c', d', a, b) with t0 = g(a), t1 = g(b <<< 8),
//! c' = (c ^ (t0 + t1 + K_2r+8)) >>> 1, d' = (d <<< 1) ^ (t0 + 2·t1 + K_2r+9). 16 rounds between two whitenings.
//! g(X) = h(X, S): each byte of X goes through q0 and q1 in turn with bytes of S between, then through the MDS matrix.
//!
//! The `twofish` crate evaluates h anew for every word, at 2 MiB/s; it is the oracle of the tests. The tables are 4 KiB, so
//! time depends on key and data through the cache, as in the kernel's code.
//!
//! Source: B. Schneier, J. Kelsey, D. Whiting, D. Wagner, C. Hall, N. Ferguson, "Twofish: A 128-Bit Block Cipher" (1998),
//! §4; names are theirs.

use cipher::consts::{U1, U16, U32};
use cipher::inout::InOut;
use cipher::{
    Block, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InvalidLength, Key, KeyInit, KeySizeUser,
    ParBlocksSizeUser,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The four-bit permutations t0 to t3 of q0 and of q1.
const T: [[[u8; 16]; 4]; 2] = [
    [
        [0x8, 0x1, 0x7, 0xd, 0x6, 0xf, 0x3, 0x2, 0x0, 0xb, 0x5, 0x9, 0xe, 0xc, 0xa, 0x4],
        [0xe, 0xc, 0xb, 0x8, 0x1, 0x2, 0x3, 0x5, 0xf, 0x4, 0xa, 0x6, 0x7, 0x0, 0x9, 0xd],
        [0xb, 0xa, 0x5, 0xe, 0x6, 0xd, 0x9, 0x0, 0xc, 0x8, 0xf, 0x3, 0x2, 0x4, 0x7, 0x1],
        [0xd, 0x7, 0xf, 0x4, 0x1, 0x2, 0x6, 0xe, 0x9, 0xb, 0x3, 0x0, 0x8, 0x5, 0xc, 0xa],
    ],
    [
        [0x2, 0x8, 0xb, 0xd, 0xf, 0x7, 0x6, 0xe, 0x3, 0x1, 0x9, 0x4, 0x0, 0xa, 0xc, 0x5],
        [0x1, 0xe, 0x2, 0xb, 0x4, 0xc, 0x3, 0x7, 0x6, 0xd, 0xa, 0x5, 0xf, 0x9, 0x0, 0x8],
        [0x4, 0xc, 0x7, 0x5, 0x1, 0x6, 0x9, 0xa, 0x0, 0xe, 0xd, 0x8, 0x2, 0xb, 0x3, 0xf],
        [0xb, 0x9, 0x5, 0x1, 0xc, 0x3, 0xd, 0xe, 0x6, 0x4, 0x7, 0xf, 0x2, 0x0, 0x8, 0xa],
    ],
];

/// Which q each byte goes through: before the bytes of the key words 3, 2, 1 and 0, and last.
const Q_ORDER: [[usize; 5]; 4] = [[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0]];

/// The columns of the MDS matrix.
const MDS: [[u8; 4]; 4] =
    [[0x01, 0x5b, 0xef, 0xef], [0xef, 0xef, 0x5b, 0x01], [0x5b, 0xef, 0x01, 0xef], [0x5b, 0x01, 0xef, 0x5b]];

/// The rows of the RS matrix.
const RS: [[u8; 8]; 4] = [
    [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
    [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
    [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
    [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
];

/// x^8 + x^6 + x^5 + x^3 + 1 and x^8 + x^6 + x^3 + x^2 + 1.
const MDS_POLYNOMIAL: u16 = 0x169;
const RS_POLYNOMIAL: u16 = 0x14d;

/// q0 and q1.
static Q: [[u8; 256]; 2] = [permutation(&T[0]), permutation(&T[1])];

/// A byte's share of the MDS product, by its place and value.
static MDS_PRODUCTS: [[u32; 256]; 4] = mds_products();

const fn permutation(t: &[[u8; 16]; 4]) -> [u8; 256] {
    let mut q = [0; 256];
    let mut x = 0;
    while x < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let (mut a, mut b) = ((x as u8) >> 4, (x as u8) & 15);
        let mut step = 0;
        while step < 4 {
            let turned = b >> 1 | (b & 1) << 3;
            (a, b) = (a ^ b, (a ^ turned ^ a << 3) & 15);
            (a, b) = (t[step][a as usize], t[step + 1][b as usize]);
            step += 2;
        }
        q[x] = b << 4 | a;
        x += 1;
    }
    q
}

const fn mds_products() -> [[u32; 256]; 4] {
    let mut products = [[0; 256]; 4];
    let mut column = 0;
    while column < 4 {
        let mut x = 0;
        while x < 256 {
            let mut bytes = [0; 4];
            let mut row = 0;
            while row < 4 {
                #[allow(clippy::cast_possible_truncation)] // below 256
                let byte = product(x as u8, MDS[column][row], MDS_POLYNOMIAL);
                bytes[row] = byte;
                row += 1;
            }
            products[column][x] = u32::from_le_bytes(bytes);
            x += 1;
        }
        column += 1;
    }
    products
}

/// a·b in the field of the polynomial, in the same time for all of them.
const fn product(a: u8, b: u8, polynomial: u16) -> u8 {
    let (mut a, mut sum, mut bit) = (a as u16, 0, 0);
    while bit < 8 {
        sum ^= a * (b as u16 >> bit & 1);
        a <<= 1;
        a ^= polynomial * (a >> 8);
        bit += 1;
    }
    #[allow(clippy::cast_possible_truncation)] // of degree below 8
    return sum as u8;
}

/// Twofish under one key of 16, 24 or 32 bytes; wiped on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Twofish {
    /// K_0 to K_39.
    subkeys: [u32; 40],
    /// h(X, S) for each byte of X.
    g: [[u32; 256]; 4],
}

/// What byte `place` of X gives in h(X, L). `words` are L, of two to four words, the last one first.
fn h_of_byte(place: usize, x: u8, words: &[[u8; 4]]) -> u32 {
    let order = &Q_ORDER[place][4 - words.len()..];
    let mut y = Q[order[0]][usize::from(x)];
    for (word, q) in words.iter().zip(&order[1..]) {
        y = Q[*q][usize::from(y ^ word[place])];
    }
    MDS_PRODUCTS[place][usize::from(y)]
}

/// h(X, L), where all bytes of X are `x`.
fn h(x: u8, words: &[[u8; 4]]) -> u32 {
    (0..4).fold(0, |sum, place| sum ^ h_of_byte(place, x, words))
}

/// The word of S that eight bytes of the key give.
fn reed_solomon(key: &[u8; 8]) -> [u8; 4] {
    RS.map(|row| row.iter().zip(key).fold(0, |sum, (by, byte)| sum ^ product(*byte, *by, RS_POLYNOMIAL)))
}

impl Twofish {
    /// `key` has 16, 24 or 32 bytes.
    fn of(key: &[u8]) -> Twofish {
        let mut twofish = Twofish { subkeys: [0; 40], g: [[0; 256]; 4] };
        // The words of M_e, of M_o and of S, the last one first as h uses them (S is in that order already).
        let (mut even, mut odd, mut s) = ([[0; 4]; 4], [[0; 4]; 4], [[0; 4]; 4]);
        let (pairs, _none) = key.as_chunks::<8>();
        let count = pairs.len();
        for (at, pair) in pairs.iter().enumerate() {
            even[count - 1 - at].copy_from_slice(&pair[..4]);
            odd[count - 1 - at].copy_from_slice(&pair[4..]);
            s[at] = reed_solomon(pair);
        }
        for (x, keys) in (0..).step_by(2).zip(twofish.subkeys.as_chunks_mut::<2>().0) {
            let a = h(x, &even[..count]);
            let b = h(x + 1, &odd[..count]).rotate_left(8);
            *keys = [a.wrapping_add(b), a.wrapping_add(b << 1).rotate_left(9)];
        }
        for (place, table) in twofish.g.iter_mut().enumerate() {
            for (x, entry) in (0..=u8::MAX).zip(table) {
                *entry = h_of_byte(place, x, &s[..count]);
            }
        }
        even.zeroize();
        odd.zeroize();
        s.zeroize();
        twofish
    }

    #[inline(always)]
    fn g(&self, x: u32) -> u32 {
        let [a, b, c, d] = x.to_le_bytes().map(usize::from);
        self.g[0][a] ^ self.g[1][b] ^ self.g[2][c] ^ self.g[3][d]
    }

    /// t0 + t1 and t0 + 2·t1, each with its key.
    #[inline(always)]
    fn f(&self, a: u32, b: u32, keys: &[u32; 2]) -> [u32; 2] {
        let (t0, t1) = (self.g(a), self.g(b.rotate_left(8)));
        let sum = t0.wrapping_add(t1);
        [sum.wrapping_add(keys[0]), sum.wrapping_add(t1).wrapping_add(keys[1])]
    }

    /// Keys of the rounds, two rounds each.
    #[inline(always)]
    fn round_keys(&self) -> &[[[u32; 2]; 2]] {
        self.subkeys[8..].as_chunks::<2>().0.as_chunks::<2>().0
    }
}

/// The words of a block, each xored with its key.
#[inline(always)]
fn whitened(block: &[u8; 16], keys: &[u32]) -> [u32; 4] {
    let (words, _none) = block.as_chunks::<4>();
    std::array::from_fn(|at| u32::from_le_bytes(words[at]) ^ keys[at])
}

impl KeySizeUser for Twofish {
    type KeySize = U32;
}

impl KeyInit for Twofish {
    fn new(key: &Key<Self>) -> Self {
        Twofish::of(key)
    }

    #[inline]
    fn new_from_slice(key: &[u8]) -> Result<Self, InvalidLength> {
        if matches!(key.len(), 16 | 24 | 32) { Ok(Twofish::of(key)) } else { Err(InvalidLength) }
    }
}

impl BlockSizeUser for Twofish {
    type BlockSize = U16;
}

impl ParBlocksSizeUser for Twofish {
    type ParBlocksSize = U1;
}

impl BlockCipherEncrypt for Twofish {
    #[inline]
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = Self::BlockSize>) {
        f.call(self);
    }
}

impl BlockCipherDecrypt for Twofish {
    #[inline]
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = Self::BlockSize>) {
        f.call(self);
    }
}

impl BlockCipherEncBackend for Twofish {
    #[inline]
    fn encrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut a, mut b, mut c, mut d] = whitened(block.get_in().into(), &self.subkeys[..4]);
        for [first, second] in self.round_keys() {
            let [f0, f1] = self.f(a, b, first);
            (c, d) = ((c ^ f0).rotate_right(1), d.rotate_left(1) ^ f1);
            let [f0, f1] = self.f(c, d, second);
            (a, b) = ((a ^ f0).rotate_right(1), b.rotate_left(1) ^ f1);
        }
        let out: &mut [u8; 16] = block.get_out().into();
        for ((bytes, word), key) in out.as_chunks_mut::<4>().0.iter_mut().zip([c, d, a, b]).zip(&self.subkeys[4..]) {
            *bytes = (word ^ key).to_le_bytes();
        }
    }
}

impl BlockCipherDecBackend for Twofish {
    #[inline]
    fn decrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut c, mut d, mut a, mut b] = whitened(block.get_in().into(), &self.subkeys[4..8]);
        for [first, second] in self.round_keys().iter().rev() {
            let [f0, f1] = self.f(c, d, second);
            (a, b) = (a.rotate_left(1) ^ f0, (b ^ f1).rotate_right(1));
            let [f0, f1] = self.f(a, b, first);
            (c, d) = (c.rotate_left(1) ^ f0, (d ^ f1).rotate_right(1));
        }
        let out: &mut [u8; 16] = block.get_out().into();
        for ((bytes, word), key) in out.as_chunks_mut::<4>().0.iter_mut().zip([a, b, c, d]).zip(&self.subkeys) {
            *bytes = (word ^ key).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cipher::BlockCipherEncrypt;
    use proptest::prelude::*;

    fn rounds_of<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>>(
        cipher: &C,
        block: [u8; 16],
    ) -> [[u8; 16]; 2] {
        let (mut encrypted, mut decrypted) = (block.into(), block.into());
        cipher.encrypt_block(&mut encrypted);
        cipher.decrypt_block(&mut decrypted);
        [encrypted.into(), decrypted.into()]
    }

    proptest! {
        #[test]
        fn it_is_the_twofish_of_the_crate(key: [u8; 32], key_words in 2_usize..=4, block: [u8; 16]) {
            let key = &key[..8 * key_words];
            let ours = rounds_of(&Twofish::new_from_slice(key).unwrap(), block);
            let theirs = rounds_of(&twofish::Twofish::new_from_slice(key).unwrap(), block);
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn subkeys_of_the_submission() {
        // ECB_IVAL.TXT, key of 192 bits: K_0, K_1 and K_39.
        let key: Vec<u8> =
            [0x0123_4567_89ab_cdef_u64, 0xfedc_ba98_7654_3210, 0x0011_2233_4455_6677].map(u64::to_be_bytes).concat();
        let twofish = Twofish::new_from_slice(&key).unwrap();
        assert_eq!(
            [twofish.subkeys[0], twofish.subkeys[1], twofish.subkeys[39]],
            [0x3839_4a24, 0xc36d_1175, 0x6a1a_d61e]
        );
    }

    #[test]
    fn other_key_lengths_are_refused() {
        for len_bytes in (0..=64).filter(|len_bytes| ![16, 24, 32].contains(len_bytes)) {
            assert!(Twofish::new_from_slice(&[0; 64][..len_bytes]).is_err());
        }
    }
}
