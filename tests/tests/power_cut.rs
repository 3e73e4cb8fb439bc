//! Power cuts. The image lies on a [`PowerCutDisk`] (its fault model stands in its documentation), served by our own FUSE;
//! the real luksctl, a loop device and ext4 run on it under write load. At random moments the power goes: what was flushed
//! is kept, of the rest a random, torn part. Each such disk is reopened by the real luksctl, ext4 replays its journal, and
//! every file whose fsync had returned before the cut must be whole. A disk that lies about flushes makes the same check
//! fail, so the check can.
//!
//! `LUKS_POWER_CUTS` sets the number of cuts, `LUKS_POWER_CUT_SEED` the seed; a failure prints both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::fault::PowerCutDisk;
use block::{BlockIo, Bytes, MemDisk};
use promises::Rig;
use promises::ledger::{Ledger, check, write_version};
use promises::rig::{run, succeed};
use promises::served::Served;
use promises::skip::{needs_fuse, needs_programs, needs_root};

const IMAGE_SIZE: &str = "64M";
const SLOTS: usize = 24;
const WRITERS: usize = 3;
const CUTS: u64 = 200;
/// A lying disk is caught at the first cut nearly always; this many leave no doubt.
const CUTS_OF_THE_LIAR: u64 = 10;

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// A small generator: the moments and the cuts of a run follow from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// An image with ext4 in it, made by the real tools, as bytes on a disk in memory.
fn prepared_image(rig: &Rig) -> Vec<u8> {
    let image = rig.path("prepared");
    rig.format_cheap(&image, IMAGE_SIZE, &[]);
    let device = rig.open(&image, "prepared");
    succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&device));
    rig.close("prepared");
    std::fs::read(&image).unwrap()
}

fn mount(device: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    succeed(Command::new("mount").args(["-t", "ext4", "-o", "nosuid,nodev"]).arg(device).arg(folder));
}

/// One power cut looked at: reopen, replay, compare. Returns what was lost.
fn verify(rig: &Rig, survivor: MemDisk, durable: &[u64]) -> Vec<String> {
    let served = Served::new(Arc::new(survivor), &rig.path("cut"));
    let device = rig.open(&served.file, "cut");
    let folder = rig.path("cut-mnt");
    std::fs::create_dir_all(&folder).unwrap();
    let mounted = run(Command::new("mount").args(["-t", "ext4"]).arg(&device).arg(&folder));
    let lost = if mounted.status.success() {
        let lost = check(&folder, durable);
        succeed(Command::new("umount").arg(&folder));
        lost
    } else {
        vec![format!("the file system does not mount: {}", String::from_utf8_lossy(&mounted.stderr))]
    };
    let fsck = run(Command::new("e2fsck").arg("-fn").arg(&device));
    rig.close("cut");
    served.end();
    let mut lost = lost;
    if !fsck.status.success() {
        lost.push(format!("e2fsck -fn: {}", String::from_utf8_lossy(&fsck.stdout)));
    }
    lost
}

/// Writes new versions, slot after slot, until told to stop.
fn write_on(folder: &Path, ledger: &Ledger, writer: usize, stop: &AtomicBool) {
    for version in 1.. {
        for slot in (writer..SLOTS).step_by(WRITERS) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            write_version(folder, ledger, slot, version).unwrap();
        }
    }
}

/// Runs the whole stack under load and cuts the power `cuts` times; returns the losses of each cut that had any.
fn campaign(disk: PowerCutDisk, rig: &Rig, cuts: u64, seed: u64) -> Vec<(u64, Vec<String>)> {
    let disk = Arc::new(disk);
    let served = Served::new(Arc::clone(&disk), &rig.path("live"));
    let device = rig.open(&served.file, "live");
    let folder = rig.path("mnt");
    mount(&device, &folder);
    let ledger = Ledger::new(SLOTS);
    let stop = AtomicBool::new(false);
    let mut random = Random(seed);
    let mut losses = Vec::new();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (folder, ledger, stop) = (&folder, &ledger, &stop);
            scope.spawn(move || write_on(folder, ledger, writer, stop));
        }
        for cut in 0..cuts {
            std::thread::sleep(Duration::from_micros(20_000 + random.next() % 150_000));
            // The ledger first: all it lists had been synced when the power went.
            let durable = ledger.snapshot();
            let survivor = disk.cut(random.next());
            let lost = verify(rig, survivor, &durable);
            if !lost.is_empty() {
                losses.push((cut, lost));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let versions = ledger.snapshot();
    assert!(versions.iter().all(|&version| version > 1), "the load was too light: {versions:?}");
    eprintln!("{cuts} cuts, {} versions synced in {SLOTS} files", versions.iter().sum::<u64>());
    succeed(Command::new("umount").arg(&folder));
    rig.close("live");
    served.end();
    losses
}

fn prerequisites(test: &str) -> bool {
    needs_root(test) && needs_fuse(test) && needs_programs(test, &["mkfs.ext4", "e2fsck", "mount", "umount"])
}

fn power_cut_disk(image: &[u8]) -> PowerCutDisk {
    let disk = MemDisk::new(Bytes(image.len() as u64));
    disk.write_at(Bytes(0), image, false).unwrap();
    PowerCutDisk::from_disk(&disk)
}

#[test]
fn every_synced_file_survives_every_power_cut() {
    if !prerequisites("power_cut: every_synced_file_survives_every_power_cut") {
        return;
    }
    let seed = number_from("LUKS_POWER_CUT_SEED", u64::from(std::process::id()));
    let cuts = number_from("LUKS_POWER_CUTS", CUTS);
    eprintln!("LUKS_POWER_CUT_SEED={seed} LUKS_POWER_CUTS={cuts}");
    let rig = Rig::new("power-cut");
    let disk = power_cut_disk(&prepared_image(&rig));
    let losses = campaign(disk, &rig, cuts, seed);
    assert!(losses.is_empty(), "seed {seed}: {} of {cuts} cuts lost synced files: {losses:#?}", losses.len());
}

#[test]
fn a_disk_that_lies_about_flushes_is_caught() {
    if !prerequisites("power_cut: a_disk_that_lies_about_flushes_is_caught") {
        return;
    }
    let rig = Rig::new("power-cut-liar");
    let disk = power_cut_disk(&prepared_image(&rig));
    disk.lie_about_flush(true);
    let losses = campaign(disk, &rig, CUTS_OF_THE_LIAR, 1);
    assert!(!losses.is_empty(), "with every flush stubbed out, no cut lost anything: the check checks nothing");
}
