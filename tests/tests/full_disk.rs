//! A full disk in the middle: of `format`, of `copy-in`, of writes through the open volume. The verb says so and ends with 1,
//! what was there before still opens, and with room again the same command succeeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use promises::Rig;
use promises::leftovers;
use promises::rig::{run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};

const MEBIBYTE: usize = 1 << 20;
const SMALL: [&str; 4] = ["--offset", "2048", "--luks2-keyslots-size", "992K"];

/// A small file system of the test's own; the rig unmounts it.
fn small_disk(rig: &Rig, size: &str) -> PathBuf {
    let folder = rig.path("small");
    std::fs::create_dir(&folder).unwrap();
    let options = format!("size={size},mode=755");
    succeed(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&folder));
    folder
}

fn ready(test: &str) -> bool {
    needs_root(test) && needs_programs(test, &["mount", "umount"])
}

fn says_full(output: &Output) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("no space left") || words.contains("No space left"), "{words}");
    assert!(words.contains("\nhint: free space"), "{words}");
}

fn opens(rig: &Rig, image: &Path) {
    succeed(rig.luksctl(&["open", "--test-passphrase", "--key-file"]).arg(rig.key()).arg(image));
    if promises::skip::find_program("cryptsetup").is_some() {
        succeed(Command::new("cryptsetup").args(["open", "--test-passphrase", "-d"]).arg(rig.key()).arg(image));
    }
}

/// Takes all but `room` bytes of the disk.
fn fill_up(folder: &Path, room: u64) -> PathBuf {
    let free = rustix::fs::statvfs(folder).unwrap();
    let path = folder.join("filler");
    let file = std::fs::File::create(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, free.f_bfree * free.f_frsize - room).unwrap();
    path
}

fn format(rig: &Rig, image: &Path, options: &[&str]) -> Command {
    let mut command = rig.luksctl(&["format", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
    command.args(options).arg("--key-file").arg(rig.key()).arg(image);
    command
}

#[test]
fn format_on_a_full_disk_leaves_no_file_and_works_with_room() {
    let test = "full_disk: format_on_a_full_disk_leaves_no_file_and_works_with_room";
    if !ready(test) {
        return;
    }
    let rig = Rig::new("full");
    let folder = small_disk(&rig, "24m");
    // Reserved space is missed at once, sparse space wherever the header happens to be.
    for (room, options) in [
        (8 << 20, &["--size", "20M"][..]),
        (0, &["--size", "64M", "--sparse"]),
        (16 << 10, &["--size", "64M", "--sparse"]),
        (300 << 10, &["--size", "64M", "--sparse"]),
        (12 << 20, &["--size", "64M", "--sparse"]),
    ] {
        let filler = fill_up(&folder, room);
        let image = folder.join("image");
        says_full(&run(&mut format(&rig, &image, options)));
        assert!(!image.exists(), "a half-made {options:?} with room for {room}");
        // A file that was there keeps its length, and the next command says what it is now.
        let old = std::fs::File::create(&image).unwrap();
        old.set_len(64 << 20).unwrap();
        drop(old);
        says_full(&run(&mut format(&rig, &image, &[])));
        assert_eq!(std::fs::metadata(&image).unwrap().len(), 64 << 20);
        let dump = run(rig.luksctl(&["dump"]).arg(&image));
        assert_eq!(dump.status.code(), Some(1), "{dump:?}");
        std::fs::remove_file(&filler).unwrap();
        succeed(&mut format(&rig, &image, &["--force"]));
        opens(&rig, &image);
        std::fs::remove_file(&image).unwrap();
    }
    leftovers::demand_none(&rig, "format on a full disk");
}

#[test]
fn copies_on_a_full_disk_say_how_far_they_came() {
    let test = "full_disk: copies_on_a_full_disk_say_how_far_they_came";
    if !ready(test) {
        return;
    }
    let rig = Rig::new("full");
    let folder = small_disk(&rig, "24m");
    let (image, plain, out) = (folder.join("image"), rig.path("plain"), folder.join("out"));
    let content: Vec<u8> = (0..3_u32 << 20).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&plain, &content).unwrap();
    rig.format_cheap(&image, "32M", &["--sparse", SMALL[0], SMALL[1], SMALL[2], SMALL[3]]);
    let header = || {
        let mut bytes = vec![0; MEBIBYTE];
        std::fs::File::open(&image).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let before = header();
    let filler = fill_up(&folder, 5 << 20);
    let copy_in = || run(rig.luksctl(&["copy-in", "--force", "--key-file"]).arg(rig.key()).arg(&image).arg(&plain));
    let stopped = copy_in();
    says_full(&stopped);
    assert!(String::from_utf8_lossy(&stopped.stderr).contains("stopped after"), "{stopped:?}");
    assert!(header() == before, "a full disk changed the header");
    opens(&rig, &image);
    std::fs::remove_file(&filler).unwrap();
    let done = copy_in();
    assert!(done.status.success(), "{done:?}");

    let copy_out = |to: &Path| run(rig.luksctl(&["copy-out", "-q", "--key-file"]).arg(rig.key()).arg(&image).arg(to));
    says_full(&copy_out(&out));
    leftovers::demand_none(&rig, "copy-out on a full disk");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "an unfinished file on the full disk");
    let elsewhere = rig.path("elsewhere");
    assert!(copy_out(&elsewhere).status.success());
    assert!(std::fs::read(&elsewhere).unwrap()[..content.len()] == content);
}

#[test]
fn an_open_volume_on_a_full_disk_fails_its_writes_and_closes() {
    let test = "full_disk: an_open_volume_on_a_full_disk_fails_its_writes_and_closes";
    if !(ready(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("full");
    let folder = small_disk(&rig, "16m");
    let image = folder.join("image");
    rig.format_cheap(&image, "32M", &["--sparse", SMALL[0], SMALL[1], SMALL[2], SMALL[3]]);
    let filler = fill_up(&folder, 2 << 20);
    let device = rig.open(&image, "full");
    let disk = std::fs::OpenOptions::new().read(true).write(true).open(&device).unwrap();
    disk.write_all_at(&vec![7; MEBIBYTE], 0).unwrap();
    disk.sync_all().unwrap();
    let far = disk.write_all_at(&vec![9; 8 * MEBIBYTE], 4 << 20).and_then(|()| disk.sync_all());
    assert!(far.is_err(), "a write that found no room was called durable");
    drop(disk);
    let closed = run(&mut rig.luksctl(&["close", "full"]));
    assert!(matches!(closed.status.code(), Some(0 | 1)), "{closed:?}");
    leftovers::demand_none(&rig, "close on a full disk");
    opens(&rig, &image);
    std::fs::remove_file(&filler).unwrap();
    let device = rig.open(&image, "full");
    let mut found = vec![0; MEBIBYTE];
    std::fs::File::open(&device).unwrap().read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|byte| *byte == 7), "what was synced is lost");
    rig.close("full");
}

#[test]
fn pages_that_found_no_room_are_told_of_by_close_suspend_and_umount() {
    let test = "full_disk: pages_that_found_no_room_are_told_of_by_close_suspend_and_umount";
    if !ready(test) || !needs_fuse(test) || !needs_programs(test, &["mkfs.ext4"]) {
        return;
    }
    let rig = Rig::new("pages");
    let folder = small_disk(&rig, "24m");
    let image = folder.join("image");
    // Nobody waits for these writes: dd and cp end with 0 before the kernel writes back.
    let overfill = |path: &Path| {
        let of = format!("of={}", path.display());
        run(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=30", "conv=notrunc", "status=none"]).arg(of));
    };
    let lost = |output: &Output| {
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && words.contains("were lost"), "{output:?}");
    };
    rig.format_cheap(&image, "64M", &["--sparse", "--offset", "2048", "--luks2-keyslots-size", "992K"]);
    overfill(&std::fs::canonicalize(rig.open(&image, "pages")).unwrap());
    lost(&run(&mut rig.luksctl(&["close", "pages"])));
    assert!(!rig.run_dir().join("pages").exists(), "closed all the same");

    overfill(&std::fs::canonicalize(rig.open(&image, "pages")).unwrap());
    lost(&run(&mut rig.luksctl(&["suspend", "pages"])));
    rig.close("pages");

    std::fs::remove_file(&image).unwrap();
    rig.format_cheap(&image, "64M", &["--sparse", "--offset", "2048", "--luks2-keyslots-size", "992K"]);
    let device = rig.open(&image, "pages");
    succeed(Command::new("mkfs.ext4").args(["-q", "-E", "nodiscard,lazy_itable_init=1"]).arg(&device));
    rig.close("pages");
    let point = rig.path("point");
    std::fs::create_dir(&point).unwrap();
    succeed(rig.luksctl(&["mount", "--key-file"]).arg(rig.key()).arg(&image).arg(&point));
    overfill(&point.join("file"));
    lost(&run(rig.luksctl(&["umount"]).arg(&point)));
    leftovers::demand_none(&rig, "lost pages");
}

#[test]
fn copy_in_by_a_detached_header_spares_another_container() {
    let rig = Rig::new("wrong-data");
    let [header, data, other] = ["header", "data", "other"].map(|name| rig.path(name));
    for path in [&header, &data] {
        std::fs::File::create(path).unwrap().set_len(20 << 20).unwrap();
    }
    let header_text = header.to_str().unwrap();
    succeed(&mut format(&rig, &data, &["--force", "--header", header_text]));
    rig.format_cheap(&other, "20M", &["--sparse"]);
    let copy = |target: &Path| {
        let mut command = rig.luksctl(&["copy-in", "-q", "--key-file"]);
        run(command.arg(rig.key()).arg("--header").arg(&header).arg(target).arg(rig.key()))
    };
    assert_eq!(copy(&other).status.code(), Some(1), "the header of another container was overwritten");
    opens(&rig, &other);
    let copied = copy(&data);
    assert!(copied.status.success(), "{copied:?}");
}
