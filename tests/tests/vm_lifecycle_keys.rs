//! Promise: what luksctl tells the kernel is what cryptsetup tells it, for every cipher and flag; and the volume key is in
//! no table, no log, no listing, and in no memory of luksctl but locked pages that no core dump holds, not even in what its
//! ioctls leave behind.
//!
//! Runs in the VM lane.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use promises::crypt_volume::{CryptVolume, attempt, cryptsetup_close, dmsetup_table, run as output_of, starts_clean};
use promises::memory::{positions, search};
use promises::rig::{run, succeed};
use promises::tracer::{Stop, trace};
use promises::{Rig, kernel_leftovers, vm};

const FLAGS: [&str; 6] = [
    "--allow-discards",
    "--perf-same_cpu_crypt",
    "--perf-submit_from_crypt_cpus",
    "--perf-no_read_workqueue",
    "--perf-no_write_workqueue",
    "--readonly",
];
const CIPHERS: [(&str, u32); 6] = [
    ("aes-xts-plain64", 64),
    ("aes-xts-plain64", 32),
    ("aes-xts-plain", 32),
    ("aes-cbc-essiv:sha256", 32),
    ("aes-cbc-plain64", 16),
    ("aes-cbc-plain", 32),
];
const NAME: &str = "keys";
const FIRST_LEN: usize = 32;
/// Number of the ioctl that gives the kernel a table.
const DM_TABLE_LOAD: u8 = 9;

/// Everything that the kernel and udev's database of names say of the mapping; in files, where there is one for it, as
/// each program that is started here costs more than what is compared.
fn picture() -> Vec<String> {
    let device = fs::canonicalize(format!("/dev/mapper/{NAME}")).unwrap();
    let number = fs::metadata(&device).unwrap().rdev();
    let sysfs = format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let mut said = vec![dmsetup_table(NAME)];
    for file in [
        "dm/name",
        "dm/uuid",
        "dm/suspended",
        "ro",
        "size",
        "queue/logical_block_size",
        "queue/physical_block_size",
        "queue/discard_max_bytes",
        "queue/write_cache",
    ] {
        said.push(format!("{file}: {}", fs::read_to_string(format!("{sysfs}/{file}")).unwrap().trim_end()));
    }
    said
}

fn open_with_luksctl(rig: &Rig, volume: &CryptVolume, options: &[&str]) -> Command {
    let mut command = rig.luksctl(&["open", "-v", "--backend", "dm"]);
    command.args(options).args(["--key-file", &volume.passphrase(), &volume.loop_path(), NAME]);
    command
}

#[test]
fn vm_lifecycle_tables_equal_cryptsetups_for_every_cipher_and_flag() {
    let test = "vm_lifecycle_tables_equal_cryptsetups_for_every_cipher_and_flag";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let rig = Rig::new("tables");
    let mut compared = 0;
    for (index, (cipher, key_bytes)) in CIPHERS.into_iter().enumerate() {
        for sector_bytes in [512, 4096] {
            let all = (1 << FLAGS.len()) - 1;
            // The short lane takes each flag alone, all together, and none, spread over the ciphers.
            let sets: Vec<usize> = match (vm::is_full(), sector_bytes) {
                (true, _) => (0..=all).collect(),
                (false, 512) => vec![1 << index],
                (false, _) if index < 2 => vec![[0, all][index]],
                (false, _) => continue,
            };
            // The full lane is long here, and silence would pass for a hang.
            eprintln!("{cipher}, key of {key_bytes}, sectors of {sector_bytes}: {} sets of flags", sets.len());
            let volume = CryptVolume::luks2(cipher, key_bytes, sector_bytes);
            for set in sets {
                let chosen = || FLAGS.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, flag)| *flag);
                let (options, mut theirs_too) = (chosen().collect::<Vec<_>>(), chosen().collect::<Vec<_>>());
                // By its passphrase, as luksctl: with the volume key it would choose another digest.
                let (key, node) = (format!("--key-file={}", volume.passphrase()), volume.loop_path());
                theirs_too.splice(0..0, ["open", "-q", &key]);
                let _ = output_of("cryptsetup", &[&theirs_too[..], &[&node, NAME]].concat());
                let theirs = picture();
                cryptsetup_close(NAME);
                succeed(&mut open_with_luksctl(&rig, &volume, &options));
                assert_eq!(picture(), theirs, "{cipher}, sectors of {sector_bytes}, {options:?}");
                succeed(&mut rig.luksctl(&["close", NAME]));
                compared += 1;
            }
        }
    }
    assert!(compared >= FLAGS.len() + 2);
    kernel_leftovers::demand_none(&rig, &[], "tables");
}

/// The key, its halves, and the ways in which they get printed.
fn spellings(key: &[u8]) -> Vec<Vec<u8>> {
    let mut spellings = Vec::new();
    for part in [key, &key[..key.len() / 2], &key[key.len() / 2..]] {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{part:?}");
        spellings.extend([part.to_vec(), hex.to_uppercase().into(), hex.into(), list[1..list.len() - 1].into()]);
    }
    spellings
}

fn assert_absent(place: &str, bytes: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        assert_eq!(positions(bytes, secret).next(), None, "the key stands in {place}");
    }
}

fn assert_absent_below(folder: &Path, secrets: &[Vec<u8>]) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_absent_below(&entry.path(), secrets);
        } else if kind.is_file() {
            assert_absent(&entry.path().display().to_string(), &fs::read(entry.path()).unwrap(), secrets);
        }
    }
}

/// Runs `command` and looks through its memory after each ioctl of device-mapper, each key call, and at its end.
fn assert_absent_in_memory(command: &Command, what: &str, secrets: &[Vec<u8>]) {
    // The bytes, and their hexadecimal form as a table would have it; the first halves are in the whole key, too.
    let needles: Vec<&[u8]> =
        [4, 8, 6].into_iter().map(|index| &secrets[index][..FIRST_LEN.min(secrets[index].len())]).collect();
    let (mut stops, mut seen, mut searched) = (Vec::new(), 0, 0);
    let traced = trace(command, |pid, stop| {
        stops.push(stop);
        // In the short lane, only where a table has gone in; what the others leave is still there at the end.
        if matches!(stop, Stop::DmIoctl(number) if number != DM_TABLE_LOAD && !vm::is_full()) {
            return;
        }
        let Ok((findings, searched_bytes)) = search(pid, &needles) else { return };
        for finding in findings {
            let mapping = &finding.mapping;
            assert!(
                mapping.locked && mapping.undumped,
                "{what}, {stop:?}: needle {} unprotected: {finding:x?}",
                finding.needle
            );
            seen += 1;
        }
        searched += searched_bytes;
    });
    assert_eq!(traced.code, Some(0), "{what}: {}", String::from_utf8_lossy(&traced.stderr));
    assert_absent(&format!("what {what} says"), &[traced.stdout, traced.stderr].concat(), secrets);
    let count = |stop: Stop| stops.iter().filter(|seen| **seen == stop).count();
    let loads = count(Stop::DmIoctl(DM_TABLE_LOAD));
    let ioctls = stops.len() - count(Stop::Key) - count(Stop::End);
    eprintln!(
        "{what}: {ioctls} ioctls, {loads} of them load a table, {} key calls, {} ends; the key seen {seen} times in locked pages of {searched} bytes",
        count(Stop::Key),
        count(Stop::End)
    );
    let followed = ioctls >= 2 && count(Stop::Key) >= 1 && count(Stop::End) >= 1;
    assert!(followed, "{what} was not followed: {stops:?}");
    assert!(loads >= 1 || what == "resume", "{what} loaded no table: {stops:?}");
    assert!(seen > 0, "{what} never had the key: this proves nothing");
    assert!(searched > 1 << 20, "{what}: only {searched} bytes were readable");
}

#[test]
fn vm_lifecycle_the_key_is_nowhere_but_in_locked_memory() {
    let test = "vm_lifecycle_the_key_is_nowhere_but_in_locked_memory";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let rig = Rig::new("secret");
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 4096);
    let secrets = spellings(&fs::read(volume.key_path()).unwrap());
    assert_absent_in_memory(&open_with_luksctl(&rig, &volume, &[]), "open", &secrets);
    look_around(&rig, &secrets);
    succeed(&mut rig.luksctl(&["suspend", "-v", NAME]));
    look_around(&rig, &secrets);
    let mut resume = rig.luksctl(&["resume", "-v", "--key-file"]);
    resume.args([&volume.passphrase(), NAME]);
    assert_absent_in_memory(&resume, "resume", &secrets);
    look_around(&rig, &secrets);
    let mut resize = rig.luksctl(&["resize", "-v", "--size", "8M", "--key-file"]);
    resize.args([&volume.passphrase(), NAME]);
    assert_absent_in_memory(&resize, "resize", &secrets);
    look_around(&rig, &secrets);
    let closed = succeed(&mut rig.luksctl(&["close", "-v", NAME]));
    assert_absent("what close says", &[closed.stdout, closed.stderr].concat(), &secrets);
    assert_absent_in_files_and_lists(&rig, &secrets);
    drop(volume);
    kernel_leftovers::demand_none(&rig, &[], "the key");
}

/// Tables, with all that root may see of them, and everything else that says something of an open volume.
fn look_around(rig: &Rig, secrets: &[Vec<u8>]) {
    for arguments in
        [&["table", "--showkeys", NAME][..], &["table", "--showkeys", "--inactive", NAME], &["status", NAME]]
    {
        let output = attempt("dmsetup", arguments);
        assert_absent(&format!("dmsetup {arguments:?}"), &output.stdout, secrets);
    }
    for arguments in [&["status", "--json", NAME][..], &["status", "-v", NAME], &["list", "--json"]] {
        let output = run(&mut rig.luksctl(arguments));
        // 10: a suspended volume is something to report.
        assert!(matches!(output.status.code(), Some(0 | 10)), "{output:?}");
        assert_absent(&format!("{arguments:?}"), &[output.stdout, output.stderr].concat(), secrets);
    }
    assert_absent_in_files_and_lists(rig, secrets);
}

fn assert_absent_in_files_and_lists(rig: &Rig, secrets: &[Vec<u8>]) {
    assert_absent_below(&rig.run_dir(), secrets);
    assert_absent("the kernel's messages", output_of("dmesg", &[]).as_bytes(), secrets);
    assert_absent("/proc/keys", &fs::read("/proc/keys").unwrap(), secrets);
    for process in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(process.path().join(file)).unwrap_or_default();
            assert_absent(&format!("{}/{file}", process.path().display()), &bytes, secrets);
        }
    }
}
