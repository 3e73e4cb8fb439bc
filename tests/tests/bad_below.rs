//! Promise: when what lies below an open volume fails, or a client above it misbehaves, whoever reads or writes is told so by
//! a proper error, the server lives, and nothing that was acknowledged is lost. Over FUSE and over NBD, with a loop device on
//! top of each, and on the NBD socket itself where the protocol has more to say.
//!
//! `vm_bad_below.rs` has the same for the kernel's dm-crypt, `export/src/nbd/tests.rs` the hostile clients of NBD.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::fault::{FaultDisk, Op};
use block::{BlockErrorKind, BlockIo as _, Bytes, Direct, FileDisk, MemDisk, OpenMode};
use promises::Rig;
use promises::backend::{SMALL_HEADER, SMALL_HEADER_BYTES, format_small, status};
use promises::leftovers;
use promises::rig::{refused, run, succeed};
use promises::served::{Served, in_memory};
use promises::skip::needs_programs;
use promises::user_space::{OpenDisk, Way, eventually, kill_server};
use rustix::process::{Pid, Signal, kill_process};

const NAME: &str = "below";
const DATA_BYTES: u64 = 8 << 20;
const BLOCK: usize = 4096;
/// Clients at once.
const CROWD: u64 = 200;
/// What a medium that fails may be called above; a loop device knows no other word than EIO for most of them.
const FAILED: [BlockErrorKind; 3] = [BlockErrorKind::Io, BlockErrorKind::Gone, BlockErrorKind::Integrity];
/// `status`: something to report.
const REPORTS: i32 = 10;
/// `close`: somebody uses it.
const BUSY: i32 = 5;

/// One test at a time. A process that one test starts has a copy of every descriptor of another until its exec, and closing
/// one whose disk another test has stopped waits for that disk.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every request is one of the volume's: no page cache between.
fn raw(device: &Path) -> FileDisk {
    let mode = OpenMode { read_only: false, direct: Direct::Always, exclusive: false };
    FileDisk::open(device, &mode).unwrap()
}

fn put(disk: &FileDisk, at: u64, byte: u8) -> Result<(), BlockErrorKind> {
    disk.write_at(Bytes(at), &[byte; BLOCK], false).and_then(|()| disk.flush()).map_err(|error| error.kind)
}

fn get(disk: &FileDisk, at: u64) -> Result<u8, BlockErrorKind> {
    let mut found = [0; BLOCK];
    disk.read_at(Bytes(at), &mut found).map_err(|error| error.kind)?;
    assert!(found.iter().all(|byte| *byte == found[0]), "a torn block at {at}");
    Ok(found[0])
}

fn image(rig: &Rig, path: &Path) {
    format_small(rig, path, SMALL_HEADER_BYTES + DATA_BYTES, false, &["--sector-size", "4096"]);
}

fn health(rig: &Rig) -> Option<i32> {
    run(&mut rig.luksctl(&["status", NAME])).status.code()
}

/// A program of the system, with Debian's own Python.
fn nbdsh(uri: &str, code: &str) -> Command {
    let mut command = Command::new("nbdsh");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null()).args(["-u", uri, "-c", code]);
    command
}

/// Opens a volume as an NBD socket alone; its URI.
fn open_socket(rig: &Rig, image: &Path) -> String {
    succeed(rig.luksctl(&["open", "-q", "--backend", "nbd", "--key-file"]).arg(rig.key()).arg(image).arg(NAME));
    status(rig, NAME)["uri"].as_str().unwrap().to_owned()
}

/// A volume on a disk that fails as told.
struct OnFaults {
    rig: Rig,
    disk: Arc<FaultDisk<MemDisk>>,
    below: Served,
}

impl OnFaults {
    fn new() -> OnFaults {
        let rig = Rig::new("below");
        let plain = rig.path("plain");
        image(&rig, &plain);
        let disk = Arc::new(FaultDisk::new(in_memory(&plain)));
        let below = Served::new(Arc::clone(&disk), &rig.path("faulty"));
        OnFaults { rig, disk, below }
    }

    fn open(&self, way: Way) -> OpenDisk {
        way.open(&self.rig, &self.below.file, NAME)
    }

    fn end(self) {
        leftovers::demand_none(&self.rig, "the end");
        self.below.end();
    }
}

#[test]
fn an_error_below_is_an_error_above_and_a_read_may_be_tried_again() {
    let _turn = turn();
    let test = "bad_below: an_error_below_is_an_error_above_and_a_read_may_be_tried_again";
    for way in Way::ALL.into_iter().filter(|way| way.is_possible(test)) {
        let here = OnFaults::new();
        let open = here.open(way);
        let device = raw(&open.device);
        put(&device, 0, 1).unwrap();
        for kind in FAILED {
            here.disk.fail_from(Op::Read, 1, kind);
            let told = get(&device, 0);
            assert!(matches!(told, Err(kind) if FAILED.contains(&kind)), "{open}, {kind:?}: {told:?}");
            here.disk.heal();
            assert_eq!((get(&device, 0), health(&here.rig)), (Ok(1), Some(0)), "{open}, {kind:?}");
        }
        put(&device, 8192, 2).unwrap();
        drop(device);
        open.close(&here.rig);
        here.end();
    }
}

#[test]
fn a_write_that_failed_below_is_told_and_nothing_synced_is_lost() {
    let _turn = turn();
    let test = "bad_below: a_write_that_failed_below_is_told_and_nothing_synced_is_lost";
    for way in Way::ALL.into_iter().filter(|way| way.is_possible(test)) {
        let here = OnFaults::new();
        for (round, op) in [(1, Op::Write), (2, Op::Flush), (3, Op::Change)] {
            let open = here.open(way);
            let device = raw(&open.device);
            put(&device, 0, round).unwrap();
            here.disk.fail_from(op, 1, BlockErrorKind::Io);
            assert_eq!(put(&device, 8192, round), Err(BlockErrorKind::Io), "{open}, {op:?}");
            here.disk.heal();
            assert_eq!(get(&device, 0), Ok(round), "{open}, {op:?}: reads go on");
            // The disk is well again, but nobody may vouch for what it lost.
            assert_eq!(put(&device, 8192, round), Err(BlockErrorKind::Io), "{open}, {op:?}");
            assert_eq!(health(&here.rig), Some(REPORTS), "{open}, {op:?}");
            drop(device);
            drop(open.tear_down(&here.rig));
            leftovers::demand_none(&here.rig, "a write that failed");
            let open = here.open(way);
            let device = raw(&open.device);
            assert_eq!(get(&device, 0), Ok(round), "{open}, {op:?}: after opening it again");
            put(&device, 8192, round).unwrap();
            drop(device);
            open.close(&here.rig);
        }
        here.end();
    }
}

#[test]
fn an_image_that_shrank_or_lost_its_name_is_no_end_of_the_server() {
    let _turn = turn();
    let test = "bad_below: an_image_that_shrank_or_lost_its_name_is_no_end_of_the_server";
    for way in Way::ALL.into_iter().filter(|way| way.is_possible(test)) {
        let rig = Rig::new("below");
        let path = rig.path("image");
        image(&rig, &path);
        let open = way.open(&rig, &path, NAME);
        let device = raw(&open.device);
        let last = DATA_BYTES - BLOCK as u64;
        put(&device, 0, 1).unwrap();
        put(&device, last, 1).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(SMALL_HEADER_BYTES + DATA_BYTES / 2).unwrap();
        // The file would grow again by it, and what lies between would be noise.
        let told = put(&device, last, 2);
        assert!(matches!(told, Err(BlockErrorKind::Io | BlockErrorKind::NoSpace)), "{open}: behind the end: {told:?}");
        assert_eq!(get(&device, last), Err(BlockErrorKind::Io), "{open}: behind the end of the image");
        assert_eq!(get(&device, 0), Ok(1), "{open}");
        assert_eq!(fs::metadata(&path).unwrap().len(), SMALL_HEADER_BYTES + DATA_BYTES / 2, "{open}");
        assert!(matches!(health(&rig), Some(0 | REPORTS)), "{open}: the server lives");
        drop(device);
        drop(open.tear_down(&rig));
        leftovers::demand_none(&rig, "a shrunken image");

        file.set_len(SMALL_HEADER_BYTES + DATA_BYTES).unwrap();
        let open = way.open(&rig, &path, NAME);
        let device = raw(&open.device);
        assert_eq!(get(&device, 0), Ok(1), "{open}: what was synced and not cut off");
        fs::rename(&path, rig.path("elsewhere")).unwrap();
        put(&device, 4096, 3).unwrap();
        fs::remove_file(rig.path("elsewhere")).unwrap();
        put(&device, 8192, 4).unwrap();
        assert_eq!((get(&device, 4096), health(&rig).is_some()), (Ok(3), true), "{open}: it has no name any more");
        drop(device);
        assert!(open.tear_down(&rig).status.success());
        leftovers::demand_none(&rig, "an image without a name");
    }
}

/// All but 2 MiB of a small file system taken by something else, and an image with more than that in it; the filler.
fn full_disk(rig: &Rig) -> (PathBuf, PathBuf) {
    let folder = rig.path("small");
    fs::create_dir(&folder).unwrap();
    succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs"]).arg(&folder));
    let image = folder.join("image");
    rig.format_cheap(&image, "32M", &[&["--sparse", "--sector-size", "4096"], &SMALL_HEADER[..]].concat());
    let free = rustix::fs::statvfs(&folder).unwrap();
    let filler = fs::File::create(folder.join("filler")).unwrap();
    let taken = free.f_bfree * free.f_frsize - (2 << 20);
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
    (image, folder.join("filler"))
}

#[test]
fn a_full_file_system_below_is_told_by_name_and_nothing_synced_is_lost() {
    let _turn = turn();
    let test = "bad_below: a_full_file_system_below_is_told_by_name_and_nothing_synced_is_lost";
    if !(Way::Nbd.is_possible(test) && needs_programs(test, &["mount", "nbdsh"])) {
        return;
    }
    let rig = Rig::new("below");
    let (image, filler) = full_disk(&rig);
    let uri = open_socket(&rig, &image);
    let full = "h.pwrite(b'kept' * 1024, 0)\nh.flush()\n\
                try:\n    for at in range(4 << 20, 16 << 20, 1 << 20):\n        h.pwrite(bytes(1 << 20), at)\n\
                except nbd.Error as e:\n    assert e.errno == 'ENOSPC', e\n\
                else:\n    raise SystemExit('there was room')\nassert h.pread(4, 0) == b'kept'";
    succeed(&mut nbdsh(&uri, full));
    succeed(&mut nbdsh(&uri, "assert h.pread(4, 4092) == b'kept'"));
    assert!(health(&rig).is_some());
    drop(run(&mut rig.luksctl(&["close", NAME])));
    leftovers::demand_none(&rig, "a full disk below NBD");

    // The file below the loop device says the same by its errno.
    let mut open = rig.luksctl(&["open", "-q", "--backend", "fuse", "--no-loop", "--key-file"]);
    succeed(open.arg(rig.key()).arg(&image).arg(NAME));
    let file = OpenOptions::new().read(true).write(true).open(rig.run_dir().join(NAME).join("device")).unwrap();
    let told = (4..16).find_map(|mebibyte| file.write_all_at(&vec![7; 1 << 20], mebibyte << 20).err());
    assert_eq!(told.and_then(|error| error.raw_os_error()), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    let mut kept = [0; 4];
    file.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(&kept, b"kept");
    drop(file);
    drop(run(&mut rig.luksctl(&["close", NAME])));
    leftovers::demand_none(&rig, "a full disk below FUSE");

    fs::remove_file(filler).unwrap();
    let uri = open_socket(&rig, &image);
    succeed(&mut nbdsh(&uri, "assert h.pread(4, 0) == b'kept'\nh.pwrite(bytes(1 << 20), 16 << 20)\nh.flush()"));
    rig.close(NAME);
}

#[test]
fn two_hundred_clients_at_once_each_find_their_own() {
    let _turn = turn();
    let test = "bad_below: two_hundred_clients_at_once_each_find_their_own";
    for way in Way::ALL.into_iter().filter(|way| way.is_possible(test)) {
        let rig = Rig::new("below");
        let path = rig.path("image");
        image(&rig, &path);
        let open = way.open(&rig, &path, NAME);
        std::thread::scope(|scope| {
            for client in 0..CROWD {
                let device = &open.device;
                scope.spawn(move || {
                    let (disk, byte) = (raw(device), u8::try_from(client).unwrap());
                    put(&disk, client * BLOCK as u64, byte).unwrap();
                    assert_eq!(get(&disk, client * BLOCK as u64), Ok(byte), "client {client}");
                });
            }
        });
        open.close(&rig);
        if way == Way::Nbd && needs_programs(test, &["nbdsh"]) {
            let uri = open_socket(&rig, &path);
            let crowd = format!(
                "import threading\nfaults = []\ndef client(n):\n    try:\n        c = nbd.NBD()\n        c.connect_uri('{uri}')\n        \
                 assert c.pread(4096, n * 4096) == bytes([n]) * 4096\n        c.pwrite(bytes([255 - n]) * 4096, n * 4096, nbd.CMD_FLAG_FUA)\n        \
                 c.shutdown()\n    except Exception as e:\n        faults.append((n, e))\nh.shutdown()\n\
                 threads = [threading.Thread(target=client, args=(n,)) for n in range({CROWD})]\n\
                 [t.start() for t in threads]\n[t.join() for t in threads]\nassert not faults, faults"
            );
            succeed(&mut nbdsh(&uri, &crowd));
            rig.close(NAME);
        }
        leftovers::demand_none(&rig, "a crowd");
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_client_that_stops_reading_or_hangs_stops_only_itself() {
    let _turn = turn();
    let test = "bad_below: a_client_that_stops_reading_or_hangs_stops_only_itself";
    if !(Way::Nbd.is_possible(test) && needs_programs(test, &["nbdsh"])) {
        return;
    }
    let rig = Rig::new("below");
    let path = rig.path("image");
    image(&rig, &path);
    let uri = open_socket(&rig, &path);
    // Asks for 256 MiB and never takes an answer off the socket; then does not even run.
    let greedy = "bufs = [nbd.Buffer(4 << 20) for _ in range(64)]\ncookies = [h.aio_pread(b, 0) for b in bufs]\n\
                  print('here', flush=True)\nimport time\ntime.sleep(600)";
    let mut client = nbdsh(&uri, greedy).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 4];
    std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut line).unwrap();
    kill_process(Pid::from_child(&client), Signal::STOP).unwrap();
    succeed(&mut nbdsh(&uri, "h.pwrite(b'kept', 0)\nh.flush()\nassert h.pread(4, 0) == b'kept'"));
    refused(&run(&mut rig.luksctl(&["close", NAME])), BUSY, &[&format!("(process {})", client.id())]);
    succeed(&mut nbdsh(&uri, "assert h.pread(4, 0) == b'kept'"));
    end(client);
    rig.close(NAME);

    let mut open = rig.luksctl(&["open", "-q", "--backend", "fuse", "--no-loop", "--key-file"]);
    succeed(open.arg(rig.key()).arg(&path).arg(NAME));
    let file = fs::canonicalize(rig.run_dir().join(NAME).join("device")).unwrap();
    let mut reader = Command::new("sh");
    reader.args(["-c", "while :; do cat \"$0\" > /dev/null; done"]).arg(&file).process_group(0);
    let reader = reader.spawn().unwrap();
    let group = Pid::from_child(&reader);
    std::thread::sleep(Duration::from_millis(100));
    rustix::process::kill_process_group(group, Signal::STOP).unwrap();
    let bytes = fs::read(&file).unwrap();
    assert_eq!((&bytes[..4], bytes.len() as u64), (&b"kept"[..], DATA_BYTES));
    rustix::process::kill_process_group(group, Signal::KILL).unwrap();
    end(reader);
    eventually("closing", || run(&mut rig.luksctl(&["close", NAME])).status.success());
    leftovers::demand_none(&rig, "clients that hang");
}

#[test]
fn a_server_killed_while_a_reader_waits_is_an_error_and_nothing_synced_is_lost() {
    let _turn = turn();
    let test = "bad_below: a_server_killed_while_a_reader_waits_is_an_error_and_nothing_synced_is_lost";
    for way in Way::ALL.into_iter().filter(|way| way.is_possible(test)) {
        let rig = Rig::new("below");
        let path = rig.path("image");
        image(&rig, &path);
        let open = way.open(&rig, &path, NAME);
        let device = raw(&open.device);
        put(&device, 0, 1).unwrap();
        succeed(&mut rig.luksctl(&["suspend", NAME]));
        let waiting = std::thread::spawn(move || get(&device, 0));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "{open}: a read of a suspended volume waits");
        kill_server(&rig, NAME);
        assert_eq!(waiting.join().unwrap(), Err(BlockErrorKind::Io), "{open}");
        assert_eq!(health(&rig), Some(REPORTS), "{open}: a dead server is something to report");
        drop(open.tear_down(&rig));
        leftovers::demand_none(&rig, "a killed server");
        let open = way.open(&rig, &path, NAME);
        assert_eq!(get(&raw(&open.device), 0), Ok(1), "{open}");
        open.close(&rig);
    }
}
