//! Promise: a volume is the same whoever serves it. What was unpacked through one backend is there, byte for byte, through
//! the other and through cryptsetup; each of them writes to it, and the file system stays clean.
//!
//! Runs in the VM lane: {dm, fuse} × {ext4, xfs} × sectors {512, 4096}; the short lane takes one with udevd and one without,
//! in which each of these comes up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::path::Path;
use std::process::Command;

use promises::backend::{Backend, format_small, mount, unmount};
use promises::crypt_volume::starts_clean;
use promises::file_tree::{self, assert_same};
use promises::rig::succeed;
use promises::{Rig, kernel_leftovers, vm};

const IMAGE_BYTES: u64 = 40 << 20;
const LARGE_BYTES: usize = 5 << 20;
const FILES: u64 = 120;
const NAME: &str = "matrix";

#[derive(Debug, Clone, Copy)]
struct Case {
    first: Backend,
    file_system: &'static str,
    sector_size: &'static str,
}

/// Every case, or one that has nothing in common with the other round's.
fn cases() -> Vec<Case> {
    if !vm::is_full() {
        return vec![if vm::has_udev() {
            Case { first: Backend::Fuse, file_system: "xfs", sector_size: "512" }
        } else {
            Case { first: Backend::Dm, file_system: "ext4", sector_size: "4096" }
        }];
    }
    let mut cases = Vec::new();
    for first in Backend::OURS {
        for file_system in ["ext4", "xfs"] {
            cases.extend(["512", "4096"].map(|sector_size| Case { first, file_system, sector_size }));
        }
    }
    cases
}

#[test]
fn vm_matrix_what_one_backend_wrote_every_other_reads() {
    if !starts_clean("vm_matrix_what_one_backend_wrote_every_other_reads") {
        return;
    }
    let rig = Rig::new("matrix");
    let (source, archive, folder) = (rig.path("source"), rig.path("tree.tar"), rig.path("mnt"));
    file_tree::make(&source, FILES, LARGE_BYTES);
    succeed(Command::new("tar").arg("-C").arg(&source).arg("-cf").arg(&archive).arg("."));
    let mut expected = file_tree::picture(&source);
    let cases = cases();
    assert!(cases.len() == if vm::is_full() { 8 } else { 1 }, "{cases:?}");
    for (number, case) in cases.into_iter().enumerate() {
        eprintln!("{case:?}");
        let image = rig.path(&format!("image-{number}"));
        format_small(&rig, &image, IMAGE_BYTES, number % 2 == 1, &["--sector-size", case.sector_size]);
        let device = case.first.open(&rig, &image, NAME);
        make_file_system(&device, case);
        mount(&device, &folder, "noatime");
        succeed(Command::new("tar").arg("-C").arg(&folder).arg("-xpf").arg(&archive));
        unmount(&folder);
        case.first.close(&rig, NAME);

        let before = expected.len();
        let other = Backend::OURS.into_iter().find(|backend| *backend != case.first).unwrap();
        for reader in [other, Backend::Cryptsetup, case.first] {
            let what = format!("{case:?}, read through {reader:?}");
            // On a busy host a case takes minutes, and silence would pass for a hang.
            eprintln!("{what}");
            let device = reader.open(&rig, &image, NAME);
            check_sector_size(reader, case);
            demand_clean(&device, case, &what);
            mount(&device, &folder, "noatime");
            assert_same(&expected, &file_tree::picture(&folder), &what);
            // The next reader finds what this one adds.
            let (added, copy) = (format!("written by {reader:?}"), rig.path("added"));
            fs::create_dir(&copy).unwrap();
            for root in [&folder, &copy] {
                fs::write(root.join(&added), added.repeat(5000)).unwrap();
            }
            expected.extend(file_tree::picture_of_one(&copy, &added));
            expected.sort();
            fs::remove_dir_all(&copy).unwrap();
            unmount(&folder);
            // What the others leave, the next one checks before it mounts: through another backend.
            if reader == case.first {
                demand_clean(&device, case, &what);
            }
            reader.close(&rig, NAME);
            kernel_leftovers::demand_none(&rig, &[], &what);
        }
        assert_eq!(expected.len(), before + 3);
        expected.retain(|line| !line.contains("written by"));
        fs::remove_file(&image).unwrap();
    }
}

fn make_file_system(device: &Path, case: Case) {
    let mut make = match case.file_system {
        "ext4" => Command::new("mkfs.ext4"),
        _ => {
            let mut make = Command::new("mkfs.xfs");
            // XFS of today wants 300 MiB and a log of 64; its sectors are then the device's all the same.
            make.args(["--unsupported", "-l", "size=8m"]);
            make
        }
    };
    succeed(make.arg("-q").arg(device));
}

fn demand_clean(device: &Path, case: Case, what: &str) {
    let mut check = match case.file_system {
        "ext4" => Command::new("e2fsck"),
        _ => Command::new("xfs_repair"),
    };
    let options: &[&str] = if case.file_system == "ext4" { &["-fn"] } else { &["-n"] };
    let output = check.args(options).arg(device).output().unwrap();
    assert!(output.status.success(), "{what}: {output:?}");
}

/// It is the kernel's dm-crypt that does it, with the sectors that were asked for; or it is not.
fn check_sector_size(reader: Backend, case: Case) {
    let output = Command::new("dmsetup").args(["table", NAME]).output().unwrap();
    assert_eq!(output.status.success(), reader != Backend::Fuse, "{output:?}");
    if reader != Backend::Fuse {
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.contains(" crypt aes-xts-plain64 "), "{table}");
        assert_eq!(table.contains("sector_size:4096"), case.sector_size == "4096", "{table}");
    }
}
