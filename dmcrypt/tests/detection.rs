//! Which kernels this processor gets, against what `/proc/cpuinfo` says, or against `DMCRYPT_EXPECT_KERNELS`, a list of
//! names like `portable,aesni`, where the processor is emulated (`/proc/cpuinfo` is the host's then).
//!
//! Linux removes a feature from `/proc/cpuinfo` when it does not save the registers that belong to it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)] // a test may

use std::path::Path;
use std::process::Command;

use dmcrypt::{CipherError, CipherSpec, Kernel, SectorSize};

const EXPECTED: &str = "DMCRYPT_EXPECT_KERNELS";

/// What a kernel needs, by the names of `/proc/cpuinfo`.
fn needs(kernel: Kernel) -> &'static [&'static str] {
    match kernel {
        Kernel::Portable => &[],
        Kernel::AesNi => &["aes", "avx"],
        Kernel::Vaes256 => &["aes", "avx2", "vaes"],
        Kernel::Vaes512 => &["aes", "avx2", "fma", "f16c", "vaes", "gfni", "avx512f", "avx512bw"],
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

/// The features that `rustc` has for these ones, by their names in `/proc/cpuinfo`: with what each of them includes.
fn included(features: &str) -> Vec<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let enabled: Vec<String> = features.split(',').map(|feature| format!("+{feature}")).collect();
    let output = Command::new(rustc)
        .args(["--print", "cfg", "--target", "x86_64-unknown-linux-gnu", "-C"])
        .arg(format!("target-feature={}", enabled.join(",")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let cfg = String::from_utf8(output.stdout).unwrap();
    let names = cfg.lines().filter_map(|line| line.strip_prefix("target_feature=\"")?.strip_suffix('"'));
    names.map(str::to_owned).collect()
}

/// To the compiler AVX-512 includes FMA, for one; a processor or a hypervisor need not see it that way.
#[test]
fn whatever_the_compiler_may_use_in_a_kernel_is_asked_for() {
    let arch = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arch");
    for (kernel, files) in [
        (Kernel::AesNi, &["xmm.rs", "schedule.rs"][..]),
        (Kernel::Vaes256, &["ymm.rs", "schedule.rs"]),
        (Kernel::Vaes512, &["zmm.rs", "zmm/tweaks.rs", "schedule.rs"]),
    ] {
        let text: String = files.iter().map(|file| std::fs::read_to_string(arch.join(file)).unwrap()).collect();
        let markers = ["target_feature(enable = \"", "narrow_kernel!(\""];
        let enabled =
            markers.iter().flat_map(|marker| text.split(marker).skip(1)).filter_map(|at| at.split('"').next());
        let enabled: Vec<&str> = enabled.collect();
        assert!(enabled.len() > 10, "{kernel}: {enabled:?}");
        let baseline = included("avx");
        for feature in included(&enabled.join(",")).iter().filter(|feature| !baseline.contains(feature)) {
            assert!(needs(kernel).contains(&feature.as_str()), "{kernel} does not ask for {feature}");
        }
    }
}
