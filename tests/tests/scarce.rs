//! A machine that lacks something: no `/dev/fuse`, no loop devices, no lockable memory; and many hands at once: two `open`,
//! two `close`, somebody who looks at every device while a volume closes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use promises::Rig;
use promises::leftovers;
use promises::rig::{run, succeed};
use promises::skip;
use promises::skip::{needs_fuse, needs_programs, needs_root};

const SMALL: [&str; 4] = ["--offset", "2048", "--luks2-keyslots-size", "992K"];
const ROUNDS: u32 = 10;

fn rig() -> (Rig, PathBuf) {
    let rig = Rig::new("scarce");
    let image = rig.path("image");
    rig.format_cheap(&image, "5M", &SMALL);
    (rig, image)
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `prepare` and then `luksctl arguments` in a mount namespace of their own.
fn in_namespace(rig: &Rig, prepare: &str, arguments: &[&str], image: &Path, name: &str) -> Output {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]).arg(promises::bins::luksctl());
    command.args(arguments).arg("--key-file").arg(rig.key()).arg(image).arg(name);
    run(command.env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null()))
}

#[test]
fn without_fuse_open_says_so_and_copies_work() {
    let test = "scarce: without_fuse_open_says_so_and_copies_work";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["unshare", "mount"])) {
        return;
    }
    let (rig, image) = rig();
    let before = std::fs::read(&image).unwrap();
    std::fs::write(rig.path("nothing"), b"").unwrap();
    let no_file = format!("mount --bind '{}' /dev/fuse", rig.path("nothing").display());
    for prepare in [no_file.as_str(), "mount --bind /dev/null /dev/fuse"] {
        let opened = in_namespace(&rig, prepare, &["open", "--backend", "fuse"], &image, "unseen");
        assert_eq!(opened.status.code(), Some(1), "{opened:?}");
        assert!(words(&opened).contains("FUSE") && words(&opened).contains("hint: "), "{opened:?}");
        leftovers::demand_none(&rig, "open without /dev/fuse");
        let out = rig.path("out");
        let copied = in_namespace(&rig, prepare, &["copy-out", "--force"], &image, out.to_str().unwrap());
        assert!(copied.status.success(), "{copied:?}");
    }
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn without_loop_devices_the_volume_is_a_file() {
    let test = "scarce: without_loop_devices_the_volume_is_a_file";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["unshare", "mount"])) {
        return;
    }
    let (rig, image) = rig();
    let wrong =
        in_namespace(&rig, "mount --bind /dev/null /dev/loop-control", &["open", "--backend", "fuse"], &image, "odd");
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(words(&wrong).contains("--no-loop"), "{wrong:?}");
    leftovers::demand_none(&rig, "open without a loop driver");
    succeed(rig.luksctl(&["open", "--no-loop", "--key-file"]).arg(rig.key()).arg(&image).arg("file"));
    let device = std::fs::read_link(rig.run_dir().join("file/device")).unwrap();
    assert!(device.starts_with(rig.run_dir()), "{}", device.display());
    assert_eq!(std::fs::metadata(&device).unwrap().len(), 4 << 20);
    rig.close("file");
}

#[test]
fn lockable_memory_may_be_short_or_missing() {
    let test = "scarce: lockable_memory_may_be_short_or_missing";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["prlimit", "setpriv"])) {
        return;
    }
    let (rig, image) = rig();
    for limit in ["0", "65536", "8388608"] {
        let limited = |arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-ipc_lock", "prlimit", &format!("--memlock={limit}:{limit}")]);
            command.arg(promises::bins::luksctl()).args(arguments);
            command.env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null());
            command
        };
        let made = rig.path(&format!("made-{limit}"));
        let costs = ["--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4"];
        let mut format = limited(&["format", "-q", "--size", "5M"]);
        succeed(format.args(SMALL).args(costs).arg("--key-file").arg(rig.key()).arg(&made));
        for image in [&image, &made] {
            succeed(limited(&["open", "--backend", "fuse", "--key-file"]).arg(rig.key()).arg(image).arg("short"));
            let status = succeed(&mut rig.luksctl(&["status", "--json", "short"]));
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            let denied = status["denied"].as_array().unwrap();
            assert!(denied.iter().any(|line| line.as_str().unwrap().contains(limit)), "{limit}: {denied:?}");
            rig.close("short");
        }
    }
    leftovers::demand_none(&rig, "short memory");
}

/// A control group that allows 200 MiB, of version 1 or 2; removed on drop.
struct Scarce(PathBuf);

impl Scarce {
    fn new() -> Option<Scarce> {
        let name = format!("luks-test-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(root).join(&name);
            // In a plain folder no such file appears by itself.
            if std::fs::create_dir(&folder).is_ok() {
                let group = Scarce(folder);
                let file = std::fs::OpenOptions::new().write(true).open(group.0.join(limit));
                if file.and_then(|mut file| file.write_all(b"209715200")).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }
}

impl Drop for Scarce {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).unwrap_or_else(|error| eprintln!("{}: {error}", self.0.display()));
    }
}

#[test]
fn a_key_derivation_that_the_control_group_forbids_is_code_3_and_no_oom_kill() {
    let test = "scarce: a_key_derivation_that_the_control_group_forbids_is_code_3_and_no_oom_kill";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let Some(group) = Scarce::new() else { return skip::skip(test, "needs a memory control group that it may make") };
    let (rig, image) = rig();
    let costly = ["--pbkdf", "argon2id", "--pbkdf-memory", "524288", "--pbkdf-force-iterations", "4"];
    let format = |image: &Path| {
        let mut command = rig.luksctl(&["format", "-q", "--force", "--size", "5M"]);
        command.args(SMALL).args(costly).arg("--key-file").arg(rig.key()).arg(image);
        command
    };
    succeed(&mut format(&image));
    let before = std::fs::read(&image).unwrap();
    let limited = |command: &Command| {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&group.0);
        inside.arg(command.get_program()).args(command.get_args());
        run(inside.env("LUKSCTL_RUN_DIR", rig.run_dir()).stdin(Stdio::null()))
    };
    let (key, fresh) = (rig.key(), rig.path("fresh"));
    let mut test_only = rig.luksctl(&["open", "--test-passphrase", "--key-file"]);
    let mut open = rig.luksctl(&["open", "--backend", "fuse", "--key-file"]);
    test_only.arg(&key).arg(&image);
    open.arg(&key).arg(&image).arg("hungry");
    for command in [&test_only, &open, &format(&fresh)] {
        let output = limited(command);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {output:?}");
        assert!(words(&output).contains("512 MiB") && words(&output).contains("hint: "), "{output:?}");
    }
    assert!(!fresh.exists(), "a half-made container");
    assert!(std::fs::read(&image).unwrap() == before);
    leftovers::demand_none(&rig, "short memory");
    // A new keyslot is made to fit what there is.
    let mut fitting = rig.luksctl(&["format", "-q", "--iter-time", "50", "--size", "5M"]);
    let output = limited(fitting.args(SMALL).arg("--key-file").arg(&key).arg(&fresh));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn of_two_that_open_at_once_one_wins_and_of_two_that_close_nobody_fails() {
    let test = "scarce: of_two_that_open_at_once_one_wins_and_of_two_that_close_nobody_fails";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let (rig, image) = rig();
    let both = |arguments: [Vec<&std::ffi::OsStr>; 2]| {
        let children = arguments.map(|arguments| {
            let mut command = rig.luksctl(&arguments);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        children.map(|child| child.wait_with_output().unwrap())
    };
    let (key, path) = (rig.key(), image.as_os_str());
    let open = |name: &'static str| vec!["open".as_ref(), "--key-file".as_ref(), key.as_os_str(), path, name.as_ref()];
    for round in 0..ROUNDS {
        let names = if round % 2 == 0 { ["one", "one"] } else { ["one", "two"] };
        let outputs = both(names.map(open));
        let mut codes = outputs.each_ref().map(|output| output.status.code());
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(5)], "round {round}: {outputs:?}");
        let winner = if outputs[0].status.success() { names[0] } else { names[1] };
        let close = || vec!["close".as_ref(), winner.as_ref()];
        let outputs = both([close(), close()]);
        let codes = outputs.each_ref().map(|output| output.status.code());
        assert!(codes.contains(&Some(0)), "round {round}: {outputs:?}");
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 1 | 4 | 5))), "round {round}: {outputs:?}");
        leftovers::demand_none(&rig, "two opens and two closes");
    }
}

#[test]
fn who_only_looks_at_devices_does_not_keep_a_volume_open() {
    let test = "scarce: who_only_looks_at_devices_does_not_keep_a_volume_open";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let (rig, image) = rig();
    let stop = AtomicBool::new(false);
    let disk = rig.run_dir().join("looked-at/fuse/disk");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // What udev, a file manager or `losetup -a` do.
                let looked = (std::fs::metadata(&disk), std::fs::read_link(&disk));
                drop(looked);
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..2 * ROUNDS {
                let device = std::fs::read_link(rig.open(&image, "looked-at")).unwrap();
                let passer_by = std::fs::File::open(&device).unwrap();
                let gone = std::thread::spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    drop(passer_by);
                });
                rig.close("looked-at");
                gone.join().unwrap();
                leftovers::demand_none(&rig, "close");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}
