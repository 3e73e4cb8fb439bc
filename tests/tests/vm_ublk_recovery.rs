//! Promise: with `--recover`, readers and writers of a ublk device outlive its server: another one that unlocks the same volume goes on
//! with the same device, no acknowledged write is lost, and no request fails; and where none comes they are not left to hang.
//!
//! Runs in the VM lane; the long lane also waits until the device is given up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, status};
use promises::crypt_volume::starts_clean;
use promises::rig::{refused, run, succeed};
use promises::{Rig, kernel_leftovers, vm};

const DATA_BYTES: u64 = 16 << 20;
const NAME: &str = "recovered";
const WRONG: i32 = 1;
const KILLS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(180);
/// What the device is given up after, and what a slow machine adds.
const PATIENCE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(60);

fn image(rig: &Rig, name: &str) -> PathBuf {
    let image = rig.path(name);
    format_small(rig, &image, SMALL_HEADER_BYTES + DATA_BYTES, false, &["--sector-size", "4096"]);
    image
}

fn open(rig: &Rig, image: &Path) -> PathBuf {
    succeed(&mut Backend::Ublk.open_command(rig, image, NAME, &["--recover"]));
    Backend::Ublk.device(rig, NAME)
}

fn kill_server(rig: &Rig) {
    let pid = status(rig, NAME)["pid"].as_i64().unwrap();
    succeed(Command::new("kill").args(["-KILL", &pid.to_string()]));
    wait_until("the killed server does not end", || !Path::new(&format!("/proc/{pid}")).exists());
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Block `number` of the writer.
fn content(number: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
    block
}

#[test]
fn vm_ublk_recovery_goes_on_without_an_error() {
    let test = "vm_ublk_recovery_goes_on_without_an_error";
    if !(starts_clean(test) && vm::is_round_for(test, false)) {
        return;
    }
    let rig = Rig::new("ublk-recovery");
    let image = image(&rig, "image");
    let device = open(&rig, &image);
    let blocks = DATA_BYTES / 4096;
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(&device).unwrap();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) && number < blocks {
                file.write_all_at(&content(number), number * 4096).unwrap();
                number += 1;
                acknowledged.store(number, Ordering::SeqCst);
            }
        });
        for kill in 1..=KILLS {
            let before = acknowledged.load(Ordering::SeqCst);
            wait_until("nothing is written", || {
                acknowledged.load(Ordering::SeqCst) > before + 3 || writer.is_finished()
            });
            kill_server(&rig);
            let shown = status(&rig, NAME);
            assert_eq!(shown["state"], "dead");
            assert!(shown["problem"].as_str().unwrap().contains("--recover"), "{shown}");
            assert_eq!(open(&rig, &image), device, "kill {kill}: another device");
        }
        let before = acknowledged.load(Ordering::SeqCst);
        wait_until("nothing is written", || acknowledged.load(Ordering::SeqCst) > before + 3 || writer.is_finished());
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    let count = acknowledged.into_inner();
    eprintln!("{count} blocks acknowledged over {KILLS} kills");
    assert_eq!(status(&rig, NAME)["state"], "open");
    Backend::Ublk.close(&rig, NAME);
    kernel_leftovers::demand_none(&rig, &[], "recovery");
    let device = Backend::Dm.open(&rig, &image, NAME);
    let file = File::open(&device).unwrap();
    let mut found = [0; 4096];
    for number in 0..count {
        file.read_exact_at(&mut found, number * 4096).unwrap();
        assert!(found == content(number), "block {number} of {count} that were acknowledged");
    }
    drop(file);
    Backend::Dm.close(&rig, NAME);

    // Who does not want it back closes it: readers get errors.
    let device = open(&rig, &image);
    kill_server(&rig);
    let reader =
        std::thread::spawn(move || File::open(device).and_then(|file| file.read_exact_at(&mut [0; 4096], 4096)));
    succeed(&mut rig.luksctl(&["close", NAME]));
    assert!(reader.join().unwrap().is_err());
    kernel_leftovers::demand_none(&rig, &[], "giving it up");
    refused(&run(&mut Backend::Dm.open_command(&rig, &image, NAME, &["--recover"])), WRONG, &["no --recover", "ublk"]);
}

#[test]
fn vm_ublk_recovery_gives_up_after_half_a_minute_and_takes_no_other_volume() {
    let test = "vm_ublk_recovery_gives_up_after_half_a_minute_and_takes_no_other_volume";
    if !(starts_clean(test) && vm::is_full()) {
        return;
    }
    let rig = Rig::new("ublk-given-up");
    let (image, other) = (image(&rig, "image"), image(&rig, "other"));
    for is_exchanged in [false, true] {
        let device = open(&rig, &image);
        kill_server(&rig);
        let begun = Instant::now();
        let reader =
            std::thread::spawn(move || File::open(device).and_then(|file| file.read_exact_at(&mut [0; 4096], 4096)));
        if is_exchanged {
            fs::copy(&other, &image).unwrap();
            let open = run(&mut Backend::Ublk.open_command(&rig, &image, NAME, &["--recover"]));
            refused(&open, WRONG, &["waits for another volume"]);
        }
        while !reader.is_finished() {
            assert!(begun.elapsed() < PATIENCE + GRACE, "a reader hangs for {:?}", begun.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(begun.elapsed() >= PATIENCE, "given up after {:?}", begun.elapsed());
        assert!(reader.join().unwrap().is_err(), "a read without a server succeeded");
        wait_until("the device stays", || kernel_leftovers::ublk_devices().is_empty());
        if !is_exchanged {
            assert_eq!(status(&rig, NAME)["state"], "dead");
            succeed(&mut rig.luksctl(&["close", NAME]));
        }
        kernel_leftovers::demand_none(&rig, &[], "giving up");
    }
    let device = Backend::Ublk.open(&rig, &image, NAME);
    assert!(device.exists());
    Backend::Ublk.close(&rig, NAME);
}
