//! Promise: a mapping that we make is, to the kernel and to every other tool, the one that cryptsetup makes: the same
//! table, name, UUID and node, the same bytes; and nothing stays behind when it cannot be made.
//!
//! Runs in the VM lane (tests/vm/run), with and without udevd.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use block::Sectors;
use dmsetup::{CreateOptions, CryptOption, DmError, KeyReference, LoopOptions, Mapper, Mapping, Name, Owner, Uuid};
use promises::crypt_volume::{
    CryptVolume, DATA_LEN, attempt, cryptsetup_close, dmsetup_table, mapper_nodes, run, semaphores, starts_clean,
    volume_keys,
};
use promises::vm;
use secret::Secret;

const FLAGS: [(&str, CryptOption); 5] = [
    ("--allow-discards", CryptOption::AllowDiscards),
    ("--perf-same_cpu_crypt", CryptOption::SameCpuCrypt),
    ("--perf-submit_from_crypt_cpus", CryptOption::SubmitFromCryptCpus),
    ("--perf-no_read_workqueue", CryptOption::NoReadWorkqueue),
    ("--perf-no_write_workqueue", CryptOption::NoWriteWorkqueue),
];
const CIPHERS: [(&str, u32); 4] =
    [("aes-xts-plain64", 64), ("aes-xts-plain", 32), ("aes-cbc-essiv:sha256", 32), ("aes-cbc-plain64", 16)];

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn create(mapper: &Mapper, volume: &CryptVolume, called: &str) -> Mapping {
    let called = name(called);
    let uuid = volume.mapping_uuid(&called);
    mapper.create(&called, &uuid, DATA_LEN, &volume.target(), Some(&volume.key()), CreateOptions::default()).unwrap()
}

/// What must hold whenever a test has cleaned up.
fn assert_nothing_left() {
    assert_eq!(mapper_nodes(), Vec::<String>::new(), "nodes in /dev/mapper");
    assert_eq!(run("dmsetup", &["ls"]), "No devices found");
    assert_eq!(volume_keys(), Vec::<String>::new());
    assert_eq!(semaphores(), 0, "cookies of udev");
}

/// cryptsetup opens, we look; we open, dmsetup looks: the same text, once for each set of flags.
fn compare_tables(volume: &CryptVolume, flag_sets: &[usize]) {
    let mapper = Mapper::open().unwrap();
    let called = name("tables");
    for set in flag_sets {
        let chosen = || FLAGS.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, flag)| flag);
        let options: Vec<&str> = chosen().map(|(option, _)| *option).collect();
        volume.cryptsetup_open("tables", &options);
        let theirs = dmsetup_table("tables");
        let their_uuid = run("dmsetup", &["info", "-c", "--noheadings", "-o", "uuid", "tables"]);
        let seen = mapper.mapping(&called).unwrap();
        assert_eq!(seen.table().unwrap().to_string(), theirs);
        assert_eq!(seen.uuid().unwrap().as_str(), their_uuid);
        cryptsetup_close("tables");

        let target = chosen().fold(volume.target(), |target, (_, option)| target.with_option(option.clone()));
        let uuid = volume.mapping_uuid(&called);
        let ours =
            mapper.create(&called, &uuid, DATA_LEN, &target, Some(&volume.key()), CreateOptions::default()).unwrap();
        assert_eq!(dmsetup_table("tables"), theirs, "{options:?}");
        assert_eq!(uuid.as_str(), their_uuid);
        assert_eq!(ours.table().unwrap().target, target);
        assert_eq!(ours.dropped(), []);
        ours.remove(false).unwrap();
    }
}

#[test]
fn vm_dmsetup_tables_equal_cryptsetups_for_every_cipher_and_flag() {
    let test = "vm_dmsetup_tables_equal_cryptsetups_for_every_cipher_and_flag";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let all: Vec<usize> = (0..1 << FLAGS.len()).collect();
    for (index, (cipher, key_bytes)) in CIPHERS.into_iter().enumerate() {
        for sector_bytes in [512, 4096] {
            eprintln!("{cipher}, {sector_bytes}");
            let volume = CryptVolume::luks2(cipher, key_bytes, sector_bytes);
            // The short lane takes every flag alone, all together, and none, spread over the ciphers.
            let some = match (sector_bytes, index) {
                (512, _) => 1 << index,
                (_, 0) => 1 << CIPHERS.len(),
                (_, 1) => all.len() - 1,
                _ => 0,
            };
            compare_tables(&volume, if vm::is_full() { &all } else { std::slice::from_ref(&some) });
        }
    }
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_luks1_table_equals_cryptsetups() {
    if !starts_clean("vm_dmsetup_luks1_table_equals_cryptsetups") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks1("aes-xts-plain64", 64);
    let called = name("one");
    volume.cryptsetup_open("one", &[]);
    let theirs = dmsetup_table("one");
    let seen = mapper.mapping(&called).unwrap();
    assert_eq!(seen.uuid().unwrap(), &Uuid::luks1(&volume.uuid, &called).unwrap());
    assert!(matches!(seen.uuid().unwrap().owner(), Owner::Luks1 { .. }));
    let table = seen.table().unwrap();
    cryptsetup_close("one");

    // cryptsetup puts the key of a LUKS1 volume into the table; ours is in the keyring, the rest is the same.
    assert!(theirs.contains(&volume.key_hex()), "this cryptsetup does it otherwise: {}", theirs.len());
    assert_eq!(table.to_string(), theirs.replace(&volume.key_hex(), &"00".repeat(64)));
    assert_eq!(table.target.key, KeyReference::Inline { len_bytes: 64, zeros: false });
    let uuid = Uuid::luks1(&volume.uuid, &called).unwrap();
    let target = volume.target();
    let ours = mapper.create(&called, &uuid, DATA_LEN, &target, Some(&volume.key()), CreateOptions::default()).unwrap();
    let reference = volume.reference().to_string();
    assert_eq!(dmsetup_table("one"), theirs.replace(&volume.key_hex(), &reference));
    ours.remove(false).unwrap();
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_mapping_holds_the_bytes_that_cryptsetup_reads() {
    let test = "vm_dmsetup_mapping_holds_the_bytes_that_cryptsetup_reads";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let mapper = Mapper::open().unwrap();
    for (cipher, key_bytes) in CIPHERS {
        let volume = CryptVolume::luks2(cipher, key_bytes, 4096);
        let mut data = vec![0; 1 << 20];
        getrandom::fill(&mut data).unwrap();
        let ours = create(&mapper, &volume, "bytes");
        let mut device = fs::OpenOptions::new().write(true).open(ours.device_path()).unwrap();
        device.write_all(&data).and_then(|()| device.sync_all()).unwrap();
        drop(device);
        ours.remove(false).unwrap();

        volume.cryptsetup_open("bytes", &[]);
        let mut read = vec![0; data.len()];
        fs::File::open("/dev/mapper/bytes").unwrap().read_exact(&mut read).unwrap();
        assert!(read == data, "{cipher}");
        cryptsetup_close("bytes");
    }
    assert_nothing_left();
}

/// Whether `/dev/mapper/NAME` leads to the mapping, and is of the kind that this round's tools make.
fn assert_node(mapping: &Mapping) {
    let path = mapping.device_path();
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_block_device());
    assert_eq!(meta.rdev(), mapping.devno().rdev());
    assert_eq!(fs::symlink_metadata(&path).unwrap().file_type().is_symlink(), vm::has_udev(), "a link is udev's");
}

#[test]
fn vm_dmsetup_nodes_come_and_go_whoever_opens_and_closes() {
    if !starts_clean("vm_dmsetup_nodes_come_and_go_whoever_opens_and_closes") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    for (we_open, we_close) in [(true, true), (true, false), (false, true), (false, false)] {
        let mapping = if we_open {
            create(&mapper, &volume, "a.node")
        } else {
            volume.cryptsetup_open("a.node", &[]);
            mapper.mapping(&name("a.node")).unwrap()
        };
        assert_node(&mapping);
        assert_eq!(mapper_nodes(), ["a.node"]);
        assert_eq!(volume_keys().len(), 0, "the key left the keyring");
        let status = run("cryptsetup", &["status", "a.node"]);
        assert!(status.contains("LUKS2") && status.contains("keyring"), "{status}");
        if we_close {
            mapping.remove(false).unwrap();
        } else {
            cryptsetup_close("a.node");
        }
        assert!(!Path::new("/dev/mapper/a.node").exists(), "opened by us {we_open}, closed by us {we_close}");
        assert!(matches!(mapping.info(), Err(DmError::NotActive { .. })));
        assert_nothing_left();
    }
}

#[test]
fn vm_dmsetup_a_socket_without_udevd_is_not_waited_for() {
    let test = "vm_dmsetup_a_socket_without_udevd_is_not_waited_for";
    if !starts_clean(test) {
        return;
    }
    if vm::has_udev() {
        promises::skip(test, "needs a round without udevd");
        return;
    }
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    fs::create_dir_all("/run/udev").unwrap();
    // Bound and closed: what a udevd that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind("/run/udev/control").unwrap());
    let mapping = create(&Mapper::open().unwrap(), &volume, "stale");
    let path = mapping.device_path();
    let was_there = path.exists();
    mapping.remove(false).unwrap();
    fs::remove_file("/run/udev/control").unwrap();
    assert!(was_there && !path.exists());
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_names_and_uuids_in_use_are_told_apart() {
    if !starts_clean("vm_dmsetup_names_and_uuids_in_use_are_told_apart") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let (volume, other) =
        (CryptVolume::luks2("aes-xts-plain64", 64, 512), CryptVolume::luks2("aes-xts-plain64", 64, 512));
    let mapping = create(&mapper, &volume, "taken");
    let again = |called: &str, uuid: &Uuid, volume: &CryptVolume| {
        let options = CreateOptions::default();
        mapper.create(&name(called), uuid, DATA_LEN, &volume.target(), Some(&volume.key()), options).unwrap_err()
    };
    let error = again("taken", &other.mapping_uuid(&name("taken")), &other);
    assert!(matches!(error, DmError::NameInUse { .. }), "{error}");
    let error = again("second", mapping.uuid().unwrap(), &other);
    assert!(matches!(&error, DmError::UuidInUse { holder, .. } if holder == "taken"), "{error}");
    assert_eq!(mapper_nodes(), ["taken"], "the first mapping is untouched");
    assert_node(&mapping);

    let listed = mapper.list().unwrap();
    assert_eq!(listed.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["taken"]);
    assert_eq!(mapper.find_volume(&volume.uuid).unwrap(), listed);
    assert_eq!(mapper.find_volume(&other.uuid).unwrap(), []);
    assert_eq!(mapping.dependencies().unwrap(), [volume.devno()]);
    mapping.remove(false).unwrap();
    assert_eq!(mapper.list().unwrap(), []);
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_what_cannot_be_made_leaves_nothing() {
    if !starts_clean("vm_dmsetup_what_cannot_be_made_leaves_nothing") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let mut volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let called = name("never");
    let uuid = volume.mapping_uuid(&called);
    let fails = |target: &dmsetup::CryptTarget, key: Option<&Secret>| {
        mapper.create(&called, &uuid, DATA_LEN, target, key, CreateOptions::default()).unwrap_err()
    };
    let key = volume.key();
    let mut target = volume.target();
    target.cipher = "aes-nosuchmode-plain64".into();
    let error = fails(&target, Some(&key));
    assert!(matches!(error, DmError::NoCipher { .. }), "{error}");
    let error = fails(&volume.target().with_option("flag_of_tomorrow".parse().unwrap()), Some(&key));
    assert!(matches!(error, DmError::TableRefused { .. }), "{error}");
    let error = fails(&volume.target(), None);
    assert!(matches!(error, DmError::TableRefused { .. }), "no such key in the keyring: {error}");
    let short = Secret::copy_of(&[1; 32]).unwrap();
    let error = fails(&volume.target(), Some(&short));
    assert!(matches!(error, DmError::KeyMismatch { .. }), "{error}");

    let _ = run("mkfs.ext4", &["-q", &volume.loop_path()]);
    let folder = tempfile::tempdir().unwrap();
    let _ = run("mount", &[&volume.loop_path(), folder.path().to_str().unwrap()]);
    let error = fails(&volume.target(), Some(&key));
    let _ = run("umount", &[folder.path().to_str().unwrap()]);
    assert!(matches!(error, DmError::BackingBusy { .. }), "{error}");

    let quota = "/proc/sys/kernel/keys/root_maxbytes";
    let before = fs::read_to_string(quota).unwrap();
    fs::write(quota, "1").unwrap();
    let error = fails(&volume.target(), Some(&key));
    fs::write(quota, before).unwrap();
    assert!(matches!(error, DmError::KeyringQuota { uid: 0, .. }), "{error}");

    volume.take_loop().detach().unwrap();
    let options = LoopOptions { read_only: true, direct_io: true, block_size: 4096, autoclear: true };
    let device = dmsetup::attach(&volume.image(), &options).unwrap();
    target.cipher = volume.cipher.clone();
    target.device = device.devno().unwrap().into();
    let error = fails(&target, Some(&key));
    assert!(matches!(error, DmError::BackingReadOnly { .. }), "{error}");
    let read_only = CreateOptions { read_only: true, ..CreateOptions::default() };
    let mapping = mapper.create(&called, &uuid, DATA_LEN, &target, Some(&key), read_only).unwrap();
    assert!(mapping.info().unwrap().read_only);
    assert_eq!(run("blockdev", &["--getro", mapping.device_path().to_str().unwrap()]), "1");

    // The mapping alone keeps the autoclear device; with it the device goes.
    let number = device.number();
    drop(device);
    let attached = || dmsetup::attached().unwrap().iter().any(|info| info.number == number);
    assert!(attached());
    mapping.remove(false).unwrap();
    for _ in 0..500 {
        if !attached() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!attached(), "the loop device outlived its mapping");
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_speed_options_may_be_dropped_and_others_never() {
    if !starts_clean("vm_dmsetup_speed_options_may_be_dropped_and_others_never") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 4096);
    let called = name("speed");
    let uuid = volume.mapping_uuid(&called);
    let wanted = volume.target().with_option(CryptOption::AllowDiscards);
    // More words than the kernel takes: to it they are as wrong as words that it does not know.
    let mut target = wanted.clone();
    target.options.extend(vec![CryptOption::SameCpuCrypt; 20]);
    let make = |target: &dmsetup::CryptTarget, drop_unknown_performance_options| {
        let options = CreateOptions { drop_unknown_performance_options, ..CreateOptions::default() };
        mapper.create(&called, &uuid, DATA_LEN, target, Some(&volume.key()), options)
    };
    let error = make(&target, false).unwrap_err();
    assert!(matches!(error, DmError::TableRefused { .. }), "{error}");
    let mapping = make(&target, true).unwrap();
    assert_eq!(mapping.dropped(), vec![CryptOption::SameCpuCrypt; 20]);
    assert_eq!(mapping.table().unwrap().target, wanted);
    mapping.remove(false).unwrap();
    target.options.push(CryptOption::Other("flag_of_tomorrow".into()));
    let error = make(&target, true).unwrap_err();
    assert!(matches!(error, DmError::TableRefused { .. }), "{error}");
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_what_a_killed_opener_left_is_removed() {
    if !starts_clean("vm_dmsetup_what_a_killed_opener_left_is_removed") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let called = name("killed");
    let uuid = volume.mapping_uuid(&called);
    let _ = run("dmsetup", &["create", "killed", "--notable", "-u", uuid.as_str()]);
    let other = volume.mapping_uuid(&name("other"));
    assert!(!mapper.remove_unfinished(&called, &other).unwrap(), "another volume's is left alone");
    assert!(mapper.remove_unfinished(&called, &uuid).unwrap());
    assert!(!mapper.remove_unfinished(&called, &uuid).unwrap());
    let mapping = create(&mapper, &volume, "killed");
    assert!(!mapper.remove_unfinished(&called, &uuid).unwrap(), "a live one is left alone");
    fs::remove_file(mapping.device_path()).unwrap();
    mapping.ensure_node().unwrap();
    assert_eq!(fs::metadata(mapping.device_path()).unwrap().rdev(), mapping.devno().rdev());
    mapping.remove(false).unwrap();
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_a_udevd_that_hangs_is_not_waited_for_without_end() {
    let test = "vm_dmsetup_a_udevd_that_hangs_is_not_waited_for_without_end";
    if !starts_clean(test) {
        return;
    }
    if !vm::is_full() || !vm::has_udev() {
        promises::skip(test, "takes minutes: the round with udevd of make test-vm-full");
        return;
    }
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let udevd = run("pidof", &["systemd-udevd"]);
    let _ = run("kill", &["-STOP", &udevd]);
    let mapping = create(&Mapper::open().unwrap(), &volume, "hung");
    let made = fs::metadata(mapping.device_path()).map(|meta| meta.rdev());
    mapping.remove(false).unwrap();
    let removed = !mapping.device_path().exists();
    let _ = run("kill", &["-CONT", &udevd]);
    let _ = run("udevadm", &["settle"]);
    assert_eq!(made.unwrap(), mapping.devno().rdev());
    assert!(removed);
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_needs_root_and_says_so() {
    if !starts_clean("vm_dmsetup_needs_root_and_says_so") {
        return;
    }
    // Only this thread becomes nobody, and it ends here.
    let opened = std::thread::spawn(|| {
        let nobody = rustix::process::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        Mapper::open().map(drop)
    });
    let error = opened.join().unwrap().unwrap_err();
    assert!(matches!(error, DmError::NoPermission { .. }), "{error}");
    assert!(dmsetup::has_device_mapper());
}

/// Name of the variable that makes this binary's own child of it do something else than test.
const CHILD: &str = "LUKS_TEST_DMSETUP_CHILD";

/// Not a promise of its own: the process in whose memory `vm_dmsetup_no_key_in_tables_or_memory` looks.
#[test]
fn child_that_makes_and_reads_mappings() {
    let Ok(arguments) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let [key_path, target @ ..] = words.as_slice() else { panic!("{arguments}") };
    let target: dmsetup::CryptTarget = target.join(" ").parse().unwrap();
    let mapper = Mapper::open().unwrap();
    let called = name("memory");
    let mut key = Secret::zeroed(64).unwrap();
    fs::File::open(key_path).unwrap().read_exact(key.expose_mut()).unwrap();
    let uuid = "CRYPT-PLAIN-memory".parse().unwrap();
    let mapping = mapper.create(&called, &uuid, DATA_LEN, &target, Some(&key), CreateOptions::default()).unwrap();
    drop(key);
    let foreign = mapper.mapping(&name("foreign")).unwrap();
    println!("\nready {:?} {:?} {}", mapping.table().unwrap(), foreign.table().unwrap(), foreign.table().unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    mapping.remove(false).unwrap();
}

#[test]
fn vm_dmsetup_no_key_in_tables_or_memory() {
    if !starts_clean("vm_dmsetup_no_key_in_tables_or_memory") {
        return;
    }
    let (volume, foreign) =
        (CryptVolume::luks2("aes-xts-plain64", 64, 512), CryptVolume::luks2("aes-xts-plain64", 64, 512));
    foreign.cryptsetup_open("foreign", &["--disable-keyring"]);
    assert!(dmsetup_table("foreign").contains(&foreign.key_hex()), "the other tool's table must hold its key");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "child_that_makes_and_reads_mappings"])
        .env(CHILD, format!("{} {}", volume.key_path().display(), volume.target()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.find(|line| line.starts_with("ready")).expect("the child made its mapping");
    let needles: Vec<Vec<u8>> = [&volume, &foreign]
        .iter()
        .flat_map(|volume| [volume.key_hex().into_bytes(), volume.key().expose().to_vec()])
        .map(|needle| needle[..32].to_vec())
        .collect();
    let needle_slices: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();
    let (found, searched_bytes) = promises::memory::search(child.id(), &needle_slices).unwrap();
    let shown = dmsetup_table("memory");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    cryptsetup_close("foreign");
    assert!(found.is_empty() && searched_bytes > 1 << 20, "{found:?} in {searched_bytes} bytes");
    for text in [said, shown] {
        assert!(!text.contains(&volume.key_hex()[..16]) && !text.contains(&foreign.key_hex()[..16]), "{}", text.len());
    }
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_tables_of_other_tools_are_named_as_such() {
    if !starts_clean("vm_dmsetup_tables_of_other_tools_are_named_as_such") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let _ = run("dmsetup", &["create", "others", "--table", "0 4096 zero"]);
    let others = mapper.mapping(&name("others")).unwrap();
    let error = others.table().unwrap_err();
    assert!(matches!(&error, DmError::Foreign { targets, .. } if targets == "zero"), "{error}");
    let ranges = others.targets().unwrap();
    assert_eq!((ranges.len(), ranges[0].kind.as_str(), ranges[0].len), (1, "zero", Sectors(4096)));
    assert_eq!(others.uuid(), None);
    others.remove(false).unwrap();
    let _ = run("dmsetup", &["create", "empty", "--notable"]);
    let empty = mapper.mapping(&name("empty")).unwrap();
    assert!(matches!(empty.table(), Err(DmError::Foreign { .. })));
    assert!(!empty.info().unwrap().live_table);
    assert!(!attempt("cryptsetup", &["status", "nothing"]).status.success());
    empty.remove(false).unwrap();
    assert!(mapper.targets().unwrap().iter().any(|target| target.name == "crypt" && target.version.0 == 1));
    assert!(mapper.version().unwrap() >= (4, 40, 0));
    assert_nothing_left();
}
