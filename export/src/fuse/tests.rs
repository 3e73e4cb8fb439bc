//! Real mounts: bytes against a model, errors that must come through, the blocked disk, the end of a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use block::{BlockErrorKind, Bytes, Geometry, MemDisk};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::*;

const SIZE: u64 = (8 << 20) + 5 * 512;

struct Rig {
    export: FuseExport,
    _folder: tempfile::TempDir,
}

/// For unmounts: a process that another test is just starting has our files open until its exec, and a loop device
/// lets go of its file a moment after it was detached.
const PATIENCE: Duration = Duration::from_secs(10);

impl Rig {
    fn open(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.export.file_path()).unwrap()
    }

    /// Unmounts.
    fn end(self) {
        self.export.unmount_within(PATIENCE).unwrap();
    }
}

fn mounted<B: BlockIo + 'static>(test: &str, disk: &Arc<B>, change: impl FnOnce(&mut FuseOptions)) -> Option<Rig> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED export::fuse {test}: needs /dev/fuse: {error}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = FuseOptions { punch_hole: PunchHole::WriteZeroes, ..FuseOptions::default() };
    change(&mut options);
    let export = serve(Arc::clone(disk), folder.path(), &options).unwrap();
    Some(Rig { export, _folder: folder })
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap()
}

/// A disk that counts, and fails or blocks on demand.
struct Probe {
    disk: MemDisk,
    fail_flush: AtomicBool,
    blocked: AtomicBool,
    entered: AtomicU64,
    flushes: AtomicU64,
    fua_writes: AtomicU64,
}

impl Probe {
    fn new() -> Arc<Probe> {
        Arc::new(Probe {
            disk: MemDisk::new(Bytes(SIZE)),
            fail_flush: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            entered: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            fua_writes: AtomicU64::new(0),
        })
    }

    fn gate(&self) {
        self.entered.fetch_add(1, Ordering::SeqCst);
        while self.blocked.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl BlockIo for Probe {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        self.gate();
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.gate();
        self.fua_writes.fetch_add(u64::from(fua), Ordering::SeqCst);
        self.disk.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.gate();
        self.disk.write_zeroes(offset, len)
    }
    fn discard(&self, _: Bytes, _: Bytes) -> Result<(), BlockError> {
        panic!("an export never discards")
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.gate();
        self.flushes.fetch_add(1, Ordering::SeqCst);
        if self.fail_flush.load(Ordering::SeqCst) {
            return Err(BlockError::new(BlockErrorKind::Io, "flush", Bytes(0), 0));
        }
        self.disk.flush()
    }
}

#[test]
fn bytes_match_a_model_under_unaligned_access_from_many_threads() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let test = "bytes_match_a_model_under_unaligned_access_from_many_threads";
    let Some(rig) = mounted(test, &disk, |_| ()) else { return };
    const THREADS: u64 = 6;
    // Regions that end inside a block: neighbours change the same blocks at the same time.
    let bound = |index: u64| index * (SIZE / THREADS) / 7 * 7;
    let models: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|index| {
                let file = rig.open();
                let (start, end) = (bound(index), if index + 1 == THREADS { SIZE } else { bound(index + 1) });
                scope.spawn(move || {
                    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (index + 1);
                    let mut model = vec![0_u8; usize::try_from(end - start).unwrap()];
                    for _ in 0..300 {
                        let at = usize::try_from(xorshift(&mut state)).unwrap() % model.len();
                        let most = if xorshift(&mut state).is_multiple_of(8) { 1 << 20 } else { 9000 };
                        let len = (usize::try_from(xorshift(&mut state)).unwrap() % most).min(model.len() - at);
                        if xorshift(&mut state).is_multiple_of(2) {
                            let fill = state.to_le_bytes()[0];
                            model[at..at + len].fill(fill);
                            file.write_all_at(&model[at..at + len], start + at as u64).unwrap();
                        } else {
                            let mut seen = vec![0xEE; len];
                            file.read_exact_at(&mut seen, start + at as u64).unwrap();
                            assert!(seen == model[at..at + len], "thread {index} at {at} + {len}");
                        }
                    }
                    (start, model)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    rig.end();
    let mut all = vec![0; usize::try_from(SIZE).unwrap()];
    disk.read_at(Bytes(0), &mut all).unwrap();
    for (start, model) in models {
        let start = usize::try_from(start).unwrap();
        assert!(all[start..start + model.len()] == model, "region at {start}");
    }
}

#[test]
fn the_end_behaves_as_a_block_device_and_may_move() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let Some(rig) = mounted("the_end_behaves_as_a_block_device_and_may_move", &disk, |_| ()) else { return };
    let mut file = rig.open();
    let mut buffer = [0; 1000];
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    assert_eq!(file.read_at(&mut buffer, SIZE - 10).unwrap(), 10);
    assert_eq!(file.read_at(&mut buffer, SIZE).unwrap(), 0);
    assert_eq!(file.write_at(&buffer, SIZE - 10).unwrap(), 10);
    assert_eq!(errno(&file.write_at(&buffer, SIZE).unwrap_err()), Errno::NOSPC);
    assert_eq!(errno(&file.write_at(&buffer, SIZE + 4096).unwrap_err()), Errno::NOSPC);
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), SIZE - 3);
    assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 3);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5)).unwrap(), 5);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(5)).unwrap(), SIZE);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(SIZE)), Err(Errno::NXIO));

    disk.set_len(Bytes(SIZE + 8192));
    assert_eq!(fs::metadata(rig.export.file_path()).unwrap().len(), SIZE + 8192);
    file.write_all_at(&[7; 4096], SIZE + 4096).unwrap();
    drop(file);
    rig.end();
}

#[test]
fn the_file_is_all_there_is_and_keeps_its_attributes() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let test = "the_file_is_all_there_is_and_keeps_its_attributes";
    let change = |options: &mut FuseOptions| {
        options.file_name = "volume".to_owned();
        options.mode = 0o640;
        options.fs_name = "image, with comma".to_owned();
    };
    let Some(rig) = mounted(test, &disk, change) else { return };
    let path = rig.export.file_path().to_path_buf();
    let folder = rig.export.mount_point().to_path_buf();
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["volume"]);
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.is_file());
    assert_eq!((meta.mode() & 0o7777, meta.nlink(), meta.blocks()), (0o640, 1, SIZE / 512));
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
    assert!(fs::read_to_string("/proc/self/mounts").unwrap().contains("image__with_comma"));

    let refused = |result: io::Result<()>| assert_eq!(errno(&result.unwrap_err()), Errno::PERM);
    refused(rig.open().set_len(0));
    refused(rig.open().set_len(SIZE + 1));
    rig.open().set_len(SIZE).unwrap();
    refused(fs::set_permissions(&path, fs::Permissions::from_mode(0o666)));
    refused(fs::remove_file(&path));
    refused(fs::rename(&path, folder.join("other")));
    refused(fs::create_dir(folder.join("other")));
    refused(File::create(folder.join("other")).map(drop));
    assert_eq!(errno(&fs::metadata(folder.join("other")).unwrap_err()), Errno::NOENT);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    rig.open().set_modified(time).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
    assert_eq!(rustix::fs::getxattr(&path, "user.x", &mut [0_u8; 16][..]), Err(Errno::OPNOTSUPP));
    let stats = rustix::fs::statvfs(&path).unwrap();
    assert_eq!((stats.f_bsize, stats.f_blocks, stats.f_bfree), (4096, SIZE / 4096, 0));
    rig.end();
}

#[test]
fn flush_errors_come_through_and_nothing_else_claims_success() {
    let disk = Probe::new();
    let test = "flush_errors_come_through_and_nothing_else_claims_success";
    let Some(rig) = mounted(test, &disk, |_| ()) else { return };
    let file = rig.open();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert!(disk.flushes.load(Ordering::SeqCst) >= 2, "fsync and fdatasync reach the disk");
    disk.fail_flush.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(errno(&file.sync_all().unwrap_err()), Errno::IO);
        assert_eq!(errno(&file.sync_data().unwrap_err()), Errno::IO);
    }
    let folder = File::open(rig.export.mount_point()).unwrap();
    assert_eq!(errno(&folder.sync_all().unwrap_err()), Errno::IO);
    drop(folder);
    // Closing a writer flushes as well and tells; closing a reader owes nothing.
    let before = disk.flushes.load(Ordering::SeqCst);
    drop(File::open(rig.export.file_path()).unwrap());
    assert_eq!(disk.flushes.load(Ordering::SeqCst), before);
    drop(file);
    assert!(disk.flushes.load(Ordering::SeqCst) > before);
    let end = rig.export.unmount_within(PATIENCE).unwrap_err();
    assert!(matches!(end, ExportError::FinalFlush { .. }), "{end}");
}

#[test]
fn synchronous_writes_are_durable_writes() {
    let disk = Probe::new();
    let Some(rig) = mounted("synchronous_writes_are_durable_writes", &disk, |_| ()) else { return };
    for (flag, expected) in [(OFlags::empty(), 0), (OFlags::DSYNC, 1), (OFlags::SYNC, 2)] {
        let flags = flag.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(rig.export.file_path()).unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        assert_eq!(disk.fua_writes.load(Ordering::SeqCst), expected, "{flag:?}");
    }
    rig.end();
}

#[test]
fn zeroed_and_punched_ranges_read_as_zeros_and_nothing_around_them_changes() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let test = "zeroed_and_punched_ranges_read_as_zeros_and_nothing_around_them_changes";
    let Some(rig) = mounted(test, &disk, |_| ()) else { return };
    let file = rig.open();
    let mut model = vec![0x77; usize::try_from(SIZE).unwrap()];
    file.write_all_at(&model, 0).unwrap();
    let keep = FallocateFlags::KEEP_SIZE;
    let modes = [FallocateFlags::PUNCH_HOLE | keep, FallocateFlags::ZERO_RANGE, FallocateFlags::ZERO_RANGE | keep];
    let ranges = [(0, 4096), (5000, 1), (10_001, 70_003), ((1 << 20) - 1, 6 << 20), (SIZE - 700, 700)];
    for ((start, len), mode) in ranges.into_iter().zip(modes.into_iter().cycle()) {
        rustix::fs::fallocate(&file, mode, start, len).unwrap();
        let start = usize::try_from(start).unwrap();
        model[start..start + usize::try_from(len).unwrap()].fill(0);
    }
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, SIZE - 100, 4096).unwrap();
    let beyond = rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, SIZE - 100, 4096);
    assert_eq!(beyond, Err(Errno::NOSPC));
    for mode in [FallocateFlags::empty(), keep, FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(rustix::fs::fallocate(&file, mode, 0, 4096), Err(Errno::OPNOTSUPP), "{mode:?}");
    }
    let mut seen = vec![1; model.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == model);
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    drop(file);
    rig.end();
}

#[test]
fn refused_holes_leave_the_bytes_alone_and_zero_range_still_works() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let test = "refused_holes_leave_the_bytes_alone_and_zero_range_still_works";
    let Some(rig) = mounted(test, &disk, |options| options.punch_hole = PunchHole::Refuse) else { return };
    let file = rig.open();
    file.write_all_at(&[9; 8192], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&file, punch, 0, 4096), Err(Errno::OPNOTSUPP));
    let mut seen = [0; 8192];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(seen, [9; 8192]);
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4096).unwrap();
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen[..4096] == [0; 4096] && seen[4096..] == [9; 4096]);
    drop(file);
    rig.end();
}

#[test]
fn an_image_that_shrinks_is_an_error_and_one_that_grows_is_there() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 * 4096).unwrap();
    let disk = Arc::new(block::FileDisk::open(image.path(), &block::OpenMode::default()).unwrap());
    let test = "an_image_that_shrinks_is_an_error_and_one_that_grows_is_there";
    let Some(rig) = mounted(test, &disk, |_| ()) else { return };
    let file = rig.open();
    let mut seen = [0; 4096];
    file.write_all_at(&[1; 4096], 3 * 4096).unwrap();
    image.as_file().set_len(2 * 4096).unwrap();
    // Not the end of the file, which a reader would take for less data.
    assert_eq!(errno(&file.read_at(&mut seen, 3 * 4096).unwrap_err()), Errno::IO);
    assert_eq!(errno(&file.write_at(&[2; 4096], 3 * 4096).unwrap_err()), Errno::IO);
    assert_eq!(image.as_file().metadata().unwrap().len(), 2 * 4096, "a write made the image longer");
    file.write_all_at(&[3; 4096], 4096).unwrap();

    image.as_file().set_len(6 * 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6 * 4096);
    file.write_all_at(&[4; 4096], 5 * 4096).unwrap();
    file.read_exact_at(&mut seen, 5 * 4096).unwrap();
    assert_eq!(seen, [4; 4096]);
    assert_eq!(file.read_at(&mut seen, 6 * 4096).unwrap(), 0);
    drop(file);
    rig.end();
}

#[test]
fn a_blocked_disk_blocks_nobody_who_does_not_need_it() {
    let disk = Probe::new();
    let test = "a_blocked_disk_blocks_nobody_who_does_not_need_it";
    let Some(rig) = mounted(test, &disk, |options| options.threads = 3) else { return };
    let writer = rig.open();
    writer.write_all_at(&[3; 4096], 4096).unwrap();
    disk.blocked.store(true, Ordering::SeqCst);
    disk.entered.store(0, Ordering::SeqCst);
    let path = rig.export.file_path();
    let served = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..12_u64)
            .map(|index| {
                let file = rig.open();
                scope.spawn(move || {
                    let mut bytes = [0; 4096];
                    if index % 2 == 0 {
                        file.write_all_at(&[5; 4096], index * 4096 + 8192).unwrap();
                    } else {
                        file.read_exact_at(&mut bytes, 4096).unwrap();
                        assert_eq!(bytes, [3; 4096]);
                    }
                    // Closing a writer flushes the disk. It must not happen in here while the disk is blocked.
                    file
                })
            })
            .collect();
        // Two in the threads, one in the spare; the rest is parked or still in the kernel.
        let until = Instant::now() + Duration::from_secs(10);
        while disk.entered.load(Ordering::SeqCst) < 3 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100));
        let (told, answers) = std::sync::mpsc::channel();
        let asked = path.to_path_buf();
        // Not scoped: if it hangs, the test must still open the gate.
        std::thread::spawn(move || {
            let seen = fs::metadata(&asked).map(|meta| meta.len());
            let names = fs::read_dir(asked.parent().unwrap()).map(Iterator::count);
            drop(File::open(&asked));
            let _ = told.send((seen.unwrap(), names.unwrap(), rustix::fs::statvfs(&asked).unwrap().f_blocks));
        });
        let served = answers.recv_timeout(Duration::from_secs(5));
        let finished_early = workers.iter().filter(|worker| worker.is_finished()).count();
        disk.blocked.store(false, Ordering::SeqCst);
        workers.into_iter().for_each(|worker| drop(worker.join().unwrap()));
        assert_eq!(finished_early, 0);
        served
    });
    assert_eq!(served, Ok((SIZE, 1, SIZE / 4096)));
    let mut bytes = [0; 4096];
    writer.read_exact_at(&mut bytes, 10 * 4096 + 8192).unwrap();
    assert_eq!(bytes, [5; 4096]);
    drop(writer);
    rig.end();
}

#[test]
fn a_mount_ends_once_and_only_when_nobody_uses_it() {
    let disk = Probe::new();
    let Some(rig) = mounted("a_mount_ends_once_and_only_when_nobody_uses_it", &disk, |_| ()) else { return };
    let file = rig.open();
    file.write_all_at(&[1; 512], 0).unwrap();
    let busy = rig.export.unmount().unwrap_err();
    assert!(matches!(busy, ExportError::Busy { .. }), "{busy}");
    file.write_all_at(&[2; 512], 512).unwrap();
    drop(file);
    assert!(!rig.export.has_ended());
    let before = disk.flushes.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.export.wait());
        // By somebody else, as umount(8) would.
        let until = Instant::now() + PATIENCE;
        while let Err(errno) = rustix::mount::unmount(rig.export.mount_point(), rustix::mount::UnmountFlags::empty()) {
            assert!(errno == rustix::io::Errno::BUSY && Instant::now() < until, "{errno}");
            std::thread::sleep(Duration::from_millis(5));
        }
        waiting.join().unwrap().unwrap();
    });
    assert!(rig.export.has_ended());
    assert!(disk.flushes.load(Ordering::SeqCst) > before, "flushed at the end");
    assert!(!rig.export.file_path().exists());
    rig.export.unmount_within(PATIENCE).unwrap();
}

#[test]
fn the_end_of_a_mount_leaves_the_one_below_alone() {
    let below = Arc::new(MemDisk::new(Bytes(SIZE)));
    let above = Arc::new(MemDisk::new(Bytes(SIZE)));
    let Some(rig) = mounted("the_end_of_a_mount_leaves_the_one_below_alone", &below, |_| ()) else { return };
    let second = FuseOptions { file_name: "second".to_owned(), ..FuseOptions::default() };
    let upper = serve(above, rig.export.mount_point(), &second).unwrap();
    assert!(upper.file_path().exists());
    upper.unmount_within(PATIENCE).unwrap();
    drop(upper);
    assert!(rig.export.file_path().exists(), "the lower mount is gone too");
    assert!(!rig.export.has_ended());
    rig.end();
}

#[test]
fn a_mount_that_could_not_be_ended_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("mtab");
    let error = mount::check_mount_table(&table).unwrap_err().to_string();
    assert!(error.contains("mtab") && error.contains("ln -s"), "{error}");
    std::fs::write(&table, b"").unwrap();
    mount::check_mount_table(&table).unwrap();
}

#[test]
fn fusermount_mounts_and_unmounts_as_well() {
    let test = "fusermount_mounts_and_unmounts_as_well";
    let folder = tempfile::tempdir().unwrap();
    let options = mount::MountOptions { source: "a_source".to_owned(), read_only: true, allow_other: false };
    let connection = match mount::by_fusermount(folder.path(), &options) {
        Ok(connection) => connection,
        Err(error) => {
            eprintln!("SKIPPED export::fuse {test}: needs fusermount3 and /dev/fuse: {error}");
            return;
        }
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(folder.path().to_str().unwrap())).unwrap();
    assert!(line.starts_with("a_source ") && line.contains("ro,nosuid,nodev"), "{line}");
    unmount::by_fusermount(folder.path()).unwrap();
    drop(connection);
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(folder.path().to_str().unwrap()));
    let error = mount::by_fusermount(&folder.path().join("nothing"), &options).unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
    let error = unmount::by_fusermount(folder.path()).unwrap_err();
    assert!(matches!(error, ExportError::Unmount { .. }), "{error}");
}

#[test]
fn a_read_only_export_takes_no_writes() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let Some(rig) = mounted("a_read_only_export_takes_no_writes", &disk, |options| options.read_only = true) else {
        return;
    };
    let write = OpenOptions::new().write(true).open(rig.export.file_path());
    assert_eq!(errno(&write.unwrap_err()), Errno::ROFS);
    assert_eq!(fs::read(rig.export.file_path()).unwrap().len() as u64, SIZE);
    rig.end();
}

#[test]
fn bad_names_and_places_are_refused() {
    let disk = Arc::new(MemDisk::new(Bytes(SIZE)));
    let folder = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        let options = FuseOptions { file_name: name.to_owned(), ..FuseOptions::default() };
        let error = serve(Arc::clone(&disk), folder.path(), &options).unwrap_err();
        assert!(matches!(error, ExportError::FileName { .. }), "{name:?}: {error}");
    }
    let error = serve(disk, &folder.path().join("nothing"), &FuseOptions::default()).unwrap_err();
    assert!(matches!(error, ExportError::Mount { .. }), "{error}");
}

#[test]
fn ext4_on_a_loop_mount_is_clean() {
    let disk = Arc::new(MemDisk::new(Bytes(64 << 20)));
    let test = "ext4_on_a_loop_mount_is_clean";
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED export::fuse {test}: needs root and loop devices");
        return;
    }
    let Some(rig) = mounted(test, &disk, |_| ()) else { return };
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    let path = rig.export.file_path().as_os_str();
    let folder = tempfile::tempdir().unwrap();
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), path]);
    run("mount", &["-o".as_ref(), "loop".as_ref(), path, folder.path().as_os_str()]);
    for index in 0..200_u32 {
        let mut file = File::create(folder.path().join(index.to_string())).unwrap();
        file.write_all(&index.to_le_bytes().repeat(500)).unwrap();
    }
    run("umount", &[folder.path().as_os_str()]);
    run("fsck.ext4", &["-fn".as_ref(), path]);
    // mount(8) attached with autoclear.
    rig.export.unmount_within(PATIENCE).unwrap();
    assert!(rig.export.has_ended());
}
