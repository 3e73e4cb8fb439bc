//! Promise: `luksctl doctor` tells the truth about a stock kernel with a real device-mapper: what is there, what a first use
//! would load (without loading it), and whether real swap on a real mapping is encrypted.
//!
//! Runs in the VM lane (tests/vm/run), with and without udevd.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::process::{Command, Stdio};

use promises::rig::{run, succeed};
use promises::{Rig, vm};
use serde_json::Value;

fn examined(rig: &Rig) -> Value {
    let output = run(rig.luksctl(&["doctor", "--json"]).stdin(Stdio::null()));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(output.status.code(), Some(if report["level"] == "problem" { 10 } else { 0 }), "{report:#}");
    report
}

fn finding(report: &Value, id: &str) -> (String, String) {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("{id}: {report:#}"));
    (found["level"].as_str().unwrap().to_owned(), found["found"].as_str().unwrap().to_owned())
}

/// A loop device on a new file; detached on drop.
struct Loop(String);

impl Loop {
    fn new(rig: &Rig) -> Loop {
        let image = rig.path("swap image");
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let output = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&image));
        Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(std::thread::panicking() || detached.unwrap().success(), "{} stays", self.0);
    }
}

/// The finding `swap` while `device` is in use as swap.
fn with_swap(rig: &Rig, device: &str) -> (String, String) {
    succeed(Command::new("mkswap").arg(device));
    succeed(Command::new("swapon").arg(device));
    let report = run(rig.luksctl(&["doctor", "--json"]).stdin(Stdio::null()));
    succeed(Command::new("swapoff").arg(device));
    finding(&serde_json::from_slice(&report.stdout).unwrap(), "swap")
}

#[test]
fn vm_doctor_sees_a_stock_kernel_as_it_is() {
    if !vm::needs_vm("vm_doctor_sees_a_stock_kernel_as_it_is") {
        return;
    }
    let rig = Rig::new("vm-doctor");
    let report = examined(&rig);
    assert_eq!(finding(&report, "open"), ("ok".to_owned(), "through dm-crypt and FUSE".to_owned()));
    let targets = String::from_utf8(succeed(Command::new("dmsetup").arg("targets")).stdout).unwrap();
    let version = targets.lines().find_map(|line| line.strip_prefix("crypt ")?.trim().strip_prefix('v')).unwrap();
    assert_eq!(finding(&report, "dm-crypt"), ("ok".to_owned(), format!("target crypt, version {version}")));
    for id in ["device-mapper", "loop", "fuse", "keyring", "randomness", "lockable-memory"] {
        assert_eq!(finding(&report, id).0, "ok", "{report:#}");
    }
    assert!(finding(&report, "ublk").1.contains("has"), "the lane loads it");
    let udev = finding(&report, "udev");
    assert_eq!(udev.0, if vm::has_udev() { "ok" } else { "info" }, "{udev:?}");
    assert!(finding(&report, "machine").1.starts_with("a virtual machine"), "{report:#}");
}

#[test]
fn vm_doctor_names_a_module_and_does_not_load_it() {
    if !vm::needs_vm("vm_doctor_names_a_module_and_does_not_load_it") {
        return;
    }
    let rig = Rig::new("vm-doctor");
    let loaded = |name: &str| std::path::Path::new("/sys/module").join(name).exists();
    // A node whose module is not loaded: opening it would load it, as the control shows.
    succeed(Command::new("modprobe").args(["-r", "ublk_drv"]));
    assert!(!loaded("ublk_drv"));
    assert_eq!(finding(&examined(&rig), "ublk").1, "module ublk_drv could be loaded");
    assert!(!loaded("ublk_drv") && !loaded("nbd"), "the doctor loaded a module");
    succeed(Command::new("modprobe").arg("ublk_drv"));
    // A loop device of another test may hold its module.
    if !run(Command::new("modprobe").args(["-r", "loop"])).status.success() {
        eprintln!("loop devices are in use or built in: not unloaded");
        return;
    }
    let gap = finding(&examined(&rig), "loop");
    assert!(gap.1.starts_with("module loop is not loaded"), "{gap:?}");
    assert!(!loaded("loop"), "the doctor loaded the loop module");
    succeed(Command::new("modprobe").arg("loop"));
    assert_eq!(finding(&examined(&rig), "loop").0, "ok");
}

#[test]
fn vm_doctor_knows_encrypted_swap_from_swap_in_clear() {
    if !vm::needs_vm("vm_doctor_knows_encrypted_swap_from_swap_in_clear") {
        return;
    }
    let rig = Rig::new("vm-doctor");
    assert_eq!(finding(&examined(&rig), "swap"), ("ok".to_owned(), "none".to_owned()));
    let device = Loop::new(&rig);
    let clear = with_swap(&rig, &device.0);
    assert_eq!(clear, ("problem".to_owned(), format!("{} is not encrypted", device.0)));
    let plain = ["open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "512", "--key-file"];
    succeed(Command::new("cryptsetup").args(plain).args(["/dev/urandom", &device.0, "doctor-swap"]));
    let encrypted = with_swap(&rig, "/dev/mapper/doctor-swap");
    succeed(Command::new("cryptsetup").args(["close", "doctor-swap"]));
    assert_eq!(encrypted.0, "ok", "{encrypted:?}");
    assert!(encrypted.1.ends_with("is encrypted"), "{encrypted:?}");
}
