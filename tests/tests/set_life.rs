//! The managed set from nothing to four mounted volumes and through its life, by the real `luksctl`; and what it refuses: data
//! that is not its own, a replaced image, a missing mount point, a volume in use, a disk that is too small.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use promises::managed::{Managed, may_grow_mounted, recovery_key};
use promises::rig::{mount_points, refused, run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root, skip};

const GUIDE: [(&str, &str); 4] = [("data", "40M"), ("logs", "24M"), ("config", "24M"), ("backup", "32M")];

fn possible(test: &str) -> bool {
    needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup", "mkfs.ext4", "e2fsck", "resize2fs"])
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn four_volumes_from_nothing_and_again_without_change() {
    let test = "set_life: four_volumes_from_nothing_and_again_without_change";
    if !possible(test) {
        return;
    }
    let set = Managed::new("set-life", &GUIDE);
    let text = fs::read_to_string(set.rig.path("volumes.toml")).unwrap();
    let text = text.replace("[volumes.data]\n", "[volumes.data]\nowner = \"1000:1000\"\ncontainer = \"/app/data\"\n");
    fs::write(set.rig.path("volumes.toml"), text).unwrap();
    let dry = succeed(&mut set.volume(&["setup", "--dry-run"]));
    assert!(String::from_utf8_lossy(&dry.stdout).contains("missing    volume        data  40M"), "{dry:?}");
    assert!(!set.rig.path("encrypted").exists() && !set.rig.path("audit").exists(), "a dry run makes nothing");
    refused(&run(&mut set.volume(&["setup"])), 1, &["there is no terminal to ask on", "--yes"]);

    let done = succeed(&mut set.volume(&["setup", "--yes"]));
    let recovery = recovery_key(&done.stdout).expect("a recovery key is shown");
    for (name, _) in GUIDE {
        assert!(mount_points().contains(&fs::canonicalize(set.mount(name)).unwrap()), "{name}");
        fs::write(set.mount(name).join("file"), name).unwrap();
        assert_eq!(mode(&set.image(name)), 0o600);
        assert_eq!(mode(&set.mount(name)), 0o750);
    }
    for folder in ["encrypted", "keys", "encrypted/key-backup"] {
        assert_eq!(mode(&set.rig.path(folder)), 0o700, "{folder}");
    }
    let keys = set.backed_up_keys(&recovery);
    let dump = succeed(Command::new("cryptsetup").arg("luksDump").arg(set.image("data")));
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("sector: 4096") && dump.contains("pbkdf2") && dump.contains("Iterations: 1000"), "{dump}");
    for (name, _) in GUIDE {
        let key = keys.iter().find(|(file, _)| *file == format!("{name}.key")).unwrap();
        assert!(set.cryptsetup_opens(name, key.1.expose()), "{name}");
    }

    assert!(fs::read_to_string(set.rig.path("docker-compose.encrypted.yml")).unwrap().contains("\"/app/data\""));
    assert!(fs::read_dir(set.rig.path("units")).unwrap().count() > 4, "units of systemd");

    // What is mounted is written to by the kernel when it likes; images are the same files, everything else the same bytes.
    let state = || {
        let (images, others): (Vec<_>, Vec<_>) =
            set.content().into_iter().partition(|(path, _)| path.extension().is_some_and(|end| end == "img"));
        let images = images.into_iter().map(|(path, _)| fs::metadata(path).unwrap().ino()).collect::<Vec<_>>();
        (images, others)
    };
    let before = state();
    let again = succeed(&mut set.volume(&["setup", "--yes"]));
    assert!(recovery_key(&again.stdout).is_none(), "it is shown once");
    assert!(state() == before, "the second setup changes nothing");
    assert_eq!(set.json(&["setup", "--yes"])["changed"], false);
    for status in set.json(&["status"]).as_array().unwrap() {
        assert_eq!((&status["state"], &status["health"]), (&"up".into(), &"green".into()), "{status}");
        assert!(status["used_bytes"].as_u64() > Some(0) && status["backend"] == "loop over fuse", "{status}");
    }

    succeed(&mut set.volume(&["down"]));
    for (name, _) in GUIDE {
        assert_eq!(mode(&set.mount(name)), 0);
        assert!(fs::write(set.mount(name).join("plaintext"), name).is_err(), "{name}: nothing writes beneath");
    }
    succeed(&mut set.volume(&["check"]));
    succeed(&mut set.volume(&["up", "data", "--no-mount"]));
    assert_eq!(set.json(&["status", "data"])[0]["state"], "open");
    succeed(&mut set.volume(&["up"]));
    for (name, _) in GUIDE {
        assert_eq!(fs::read_to_string(set.mount(name).join("file")).unwrap(), name);
    }
}

#[test]
fn a_volume_in_use_stays_up_and_its_user_is_named() {
    let test = "set_life: a_volume_in_use_stays_up_and_its_user_is_named";
    if !possible(test) {
        return;
    }
    let set = Managed::new("set-busy", &[("data", "24M"), ("logs", "20M")]);
    // Two at once: one waits for the other, and finds nothing to do.
    let start = || set.volume(&["setup", "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut both = [start(), start()];
    assert!(both.iter_mut().all(|child| child.wait().unwrap().success()));
    assert_eq!(fs::read_dir(set.rig.path("encrypted")).unwrap().count(), 3, "two images and the backups");

    let mut user = Command::new("sleep").arg("60").current_dir(set.mount("logs")).spawn().unwrap();
    let who = format!("sleep (process {})", user.id());
    refused(&run(&mut set.volume(&["down"])), 5, &["logs: ", &who]);
    assert!(set.json(&["status"]).as_array().unwrap().iter().all(|status| status["state"] == "up"), "nothing changed");
    user.kill().unwrap();
    user.wait().unwrap();
    // A server that dies leaves a mount that answers with errors; up clears it away.
    let status = succeed(&mut set.rig.luksctl(&["status", "--json", "trading-data"])).stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    succeed(Command::new("kill").args(["-9", &status["pid"].to_string()]));
    let dead = |set: &Managed| set.json(&["status", "data"])[0]["health"] == "red";
    promises::user_space::eventually("the death of the server", || dead(&set));
    succeed(&mut set.volume(&["up", "data"]));
    assert_eq!(set.json(&["status", "data"])[0]["health"], "green");

    refused(&run(&mut set.volume(&["remove", "-q", "logs"])), 5, &["logs: is up", "luksctl volume down logs"]);
    refused(&run(&mut set.volume(&["check", "logs"])), 5, &["is mounted on"]);
    succeed(&mut set.volume(&["down", "logs"]));
    refused(&run(&mut set.volume(&["remove", "logs"])), 1, &["destroys for good", "logs.img with all its data"]);
    assert!(set.image("logs").exists());
    succeed(&mut set.volume(&["remove", "-q", "logs"]));
    assert!(!set.image("logs").exists() && !set.rig.path("keys/logs.key").exists() && !set.mount("logs").exists());
    assert_eq!(set.json(&["list"]).as_array().unwrap().len(), 1);
    // The units lose its mount; it does not come back.
    succeed(&mut set.volume(&["setup", "--yes"]));
    assert!(!set.image("logs").exists());
    assert_eq!(set.json(&["setup", "--yes"])["changed"], false);
}

#[test]
fn a_volume_grows_down_and_up_and_goes_on_where_it_was_cut() {
    let test = "set_life: a_volume_grows_down_and_up_and_goes_on_where_it_was_cut";
    if !possible(test) {
        return;
    }
    let set = Managed::new("set-grow", &[("data", "24M")]);
    succeed(&mut set.volume(&["setup", "--yes"]));
    fs::write(set.mount("data").join("file"), "kept").unwrap();
    refused(&run(&mut set.volume(&["grow", "data", "20M"])), 1, &["never shrink"]);
    refused(&run(&mut set.volume(&["grow", "data", "900T"])), 1, &["are free where"]);
    if may_grow_mounted() {
        succeed(&mut set.volume(&["grow", "data", "32M"]));
        assert!(set.json(&["status"])[0]["size_bytes"].as_u64() > Some(12 << 20));
    } else {
        skip(test, "online needs CAP_SYS_RESOURCE");
    }
    succeed(&mut set.volume(&["down"]));
    // As if it was cut after the image had grown: the file still says the old size, so "+" adds to that.
    let text = fs::read_to_string(set.rig.path("volumes.toml")).unwrap();
    let was = if text.contains("\"32M\"") { 32 } else { 24 };
    fs::File::options().write(true).open(set.image("data")).unwrap().set_len((was + 8) << 20).unwrap();
    succeed(&mut set.volume(&["grow", "data", "+8M"]));
    assert_eq!(fs::metadata(set.image("data")).unwrap().len(), (was + 8) << 20);
    assert!(fs::read_to_string(set.rig.path("volumes.toml")).unwrap().contains(&format!("\"{}M\"", was + 8)));
    succeed(&mut set.volume(&["up"]));
    assert_eq!(fs::read_to_string(set.mount("data").join("file")).unwrap(), "kept");
    assert!(set.json(&["status"])[0]["size_bytes"].as_u64() > Some((was - 16) << 20), "larger than the whole disk was");
}

#[test]
fn what_is_not_the_sets_own_is_not_touched() {
    let test = "set_life: what_is_not_the_sets_own_is_not_touched";
    if !possible(test) {
        return;
    }
    let set = Managed::new("set-foreign", &[("data", "20M"), ("logs", "20M")]);
    fs::create_dir(set.rig.path("encrypted")).unwrap();
    fs::set_permissions(set.rig.path("encrypted"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(set.image("data"), "somebody's notes").unwrap();
    let before = set.content();
    refused(
        &run(&mut set.volume(&["setup", "--yes"])),
        5,
        &["chmod 700", "data.img is a file that this set did not make"],
    );
    assert_eq!(set.content(), before);
    fs::set_permissions(set.rig.path("encrypted"), fs::Permissions::from_mode(0o700)).unwrap();
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &["data.img is a file that this set did not make"]);
    assert_eq!(set.content(), before);
    assert!(!set.rig.path("keys").exists());
    fs::remove_file(set.image("data")).unwrap();
    // A container of somebody else, and something beneath a mount point.
    set.rig.format_cheap(&set.image("data"), "20M", &[]);
    fs::create_dir_all(set.mount("logs")).unwrap();
    fs::write(set.mount("logs").join("plaintext"), "x").unwrap();
    let before = set.content();
    let words = ["data.img is a LUKS container that this set did not make", "trading-logs is no empty folder"];
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &words);
    assert_eq!(set.content(), before);
    fs::remove_file(set.image("data")).unwrap();
    fs::remove_file(set.mount("logs").join("plaintext")).unwrap();

    succeed(&mut set.volume(&["setup", "--yes", "--no-mount"]));
    // Images that changed places, a mount point that is gone, a folder that others can read.
    let (data, logs) = (set.image("data"), set.image("logs"));
    let swap = || {
        fs::rename(&data, set.rig.path("other")).unwrap();
        fs::rename(&logs, &data).unwrap();
        fs::rename(set.rig.path("other"), &logs).unwrap();
    };
    swap();
    refused(&run(&mut set.volume(&["up"])), 1, &["data: ", "it was replaced", "put the right image back"]);
    assert!(run(&mut set.volume(&["status"])).status.code() == Some(10));
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &["it was replaced"]);
    swap();
    set.unprotect("data");
    fs::remove_dir(set.mount("data")).unwrap();
    refused(&run(&mut set.volume(&["up", "data"])), 4, &["mount point", "luksctl volume setup"]);
    assert_eq!(set.json(&["status", "data"])[0]["state"], "down", "nothing was opened");
    fs::rename(&logs, set.rig.path("other")).unwrap();
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &["logs.img is gone, and the key store has its key"]);
    fs::rename(set.rig.path("other"), &logs).unwrap();
    succeed(&mut set.volume(&["setup", "--yes"]));
    assert_eq!(fs::metadata(set.mount("data")).unwrap().uid(), 0);
}

#[test]
fn a_disk_that_is_too_small_is_found_before_anything_is_made() {
    let test = "set_life: a_disk_that_is_too_small_is_found_before_anything_is_made";
    if !possible(test) {
        return;
    }
    let set = Managed::new("set-full", &[("data", "20M"), ("logs", "20M")]);
    fs::create_dir(set.rig.path("encrypted")).unwrap();
    let tmpfs = ["-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs"];
    if !run(Command::new("mount").args(tmpfs).arg(set.rig.path("encrypted"))).status.success() {
        return skip(test, "needs to mount a tmpfs");
    }
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &["needed", "free", "df -h"]);
    assert!(!set.rig.path("keys").exists());
    succeed(Command::new("umount").arg(set.rig.path("encrypted")));
}

#[test]
fn a_blank_device_becomes_a_volume_and_one_with_data_does_not() {
    let test = "set_life: a_blank_device_becomes_a_volume_and_one_with_data_does_not";
    if !(possible(test) && needs_programs(test, &["losetup"])) {
        return;
    }
    let set = Managed::new("set-device", &[("data", "20M")]);
    let backing = set.rig.path("backing");
    fs::File::create(&backing).unwrap().set_len(24 << 20).unwrap();
    let attached = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&backing));
    let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
    let detached = Detached(device.clone());
    let text = fs::read_to_string(set.rig.path("volumes.toml")).unwrap();
    fs::write(set.rig.path("volumes.toml"), text.replace("size = \"20M\"", &format!("device = \"{device}\""))).unwrap();
    fs::write(&device, "notes").unwrap();
    refused(&run(&mut set.volume(&["setup", "--yes"])), 5, &["is not blank"]);
    assert!(fs::read(&device).unwrap().starts_with(b"notes"));
    fs::write(&device, [0; 16]).unwrap();
    succeed(&mut set.volume(&["setup", "--yes"]));
    fs::write(set.mount("data").join("file"), "x").unwrap();
    assert_eq!(set.json(&["setup", "--yes"])["changed"], false);
    succeed(&mut set.volume(&["down"]));
    drop(detached);
}

/// Detaches a loop device when it is dropped.
struct Detached(String);

impl Drop for Detached {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}
