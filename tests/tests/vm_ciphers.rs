//! Promise: a volume under Serpent, Twofish or Camellia is the same bytes here and in the kernel, in its keyslot and in its
//! data, in every mode and key size; so is one whose cipher is spelled as the kernel's crypto API spells it.
//!
//! Runs in the VM lane: without a kernel that helps, cryptsetup has none of these ciphers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use promises::Rig;
use promises::backend::Backend;
use promises::crypt_volume::{dmsetup_table, starts_clean};
use promises::disk_model::xorshift;
use promises::rig::{run, succeed};
use promises::vm;

const NAME: &str = "ciphers";
const IMAGE_BYTES: u64 = 20 << 20;
/// Past the first batch of sectors, whatever their size.
const DATA_BYTES: usize = 512 << 10;

/// Cipher string, key in bits, sector size.
type Case = (&'static str, &'static str, &'static str);

/// Each cipher in each mode comes first: that is what the short lane takes.
const CASES: [Case; 10] = [
    ("twofish-xts-plain64", "512", "4096"),
    ("serpent-xts-plain", "256", "512"),
    ("camellia-xts-plain64", "384", "4096"),
    ("serpent-cbc-essiv:sha256", "256", "512"),
    ("camellia-cbc-essiv:sha256", "128", "512"),
    ("twofish-cbc-plain64", "192", "4096"),
    ("serpent-xts-plain64", "512", "512"),
    ("camellia-xts-plain64", "512", "512"),
    ("twofish-cbc-essiv:sha256", "256", "512"),
    ("aes-xts-plain64", "384", "512"),
];
const QUICK_CASES: usize = 6;

/// What no keyslot takes: keyslots get the default cipher.
const KERNEL_NAMES: [Case; 3] = [
    ("capi:xts(aes)-plain64", "512", "512"),
    ("capi:cbc(aes)-essiv:sha256", "256", "512"),
    ("capi:xts(serpent)-plain64", "512", "4096"),
];

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..DATA_BYTES / 8).flat_map(|_| xorshift(&mut state).to_le_bytes()).collect()
}

fn format(rig: &Rig, image: &Path, theirs: bool, case: Case) {
    let (cipher, key_bits, sector_size) = case;
    File::create(image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let mut command = if theirs { Command::new("cryptsetup") } else { rig.luksctl::<&str>(&[]) };
    command.args([if theirs { "luksFormat" } else { "format" }, "-q", "--pbkdf", "pbkdf2"]);
    command.args(["--pbkdf-force-iterations", "1000", "--cipher", cipher, "--key-size", key_bits]);
    command.args(["--sector-size", sector_size]);
    succeed(command.arg("--key-file").arg(rig.key()).arg(image));
}

fn write(rig: &Rig, image: &Path, backend: Backend, at: u64, bytes: &[u8]) {
    let device = backend.open(rig, image, NAME);
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
    drop(file);
    backend.close(rig, NAME);
}

#[track_caller]
fn assert_holds(rig: &Rig, image: &Path, backend: Backend, expected: &[u8], what: &str) {
    let device = backend.open(rig, image, NAME);
    let mut bytes = vec![0; expected.len()];
    File::open(device).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    backend.close(rig, NAME);
    assert!(bytes == expected, "{what}: what {backend:?} reads is something else");
}

/// Formatted by one, filled by the other two, read by both.
fn check(rig: &Rig, case: Case, theirs: bool, seed: u64) {
    let image = rig.path("image");
    let what = format!("{case:?}, formatted by {}", if theirs { "cryptsetup" } else { "luksctl" });
    eprintln!("{what}");
    format(rig, &image, theirs, case);
    let expected = noise(seed);
    let (first, second) = expected.split_at(DATA_BYTES / 2);
    write(rig, &image, Backend::Cryptsetup, 0, first);
    write(rig, &image, Backend::Fuse, first.len() as u64, second);
    assert_holds(rig, &image, Backend::Fuse, &expected, &what);
    assert_holds(rig, &image, Backend::Cryptsetup, &expected, &what);
    // The cipher did something.
    let mut raw = vec![0; DATA_BYTES];
    File::open(&image).unwrap().read_exact_at(&mut raw, 16 << 20).unwrap();
    assert!(
        raw.chunks(16).zip(expected.chunks(16)).all(|(disk, plain)| disk != plain),
        "{what}: plaintext on the disk"
    );
}

#[test]
fn vm_ciphers_are_the_kernels_in_keyslots_and_data() {
    if !starts_clean("vm_ciphers_are_the_kernels_in_keyslots_and_data")
        || !vm::is_round_for("vm_ciphers_are_the_kernels_in_keyslots_and_data", false)
    {
        return;
    }
    let rig = Rig::new("ciphers");
    let cases = if vm::is_full() { CASES.len() } else { QUICK_CASES };
    for (number, case) in (0_u64..).zip(CASES).take(cases) {
        check(&rig, case, number % 2 == 0, number + 1);
        if vm::is_full() {
            check(&rig, case, number % 2 == 1, number + 101);
        }
    }
}

#[test]
fn vm_ciphers_spelled_as_the_kernel_spells_them() {
    if !starts_clean("vm_ciphers_spelled_as_the_kernel_spells_them")
        || !vm::is_round_for("vm_ciphers_spelled_as_the_kernel_spells_them", false)
    {
        return;
    }
    let rig = Rig::new("ciphers");
    let cases = if vm::is_full() { KERNEL_NAMES.len() } else { 2 };
    for (number, case) in (0_u64..).zip(KERNEL_NAMES).take(cases) {
        check(&rig, case, number % 2 == 0, number + 1);
        // The table of the kernel is the same whoever makes it.
        let tables = [Backend::Cryptsetup, Backend::Dm].map(|backend| {
            let _ = backend.open(&rig, &rig.path("image"), NAME);
            let table = dmsetup_table(NAME);
            backend.close(&rig, NAME);
            let fields: Vec<&str> = table.split(' ').collect();
            assert_eq!(fields[3], case.0, "{table}");
            [&fields[..6], &fields[7..]].concat().join(" ")
        });
        assert_eq!(tables[0], tables[1]);
    }
}

#[test]
fn vm_ciphers_that_encrypt_nothing_are_refused() {
    if !starts_clean("vm_ciphers_that_encrypt_nothing_are_refused")
        || !vm::is_round_for("vm_ciphers_that_encrypt_nothing_are_refused", false)
    {
        return;
    }
    let rig = Rig::new("ciphers");
    let image = rig.path("image");
    File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let mut command = Command::new("cryptsetup");
    command.args(["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    command.args(["--cipher", "cipher_null-ecb", "--key-size", "256"]);
    command.args(["--keyslot-cipher", "aes-xts-plain64", "--keyslot-key-size", "512"]);
    succeed(command.arg("--key-file").arg(rig.key()).arg(&image));
    for backend in Backend::OURS {
        let output = run(&mut backend.open_command(&rig, &image, NAME, &[]));
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && words.contains("cipher_null-ecb"), "{output:?}");
        assert!(words.contains("allowed: a cipher that encrypts"), "{output:?}");
    }
    // Control: it is a volume that opens.
    let _ = Backend::Cryptsetup.open(&rig, &image, NAME);
    Backend::Cryptsetup.close(&rig, NAME);
}
