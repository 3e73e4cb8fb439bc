//! Promise: a key derivation that asks for more memory than its cgroup leaves is a named error with exit code 3, and never
//! the OOM killer's work; a measured one keeps to what is there. With a real cgroup, of version 1 or 2.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use promises::Rig;
use promises::rig::{run, succeed};
use promises::skip;

const ROOM_BYTES: u64 = 128 << 20;
/// Twice the room, in KiB.
const TOO_MUCH_KIB: &str = "262144";
const OUT_OF_MEMORY: i32 = 3;

/// A cgroup with [`ROOM_BYTES`]; removed when dropped.
struct Cgroup {
    folder: PathBuf,
    unified: bool,
}

impl Cgroup {
    fn make(test: &str) -> Option<Cgroup> {
        if !skip::needs_root(test) {
            return None;
        }
        let places = [("/sys/fs/cgroup", true), ("/sys/fs/cgroup/unified", true), ("/sys/fs/cgroup/memory", false)];
        let made = places.into_iter().find_map(|(root, unified)| Cgroup::make_in(Path::new(root), unified));
        if made.is_none() {
            skip::skip(test, "needs a memory cgroup that it may make");
        }
        made
    }

    fn make_in(root: &Path, unified: bool) -> Option<Cgroup> {
        let folder = root.join(format!("luks-test-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let cgroup = Cgroup { folder, unified };
        let limit = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        // A folder of a tmpfs, or a version 2 without the memory controller, has no such file.
        let limit = cgroup.folder.join(limit);
        (limit.exists() && fs::write(limit, ROOM_BYTES.to_string()).is_ok()).then_some(cgroup)
    }

    /// Runs `command` inside.
    fn run(&self, command: &Command) -> Output {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.folder.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        run(&mut inside)
    }

    /// Processes that the OOM killer took.
    fn killed(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count of killed processes").trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.folder);
        drop(removed);
    }
}

fn refused(output: &Output, what: &str) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(OUT_OF_MEMORY), "{what}: {words}");
    assert!(words.contains("memory") && words.contains("MiB"), "{what} does not say what is missing: {words}");
}

#[test]
fn a_small_cgroup_is_a_named_error_and_never_the_oom_killer() {
    let test = "a_small_cgroup_is_a_named_error_and_never_the_oom_killer";
    if !skip::needs_fuse(test) {
        return;
    }
    let Some(cgroup) = Cgroup::make(test) else { return };
    let rig = Rig::new("memory");
    let (image, measured) = (rig.path("image"), rig.path("measured"));
    let key = rig.key();
    let forced = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", TOO_MUCH_KIB, "--size", "32M"];
    let mut format = rig.luksctl(&["format", "-q"]);
    format.args(forced).arg("--key-file").arg(&key).arg(&image);

    refused(&cgroup.run(&format), "format");
    assert!(!image.exists(), "a refused format left a file");

    succeed(&mut format);
    let mut open = rig.luksctl(&["open", "--backend", "fuse", "--key-file"]);
    open.arg(&key).arg(&image).arg("disk");
    refused(&cgroup.run(&open), "open");
    let mut test_slot = rig.luksctl(&["keyslot", "test", "--key-file"]);
    test_slot.arg(&key).arg(&image);
    refused(&cgroup.run(&test_slot), "keyslot test");
    assert!(succeed(&mut rig.luksctl(&["list", "--json"])).stdout.starts_with(b"[]"), "a server is left");

    let mut format = rig.luksctl(&["format", "-q", "--iter-time", "200", "--size", "32M", "--key-file"]);
    format.arg(&key).arg(&measured);
    let output = cgroup.run(&format);
    assert!(output.status.success(), "a measured format keeps to what is there: {output:?}");
    let mut test_slot = rig.luksctl(&["keyslot", "test", "--key-file"]);
    test_slot.arg(&key).arg(&measured);
    let output = cgroup.run(&test_slot);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(cgroup.killed(), 0);
}
