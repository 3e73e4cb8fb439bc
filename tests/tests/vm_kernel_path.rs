//! Promise: `luksctl` opens through the kernel's dm-crypt whatever the volume, says so, makes the mapping that cryptsetup
//! makes, and leaves nothing half made whatever stands in its way.
//!
//! Runs in the VM lane. What happens to an open volume is in `vm_lifecycle.rs`, kills are in `vm_kills.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use dmsetup::{LoopDevice, LoopOptions};
use promises::crypt_volume::{attempt, dmsetup_table, mapper_nodes, run as output_of, starts_clean, volume_keys};
use promises::rig::{refused, run, succeed, words};
use promises::{Rig, vm};
use serde_json::Value;

const BUSY: i32 = 5;
const NO_SUCH: i32 = 4;
const WRONG: i32 = 1;

fn ready(test: &str) -> Option<Rig> {
    starts_clean(test).then(|| Rig::new("kernel-path"))
}

fn image(rig: &Rig, called: &str, options: &[&str]) -> PathBuf {
    let image = rig.path(called);
    rig.format_cheap(&image, "20M", options);
    image
}

fn open(rig: &Rig, image: &Path, name: &str, options: &[&str]) -> Output {
    run(rig.luksctl(&["open", "--key-file"]).arg(rig.key()).args(options).arg(image).arg(name))
}

fn opened(rig: &Rig, image: &Path, name: &str, options: &[&str]) -> String {
    let output = open(rig, image, name, options);
    assert!(output.status.success(), "{output:?}");
    words(&output)
}

fn with_key(rig: &Rig, verb: &[&str]) -> Output {
    run(rig.luksctl(verb).arg("--key-file").arg(rig.key()))
}

fn status(rig: &Rig, name: &str) -> Value {
    let output = run(&mut rig.luksctl(&["status", "--json", name]));
    assert!(matches!(output.status.code(), Some(0 | 10)), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn cryptsetup(rig: &Rig, image: &Path, name: &str, options: &[&str]) {
    succeed(
        Command::new("cryptsetup").args(["open", "-q", "--key-file"]).arg(rig.key()).args(options).arg(image).arg(name),
    );
}

/// Table without the device numbers, UUID and read-only state: what must not depend on who opened.
fn fingerprint(name: &str) -> [String; 3] {
    let mut table: Vec<String> = dmsetup_table(name).split(' ').map(str::to_owned).collect();
    table[6] = "DEVICE".to_owned();
    let info = |field: &str| output_of("dmsetup", &["info", "-c", "--noheadings", "-o", field, name]);
    [table.join(" "), info("uuid"), info("readonly")]
}

/// Waits until `done`, a minute at most.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        sleep(Duration::from_millis(50));
    }
}

/// No mapping, node, loop device, key or entry.
#[track_caller]
fn assert_clean(rig: &Rig) {
    assert_eq!(mapper_nodes(), Vec::<String>::new());
    assert_eq!(output_of("dmsetup", &["ls"]), "No devices found");
    assert_eq!(output_of("losetup", &["-a"]), "");
    assert_eq!(volume_keys(), Vec::<String>::new());
    let entries: Vec<_> =
        fs::read_dir(rig.run_dir()).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(entries.is_empty(), "{entries:?}");
}

#[test]
fn vm_kernel_path_is_chosen_by_itself_and_makes_cryptsetups_mapping() {
    let Some(rig) = ready("vm_kernel_path_is_chosen_by_itself_and_makes_cryptsetups_mapping") else {
        return;
    };
    let flags = [
        "--allow-discards",
        "--perf-no_read_workqueue",
        "--perf-no_write_workqueue",
        "--perf-same_cpu_crypt",
        "--perf-submit_from_crypt_cpus",
    ];
    for (called, format, options) in [
        ("small", &["--sector-size", "512"][..], &[][..]),
        ("large", &["--sector-size", "4096"], &flags[..]),
        ("cbc", &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--sector-size", "512"], &flags[..1]),
        ("read-only", &["--sector-size", "4096"], &["--readonly"]),
    ] {
        let image = image(&rig, called, format);
        assert!(opened(&rig, &image, "tables", options).contains("backend: dm-crypt"));
        let ours = fingerprint("tables");
        let link = rig.run_dir().join("tables/device");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/dev/mapper/tables"));
        let shown = status(&rig, "tables");
        assert_eq!((&shown["backend"], &shown["state"]), (&"dm-crypt".into(), &"open".into()), "{shown}");
        assert_eq!(shown["image"], image.to_str().unwrap());
        let device = shown["loop_device"].as_str().unwrap();
        let attributes = output_of("losetup", &["-n", "-O", "AUTOCLEAR,DIO,LOG-SEC", device]);
        let sector = shown["sector_size_bytes"].to_string();
        assert_eq!(attributes.split_whitespace().collect::<Vec<_>>(), ["1", "1", &sector], "{called}");
        succeed(Command::new("cryptsetup").args(["status", "tables"]));
        rig.close("tables");
        assert_clean(&rig);
        cryptsetup(&rig, &image, "tables", options);
        assert_eq!(fingerprint("tables"), ours, "{called}");
        rig.close("tables");
        assert_clean(&rig);
    }
}

#[test]
fn vm_kernel_path_obeys_flags_of_the_header_and_finds_detached_headers() {
    let test = "vm_kernel_path_obeys_flags_of_the_header_and_finds_detached_headers";
    let Some(rig) = ready(test).filter(|_| vm::is_round_for(test, false)) else {
        return;
    };
    let image = image(&rig, "image", &[]);
    cryptsetup(&rig, &image, "stored", &["--persistent", "--allow-discards", "--perf-no_read_workqueue"]);
    rig.close("stored");
    opened(&rig, &image, "stored", &["--perf-same_cpu_crypt"]);
    let [table, ..] = fingerprint("stored");
    for flag in ["allow_discards", "same_cpu_crypt", "no_read_workqueue"] {
        assert!(table.contains(flag), "{table}");
    }
    assert!(with_key(&rig, &["refresh", "stored", "--perf-no_write_workqueue"]).status.success());
    let [table, ..] = fingerprint("stored");
    assert!(table.contains("no_write_workqueue") && table.contains("allow_discards"), "{table}");
    assert!(!table.contains("same_cpu_crypt"), "{table}");
    rig.close("stored");

    let (data, header) = (rig.path("data"), rig.path("header"));
    File::create(&data).unwrap().set_len(8 << 20).unwrap();
    File::create(&header).unwrap().set_len(16 << 20).unwrap();
    let header = header.to_str().unwrap();
    let mut format = Command::new("cryptsetup");
    format.args(["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--header", header]);
    succeed(format.arg("--key-file").arg(rig.key()).arg(&data));
    opened(&rig, &data, "apart", &["--header", header]);
    let ours = fingerprint("apart");
    // Its own header is remembered; one that cryptsetup opened has to be named.
    succeed(&mut rig.luksctl(&["suspend", "apart"]));
    assert!(with_key(&rig, &["resume", "apart"]).status.success());
    rig.close("apart");
    cryptsetup(&rig, &data, "apart", &["--header", header]);
    assert_eq!(fingerprint("apart"), ours);
    assert!(!with_key(&rig, &["refresh", "apart"]).status.success());
    assert!(with_key(&rig, &["refresh", "apart", "--header", header, "--allow-discards"]).status.success());
    assert_eq!(status(&rig, "apart")["flags"], serde_json::json!(["allow_discards"]));
    rig.close("apart");
    assert_clean(&rig);
}

#[test]
fn vm_kernel_path_refuses_an_image_or_a_name_that_is_in_use() {
    let Some(rig) = ready("vm_kernel_path_refuses_an_image_or_a_name_that_is_in_use") else {
        return;
    };
    let (one, other) = (image(&rig, "one", &[]), image(&rig, "other", &[]));
    opened(&rig, &one, "first", &[]);
    let hard_link = rig.path("link");
    fs::hard_link(&one, &hard_link).unwrap();
    for backend in ["dm", "fuse", "auto"] {
        for path in [&one, &hard_link] {
            refused(&open(&rig, path, "second", &["--backend", backend]), BUSY, &["first"]);
        }
        refused(&open(&rig, &other, "first", &["--backend", backend]), BUSY, &["first", "already open"]);
    }
    let copy = rig.path("copy");
    refused(&run(rig.luksctl(&["copy-out", "--key-file"]).arg(rig.key()).arg(&one).arg(&copy)), BUSY, &["stacked on"]);
    refused(&run(rig.luksctl(&["format", "-q", "--key-file"]).arg(rig.key()).arg(&one)), BUSY, &["/dev/loop"]);
    rig.close("first");
    // Another tool's mapping, or ours of another run directory, has the name or the image.
    cryptsetup(&rig, &one, "theirs", &[]);
    for backend in ["dm", "fuse"] {
        refused(&open(&rig, &one, "second", &["--backend", backend]), BUSY, &["/dev/loop"]);
        refused(&open(&rig, &other, "theirs", &["--backend", backend]), BUSY, &["/dev/mapper/theirs", "active"]);
    }
    let listed = run(&mut rig.luksctl(&["list"]));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("theirs"), "{listed:?}");
    rig.close("theirs");
    // A server of ours has the image: no mapping beside it.
    opened(&rig, &one, "served", &["--backend", "fuse"]);
    refused(&open(&rig, &one, "second", &["--backend", "dm"]), BUSY, &["served"]);
    let size = || status(&rig, "served")["size_bytes"].clone();
    let before = size();
    assert!(with_key(&rig, &["resize", "served"]).status.success(), "a server sees to the size of its own volume");
    assert_eq!(size(), before, "the image has not grown");
    refused(&with_key(&rig, &["refresh", "served"]), WRONG, &["fuse, which has no refresh"]);
    rig.close("served");
    assert_clean(&rig);
}

#[test]
fn vm_kernel_path_close_refuses_a_busy_volume_or_defers() {
    let Some(rig) = ready("vm_kernel_path_close_refuses_a_busy_volume_or_defers") else {
        return;
    };
    let image = image(&rig, "image", &[]);
    opened(&rig, &image, "busy", &[]);
    let device = rig.run_dir().join("busy/device");
    let holder = File::open(&device).unwrap();
    refused(&run(&mut rig.luksctl(&["close", "busy"])), BUSY, &["busy is in use", "process"]);
    assert_eq!(status(&rig, "busy")["state"], "open");
    succeed(&mut rig.luksctl(&["close", "--deferred", "busy"]));
    assert_eq!(status(&rig, "busy")["state"], "closing");
    drop(holder);
    // A worker of the kernel removes it, and then udev its link.
    eventually("the deferred close", || attempt("dmsetup", &["info", "busy"]).status.code() == Some(1));
    refused(&run(&mut rig.luksctl(&["status", "busy"])), NO_SUCH, &["no volume named busy"]);
    eventually("the end of the node", || mapper_nodes().is_empty());
    assert_clean(&rig);

    let folder = rig.path("mounted");
    fs::create_dir(&folder).unwrap();
    opened(&rig, &image, "busy", &[]);
    succeed(Command::new("mkfs.ext4").arg("-q").arg(&device));
    rig.close("busy");
    succeed(rig.luksctl(&["mount", "--name", "busy", "--key-file"]).arg(rig.key()).arg(&image).arg(&folder));
    fs::write(folder.join("file"), "kept").unwrap();
    refused(&run(&mut rig.luksctl(&["close", "busy"])), BUSY, &[folder.to_str().unwrap()]);
    succeed(rig.luksctl(&["umount"]).arg(&folder));
    assert_clean(&rig);
    // What another tool closed is gone from the registry at the next look.
    opened(&rig, &image, "gone", &[]);
    succeed(Command::new("cryptsetup").args(["close", "gone"]));
    assert!(rig.run_dir().join("gone").is_dir());
    refused(&run(&mut rig.luksctl(&["status", "gone"])), NO_SUCH, &[]);
    assert_clean(&rig);
    opened(&rig, &image, "gone", &[]);
    succeed(Command::new("cryptsetup").args(["close", "gone"]));
    rig.close("gone");
    opened(&rig, &image, "gone", &[]);
    succeed(Command::new("cryptsetup").args(["close", "gone"]));
    opened(&rig, &image, "gone", &[]);
    rig.close("gone");
    assert_clean(&rig);
}

#[test]
fn vm_kernel_path_tells_when_the_image_below_changes() {
    let Some(rig) = ready("vm_kernel_path_tells_when_the_image_below_changes") else {
        return;
    };
    let image = image(&rig, "image", &[]);
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    opened(&rig, &image, "volume", &[]);
    file.set_len(18 << 20).unwrap();
    let ill = status(&rig, "volume");
    assert!(ill["state"] == "failed" && ill["problem"].as_str().unwrap().contains("shrank"), "{ill}");
    refused(&with_key(&rig, &["resize", "volume"]), NO_SUCH, &["shrank", "hint"]);
    refused(&with_key(&rig, &["resize", "volume", "--size", "3M"]), NO_SUCH, &["there is room for 2 MiB"]);
    refused(&with_key(&rig, &["resize", "volume", "--device-size", "1000"]), WRONG, &["sectors of 4096 bytes"]);
    assert!(with_key(&rig, &["resize", "volume", "--size", "2M"]).status.success());
    assert_eq!(status(&rig, "volume")["state"], "open");
    file.set_len(21 << 20).unwrap();
    assert!(with_key(&rig, &["resize", "volume"]).status.success());
    assert_eq!(status(&rig, "volume")["size_bytes"], 5 << 20);
    fs::remove_file(&image).unwrap();
    let ill = status(&rig, "volume");
    assert!(ill["state"] == "failed" && ill["problem"].as_str().unwrap().contains("deleted"), "{ill}");
    refused(&with_key(&rig, &["resize", "volume"]), NO_SUCH, &["deleted or renamed"]);
    rig.close("volume");
    assert_clean(&rig);
}

#[test]
fn vm_kernel_path_leaves_alone_what_is_no_luks_volume() {
    let Some(rig) = ready("vm_kernel_path_leaves_alone_what_is_no_luks_volume") else {
        return;
    };
    let image = image(&rig, "image", &[]);
    let options = LoopOptions { read_only: false, direct_io: false, block_size: 512, autoclear: false };
    let below: LoopDevice = dmsetup::attach(&image, &options).unwrap();
    let number = below.devno().unwrap();
    let key = "5a".repeat(32);
    let tables = [
        (format!("0 8192 linear {number} 0\n8192 8192 linear {number} 8192"), &[][..]),
        (format!("0 8192 crypt aes-xts-plain64 {key} 0 {number} 0"), &[]),
        // A UUID that looks like ours over a table that is not.
        (format!("0 8192 linear {number} 0"), &["--uuid", "CRYPT-LUKS2-00000000000000000000000000000000-hand"]),
    ];
    for (table, uuid) in tables {
        let mut create = Command::new("dmsetup");
        create.args(["create", "hand"]).args(uuid).arg("--table").arg(&table);
        // Lines of a table come on standard input.
        let made = if table.contains('\n') {
            let mut create = Command::new("dmsetup");
            promises::rig::run_with_input(create.args(["create", "hand"]), table.as_bytes())
        } else {
            run(&mut create)
        };
        assert!(made.status.success(), "{made:?}");
        for verb in [
            &["status", "hand"][..],
            &["close", "hand"],
            &["suspend", "hand"],
            &["resize", "hand"],
            &["refresh", "hand"],
        ] {
            if verb[0] == "close" && !uuid.is_empty() {
                continue;
            }
            let output = with_or_without_key(&rig, verb);
            refused(&output, WRONG, &["hand is a mapping that another tool made"]);
            assert!(!words(&output).contains(&key[..16]), "{output:?}");
        }
        refused(&open(&rig, &rig.path("image"), "hand", &[]), BUSY, &[]);
        assert!(attempt("dmsetup", &["remove", "hand"]).status.success());
    }
    below.detach().unwrap();
    assert_clean(&rig);
}

fn with_or_without_key(rig: &Rig, verb: &[&str]) -> Output {
    if matches!(verb[0], "resize" | "refresh") { with_key(rig, verb) } else { run(&mut rig.luksctl(verb)) }
}

#[test]
fn vm_kernel_path_uses_a_block_device_as_it_is() {
    let Some(rig) = ready("vm_kernel_path_uses_a_block_device_as_it_is") else {
        return;
    };
    let image = image(&rig, "image", &["--sector-size", "512"]);
    let options = LoopOptions { read_only: false, direct_io: false, block_size: 512, autoclear: false };
    let below = dmsetup::attach(&image, &options).unwrap();
    let node = below.path().to_path_buf();
    opened(&rig, &node, "direct", &[]);
    let shown = status(&rig, "direct");
    assert_eq!(shown["image"], node.to_str().unwrap(), "{shown}");
    assert!(dmsetup_table("direct").contains(&format!(" {} ", below.devno().unwrap())));
    refused(&open(&rig, &node, "again", &[]), BUSY, &["direct"]);
    // What somebody else mounted or claimed is refused, and stays as it is.
    rig.close("direct");
    let holder = fs::File::open(&node).unwrap();
    opened(&rig, &node, "direct", &[]);
    rig.close("direct");
    drop(holder);
    cryptsetup(&rig, &node, "theirs", &[]);
    refused(&open(&rig, &node, "ours", &[]), BUSY, &["stacked"]);
    // Everything of theirs, by name.
    assert_eq!(status(&rig, "theirs")["state"], "open");
    succeed(&mut rig.luksctl(&["suspend", "theirs"]));
    refused(&run(&mut rig.luksctl(&["suspend", "theirs"])), WRONG, &["suspended already"]);
    refused(&with_key(&rig, &["resize", "theirs"]), WRONG, &["is suspended"]);
    assert!(with_key(&rig, &["resume", "theirs"]).status.success());
    assert!(with_key(&rig, &["resize", "theirs", "--size", "1M"]).status.success());
    assert_eq!(status(&rig, "theirs")["size_bytes"], 1 << 20);
    rig.close("theirs");
    below.detach().unwrap();
    assert_clean(&rig);
}

#[test]
fn vm_kernel_path_falls_back_with_the_reason_or_fails_with_it() {
    let test = "vm_kernel_path_falls_back_with_the_reason_or_fails_with_it";
    let Some(rig) = ready(test).filter(|_| vm::is_round_for(test, false)) else {
        return;
    };
    let image = image(&rig, "image", &[]);
    // The keyring's quota used up.
    let quota = Path::new("/proc/sys/kernel/keys/root_maxkeys");
    let before = fs::read_to_string(quota).unwrap();
    fs::write(quota, "1").unwrap();
    let by_name = open(&rig, &image, "full", &["--backend", "dm"]);
    let by_itself = open(&rig, &image, "full", &[]);
    fs::write(quota, before).unwrap();
    refused(&by_name, WRONG, &["dm-crypt cannot be used", "keyring is full", "root_maxkeys"]);
    assert!(by_itself.status.success(), "{by_itself:?}");
    assert!(words(&by_itself).contains("dm-crypt not possible: the kernel keyring is full"), "{by_itself:?}");
    assert!(words(&by_itself).contains("backend: ublk"), "{by_itself:?}");
    assert!(run(&mut rig.luksctl(&["close", "full"])).status.success());
    assert_clean(&rig);
    // No name for the kernel, but one for us.
    let long = "n".repeat(100);
    refused(&open(&rig, &image, &long, &["--backend", "dm"]), WRONG, &["dm-crypt cannot be used", "128 bytes"]);
    assert!(opened(&rig, &image, &long, &[]).contains("dm-crypt not possible"));
    rig.close(&long);
    // No right.
    let mut drop_all = Command::new("setpriv");
    drop_all.args(["--bounding-set", "-sys_admin", "--"]).arg(promises::bins::luksctl());
    drop_all.args(["open", "--backend", "dm", "--key-file"]).arg(rig.key()).arg(&image).arg("rights");
    refused(&run(drop_all.env("LUKSCTL_RUN_DIR", rig.run_dir())), WRONG, &["needs root (CAP_SYS_ADMIN)"]);
    // A cipher that only the kernel has, and what is no volume at all.
    let theirs = rig.path("theirs");
    File::create(&theirs).unwrap().set_len(20 << 20).unwrap();
    let mut format = Command::new("cryptsetup");
    format.args(["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-size", "256"]);
    format.args([
        "--cipher",
        "xchacha20,aes-adiantum-plain64",
        "--keyslot-cipher",
        "aes-xts-plain64",
        "--keyslot-key-size",
        "512",
    ]);
    succeed(format.arg("--key-file").arg(rig.key()).arg(&theirs));
    refused(&open(&rig, &theirs, "adiantum", &["--backend", "fuse"]), WRONG, &["xchacha20,aes", "Adiantum"]);
    assert!(opened(&rig, &theirs, "adiantum", &[]).contains("backend: dm-crypt"));
    assert_eq!(status(&rig, "adiantum")["cipher"], "xchacha20,aes-adiantum-plain64");
    rig.close("adiantum");
    let junk = rig.path("junk");
    File::create(&junk).unwrap().write_all(&[0x5a; 4096]).unwrap();
    refused(&open(&rig, &junk, "junk", &["--backend", "dm"]), WRONG, &["not"]);
    assert_clean(&rig);
}
