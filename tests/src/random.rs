//! The random choices of a test, from a seed that it prints: `LUKS_SEED` set to it repeats them.
#![allow(clippy::unwrap_used)]

/// A splitmix64 sequence.
#[derive(Debug)]
pub struct Random(u64);

/// `LUKS_SEED`, or else a fresh seed; `what` is printed with it.
///
/// # Panics
/// If `LUKS_SEED` is no number, or the kernel has no randomness.
#[must_use]
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var("LUKS_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).unwrap();
            u64::from(u32::from_le_bytes(bytes))
        }
    };
    eprintln!("{what}: LUKS_SEED={seed}");
    seed
}

impl Random {
    /// From `LUKS_SEED`, or else a fresh seed; `what` is printed with it.
    ///
    /// # Panics
    /// As [`seed`].
    #[must_use]
    pub fn seeded(what: &str) -> Random {
        Random::from_seed(seed(what))
    }

    /// The sequence of `seed`.
    #[must_use]
    pub fn from_seed(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number of the sequence.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// One of two.
    pub fn flip(&mut self) -> bool {
        self.number() & 1 == 1
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}
