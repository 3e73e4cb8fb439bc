//! Promise: on a machine with little memory each backend takes writes of a multiple of that memory, beside a program that
//! holds most of it, without a hang, without the OOM killer, and with every byte as it was written.
//!
//! Runs in the VM lane, in the guest with 512 MiB; the lane itself fails at a hung task. The short lane writes less.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, mount, unmount};
use promises::crypt_volume::starts_clean;
use promises::disk_model::xorshift;
use promises::rig::succeed;
use promises::{Rig, kernel_leftovers, vm};

const PIECE_BYTES: usize = 1 << 20;
/// What the hog leaves of the memory that is available when it starts.
const LEFT_BYTES: u64 = 72 << 20;
const HOG: &str = "vm_small_memory_hog";
/// Tells the hog how much to take.
const HOG_VARIABLE: &str = "LUKS_HOG_BYTES";
const NAME: &str = "memory";

/// A value of /proc/meminfo.
fn memory_bytes(what: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Processes that the OOM killer took since the boot.
fn oom_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
}

/// Not a test of its own: the program beside the others. It takes memory and keeps writing to it until it is killed.
#[test]
fn vm_small_memory_hog() {
    let Some(bytes) = std::env::var(HOG_VARIABLE).ok().and_then(|text| text.parse::<usize>().ok()) else {
        // In the lane's list it is a test like every other: it shows that it takes what it is told.
        if vm::needs_vm(HOG) {
            assert_eq!(take(3 << 20).len(), 3 << 20);
        }
        return;
    };
    let mut memory = take(bytes);
    println_now("hog: has it all");
    for round in (0..=u8::MAX).cycle() {
        for page in memory.chunks_mut(4096) {
            page[0] = round;
        }
        std::hint::black_box(&memory);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn take(bytes: usize) -> Vec<u8> {
    // Written to, or the kernel gives nothing.
    vec![0x5a; bytes]
}

fn println_now(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

/// The running hog; killed when dropped.
struct Hog(Child);

impl Hog {
    fn start() -> Hog {
        let bytes = memory_bytes("MemAvailable").saturating_sub(LEFT_BYTES);
        assert!(bytes > 32 << 20, "the guest has no memory to take away: {bytes} bytes");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", HOG, "--nocapture", "--test-threads=1"])
            .env(HOG_VARIABLE, bytes.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let mut output = child.stdout.take().unwrap();
        while !String::from_utf8_lossy(&said).contains("has it all") {
            let mut piece = [0; 256];
            let got = output.read(&mut piece).unwrap();
            assert!(got > 0, "the hog ended: {}", String::from_utf8_lossy(&said));
            said.extend(&piece[..got]);
        }
        eprintln!("the hog has {} MiB, {} are left", bytes >> 20, memory_bytes("MemAvailable") >> 20);
        Hog(child)
    }

    fn end(mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "the hog did not live as long as the writes");
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The bytes of one piece of the file.
fn piece(number: u64, buffer: &mut [u8]) {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    // One page of noise, then pages that tell which they are.
    let (first, rest) = buffer.split_at_mut(4096);
    for word in first.chunks_exact_mut(8) {
        word.copy_from_slice(&xorshift(&mut state).to_le_bytes());
    }
    for (page, bytes) in rest.chunks_mut(4096).enumerate() {
        bytes.copy_from_slice(first);
        bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    }
}

fn write(path: &Path, pieces: u64) {
    let mut file = File::create_new(path).unwrap();
    let mut buffer = vec![0; PIECE_BYTES];
    for number in 0..pieces {
        piece(number, &mut buffer);
        file.write_all(&buffer).unwrap();
    }
    file.sync_all().unwrap();
}

fn verify(path: &Path, pieces: u64) {
    let mut file = OpenOptions::new().read(true).open(path).unwrap();
    let (mut expected, mut found) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    for number in 0..pieces {
        piece(number, &mut expected);
        file.read_exact(&mut found).unwrap();
        assert!(expected == found, "piece {number} of {}", path.display());
    }
    assert_eq!(file.read(&mut found).unwrap(), 0, "{} is too long", path.display());
}

fn fills_memory_several_times(backend: Backend) {
    let total = memory_bytes("MemTotal");
    assert!(total < 512 << 20, "this guest has {} MiB", total >> 20);
    let pieces = match backend {
        _ if vm::is_full() => 4 * 512,
        Backend::Dm | Backend::Fuse => 192,
        // More than the hog leaves, and the short lane is short.
        _ => 96,
    };
    let (rig, killed) = (Rig::new("memory"), oom_kills());
    let (image, folder) = (rig.path("image"), rig.path("mnt"));
    let image_bytes = SMALL_HEADER_BYTES + (pieces + pieces / 8 + 64) * PIECE_BYTES as u64;
    format_small(&rig, &image, image_bytes, false, &["--sector-size", "4096"]);
    let device = backend.open(&rig, &image, NAME);
    succeed(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&device));
    mount(&device, &folder, "noatime");
    let file = folder.join("file");

    let hog = Hog::start();
    let begun = Instant::now();
    write(&file, pieces);
    let written = begun.elapsed();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    verify(&file, pieces);
    eprintln!("{backend:?}: {pieces} MiB written in {written:?}, all in {:?}", begun.elapsed());
    hog.end();
    assert_eq!(oom_kills(), killed, "the OOM killer was called");

    unmount(&folder);
    let checked = Command::new("e2fsck").arg("-fn").arg(&device).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    backend.close(&rig, NAME);
    kernel_leftovers::demand_none(&rig, &[], "memory");
}

#[test]
fn vm_small_memory_is_enough_for_the_kernel_path() {
    if starts_clean("vm_small_memory_is_enough_for_the_kernel_path") {
        fills_memory_several_times(Backend::Dm);
    }
}

#[test]
fn vm_small_memory_is_enough_for_fuse() {
    if starts_clean("vm_small_memory_is_enough_for_fuse") {
        fills_memory_several_times(Backend::Fuse);
    }
}

#[test]
fn vm_small_memory_is_enough_for_ublk() {
    if starts_clean("vm_small_memory_is_enough_for_ublk") {
        succeed(Command::new("modprobe").arg("ublk_drv"));
        fills_memory_several_times(Backend::Ublk);
    }
}

#[test]
fn vm_small_memory_is_enough_for_an_nbd_device() {
    if starts_clean("vm_small_memory_is_enough_for_an_nbd_device") {
        succeed(Command::new("modprobe").arg("nbd"));
        fills_memory_several_times(Backend::NbdDevice);
    }
}
