//! Promise: a volume that a server has grows with its image while it is in use, on the loop device and on the bare file, and
//! nothing shrinks under its users.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use promises::Rig;
use promises::rig::{refused, run, succeed};
use promises::skip::{needs_fuse, needs_root};

const MIB: u64 = 1 << 20;
/// What a header takes.
const DATA_OFFSET: u64 = 16 * MIB;

fn open(rig: &Rig, image: &Path, options: &[&str]) {
    succeed(
        rig.luksctl(&["open", "--backend", "fuse", "--key-file"]).arg(rig.key()).args(options).arg(image).arg("grown"),
    );
}

fn set_len(image: &Path, size_mib: u64) {
    File::options().write(true).open(image).unwrap().set_len(size_mib * MIB).unwrap();
}

/// Size of a block device or a file.
fn size(device: &Path) -> u64 {
    File::open(device).unwrap().seek(SeekFrom::End(0)).unwrap()
}

fn resize(rig: &Rig) -> serde_json::Value {
    serde_json::from_slice(&succeed(&mut rig.luksctl(&["resize", "--json", "grown"])).stdout).unwrap()
}

fn grows(rig: &Rig, image: &Path, options: &[&str]) {
    rig.format_cheap(image, "24M", &[]);
    open(rig, image, options);
    let device = rig.run_dir().join("grown/device");
    assert_eq!(size(&device), 8 * MIB);
    // In use all the while.
    let mut user = File::options().read(true).write(true).open(&device).unwrap();
    user.write_all(&[0x11; 4096]).unwrap();
    set_len(image, 32);
    let report = resize(rig);
    assert_eq!((&report["was_bytes"], &report["size_bytes"]), (&(8 * MIB).into(), &(16 * MIB).into()));
    assert_eq!(size(&device), 16 * MIB);
    user.seek(SeekFrom::Start(16 * MIB - 4096)).unwrap();
    user.write_all(&[0x22; 4096]).unwrap();
    user.sync_all().unwrap();
    let again = resize(rig);
    assert_eq!(again["was_bytes"], again["size_bytes"], "nothing has changed since");
    drop(user);
    rig.close("grown");

    open(rig, image, options);
    let mut user = File::open(&device).unwrap();
    for (at, byte) in [(0, 0x11), (16 * MIB - 4096, 0x22)] {
        let mut read = [0; 4096];
        user.seek(SeekFrom::Start(at)).unwrap();
        user.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|found| *found == byte), "byte {at}");
    }
    drop(user);
    rig.close("grown");
}

#[test]
fn a_loop_device_over_fuse_grows_while_it_is_in_use() {
    let test = "grow_served: a_loop_device_over_fuse_grows_while_it_is_in_use";
    if !needs_root(test) || !needs_fuse(test) {
        return;
    }
    let rig = Rig::new("grow-loop");
    grows(&rig, &rig.path("image"), &[]);
}

#[test]
fn a_bare_file_below_fuse_grows_while_it_is_in_use() {
    if !needs_fuse("grow_served: a_bare_file_below_fuse_grows_while_it_is_in_use") {
        return;
    }
    let rig = Rig::new("grow-file");
    grows(&rig, &rig.path("image"), &["--no-loop"]);
}

#[test]
fn what_cannot_be_served_is_refused_by_name_and_changes_nothing() {
    if !needs_fuse("grow_served: what_cannot_be_served_is_refused_by_name_and_changes_nothing") {
        return;
    }
    let rig = Rig::new("grow-refused");
    let image = rig.path("image");
    rig.format_cheap(&image, "32M", &[]);
    open(&rig, &image, &["--no-loop"]);
    let device = rig.run_dir().join("grown/device");
    let try_size = |size: &str| run(&mut rig.luksctl(&["resize", "--size", size, "grown"]));
    refused(&try_size("17M"), 4, &["there is room for 16 MiB"]);
    refused(&try_size("8M"), 1, &["always as long as its image has room for", "16 MiB", "8 MiB"]);
    refused(&run(rig.luksctl(&["resize", "grown", "--header"]).arg(&image)), 1, &["--header"]);
    succeed(&mut rig.luksctl(&["resize", "--size", "16M", "grown"]));

    set_len(&image, 24);
    refused(&run(&mut rig.luksctl(&["resize", "grown"])), 4, &["shrank under it", "16 MiB", "8 MiB"]);
    set_len(&image, 32);
    let policy = rig.path("policy.toml");
    std::fs::write(&policy, "preset = \"default\"\nciphers = [\"serpent-xts-plain64\"]\n").unwrap();
    refused(&run(rig.luksctl(&["resize", "grown", "--policy"]).arg(&policy)), 1, &["policy", "aes-xts-plain64"]);

    succeed(&mut rig.luksctl(&["suspend", "grown"]));
    refused(&run(&mut rig.luksctl(&["resize", "grown"])), 1, &["is suspended: resume it first"]);
    succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg("grown"));
    assert_eq!((size(&device), DATA_OFFSET + size(&device)), (16 * MIB, 32 * MIB));
    rig.close("grown");
}
