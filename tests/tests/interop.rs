//! Both ways with Debian's cryptsetup, plaintext included: what we write it opens and decrypts, what it writes we open and
//! decrypt. Its offline re-encryption needs no kernel help, so `--decrypt` and `--encrypt` are an independent data path.
//!
//! The cases are not the whole product: each value of each dimension appears at least twice in each direction.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use promises::disk_model::xorshift;
use promises::rig::{run_with_input, succeed};
use promises::skip::{needs_programs, needs_root};
use promises::{Rig, skip};

const KDFS: [(&str, &str); 4] =
    [("pbkdf2", "sha256"), ("pbkdf2", "sha512"), ("argon2i", "sha256"), ("argon2id", "sha256")];
const CIPHERS: [(&str, &str); 3] =
    [("aes-xts-plain64", "256"), ("aes-xts-plain64", "512"), ("aes-cbc-essiv:sha256", "256")];
const SECTOR_SIZES: [&str; 2] = ["512", "4096"];
const METADATA_SIZES: [&str; 9] = ["16k", "32k", "64k", "128k", "256k", "512k", "1m", "2m", "4m"];
/// Two rounds over the metadata sizes; the other dimensions are shorter and come round more often.
const CASES: usize = 2 * METADATA_SIZES.len();
const DATA_BYTES: usize = 1 << 20;

struct Case {
    number: usize,
    kdf: (&'static str, &'static str),
    cipher: (&'static str, &'static str),
    sector_size: &'static str,
    metadata_size: &'static str,
    detached: bool,
}

impl Case {
    fn numbered(number: usize) -> Case {
        Case {
            number,
            kdf: KDFS[number % KDFS.len()],
            cipher: CIPHERS[(number / 2) % CIPHERS.len()],
            sector_size: SECTOR_SIZES[(number / 3) % SECTOR_SIZES.len()],
            metadata_size: METADATA_SIZES[number % METADATA_SIZES.len()],
            detached: number % 4 == 1,
        }
    }

    /// The options, which luksctl and cryptsetup spell the same.
    fn options(&self) -> Vec<String> {
        let mut options: Vec<&str> = vec!["-q", "--pbkdf", self.kdf.0, "--hash", self.kdf.1];
        match self.kdf.0 {
            "pbkdf2" => options.extend(["--pbkdf-force-iterations", "1000"]),
            _ => options.extend([
                "--pbkdf-force-iterations",
                "4",
                "--pbkdf-memory",
                "64",
                "--pbkdf-parallel",
                ["1", "2"][self.number % 2],
            ]),
        }
        options.extend(["--cipher", self.cipher.0, "--key-size", self.cipher.1, "--sector-size", self.sector_size]);
        options.extend(["--luks2-metadata-size", self.metadata_size]);
        let mut options: Vec<String> = options.into_iter().map(String::from).collect();
        options.extend(["--label".into(), format!("case {}", self.number)]);
        options.extend(["--subsystem".into(), format!("interop {}", self.number)]);
        options
    }
}

#[test]
fn every_value_is_covered_twice() {
    let cases: Vec<Case> = (0..CASES).map(Case::numbered).collect();
    let twice = |what: &dyn Fn(&Case) -> bool| assert!(cases.iter().filter(|case| what(case)).count() >= 2);
    KDFS.iter().for_each(|kdf| twice(&|case| case.kdf == *kdf));
    CIPHERS.iter().for_each(|cipher| twice(&|case| case.cipher == *cipher));
    SECTOR_SIZES.iter().for_each(|size| twice(&|case| case.sector_size == *size));
    METADATA_SIZES.iter().for_each(|size| twice(&|case| case.metadata_size == *size));
    twice(&|case| case.detached);
}

/// Bytes that do not repeat, made from a seed.
fn plaintext(seed: usize, length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed as u64 + 1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(xorshift(&mut state).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn cryptsetup(arguments: &[&str]) -> Command {
    let mut command = Command::new(promises::skip::find_program("cryptsetup").unwrap());
    command.args(arguments);
    command
}

/// What cryptsetup's own offline decryption makes of the volume.
fn decrypted_by_cryptsetup(rig: &Rig, image: &Path, detached: Option<&Path>) -> Vec<u8> {
    let copy = rig.path("decrypted");
    std::fs::copy(image, &copy).unwrap();
    let header = rig.path("decrypted-header");
    match detached {
        Some(original) => drop(std::fs::copy(original, &header).unwrap()),
        None => drop(std::fs::remove_file(&header)),
    }
    succeed(
        cryptsetup(&["reencrypt", "-q", "--decrypt", "--force-offline-reencrypt", "--key-file"])
            .arg(rig.key())
            .arg("--header")
            .arg(&header)
            .arg(&copy),
    );
    std::fs::read(&copy).unwrap()
}

fn prerequisites(test: &str) -> bool {
    needs_programs(test, &["cryptsetup"])
}

#[test]
fn cryptsetup_opens_and_decrypts_what_we_write() {
    if !prerequisites("interop: cryptsetup_opens_and_decrypts_what_we_write") {
        return;
    }
    for case in (0..CASES).map(Case::numbered) {
        let rig = Rig::new("interop");
        let (image, header) = (rig.path("image"), rig.path("header"));
        let plain = plaintext(case.number, DATA_BYTES);
        std::fs::write(rig.path("plain"), &plain).unwrap();
        let attached_size = (16 << 20) + DATA_BYTES;
        let size = if case.detached { DATA_BYTES } else { attached_size };
        let mut format = rig.luksctl(&["format", "--size", &size.to_string(), "--key-file"]);
        format.arg(rig.key()).args(case.options()).arg(&image);
        if case.detached {
            format.arg("--header").arg(&header);
        }
        succeed(&mut format);
        let mut copy_in = rig.luksctl(&["copy-in", "-q", "--key-file"]);
        copy_in.arg(rig.key()).arg(&image).arg(rig.path("plain"));
        if case.detached {
            copy_in.arg("--header").arg(&header);
        }
        succeed(&mut copy_in);

        let dumped = if case.detached { &header } else { &image };
        let dump = String::from_utf8(succeed(cryptsetup(&["luksDump"]).arg(dumped)).stdout).unwrap();
        assert!(dump.contains(&format!("case {}", case.number)), "{dump}");
        assert!(dump.contains(&format!("interop {}", case.number)), "{dump}");
        assert!(dump.contains(case.kdf.0) && dump.contains(case.cipher.0), "{dump}");
        succeed(cryptsetup(&["open", "--test-passphrase", "--key-file"]).arg(rig.key()).arg(dumped));
        let decrypted = decrypted_by_cryptsetup(&rig, &image, case.detached.then_some(&header));
        assert!(decrypted[..DATA_BYTES] == plain[..], "case {}: the plaintext differs", case.number);
    }
}

#[test]
fn we_open_and_decrypt_what_cryptsetup_writes() {
    if !prerequisites("interop: we_open_and_decrypt_what_cryptsetup_writes") {
        return;
    }
    for case in (0..CASES).map(Case::numbered) {
        let rig = Rig::new("interop");
        let (image, header) = (rig.path("image"), rig.path("header"));
        // The volume's plaintext is whatever these random ciphertext bytes decrypt to: both sides must agree on it.
        let size = if case.detached { DATA_BYTES } else { (16 << 20) + DATA_BYTES };
        std::fs::write(&image, plaintext(case.number + 100, size)).unwrap();
        let mut format = cryptsetup(&["luksFormat", "--type", "luks2", "--key-file"]);
        format.arg(rig.key()).args(case.options()).arg(&image);
        if case.detached {
            format.arg("--header").arg(&header);
        }
        succeed(&mut format);
        let before = std::fs::read(&image).unwrap();

        let dump = {
            let dumped = if case.detached { &header } else { &image };
            String::from_utf8(succeed(rig.luksctl(&["dump"]).arg(dumped)).stdout).unwrap()
        };
        assert!(dump.contains(&format!("case {}", case.number)), "{dump}");
        let ours = copied_out(&rig, &image, case.detached.then_some(&header));
        assert!(before == std::fs::read(&image).unwrap(), "case {}: reading changed the image", case.number);
        let theirs = decrypted_by_cryptsetup(&rig, &image, case.detached.then_some(&header));
        assert!(ours.len() == DATA_BYTES, "case {}: {} bytes", case.number, ours.len());
        assert!(ours[..] == theirs[..DATA_BYTES], "case {}: the plaintext differs", case.number);
    }
}

fn copied_out(rig: &Rig, image: &Path, header: Option<&Path>) -> Vec<u8> {
    let output: PathBuf = rig.path("copied-out");
    drop(std::fs::remove_file(&output));
    let mut command = rig.luksctl(&["copy-out", "--key-file"]);
    command.arg(rig.key()).arg(image).arg(&output);
    if let Some(header) = header {
        command.arg("--header").arg(header);
    }
    succeed(&mut command);
    std::fs::read(&output).unwrap()
}

#[test]
fn we_read_what_cryptsetup_encrypted_in_place() {
    if !prerequisites("interop: we_read_what_cryptsetup_encrypted_in_place") {
        return;
    }
    for (number, sector_size) in SECTOR_SIZES.iter().enumerate() {
        for (cipher, key_size) in CIPHERS {
            let rig = Rig::new("interop");
            let (image, header) = (rig.path("image"), rig.path("header"));
            let plain = plaintext(number, DATA_BYTES);
            std::fs::write(&image, &plain).unwrap();
            succeed(
                cryptsetup(&["reencrypt", "-q", "--encrypt", "--force-offline-reencrypt", "--type", "luks2"])
                    .args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--cipher", cipher])
                    .args(["--key-size", key_size, "--sector-size", sector_size, "--key-file"])
                    .arg(rig.key())
                    .arg("--header")
                    .arg(&header)
                    .arg(&image),
            );
            assert!(std::fs::read(&image).unwrap() != plain, "nothing was encrypted");
            let ours = copied_out(&rig, &image, Some(&header));
            assert!(ours == plain, "{cipher} {key_size} sectors of {sector_size}: the plaintext differs");
        }
    }
}

#[test]
fn thirty_two_keyslots_in_both_directions() {
    if !prerequisites("interop: thirty_two_keyslots_in_both_directions") {
        return;
    }
    for ours_first in [true, false] {
        let rig = Rig::new("interop");
        let image = rig.path("image");
        rig.format_cheap(&image, "20M", &[]);
        for slot in 1..32 {
            let key = rig.path(&format!("key-{slot}"));
            std::fs::write(&key, format!("the key of slot {slot}")).unwrap();
            let mut add = if (slot % 2 == 0) == ours_first {
                rig.luksctl(&["keyslot", "add", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"])
            } else {
                cryptsetup(&["luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"])
            };
            add.arg("--key-file").arg(rig.key()).arg(&image).arg(&key);
            succeed(&mut add);
        }
        let full = rig.path("key-1");
        let mut refused = rig.luksctl(&["keyslot", "add", "-q", "--pbkdf", "pbkdf2"]);
        refused.args(["--pbkdf-force-iterations", "1000", "--key-file"]).arg(rig.key()).arg(&image).arg(full);
        let refused = refused.output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "a 33rd keyslot: {refused:?}");
        for slot in 1..32 {
            let key = rig.path(&format!("key-{slot}"));
            succeed(cryptsetup(&["open", "--test-passphrase", "--key-file"]).arg(&key).arg(&image));
            succeed(rig.luksctl(&["keyslot", "test", "--key-file"]).arg(&key).arg(&image));
        }
        for slot in (1..32).step_by(3) {
            let number = slot.to_string();
            succeed(rig.luksctl(&["keyslot", "kill", "-q", "--key-file"]).arg(rig.key()).arg(&image).arg(&number));
            let key = rig.path(&format!("key-{slot}"));
            let gone = cryptsetup(&["open", "--test-passphrase", "--key-file"]).arg(key).arg(&image).output().unwrap();
            assert_eq!(gone.status.code(), Some(2), "slot {slot} still opens");
        }
    }
}

#[test]
fn cryptsetup_takes_our_changed_keys_and_names() {
    if !prerequisites("interop: cryptsetup_takes_our_changed_keys_and_names") {
        return;
    }
    let rig = Rig::new("interop");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &["--label", "before", "--subsystem", "kept"]);
    std::fs::write(rig.path("new"), "another key").unwrap();
    let mut change = rig.luksctl(&["keyslot", "change", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    succeed(change.arg("--key-file").arg(rig.key()).arg(&image).arg(rig.path("new")));
    succeed(rig.luksctl(&["label"]).arg(&image).arg("after"));
    let uuid = "12345678-9abc-4def-8123-456789abcdef";
    succeed(rig.luksctl(&["uuid", "-q"]).arg(&image).arg("--uuid").arg(uuid));
    succeed(
        cryptsetup(&["open", "--test-passphrase", "--key-slot", "0", "--key-file"]).arg(rig.path("new")).arg(&image),
    );
    let old = cryptsetup(&["open", "--test-passphrase", "--key-file"]).arg(rig.key()).arg(&image).output().unwrap();
    assert_eq!(old.status.code(), Some(2));
    let dump = String::from_utf8(succeed(cryptsetup(&["luksDump"]).arg(&image)).stdout).unwrap();
    for expected in ["after", "kept", uuid] {
        assert!(dump.contains(expected), "{expected} is missing in {dump}");
    }
    // The newline of a passphrase on standard input is not part of it, for either tool.
    let added = run_with_input(
        cryptsetup(&["luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
            .arg(rig.path("new"))
            .arg(&image),
        b"typed passphrase\n",
    );
    assert!(added.status.success(), "{added:?}");
    let ours = run_with_input(rig.luksctl(&["open", "--test-passphrase"]).arg(&image), b"typed passphrase\n");
    assert!(ours.status.success(), "{ours:?}");
}

#[test]
fn cryptsetup_does_not_hang_on_an_open_volume() {
    let test = "interop: cryptsetup_does_not_hang_on_an_open_volume";
    if !(prerequisites(test) && needs_root(test) && promises::skip::needs_fuse(test)) {
        return;
    }
    if promises::skip::find_program("timeout").is_none() {
        skip(test, "needs timeout (coreutils)");
        return;
    }
    let rig = Rig::new("interop");
    let image = rig.path("image");
    rig.format_cheap(&image, "20M", &[]);
    let _device = rig.open(&image, "open-while-dumped");
    std::fs::write(rig.path("second"), "a second key").unwrap();
    let patient = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg("60").arg("cryptsetup").args(arguments);
        command
    };
    succeed(patient(&["luksDump"]).arg(&image));
    succeed(
        patient(&["luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file"])
            .arg(rig.key())
            .arg(&image)
            .arg(rig.path("second")),
    );
    rig.close("open-while-dumped");
    succeed(cryptsetup(&["open", "--test-passphrase", "--key-file"]).arg(rig.path("second")).arg(&image));
}
