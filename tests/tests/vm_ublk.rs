//! Promise: a volume through ublk is a block device like any other: the same bytes as through dm-crypt, FUSE and cryptsetup,
//! errors that reach the reader, nothing left behind by a close or by a killed server, and a named refusal where it cannot be.
//!
//! Runs in the VM lane. Random traffic is in `vm_ublk_traffic.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, mount, status, unmount};
use promises::crypt_volume::{run as output_of, starts_clean};
use promises::rig::{refused, run, succeed, words};
use promises::{Rig, kernel_leftovers, vm};

const DATA_BYTES: u64 = 24 << 20;
const NAME: &str = "block";
const WRONG: i32 = 1;
const NO_SUCH: i32 = 4;
const BUSY: i32 = 5;
const DEADLINE: Duration = Duration::from_secs(120);

fn image(rig: &Rig, theirs: bool, sector_size: &str) -> PathBuf {
    let image = rig.path(&format!("image-{sector_size}-{theirs}"));
    format_small(rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, theirs, &["--sector-size", sector_size]);
    image
}

fn assert_nothing_left(rig: &Rig, after: &str) {
    kernel_leftovers::demand_none(rig, &[], after);
    let nodes = fs::read_dir("/dev").unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let left: Vec<String> = nodes.filter(|name| name.starts_with("ublkb") || name.starts_with("ublkc")).collect();
    assert_eq!(left, Vec::<String>::new(), "after {after}");
}

fn queue_of(device: &Path, what: &str) -> String {
    let path = Path::new("/sys/block").join(device.file_name().unwrap()).join("queue").join(what);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn sum(path: &Path) -> String {
    output_of("sha256sum", &[path.to_str().unwrap()]).split(' ').next().unwrap().to_owned()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill_server(rig: &Rig) {
    let pid = status(rig, NAME)["pid"].as_i64().unwrap();
    succeed(Command::new("kill").args(["-KILL", &pid.to_string()]));
    wait_until("the killed server does not end", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn vm_ublk_is_a_block_device_and_others_read_the_same_bytes() {
    let test = "vm_ublk_is_a_block_device_and_others_read_the_same_bytes";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let sector_sizes: &[&str] = if vm::is_full() { &["4096", "512"] } else { &["4096"] };
    for &sector_size in sector_sizes {
        let rig = Rig::new("ublk");
        let image = image(&rig, false, sector_size);
        let device = Backend::Ublk.open(&rig, &image, NAME);
        let shown = status(&rig, NAME);
        assert_eq!((&shown["backend"], &shown["state"]), (&"ublk".into(), &"open".into()), "{shown}");
        assert_eq!(shown["device"], device.to_str().unwrap());
        let device_name = device.to_str().unwrap();
        assert_eq!(output_of("blockdev", &["--getsize64", device_name]), DATA_BYTES.to_string());
        assert_eq!(queue_of(&device, "logical_block_size"), sector_size);
        assert_eq!((queue_of(&device, "write_cache"), queue_of(&device, "fua")), ("write back".into(), "1".into()));
        assert_ne!(queue_of(&device, "discard_max_bytes"), "0");
        assert_ne!(queue_of(&device, "write_zeroes_max_bytes"), "0");

        let folder = rig.path("mnt");
        succeed(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&device));
        mount(&device, &folder, "discard");
        fs::write(folder.join("file"), vec![0x5a; 3 << 20]).unwrap();
        fs::write(folder.join("removed"), vec![0xa5; 3 << 20]).unwrap();
        File::open(&folder).unwrap().sync_all().unwrap();
        fs::remove_file(folder.join("removed")).unwrap();
        succeed(Command::new("fstrim").arg(&folder));
        unmount(&folder);
        succeed(Command::new("e2fsck").arg("-fn").arg(&device));
        let written = sum(&device);
        Backend::Ublk.close(&rig, NAME);
        assert_nothing_left(&rig, "close");

        for other in [Backend::Dm, Backend::Fuse, Backend::Cryptsetup, Backend::Ublk] {
            let device = other.open(&rig, &image, NAME);
            assert_eq!(sum(&device), written, "{other:?} reads what ublk wrote");
            mount(&device, &folder, "ro");
            assert_eq!(fs::read(folder.join("file")).unwrap(), vec![0x5a; 3 << 20]);
            unmount(&folder);
            other.close(&rig, NAME);
        }
        assert_nothing_left(&rig, "reading");
    }
}

#[test]
fn vm_ublk_reads_what_others_wrote_and_takes_no_write_when_read_only() {
    let test = "vm_ublk_reads_what_others_wrote_and_takes_no_write_when_read_only";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("ublk-reads");
    let image = image(&rig, true, "512");
    let device = Backend::Cryptsetup.open(&rig, &image, NAME);
    let content: Vec<u8> = (0..DATA_BYTES).map(|at| (at / 4096 * 37 + at).to_le_bytes()[0]).collect();
    let file = OpenOptions::new().write(true).open(&device).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    Backend::Cryptsetup.close(&rig, NAME);
    let before = sum(&image);

    succeed(&mut Backend::Ublk.open_command(&rig, &image, NAME, &["--readonly"]));
    let device = Backend::Ublk.device(&rig, NAME);
    assert_eq!(output_of("blockdev", &["--getro", device.to_str().unwrap()]), "1");
    assert!(fs::read(&device).unwrap() == content, "other bytes than were written");
    let write = OpenOptions::new().write(true).open(&device).and_then(|file| file.write_all_at(&[1; 4096], 0));
    assert!(write.is_err(), "a read-only device took a write");
    Backend::Ublk.close(&rig, NAME);
    assert_eq!(sum(&image), before, "a read-only volume was changed");

    // Zeros read as zeros, whichever way they came.
    let device = Backend::Ublk.open(&rig, &image, NAME);
    let name = device.to_str().unwrap();
    drop(output_of("blkdiscard", &["--zeroout", "--offset", "4096", "--length", "9437184", name]));
    drop(output_of("blkdiscard", &["--force", "--offset", "16777216", "--length", "1048576", name]));
    let found = fs::read(&device).unwrap();
    assert!(found[4096..4096 + 9_437_184].iter().all(|byte| *byte == 0), "zeros came back as something else");
    assert!(found[..4096] == content[..4096] && found[9_441_280..16 << 20] == content[9_441_280..16 << 20]);
    assert!(found[17 << 20..] == content[17 << 20..]);
    Backend::Ublk.close(&rig, NAME);
    let device = Backend::Cryptsetup.open(&rig, &image, NAME);
    assert!(fs::read(&device).unwrap() == found, "cryptsetup reads other bytes than ublk");
    Backend::Cryptsetup.close(&rig, NAME);
    assert_nothing_left(&rig, "zeros");
}

#[test]
fn vm_ublk_in_use_stays_open_and_says_by_whom() {
    let test = "vm_ublk_in_use_stays_open_and_says_by_whom";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let rig = Rig::new("ublk-busy");
    let image = image(&rig, false, "4096");
    let device = Backend::Ublk.open(&rig, &image, NAME);
    refused(&run(&mut Backend::Dm.open_command(&rig, &image, "other", &[])), BUSY, &[NAME]);
    refused(&run(rig.luksctl(&["resize", "--key-file"]).arg(rig.key()).arg(NAME)), WRONG, &["ublk", "resize"]);
    let folder = rig.path("mnt");
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
    mount(&device, &folder, "noatime");
    refused(&run(&mut rig.luksctl(&["close", NAME])), BUSY, &["mounted on", "mnt"]);
    fs::write(folder.join("after"), b"still here").unwrap();
    unmount(&folder);
    let open = File::open(&device).unwrap();
    refused(&run(&mut rig.luksctl(&["close", NAME])), BUSY, &["opened by"]);
    drop(open);

    // Waits while it is suspended, and goes on.
    succeed(&mut rig.luksctl(&["suspend", NAME]));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let mut reader = Command::new("dd");
    reader.args(["of=/dev/null", "bs=4096", "count=1", "iflag=direct"]).arg(format!("if={}", device.display()));
    let mut reader = reader.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(reader.try_wait().unwrap().is_none(), "a suspended volume was read");
    succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg(NAME));
    assert!(reader.wait().unwrap().success());
    mount(&device, &folder, "noatime");
    assert_eq!(fs::read(folder.join("after")).unwrap(), b"still here");
    unmount(&folder);
    Backend::Ublk.close(&rig, NAME);
    assert_nothing_left(&rig, "use");
}

#[test]
fn vm_ublk_killed_server_gives_errors_and_the_next_open_or_close_cleans_up() {
    let test = "vm_ublk_killed_server_gives_errors_and_the_next_open_or_close_cleans_up";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("ublk-killed");
    let image = image(&rig, false, "4096");
    let device = Backend::Ublk.open(&rig, &image, NAME);
    let synced = OpenOptions::new().read(true).write(true).open(&device).unwrap();
    synced.write_all_at(&[0x77; 8192], 1 << 20).unwrap();
    synced.sync_all().unwrap();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    kill_server(&rig);
    let read = synced.read_at(&mut [0; 4096], 8 << 20).map_err(|error| error.raw_os_error());
    // The kernel calls a device that is gone an empty one a moment later.
    assert!(matches!(read, Ok(0) | Err(Some(5 | 6 | 19))), "a read from a dead device: {read:?}");
    drop(synced);
    wait_until("the block device stays", || !device.exists());
    assert_eq!(status(&rig, NAME)["state"], "dead");
    assert_eq!(kernel_leftovers::ublk_devices().len(), 1, "the driver keeps the number");
    succeed(&mut rig.luksctl(&["close", NAME]));
    assert_nothing_left(&rig, "closing a dead one");

    let device = Backend::Ublk.open(&rig, &image, NAME);
    let mut found = [0; 8192];
    File::open(&device).unwrap().read_exact_at(&mut found, 1 << 20).unwrap();
    assert!(found == [0x77; 8192], "what was synced is gone");
    kill_server(&rig);
    let again = Backend::Ublk.open(&rig, &image, NAME);
    assert_eq!(kernel_leftovers::ublk_devices().len(), 1, "the dead one is cleaned up");
    assert!(File::open(&again).unwrap().read_exact_at(&mut found, 1 << 20).is_ok() && found == [0x77; 8192]);
    // Mounted when it dies: cleaned up when it is not mounted any more.
    let folder = rig.path("mnt");
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&again));
    mount(&again, &folder, "noatime");
    kill_server(&rig);
    assert!(write_and_sync(&folder.join("late")).is_err(), "a write to a dead device was acknowledged");
    unmount(&folder);
    succeed(&mut rig.luksctl(&["close", NAME]));
    assert_nothing_left(&rig, "a mount on a dead device");
}

fn write_and_sync(path: &Path) -> io::Result<()> {
    fs::write(path, [1; 4096])?;
    File::open(path)?.sync_all()
}

#[test]
fn vm_ublk_that_cannot_be_is_refused_with_what_mends_it() {
    let test = "vm_ublk_that_cannot_be_is_refused_with_what_mends_it";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let rig = Rig::new("ublk-refused");
    let image = image(&rig, false, "4096");
    let open = |options: &[&str]| run(&mut Backend::Ublk.open_command(&rig, &image, NAME, options));
    refused(&open(&["--no-loop"]), WRONG, &["ublk cannot be used", "--no-loop"]);
    refused(&open(&["--allow-discards"]), WRONG, &["ublk cannot be used", "--allow-discards"]);

    succeed(Command::new("rmmod").arg("ublk_drv"));
    refused(&open(&[]), WRONG, &["ublk cannot be used", "/dev/ublk-control", "modprobe ublk_drv"]);
    let without_mapper = "mount -t tmpfs none /dev/mapper && exec \"$@\"";
    let mut auto = Command::new("unshare");
    auto.args(["--mount", "bash", "-c", without_mapper, "bash"]).arg(promises::bins::luksctl());
    auto.args(["open", "--key-file"]).arg(rig.key()).arg(&image).arg(NAME).env("LUKSCTL_RUN_DIR", rig.run_dir());
    let served = succeed(&mut auto);
    assert!(words(&served).contains("ublk not possible: there is no /dev/ublk-control"), "{served:?}");
    assert!(words(&served).contains("backend: loop over fuse"), "{served:?}");
    Backend::Fuse.close(&rig, NAME);
    succeed(Command::new("modprobe").arg("ublk_drv"));

    let switch = "/proc/sys/kernel/io_uring_disabled";
    fs::write(switch, "2").unwrap();
    let denied = open(&[]);
    fs::write(switch, "0").unwrap();
    refused(&denied, WRONG, &["ublk cannot be used", "io_uring", "denied"]);

    let folder = rig.path("nobody");
    fs::create_dir(&folder).unwrap();
    for path in [&image, &rig.key(), &folder, &rig.path("")] {
        succeed(Command::new("chmod").arg("777").arg(path));
    }
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(promises::bins::luksctl());
    nobody.args(["open", "--backend", "ublk", "--key-file"]).arg(rig.key()).arg(&image).arg(NAME);
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    succeed(Command::new("chown").arg("65534:65534").arg(&folder));
    refused(&run(nobody.env("LUKSCTL_RUN_DIR", &folder)), WRONG, &["ublk cannot be used", "it needs root"]);

    // None of this left anything or stands in the way.
    assert_nothing_left(&rig, "refusals");
    refused(&run(&mut rig.luksctl(&["close", NAME])), NO_SUCH, &[NAME]);
    let device = Backend::Ublk.open(&rig, &image, NAME);
    assert!(device.exists());
    Backend::Ublk.close(&rig, NAME);
    assert_nothing_left(&rig, "everything");
}
