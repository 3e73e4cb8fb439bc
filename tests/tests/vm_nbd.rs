//! Promise: `/dev/nbdN` on our server is a disk like any other. What a file system wrote through it, dm-crypt, FUSE and cryptsetup
//! read; while it is used it does not close; a server that is killed is an I/O error to whoever waits and no work for anybody
//! but the next `close` or `open`.
//!
//! Runs in the VM lane: the driver is a module of a stock kernel.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, mount, status, unmount};
use promises::crypt_volume::{run as said, starts_clean};
use promises::rig::{refused, run, succeed};
use promises::{Rig, kernel_leftovers, vm};

const IMAGE_BYTES: u64 = SMALL_HEADER_BYTES + (24 << 20);
const NAME: &str = "networked";
const BUSY: i32 = 5;
const DEAD: i32 = 10;

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        sleep(Duration::from_millis(20));
    }
}

/// An image and the driver, which is loaded here; before that, an attempt without it.
fn begin(name: &str) -> (Rig, PathBuf) {
    let rig = Rig::new(name);
    let image = rig.path("image");
    format_small(&rig, &image, IMAGE_BYTES, false, &["--sector-size", "4096"]);
    if !Path::new("/sys/module/nbd").exists() {
        let mut open = rig.luksctl(&["open", "--attach", "--key-file"]);
        let output = run(open.arg(rig.path("no-key-is-asked-for")).arg(&image).arg(NAME));
        assert!(!output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("modprobe nbd"), "{output:?}");
        let _ = said("modprobe", &["nbd"]);
    }
    (rig, image)
}

/// Opens and returns the device.
fn attach(rig: &Rig, image: &Path, options: &[&str]) -> PathBuf {
    let mut open = rig.luksctl(&["open", "-q", "--backend", "nbd", "--attach", "--key-file"]);
    let output = succeed(open.arg(rig.key()).args(options).arg(image).arg(NAME));
    let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    assert!(device.to_str().unwrap().starts_with("/dev/nbd"), "{}", device.display());
    assert_eq!(fs::read_link(rig.run_dir().join(NAME).join("device")).unwrap(), device);
    let status = status(rig, NAME);
    assert_eq!((status["device"].as_str(), status["backend"].as_str()), (device.to_str(), Some("nbd device")));
    let size = said("blockdev", &["--getsize64", device.to_str().unwrap()]);
    assert_eq!(Some(size), status["size_bytes"].as_u64().map(|bytes| bytes.to_string()));
    device
}

/// Whether the kernel has no device connected.
fn nothing_is_attached() -> bool {
    let connected = |entry: fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with("nbd") && entry.path().join("pid").exists()
    };
    !fs::read_dir("/sys/block").unwrap().flatten().any(connected)
}

fn demand_nothing_left(rig: &Rig, after: &str) {
    kernel_leftovers::demand_none(rig, &[], after);
    eventually("the end of the device", nothing_is_attached);
    assert!(!rig.run_dir().join(NAME).exists(), "{after}");
}

fn kill_server(rig: &Rig) {
    let pid = i32::try_from(status(rig, NAME)["pid"].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    eventually("the death", || run(&mut rig.luksctl(&["status", NAME])).status.code() == Some(DEAD));
}

/// Reads one block of `device`, past the page cache.
fn reader(device: &Path) -> Child {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", device.display())).args(["of=/dev/null", "bs=4096", "count=1", "iflag=direct"]);
    dd.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn vm_nbd_device_is_the_volume_that_every_other_backend_reads() {
    let test = "vm_nbd_device_is_the_volume_that_every_other_backend_reads";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let (rig, image) = begin("nbd-matrix");
    let folder = rig.path("mnt");
    let device = attach(&rig, &image, &[]);
    assert_eq!(said("blockdev", &["--getss", device.to_str().unwrap()]), "4096");
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
    mount(&device, &folder, "noatime");
    let bytes: Vec<u8> =
        (0..3_000_000_u32).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    fs::write(folder.join("data"), &bytes).unwrap();
    let close = run(&mut rig.luksctl(&["close", NAME]));
    refused(&close, BUSY, &["mounted on"]);
    assert!(fs::read(folder.join("data")).unwrap() == bytes, "a refused close changes nothing");
    unmount(&folder);
    let holder = fs::File::open(&device).unwrap();
    let close = run(&mut rig.luksctl(&["close", NAME]));
    refused(&close, BUSY, &["opened by"]);
    drop(holder);
    succeed(&mut rig.luksctl(&["close", NAME]));
    demand_nothing_left(&rig, "close");

    for backend in [Backend::Dm, Backend::Fuse, Backend::Cryptsetup] {
        eprintln!("{backend:?}");
        let device = backend.open(&rig, &image, NAME);
        mount(&device, &folder, "noatime");
        assert!(fs::read(folder.join("data")).unwrap() == bytes, "{backend:?}");
        fs::write(folder.join(format!("{backend:?}")), format!("{backend:?}")).unwrap();
        unmount(&folder);
        backend.close(&rig, NAME);
        kernel_leftovers::demand_none(&rig, &[], &format!("{backend:?}"));
    }
    // And back, mounted by luksctl itself, which closes with the unmount.
    let mut mounting = rig.luksctl(&["mount", "-q", "--backend", "nbd", "--attach", "--name", NAME, "--key-file"]);
    succeed(mounting.arg(rig.key()).arg(&image).arg(&folder));
    for backend in [Backend::Dm, Backend::Fuse, Backend::Cryptsetup] {
        assert_eq!(fs::read_to_string(folder.join(format!("{backend:?}"))).unwrap(), format!("{backend:?}"));
    }
    assert!(fs::read(folder.join("data")).unwrap() == bytes);
    succeed(rig.luksctl(&["umount"]).arg(&folder));
    demand_nothing_left(&rig, "umount");

    let device = attach(&rig, &image, &["--readonly"]);
    assert_eq!(said("blockdev", &["--getro", device.to_str().unwrap()]), "1");
    succeed(Command::new("e2fsck").arg("-fn").arg(&device));
    rig.close(NAME);
    demand_nothing_left(&rig, "read-only");
}

#[test]
fn vm_nbd_killed_server_is_an_io_error_and_is_cleaned_up() {
    let test = "vm_nbd_killed_server_is_an_io_error_and_is_cleaned_up";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let (rig, image) = begin("nbd-killed");
    let folder = rig.path("mnt");
    // A reader that waits for a resume: with a resume it gets its block, with a kill an error.
    let device = attach(&rig, &image, &[]);
    for kills in [false, true] {
        succeed(&mut rig.luksctl(&["suspend", NAME]));
        let mut waiting = reader(&device);
        sleep(Duration::from_millis(500));
        assert!(waiting.try_wait().unwrap().is_none(), "a read of a suspended volume waits");
        if kills {
            kill_server(&rig);
        } else {
            succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg(NAME));
        }
        let mut ended = None;
        eventually("the end of the reader", || {
            ended = waiting.try_wait().unwrap();
            ended.is_some()
        });
        assert_eq!(ended.unwrap().success(), !kills);
    }
    // The next open takes away what was left.
    let device = attach(&rig, &image, &[]);
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
    mount(&device, &folder, "noatime");
    fs::write(folder.join("data"), "kept").unwrap();
    succeed(Command::new("sync").arg("-f").arg(&folder));
    kill_server(&rig);
    let lost = fs::write(folder.join("more"), "lost").and_then(|()| fs::File::open(folder.join("more"))?.sync_all());
    assert!(lost.is_err(), "a write without a server");
    let close = run(&mut rig.luksctl(&["close", NAME]));
    refused(&close, BUSY, &["still mounted on"]);
    unmount(&folder);
    rig.close(NAME);
    demand_nothing_left(&rig, "a killed server below a mount");

    // What was synced is there.
    let device = attach(&rig, &image, &[]);
    let checked = run(Command::new("e2fsck").arg("-fy").arg(&device));
    assert!(matches!(checked.status.code(), Some(0 | 1)), "more than the journal and counts to mend: {checked:?}");
    succeed(Command::new("e2fsck").arg("-fn").arg(&device));
    mount(&device, &folder, "noatime");
    assert_eq!(fs::read_to_string(folder.join("data")).unwrap(), "kept");
    unmount(&folder);
    rig.close(NAME);
    demand_nothing_left(&rig, "recovery");
}
