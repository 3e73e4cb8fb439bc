//! Promise: what somebody prepared before `open` — a header that writes more into a table than a cipher, mappings with
//! names that no tool writes, links where the node is to be, a run directory — neither leads luksctl to another device nor
//! takes from it what it has to show.
//!
//! Runs in the VM lane. Races and exchanged images are in `vm_attacks.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use dmsetup::LoopOptions;
use promises::backend::{Backend, SMALL_HEADER_BYTES, format_small, status};
use promises::crypt_volume::{attempt, cryptsetup_close, starts_clean};
use promises::forge::{rewrite, swap_uuid};
use promises::rig::{refused, run, run_with_input, succeed, words};
use promises::{Rig, kernel_leftovers, vm};

const IMAGE_BYTES: u64 = SMALL_HEADER_BYTES + (4 << 20);
const WRONG: i32 = 1;
const BUSY: i32 = 5;

fn image(rig: &Rig, called: &str) -> PathBuf {
    let image = rig.path(called);
    format_small(rig, &image, IMAGE_BYTES, false, &[]);
    image
}

#[test]
fn vm_hostile_header_does_not_choose_the_device_below() {
    if !starts_clean("vm_hostile_header_does_not_choose_the_device_below") {
        return;
    }
    let rig = Rig::new("table");
    let (precious, hostile) = (rig.path("precious"), image(&rig, "hostile"));
    fs::write(&precious, vec![0x5a; 4 << 20]).unwrap();
    let options = LoopOptions { read_only: false, direct_io: false, block_size: 512, autoclear: true };
    let victim = dmsetup::attach(&precious, &options).unwrap();
    // A key that its author knows, another device, no options: the kernel does not look at what follows.
    let cipher = format!("aes-xts-plain64 {} 0 {} 0 0", "5a".repeat(64), victim.devno().unwrap());
    let whole = format!("0 8192 crypt {cipher} :64:logon:cryptsetup:x-d0 0 {} 2048", victim.devno().unwrap());
    let control = attempt("dmsetup", &["create", "control-of-this", "--table", &whole]);
    assert!(control.status.success(), "the kernel takes no such table, this proves nothing: {control:?}");
    succeed(Command::new("dmsetup").args(["remove", "control-of-this"]));

    let formatted = fs::read(&hostile).unwrap();
    rewrite(&hostile, |json| json["segments"]["0"]["encryption"] = cipher.clone().into());
    for backend in ["dm", "auto", "fuse"] {
        let mut open = rig.luksctl(&["open", "--backend", backend, "--key-file"]);
        let output = run(open.arg(rig.key()).arg(&hostile).arg("volume"));
        refused(&output, WRONG, &["aes-xts-plain64 5a5a", "hint: "]);
        assert_eq!(attempt("dmsetup", &["info", "volume"]).status.code(), Some(1), "{backend}");
    }
    fs::write(&hostile, &formatted).unwrap();
    for uuid in ["x 0 7:0 0 0 ", "a/b", "\u{1b}[2J"] {
        swap_uuid(&hostile, uuid);
        let output = run(&mut Backend::Dm.open_command(&rig, &hostile, "volume", &[]));
        refused(&output, WRONG, &["dm-crypt cannot be used", "32 hexadecimal digits", "hint: "]);
        assert!(!words(&output).contains('\u{1b}'), "{output:?}");
    }
    kernel_leftovers::demand_none(&rig, &["precious"], "hostile headers");
    drop(victim);
    kernel_leftovers::demand_none(&rig, &[], "the other device");
    assert!(fs::read(&precious).unwrap().iter().all(|byte| *byte == 0x5a), "the other device was written to");
    fs::write(&hostile, &formatted).unwrap();
    let _ = Backend::Dm.open(&rig, &hostile, "volume");
    Backend::Dm.close(&rig, "volume");
}

#[test]
fn vm_hostile_names_of_other_mappings_hide_nothing() {
    let test = "vm_hostile_names_of_other_mappings_hide_nothing";
    if !(starts_clean(test) && vm::is_round_for(test, true)) {
        return;
    }
    let rig = Rig::new("others");
    let (one, other) = (image(&rig, "one"), image(&rig, "other"));
    let odd: [&[u8]; 3] = ["ü".as_bytes(), b"\x1b[2Jodd", b"\xffodd"];
    // udevd makes its own of such names; what is promised here is luksctl's.
    let mut made = 0;
    for name in odd {
        let create = ["--manglename", "none", "create", "--table", "0 8 zero"];
        made += u32::from(run(Command::new("dmsetup").args(create).arg(OsStr::from_bytes(name))).status.success());
    }
    assert!(made > 0, "dmsetup makes no such names: this proves nothing");
    let _ = Backend::Cryptsetup.open(&rig, &one, "theirs");
    let listed = succeed(&mut rig.luksctl(&["list"])).stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(listed.contains("theirs") && !listed.contains('\u{1b}'), "{listed:?}");
    // Its UUID is in use under another name: told apart from a name that is in use.
    let output = run(&mut Backend::Dm.open_command(&rig, &other, "theirs", &[]));
    refused(&output, BUSY, &["/dev/mapper/theirs", "active"]);
    for name in odd {
        let output = run(rig.luksctl(&["close"]).arg(OsStr::from_bytes(name)));
        assert!(!output.status.success() && !words(&output).contains('\u{1b}'), "{output:?}");
    }
    let _ = Backend::Dm.open(&rig, &other, "ours");
    Backend::Dm.close(&rig, "ours");
    rig.close("theirs");
    succeed(Command::new("dmsetup").args(["remove_all", "--force"]));
    // Names that only cryptsetup gives: as long as the kernel takes, and with what it writes otherwise.
    let longest = "n".repeat(127);
    for (given, written) in [(longest.as_str(), longest.as_str()), ("two words", r"two\x20words"), ("+#@:=", "+#@:=")] {
        succeed(&mut Backend::Cryptsetup.open_command(&rig, &one, given, &[]));
        assert_eq!(status(&rig, written)["state"], "open", "{given}");
        assert!(String::from_utf8_lossy(&succeed(&mut rig.luksctl(&["list"])).stdout).contains(written), "{given}");
        succeed(&mut rig.luksctl(&["suspend", written]));
        succeed(rig.luksctl(&["resume", "--key-file"]).arg(rig.key()).arg(written));
        succeed(rig.luksctl(&["resize", "--size", "1M", "--key-file"]).arg(rig.key()).arg(written));
        assert_eq!(status(&rig, written)["size_bytes"], 1 << 20, "{given}");
        rig.close(written);
        kernel_leftovers::demand_none(&rig, &[], given);
    }
    let output = run(&mut rig.luksctl(&["status", &"n".repeat(128)]));
    refused(&output, WRONG, &["cannot name a volume", "hint: "]);
}

#[test]
fn vm_hostile_links_at_the_path_of_the_node() {
    if !starts_clean("vm_hostile_links_at_the_path_of_the_node") {
        return;
    }
    let rig = Rig::new("links");
    let image = image(&rig, "image");
    let (precious, folder) = (rig.path("precious"), rig.path("folder"));
    fs::write(&precious, "precious").unwrap();
    fs::create_dir(&folder).unwrap();
    let node = Path::new("/dev/mapper/linked");
    for target in [precious.as_path(), &folder, Path::new("/dev/vda"), Path::new("/nowhere"), Path::new("control")] {
        symlink(target, node).unwrap();
        let device = Backend::Dm.open(&rig, &image, "linked");
        let meta = fs::metadata(&device).unwrap();
        assert!(meta.file_type().is_block_device(), "{target:?}");
        let size = succeed(Command::new("blockdev").arg("--getsize64").arg(node)).stdout;
        assert_eq!(String::from_utf8(size).unwrap().trim(), (IMAGE_BYTES - SMALL_HEADER_BYTES).to_string());
        Backend::Dm.close(&rig, "linked");
        kernel_leftovers::demand_none(&rig, &[], &format!("a link to {}", target.display()));
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // The node of another mapping, by a name that is free.
    let _ = Backend::Cryptsetup.open(&rig, &image, "theirs");
    let other = rig.path("other");
    format_small(&rig, &other, 2 * IMAGE_BYTES, false, &[]);
    symlink("/dev/mapper/theirs", node).unwrap();
    let _ = Backend::Dm.open(&rig, &other, "linked");
    assert_eq!(status(&rig, "linked")["size_bytes"], 2 * IMAGE_BYTES - SMALL_HEADER_BYTES);
    Backend::Dm.close(&rig, "linked");
    assert!(Path::new("/dev/mapper/theirs").exists(), "the link's target was taken away");
    cryptsetup_close("theirs");
    kernel_leftovers::demand_none(&rig, &[], "a link to another mapping");
}

#[test]
fn vm_hostile_run_directories_are_not_used() {
    if !starts_clean("vm_hostile_run_directories_are_not_used") {
        return;
    }
    let rig = Rig::new("rundir");
    let image = image(&rig, "image");
    let usual = Path::new("/run/luksctl");
    assert!(!usual.exists(), "another test left {}", usual.display());
    let open = || {
        let mut open = Backend::Dm.open_command(&rig, &image, "volume", &[]);
        run(open.env_remove("LUKSCTL_RUN_DIR"))
    };
    fs::create_dir(usual).unwrap();
    std::os::unix::fs::chown(usual, Some(65534), None).unwrap();
    // What its owner could put there: an entry that seems to be open, with a link as its device.
    fs::create_dir(usual.join("volume")).unwrap();
    symlink("/etc/passwd", usual.join("volume/device")).unwrap();
    refused(&open(), WRONG, &["belongs to user 65534", "hint: "]);
    for verb in [&["list"][..], &["close", "volume"], &["status", "volume"]] {
        let output = run(rig.luksctl(verb).env_remove("LUKSCTL_RUN_DIR"));
        refused(&output, WRONG, &["belongs to user 65534", "hint: "]);
    }
    assert!(usual.join("volume/device").is_symlink(), "what is not ours was taken away");
    fs::remove_dir_all(usual).unwrap();
    fs::write(usual, "").unwrap();
    refused(&open(), WRONG, &["it is no directory"]);
    fs::remove_file(usual).unwrap();
    let opened = open();
    assert!(opened.status.success(), "{opened:?}");
    succeed(rig.luksctl(&["close", "volume"]).env_remove("LUKSCTL_RUN_DIR"));
    fs::remove_dir_all(usual).unwrap();

    // The same for somebody who is not root, in a folder where everybody may write.
    let theirs = Path::new("/tmp/luksctl-65533");
    fs::create_dir(theirs).unwrap();
    succeed(Command::new("chmod").arg("755").arg(rig.path("")));
    succeed(Command::new("chmod").arg("644").arg(&image));
    let mut other = Command::new("setpriv");
    other.args(["--reuid", "65533", "--clear-groups", "--"]).arg(promises::bins::luksctl());
    other.args(["open", "--readonly", "--no-loop"]).arg(&image).arg("volume");
    other.env_remove("LUKSCTL_RUN_DIR").env_remove("XDG_RUNTIME_DIR");
    refused(&run_with_input(&mut other, b"no key"), WRONG, &["belongs to user 0", "hint: "]);
    fs::remove_dir(theirs).unwrap();
    kernel_leftovers::demand_none(&rig, &[], "hostile run directories");
}
