//! The two locks on regular files. Loop devices need root: see `tests/tests/file_disk.rs`.

use super::*;
use crate::{Direct, OpenMode};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::time::Instant;

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_millis(60);

fn image() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, read_only: bool) -> FileDisk {
    FileDisk::open(file.path(), &OpenMode { read_only, direct: Direct::Never, exclusive: false }).unwrap()
}

fn is_busy<T>(result: Result<T, LockError>) -> bool {
    matches!(result.map(|_| ()), Err(LockError::Busy { .. }))
}

#[test]
fn two_opens_conflict_unless_both_only_read() {
    let file = image();
    let (first, second) = (open(&file, false), open(&file, false));
    let held = first.lock_use(false).unwrap();
    assert!(is_busy(second.lock_use(false)) && is_busy(second.lock_use(true)));
    drop(held);
    let reader = first.lock_use(true).unwrap();
    let other_reader = second.lock_use(true).unwrap();
    assert!(is_busy(open(&file, false).lock_use(false)));
    drop((reader, other_reader));
    drop(open(&file, false).lock_use(false).unwrap());
}

#[test]
fn one_disk_cannot_be_claimed_twice_even_by_its_clone() {
    let file = image();
    let disk = open(&file, false);
    let held = disk.lock_use(true).unwrap();
    assert!(is_busy(disk.clone().lock_use(true)));
    drop(held);
    disk.lock_use(false).unwrap();
}

#[test]
fn an_exclusive_claim_needs_a_writable_disk() {
    let file = image();
    assert!(matches!(open(&file, true).lock_use(false), Err(LockError::Io { .. })));
    open(&file, true).lock_use(true).unwrap();
}

#[test]
fn the_use_lock_does_not_stand_in_the_way_of_flock() {
    let file = image();
    let disk = open(&file, false);
    let _open = disk.lock_use(false).unwrap();
    flock(File::open(file.path()).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(disk.lock_metadata(false, NOW));
}

#[test]
fn while_the_metadata_is_locked_a_blocking_flock_waits() {
    let file = image();
    let held = open(&file, false).lock_metadata(false, NOW).unwrap();
    let other = File::open(file.path()).unwrap();
    assert!(flock(&other, FlockOperation::NonBlockingLockShared).is_err());
    let began = Instant::now();
    let waiter = std::thread::spawn(move || {
        flock(&other, FlockOperation::LockShared).unwrap();
        began.elapsed()
    });
    std::thread::sleep(SOON);
    drop(held);
    assert!(waiter.join().unwrap() >= SOON);
}

#[test]
fn the_metadata_lock_waits_for_a_flock_until_its_deadline() {
    let file = image();
    let other = File::open(file.path()).unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
    let disk = open(&file, true);
    let began = Instant::now();
    let error = disk.lock_metadata(true, SOON).map(|_| ()).unwrap_err();
    assert!(matches!(&error, LockError::Busy { what, waited } if what == file.path() && *waited >= SOON), "{error}");
    assert!(began.elapsed() < SOON * 10);
    let release = std::thread::spawn(move || {
        std::thread::sleep(SOON);
        drop(other);
    });
    drop(disk.lock_metadata(true, Duration::from_secs(20)).unwrap());
    release.join().unwrap();
}

#[test]
fn readers_of_the_metadata_share_and_writers_do_not_even_in_one_process() {
    let file = image();
    let disk = open(&file, false);
    let (first, second) = (disk.lock_metadata(true, NOW).unwrap(), disk.lock_metadata(true, NOW).unwrap());
    assert!(is_busy(disk.lock_metadata(false, NOW)));
    drop(first);
    assert!(is_busy(disk.lock_metadata(false, NOW)));
    drop(second);
    let writer = disk.lock_metadata(false, NOW).unwrap();
    assert!(is_busy(disk.lock_metadata(true, NOW)) && is_busy(open(&file, false).lock_metadata(true, NOW)));
    drop(writer);
    drop(disk.lock_metadata(true, NOW).unwrap());
}

#[test]
fn errors_say_what_and_how_long() {
    let busy = LockError::Busy { what: "/data/a.img".into(), waited: Duration::from_millis(1500) };
    assert_eq!(busy.to_string(), "/data/a.img is in use by another process (waited 1500 ms)");
}
