//! `kill -9` of the real `luksctl` while it converts a header, either way, or restores one: after each of its calls that write
//! to a file, or after as many at random as there is time for. What is left is opened by cryptsetup, at once or after what the
//! documents say: restore the recovery file, and where that is refused, `repair`. The data is what it was.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use promises::Rig;
use promises::random::Random;
use promises::rig::{run, succeed};
use promises::skip::{needs_programs, needs_root};
use promises::tracer::{Stop, trace_writes};

/// Kills for each operation.
const KILLS: u32 = 10;
const COST: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// What is killed, and what may be there afterwards.
struct Case {
    rig: Rig,
    name: &'static str,
    arguments: Vec<&'static str>,
    /// Sets of key files: all of one set open.
    keys: &'static [[&'static str; 2]],
    plaintext: Vec<u8>,
    mended: u32,
}

impl Case {
    fn new(name: &'static str, version: &str, arguments: &[&'static str], keys: &'static [[&'static str; 2]]) -> Case {
        let rig = Rig::new("header-kill");
        for key in ["key2", "key3"] {
            fs::write(rig.path(key), format!("the {key} of this rig")).unwrap();
        }
        let size_mib = if version == "luks1" { 5 } else { 20 };
        fs::File::create(rig.path("start")).unwrap().set_len(size_mib << 20).unwrap();
        let arguments = arguments.to_vec();
        let mut case = Case { rig, name, arguments, keys, plaintext: Vec::new(), mended: 0 };
        let format = ["luksFormat", "--type", version, "--key-size", "256", "start", "key"];
        succeed(case.cryptsetup(&format).args(COST));
        succeed(case.cryptsetup(&["luksAddKey", "-S", "5", "start", "key2", "-d", "key"]).args(COST));
        case.plaintext = succeed(&mut case.ours(&["copy-out", "start", "-", "-d", "key"])).stdout;
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.path(name)
    }

    fn cryptsetup(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("cryptsetup");
        command.arg("-q").args(arguments).current_dir(self.path(".")).stdin(Stdio::null());
        command
    }

    fn ours(&self, arguments: &[&str]) -> Command {
        let mut command = self.rig.luksctl(arguments);
        command.current_dir(self.path("."));
        command
    }

    /// The command under test, with whole paths: its tracer has a working folder of its own.
    fn under_test(&self) -> Command {
        let arguments = self.arguments.iter().map(|word| match *word {
            "image" | "backup" => self.path(word).into_os_string(),
            word => word.into(),
        });
        self.rig.luksctl(&arguments.collect::<Vec<_>>())
    }

    /// Starts again, and kills the command after `nth` calls that write. How many there were.
    fn killed_after(&self, nth: u32) -> u32 {
        fs::copy(self.path("start"), self.path("image")).unwrap();
        for entry in fs::read_dir(self.path(".")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().contains("luks-recovery") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let mut seen = 0;
        let ended = trace_writes(&self.under_test(), |process, stop| {
            seen += u32::from(stop == Stop::Written);
            if seen == nth {
                kill(Pid::from_raw(i32::try_from(process).unwrap()), Signal::SIGKILL).unwrap();
            }
        });
        let words = String::from_utf8_lossy(&ended.stderr);
        let expected = if seen < nth { Some(0) } else { None };
        assert_eq!(ended.code, expected, "{}, call {nth}: {words}", self.name);
        seen
    }

    /// Whether cryptsetup opens the image with all keys of one set. It mends headers when it looks, so it gets a copy.
    fn opens(&self) -> bool {
        fs::copy(self.path("image"), self.path("look")).unwrap();
        let opens =
            |key: &&str| run(&mut self.cryptsetup(&["open", "--test-passphrase", "-d", key, "look"])).status.success();
        self.keys.iter().any(|set| set.iter().all(&opens))
    }

    /// What docs/header-operations.md says to do.
    fn mend(&mut self) {
        self.mended += 1;
        let restored = run(&mut self.ours(&["header", "restore", "-q", "image", "image.luks-recovery"]));
        if !restored.status.success() {
            succeed(&mut self.ours(&["repair", "-q", "image"]));
        }
    }

    fn run(mut self) {
        let calls = self.killed_after(u32::MAX);
        assert!(self.opens() && calls > 5, "{}: {calls} calls", self.name);
        let mut random = Random::seeded(self.name);
        let mut left: Vec<u32> = (1..=calls).collect();
        while left.len() > KILLS as usize {
            let at = random.below(left.len() as u64);
            left.remove(usize::try_from(at).unwrap());
        }
        for nth in &left {
            self.killed_after(*nth);
            if !self.opens() {
                self.mend();
                assert!(self.opens(), "{}, killed after call {nth} of {calls}", self.name);
            }
            let plaintext = succeed(&mut self.ours(&["copy-out", "image", "-", "-d", "key"])).stdout;
            assert!(plaintext == self.plaintext, "{}, killed after call {nth} of {calls}: other data", self.name);
        }
        eprintln!("{}: killed after calls {left:?} of {calls}; mended {} times", self.name, self.mended);
    }
}

/// One test: a tracer waits for every child of its process.
#[test]
fn a_conversion_or_restore_that_is_killed_loses_nothing() {
    let test = "header_kill: a_conversion_or_restore_that_is_killed_loses_nothing";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let convert = ["convert", "-q", "--type", "luks2", "image"];
    Case::new("convert to LUKS2", "luks1", &convert, &[["key", "key2"]]).run();

    let convert = ["convert", "-q", "--type", "luks1", "image"];
    let case = Case::new("convert to LUKS1", "luks1", &convert, &[["key", "key2"]]);
    succeed(&mut case.cryptsetup(&["convert", "--type", "luks2", "start"]));
    case.run();

    let restore = ["header", "restore", "-q", "image", "backup"];
    let case = Case::new("restore over areas in use", "luks2", &restore, &[["key", "key2"], ["key", "key3"]]);
    fs::copy(case.path("start"), case.path("other")).unwrap();
    succeed(&mut case.cryptsetup(&["luksKillSlot", "other", "5", "-d", "key"]));
    succeed(case.cryptsetup(&["luksAddKey", "-S", "5", "other", "key3", "-d", "key"]).args(COST));
    succeed(&mut case.cryptsetup(&["luksHeaderBackup", "other", "--header-backup-file", "backup"]));
    case.run();
}
