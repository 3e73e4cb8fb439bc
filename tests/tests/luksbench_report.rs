//! `luksbench` on saved runs, as a program: exit codes, what is refused, a page without anything from outside, no colour and 80
//! columns where there is no terminal, and the control of `baseline check`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use promises::Rig;
use promises::bins::luksbench;
use promises::rig::{refused, run, succeed, words};
use serde_json::{Value, json};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(luksbench());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A run of `rounds` rounds with noise from a seed; `fuse` keeps that share of the plain file's rate.
fn a_run(seed: u64, rounds: u32, fuse: f64) -> Value {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1.0 + 0.02 * ((state >> 40) as f64 / f64::from(1 << 24) - 0.5)
    };
    let job = |name: &str, pattern: &str, block_bytes: u32, depth: u32| json!({"name": name, "pattern": pattern, "block_bytes": block_bytes, "depth": depth, "threads": 1});
    let mut measurements = Vec::new();
    for name in ["seq-read", "rand-read"] {
        for (layer, share) in [("plain", 1.0), ("fuse", fuse)] {
            let sample = |round| {
                let bytes = (700e6 * share * noise()) as u64;
                let percentiles = json!({"50": 90_000, "90": 120_000, "99": 400_000, "99.9": 900_000});
                let latency = json!({"min_ns": 9000, "mean_ns": 95_000.5, "max_ns": 2_000_000,
                    "percentiles_ns": percentiles, "histogram": ""});
                json!({"round": round, "bytes": bytes, "requests": bytes / 4096, "elapsed_ns": 1_000_000_000,
                    "user_ns": 100_000_000, "kernel_ns": 300_000_000, "latency": latency})
            };
            let samples: Vec<Value> = (0..rounds).map(sample).collect();
            measurements.push(json!({"job": name, "layer": layer, "samples": samples}));
        }
    }
    json!({
        "format": 1, "started_unix_s": 1_795_000_000,
        "machine": {"cpu": "a processor", "cpus": 2, "memory_bytes": 1 << 30, "kernel": "6.12.0", "aes_kernel": "portable",
            "storage": "ext4 on /dev/vda", "versions": {"luksbench": "0.1.0"}},
        "settings": {"target": "/srv", "size_bytes": 1 << 30, "rounds": rounds, "piece_ms": 1000, "warm_up_ms": 100,
            "direct": true, "sector_bytes": 4096, "queue": "io_uring"},
        "layers": [
            {"name": "plain", "title": "the file itself", "absent": null, "chosen_by_open": false},
            {"name": "fuse", "title": "FUSE", "absent": null, "chosen_by_open": true},
            {"name": "ublk", "title": "ublk", "absent": "not root", "chosen_by_open": false}],
        "jobs": [job("seq-read", "sequential-read", 1 << 20, 8), job("rand-read", "random-read", 4096, 32)],
        "measurements": measurements, "interrupted": false, "remarks": []
    })
}

fn save(path: &Path, value: &Value) -> String {
    fs::write(path, value.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_saved_run_becomes_a_table_and_a_page() {
    let rig = Rig::new("report");
    let mut value = a_run(1, 12, 0.9);
    value["settings"]["target"] = json!("</title><script>alert(1)</script>\u{1b}[2J");
    value["remarks"] = json!(["<b onclick='x'>"]);
    let (path, page) = (save(&rig.path("run.json"), &value), rig.path("page.html"));
    let page_name = page.to_str().unwrap();
    let table = stdout(&succeed(bench(&["report", &path, "--html", page_name]).env("TERM", "xterm")));
    assert!(!table.contains('\u{1b}'), "no terminal, no colour: {table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    for part in
        ["seq-read: sequential read, 1 MiB, depth 8, 1 thread", "fuse*", "≥ 400, 600 MB/s", "not here: ublk: not root"]
    {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("&lt;script&gt;alert(1)") && html.contains("prefers-color-scheme:dark"));
    for outside in ["<script", "<b onclick", "http:", "https:", "url(", "\u{1b}"] {
        assert!(!html.contains(outside), "{outside}");
    }
    succeed(&mut bench(&["report", &path, "--html", page_name]));
    fs::write(&page, "a letter").unwrap();
    refused(&run(&mut bench(&["report", &path, "--html", page_name])), 1, &["is left alone"]);
    assert_eq!(fs::read_to_string(&page).unwrap(), "a letter");
    let json: Value = serde_json::from_str(&stdout(&succeed(&mut bench(&["report", &path, "--json"])))).unwrap();
    assert_eq!(json["targets"][0]["verdict"], "better");
    assert_eq!(json["targets"][1]["verdict"], "met");
}

/// On a terminal of 80 columns: `script` makes one.
#[test]
fn a_terminal_gets_its_width_and_colours_unless_it_wants_none() {
    let test = "luksbench_report: a_terminal_gets_its_width_and_colours_unless_it_wants_none";
    if !promises::skip::needs_programs(test, &["script", "stty"]) {
        return;
    }
    let rig = Rig::new("report");
    let path = save(&rig.path("run.json"), &a_run(1, 12, 0.9));
    let table = |no_colour: &str| {
        let line = format!("stty cols 80; NO_COLOR={no_colour} TERM=xterm {} report {path}", luksbench().display());
        stdout(&succeed(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null())))
    };
    let coloured = table("");
    assert!(coloured.contains("\u{1b}[32mbetter\u{1b}[0m"), "{coloured}");
    let plain = table("1");
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let width = |line: &str| line.trim_end_matches('\r').chars().count();
    assert!(plain.lines().all(|line| width(line) <= 80) && plain.lines().any(|line| width(line) > 70), "{plain}");
}

#[test]
fn what_is_foreign_is_refused_with_a_reason() {
    let rig = Rig::new("report");
    let refuses = |name: &str, text: &str, says: &[&str]| {
        fs::write(rig.path(name), text).unwrap();
        let path = rig.path(name);
        for verb in [&["report"][..], &["compare", "/dev/null"]] {
            let output = run(bench(verb).arg(&path));
            assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        }
        refused(&run(bench(&["report"]).arg(&path)), 1, says);
    };
    refuses("empty", "", &["is no run and no baseline of luksbench", "EOF"]);
    refuses("other.json", "{\"a\": 1}", &["neither a \"format\""]);
    refuses("later.json", "{\"format\": 2}", &["its format is 2; this program reads 1"]);
    refuses("deep.json", &"[".repeat(100_000), &["invalid type"]);
    let mut twice = a_run(1, 6, 0.9);
    twice["jobs"][1]["name"] = json!("seq-read");
    refuses("twice.json", &twice.to_string(), &["two jobs are called \"seq-read\""]);
    let mut no_time = a_run(1, 6, 0.9);
    no_time["measurements"][0]["samples"][2]["elapsed_ns"] = json!(0);
    refuses("no-time.json", &no_time.to_string(), &["round 2 took no time"]);
    refused(&run(&mut bench(&["report", "/nowhere/run.json"])), 1, &["cannot open /nowhere/run.json"]);
    let targets = rig.path("targets.toml");
    fs::write(&targets, "[seq-read]\nblock-bytes = 4096\ndepht = 8\n").unwrap();
    refused(&run(bench(&["targets"]).arg(&targets)), 1, &["line 3", "depht"]);
    let default = stdout(&succeed(&mut bench(&["targets"])));
    fs::write(&targets, default.replace("met-mb-per-s = 400", "met-mb-per-s = 500")).unwrap();
    succeed(bench(&["targets"]).arg(&targets));
}

#[test]
fn slower_is_exit_code_10() {
    let rig = Rig::new("report");
    let before = save(&rig.path("before.json"), &a_run(1, 20, 0.95));
    let same = save(&rig.path("same.json"), &a_run(2, 20, 0.95));
    let slower = save(&rig.path("slower.json"), &a_run(3, 20, 0.855));
    let output = succeed(&mut bench(&["compare", &before, &same]));
    assert!(stdout(&output).contains("nothing is slower"), "{}", words(&output));
    let output = run(&mut bench(&["compare", &before, &slower]));
    assert_eq!(output.status.code(), Some(10), "{}", words(&output));
    assert!(stdout(&output).contains("2 slower than before by more than the noise"), "{}", words(&output));
    assert_eq!(run(&mut bench(&["compare", &slower, &before])).status.code(), Some(0), "faster");
    let output = run(&mut bench(&["compare", "--json", &before, &slower]));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((output.status.code(), &json["slower"]), (Some(10), &json!(true)));
    let mut other = a_run(2, 20, 0.95);
    other["machine"]["cpu"] = json!("another processor");
    let other = save(&rig.path("other.json"), &other);
    refused(&run(&mut bench(&["compare", &before, &other])), 1, &["cannot be compared", "another processor"]);
}

/// The cipher is measured for real here. A time is not asserted: only a cipher that takes ten times as long must be seen.
#[test]
fn a_baseline_is_saved_and_the_control_is_found() {
    let rig = Rig::new("report");
    let (file, run_file) = (rig.path("state"), save(&rig.path("run.json"), &a_run(1, 20, 0.95)));
    refused(&run(bench(&["baseline", "check", "--file"]).arg(&file)), 1, &["there is no baseline", "baseline save"]);
    succeed(bench(&["baseline", "save", &run_file]).env("XDG_STATE_HOME", &file));
    let saved = file.join("luksbench/baseline.json");
    let check = |arguments: &[&str]| run(bench(&["baseline", "check", "--file"]).arg(&saved).args(arguments));
    let slower = save(&rig.path("slower.json"), &a_run(3, 20, 0.8));
    let output = check(&["--slow-down", "90", &slower]);
    assert_eq!(output.status.code(), Some(10), "{}", words(&output));
    let slower_rows =
        |text: &str| stdout(&output).lines().any(|line| line.starts_with(text) && line.ends_with("slower"));
    assert!(slower_rows("cipher encrypt") && slower_rows("seq-read fuse"), "{}", words(&output));
    fs::write(rig.path("letter"), "a letter").unwrap();
    let letter = rig.path("letter");
    refused(&run(bench(&["baseline", "save", "--file"]).arg(&letter)), 1, &["is left alone"]);
    assert_eq!(fs::read_to_string(&letter).unwrap(), "a letter");
}

/// A baseline with a real run is checked by another one with the same settings. Whether it is slower is not asserted.
#[test]
fn a_run_in_the_baseline_is_made_again() {
    let rig = Rig::new("report");
    let (run_file, file, folder) = (rig.path("run.json"), rig.path("baseline.json"), rig.path("target"));
    fs::create_dir(&folder).unwrap();
    let io = ["io", "-q", "--rounds", "6", "--duration", "0.25", "--warm-up", "0.01", "--size", "16M", "--buffered"];
    succeed(bench(&io).args(["--job", "seq-read", "--layer", "ring", "--json"]).arg(&run_file).arg(&folder));
    succeed(bench(&["baseline", "save", "--file"]).arg(&file).arg(&run_file));
    let output = run(bench(&["baseline", "check", "--json", "--file"]).arg(&file));
    assert!(matches!(output.status.code(), Some(0 | 10)), "{}", words(&output));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = json["comparisons"].as_array().unwrap().iter();
    let names: Vec<&str> = rows.map(|row| row["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"seq-read ring") && names.contains(&"seq-read plain"), "{names:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn each_derivation_has_its_cost_and_the_choice_its_reason() {
    let output = succeed(&mut bench(&["kdf", "--json", "--iter-time", "20", "--memory-mib", "1"]));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let names: Vec<&str> = json["rows"].as_array().unwrap().iter().map(|row| row["kdf"].as_str().unwrap()).collect();
    assert_eq!(names, ["pbkdf2-sha256", "pbkdf2-sha512", "argon2i", "argon2id"]);
    assert!(json["rows"][0]["iterations_per_s"].as_f64().unwrap() > 0.0);
    let choice = &json["choices"][0];
    assert!(choice["parameters"].as_str().unwrap().starts_with("argon2id, time 4, memory 65536 KiB"), "{choice}");
    assert!(choice["why"].as_str().unwrap().contains("the least there is"), "{choice}");
}
