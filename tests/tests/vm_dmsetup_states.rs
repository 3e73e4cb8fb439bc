//! Promise: suspend wipes the key and only the key brings the data back; a resize or a change of flags happens under a
//! mounted file system; a mapping in use is not removed; what went wrong below is said by name.
//!
//! Runs in the VM lane (tests/vm/run), with and without udevd.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use block::Sectors;
use dmsetup::{CreateOptions, CryptOption, DmError, KeyReference, Mapper, Mapping, Name, Removal, SuspendOptions};
use promises::crypt_volume::{
    CryptVolume, DATA_LEN, DATA_OFFSET, attempt, cryptsetup_close, dmsetup_table, mapper_nodes, run, starts_clean,
    volume_keys,
};
use promises::vm;
use secret::Secret;

const WIPE: SuspendOptions = SuspendOptions { flush: true, lock_fs: true, wipe_key: true };
/// A read that has to block is given this long to be wrong.
const GRACE: Duration = Duration::from_millis(500);
/// A read that has to come back is waited for this long.
const DEADLINE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn create(mapper: &Mapper, volume: &CryptVolume, called: &str, sectors: Sectors) -> Mapping {
    let called = name(called);
    let uuid = volume.mapping_uuid(&called);
    mapper.create(&called, &uuid, sectors, &volume.target(), Some(&volume.key()), CreateOptions::default()).unwrap()
}

fn assert_nothing_left() {
    assert_eq!(mapper_nodes(), Vec::<String>::new(), "nodes in /dev/mapper");
    assert_eq!(run("dmsetup", &["ls"]), "No devices found");
    assert_eq!(volume_keys(), Vec::<String>::new());
}

/// Writes a pattern over the first MiB, past the page cache from now on.
fn fill(mapping: &Mapping) {
    let mut device = fs::OpenOptions::new().write(true).open(mapping.device_path()).unwrap();
    device.write_all(&vec![0x5a; 1 << 20]).and_then(|()| device.sync_all()).unwrap();
    drop(device);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// A thread that reads the first MiB and tells whether the pattern came back.
fn reader(path: &Path) -> mpsc::Receiver<bool> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        let mut data = vec![0; 1 << 20];
        let read = File::open(path).and_then(|mut device| device.read_exact(&mut data));
        let _ = sender.send(read.is_ok() && data.iter().all(|byte| *byte == 0x5a));
    });
    receiver
}

fn assert_wiped(mapping: &Mapping, key_bytes: u32) {
    let info = mapping.info().unwrap();
    assert!(info.suspended && info.live_table);
    let table = mapping.table().unwrap();
    assert_eq!(table.target.key, KeyReference::Inline { len_bytes: key_bytes, zeros: true });
    let shown = dmsetup_table(mapping.name().as_str());
    assert!(shown.contains(&"00".repeat(usize::try_from(key_bytes).unwrap())), "{shown}");
}

#[test]
fn vm_dmsetup_suspend_wipes_the_key_and_only_the_key_resumes() {
    if !starts_clean("vm_dmsetup_suspend_wipes_the_key_and_only_the_key_resumes") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 4096);
    let mapping = create(&mapper, &volume, "sleep", DATA_LEN);
    let before = dmsetup_table("sleep");
    fill(&mapping);
    mapping.suspend(WIPE).unwrap();
    assert_wiped(&mapping, 64);
    let read = reader(&mapping.device_path());
    assert!(read.recv_timeout(GRACE).is_err(), "a read came back from a suspended mapping");

    let error = mapping.resume(None).unwrap_err();
    assert!(matches!(error, DmError::KeyNeeded { .. }), "{error}");
    // The kernel itself refuses, too.
    assert!(!attempt("dmsetup", &["resume", "sleep"]).status.success());
    let short = Secret::copy_of(&[1; 32]).unwrap();
    let error = mapping.resume(Some((&volume.reference(), &short))).unwrap_err();
    assert!(matches!(error, DmError::KeyMismatch { .. }), "{error}");
    let shorter = KeyReference::luks2(32, &volume.uuid, 0);
    let error = mapping.resume(Some((&shorter, &short))).unwrap_err();
    assert!(matches!(error, DmError::KeyMismatch { .. }), "{error}");
    let error = mapping.reload(DATA_LEN, &volume.target(), Some(&volume.key())).unwrap_err();
    assert!(matches!(error, DmError::Suspended { .. }), "{error}");
    assert_wiped(&mapping, 64);
    assert!(read.recv_timeout(GRACE).is_err(), "a read came back without the key");

    mapping.resume(Some((&volume.reference(), &volume.key()))).unwrap();
    assert!(read.recv_timeout(DEADLINE).unwrap(), "the read got the bytes");
    assert_eq!(dmsetup_table("sleep"), before);
    assert_eq!(volume_keys(), Vec::<String>::new());
    let error = mapping.resume(None).unwrap_err();
    assert!(matches!(error, DmError::NotSuspended { .. }), "{error}");

    // Without wiping, the key is not asked for; wiping may come second.
    mapping.suspend(SuspendOptions { flush: false, lock_fs: false, wipe_key: false }).unwrap();
    assert_eq!(dmsetup_table("sleep"), before);
    mapping.resume(None).unwrap();
    mapping.suspend(SuspendOptions::default()).unwrap();
    mapping.suspend(WIPE).unwrap();
    assert_wiped(&mapping, 64);
    mapping.resume(Some((&volume.reference(), &volume.key()))).unwrap();
    mapping.remove(false).unwrap();
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_suspends_what_cryptsetup_resumes_and_the_reverse() {
    if !starts_clean("vm_dmsetup_suspends_what_cryptsetup_resumes_and_the_reverse") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let mapping = create(&mapper, &volume, "both", DATA_LEN);
    fill(&mapping);
    mapping.suspend(WIPE).unwrap();
    let _ = run("cryptsetup", &["luksResume", "both", &format!("--key-file={}", volume.passphrase())]);
    assert!(reader(&mapping.device_path()).recv_timeout(DEADLINE).unwrap());
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let _ = run("cryptsetup", &["luksSuspend", "both"]);
    assert_wiped(&mapping, 64);
    mapping.resume(Some((&volume.reference(), &volume.key()))).unwrap();
    assert!(reader(&mapping.device_path()).recv_timeout(DEADLINE).unwrap());
    cryptsetup_close("both");
    assert_nothing_left();
}

#[test]
fn vm_dmsetup_table_changes_under_a_mounted_file_system() {
    if !starts_clean("vm_dmsetup_table_changes_under_a_mounted_file_system") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 4096);
    let mapping = create(&mapper, &volume, "grow", Sectors(16384));
    let path = mapping.device_path().display().to_string();
    let _ = run("mkfs.ext4", &["-q", &path]);
    let folder = tempfile::tempdir().unwrap();
    let _ = run("mount", &[&path, folder.path().to_str().unwrap()]);
    let file = folder.path().join("file");
    fs::write(&file, vec![7; 1 << 20]).unwrap();

    let flagged = volume.target().with_option(CryptOption::AllowDiscards).with_option(CryptOption::NoReadWorkqueue);
    mapping.reload(DATA_LEN, &flagged, Some(&volume.key())).unwrap();
    let table = mapping.table().unwrap();
    assert_eq!((table.len, &table.target), (DATA_LEN, &flagged));
    assert_eq!(dmsetup_table("grow"), table.to_string());
    assert_eq!(run("blockdev", &["--getsz", &path]), DATA_LEN.0.to_string());
    let _ = run("resize2fs", &[&path]);

    // A table that the kernel refuses leaves the live one in use.
    let mut broken = flagged.clone();
    broken.cipher = "aes-nosuchmode-plain64".into();
    let error = mapping.reload(DATA_LEN, &broken, Some(&volume.key())).unwrap_err();
    assert!(matches!(error, DmError::NoCipher { .. }), "{error}");
    let info = mapping.info().unwrap();
    assert!(!info.suspended && !info.inactive_table);
    assert_eq!(mapping.inactive_table().unwrap(), None);
    assert_eq!(mapping.table().unwrap(), table);

    fs::write(folder.path().join("second"), vec![8; 1 << 20]).unwrap();
    assert!(fs::read(&file).unwrap().iter().all(|byte| *byte == 7));
    let error = mapping.remove(false).unwrap_err();
    assert!(matches!(error, DmError::Busy { how, .. } if how.contains("mounted")), "{error}");
    let _ = run("umount", &[folder.path().to_str().unwrap()]);
    let _ = run("e2fsck", &["-fn", &path]);
    mapping.reload(Sectors(16384), &volume.target(), Some(&volume.key())).unwrap();
    assert_eq!(run("blockdev", &["--getsz", &path]), "16384");
    // cryptsetup goes on with what we changed.
    let _ = run("cryptsetup", &["resize", "grow", &format!("--key-file={}", volume.passphrase())]);
    assert_eq!(mapping.table().unwrap().len, DATA_LEN);
    let _ = run("e2fsck", &["-fn", &path]);
    mapping.remove(false).unwrap();
    assert_nothing_left();
}

fn wait_until_gone(mapping: &Mapping) {
    let until = Instant::now() + DEADLINE;
    // A link that leads nowhere is there, too, until udev comes round to it.
    let node = || fs::symlink_metadata(mapping.device_path()).is_ok();
    while mapping.info().is_ok() || (node() && vm::has_udev()) {
        assert!(Instant::now() < until, "a deferred removal did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn vm_dmsetup_in_use_is_busy_or_removed_later() {
    if !starts_clean("vm_dmsetup_in_use_is_busy_or_removed_later") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let mapping = create(&mapper, &volume, "held", DATA_LEN);
    let path = mapping.device_path();

    let holder = File::open(&path).unwrap();
    let error = mapping.remove(false).unwrap_err();
    assert!(matches!(error, DmError::Busy { how, .. } if how.contains("program")), "{error}");
    assert_eq!(mapping.info().unwrap().open_count, 1);
    assert!(path.exists() && !mapping.is_claimed());
    // Who only looks for a moment is waited for.
    let looker = std::thread::spawn(move || {
        std::thread::sleep(GRACE);
        drop(holder);
    });
    assert_eq!(mapping.remove(false).unwrap(), Removal::Removed);
    looker.join().unwrap();
    assert_nothing_left();

    let mapping = create(&mapper, &volume, "held", DATA_LEN);
    let claim = fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path).unwrap();
    assert!(mapping.is_claimed());
    let error = mapping.remove(false).unwrap_err();
    assert!(matches!(error, DmError::Busy { how, .. } if how.contains("mounted")), "{error}");
    assert_eq!(mapping.remove(true).unwrap(), Removal::Deferred);
    assert!(mapping.info().unwrap().deferred_remove);
    let node_while_held = path.exists();
    drop(claim);
    wait_until_gone(&mapping);
    let error = mapping.remove(false).unwrap_err();
    assert!(matches!(error, DmError::NotActive { .. }), "{error}");
    assert_nothing_left();

    let mapping = create(&mapper, &volume, "held", DATA_LEN);
    let holder = File::open(&path).unwrap();
    let _ = run("cryptsetup", &["close", "--deferred", "held"]);
    assert_eq!(path.exists(), node_while_held, "the node, as cryptsetup treats it");
    drop(holder);
    wait_until_gone(&mapping);
    assert_nothing_left();

    for _ in 0..if vm::is_full() { 100 } else { 5 } {
        let mapping = create(&mapper, &volume, "held", DATA_LEN);
        // Nobody uses it but udev, perhaps, for a moment.
        if mapping.remove(true).unwrap() == Removal::Deferred {
            assert!(vm::has_udev());
            wait_until_gone(&mapping);
        }
        assert_nothing_left();
    }
}

#[test]
fn vm_dmsetup_what_went_wrong_below_is_named() {
    if !starts_clean("vm_dmsetup_what_went_wrong_below_is_named") {
        return;
    }
    let mapper = Mapper::open().unwrap();
    let mut volume = CryptVolume::luks2("aes-xts-plain64", 64, 512);
    let mapping = create(&mapper, &volume, "below", DATA_LEN);
    mapping.check_backing().unwrap();

    let image = fs::OpenOptions::new().write(true).open(volume.image()).unwrap();
    image.set_len((DATA_OFFSET.0 + 8) * 512).unwrap();
    dmsetup::set_capacity(Path::new(&volume.loop_path())).unwrap();
    let error = mapping.check_backing().unwrap_err();
    assert!(matches!(error, DmError::BackingShrank { size_sectors: 32776, needed_sectors: 65536, .. }), "{error}");
    // What lies behind the new end is an error to whoever reads it, no hang and no zeros.
    let mut device = File::open(mapping.device_path()).unwrap();
    std::io::Seek::seek(&mut device, std::io::SeekFrom::Start(1 << 20)).unwrap();
    assert!(device.read_exact(&mut [0; 4096]).is_err());
    drop(device);
    image.set_len((DATA_OFFSET.0 + DATA_LEN.0) * 512).unwrap();
    dmsetup::set_capacity(Path::new(&volume.loop_path())).unwrap();
    mapping.check_backing().unwrap();

    // Detaching the loop device by hand: refused while the mapping is there, by us and by the kernel.
    let device = volume.take_loop();
    let path = device.path().to_path_buf();
    assert!(matches!(device.detach(), Err(dmsetup::LoopError::Busy { .. })));
    fs::remove_file(volume.image()).unwrap();
    let error = mapping.check_backing().unwrap_err();
    assert!(matches!(error, DmError::BackingGone { .. }), "{error}");
    mapping.remove(false).unwrap();
    dmsetup::detach(&path).unwrap();
    assert_nothing_left();
}
