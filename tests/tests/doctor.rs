//! `luksctl doctor` on the machine that runs the tests: its report is whole and agrees with the machine, and a gap that a
//! test makes (a limit, a hidden device, a forbidden call) shows where it belongs. The judgement of machines that cannot be
//! made here is tested in the session crate.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Command, Output, Stdio};

use promises::Rig;
use promises::rig::run;
use promises::skip::{needs_programs, needs_root};
use serde_json::Value;

/// `nobody` and `nogroup` on Debian.
const USER: u32 = 65534;
const COLUMNS: usize = 100;

/// `doctor --json` after `prepare`, a list of words in front of the command.
fn examined(rig: &Rig, prepare: &[&str]) -> Value {
    let mut words: Vec<String> = prepare.iter().map(|word| (*word).to_owned()).collect();
    words.push(promises::bins::luksctl().to_str().unwrap().to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["doctor", "--json"]).env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null());
    parsed(&run(&mut command))
}

/// The report, once it and the exit code agree.
fn parsed(output: &Output) -> Value {
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let problem = levels(&report).contains(&"problem".to_owned());
    assert_eq!(output.status.code(), Some(if problem { 10 } else { 0 }), "{report:#}");
    assert_eq!(report["level"] == "problem", problem, "{report:#}");
    assert_eq!(words, "");
    report
}

fn levels(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["level"].as_str().unwrap().to_owned()).collect()
}

fn finding(report: &Value, id: &str) -> (String, String) {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("{id}: {report:#}"));
    (found["level"].as_str().unwrap().to_owned(), found["found"].as_str().unwrap().to_owned())
}

/// `script` in a mount namespace of its own, then the command that follows it.
fn hiding(script: &str) -> [String; 6] {
    ["unshare", "--mount", "sh", "-c", &format!("{script} && exec \"$@\""), "sh"].map(str::to_owned)
}

fn with_hidden(rig: &Rig, script: &str) -> Value {
    let prepare = hiding(script);
    examined(rig, &prepare.each_ref().map(String::as_str))
}

#[test]
fn the_report_agrees_with_the_machine() {
    let rig = Rig::new("doctor");
    let report = examined(&rig, &["env"]);
    assert_eq!(report["report_version"], 1);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(finding(&report, "kernel").1, format!("Linux {}", release.trim()));
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
    assert_eq!(finding(&report, "swap").1 == "none", swaps.lines().count() < 2, "{swaps}");
    let run_dir = finding(&report, "run-directory");
    assert!(run_dir.1.starts_with(rig.run_dir().to_str().unwrap()), "{run_dir:?}");
    if promises::skip::find_program("mkfs.ext4").is_some() {
        assert_eq!(finding(&report, "program-mkfs.ext4").0, "ok");
    }
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    assert_eq!(finding(&report, "fuse").0 == "ok", fuse);
}

#[test]
fn the_text_fits_its_columns_and_names_each_finding() {
    let rig = Rig::new("doctor");
    let report = examined(&rig, &["env"]);
    let output = run(&mut rig.luksctl(&["doctor"]));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= COLUMNS || line.trim_start().starts_with("$ "), "{line}");
        assert_eq!(line.trim_end(), line);
    }
    assert!(!text.contains('\u{1b}'), "colours");
    for found in report["findings"].as_array().unwrap() {
        let id = found["id"].as_str().unwrap();
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(id));
        let level = line.and_then(|line| line.split_whitespace().next()).map(str::to_lowercase);
        assert_eq!(level.as_deref(), found["level"].as_str(), "{id}\n{text}");
    }
}

#[test]
fn looking_changes_nothing() {
    let rig = Rig::new("doctor");
    let fresh = rig.path("not yet made");
    let state = || {
        let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let names: Vec<String> = modules.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect();
        (names, std::fs::read_to_string("/proc/misc").unwrap_or_default())
    };
    let before = state();
    let output = run(rig.luksctl(&["doctor", "--json"]).env("LUKSCTL_RUN_DIR", &fresh));
    let report = parsed(&output);
    assert!(finding(&report, "run-directory").1.ends_with("made at first use"), "{report:#}");
    assert!(!fresh.exists(), "the doctor made the run directory");
    assert_eq!(state(), before);
}

#[test]
fn the_core_limit_is_the_callers() {
    let rig = Rig::new("doctor");
    if !needs_programs("doctor: the_core_limit_is_the_callers", &["prlimit"]) {
        return;
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let none = finding(&examined(&rig, &["prlimit", "--core=0:"]), "core-dumps");
    let some = finding(&examined(&rig, &["prlimit", "--core=4194304:"]), "core-dumps");
    if pattern.starts_with('|') {
        assert_eq!((none.0.as_str(), some.0.as_str()), ("warning", "warning"));
    } else {
        assert_eq!(none, ("ok".to_owned(), "limit 0".to_owned()));
        assert_eq!(some.0, "warning", "luksctl itself is not dumpable");
        assert!(some.1.starts_with("limit 4 MiB"), "{some:?}");
    }
}

#[test]
fn short_lockable_memory_is_told() {
    let test = "doctor: short_lockable_memory_is_told";
    if !(needs_root(test) && needs_programs(test, &["prlimit", "setpriv"])) {
        return;
    }
    let rig = Rig::new("doctor");
    let clear = finding(&examined(&rig, &["env"]), "swap").0 == "problem";
    let with_limit = |limit: &str| {
        let limit = format!("--memlock={limit}:{limit}");
        finding(&examined(&rig, &["setpriv", "--bounding-set", "-ipc_lock", "prlimit", &limit]), "lockable-memory")
    };
    let nothing = with_limit("0");
    assert_eq!(nothing.0, if clear { "problem" } else { "warning" }, "{nothing:?}");
    assert!(nothing.1.contains("the limit is 0 bytes"), "{nothing:?}");
    assert_eq!(with_limit("8388608").0, "info");
    // Bit 14, CAP_IPC_LOCK, lifts the limit.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() >> 14 & 1 == 1 {
        let capable = finding(&examined(&rig, &["prlimit", "--memlock=0:"]), "lockable-memory");
        assert_eq!(capable, ("ok".to_owned(), "without a limit".to_owned()));
    }
}

#[test]
fn a_hidden_fuse_is_a_problem_where_nothing_else_could_open_a_volume() {
    let test = "doctor: a_hidden_fuse_is_a_problem_where_nothing_else_could_open_a_volume";
    if !(needs_root(test) && needs_programs(test, &["unshare", "mount"])) {
        return;
    }
    let rig = Rig::new("doctor");
    std::fs::write(rig.path("nothing"), b"").unwrap();
    let as_file = format!("mount --bind '{}' /dev/fuse", rig.path("nothing").display());
    for hide_fuse in [as_file.as_str(), "mount --bind /dev/null /dev/fuse"] {
        let report = with_hidden(&rig, hide_fuse);
        let fuse = finding(&report, "fuse");
        assert_eq!(fuse, ("warning".to_owned(), "/dev/fuse is not the driver's device".to_owned()));
        // The device-mapper may be there or not; once it is hidden, too, nothing is left.
        let mapper = finding(&report, "open").1.contains("dm-crypt:");
        assert_eq!(finding(&report, "open").0 == "problem", mapper, "{report:#}");
        let both = format!("{hide_fuse} && {{ [ ! -e /dev/mapper ] || mount -t tmpfs none /dev/mapper; }}");
        let open = finding(&with_hidden(&rig, &both), "open");
        assert_eq!(open.0, "problem", "{open:?}");
        assert!(open.1.contains("FUSE: /dev/fuse is not the driver's device"), "{open:?}");
    }
}

#[test]
fn swap_in_clear_and_a_stale_udev_socket_are_seen_where_proc_says_so() {
    let test = "doctor: swap_in_clear_and_a_stale_udev_socket_are_seen_where_proc_says_so";
    if !(needs_root(test) && needs_programs(test, &["unshare", "mount"])) {
        return;
    }
    let rig = Rig::new("doctor");
    std::fs::write(rig.path("swaps"), "Filename Type Size Used Priority\n/dev/vda9 partition 1024 0 -2\n").unwrap();
    let swaps = format!("mount --bind '{}' /proc/swaps", rig.path("swaps").display());
    let report = with_hidden(&rig, &swaps);
    assert_eq!(finding(&report, "swap"), ("problem".to_owned(), "/dev/vda9 is not encrypted".to_owned()));
    let empty = "mount -t tmpfs none /run && mkdir /run/udev && : > /run/udev/control";
    let prepare = hiding(empty);
    let mut words: Vec<&str> = prepare.iter().map(String::as_str).collect();
    words.splice(2..2, ["--pid", "--fork", "--mount-proc"]);
    let udev = finding(&examined(&rig, &words), "udev");
    assert_eq!(udev.0, "warning", "{udev:?}");
}

#[test]
fn an_ordinary_user_gets_a_whole_report() {
    let test = "doctor: an_ordinary_user_gets_a_whole_report";
    if !(needs_root(test) && needs_programs(test, &["setpriv"])) {
        return;
    }
    let rig = Rig::new("doctor");
    std::fs::set_permissions(rig.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    let binary = rig.path("luksctl");
    std::fs::copy(promises::bins::luksctl(), &binary).unwrap();
    let run_dir = rig.path("theirs");
    std::fs::create_dir(&run_dir).unwrap();
    std::fs::set_permissions(&run_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let report = |run_dir: &std::path::Path, more: &[&str]| {
        let user = USER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).args(more).arg(&binary);
        parsed(&run(command.args(["doctor", "--json"]).env("LUKSCTL_RUN_DIR", run_dir).stdin(Stdio::null())))
    };
    let foreign = finding(&report(&run_dir, &[]), "run-directory");
    assert_eq!(foreign.0, "problem");
    assert!(foreign.1.contains("it belongs to user 0, not to user 65534"), "{foreign:?}");
    let closed = finding(&report(&rig.path("beside"), &[]), "run-directory");
    assert_eq!(closed.0, "problem", "the folder above is root's: {closed:?}");
    chown(&run_dir, Some(USER), Some(USER)).unwrap();
    let whole = report(&run_dir, &[]);
    assert_eq!(finding(&whole, "run-directory").0, "ok");
    let ids = |report: &Value| {
        let findings = report["findings"].as_array().unwrap().iter();
        findings.map(|finding| finding["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&whole), ids(&examined(&rig, &["env"])));
    assert_ne!(finding(&whole, "device-mapper").0, "warning", "only root could use it");
    for found in whole["findings"].as_array().unwrap() {
        let mend = found["mend"].as_str().unwrap_or_default();
        assert!(!mend.starts_with("modprobe") && !mend.starts_with("sysctl"), "without sudo: {mend}");
    }
    let bound = report(&run_dir, &["--no-new-privs"]);
    if promises::skip::find_program("fusermount3").is_some() {
        assert!(finding(&bound, "fusermount3").1.contains("no_new_privs"), "{bound:#}");
        assert_eq!(finding(&bound, "open").0, "problem");
    }
}
