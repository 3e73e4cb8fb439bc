//! `block::FileDisk` and its locks on real loop devices, and on a file system that is full. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use block::{
    BlockErrorKind, BlockIo, BlockQueue, Bytes, Completion, Direct, FileDisk, IoBuf, IoUringQueue, LockError, OpenMode,
    PreadQueue, QueueOp,
};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SIZE: u64 = 8 << 20;
const NOW: Duration = Duration::ZERO;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image behind a loop device; detached when dropped.
struct Loop {
    _folder: tempfile::TempDir,
    image: PathBuf,
    device: PathBuf,
}

impl Loop {
    fn attach(options: &[&str]) -> Loop {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        File::create_new(&image).unwrap().set_len(SIZE).unwrap();
        let arguments = [&["--find", "--show"], options, &[image.to_str().unwrap()]].concat();
        let device = run("losetup", &arguments).into();
        Loop { _folder: folder, image, device }
    }

    fn open(&self, direct: Direct) -> FileDisk {
        FileDisk::open(&self.device, &OpenMode { direct, ..OpenMode::default() }).unwrap()
    }

    fn lock_file(&self) -> PathBuf {
        let number = self.open(Direct::Never).rdev().unwrap();
        PathBuf::from(format!("/run/cryptsetup/L_{}:{}", number.0, number.1))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.device).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn can_run(test: &str) -> bool {
    promises::skip::needs_root(test) && promises::skip::needs_programs(test, &["losetup"])
}

fn open(path: &Path) -> FileDisk {
    FileDisk::open(path, &OpenMode::default()).unwrap()
}

#[test]
fn root_loop_device_with_4096_byte_blocks_takes_any_byte() {
    if !can_run("root_loop_device_with_4096_byte_blocks_takes_any_byte") {
        return;
    }
    let device = Loop::attach(&["--sector-size", "4096"]);
    for direct in [Direct::Never, Direct::Always] {
        let disk = device.open(direct);
        let geometry = disk.geometry();
        assert_eq!((disk.is_block_device(), disk.is_direct()), (true, direct == Direct::Always));
        assert_eq!((geometry.size, geometry.logical_block, geometry.read_only), (Bytes(SIZE), 4096, false));
        disk.write_at(Bytes(0), &[1; 12288], false).unwrap();
        disk.write_at(Bytes(4000), &[2; 200], true).unwrap();
        let mut seen = [0; 12288];
        disk.read_at(Bytes(0), &mut seen).unwrap();
        let expected: Vec<u8> = (0..12288).map(|at| if (4000..4200).contains(&at) { 2 } else { 1 }).collect();
        assert!(seen[..] == expected[..], "{direct:?}");
        disk.write_zeroes(Bytes(4096), Bytes(4096)).unwrap();
        disk.read_at(Bytes(4095), &mut seen[..2]).unwrap();
        assert_eq!(seen[..2], [2, 0]);
        disk.flush().unwrap();
        let error = disk.read_at(Bytes(SIZE), &mut seen[..512]).unwrap_err();
        assert_eq!(error.kind, BlockErrorKind::OutOfRange);
    }
}

#[test]
fn root_loop_device_read_only_is_seen_and_growth_too() {
    if !can_run("root_loop_device_read_only_is_seen_and_growth_too") {
        return;
    }
    let device = Loop::attach(&["--read-only"]);
    let disk = FileDisk::open(&device.device, &OpenMode { read_only: true, ..OpenMode::default() }).unwrap();
    assert!(disk.geometry().read_only);
    assert_eq!(disk.write_at(Bytes(0), &[0; 512], false).unwrap_err().kind, BlockErrorKind::ReadOnly);
    // Opened for writing the kernel refuses either the open or the write: never silently neither.
    let kind = match FileDisk::open(&device.device, &OpenMode::default()) {
        Ok(disk) => disk.write_at(Bytes(0), &[0; 512], false).unwrap_err().kind,
        Err(error) => error.kind,
    };
    assert!(matches!(kind, BlockErrorKind::ReadOnly | BlockErrorKind::Denied), "{kind:?}");

    let device = Loop::attach(&[]);
    let disk = device.open(Direct::Never);
    File::options().write(true).open(&device.image).unwrap().set_len(2 * SIZE).unwrap();
    run("losetup", &["--set-capacity", device.device.to_str().unwrap()]);
    assert_eq!(disk.geometry().size, Bytes(2 * SIZE));
    disk.write_at(Bytes(2 * SIZE - 512), &[3; 512], false).unwrap();
}

#[test]
fn root_exclusive_open_of_a_device_conflicts_with_another() {
    if !can_run("root_exclusive_open_of_a_device_conflicts_with_another") {
        return;
    }
    let device = Loop::attach(&[]);
    let exclusive = OpenMode { exclusive: true, ..OpenMode::default() };
    let first = FileDisk::open(&device.device, &exclusive).unwrap();
    let error = FileDisk::open(&device.device, &exclusive).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, BlockErrorKind::Busy);
    drop(first);
    // A process that another test starts has a copy of the descriptor until its `exec`.
    assert!(succeeds_soon(|| FileDisk::open(&device.device, &exclusive).is_ok()), "the claim ends with the disk");
}

#[test]
fn root_image_and_its_loop_device_are_one_metadata_lock() {
    if !can_run("root_image_and_its_loop_device_are_one_metadata_lock") {
        return;
    }
    let device = Loop::attach(&[]);
    let lock_file = device.lock_file();
    let (image, disk) = (open(&device.image), device.open(Direct::Never));

    let held = image.lock_metadata(false, NOW).unwrap();
    let by_device = flock(File::open(&lock_file).unwrap(), FlockOperation::NonBlockingLockShared);
    assert!(by_device.is_err(), "whoever comes by the device must wait");
    assert!(matches!(disk.lock_metadata(true, NOW), Err(LockError::Busy { .. })));
    drop(held);
    assert!(!lock_file.exists(), "the last user unlinks the lock file");

    let held = disk.lock_metadata(false, NOW).unwrap();
    assert!(lock_file.exists());
    let by_image = flock(File::open(&device.image).unwrap(), FlockOperation::NonBlockingLockShared);
    assert!(by_image.is_err(), "whoever comes by the image must wait");
    assert!(matches!(image.lock_metadata(true, NOW), Err(LockError::Busy { .. })));
    drop(held);

    let readers = (image.lock_metadata(true, NOW).unwrap(), disk.lock_metadata(true, NOW).unwrap());
    assert!(matches!(disk.lock_metadata(false, NOW), Err(LockError::Busy { .. })));
    drop(readers);
    drop(disk.lock_metadata(false, NOW).unwrap());
}

#[test]
fn root_full_file_system_is_no_space() {
    if !promises::skip::needs_root("root_full_file_system_is_no_space") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount_point = folder.path().to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", mount_point]);
    let outcome = std::panic::catch_unwind(|| {
        let path = folder.path().join("sparse.img");
        File::create_new(&path).unwrap().set_len(4 << 20).unwrap();
        let disk = open(&path);
        let error = disk.write_at(Bytes(0), &vec![1; 2 << 20], false).unwrap_err();
        assert_eq!((error.kind, error.op), (BlockErrorKind::NoSpace, "write"));
        assert_eq!(disk.preallocate(Bytes(4 << 20)).unwrap_err().kind, BlockErrorKind::NoSpace);
        for (name, mut queue) in queues(&disk) {
            let buf = IoBuf::copy_of(&vec![1; 2 << 20]);
            let done = done(queue.as_mut(), QueueOp::Write { offset: Bytes(1 << 20), buf, fua: false });
            let error = done.result.unwrap_err();
            assert_eq!((error.kind, error.op), (BlockErrorKind::NoSpace, "write"), "{name}");
            assert!(
                done.op.into_buffer().unwrap().iter().all(|byte| *byte == 1),
                "{name}: the buffer comes back as it was"
            );
        }
    });
    unmount(mount_point);
    outcome.unwrap();
}

/// The kernel lets go of a ring's file a moment after its last completion, so the first umount may find it busy.
fn unmount(mount_point: &str) {
    let umount = || Command::new("umount").arg(mount_point).output().unwrap();
    let mut output = umount();
    succeeds_soon(|| {
        let busy = String::from_utf8_lossy(&output.stderr).contains("busy");
        if busy {
            output = umount();
        }
        !busy
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether `attempt` holds within ten seconds.
fn succeeds_soon(mut attempt: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while !attempt() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Every version of the queue that this system gives.
fn queues(disk: &FileDisk) -> Vec<(&'static str, Box<dyn BlockQueue>)> {
    let mut queues: Vec<(_, Box<dyn BlockQueue>)> =
        vec![("pread", Box::new(PreadQueue::new(disk.clone(), 4).unwrap()))];
    match IoUringQueue::new(disk.clone(), 4) {
        Ok(ring) => queues.push(("io_uring", Box::new(ring))),
        Err(why) => println!("without io_uring: {why}"),
    }
    queues
}

fn done(queue: &mut dyn BlockQueue, op: QueueOp) -> Completion {
    queue.submit(1, op).unwrap();
    loop {
        if let Some(completion) = queue.complete() {
            return completion;
        }
        queue.wait().unwrap();
    }
}

#[test]
fn root_queues_do_on_a_block_device_what_they_do_on_a_file() {
    if !can_run("root_queues_do_on_a_block_device_what_they_do_on_a_file") {
        return;
    }
    let device = Loop::attach(&["--sector-size", "4096"]);
    let direct = OpenMode { direct: Direct::IfPossible, ..OpenMode::default() };
    for (name, mut queue) in queues(&FileDisk::open(&device.device, &direct).unwrap()) {
        assert_eq!(queue.geometry().logical_block, 4096, "{name}");
        let offset = Bytes(SIZE - (1 << 20));
        let mut run = |op| done(queue.as_mut(), op);
        run(QueueOp::Write { offset, buf: IoBuf::copy_of(&vec![3; 1 << 20]), fua: true }).result.unwrap();
        run(QueueOp::WriteZeroes { offset, len: Bytes(8192) }).result.unwrap();
        run(QueueOp::Discard { offset: Bytes(0), len: Bytes(1 << 20) }).result.unwrap();
        run(QueueOp::Flush).result.unwrap();
        let read = run(QueueOp::Read { offset, buf: IoBuf::zeroed(1 << 20) });
        read.result.unwrap();
        let content = read.op.into_buffer().unwrap();
        assert!(
            content[..8192].iter().all(|byte| *byte == 0) && content[8192..].iter().all(|byte| *byte == 3),
            "{name}"
        );
        let behind = run(QueueOp::Write { offset, buf: IoBuf::zeroed(2 << 20), fua: false });
        assert_eq!(behind.result.unwrap_err().kind, BlockErrorKind::OutOfRange, "{name}");
        let odd = run(QueueOp::Read { offset: Bytes(512), buf: IoBuf::zeroed(512) });
        assert_eq!(odd.result.unwrap_err().kind, BlockErrorKind::Unaligned, "{name}");
    }
}
