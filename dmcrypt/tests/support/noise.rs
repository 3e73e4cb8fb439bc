//! Bytes for tests, the same for the same seed.

/// xorshift64: enough to tell every block from every other, and no zeros to speak of.
pub(crate) fn noise(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len_bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
