//! Ctrl-C and SIGTERM at any moment: the next command copes, no keyslot is lost, nothing is left behind, and cryptsetup
//! still opens the image. Each verb is broken off at random moments of its whole length; the seed is printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use promises::Rig;
use promises::leftovers;
use promises::rig::{run, succeed};
use promises::skip::{find_program, needs_fuse, needs_root};
use rustix::process::{Pid, Signal, kill_process};

/// Moments per verb; nine verbs.
const MOMENTS: u64 = 8;
/// Iterations that make a derivation long enough to be hit.
const ITERATIONS: &str = "60000";
/// Bytes before the data; room for seven keyslots.
const HEADER: usize = 2 << 20;
const SMALL: [&str; 4] = ["--offset", "4096", "--luks2-keyslots-size", "2016K"];

/// Breaks commands off at moments spread over their length.
struct Breaker {
    state: u64,
    length: Duration,
    stopped: u32,
}

impl Breaker {
    /// For a command that takes about `length` when nobody disturbs it.
    fn new(what: &str, length: Duration) -> Breaker {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        let state = u64::from_le_bytes(seed) | 1;
        eprintln!("{what}: seed {state:#x}, undisturbed {} ms", length.as_millis());
        Breaker { state, length, stopped: 0 }
    }

    /// xorshift64.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Starts `command`, sends it SIGINT or SIGTERM in the `round`th slice of its length, and gives its exit code.
    fn run(&mut self, round: u64, command: &mut Command) -> Option<i32> {
        let slice = u64::try_from(self.length.as_micros()).unwrap() / MOMENTS + 1;
        let moment = Duration::from_micros(slice * round + self.next() % slice);
        let signal = if self.next().is_multiple_of(2) { Signal::INT } else { Signal::TERM };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(moment);
        // It may have ended already; it is not waited for yet, so the number is still its own.
        kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut said).unwrap();
        let status = child.wait().unwrap();
        let known = match status.code() {
            None => true,
            Some(code) => matches!(code, 0 | 130 | 143),
        };
        assert!(known, "{command:?} ended with {status} after {moment:?} and {signal:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        self.stopped += u32::from(status.code() != Some(0));
        status.code()
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        eprintln!("  {} of {MOMENTS} broken off", self.stopped);
    }
}

fn timed(command: &mut Command) -> Duration {
    let begun = Instant::now();
    succeed(command);
    begun.elapsed()
}

fn format(rig: &Rig, image: &Path) -> Command {
    let mut command = rig.luksctl(&["format", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", ITERATIONS]);
    command.args(["--size", "6M"]).args(SMALL).arg("--key-file").arg(rig.key()).arg(image);
    command
}

/// Whether `key` opens a keyslot; cryptsetup has to say the same.
fn opens(rig: &Rig, image: &Path, key: &Path) -> bool {
    let ours = run(rig.luksctl(&["open", "--test-passphrase", "--key-file"]).arg(key).arg(image));
    assert!(matches!(ours.status.code(), Some(0 | 2)), "{ours:?}");
    if find_program("cryptsetup").is_some() {
        let theirs = run(Command::new("cryptsetup").args(["open", "--test-passphrase", "-d"]).arg(key).arg(image));
        assert_eq!(theirs.status.code(), ours.status.code(), "{theirs:?}");
    }
    ours.status.success()
}

/// The header can be used as it is, and repaired to health.
fn demand_repairable(rig: &Rig, image: &Path) {
    succeed(rig.luksctl(&["dump"]).arg(image));
    succeed(rig.luksctl(&["repair", "-q"]).arg(image));
    succeed(rig.luksctl(&["repair", "--dry-run"]).arg(image));
}

#[test]
fn format_broken_off_leaves_no_file_or_a_whole_container() {
    let rig = Rig::new("interrupt");
    let image = rig.path("image");
    let length = timed(&mut format(&rig, &image));
    std::fs::remove_file(&image).unwrap();
    let mut breaker = Breaker::new("format", length);
    for round in 0..MOMENTS {
        breaker.run(round, &mut format(&rig, &image));
        if image.exists() {
            assert!(opens(&rig, &image, &rig.key()), "round {round}: a file that is no container");
            std::fs::remove_file(&image).unwrap();
        }
        leftovers::demand_none(&rig, "format");
        succeed(&mut format(&rig, &image));
        assert!(opens(&rig, &image, &rig.key()));
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn copies_broken_off_can_be_made_again() {
    let rig = Rig::new("interrupt");
    let (image, plain, out) = (rig.path("image"), rig.path("plain"), rig.path("out"));
    succeed(&mut format(&rig, &image));
    let content: Vec<u8> = (0..4_u32 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&plain, &content).unwrap();
    let copy_in = || {
        let mut command = rig.luksctl(&["copy-in", "-q", "--force", "--key-file"]);
        command.arg(rig.key()).arg(&image).arg(&plain);
        command
    };
    let copy_out = || {
        let mut command = rig.luksctl(&["copy-out", "-q", "--key-file"]);
        command.arg(rig.key()).arg(&image).arg(&out);
        command
    };
    let header = std::fs::read(&image).unwrap()[..HEADER].to_vec();
    let mut breaker = Breaker::new("copy-in", timed(&mut copy_in()));
    for round in 0..MOMENTS {
        breaker.run(round, &mut copy_in());
        assert!(std::fs::read(&image).unwrap()[..HEADER] == header, "copying in changed the header");
        assert!(opens(&rig, &image, &rig.key()));
    }
    succeed(&mut copy_in());
    let mut breaker = Breaker::new("copy-out", timed(&mut copy_out()));
    let before = std::fs::read(&image).unwrap();
    for round in 0..MOMENTS {
        std::fs::remove_file(&out).unwrap_or_default();
        breaker.run(round, &mut copy_out());
        leftovers::demand_none(&rig, "copy-out");
        assert!(!out.exists() || std::fs::read(&out).unwrap() == content, "a file that is not whole");
    }
    std::fs::remove_file(&out).unwrap_or_default();
    succeed(&mut copy_out());
    assert!(std::fs::read(&out).unwrap() == content);
    assert!(std::fs::read(&image).unwrap() == before, "copying out changed the image");
}

/// `keyslot add`, `change`, `remove` and `kill`, the existing key first, a new key file last where one belongs.
fn keyslot(rig: &Rig, verb: &str, image: &Path, key: &Path, new: Option<&Path>) -> Command {
    let mut command = rig.luksctl(&["keyslot", verb, "-q", "--key-file"]);
    command.arg(key).arg(image);
    if let Some(new) = new {
        command.arg(new).args(["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", ITERATIONS]);
    }
    command
}

#[test]
fn keyslot_verbs_broken_off_lose_no_other_keyslot() {
    let rig = Rig::new("interrupt");
    let (image, pristine) = (rig.path("image"), rig.path("pristine"));
    let (key, second, third) = (rig.key(), rig.path("second"), rig.path("third"));
    std::fs::write(&second, "the second key").unwrap();
    std::fs::write(&third, "the third key").unwrap();
    succeed(&mut format(&rig, &pristine));
    succeed(&mut keyslot(&rig, "add", &pristine, &key, Some(&second)));
    let kill = || {
        let mut command = keyslot(&rig, "kill", &image, &key, None);
        command.arg("1");
        command
    };
    let verbs: [(&str, &dyn Fn() -> Command); 4] = [
        ("add", &|| keyslot(&rig, "add", &image, &second, Some(&third))),
        ("change", &|| keyslot(&rig, "change", &image, &second, Some(&third))),
        ("remove", &|| keyslot(&rig, "remove", &image, &second, None)),
        ("kill", &kill),
    ];
    for (verb, command) in verbs {
        std::fs::copy(&pristine, &image).unwrap();
        let mut breaker = Breaker::new(&format!("keyslot {verb}"), timed(&mut command()));
        for round in 0..MOMENTS {
            std::fs::copy(&pristine, &image).unwrap();
            let code = breaker.run(round, &mut command());
            assert!(opens(&rig, &image, &key), "{verb}, round {round}: a keyslot that was not asked about is lost");
            demand_repairable(&rig, &image);
            let (second_opens, third_opens) = (opens(&rig, &image, &second), opens(&rig, &image, &third));
            match verb {
                "add" => assert!(second_opens && (third_opens || code != Some(0))),
                "change" => {
                    assert!(second_opens || third_opens, "round {round}: neither the old nor the new key opens")
                }
                _ => assert!(!second_opens || code != Some(0)),
            }
            // The next one copes: there is still room, whatever was left half written.
            let mut next = keyslot(&rig, "add", &image, &key, Some(&third));
            let added = run(&mut next);
            let full = verb == "add" && third_opens;
            assert!(added.status.success() || full, "{verb}, round {round}: {added:?}");
        }
    }
}

#[test]
fn open_and_close_broken_off_leave_nothing_that_close_does_not_clean() {
    let test = "interrupts: open_and_close_broken_off_leave_nothing_that_close_does_not_clean";
    if !(needs_root(test) && needs_fuse(test)) {
        return;
    }
    let rig = Rig::new("interrupt");
    let image = rig.path("image");
    succeed(&mut format(&rig, &image));
    let before = std::fs::read(&image).unwrap();
    let open = || {
        let mut command = rig.luksctl(&["open", "--backend", "fuse", "--key-file"]);
        command.arg(rig.key()).arg(&image).arg("broken");
        command
    };
    let mut breaker = Breaker::new("open", timed(&mut open()));
    rig.close("broken");
    for round in 0..MOMENTS {
        breaker.run(round, &mut open());
        // The same command again works, or finds the volume open: the signal came too late.
        let again = run(&mut open());
        assert!(matches!(again.status.code(), Some(0 | 5)), "round {round}: {again:?}");
        let closed = run(&mut rig.luksctl(&["close", "broken"]));
        // Opened for a client that was gone already: its server closes it by itself.
        let by_itself = again.status.code() == Some(5) && matches!(closed.status.code(), Some(1 | 4 | 5));
        assert!(closed.status.success() || by_itself, "round {round}: {closed:?}");
        leftovers::demand_none(&rig, "open, open, close");
    }
    succeed(&mut open());
    let mut breaker = Breaker::new("close", timed(&mut rig.luksctl(&["close", "broken"])));
    for round in 0..MOMENTS {
        succeed(&mut open());
        breaker.run(round, &mut rig.luksctl(&["close", "broken"]));
        let again = run(&mut rig.luksctl(&["close", "broken"]));
        assert!(again.status.code().is_some_and(|code| matches!(code, 0 | 1 | 4 | 5)), "round {round}: {again:?}");
        leftovers::demand_none(&rig, "close, twice");
    }
    assert!(std::fs::read(&image).unwrap() == before, "opening and closing changed the image");
    assert!(opens(&rig, &image, &rig.key()));
}
