//! Which kernels this processor gets, against what `/proc/cpuinfo` says, or against `DMCRYPT_EXPECT_KERNELS`, a list of
//! names like `portable,aesni`, where the processor is emulated (`/proc/cpuinfo` is the host's then).
//!
//! Linux removes a feature from `/proc/cpuinfo` when it does not save the registers that belong to it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use dmcrypt::{CipherError, CipherSpec, Kernel, SectorSize};

const EXPECTED: &str = "DMCRYPT_EXPECT_KERNELS";

/// What a kernel needs, by the names of `/proc/cpuinfo`.
fn needs(kernel: Kernel) -> &'static [&'static str] {
    match kernel {
        Kernel::Portable => &[],
        Kernel::AesNi => &["aes", "avx"],
        Kernel::Vaes256 => &["aes", "avx2", "vaes"],
        Kernel::Vaes512 => &["aes", "vaes", "gfni", "avx512f", "avx512bw", "avx512_vbmi2"],
        other => panic!("{other}: what does it need?"),
    }
}

/// Names of the kernels that must be available.
fn expected() -> Vec<String> {
    if let Ok(names) = std::env::var(EXPECTED) {
        return names.split(',').map(str::to_owned).collect();
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let there = |kernel: &Kernel| needs(*kernel).iter().all(|feature| flags.contains(feature));
    Kernel::ALL.into_iter().filter(there).map(|kernel| kernel.name().to_owned()).collect()
}

#[test]
fn the_kernels_of_this_processor_are_available_and_no_others() {
    let available: Vec<&str> =
        Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(Kernel::name).collect();
    assert_eq!(available, expected());
    assert_eq!(Kernel::best().name(), *available.last().unwrap());
    assert_eq!(dmcrypt::kernel(), Kernel::best());
}

#[test]
fn a_kernel_that_is_not_there_is_refused_with_what_is_lacking() {
    let spec = CipherSpec::parse("aes-xts-plain64").unwrap();
    for kernel in Kernel::ALL {
        let built = dmcrypt::build_with(kernel, &spec, &[1; 64], SectorSize::S512);
        match built {
            Ok(_) => assert!(kernel.is_available() && kernel.lacking().is_empty(), "{kernel}"),
            Err(CipherError::KernelUnavailable { name, lacking }) => {
                assert!(!kernel.is_available(), "{kernel}");
                assert_eq!((name, &lacking), (kernel.name(), &kernel.lacking()));
                assert!(!lacking.is_empty(), "{kernel}");
                assert!(lacking.iter().all(|feature| needs(kernel).contains(feature)), "{kernel}: {lacking:?}");
            }
            Err(other) => panic!("{kernel}: {other}"),
        }
    }
}
