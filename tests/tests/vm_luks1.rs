//! Promise: a LUKS1 volume opens through the kernel's dm-crypt with the table and the UUID that cryptsetup gives it, but for
//! the key, which is in the keyring and not in the table; and both read each other's bytes.
//!
//! Runs in the VM lane.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::process::Command;

use promises::crypt_volume::{CryptVolume, cryptsetup_close, dmsetup_table, run as output_of, starts_clean};
use promises::rig::{run, succeed};
use promises::{Rig, kernel_leftovers, vm};
use serde_json::Value;

const NAME: &str = "one";
const CIPHERS: [(&str, u32); 3] = [("aes-xts-plain64", 64), ("aes-cbc-essiv:sha256", 32), ("aes-cbc-plain", 16)];
const DATA: &[u8; 4096] = &[0xa7; 4096];

fn uuid_of_mapping() -> String {
    output_of("dmsetup", &["info", "-c", "--noheadings", "-o", "uuid", NAME])
}

fn device() -> String {
    format!("/dev/mapper/{NAME}")
}

#[test]
fn vm_luks1_table_is_cryptsetups_but_for_the_key() {
    let test = "vm_luks1_table_is_cryptsetups_but_for_the_key";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("vm-luks1");
    for (cipher, key_bytes) in CIPHERS {
        let volume = CryptVolume::luks1(cipher, key_bytes);
        volume.cryptsetup_open(NAME, &[]);
        let (theirs, their_uuid) = (dmsetup_table(NAME), uuid_of_mapping());
        cryptsetup_close(NAME);

        let mut open = rig.luksctl(&["open", "--backend", "dm", "--key-file", &volume.passphrase()]);
        succeed(open.args([&volume.loop_path(), NAME]));
        let ours = dmsetup_table(NAME);
        assert!(!ours.contains(&volume.key_hex()), "the key is in the table");
        assert_eq!(ours, theirs.replace(&volume.key_hex(), &volume.reference().to_string()), "{cipher}");
        assert_eq!(uuid_of_mapping(), their_uuid);
        assert!(their_uuid.starts_with("CRYPT-LUKS1-"), "{their_uuid}");
        let status = succeed(&mut rig.luksctl(&["status", "--json", NAME]));
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!((&status["luks_version"], &status["uuid"]), (&1.into(), &volume.uuid.as_str().into()));
        let mut file = OpenOptions::new().write(true).open(device()).unwrap();
        file.write_all(DATA).unwrap();
        file.sync_all().unwrap();
        drop(file);
        succeed(&mut rig.luksctl(&["close", NAME]));

        volume.cryptsetup_open(NAME, &["--readonly"]);
        assert_eq!(fs::read(device()).unwrap()[..DATA.len()], DATA[..], "{cipher}");
        cryptsetup_close(NAME);
    }
    kernel_leftovers::demand_none(&rig, &[], "LUKS1 volumes");
}

#[test]
fn vm_luks1_image_of_ours_is_resized_and_suspended() {
    if !starts_clean("vm_luks1_image_of_ours_is_resized_and_suspended") {
        return;
    }
    let (rig, key) = (Rig::new("vm-luks1"), |rig: &Rig| rig.key().display().to_string());
    let image = rig.path("image");
    rig.format_cheap(&image, "8M", &["--type", "luks1"]);
    let shown = image.display().to_string();
    succeed(&mut rig.luksctl(&["open", "--backend", "dm", "--key-file", &key(&rig), &shown, NAME]));
    let table = dmsetup_table(NAME);
    assert!(table.starts_with("0 12288 crypt aes-xts-plain64 "), "{table}");
    succeed(&mut rig.luksctl(&["suspend", NAME]));
    succeed(&mut rig.luksctl(&["resume", "--key-file", &key(&rig), NAME]));
    OpenOptions::new().write(true).open(&image).unwrap().set_len(16 << 20).unwrap();
    succeed(&mut rig.luksctl(&["resize", "--key-file", &key(&rig), NAME]));
    let table = dmsetup_table(NAME);
    assert!(table.starts_with("0 28672 crypt aes-xts-plain64 "), "{table}");
    let theirs = run(Command::new("cryptsetup").args(["status", NAME]));
    assert!(String::from_utf8_lossy(&theirs.stdout).contains("LUKS1"), "{theirs:?}");
    succeed(&mut rig.luksctl(&["close", NAME]));
    kernel_leftovers::demand_none(&rig, &[], "a LUKS1 image");
}
