//! Promise: `luksbench io` measures every layer that the machine has, writes to nothing that it did not make, and leaves nothing behind:
//! neither after a whole run nor after a refusal, after Ctrl-C or without root; after SIGKILL no more than the test file, which the
//! next run names. Where io_uring is denied it works, and says so.
//!
//! The pieces are far too short to be worth anything as measurements.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use promises::leftovers::loop_devices;
use promises::rig::{mount_points, refused, run, succeed, words};
use promises::skip::{needs_programs, needs_root};
use promises::{Rig, bins};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

const SHORT: [&str; 8] = ["--size", "16M", "--rounds", "2", "--duration", "0.02", "--warm-up", "0.01"];
/// `nobody` and `nogroup` on Debian.
const USER: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(60);

/// A rig with a folder for the test file and one for what else is made.
fn rig() -> Rig {
    let rig = Rig::new("bench-io");
    for folder in ["data", "tmp"] {
        std::fs::create_dir(rig.path(folder)).unwrap();
    }
    rig
}

fn luksbench(rig: &Rig, target: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(bins::luksbench());
    command.arg("io").arg(target).args(arguments).env("TMPDIR", rig.path("tmp")).stdin(Stdio::null());
    command
}

fn measured(rig: &Rig) -> Value {
    serde_json::from_slice(&std::fs::read(rig.path("run.json")).unwrap()).unwrap()
}

fn json_option(rig: &Rig) -> String {
    format!("--json={}", rig.path("run.json").display())
}

/// What is left of a run, in words.
fn left(rig: &Rig) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["data", "tmp"] {
        let entries = std::fs::read_dir(rig.path(folder)).unwrap();
        left.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    let folder = rig.path("");
    left.extend(
        mount_points().into_iter().filter(|at| at.starts_with(&folder)).map(|at| format!("mount {}", at.display())),
    );
    let devices = loop_devices().into_iter().filter(|(_, backing)| backing.starts_with(&folder));
    left.extend(devices.map(|(device, _)| device.display().to_string()));
    left
}

/// The kernel takes a moment to let go of what the last user closed.
#[track_caller]
fn left_becomes(rig: &Rig, wanted: &[String]) {
    let until = Instant::now() + PATIENCE;
    while left(rig) != wanted {
        assert!(Instant::now() < until, "left: {:?}, wanted: {wanted:?}", left(rig));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn present(run: &Value) -> Vec<&str> {
    let layers = run["layers"].as_array().unwrap().iter();
    layers.filter(|layer| layer["absent"].is_null()).map(|layer| layer["name"].as_str().unwrap()).collect()
}

/// Every job has, on every present layer, samples of these rounds that hold together.
#[track_caller]
fn check_samples(run: &Value, rounds: std::ops::Range<u64>) {
    let present = present(run);
    for job in run["jobs"].as_array().unwrap() {
        let of_job = |of: &&Value| of["job"] == job["name"];
        let measurements: Vec<&Value> = run["measurements"].as_array().unwrap().iter().filter(of_job).collect();
        let layers: Vec<_> = measurements.iter().map(|of| of["layer"].as_str().unwrap()).collect();
        assert_eq!(layers, present, "{job}");
        for of in measurements {
            let samples = of["samples"].as_array().unwrap();
            let numbers: Vec<u64> = samples.iter().map(|sample| sample["round"].as_u64().unwrap()).collect();
            assert_eq!(numbers, rounds.clone().collect::<Vec<_>>(), "{job} on {}", of["layer"]);
            for sample in samples {
                let requests = sample["requests"].as_u64().unwrap();
                let bytes = requests * job["block_bytes"].as_u64().unwrap();
                assert!(
                    requests > 0 && sample["bytes"] == bytes && sample["elapsed_ns"].as_u64() > Some(0),
                    "{sample}"
                );
                let latency = &sample["latency"];
                let percentile = |name: &str| latency["percentiles_ns"][name].as_u64().unwrap();
                assert!(latency["min_ns"].as_u64().unwrap() <= percentile("50"), "{sample}");
                assert!(percentile("50") <= percentile("99") && percentile("99") <= percentile("99.99"), "{sample}");
                assert!(!latency["histogram"].as_str().unwrap().is_empty());
            }
        }
    }
}

#[test]
fn a_run_has_every_job_on_every_layer_and_leaves_nothing() {
    let rig = rig();
    let done = succeed(luksbench(&rig, &rig.path("data"), &SHORT).arg(json_option(&rig)));
    let run = measured(&rig);
    assert_eq!(run["jobs"].as_array().unwrap().len(), 7);
    check_samples(&run, 0..2);
    let layers = present(&run);
    assert!(["plain", "ring", "nbd"].iter().all(|name| layers.contains(name)), "{layers:?}");
    if geteuid().is_root() && std::fs::File::open("/dev/fuse").is_ok() {
        assert!(layers.contains(&"fuse") && layers.contains(&"fuse-loop"), "{}", run["layers"]);
    }
    let reasons = run["layers"].as_array().unwrap().iter().filter_map(|layer| layer["absent"].as_str());
    reasons.for_each(|reason| assert!(!reason.is_empty()));
    assert_eq!((&run["interrupted"], &run["settings"]["size_bytes"]), (&Value::Bool(false), &Value::from(16 << 20)));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(text.contains("rand-write-qd1") && text.contains("ring"), "{text}");
    left_becomes(&rig, &[]);
}

#[test]
fn what_exists_is_not_touched() {
    let rig = rig();
    let (precious, report) = (rig.path("precious"), rig.path("run.json"));
    std::fs::write(&precious, b"precious").unwrap();
    std::fs::write(&report, b"a report").unwrap();
    let refusal = run(luksbench(&rig, &precious, &SHORT).args(["--layer", "plain"]));
    refused(&refusal, 1, &["precious exists: luksbench writes to nothing that it did not make"]);
    let refusal = run(luksbench(&rig, &rig.path("data"), &SHORT).arg(json_option(&rig)));
    refused(&refusal, 1, &["run.json exists: luksbench overwrites no report"]);
    for (option, says) in [
        (["--job", "tape"], "there is no job tape"),
        (["--layer", "tape"], "there is no layer tape"),
        (["--sector-size", "513"], "a sector of 513 bytes"),
        (["--block-size", "512"], "requests of 512 bytes"),
        (["--size", "4K"], "a size of 4096 bytes"),
        (["--size", "900000G"], "are needed: free some"),
    ] {
        refused(&run(luksbench(&rig, &rig.path("data"), &["-q"]).args(option)), 1, &[says]);
    }
    refused(&run(&mut luksbench(&rig, &rig.path("no/where"), &SHORT)), 1, &["no"]);
    assert_eq!(
        (std::fs::read(precious).unwrap(), std::fs::read(report).unwrap()),
        (b"precious".into(), b"a report".into())
    );
    assert_eq!(left(&rig), [""; 0]);
}

#[test]
fn an_image_that_is_there_is_only_read() {
    let rig = rig();
    let image = rig.path("image");
    rig.format_cheap(&image, "48M", &["--sector-size", "512"]);
    let before = std::fs::read(&image).unwrap();
    let quick = ["--rounds", "2", "--duration", "0.02", "--warm-up", "0.01"];
    succeed(luksbench(&rig, &image, &quick).arg(json_option(&rig)));
    let run = measured(&rig);
    check_samples(&run, 0..2);
    let jobs: Vec<&str> = run["jobs"].as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert_eq!(jobs, ["seq-read", "rand-read", "rand-read-qd1"]);
    assert_eq!((&run["settings"]["size_bytes"], &run["settings"]["sector_bytes"]), (&(32 << 20).into(), &512.into()));
    let layers = present(&run);
    assert!(layers.contains(&"plain") && layers.contains(&"ring") && layers.contains(&"nbd"), "{layers:?}");
    if needs_root("luksbench_io: an_image_that_is_there_is_only_read") && Path::new("/dev/fuse").exists() {
        assert!(layers.contains(&"fuse") && layers.contains(&"fuse-loop"), "{}", run["layers"]);
    }
    for (options, says) in [
        (["--job", "seq-write"], "seq-write writes, and"),
        (["--job", "mixed"], "is only read"),
        (["--size", "33M"], "holds 33554432 bytes of data"),
        (["--sector-size", "512"], "has its own"),
    ] {
        refused(&promises::rig::run(luksbench(&rig, &image, &quick).args(options)), 1, &[says]);
    }
    assert!(std::fs::read(&image).unwrap() == before, "the image changed");
    left_becomes(&rig, &[]);
}

/// A run that would take long, in its first round or later.
fn long_run(rig: &Rig) -> Child {
    let long = ["--size", "16M", "--rounds", "1000", "--duration", "0.02", "--warm-up", "0.01"];
    let mut command = luksbench(rig, &rig.path("data"), &long);
    command.args(["--job", "rand-read", "--job", "mixed"]).arg(json_option(rig));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("round 1 of 1000") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended early");
    }
    // Nobody reads on, so its end must not depend on that.
    child
}

#[test]
fn ctrl_c_leaves_whole_rounds_and_nothing_else() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut wait = Duration::from_secs(1);
        loop {
            let rig = rig();
            let mut child = long_run(&rig);
            std::thread::sleep(wait);
            kill_process(Pid::from_child(&child), signal).unwrap();
            let ended = child.wait().unwrap();
            left_becomes(&rig, &[]);
            if !ended.success() && wait < PATIENCE {
                // Not one round was whole: this machine is slow.
                wait *= 4;
                continue;
            }
            assert!(ended.success(), "{ended}");
            let run = measured(&rig);
            assert_eq!(run["interrupted"], Value::Bool(true));
            for of in run["measurements"].as_array().unwrap() {
                let same =
                    run["measurements"].as_array().unwrap().iter().find(|other| other["job"] == of["job"]).unwrap();
                let rounds = |of: &Value| -> Vec<u64> {
                    of["samples"].as_array().unwrap().iter().map(|sample| sample["round"].as_u64().unwrap()).collect()
                };
                assert_eq!(rounds(of), rounds(same));
                assert_eq!(rounds(of), (0..rounds(of).len() as u64).collect::<Vec<_>>());
            }
            break;
        }
    }
}

#[test]
fn a_killed_run_leaves_its_file_and_the_next_one_names_it() {
    let rig = rig();
    let mut child = long_run(&rig);
    child.kill().unwrap();
    child.wait().unwrap();
    let file = rig.path(&format!("data/luksbench-{}.test", child.id()));
    left_becomes(&rig, &[file.display().to_string()]);
    succeed(
        luksbench(&rig, &rig.path("data"), &SHORT).args(["--layer", "plain", "--job", "mixed"]).arg(json_option(&rig)),
    );
    let remarks = measured(&rig)["remarks"].to_string();
    assert!(remarks.contains(&format!("{} was left behind by a run that was killed", file.display())), "{remarks}");
    assert_eq!(left(&rig), [file.display().to_string()]);
}

#[test]
fn without_io_uring_it_measures_and_says_so() {
    let rig = rig();
    let bench = luksbench(&rig, &rig.path("data"), &SHORT);
    let mut denied = Command::new(env!("CARGO_BIN_EXE_denied"));
    denied.arg(bench.get_program()).args(bench.get_args()).env("TMPDIR", rig.path("tmp")).stdin(Stdio::null());
    succeed(denied.args(["--layer", "ring", "--layer", "nbd"]).arg(json_option(&rig)));
    let run = measured(&rig);
    assert_eq!(run["settings"]["queue"], "pread");
    assert!(run["remarks"].to_string().contains("no io_uring here"), "{}", run["remarks"]);
    assert_eq!(present(&run), ["plain", "ring", "nbd"]);
    check_samples(&run, 0..2);
    left_becomes(&rig, &[]);
}

#[test]
fn an_ordinary_user_has_fewer_layers_and_knows_why() {
    let test = "luksbench_io: an_ordinary_user_has_fewer_layers_and_knows_why";
    if !(needs_root(test) && needs_programs(test, &["setpriv"])) {
        return;
    }
    let rig = rig();
    // The build folder may be closed to users: they get a copy.
    let binary: PathBuf = rig.path("luksbench");
    std::fs::copy(bins::luksbench(), &binary).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in ["", "data", "tmp"] {
        chown(rig.path(path), Some(USER), Some(USER)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&binary)
        .arg("io")
        .arg(rig.path("data"));
    command.args(SHORT).arg(json_option(&rig)).env("TMPDIR", rig.path("tmp")).stdin(Stdio::null());
    let done = run(&mut command);
    assert!(done.status.success(), "{}", words(&done));
    let run = measured(&rig);
    check_samples(&run, 0..2);
    let layers = present(&run);
    assert!(["plain", "ring", "nbd"].iter().all(|name| layers.contains(name)), "{layers:?}");
    let reason = |name: &str| {
        let layer = run["layers"].as_array().unwrap().iter().find(|layer| layer["name"] == name).unwrap();
        layer["absent"].as_str().unwrap_or_default().to_owned()
    };
    assert!(
        reason("fuse-loop").contains("needs root") && reason("dm-crypt").contains("needs root"),
        "{}",
        run["layers"]
    );
    left_becomes(&rig, &[]);
}
