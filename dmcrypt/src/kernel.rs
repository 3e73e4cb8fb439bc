//! Which code runs AES-XTS on this machine: asked of the processor once, overridden on request, named in status lines.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::CipherError;

/// An implementation of AES-XTS. All give the same bytes; they differ in speed and in what they need.
///
/// CBC and the ESSIV generator run on the `aes` crate whatever the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// The `aes` crate: its own use of AES-NI, VAES or ARMv8 AES, or constant-time code in plain Rust.
    Portable,
    /// AES-NI with AVX, 128-bit vectors.
    AesNi,
    /// VAES with AVX2, 256-bit vectors.
    Vaes256,
    /// VAES with AVX-512 (F, BW) and GFNI, 512-bit vectors.
    Vaes512,
}

/// What [`use_kernel`] chose: 0 for nothing, else 1 + the index in [`Kernel::ALL`].
static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Kernel {
    /// All kernels, slowest first.
    pub const ALL: [Kernel; 4] = [Kernel::Portable, Kernel::AesNi, Kernel::Vaes256, Kernel::Vaes512];

    /// Name as in `LUKSCTL_CPU`: `portable`, `aesni`, `vaes256` or `vaes512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Portable => "portable",
            Kernel::AesNi => "aesni",
            Kernel::Vaes256 => "vaes256",
            Kernel::Vaes512 => "vaes512",
        }
    }

    /// Whether processor and operating system have what it needs.
    #[must_use]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Kernel::Portable => true,
            Kernel::AesNi => crate::arch::Xmm::detect().is_some(),
            Kernel::Vaes256 => crate::arch::Ymm::detect().is_some(),
            Kernel::Vaes512 => crate::arch::Zmm::detect().is_some(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Kernel::Portable;
    }

    /// The fastest that is available.
    #[must_use]
    pub fn best() -> Kernel {
        Self::ALL.into_iter().rev().find(|kernel| kernel.is_available()).unwrap_or(Kernel::Portable)
    }

    /// Processor features that it needs and the machine lacks, by their names in `/proc/cpuinfo`; empty if available.
    /// A feature whose registers the operating system does not save counts as lacking.
    #[must_use]
    pub fn lacking(self) -> Vec<&'static str> {
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! lacking {
                ($($feature:tt $name:literal),*) => {
                    [$((std::arch::is_x86_feature_detected!($feature), $name)),*]
                        .into_iter().filter_map(|(there, name)| (!there).then_some(name)).collect()
                };
            }
            match self {
                Kernel::Portable => Vec::new(),
                Kernel::AesNi => lacking!("aes" "aes", "avx" "avx"),
                Kernel::Vaes256 => lacking!("aes" "aes", "avx2" "avx2", "vaes" "vaes"),
                Kernel::Vaes512 => lacking!(
                    "aes" "aes", "avx2" "avx2", "fma" "fma", "f16c" "f16c", "vaes" "vaes", "gfni" "gfni",
                    "avx512f" "avx512f", "avx512bw" "avx512bw"
                ),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        if self == Kernel::Portable { Vec::new() } else { vec!["x86-64"] }
    }

    /// What it is, in words.
    fn title(self) -> &'static str {
        match self {
            Kernel::Portable => portable_title(),
            Kernel::AesNi => "AES-NI with AVX",
            Kernel::Vaes256 => "VAES on AVX2",
            Kernel::Vaes512 => "VAES on AVX-512",
        }
    }
}

impl fmt::Display for Kernel {
    /// `vaes512 (VAES on AVX-512)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.title())
    }
}

impl FromStr for Kernel {
    type Err = CipherError;

    fn from_str(name: &str) -> Result<Self, CipherError> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == name)
            .ok_or_else(|| CipherError::UnknownKernel { name: name.chars().take(80).collect() })
    }
}

/// What the `aes` crate does here; this repeats the question that it asks itself.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn portable_title() -> &'static str {
    if !is_x86_feature_detected!("aes") {
        "aes crate, constant-time code"
    } else if !is_x86_feature_detected!("vaes") {
        "aes crate, AES-NI"
    } else {
        "aes crate, AES-NI or VAES"
    }
}

#[cfg(target_arch = "aarch64")]
fn portable_title() -> &'static str {
    if std::arch::is_aarch64_feature_detected!("aes") {
        "aes crate, ARMv8 AES"
    } else {
        "aes crate, constant-time code"
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn portable_title() -> &'static str {
    "aes crate, constant-time code"
}

/// The kernel that [`crate::build`] takes: what [`use_kernel`] chose, otherwise [`Kernel::best`].
#[must_use]
pub fn kernel() -> Kernel {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => Kernel::best(),
        chosen => Kernel::ALL[usize::from(chosen) - 1],
    }
}

/// What [`use_kernel`] chose.
#[must_use]
pub fn chosen_kernel() -> Option<Kernel> {
    (CHOSEN.load(Ordering::Relaxed) != 0).then(kernel)
}

/// Makes every later [`crate::build`] of this process take `kernel`. Ciphers already built stay as they are.
///
/// # Errors
/// [`CipherError::KernelUnavailable`] naming what the machine lacks; nothing has changed then.
pub fn use_kernel(kernel: Kernel) -> Result<(), CipherError> {
    check(kernel)?;
    let index = Kernel::ALL.iter().position(|&other| other == kernel).unwrap_or(0);
    #[allow(clippy::cast_possible_truncation)] // below four
    CHOSEN.store(index as u8 + 1, Ordering::Relaxed);
    Ok(())
}

/// An error unless `kernel` is available.
pub(crate) fn check(kernel: Kernel) -> Result<(), CipherError> {
    if kernel.is_available() {
        return Ok(());
    }
    Err(CipherError::KernelUnavailable { name: kernel.name(), lacking: kernel.lacking() })
}

/// The kernel in use and why, for people: `vaes512 (VAES on AVX-512), the fastest of this machine`.
#[must_use]
pub fn kernel_and_reason() -> String {
    let (kernel, best) = (kernel(), Kernel::best());
    if chosen_kernel().is_some() {
        return format!("{kernel}, as was asked for; the fastest of this machine is {}", best.name());
    }
    match Kernel::ALL.iter().rev().take_while(|&&faster| faster != kernel).last() {
        None => format!("{kernel}, the fastest there is"),
        Some(next) => {
            format!("{kernel}, the fastest of this machine; {} needs {}", next.name(), next.lacking().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.name().parse::<Kernel>().unwrap(), kernel);
            assert!(kernel.to_string().starts_with(kernel.name()));
        }
        for name in ["", "AESNI", "vaes", "vaes512 ", "best"] {
            let error = name.parse::<Kernel>().unwrap_err();
            assert!(error.to_string().contains("portable, aesni, vaes256 or vaes512"), "{error}");
        }
    }

    #[test]
    fn what_is_lacking_and_what_is_available_agree() {
        assert!(Kernel::Portable.is_available());
        for kernel in Kernel::ALL {
            assert_eq!(kernel.is_available(), kernel.lacking().is_empty(), "{kernel}: {:?}", kernel.lacking());
            match check(kernel) {
                Ok(()) => assert!(kernel.is_available()),
                Err(error) => {
                    assert!(error.to_string().contains(kernel.lacking()[0]), "{error}");
                    assert!(error.to_string().contains(kernel.name()), "{error}");
                }
            }
        }
        assert!(Kernel::best().is_available());
    }

    #[test]
    fn the_reason_names_the_kernel() {
        assert!(kernel_and_reason().starts_with(&kernel().to_string()));
    }
}
