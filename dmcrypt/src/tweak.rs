//! XTS tweaks: T_j = T_0 · x^j in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, little-endian (IEEE 1619-2018, 5.2).
//!
//! Eight tweaks are kept side by side and all move by x^8 at a time, so that no chain runs through every block and the
//! compiler can use whatever vectors the surrounding code was compiled for.

use crate::lanes::Block;

/// Tweaks computed side by side.
const LANES: usize = 8;

/// Writes T, T·x, T·x², … to `tweaks`, whose length is a multiple of 8 (any sector's is: at least 32 blocks).
#[inline(always)]
pub(crate) fn expand(first: &Block, tweaks: &mut [Block]) {
    let (mut low, mut high) = lanes(u128::from_le_bytes((*first).into()));
    for group in tweaks.chunks_exact_mut(LANES) {
        for ((tweak, low), high) in group.iter_mut().zip(&low).zip(&high) {
            tweak[..8].copy_from_slice(&low.to_le_bytes());
            tweak[8..].copy_from_slice(&high.to_le_bytes());
        }
        for (low, high) in low.iter_mut().zip(&mut high) {
            let carry = *high >> (64 - LANES);
            *high = *high << LANES | *low >> (64 - LANES);
            *low = *low << LANES ^ reduce(carry);
        }
    }
}

/// Low and high halves of T·x^0 … T·x^7.
#[inline(always)]
fn lanes(first: u128) -> ([u64; LANES], [u64; LANES]) {
    let (mut low, mut high) = ([0; LANES], [0; LANES]);
    let [first_low, first_high] = halves(first);
    for power in 0..LANES {
        // Two steps, because a shift by 64 would overflow: power may be 0.
        let carry = first_high >> 1 >> (63 - power);
        high[power] = first_high << power | first_low >> 1 >> (63 - power);
        low[power] = first_low << power ^ reduce(carry);
    }
    (low, high)
}

/// carry · (x^7 + x^2 + x + 1), the value of carry · x^128. Exact for carries below 2^57.
#[inline(always)]
fn reduce(carry: u64) -> u64 {
    carry ^ carry << 1 ^ carry << 2 ^ carry << 7
}

/// Low and high 64 bits.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // taking the halves is the point
fn halves(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// IEEE 1619's own formulation: one bit at a time over bytes.
    fn doubled(tweak: [u8; 16]) -> [u8; 16] {
        let mut out = [0; 16];
        let mut carry = 0;
        for (out, byte) in out.iter_mut().zip(tweak) {
            *out = byte << 1 | carry;
            carry = byte >> 7;
        }
        if carry == 1 {
            out[0] ^= 0x87;
        }
        out
    }

    proptest! {
        #[test]
        fn expansion_equals_repeated_doubling(first: [u8; 16]) {
            let mut tweaks = [Block::default(); 256];
            expand(&Block::from(first), &mut tweaks);
            let mut expected = first;
            for (j, tweak) in tweaks.iter().enumerate() {
                prop_assert_eq!(<[u8; 16]>::from(*tweak), expected, "tweak {}", j);
                expected = doubled(expected);
            }
        }
    }

    #[test]
    fn all_ones_carry_everywhere() {
        let mut tweaks = [Block::default(); 16];
        expand(&Block::from([0xff; 16]), &mut tweaks);
        let mut expected = [0xff; 16];
        for tweak in tweaks {
            assert_eq!(<[u8; 16]>::from(tweak), expected);
            expected = doubled(expected);
        }
    }
}
