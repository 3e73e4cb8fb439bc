//! The machine's own limit: AES rounds back to back in registers, with nothing to load, mix or store.
//!
//! One pass is 14 rounds (AES-256) over as many independent vectors as hide the instruction's latency: 16 of 512 bits,
//! 14 of 256 or 128 bits, and one register with a key. What XTS adds on top (whitening, tweaks, memory) can only be
//! slower. Zen 5 runs `vaesenc zmm` at twice the bytes of `vaesenc ymm`, Zen 4 at the same: compare a kernel with the
//! limit of its own width.

/// A vector width of the AES instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 128 bits, one block: `aesenc xmm` (in its AVX encoding).
    Xmm,
    /// 256 bits, two blocks: `vaesenc ymm`.
    Ymm,
    /// 512 bits, four blocks: `vaesenc zmm`.
    Zmm,
}

impl Width {
    /// All widths, narrowest first.
    pub const ALL: [Width; 3] = [Width::Xmm, Width::Ymm, Width::Zmm];

    /// The instruction of this width.
    #[must_use]
    pub const fn instruction(self) -> &'static str {
        match self {
            Width::Xmm => "aesenc xmm",
            Width::Ymm => "vaesenc ymm",
            Width::Zmm => "vaesenc zmm",
        }
    }

    const fn vector_bytes(self) -> u64 {
        match self {
            Width::Xmm => 16,
            Width::Ymm => 32,
            Width::Zmm => 64,
        }
    }

    /// Independent vectors in flight.
    const fn chains(self) -> u64 {
        match self {
            Width::Xmm | Width::Ymm => 14,
            Width::Zmm => 16,
        }
    }
}

/// Witness of a machine that has the AES instruction of this width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(Width);

impl Limit {
    /// `None` where the processor lacks it or the operating system does not keep its registers.
    #[must_use]
    pub fn detect(width: Width) -> Option<Limit> {
        #[cfg(target_arch = "x86_64")]
        let there = match width {
            Width::Xmm => is_x86_feature_detected!("aes") && is_x86_feature_detected!("avx"),
            Width::Ymm => is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx2"),
            Width::Zmm => is_x86_feature_detected!("vaes") && is_x86_feature_detected!("avx512f"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let there = false;
        there.then_some(Limit(width))
    }

    /// The widest there is: what an implementation that may choose is measured by.
    #[must_use]
    pub fn widest() -> Option<Limit> {
        Width::ALL.into_iter().rev().find_map(Limit::detect)
    }

    /// Its width.
    #[must_use]
    pub fn width(self) -> Width {
        self.0
    }

    /// Bytes of blocks that one pass takes through 14 rounds.
    #[must_use]
    pub fn pass_bytes(self) -> u64 {
        self.0.vector_bytes() * self.0.chains()
    }

    /// Runs that many passes.
    pub fn run(self, passes: u64) {
        if passes == 0 {
            return;
        }
        let seed = Seed(std::array::from_fn(|at| (at * 167 + at / 16).to_le_bytes()[0]));
        #[cfg(target_arch = "x86_64")]
        match self.0 {
            // SAFETY: `self` is a witness of AES and AVX; passes is not 0.
            Width::Xmm => unsafe { xmm(&seed, passes) },
            // SAFETY: `self` is a witness of VAES and AVX2; passes is not 0.
            Width::Ymm => unsafe { ymm(&seed, passes) },
            // SAFETY: `self` is a witness of VAES and AVX-512F; passes is not 0.
            Width::Zmm => unsafe { zmm(&seed, passes) },
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _: Seed = seed; // there is no witness to call this with
    }
}

/// Where the states and the key start: all different, as in real work.
#[repr(align(64))]
struct Seed([u8; 17 * 64]);

/// The function of one width: `states` are loaded from the seed, then every pass is 14 rounds over each of them.
macro_rules! passes {
    ($name:ident, $features:literal, $load:literal, $register:literal, $bytes:literal, $states:literal, $key:literal) => {
        /// # Safety
        /// The processor has these features, and `passes` is not 0.
        #[cfg(target_arch = "x86_64")]
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn $name(seed: &Seed, passes: u64) {
            // SAFETY: reads only the seed, which holds 17 vectors of the widest kind, and writes no memory; all vector
            // registers, and the general ones that a call may change, are declared clobbered; the loop ends as
            // `passes` is not 0.
            unsafe {
                std::arch::asm!(
                    concat!($load, " ", $register, $key, ", [rsi + 16 * 64]"),
                    concat!(".irp state, ", $states),
                    concat!($load, " ", $register, "\\state, [rsi + ", $bytes, " * \\state]"),
                    ".endr",
                    ".p2align 6",
                    "2:",
                    ".rept 14",
                    concat!(".irp state, ", $states),
                    concat!("vaesenc ", $register, "\\state, ", $register, "\\state, ", $register, $key),
                    ".endr",
                    ".endr",
                    "dec rcx",
                    "jnz 2b",
                    "vzeroupper",
                    in("rsi") seed.0.as_ptr(),
                    inout("rcx") passes => _,
                    clobber_abi("sysv64"),
                    options(readonly, nostack),
                );
            }
        }
    };
}

passes!(xmm, "aes,avx", "vmovdqu", "xmm", "16", "0,1,2,3,4,5,6,7,8,9,10,11,12,13", "15");
passes!(ymm, "vaes,avx2", "vmovdqu", "ymm", "32", "0,1,2,3,4,5,6,7,8,9,10,11,12,13", "15");
passes!(zmm, "vaes,avx512f", "vmovdqu64", "zmm", "64", "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", "16");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_whole_vectors_of_what_the_machine_has() {
        let there: Vec<Limit> = Width::ALL.into_iter().filter_map(Limit::detect).collect();
        assert_eq!(there.last().copied(), Limit::widest());
        for limit in there {
            assert_eq!(limit.pass_bytes() % limit.width().vector_bytes(), 0);
        }
    }

    #[test]
    fn no_register_of_the_caller_is_lost() {
        for limit in Width::ALL.into_iter().filter_map(Limit::detect) {
            let numbers: [f64; 24] = std::array::from_fn(|at| std::hint::black_box(at as f64 + 0.5));
            let mut sum = numbers.iter().sum::<f64>();
            for passes in [0, 1, 2, 1000] {
                limit.run(passes);
                sum += numbers.iter().sum::<f64>();
            }
            assert_eq!(sum, 5.0 * (23.0 * 12.0 + 12.0));
        }
    }
}
