//! Names that resolve and that do not; each kind of user, with the real thing where the machine allows it.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn image(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = folder.path().canonicalize().unwrap().join(name);
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    path
}

fn how(path: &Path) -> String {
    match check_not_in_use(path) {
        Err(SessionError::ImageInUse { how, image }) => {
            assert_eq!(image, path);
            how
        }
        other => panic!("{other:?}"),
    }
}

/// A loop device by losetup, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(test: &str, path: &Path) -> Option<Loop> {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(path).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
            }
            other => {
                eprintln!("SKIPPED session::image {test}: needs losetup as root: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn luks_sector(version: u8, uuid: &str, label: &str) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(&[b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, version]);
    sector[168..168 + uuid.len()].copy_from_slice(uuid.as_bytes());
    sector[24..24 + label.len()].copy_from_slice(label.as_bytes());
    sector
}

#[test]
fn paths_resolve_to_files_and_nothing_else() {
    let folder = folder();
    let path = image(&folder, "image");
    let link = folder.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(resolve(path.to_str().unwrap()).unwrap(), path);
    assert_eq!(resolve(link.to_str().unwrap()).unwrap(), path);

    let missing = resolve(folder.path().join("missing").to_str().unwrap()).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
    let directory = resolve(folder.path().to_str().unwrap()).unwrap_err();
    assert!(directory.to_string().contains("is a directory"), "{directory}");
    let device = resolve("/dev/null").unwrap_err();
    assert!(device.to_string().contains("neither a regular file nor a block device"), "{device}");
}

#[test]
fn names_are_read_from_both_versions_and_from_nothing_else() {
    let second = header_names(&luks_sector(2, "0123", "a label")).unwrap();
    assert_eq!((second.uuid.as_str(), second.label.as_str()), ("0123", "a label"));
    let first = header_names(&luks_sector(1, "0123", "aes")).unwrap();
    assert_eq!((first.uuid.as_str(), first.label.as_str()), ("0123", ""));
    assert!(header_names(&luks_sector(3, "0123", "")).is_none());
    assert!(header_names(&[0; 512]).is_none());
    let mut full = luks_sector(2, &"u".repeat(40), &"l".repeat(48));
    assert_eq!(header_names(&full).unwrap().label.len(), 48);
    full[24] = 0xFF;
    assert!(header_names(&full).is_none(), "not UTF-8");
}

#[test]
fn tags_find_the_device_that_has_them() {
    let folder = folder();
    let path = image(&folder, "image");
    let uuid = "5c1d9f0e-77aa-4c5c-9d1b-0a5f6e2b7c11";
    let label = "test label 5c1d9f0e";
    let mut content = luks_sector(2, uuid, label).to_vec();
    content.resize(1 << 20, 0);
    fs::write(&path, content).unwrap();
    let Some(device) = Loop::attach("tags_find_the_device_that_has_them", &path) else { return };
    assert_eq!(resolve(format!("UUID={uuid}")).unwrap(), device.0);
    assert_eq!(resolve(format!("UUID=\"{}\"", uuid.to_uppercase())).unwrap(), device.0);
    assert_eq!(resolve(format!("LABEL={label}")).unwrap(), device.0);
    let none = resolve("UUID=5c1d9f0e-77aa-4c5c-9d1b-000000000000").unwrap_err();
    assert!(none.to_string().contains("no LUKS header"), "{none}");

    let second = Loop::attach("tags_find_the_device_that_has_them", &path).unwrap();
    let several = resolve(format!("UUID={uuid}")).unwrap_err();
    assert!(several.to_string().contains("several"), "{several}");
    drop(second);
    for bad in ["UUID=", "LABEL=", "UUID=../../null", "LABEL=.."] {
        resolve(bad).unwrap_err();
    }
}

#[test]
fn a_link_of_udev_does_not_choose_between_two_devices_with_one_uuid() {
    let test = "a_link_of_udev_does_not_choose_between_two_devices_with_one_uuid";
    let folder = folder();
    let (ours, evil) = (image(&folder, "ours"), image(&folder, "evil"));
    let uuid = "5c1d9f0e-77aa-4c5c-9d1b-0a5f6e2b7c12";
    let mut content = luks_sector(2, uuid, "").to_vec();
    content.resize(1 << 20, 0);
    fs::write(&ours, &content).unwrap();
    fs::write(&evil, &content).unwrap();
    let Some(ours) = Loop::attach(test, &ours) else { return };
    let links = folder.path().join("by-uuid");
    fs::create_dir(&links).unwrap();
    symlink(&ours.0, links.join(uuid)).unwrap();
    let found = || by_tag("UUID", &links, uuid, |header| header.uuid == uuid);
    assert_eq!(found().unwrap(), ours.0);
    let evil = Loop::attach(test, &evil).unwrap();
    let refused = found().unwrap_err().to_string();
    assert!(refused.contains("several") && refused.contains(evil.0.to_str().unwrap()), "{refused}");
}

#[test]
fn a_disk_below_its_raid_is_not_another_device() {
    let folder = folder();
    let devices = |names: &[&str]| names.iter().map(|name| Path::new("/dev").join(name)).collect::<Vec<_>>();
    fs::create_dir_all(folder.path().join("sda1/holders/md0")).unwrap();
    fs::create_dir_all(folder.path().join("sdb1/holders/md0")).unwrap();
    fs::create_dir_all(folder.path().join("md0/holders/dm-3")).unwrap();
    let found = devices(&["sdb1", "md0", "sda1", "md0"]);
    assert_eq!(without_carriers(folder.path(), found), devices(&["md0"]));
    let apart = devices(&["sda1", "sdc1"]);
    assert_eq!(without_carriers(folder.path(), apart.clone()), apart);
}

#[test]
fn labels_are_escaped_as_udev_does() {
    assert_eq!(udev_escaped("plain-1.2_x"), "plain-1.2_x");
    assert_eq!(udev_escaped("a b/c\\"), "a\\x20b\\x2fc\\x5c");
    assert_eq!(udev_escaped("größe"), "größe");
}

#[test]
fn a_free_file_is_free_and_a_lock_is_seen() {
    let folder = folder();
    let path = image(&folder, "image");
    check_not_in_use(&path).unwrap();
    check_not_in_use(&path).unwrap();
    let writer = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::open(&path, &writer).unwrap();
    for shared in [false, true] {
        let lock = disk.lock_use(shared).unwrap();
        assert!(how(&path).contains("has it open"));
        drop(lock);
        check_not_in_use(&path).unwrap();
    }
}

#[test]
fn a_loop_device_is_seen_through_another_name() {
    let folder = folder();
    let path = image(&folder, "image");
    let Some(device) = Loop::attach("a_loop_device_is_seen_through_another_name", &path) else { return };
    let link = folder.path().canonicalize().unwrap().join("hard-link");
    fs::hard_link(&path, &link).unwrap();
    let expected = format!("{} is attached to it", device.0.display());
    assert_eq!(how(&path), expected);
    assert_eq!(how(&link), expected);
    check_not_in_use(&device.0).unwrap();
    drop(device);
}

#[test]
fn a_loop_device_is_no_way_around_who_uses_its_file() {
    let folder = folder();
    let path = image(&folder, "image");
    let Some(device) = Loop::attach("a_loop_device_is_no_way_around_who_uses_its_file", &path) else { return };
    check_not_in_use(&device.0).unwrap();
    let writer = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
    let disk = FileDisk::open(&path, &writer).unwrap();
    let lock = disk.lock_use(false).unwrap();
    assert!(how(&device.0).contains("another server or tool of ours has it open"));
    drop(lock);
    check_not_in_use(&device.0).unwrap();
    let second = Loop::attach("a_loop_device_is_no_way_around_who_uses_its_file", &path).unwrap();
    assert!(how(&device.0).contains("both attached"));
    assert!(how(&second.0).contains("both attached"));
}

#[test]
fn a_claimed_device_and_a_mounted_one_are_in_use() {
    let test = "a_claimed_device_and_a_mounted_one_are_in_use";
    let folder = folder();
    let path = image(&folder, "image");
    let Some(device) = Loop::attach(test, &path) else { return };
    let claim = rustix::fs::open(&device.0, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert!(how(&device.0).contains("the kernel holds it"));
    drop(claim);
    check_not_in_use(&device.0).unwrap();

    if !Command::new("mke2fs").args(["-q", "-F"]).arg(&device.0).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED session::image {test} (mounted part): needs mke2fs");
        return;
    }
    let point = folder.path().canonicalize().unwrap().join("mount point");
    fs::create_dir(&point).unwrap();
    assert!(Command::new("mount").arg(&device.0).arg(&point).status().unwrap().success());
    let words = how(&device.0);
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    assert!(words.contains("is mounted on") && words.contains("mount point"), "{words}");
}

#[test]
fn swap_lines_are_read() {
    let table =
        b"Filename\tType\tSize\tUsed\tPriority\n/swap\\040file    file\t\t1\t0\t-2\n/dev/vdb partition 1 0 -3\n";
    assert_eq!(swap_paths(table), [Path::new("/swap file"), Path::new("/dev/vdb")]);
}

#[test]
fn what_would_be_lost_is_named() {
    let folder = folder();
    let path = image(&folder, "image");
    check_no_signature(&path).unwrap();
    let mut content = luks_sector(2, "", "").to_vec();
    content.resize(16 << 20, 0);
    content[4096 - 10..4096].copy_from_slice(b"SWAPSPACE2");
    fs::write(&path, content).unwrap();
    let error = check_no_signature(&path).unwrap_err().to_string();
    assert!(error.contains("LUKS2 at byte 0") && error.contains("swap at byte 4086"), "{error}");
    check_no_signature(&folder.path().join("missing")).unwrap_err();
}
