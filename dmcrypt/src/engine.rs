//! Which AES implementation the processor gets; for status lines and benchmarks.

/// Name of the AES code that runs on this machine, such as `aes crate: AES-NI`.
///
/// The choice is made once per process by the `aes` crate from the processor's features; this repeats its question.
#[must_use]
pub fn engine_name() -> &'static str {
    // Set by RUSTFLAGS for the aes crate, so unknown to this package's manifest.
    #[allow(unexpected_cfgs)]
    if cfg!(aes_backend = "soft") {
        return PORTABLE;
    }
    detected()
}

const PORTABLE: &str = "aes crate: portable, constant time";

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn detected() -> &'static str {
    if !is_x86_feature_detected!("aes") {
        PORTABLE
    } else if !is_x86_feature_detected!("vaes") {
        "aes crate: AES-NI"
    } else if !is_x86_feature_detected!("avx512f") {
        "aes crate: VAES on AVX2"
    } else {
        "aes crate: VAES on AVX-512"
    }
}

#[cfg(target_arch = "aarch64")]
fn detected() -> &'static str {
    if std::arch::is_aarch64_feature_detected!("aes") { "aes crate: ARMv8 AES" } else { PORTABLE }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn detected() -> &'static str {
    PORTABLE
}

#[cfg(test)]
mod tests {
    #[test]
    fn engine_is_named() {
        assert!(super::engine_name().starts_with("aes crate: "));
    }
}
